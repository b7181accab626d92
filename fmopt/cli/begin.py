"""Verbs to begin with: a first result on a model that is here already, a file of options by five questions, completion."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from fmopt.cli import completion as offered
from fmopt.cli.config_file import FILE
from fmopt.cli.options import Json, answer
from fmopt.core import plugins
from fmopt.core.errors import ConfigError

PRIORITIES = {
    "speed": {"effort": "standard", "max-drop": "2pt"},
    "balance": {"effort": "quick", "max-drop": "1pt"},
    "accuracy": {"effort": "quick", "max-drop": "0.5pt"},
}
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
HEADER = """\
# What `fmopt optimize` does in this folder. Keys are its options (`fmopt optimize --help`); what is typed wins over them.
"""


def try_(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bundle and the report.")] = Path(
        "fmopt-try"
    ),
    as_json: Json = False,
) -> None:
    """See what it does, in a few minutes: all-MiniLM-L6-v2, two candidates, a few items."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.core.results import Outcome
    from fmopt.evaluation import gate
    from fmopt.workflow.first_try import ROWS, first_try

    with console.live_progress() as progress:
        record = first_try(output, progress)
    answer(record.model_dump(mode="json"), as_json, lambda: cli_output.record(record, output))
    if not as_json:
        if record.verdict.outcome is Outcome.UNDECIDED:  # the first word that a newcomer reads of it
            print(f"note    undecided, for {ROWS} items are too few to be sure of accuracy; yours may be more")
        print("next    fmopt init, for a model and data of your own")
    raise typer.Exit(gate.exit_code(record.verdict, accept_undecided=True))


def init(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take every default instead of asking.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=f"Replace a {FILE} that is there.")] = False,
) -> None:
    """Ask five questions and write fmopt.toml, so that `fmopt optimize` alone does it."""
    from fmopt.core.stages.store import write_whole

    path = Path(FILE)
    if not yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("fmopt init asks questions, and there is no terminal to answer at; --yes takes the defaults")
    if path.exists() and not overwrite:
        if yes:
            raise ConfigError(f"{FILE} exists and is left as it is; move it away, or give --overwrite")
        if not typer.confirm(f"{FILE} exists. Overwrite it?"):
            print("nothing was written")
            return
    options = _defaults() if yes else _asked()
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in options.items()]
    write_whole(path, "\n".join([HEADER + "[optimize]", *lines, ""]))
    print(f"{FILE} is written; try: fmopt optimize --dry-run, then: fmopt optimize")


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.", autocompletion=offered.words(*offered.SHELLS))],
) -> None:
    """Print what makes a shell complete commands, options and their values; see docs/begin.md."""
    if shell not in offered.SHELLS:
        raise ConfigError(f"there is no completion for {shell!r}; there is for {', '.join(offered.SHELLS)}")
    print(offered.script(shell))


def _defaults() -> dict[str, str]:
    model = "minilm"
    return {"model": model, "data": default_data(model) or "", "target": "host", **PRIORITIES["balance"],
            "output": "fmopt-out"}  # fmt: skip


def _asked() -> dict[str, str]:
    """What somebody answers; a wrong answer is asked for again."""
    print("1 of 5  Which model? A folder with a checkpoint, a name on the Hugging Face hub,\n        or minilm.")
    model = typer.prompt("        model", "minilm", value_proc=check_model)
    print("2 of 5  Which data? Like what the model will read, with labels if there are any: a file,\n"
          "        a folder, a data set on the hub, or builtin:pydoc (docstrings of Python).")  # fmt: skip
    data = typer.prompt("        data", default_data(model), value_proc=check_data)
    print("3 of 5  Which device will it run on? host is this machine; fmopt targets list has others.")
    target = typer.prompt("        device", "host", value_proc=check_target)
    print(f"4 of 5  What matters more: {' or '.join(PRIORITIES)}?")
    priority = typer.prompt("        what matters", "balance", value_proc=check_priority)
    print("5 of 5  Which folder should the result go to?")
    output = typer.prompt("        folder", "fmopt-out", value_proc=check_output)
    return {"model": model, "data": data, "target": target, **PRIORITIES[priority], "output": output}


def default_data(model: str) -> str | None:
    """The data that a known model comes with; None for others."""
    entry = plugins.data_folder("models") / f"{model}.toml"
    if model not in plugins.data_names("models"):
        return None
    found = tomllib.loads(entry.read_text("utf8")).get("default_data")
    return None if found is None else str(found)


def check_model(answered: str) -> str:
    """A folder with a checkpoint, a known name, or what may be a name on the hub, which is looked up when it is used."""
    known = plugins.data_names("models")
    if answered in known or (Path(answered) / "config.json").is_file():
        return answered
    if Path(answered).exists():
        raise typer.BadParameter(f"{answered} holds no config.json, as a checkpoint in Hugging Face format does")
    if HUB_NAME.fullmatch(answered) and not Path(answered).parent.is_dir():
        return answered
    raise typer.BadParameter(
        f"there is no folder and no known model {answered!r}{plugins.did_you_mean(answered, known)}"
    )


def check_data(answered: str) -> str:
    """Built-in data, a file or folder, or what may be a data set on the hub."""
    if answered in offered.BUILTIN_DATA or Path(answered).exists():
        return answered
    if HUB_NAME.fullmatch(answered.partition(":")[0]) and not Path(answered).parent.is_dir():
        return answered
    raise typer.BadParameter(f"there is no file or folder {answered!r}; builtin:pydoc is there without one")


def check_target(answered: str) -> str:
    """A known device, or a file that describes one."""
    known = offered.targets("")
    if answered in known or (answered.endswith(".toml") and Path(answered).is_file()):
        return answered
    raise typer.BadParameter(f"there is no target {answered!r}{plugins.did_you_mean(answered, known)}")


def check_priority(answered: str) -> str:
    """One of three words."""
    if answered in PRIORITIES:
        return answered
    raise typer.BadParameter(f"{answered!r} is none of {', '.join(PRIORITIES)}")


def check_output(answered: str) -> str:
    """A folder that is there or can be made."""
    if Path(answered).exists() and not Path(answered).is_dir():
        raise typer.BadParameter(f"{answered} is a file; name a folder")
    return answered
