"""Verbs that hand a bundle on: signed, or laid out as other programs open it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmopt.cli.options import Json, answer
from fmopt.core import escaping


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    key: Annotated[Path, typer.Option("--key", help="The private key (PEM, elliptic curve) to sign with.")],
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="The certificate (PEM) that was made for that key.")
    ] = None,
    chain: Annotated[
        list[Path] | None, typer.Option("--chain", help="The certificates of its issuers (PEM); repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a bundle (OpenSSF model-signing), so that others can check that it comes from you; see `fmopt verify --key`."""
    from fmopt.exporters.bundles.signing import sign_bundle

    made = sign_bundle(bundle, key=key, certificate=certificate, chain=tuple(chain or ()))
    answer(
        {"signature": str(made)},
        as_json,
        lambda: print(escaping.terminal(f"{made} is the signature; keep both together")),
    )


def pack(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    layout: Annotated[str, typer.Option("--for", help="optimum, transformers.js, tei, ovms, triton or kserve.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder.")],
    name: Annotated[str | None, typer.Option("--name", help="What a server calls the model.")] = None,
    uri: Annotated[str | None, typer.Option("--uri", help="KServe: where it finds the folder, as pvc://…")] = None,
    as_json: Json = False,
) -> None:
    """Lay a bundle out as another program opens it: names, settings; weights are links to the bundle's."""
    from fmopt.exporters.bundles import layouts

    made = layouts.pack(bundle, layout, output, name=name, uri=uri)
    answer(
        {"folder": str(made), "for": layout},
        as_json,
        lambda: print(escaping.terminal(f"{made} is laid out for {layouts.LAYOUTS[layout].what}")),
    )
