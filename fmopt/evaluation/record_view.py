"""One record or bundle as comparisons see it: what it says, and plainly nothing where it does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fmopt.core.errors import BundleError, first_fault
from fmopt.core.results import Circumstances, Frozen, HostFacts
from fmopt.edge import manifest as edge_manifest
from fmopt.edge import parts
from fmopt.edge.manifest import MANIFEST
from fmopt.evaluation.record import FILE, RecipeLine, Record, Trial


class RecordView(Frozen):
    """What one side of a comparison knows; None, "" or nothing in a list where it does not."""

    title: str
    verdict: str
    shipped: Trial | None
    trials: list[Trial] = Field(
        default_factory=list
    )  # every variant; only the shipped one of a bundle without a record
    model: str | None = None  # digest
    data: str | None = None  # digest
    target: str | None = None
    reference: str = ""  # the variant that speedups are against
    confidence: float = 0.95
    budget: dict[str, Any] = Field(default_factory=dict)
    effort: str = ""
    host: HostFacts = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    circumstances: Circumstances | None = None  # None: a bundle without a record

    @property
    def measured(self) -> bool:
        """False for a bundle without a record: it knows its files and how they were made, and no measurement."""
        return self.circumstances is not None

    def find(self, name: str) -> Trial | None:
        """The variant of that name."""
        return next((trial for trial in self.trials if trial.name == name), None)


def read_view(thing: Record | str | Path) -> RecordView:
    """A record; a record's file; a folder with a record; or a bundle, which need not have one.

    BundleError when it is none of them. Fields of a record that this version does not know are passed over, so that
    those of other versions, and those that a script added something to, can be compared.
    """
    if isinstance(thing, Record):
        return view_of_record(thing)
    path = Path(thing)
    if path.is_file() and path.name == MANIFEST:
        path = path.parent
    if path.is_dir() and not (path / FILE).is_file():
        if not (path / MANIFEST).is_file():
            raise BundleError(f"{path} has neither {FILE} nor {MANIFEST}; name a folder that fmopt wrote, or a record")
        return view_of_bundle(path)
    if path.is_dir() and (path / MANIFEST).is_file():
        require_whole(path)
    return view_of_record(Record.load(path, lenient=True))


def require_whole(folder: Path) -> None:
    """BundleError for a bundle whose files are not as they were made: what its record says is not of these."""
    try:
        edge_manifest.whole_manifest(folder)
    except parts.EdgeError as error:
        raise BundleError(str(error)) from error


def view_of_record(record: Record) -> RecordView:
    """A whole run; the variant that it ships stands for it."""
    return RecordView(
        title=f"{record.model.get('title', 'model')} on {record.target.title}, {record.circumstances.date}",
        verdict=record.verdict.outcome.value,
        shipped=record.winning,
        trials=record.everything,
        model=record.model.get("digest"),
        data=record.data.get("digest"),
        target=record.target.name,
        reference=record.reference,
        confidence=record.confidence,
        budget=record.budget,
        effort=record.effort,
        host=record.circumstances.host,
        versions=record.circumstances.versions,
        circumstances=record.circumstances,
    )


def view_of_bundle(folder: Path) -> RecordView:
    """A bundle by its manifest alone, as `fmopt export` writes it."""
    try:
        metadata = edge_manifest.whole_manifest(folder)
    except parts.EdgeError as error:
        raise BundleError(str(error)) from error
    try:
        return _view_of(folder, metadata)
    except ValidationError as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: {first_fault(error)}; make the bundle again") from error


def _view_of(folder: Path, metadata: dict[str, Any]) -> RecordView:
    recipe, host = metadata["recipe"], dict(metadata["host"])
    host["os"], _, host["kernel"] = str(host.get("os", "")).partition(" ")  # a record keeps the two apart
    shipped = Trial(
        recipe=RecipeLine(
            name=recipe.get("name", "model"),
            runtime=metadata["runtime"],
            options=metadata["options"],
            precision=recipe.get("precision", "fp32"),
        ),
        status="measured",
        size_bytes=_model_bytes(metadata),
    )
    return RecordView(
        title=f"{metadata['title']}, the bundle {folder} without a record",
        verdict=metadata["verdict"],
        shipped=shipped,
        trials=[shipped],
        model=metadata["checkpoint"].get("digest"),
        host=host,
        versions=metadata["versions"],
    )


def _model_bytes(metadata: dict[str, Any]) -> int:
    """Bytes of the files that the runtime opens, as a record counts them."""
    name = metadata["model_file"]
    stem = name.rsplit(".", 1)[0]

    def opened(file: str) -> bool:
        return file.endswith(".safetensors") if name == "." else file in (name, f"{name}.data", f"{stem}.bin")

    return sum(entry["bytes"] for file, entry in metadata["files"].items() if opened(file))
