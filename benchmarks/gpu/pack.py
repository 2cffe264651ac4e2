"""Pack what `run.py` needs on a machine without a network: wheels, a checkpoint and SQuAD, in parts of limited size.

    python benchmarks/gpu/pack.py --installed machine.txt --checkpoint CHECKPOINT --data dev-v1.1.json \
        --train train-v1.1.json

writes part-00, part-01, ... and manifest.json, with the SHA-256 of each, into benchmarks/gpu/pack, which git ignores.
The files lie in the parts in the order of their importance. `unpack.py` joins them on the other machine.

--installed names the packages that the machine has, as `pip list --format=freeze` prints them: they are neither taken
along nor replaced. A name without a version stands for any. All other packages that qabuild needs there are resolved
for its Python (--python-version) on Linux, in the versions of constraints/, and downloaded as wheels into --wheels.
DeepSpeed, which has no wheel, is built to one. This needs a recent pip: 23.2 resolves for its own Python in part.
--stock takes along the stock pipeline's packages, too. --architecture 90 cuts ONNX Runtime's CUDA provider down to the
code for that GPU architecture. --half stores the checkpoint's weights in fp16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fatbin
from unpack import MANIFEST, PARTS, ROOT, part_name

CURRENT, STOCK_LINE = (ROOT / "constraints" / name for name in ("current.txt", "transformers-4.57.txt"))
STOCK = ("transformers", "optimum[onnxruntime-gpu]")
OLDER = {"transformers", "tokenizers", "huggingface-hub"}
"""Packages that the stock pipeline needs in older versions than the machine has."""
TESTS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
NO_WHEEL = "deepspeed"
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 40)))
"""pip takes the names that a wheel has, not older ones that they include."""
RUNTIME = "onnxruntime_gpu-"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class File:
    """A file to take along."""

    path: str
    """Its place in the material."""
    content: bytes
    xz: bool = True


def main() -> None:
    arguments = parse()
    arguments.wheels.mkdir(parents=True, exist_ok=True)
    environments = wheels_by_environment(arguments) if arguments.installed else {}
    pack(files(arguments, environments), environments, arguments.parts, arguments.part_size * MEBIBYTE)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, default=PARTS, help="the folder for the parts")
    parser.add_argument("--part-size", type=int, default=54, metavar="MIB", help="of each part, at most  [54]")
    parser.add_argument("--installed", type=Path, metavar="FILE", help="packages of the machine; without it, no wheels")
    parser.add_argument("--python-version", default="3.12", help="of the machine  [3.12]")
    parser.add_argument("--wheels", type=Path, default=PARTS / "wheels", help="where downloads are kept")
    parser.add_argument("--stock", action="store_true", help="take along the stock pipeline's packages")
    parser.add_argument("--architecture", type=int, help="of the machine's GPU, such as 90: leave out code for others")
    parser.add_argument("--checkpoint", type=Path, help="a folder with model.safetensors")
    parser.add_argument("--half", action="store_true", help="store its weights in fp16")
    parser.add_argument("--data", type=Path, help="SQuAD's development set")
    parser.add_argument("--train", type=Path, help="SQuAD's training set")
    return parser.parse_args()


# --- wheels -----------------------------------------------------------------------------------------------------------


def wheels_by_environment(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Download the wheels that the machine lacks; their file names by environment."""
    machine = arguments.installed.read_text(encoding="utf-8").split()
    there = {name_of(line) for line in machine}
    pip = Pip(arguments.wheels, arguments.python_version)
    pip.build(NO_WHEEL)
    versions = [line for line in machine if "==" in line]
    environments = {"env": pip.fetch(requirements(), there, [*versions, *pins(CURRENT, there)])}
    if arguments.stock:
        others = there - OLDER | {"onnxruntime-gpu"}  # which both environments have
        versions = [line for line in versions if name_of(line) not in OLDER]
        runtime = [wheel for wheel in environments["env"] if wheel.startswith(RUNTIME)]
        environments["stock"] = [*pip.fetch(STOCK, others, [*versions, *pins(STOCK_LINE, others)]), *runtime]
    return environments


def pins(constraints: Path, there: Container[str]) -> list[str]:
    """The tested versions of what is not there."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "==" in line and name_of(line) not in there]


def name_of(line: str) -> str:
    """The package of a line NAME==VERSION, normalised."""
    return line.partition("==")[0].strip().lower().replace("_", "-").replace(".", "-")


def requirements() -> list[str]:
    """What qabuild needs on a GPU, and the tests marked `gpu`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["gpu"], *extras["deepspeed"], *TESTS]
    return [requirement for requirement in named if not requirement.startswith("qabuild[")]


