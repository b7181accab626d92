"""The first minutes with the command: a first result, five questions, completion, what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from fmopt.cli import doctor, output
from fmopt.cli.app import main
from fmopt.core.results import Check, Outcome, Verdict
from fmopt.workflow import first_try
from tests import records
from tests.cli.terminal import at_terminal, plain
from tests.conftest import TinyCheckpoint

DEFAULTS = {"model": "minilm", "data": "builtin:pydoc", "target": "host", "effort": "quick", "max-drop": "1pt",
            "output": "fmopt-out"}  # fmt: skip


def written(folder: Path) -> dict[str, str]:
    return tomllib.loads((folder / "fmopt.toml").read_text())["optimize"]


def test_init_asks_five_questions_again_where_an_answer_is_wrong(tmp_path: Path) -> None:
    answers = "minlim\nminilm\n\nrasberry-pi-5\nraspberry-pi-5\nspeed\nout/small\n"
    code, shown = at_terminal("init", cwd=tmp_path, typed=answers)
    assert code == 0
    assert shown.count(" of 5 ") == 5
    assert shown.count("Error: ") == 2  # and those two were asked again
    assert "did you mean 'minilm'?" in shown
    assert "did you mean 'raspberry-pi-5'?" in shown
    assert written(tmp_path) == {
        **DEFAULTS, "target": "raspberry-pi-5", "effort": "standard", "max-drop": "2pt", "output": "out/small"
    }  # fmt: skip


def test_init_overwrites_nothing_without_being_told_to(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "fmopt.toml").write_text("mine = 1\n")
    code, shown = at_terminal("init", cwd=tmp_path, typed="n\n")
    assert (code, "Overwrite it?" in shown, "nothing was written" in shown) == (0, True, True)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--yes"]) == 2
    assert (
        capsys.readouterr().err == "fmopt: fmopt.toml exists and is left as it is; move it away, or give --overwrite\n"
    )
    assert (tmp_path / "fmopt.toml").read_text() == "mine = 1\n"
    assert main(["init", "--yes", "--overwrite"]) == 0
    assert written(tmp_path) == DEFAULTS


def test_init_without_a_terminal_is_one_line_or_takes_the_defaults(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fmopt", "init"]
    done = subprocess.run(command, cwd=tmp_path, input="minilm\n" * 9, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert done.stderr.count("\n") == 1
    assert "--yes takes the defaults" in done.stderr
    subprocess.run([*command, "--yes"], cwd=tmp_path, stdin=subprocess.DEVNULL, check=True)
    assert written(tmp_path) == DEFAULTS


def test_what_init_writes_is_all_that_optimize_needs(tmp_path: Path, monkeypatch, capsys, tiny_checkpoint) -> None:
    (tmp_path / "model").symlink_to(tiny_checkpoint("bert", "sentence-embedding"))
    code, shown = at_terminal("init", cwd=tmp_path, typed="model\nbuiltin:pydoc\n\naccuracy\n\n")
    assert code == 0, shown
    monkeypatch.chdir(tmp_path)
    assert main(["optimize", "--dry-run", "--json"]) == 0
    got = capsys.readouterr()
    assert json.loads(got.out)["candidates"]
    assert (
        "from fmopt.toml: model = model, target = host, data = builtin:pydoc, effort = quick, max-drop = 0.5pt"
        in got.err
    )
    assert not (tmp_path / "fmopt-out").exists()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["op"], ["optimize"]),
        (["optimize", "mini"], ["minilm"]),
        (["optimize", "--eff"], ["--effort"]),
        (["optimize", "--effort", ""], ["quick", "standard", "max"]),
        (["optimize", "minilm", "--target", "rasp"], ["raspberry-pi-4", "raspberry-pi-5"]),
        (["optimize", "minilm", "--task", "sentence"], ["sentence-embedding"]),
        (["optimize", "minilm", "--workload", "s"], ["single", "server"]),
        (["optimize", "minilm", "--config", ""], []),  # files, by the shell itself
        (["bench", "x", "--matrix", "--scenario", "offline,s"], ["offline,single-stream", "offline,server"]),
        (["targets", "show", "x86-avx5"], ["x86-avx512-vnni"]),
        (["pack", "x", "--for", "t"], ["transformers.js", "tei", "triton"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["verify", "b"], ["bundle"]),
    ],
)
def test_bash_completes_commands_options_and_values(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    """By the script that `fmopt completion bash` prints, in a real bash."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "fmopt.json").write_text("{}")
    command = tmp_path / "bin" / "fmopt"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fmopt "$@"\n')
    command.chmod(0o755)
    words = " ".join(f"'{word}'" for word in ["fmopt", *typed])
    script = f"""eval "$(fmopt completion bash)"; COMP_WORDS=({words}); COMP_CWORD={len(typed)}
        _fmopt_completion fmopt; printf '%s\\n' "${{COMPREPLY[@]}}\""""
    path = f"{command.parent}:{os.environ['PATH']}"
    said = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    )
    assert said.stdout.split() == offered


