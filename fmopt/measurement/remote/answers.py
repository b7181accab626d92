"""What a board says, which is a stranger's word: every answer has the kinds of values that it should, or is one line."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fmopt.core.errors import BoardError, first_fault
from fmopt.edge.errors import EdgeError
from fmopt.edge.files import parsed

T = TypeVar("T")
LARGEST = 64 << 20  # bytes of one answer
Count = Annotated[int, Field(ge=0, le=1 << 60)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Answer(BaseModel):
    """Fields that are read; others pass."""

    model_config = ConfigDict(extra="allow")


class Hello(Answer):
    """What a place is."""

    python: Annotated[list[Count], Field(min_length=2)]
    implementation: str
    machine: str
    system: str
    release: str
    libc: Annotated[list[str], Field(min_length=2)]
    free: Count
    folder: str


class Description(Answer):
    """Its CPU as its system describes it."""

    cpuinfo: str
    board: str
    machine: str
    system: str
    release: str
    python: str
    cores: Annotated[int, Field(ge=1, le=1 << 20)]
    memory_kb: Count
    caches: dict[str, str]


class Had(Answer):
    """How much of each file is there, -1 for one of another content, and the bytes that are free."""

    have: dict[str, int]
    free: Count


class Ran(Answer):
    """A program that has ended."""

    code: int
    out: str
    err: str


class Polled(Answer):
    """A job's state, and what it printed once it has ended."""

    state: str
    code: int = 0
    out: str = ""
    err: str = ""


class Cleaned(Answer):
    """Whether anything is left."""

    left: bool


class Times(Answer):
    """What the timer there prints at last."""

    samples: dict[str, list[Milliseconds]]
    warnings: list[str]
    failed: dict[str, str]


class Ceilings(Answer):
    """What the kernels there reached."""

    bandwidth_gbs: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    gops: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


KINDS: dict[str, type[Answer]] = {
    "hello": Hello, "describe": Description, "have": Had, "run": Ran, "poll": Polled, "clean": Cleaned,
}  # fmt: skip


def understood(text: str, kind: Any, address: object) -> Any:
    """The JSON document `text` as `kind` has it (see pydantic's TypeAdapter). BoardError for anything else."""
    try:
        return TypeAdapter(kind).validate_python(parsed(text, "its answer"))
    except ValidationError as error:
        raise BoardError(f"{address} gave an answer that makes no sense ({first_fault(error)})") from error
    except (EdgeError, ValueError) as error:
        raise BoardError(f"{address} gave an answer that makes no sense ({str(error)[:200]})") from error


def last_of(out: str, kind: type[T], address: object) -> T:
    """The last line that a program there printed."""
    lines = out.strip().splitlines()
    found: T = understood(lines[-1] if lines else "", kind, address)
    return found
