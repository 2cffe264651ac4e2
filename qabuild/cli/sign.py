"""`keygen`, `sign` and `sbom`: who made an artifact, and of what."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import click

from qabuild.cli.console import Console, emit
from qabuild.cli.options import artifact_folders, common, require_writable


@click.command()
@click.argument("key", type=click.Path(path_type=Path), default=Path("qabuild.key"))
@common
def keygen(key: Path, console: Console) -> None:
    """Make a pair of keys: the private KEY (by default qabuild.key), and the public one beside it, in .pub.

    The environment variable QABUILD_KEY_PASSPHRASE, where it is set, encrypts the private key.
    """
    from qabuild.artifact.key_pair import keygen as make_keys

    public = make_keys(key)
    document = {"private": str(key), "public": str(public)}
    console.result(document, lambda: emit(f"{key}: signs artifacts, keep it secret\n{public}: verifies them"))


@click.command()
@artifact_folders
@click.option("--key", metavar="FILE", type=click.Path(path_type=Path), help="Sign by that private key.")
@click.option("--sigstore", is_flag=True, help="Sign by your identity, through Sigstore.")
@common
def sign(artifacts: Sequence[Path], key: Path | None, sigstore: bool, console: Console) -> None:
    """Sign each ARTIFACT: its manifest and files, how it was built, and its evidence.

    Sign again after a new verification, which removes the signature of the evidence. The environment variable
    QABUILD_KEY_PASSPHRASE is the passphrase of the key.
    """
    if (key is None) != sigstore:
        raise click.UsageError("sign by --key FILE or --sigstore, one of the two")
    from qabuild.artifact.signature import sign as sign_artifact

    signed = [{"artifact": str(path), "written": sign_artifact(path, key)} for path in artifacts]

    def show() -> None:
        for path, result in zip(artifacts, signed, strict=True):
            emit(f"{path}: {', '.join(result['written']) or 'nothing to do, signed already'}")

    console.result(signed, show)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; by default stdout.")
@common
def sbom(artifact: Path, output: Path | None, console: Console) -> None:
    """Print the bill of materials of ARTIFACT, in CycloneDX 1.7 JSON: model, base model, data, files and packages."""
    from qabuild.publishing.sbom import sbom as make_bill
    from qabuild.system import files

    if output is not None:
        require_writable(output)
    text = json.dumps(make_bill(artifact), indent=2, ensure_ascii=False)
    if output is None:
        emit(text)
    else:
        files.write(Path(os.path.realpath(output)), f"{text}\n".encode())
        console.result({"sbom": str(output)}, lambda: None)
