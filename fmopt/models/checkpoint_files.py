"""A checkpoint's folder as one value: where its files lie and what its JSON files say, each checked and read once.

Whoever reads a part of a checkpoint (its tokenizer, its image processor, how it generates) takes this value and gives that part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import TOKENIZER
from fmopt.models import received

CONFIG = "config.json"


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of one checkpoint. What `read` gives is shared by all who ask: it is not to be changed.

    `folder` holds the network and what encodes its samples: the folder that was given, the folder inside it that older
    sentence-transformers used, or a converted copy. `home` is the folder that was given, with sentence-transformers' own files.
    """

    folder: Path
    home: Path
    _contents: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, folder: Path) -> CheckpointFiles:
        """Those of a folder that is both."""
        return cls(folder, folder)

    @property
    def config(self) -> dict[str, Any]:
        """config.json as it is written; empty where there is none."""
        return self.read(self.folder / CONFIG) or {}

    def read(self, path: Path, kind: type = dict) -> Any:
        """A JSON file whose top level is `kind`; None when there is no such file. CheckpointError for anything else."""
        if path not in self._contents:
            self._contents[path] = read_json(path, kind)
        return self._contents[path]

    def look_through(self) -> None:
        """CheckpointError for a file that must not be read, or a configuration that names code; before any library reads one."""
        for folder in {self.home, self.folder}:
            self._contents.update(received.look_through(folder))

    def inside(self, folder: Path) -> CheckpointFiles:
        """The same, with the network in a folder of `home`."""
        return replace(self, folder=folder)

    def copied_to(self, folder: Path) -> CheckpointFiles:
        """The same in a copy, in which weights and tokenizer.json alone may differ; the other files are not read again."""
        same = {
            folder / path.name: content
            for path, content in self._contents.items()
            if path.parent == self.folder and path.name != TOKENIZER
        }
        return replace(self, folder=folder, _contents=self._contents | same)


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose top level is `kind` (of a list, all objects); None when there is no such file."""
    if not path.is_file():
        return None
    got = received.read_json(path, kind)
    if kind is list and not all(isinstance(one, dict) for one in got):
        raise CheckpointError(f"{path} is no list of JSON objects; get the file again")
    return got
