"""The wheel of the qabuild that runs: an exported folder holds the very code that verified its artifact.

A name and a version would not do: a package index may lack this version, or hold another package by that name.
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import hashlib
import os
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from packaging.requirements import Requirement

from qabuild.errors import MissingEnvironment

PACKAGE = "qabuild"
FOLDER = Path(__file__).parents[2]
"""The package that runs; in a checkout, one of its folders is a link."""
FACTS = f"Wheel-Version: 1.0\nGenerator: {PACKAGE}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write(directory: Path) -> str:
    """Write the wheel into `directory`, and return its file name. The same code gives the same bytes.

    Raises MissingEnvironment where qabuild runs without being installed.
    """
    distribution = _distribution()
    stem = f"{PACKAGE}-{distribution.version}"
    contents = dict(_package())
    contents |= {f"{stem}.dist-info/{name}": content for name, content in _metadata(distribution)}
    contents[f"{stem}.dist-info/RECORD"] = _record(contents, f"{stem}.dist-info/RECORD")
    name = f"{stem}-py3-none-any.whl"
    with ZipFile(directory / name, "x", ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            entry = ZipInfo(path)  # of 1980, whenever it is written
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, ZIP_DEFLATED)
    return name


def dependencies() -> list[str]:
    """What qabuild itself requires, without extras. Raises MissingEnvironment as `write` does."""
    return [line for line in _distribution().requires or () if not Requirement(line).marker]


def extra(name: str) -> list[str]:
    """The distributions that qabuild's extra `name` installs. Raises MissingEnvironment as `write` does."""
    requirements = map(Requirement, _distribution().requires or ())
    return [each.name for each in requirements if each.marker and each.marker.evaluate({"extra": name})]


def _distribution() -> metadata.Distribution:
    try:
        return metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise MissingEnvironment(f"{PACKAGE} runs without being installed", "install it with pip") from None


def _package() -> Iterator[tuple[str, bytes]]:
    """Each file of the package, by its path in the wheel."""
    for folder, folders, names in os.walk(FOLDER, followlinks=True):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            path = Path(folder, name)
            yield f"{PACKAGE}/{path.relative_to(FOLDER).as_posix()}", path.read_bytes()


def _metadata(distribution: metadata.Distribution) -> Iterator[tuple[str, bytes]]:
    """The files of the wheel's .dist-info: those that tell what was installed are made anew."""
    described = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    yield "METADATA", described.encode()
    yield "WHEEL", FACTS.encode()
    yield "entry_points.txt", (distribution.read_text("entry_points.txt") or "").encode()
    license = next((file for file in distribution.files or () if file.name == "LICENSE"), None)
    if license is not None:
        yield "licenses/LICENSE", license.read_binary()


def _record(contents: dict[str, bytes], own: str) -> bytes:
    """RECORD: the digest and the size of every file, and of itself neither."""
    lines = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in contents.items()]
    return "".join(f"{line}\n" for line in [*lines, f"{own},,"]).encode()


def _digest(content: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
