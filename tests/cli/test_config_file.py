"""fmopt.toml beside flags: what is typed wins, what was taken is said, what is wrong is one line with the way out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from fmopt.cli import config_file
from fmopt.cli.app import CONFIGURED, app, main
from tests.conftest import TinyCheckpoint

ROWS = "text,label\n" + "\n".join(
    f"a text about {number},{'positive' if number % 2 else 'negative'}" for number in range(60)
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: TinyCheckpoint) -> Path:
    """The working directory, with data and a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text(ROWS)
    (tmp_path / "model").symlink_to(tiny_checkpoint("bert", "text-classification"))
    return tmp_path


def test_what_is_typed_wins_over_the_file_and_the_rest_is_said(here: Path, capsys) -> None:
    (here / "fmopt.toml").write_text('[optimize]\nmodel = "nowhere"\ndata = "data.csv"\neffort = "max"\nthreads = 1\n')
    assert main(["optimize", "model", "--effort", "quick", "--dry-run", "--json"]) == 0
    got = capsys.readouterr()
    assert got.err.splitlines()[0] == "from fmopt.toml: data = data.csv, threads = 1"
    plan = json.loads(got.out)
    assert plan["candidates"]
    assert plan["later"] == []  # of effort max there would be pruning


def test_another_file_is_named_with_config(here: Path, capsys) -> None:
    (here / "fmopt.toml").write_text("[optimize]\nbatch = 0\n")  # is not read then
    (here / "mine.toml").write_text('[optimize]\nmodel = "model"\ndata = "data.csv"\n[check]\nmax-drop = "2pt"\n')
    assert main(["optimize", "--config", "mine.toml", "--dry-run", "--json"]) == 0
    assert capsys.readouterr().err.startswith("from mine.toml: model = model, data = data.csv\n")


def test_switches_and_lists_are_taken_too(here: Path, capsys) -> None:
    (here / "fmopt.toml").write_text('[optimize]\nmodel = "model"\ndata = "data.csv"\ndry-run = true\n'
                                     '[bench]\nmodels = ["model", "no-such-bundle"]\nbatch = "1,x"\n')  # fmt: skip
    assert main(["optimize"]) == 0
    assert "would be tried" in capsys.readouterr().out
    assert main(["bench"]) == 2
    assert (
        "--batch '1,x' is not a list of positive numbers like 1,8 (batch is from fmopt.toml)" in capsys.readouterr().err
    )


def test_the_record_tells_a_command_that_needs_no_file(here: Path, monkeypatch) -> None:
    (here / "fmopt.toml").write_text(
        '[optimize]\nmodel = "model"\ndata = "my data.csv"\nfresh = true\nmax-drop = "5pt"\n'
    )
    told: list[str] = []
    monkeypatch.setattr("fmopt.workflow.optimize.plan", lambda request: told.append(request.command) or 1 / 0)
    monkeypatch.setattr("sys.argv", ["fmopt", "optimize", "--max-drop", "1pt", "--dry-run"])
    with pytest.raises(ZeroDivisionError):
        main(["optimize", "--max-drop", "1pt", "--dry-run"])
    words = ["optimize", "--max-drop", "1pt", "--dry-run", "model", "--data", "my data.csv", "--fresh"]
    assert shlex.split(told[0]) == ["fmopt", *words]


def test_commands_without_a_table_are_as_before(here: Path, capsys) -> None:
    (here / "fmopt.toml").write_text('[finetune]\ndata = "data.csv"\n')
    assert main(["optimize", "no-such-folder"]) == 2
    assert capsys.readouterr().err.startswith("fmopt: there is no folder and no known model 'no-such-folder'")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[optimize]\nmodle = "x"\n', "fmopt.toml: modle in [optimize] is no option of `fmopt optimize`; did you mean 'model'?"),
        ("[optimize]\nmax_drop = 1\n", "max_drop in [optimize] is no option of `fmopt optimize`; did you mean 'max-drop'?"),
        ('[optimize]\nbatch = "many"\n', "fmopt.toml: batch in [optimize] is 'many'; it is a whole number"),
        ("[optimize]\nbatch = 0\n", "fmopt.toml: batch in [optimize] is 0; it is at least 1"),
        ("[optimize]\nseed = -1\n", "fmopt.toml: seed in [optimize] is -1; it is 0 to 4294967295"),
        ("[optimize]\nmodel = true\n", "fmopt.toml: model in [optimize] is True; it is a text in quotes"),
        ("[optimize]\nfresh = 1\n", "fmopt.toml: fresh in [optimize] is 1; it is true or false"),
        ("[optimize]\nmodel = []\n", "fmopt.toml: model in [optimize] is []; it is a text in quotes"),
        ("[bench]\nmodels = [[1]]\n", "fmopt.toml: models in [bench] is [1]; it is a text in quotes or a list of such"),
        ("[optimise]\nseed = 1\n", "fmopt.toml: no command [optimise] takes options from a file; did you mean 'optimize'?"),
        ('model = "minilm"\n', "fmopt.toml: model stands in no table; write it below a line [optimize]"),
        ("[optimize\n", "fmopt.toml is not a file of options: "),
        ("[optimize]\nallow-pickle = true\n", "allow-pickle in [optimize] is not taken from a file; type --allow-pickle"),
        ('[optimize]\non = "me@board"\n', "on in [optimize] is not taken from a file; type --on"),
        ('[optimize]\nstore = "s3://a/b"\n', "store in [optimize] is not taken from a file; type --store"),
        ('[optimize]\ncluster = "ray://a:1"\n', "cluster in [optimize] is not taken from a file; type --cluster"),
        ('[optimize]\nmodel = "\\u001b[2Jx"\n', "no known model '\\x1b[2Jx'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_one_line(content: str, said: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fmopt.toml").write_text(content)
    command = "bench" if content.startswith("[bench") else "optimize"
    assert main([command]) == 2
    (*before, line) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.startswith("fmopt: ")
    assert all(one.startswith("from fmopt.toml: ") for one in before)
    assert "\x1b" not in line


def test_a_file_that_is_not_there_or_says_nothing_of_the_command_is_one_line(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["optimize", "--config", "mine.toml"]) == 2
    assert capsys.readouterr().err == (
        "fmopt: there is no file mine.toml; name one with --config, or let `fmopt init` write fmopt.toml\n"
    )
    (tmp_path / "mine.toml").write_text("[check]\n")
    assert main(["optimize", "--config", "mine.toml"]) == 2
    assert "mine.toml has no table [optimize], which `fmopt optimize` would read; add one" in capsys.readouterr().err


def test_every_option_of_every_such_command_can_stand_in_a_file() -> None:
    """A parameter of a kind that files cannot hold would be an error only for who writes it."""
    import inspect
    from typing import get_args

    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name in CONFIGURED:
        verb = inspect.unwrap(commands[name].callback)
        parameters = inspect.signature(verb, eval_str=True).parameters
        for key, option in config_file._options(commands[name]).items():
            if key not in config_file.TYPED_ONLY:
                for value in (True, 3, 0.5, "text"):
                    try:
                        config_file._checked(value, key, parameters[option.name].annotation, None, None)
                        break
                    except config_file.ConfigError:
                        continue
                else:
                    pytest.fail(f"nothing fits {name} {key}: {get_args(parameters[option.name].annotation)}")
