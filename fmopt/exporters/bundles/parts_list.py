"""What a bundle is made of, as a CycloneDX 1.6 parts list (SBOM): `sbom.json`.

The model is the component that is described; its parts are the bundle's files with their sha256, the model that it was made from,
and the packages that run it and that made it, each with its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fmopt.core import escaping
from fmopt.core.model import Artifact, CheckpointMetadata
from fmopt.edge import host

SBOM = "sbom.json"
RUN_BY = ("numpy", "tokenizers", "pillow")  # beside the runtime
MADE_BY = ("fmopt", "torch", "transformers", "onnx", "nncf")


def write_parts_list(
    folder: Path, metadata: CheckpointMetadata, artifact: Artifact, recipe: Mapping[str, Any], files: Mapping[str, str]
) -> Path:
    """Write the parts list of the bundle that is being made in `folder`; `files` are sha256 by name. The same parts always give
    the same bytes: there is no time in it, and its serial number is made of them."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    digest = HashType(alg=HashAlgorithm.SHA_256, content=metadata.digest)
    model = Component(
        name=escaping.one_line(metadata.source.title), type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref="model",
        licenses=_licences(metadata.source.licence),
        properties=[
            Property(name="fmopt:task", value=metadata.task),
            Property(name="fmopt:runtime", value=artifact.runtime),
            Property(name="fmopt:recipe", value=escaping.one_line(recipe.get("name", "model"))),
        ],
    )  # fmt: skip
    base = Component(
        name=escaping.one_line(metadata.architecture or metadata.model_type), type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base-model", hashes=[digest] if len(metadata.digest) == 64 else [],
        licenses=_licences(metadata.source.licence),
    )  # fmt: skip
    parts = [
        Component(
            name=name, type=ComponentType.FILE, bom_ref=f"file:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        )
        for name, sha256 in sorted(files.items())
    ]  # fmt: skip
    runs = [_package(name) for name in (artifact.runtime, *RUN_BY) if host.package_version(name)]
    made = [_package(name) for name in MADE_BY if host.package_version(name)]
    bom = Bom(components=[base, *parts, *runs, *made])
    bom.serial_number = uuid5(NAMESPACE_URL, "\n".join(f"{name} {sha256}" for name, sha256 in sorted(files.items())))
    bom.metadata.component = model
    bom.metadata.timestamp = None  # type: ignore[assignment]  # two bundles of one model are equal byte by byte
    bom.register_dependency(model, [base, *parts, *runs])
    bom.register_dependency(base, made)
    path = folder / SBOM
    path.write_text(JsonV1Dot6(bom).output_as_string(indent=1), encoding="utf-8")
    return path


def _package(name: str) -> Any:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    version = host.package_version(name)
    return Component(
        name=name, version=version, type=ComponentType.LIBRARY, bom_ref=f"package:{name}",
        purl=PackageURL("pypi", None, name, version),
    )  # fmt: skip


def _licences(stated: str | None) -> list[Any]:
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(escaping.one_line(stated))] if stated else []
