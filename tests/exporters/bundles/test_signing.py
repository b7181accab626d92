"""A signed bundle is known by its signer, whatever its hashes say; and every bundle lists its parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from fmopt.core.errors import BundleError, ConfigError
from fmopt.edge import loading
from fmopt.edge import manifest as edge_manifest
from fmopt.edge.errors import EdgeError
from fmopt.exporters.bundles import bundle
from fmopt.exporters.bundles.signing import sign_bundle
from tests.exporters.bundles.test_bundle import Write, _own_cache, edit_manifest, write  # noqa: F401


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    made = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_a_bundle_is_known_by_its_signer(write: Write, tmp_path: Path) -> None:  # noqa: F811
    out = write(tmp_path / "out")
    (private, public), (_, others) = key_pair(tmp_path, "ours"), key_pair(tmp_path, "theirs")
    with pytest.raises(EdgeError, match="is not signed: there is no"):
        loading.require_trusted(out, public)
    assert sign_bundle(out, key=private) == tmp_path / "out.sig"
    (out / "record.json").write_text("{}")  # written after it
    loading.require_trusted(out, public)
    assert bundle.load(out, trust=public)("a small dog")["label"]
    with pytest.raises(BundleError, match="is not signed by"):
        bundle.load(out, trust=others)
    edit_manifest(out, lambda metadata: metadata.update(title="another"))  # sealed again, so that its hashes are right
    assert edge_manifest.verify(out) == []
    with pytest.raises(EdgeError, match="is not signed by"):
        loading.require_trusted(out, public)
    with pytest.raises(ConfigError, match="there is no file"):
        sign_bundle(out, key=tmp_path / "missing.pem")


def test_every_bundle_lists_its_parts(write: Write, tmp_path: Path) -> None:  # noqa: F811
    out = write(tmp_path / "out")
    text = (out / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = json.loads(text)
    assert listed["specVersion"] == "1.6"
    hashes = {part["name"]: part["hashes"][0]["content"] for part in listed["components"] if part["type"] == "file"}
    files = json.loads((out / "fmopt.json").read_text())["files"]
    assert hashes == {name: entry["sha256"] for name, entry in files.items() if name != "sbom.json"}
    assert {"onnxruntime", "numpy", "tokenizers"} <= {part["name"] for part in listed["components"]}
