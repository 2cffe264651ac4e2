"""A tiny data set and checkpoint of the project's own making, for tests and a first try.

Both can be remade, the checkpoint by the target targets/sample.toml; README.md says how, what they hold, and how well
the checkpoint answers.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

CHECKPOINT: Path = _HERE / "checkpoint"  # RobertaForQuestionAnswering with its tokenizer
TRAIN: Path = _HERE / "train.json"  # SQuAD v1.1 layout
HELDOUT: Path = _HERE / "heldout.json"  # likewise; shares no name with TRAIN
