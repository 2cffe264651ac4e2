"""The servers of benchmarks/serving.py, in processes of their own: qabuild's, and FastAPI over the stock pipeline."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Self
from urllib.error import HTTPError
from urllib.request import urlopen

import stock

TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A server that is ready, in a process that this one started."""

    def __init__(self, command: Sequence[str | Path], ready: str, environment: dict[str, str] | None = None) -> None:
        """`ready` is the pattern of the output by which it says that it can be asked; its group is the port."""
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._said = ""
        while (match := re.search(ready, self._said)) is None:
            line = self._process.stdout.readline()
            self._said += line
            if not line:
                sys.exit(f"{' '.join(map(str, command))}: {self._said}")
        self.port = int(match[1])
        self._reading = Thread(target=self._read, daemon=True)  # a pipe that nobody reads would stop the server
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.ended()

    def stop(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def ended(self) -> tuple[int, str]:
        """Exit status and output, once it has ended."""
        self._reading.join()
        return self._process.wait(), self._said

    def _read(self) -> None:
        for line in self._process.stdout:
            self._said += line

    @property
    def cpu_seconds(self) -> float:
        """Of all its threads, so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000

    def metric(self, name: str) -> float | None:
        """The sum of a metric's values; None if the server has no metrics."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
                text = response.read().decode()
        except HTTPError:
            return None
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def wait_until_idle(self) -> None:
        """Wait until it computes nothing: it may answer clients that are gone."""
        before = -1.0
        while before != (before := self.cpu_seconds):
            time.sleep(0.3)


def qabuild(artifact: str, *options: str) -> Server:
    """`qabuild serve` with these options."""
    command = [sys.executable, "-m", "qabuild", "serve", artifact, "--port", "0", *options]
    return Server(command, r":(\d+): ready\n")


def fastapi(checkpoint: str, model: str, environment: Path | None) -> Server:
    """stock_server.py in an environment of transformers 4.57."""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, stock.ROOT)))
    command = [stock.python(environment), "-P", here / "stock_server.py", checkpoint, "--model", model]
    return Server(command, r"(?m)^(\d+)$", {"PYTHONPATH": paths})