@pytest.mark.parametrize(
    ("shell", "words", "said"),
    [
        ("zsh", {"_TYPER_COMPLETE_ARGS": "fmopt optimize --effort "}, '"quick"\n"standard"\n"max"'),
        ("fish", {"_TYPER_COMPLETE_ARGS": "fmopt optimize --target jet", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
         "jetson-agx-orin\njetson-orin-nano"),
    ],
)  # fmt: skip
def test_zsh_and_fish_are_answered_in_their_own_form(shell, words, said, monkeypatch, capsys) -> None:
    assert main(["completion", shell]) == 0
    assert f"_FMOPT_COMPLETE=complete_{shell}" in capsys.readouterr().out
    for name, value in {"_FMOPT_COMPLETE": f"complete_{shell}", **words}.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 0
    assert said in capsys.readouterr().out


def test_a_shell_that_is_not_known_is_one_line(capsys) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "fmopt: there is no completion for 'tcsh'; there is for bash, zsh, fish\n"


def test_completion_loads_nothing_heavy() -> None:
    code = (
        "import os, sys; from fmopt.cli.app import main; os.environ.update(_FMOPT_COMPLETE='complete_bash', "
        "COMP_WORDS='fmopt optimize --task ', COMP_CWORD='3'); main([]); "
        "print(sorted({'torch', 'transformers', 'numpy', 'onnx', 'openvino'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sentence-embedding" in done.stdout
    assert done.stderr.strip() == "[]"


def test_try_makes_a_bundle_with_two_candidates(tmp_path, monkeypatch, capsys, tiny_checkpoint: TinyCheckpoint) -> None:
    """As `fmopt try` does it with MiniLM."""
    monkeypatch.setattr(first_try, "MODEL", str(tiny_checkpoint("bert", "sentence-embedding")))
    monkeypatch.chdir(tmp_path)
    assert main(["try", "--json"]) in (0, 1)  # a tiny network need not be faster; that it is undecided is accepted
    record = json.loads(capsys.readouterr().out)
    assert [one["recipe"]["name"] for one in record["baselines"]] == ["onnxruntime-fp32", "openvino-fp32"]
    assert len(record["trials"]) == 2
    assert record["data"]["rows"]["test"] == first_try.ROWS
    assert main(["verify", "fmopt-try"]) == 0


def test_try_says_why_so_few_items_leave_it_undecided(tmp_path, monkeypatch, capsys) -> None:
    made = records.realistic()
    for outcome, said in ((Outcome.UNDECIDED, True), (Outcome.PASS, False)):
        found = made.model_copy(update={"verdict": Verdict(checks=[Check(name="accuracy drop", outcome=outcome)])})
        monkeypatch.setattr(first_try, "first_try", lambda out, progress, found=found: found)
        main(["try", "-o", str(tmp_path)])
        last = capsys.readouterr().out.splitlines()[-2:]
        assert last[0].startswith("note    undecided, for 48 items are too few") is said
        assert last[1].startswith("next    fmopt init")


def test_doctor_prints_the_lines_that_bring_what_is_missing(monkeypatch, capsys) -> None:
    """With the versions that fmopt itself asks for, and without running them."""
    gone = ("uvicorn", "openvino")
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in gone else known(name))
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)
    assert main(["doctor", "--fix"]) == 0
    lines = capsys.readouterr().out.splitlines()
    asked = [one.partition(";")[0].strip() for one in metadata.requires("fmopt") or ()]
    for name in gone:
        (wanted,) = {one for one in asked if one.startswith(f"{name}>")}
        assert f'pip install "{wanted}"' in lines
    assert "apt-get install openssh-client" in lines
    assert all(line.startswith(("# ", "pip install ", "apt-get install ")) for line in lines)


def test_doctor_says_so_where_nothing_is_missing(capsys) -> None:
    output.fixes([doctor.Line(what="torch", state="ok", detail="2.13")])
    assert capsys.readouterr().out == "# nothing is missing\n"


def test_two_onnxruntimes_are_told_with_the_way_out(monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "1.32.0")
    assert main(["doctor", "--fix"]) == 0
    said = plain(capsys.readouterr().out)
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu" in said
    assert 'pip install "onnxruntime>=' in said
