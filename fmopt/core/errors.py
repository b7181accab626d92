"""What can go wrong in a way fmopt can explain.

FmoptError              anything below; the command prints it in one line, without a traceback
├── ConfigError         a value is wrong in itself (a flag, a recipe, a target)
├── CheckpointError     a model cannot be used as it is
├── DataError           a data set cannot be used as it is
├── PlanError           right values that do not fit together; said before work starts, all reasons at once
├── PassError           a step broke while running; names the step
├── ParityError         an exported graph does not compute what the torch model computes
├── BundleError         a bundle is damaged, or not a bundle
├── StoreError          a folder cannot be written, or is not ours
├── BoardError          a device at the end of an ssh line cannot be reached, or cannot be used as it is
├── ClusterError        a cluster cannot be reached, or was lost
└── UnmeasuredError     something asked for could not be measured here (exit code 4)

A message says what, where, and the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fmopt.edge.errors import EdgeError


class FmoptError(Exception):
    """Something fmopt can explain; the command line prints it without a traceback."""

    exit_code = 2


class ConfigError(FmoptError):
    """A value is wrong in itself."""


class CheckpointError(FmoptError):
    """A model cannot be used as it is."""


class DataError(FmoptError):
    """A data set cannot be used as it is."""


class PlanError(FmoptError):
    """Right values that do not fit together."""


class PassError(FmoptError):
    """A step broke while running."""


class ParityError(FmoptError):
    """An exported graph does not compute what the torch model computes."""


class BundleError(FmoptError):
    """A bundle is damaged, or not a bundle."""


class StoreError(FmoptError):
    """A folder cannot be written, or is not ours."""


class BoardError(FmoptError):
    """A device at the end of an ssh line cannot be reached, or cannot be used as it is."""


class ClusterError(FmoptError):
    """A cluster cannot be reached, or was lost."""


class UnmeasuredError(FmoptError):
    """Something asked for could not be measured here."""

    exit_code = 4


@contextmanager
def explained(what: str, kind: type[FmoptError] = PassError) -> Iterator[None]:
    """Turn what a library raises, in a class of its own, into one line that begins with `what`.

    FmoptErrors pass as they are, and so do OSErrors: what a disk refuses is no fault of the model.
    """
    try:
        yield
    except (FmoptError, OSError):
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise kind(f"{what}: {type(error).__name__}: {first[:200]}") from error


@contextmanager
def reading(where: object, kind: type[FmoptError], way_out: str = "get it again") -> Iterator[None]:
    """Whatever a library raises while it reads what was received, as one line that names where it lies.

    For blocks that only read: libraries raise what they like over a damaged file, and some panic (a BaseException) or want
    more memory than there is.
    """
    try:
        yield
    except FmoptError:
        raise
    except EdgeError as error:
        raise kind(f"{where}: {error}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise kind(f"{where} cannot be used ({said}); {way_out}") from error


def first_fault(error: Any) -> str:
    """The first thing wrong by a pydantic ValidationError, in a few words: where, and what."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
