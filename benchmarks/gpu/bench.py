"""What a run of `run.py` measures, and the file of JSON lines that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

RESULTS = "results.jsonl"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The material of a run; None for what is missing."""

    device: Literal["cpu", "cuda"]
    quick: bool
    """Whether a few questions are enough: the run tests the script, and its figures mean nothing."""
    checkpoint: Path | None
    train: Path | None
    """Questions in SQuAD's layout, as is `data`."""
    data: Path | None
    environment: Path | None
    """A virtual environment of transformers 4.57, for the stock pipeline."""
    work: Path
    """Artifacts and cached results, which a further run goes on from."""
    output: Path

    def add(self, section: str, name: str, **values: Any) -> None:
        """Append a line to the results, in `work` and in `output`, so that a killed run leaves what it measured."""
        line = json.dumps({"section": section, "name": name, **values})
        print(line, flush=True)
        for folder in {self.work, self.output}:
            with (folder / RESULTS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """What was measured so far."""
        return read(self.work / RESULTS)

    def size(self, full: int, quick: int) -> int:
        """How many questions or rounds."""
        return quick if self.quick else full

    def lacks(self, needs: tuple[str, ...]) -> list[str]:
        """Those of the named fields that are missing."""
        return [name for name in needs if getattr(self, name) is None]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def mend(path: Path) -> None:
    """Drop a last line that was cut off, or the next one would continue it."""
    if path.exists():
        content = path.read_bytes()
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def latest(lines: list[dict[str, Any]], section: str) -> Mapping[str, dict[str, Any]]:
    """The last line of each name in the section, in the order in which the names first came."""
    return {line["name"]: line for line in lines if line["section"] == section}
