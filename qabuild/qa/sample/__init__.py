"""The embedded sample: a tiny data set and checkpoint made by this project, for tests and first builds.

Both can be rebuilt, as README.md describes with their contents and the scores.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

CHECKPOINT: Path = _HERE / "checkpoint"  # RobertaForQuestionAnswering with its tokenizer
TRAIN: Path = _HERE / "train.json"  # SQuAD v1.1 layout
HELDOUT: Path = _HERE / "heldout.json"  # SQuAD v1.1 layout; shares no name with TRAIN
