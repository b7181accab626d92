"""Arguments and options that several commands take, and how a command answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fmopt.cli import completion
from fmopt.core.errors import ConfigError
from fmopt.edge.files import json_line

Model = Annotated[
    str,
    typer.Argument(
        help="A folder in Hugging Face format, an ONNX or GGUF file, a hub name, or an entry of models/ (minilm).",
        autocompletion=completion.models,
    ),
]
Bundle = Annotated[Path, typer.Argument(help="A bundle's folder.", autocompletion=completion.bundles)]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="csv/tsv/jsonl/parquet file, folder with one file per split, hub data set, builtin:pydoc or builtin:stdlib.",
        autocompletion=completion.data,
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", help="Overrides the task found in the checkpoint.", autocompletion=completion.tasks),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", help="Of a model that is an ONNX graph: the folder of its tokenizer, or tokenizer.json."
    ),
]
Columns = Annotated[str | None, typer.Option("--columns", help="Which column is what: text=sentence,label=label.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1)]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load pickle weights (weights_only) where there is no safetensors.")
]
On = Annotated[
    list[str] | None,
    typer.Option("--on", help="A board: ssh://user@host[:port]. Its host key must be known (docs/board.md)."),
]
Boards = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        help="A board: ssh://user@host[:port]; repeatable, or an inventory: fleet.toml, fleet.toml#kitchen (docs/board.md).",
    ),
]
Clean = Annotated[
    bool, typer.Option("--clean", help="--on: remove fmopt's folder from the board, and what runs in it, at the end.")
]


EFFORTS = ("quick", "standard", "max")
FORMATS = ("onnx", "openvino", "executorch", "gguf")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
Golden = Annotated[
    str,
    typer.Option(
        "--golden",
        help="Items that the bundle carries for its self-test: data, none, synthetic, or a data file.",
        autocompletion=completion.words("data", "none", "synthetic"),
    ),
]


def answer(data: Any, as_json: bool, show: Callable[[], Any]) -> None:
    """One JSON document on stdout, or what a person reads."""
    if as_json:
        print(json_line(data))
    else:
        show()


def one_board(on: list[str] | None) -> str | None:
    """The address of --on. ConfigError for several boards, which `bench` alone takes."""
    if not on:
        return None
    if len(on) > 1 or on[0].partition("#")[0].endswith(".toml"):
        raise ConfigError(
            "--on takes one board here, ssh://user@host; bundles are judged on several by `fmopt bench A B --on …`"
        )
    return on[0]


def record_path(path: Path) -> Path:
    """The record of a folder, or the file itself."""
    return path / "record.json" if path.is_dir() else path
