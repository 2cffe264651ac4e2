"""Writes reproducible TorchScript archives: the same model gives the same bytes on any machine, in any process."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

_COUNTED = re.compile(rb"___torch_mangle_\d+")
_ORDINAL = b"___torch_mangle_0"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def save(module: Any, path: Path) -> None:
    """`torch.jit.save` without traces of the machine and the process.

    Debug records are left out: they hold absolute paths of source files. The class name of a traced module ends in a
    count of the modules traced before it in the process, which is set to 0. A frozen module has only one such class.
    """
    import torch

    raw = path.with_suffix(".raw")
    torch.jit.save(module, raw)
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(path, "w") as archive:
        digest = hashlib.sha256()
        for entry in source.infolist():
            name = entry.filename.split("/", 1)[1]
            if name.endswith(".debug_pkl") or name == ".data/serialization_id":
                continue
            content = source.read(entry)
            if name.startswith("code/") or name.endswith(".pkl"):
                name = _COUNTED.sub(_ORDINAL, name.encode()).decode()
                content = _COUNTED.sub(_ORDINAL, content)
            digest.update(content)
            _add(archive, name, content, entry.compress_type)
        _add(archive, ".data/serialization_id", digest.hexdigest().encode(), zipfile.ZIP_STORED)
    raw.unlink()


def _add(archive: zipfile.ZipFile, name: str, content: bytes, compression: int) -> None:
    entry = zipfile.ZipInfo(f"model/{name}", _EPOCH)
    entry.compress_type = compression
    archive.writestr(entry, content)
