"""Many artifacts side by side: the same questions in the same run, taking turns.

`contestants` finds what is to be compared, `workers` holds one process for each (`worker` is what runs in it),
`measuring` lets them take turns, `scoring` makes a `Comparison` of what came of it (`answers`, `speed`, `audit`), and
`tables` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qabuild.artifact.manifest import FOLDER
from qabuild.evaluation.compare.result import Comparison
from qabuild.system.reporter import SILENT, Reporter

__all__ = ["Comparison", "compare"]


def compare(
    artifacts: Sequence[str | Path],
    *,
    baseline: str | None = None,
    batch_sizes: Sequence[int] = (),
    latency: bool = False,
    dataset: str | None = None,
    output: str | Path = FOLDER,
    offline: bool = False,
    reporter: Reporter = SILENT,
) -> Comparison:
    """Measure artifacts in one run; each is a folder, or a target (a .toml file) whose artifact is in `output`.

    `baseline` is the name of the one that the others are compared with; without it the first that is eager fp32, or
    else the first. All questions are asked in batches of the first artifact's `verify.batch_size`; `batch_sizes` are
    further ones. `latency` asks single questions as well. `dataset` is where the questions are, where not where the
    artifacts say.

    What cannot be measured is among the comparison's failures. Raises BadTarget where there is nothing to compare or
    two were verified on different data, UntrustedInput where `dataset` is another; and, where none can be measured,
    what one of them raised.
    """
    from qabuild.evaluation.compare import contestants, rounds, score

    found, failures = contestants.find(artifacts, Path(output))
    contestants.require_baseline(found, failures, baseline)
    for failure in failures:  # measuring the others takes minutes
        reporter.say(f"{failure.name} is left out: {failure.error.splitlines()[0]}")
    questions = contestants.load_questions(found, dataset, offline=offline)
    runs = rounds.measure(found, failures, questions, batch_sizes, latency=latency, reporter=reporter)
    return score.score(runs, questions, baseline)
