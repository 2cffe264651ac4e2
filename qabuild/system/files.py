"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write(path: Path, content: bytes, stage: Path | None = None) -> None:
    """Put `content` at `path` in one step; what was there stays until then.

    It is written first into the folder `stage`, on the same disk, or beside `path`; a kill may leave it there. Raises
    OSError that names `path`.
    """
    partial = (stage or path.parent) / f".{path.name}.partial"
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
