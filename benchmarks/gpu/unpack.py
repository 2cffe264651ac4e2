"""Join the parts that `pack.py` made: files, an environment for `run.py`, and one for the stock pipeline.

    python3 benchmarks/gpu/unpack.py [PARTS]

checks each part's SHA-256 and writes PARTS/material: `checkpoint`, `dev.json`, `train.json`, and the environments `env`
and `stock`. A file whose parts have not all arrived is left out, with what needs it. The environments see the packages
of the Python that runs this script, and have those of the wheels in newer or older versions. Nothing needs a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).resolve().parent / "pack"
MANIFEST, MATERIAL = "manifest.json", "material"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, nargs="?", default=PARTS, help="the folder that pack.py made")
    unpack(parser.parse_args().parts)


def unpack(parts: Path) -> Path:
    """Write the material; returns its folder. Raises ValueError for a part or a file that is damaged."""
    manifest = json.loads((parts / MANIFEST).read_text(encoding="utf-8"))
    material = parts / MATERIAL
    digests = enumerate(manifest["parts"])
    present = {number for number, digest in digests if is_intact(parts / part_name(number), digest)}
    for entry in manifest["files"]:
        path = material / entry["path"]
        if path.exists():
            continue
        size = manifest["part_size"]
        if not present.issuperset(range(entry["begin"] // size, -(-entry["end"] // size))):
            print(f"{entry['path']}: not all parts of it are here")
            continue
        write(content_of(entry, parts, size), entry, path)
    for name, wheels in manifest["environments"].items():
        files = [material / "wheels" / wheel for wheel in wheels]
        if all(file.exists() for file in files) and not (material / name).exists():
            make_environment(material / name, files)
            print(f"{name}: {len(files)} packages")
    return material


def part_name(number: int) -> str:
    return f"part-{number:02}"


def is_intact(path: Path, digest: str) -> bool:
    """Whether the part is here. Raises ValueError for other content than the manifest states."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise ValueError(f"{path}: not the part that pack.py made; send it again")
    return True


def content_of(entry: Mapping[str, Any], parts: Path, size: int) -> bytes:
    """The file's bytes, out of the parts, decompressed."""
    content = bytearray()
    at = entry["begin"]
    while at < entry["end"]:
        with (parts / part_name(at // size)).open("rb") as file:
            file.seek(at % size)
            piece = file.read(min(entry["end"] - at, size - at % size))
        content += piece
        at += len(piece)
    return lzma.decompress(content) if entry["xz"] else bytes(content)


def write(content: bytes, entry: Mapping[str, Any], path: Path) -> None:
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(f"{entry['path']}: damaged; pack it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.rename(path)


def make_environment(folder: Path, wheels: Sequence[Path]) -> None:
    """A virtual environment with the wheels, which also sees this Python's packages and the checkout."""
    staged = Path(tempfile.mkdtemp(dir=folder.parent))
    venv.create(staged, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(vars={"base": str(staged), "platbase": str(staged)}, scheme="venv")
    site = Path(paths["purelib"])
    options = ["-q", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, wheels)], check=True)
    # Behind what the wheels hold; the interpreter may itself be that of a virtual environment.
    (site / "packages-of-the-machine.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n", encoding="utf-8")
    if folder.name == "env":
        (site / "checkout.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    ninja = Path(sysconfig.get_paths()["scripts"], "ninja")  # torch starts it to compile DeepSpeed's kernels
    if ninja.exists():
        (staged / "bin" / "ninja").symlink_to(ninja)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(staged, folder)


if __name__ == "__main__":
    main()
