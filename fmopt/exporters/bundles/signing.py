"""Signs a bundle by OpenSSF's model-signing, offline, with a key or a certificate. The signature lies beside the bundle.

Hashes in a bundle show damage: who changes a file can change its hash too. A signature shows who vouches for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fmopt.core.errors import BundleError, ConfigError, reading
from fmopt.edge import files
from fmopt.edge import manifest as edge_manifest
from fmopt.edge.errors import EdgeError


def sign_bundle(folder: Path, *, key: Path, certificate: Path | None = None, chain: Sequence[Path] = ()) -> Path:
    """Sign a whole bundle with a private key (PEM, elliptic curve), as the owner of `certificate` where one is given, whose
    issuers are `chain`. Returns the signature's path. BundleError for a bundle that is not whole; ConfigError for a key that
    cannot be used."""
    try:
        edge_manifest.whole_manifest(folder)
        signing = files.signing_library().signing
    except EdgeError as error:
        raise BundleError(str(error)) from error
    for path in (key, *((certificate,) if certificate else ()), *chain):
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
    place = files.signature_of(folder)
    with reading(
        key, ConfigError, "give a private key of an elliptic curve (PEM), and the certificate that was made for it"
    ):
        config = signing.Config().set_hashing_config(files.signed_files(folder, edge_manifest.SIGNED_WITHOUT))
        if certificate is None:
            config.use_elliptic_key_signer(private_key=key)
        else:
            config.use_certificate_signer(
                private_key=key, signing_certificate=certificate, certificate_chain=list(chain)
            )
        config.sign(folder, place)
    return place
