"""A PostgreSQL server of this machine, on a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def database() -> Iterator[str]:
    """The address of an empty database; skips the test where the server or its driver is absent."""
    pytest.importorskip("psycopg2")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *map(str, reversed(programs))]))
    if initdb is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # short, as the path of a socket must be
        user = "nobody" if os.getuid() == 0 else None  # PostgreSQL does not run as root
        if user:
            shutil.chown(folder, user)

        def run(program: str, *arguments: str) -> None:
            command = [str(Path(initdb).parent / program), *arguments]
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)

        data = f"{folder}/data"
        run("initdb", "-D", data, "-U", "studies", "-A", "trust", "--no-sync")
        run("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", f"-h '' -k {folder}", "start")
        try:
            yield f"postgresql+psycopg2://studies@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