class Pip:
    """pip, for another Python version on Linux."""

    def __init__(self, folder: Path, python_version: str) -> None:
        self._folder = folder
        self._options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python_version]
        self._options += [option for platform in PLATFORMS for option in ("--platform", f"{platform}_x86_64")]

    def build(self, package: str) -> None:
        """Build a wheel of a package that has none, from its sources."""
        if not list(self._folder.glob(f"{package}-*.whl")):
            options = ["--no-deps", "--no-build-isolation", "-c", str(CURRENT), "-w", str(self._folder)]
            self._run("wheel", *options, package)

    def fetch(self, requirements: Iterable[str], there: Container[str], versions: Iterable[str]) -> list[str]:
        """Resolve the requirements in those `versions`, and download what is not `there`; returns file names."""
        with tempfile.TemporaryDirectory() as folder:
            constraints, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
            constraints.write_text("\n".join(versions), encoding="utf-8")
            resolve = ["--dry-run", "--ignore-installed", "--target", folder, "--report", str(report)]
            self._run("install", *resolve, "-c", str(constraints), *self._options, *requirements)
            resolved = json.loads(report.read_text(encoding="utf-8"))["install"]
        names = {name_of(item["metadata"]["name"]): item["metadata"]["version"] for item in resolved}
        missing = {name: version for name, version in sorted(names.items()) if name not in there}
        pins = [f"{name}=={version}" for name, version in missing.items()]
        self._run("download", "--no-deps", "-d", str(self._folder), *self._options, *pins)
        return [self._wheel(name, version) for name, version in missing.items()]

    def _wheel(self, name: str, version: str) -> str:
        for path in sorted(self._folder.glob("*.whl")):
            own, of_version, *_ = path.name.split("-")
            if name_of(own) == name and of_version == version:
                return path.name
        raise ValueError(f"pip downloaded no wheel of {name} {version}")

    def _run(self, command: str, *arguments: str) -> None:
        # What was built there, pip finds there.
        environment = {**os.environ, "PIP_FIND_LINKS": str(self._folder)}
        subprocess.run([sys.executable, "-m", "pip", command, "-q", *arguments], check=True, env=environment)


def cut_wheel(wheel: Path, architecture: int) -> bytes:
    """ONNX Runtime's wheel with the code for one GPU architecture, uncompressed, since all of it will be."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
            for name in source.namelist():
                content = bytearray(source.read(name))
                if name == PROVIDER:
                    fatbin.cut(content, architecture)
                target.writestr(zipfile.ZipInfo(name), bytes(content))
        file.seek(0)
        return file.read()


# --- files ------------------------------------------------------------------------------------------------------------


def files(arguments: argparse.Namespace, environments: dict[str, list[str]]) -> Iterator[File]:
    """What is to be taken along, the most important first."""
    large = [name for name in environments.get("env", ()) if name.startswith(RUNTIME)]
    for name in environments.get("env", ()):
        if name not in large:
            yield File(path=f"wheels/{name}", content=(arguments.wheels / name).read_bytes(), xz=False)
    if arguments.data:
        yield File(path="dev.json", content=arguments.data.read_bytes())
    if arguments.checkpoint:
        yield from checkpoint_files(arguments.checkpoint, arguments.half)
    for name in large:
        wheel = arguments.wheels / name
        content = cut_wheel(wheel, arguments.architecture) if arguments.architecture else wheel.read_bytes()
        yield File(path=f"wheels/{name}", content=content, xz=bool(arguments.architecture))
    for name in environments.get("stock", ()):
        if name not in environments["env"]:
            yield File(path=f"wheels/{name}", content=(arguments.wheels / name).read_bytes(), xz=False)
    if arguments.train:
        yield File(path="train.json", content=arguments.train.read_bytes())


def checkpoint_files(folder: Path, half: bool) -> Iterator[File]:
    for path in sorted(folder.iterdir()):
        is_weights = path.suffix == ".safetensors"
        content = halved(path) if half and is_weights else path.read_bytes()
        yield File(path=f"checkpoint/{path.name}", content=content, xz=not is_weights)


def halved(path: Path) -> bytes:
    """The weights in fp16."""
    import torch
    from safetensors.torch import load_file, save

    tensors = load_file(path)
    smaller = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    content: bytes = save(smaller, metadata={"format": "pt"})
    return content


def pack(files: Iterable[File], environments: dict[str, list[str]], folder: Path, size: int) -> None:
    """Write the files one after another into parts of `size` bytes, and the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [*folder.glob("part-*"), *folder.glob(MANIFEST)]:
        stale.unlink()
    entries: list[dict[str, Any]] = []
    end = 0
    for file in files:
        stored = lzma.compress(file.content, preset=1) if file.xz else file.content  # code compresses little anyway
        append(stored, end, folder, size)
        digest = hashlib.sha256(file.content).hexdigest()
        entries.append({"path": file.path, "begin": end, "end": end + len(stored), "xz": file.xz, "sha256": digest})
        end += len(stored)
        print(f"{file.path}: {len(stored) / MEBIBYTE:.1f} MiB", flush=True)
    parts = sorted(folder.glob("part-*"))
    digests = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]
    manifest = {"part_size": size, "parts": digests, "files": entries, "environments": environments}
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    os.replace(partial, folder / MANIFEST)
    print(f"{len(parts)} parts of up to {size / MEBIBYTE:.0f} MiB in {folder}")


def append(content: bytes, at: int, folder: Path, size: int) -> None:
    """Append to the last part, which `at` bytes of all parts precede, and to further ones."""
    done = 0
    while done < len(content):
        with (folder / part_name(at // size)).open("ab") as file:
            done_here = file.write(content[done : done + size - at % size])
        done, at = done + done_here, at + done_here


if __name__ == "__main__":
    main()
