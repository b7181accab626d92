"""The command: argv → one call → a printed answer and an exit code; what the verbs do is in commands/.

Exit codes: 0 all gates passed, 1 a gate failed, 2 bad input or usage, 3 undecided, 4 something could not be measured,
130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from fmopt.cli import begin, completion, deliver, evaluate, inspect, produce
from fmopt.cli.config_file import configured
from fmopt.core import escaping
from fmopt.core.errors import FmoptError
from fmopt.edge.errors import EdgeError
from fmopt.edge.files import mend_streams
from fmopt.training import distributed

# in the order that `fmopt --help` lists them
VERBS: tuple[Callable[..., None], ...] = (
    begin.try_,
    begin.init,
    produce.optimize,
    produce.sweep,
    produce.export,
    produce.finetune,
    produce.merge,
    produce.trim,
    produce.clean,
    deliver.sign,
    deliver.pack,
    deliver.push,
    deliver.serve,
    evaluate.bench,
    evaluate.evaluate,
    evaluate.explain,
    evaluate.predict,
    evaluate.verify,
    inspect.compare,
    deliver.check,
    inspect.inspect,
    inspect.report,
    inspect.history,
    inspect.check_tensorrt,
    inspect.doctor,
    begin.completion,
)
TARGET_VERBS: tuple[Callable[..., None], ...] = (inspect.targets_list, inspect.targets_show, inspect.targets_probe)
NAMES = {"evaluate": "eval", "check_tensorrt": "check-tensorrt", "try_": "try"}  # what a function cannot be called
CONFIGURED = (
    "optimize",
    "export",
    "finetune",
    "bench",
    "eval",
    "explain",
    "check",
)  # commands that a file has tables for

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make a pretrained Transformer as small and fast on your device as its accuracy allows, and prove it.",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as distribution_version

        print(f"fmopt {distribution_version('fmopt')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say it and exit.")
    ] = False,
) -> None:
    """What may stand before a verb."""


targets_app = typer.Typer(no_args_is_help=True, help="Devices that fmopt knows, and this one.", rich_markup_mode=None)
app.add_typer(targets_app, name="targets")
for verb in VERBS:
    name = NAMES.get(verb.__name__, verb.__name__)
    app.command(name)(configured(verb, name, CONFIGURED) if name in CONFIGURED else verb)
for verb in TARGET_VERBS:
    targets_app.command(verb.__name__.removeprefix("targets_"))(verb)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; what fmopt can explain is one line on stderr."""
    mend_streams()
    completion.prepare()
    # what is worth a warning is one line
    warnings.formatwarning = lambda message, *rest: f"warning: {escaping.one_line(message)}\n"
    try:
        distributed.require_connected_processes()
        if distributed.follows():
            distributed.follow()
        else:
            _lead(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    except FmoptError as error:
        print(f"fmopt: {escaping.one_line(error)}", file=sys.stderr)
        return error.exit_code
    except EdgeError as error:  # of what a bundle carries, from a verb that did not expect it
        print(f"fmopt: {escaping.one_line(error)}", file=sys.stderr)
        return FmoptError.exit_code
    return 0


def _lead(argv: list[str] | None) -> None:
    """Run the command in the process that reads, measures and writes."""
    try:
        app(args=argv, prog_name="fmopt")  # also where it is run as python -m fmopt: completion goes by the name
    finally:
        distributed.dismiss()


def entry() -> None:
    """The console script."""
    sys.exit(main())
