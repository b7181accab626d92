"""A bundle that was judged, to be pushed, and a hub on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

import fmopt
from fmopt.exporters.bundles.bundle_writer import sealed
from tests import hub_server, records
from tests.conftest import TinyCheckpoint


@pytest.fixture(scope="session")
def exported(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nothing was measured of."""
    return fmopt.export(tiny_checkpoint("bert", "text-classification"), tmp_path_factory.mktemp("push") / "exported")


@pytest.fixture
def judged(exported: Path, tmp_path: Path) -> Path:
    """A bundle with a record beside it, as `fmopt optimize` leaves them: with figures that are known."""
    folder = tmp_path / "judged"
    shutil.copytree(exported, folder)
    record, manifest = records.realistic(), json.loads((folder / "fmopt.json").read_text())
    document = json.loads(record.model_dump_json())
    document["model"]["digest"] = manifest["checkpoint"]["digest"]
    (folder / "record.json").write_text(json.dumps(document))
    manifest |= {"verdict": record.verdict.outcome.value, "recipe": {"name": record.winner, "precision": "int8"}}
    (folder / "fmopt.json").write_bytes(sealed(manifest))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.Hub]:
    """A hub that huggingface_hub takes for its own, with a token that may write."""
    with hub_server.running() as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.address)
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(
            huggingface_hub.constants, "HF_HUB_DISABLE_XET", True
        )  # the hub of the test knows Git LFS alone
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield found
