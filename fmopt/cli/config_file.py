"""fmopt.toml: options of a command that stand in a file instead of on its line. What is on the line wins.

A table for each command, keys named as its options are: `[optimize]`, `max-drop = "1pt"`. The file of the working directory is
read where there is one; `--config` names another.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer

from fmopt.core import escaping
from fmopt.core.errors import ConfigError, FmoptError
from fmopt.core.plugins import did_you_mean

FILE = "fmopt.toml"
# A folder that somebody sent may bring a file along: what lets others run code here, or sends them something, has to be typed.
TYPED_ONLY = ("allow-pickle", "cluster", "config", "json", "on", "store")
KINDS: dict[type, tuple[str, Any]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text in quotes", (str, int, float)),  # a number too: `threads = 4`, though the option also takes a word
    Path: ("a path in quotes", (str,)),
}
_from_file: ContextVar[tuple[str, ...]] = ContextVar("words that a file adds to the command line", default=())


def configured(verb: Callable[..., None], name: str, tables: Collection[str]) -> Callable[..., None]:
    """The command `name` with `--config`, and with what a file says where the command line says nothing.

    `tables` are the commands that a file may have a table for. The command that is made raises ConfigError for a file that is
    not there or not of that form.
    """
    signature = inspect.signature(verb, eval_str=True)

    def read(ctx: typer.Context, value: Path | None) -> Path | None:
        path = value or Path(FILE)
        if not ctx.resilient_parsing and (value is not None or path.is_file()):
            ctx.default_map = _values(
                _table(path, name, tables, required=value is not None), path, ctx.command, signature.parameters
            )
        return value

    @functools.wraps(verb)
    def run(ctx: typer.Context, config: Path | None, **given: Any) -> None:
        path, values = config or Path(FILE), ctx.default_map or {}
        options = _options(ctx.command)
        taken = {
            key: values[one.name]
            for key, one in options.items()
            if one.name in values and getattr(ctx.get_parameter_source(one.name), "name", "") == "DEFAULT_MAP"
        }
        if taken:
            said = ", ".join(
                f"{key} = {str(value).lower() if value is True else value}" for key, value in taken.items()
            )
            print(f"from {escaping.one_line(path)}: {escaping.one_line(said)}", file=sys.stderr)
        before = _from_file.set(
            tuple(word for key, value in taken.items() for word in _words(options[key], key, value))
        )
        try:
            verb(**given)
        except FmoptError as error:
            about = [key for key, value in taken.items() if _is_about(str(error), key, value)]
            if not about:
                raise
            raise type(error)(f"{error} ({about[0]} is from {path})") from error
        finally:
            _from_file.reset(before)

    option = typer.Option(
        "--config", help=f"Take options from this file instead of {FILE}.", callback=read, is_eager=True
    )
    added = {
        "ctx": inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        "config": inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
        ),
    }
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[added["ctx"], *own, added["config"]])  # type: ignore[attr-defined]
    return run


def command_line() -> str:
    """What was asked for, as one line that needs no file: the words that were typed and those that a file added."""
    return escaping.command_line(["fmopt", *sys.argv[1:], *_from_file.get()])


def _table(path: Path, name: str, tables: Collection[str], *, required: bool) -> dict[str, Any]:
    """The file's table for a command; empty where it has none and none is `required`."""
    from fmopt.core.received import read_toml

    if not path.is_file():
        raise ConfigError(f"there is no file {path}; name one with --config, or let `fmopt init` write {FILE}")
    content = read_toml(path, "a file of options", dict)
    for key, value in content.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {key} stands in no table; write it below a line [{name}]")
        if key not in tables:
            raise ConfigError(f"{path}: no command [{key}] takes options from a file{did_you_mean(key, tables)}")
    if required and name not in content:
        raise ConfigError(f"{path} has no table [{name}], which `fmopt {name}` would read; add one")
    return dict(content.get(name, {}))


def _options(command: Any) -> dict[str, Any]:
    """A command's options by what a file calls them: their long names, and what stands alone by its own."""
    found = {}
    for one in command.params:
        long = [name.removeprefix("--") for name in one.opts if name.startswith("--")]
        found[long[0] if long else one.name] = one
    return found


def _values(
    table: Mapping[str, Any], path: Path, command: Any, parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """The parameter's name for each key, with its value; ConfigError for a key that there is not, or one of another kind."""
    options, found = _options(command), {}
    for key, value in table.items():
        where = f"{path}: {key} in [{command.name}]"
        if key in TYPED_ONLY:
            raise ConfigError(f"{where} is not taken from a file; type --{key} where you want it")
        if key not in options:
            known = [one for one in options if one not in TYPED_ONLY]
            raise ConfigError(f"{where} is no option of `fmopt {command.name}`{did_you_mean(key, known)}")
        one = options[key]
        found[one.name] = _checked(value, where, parameters[one.name].annotation, one.min, one.max)
    return found


def _checked(value: Any, where: str, annotation: Any, low: float | None, high: float | None) -> Any:
    """The value as the option takes it. ConfigError, which begins with `where`, for another kind or one out of bounds."""
    alternatives = [one for one in get_args(get_args(annotation)[0]) if one is not NoneType]
    kind = alternatives[0] if alternatives else get_args(annotation)[0]
    if several := list in (get_origin(kind), get_origin(get_args(annotation)[0])):
        kind = get_args(kind)[0] if get_args(kind) else kind
    words, types = KINDS[kind]
    values: list[Any] = value if several and isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, types) or (isinstance(one, bool) and kind is not bool):
            raise ConfigError(f"{where} is {one!r}; it is {words}{' or a list of such' if several else ''}")
        if isinstance(one, (int, float)) and ((low is not None and one < low) or (high is not None and one > high)):
            raise ConfigError(f"{where} is {one!r}; it is {f'at least {low}' if high is None else f'{low} to {high}'}")
    made = [str(one) if kind in (str, Path) else one for one in values]
    return made if several else made[0]


def _words(option: Any, key: str, value: Any) -> list[str]:
    """A value of a file as it would be typed."""
    flag = [f"--{key}"] if option.param_type_name == "option" else []
    if isinstance(value, bool):
        return flag if value else []
    return [word for one in (value if isinstance(value, list) else [value]) for word in (*flag, str(one))]


def _is_about(message: str, key: str, value: Any) -> bool:
    """Whether an error is about an option of the file: it names the option, or its value in quotes or as a path."""
    path = isinstance(value, str) and bool({".", "/"} & set(value)) and value in message
    return f"--{key}" in message or path or (isinstance(value, str) and repr(value) in message)
