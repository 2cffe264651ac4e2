"""Compare artifacts: all answer the same questions in one run, in rotating order.

`contestants` opens the artifacts, `worker_pool` starts one process for each (`worker` runs in it), `rounds` runs the
questions on them, `score` turns the answers and times into a `Comparison` (`accuracy`, `speed`, `audit`), whose values
are in `result`, and `tables` formats it. `rebase` gives it another baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qabuild.artifact import failed_folder
from qabuild.artifact.manifest import FOLDER
from qabuild.evaluation.compare.result import Comparison
from qabuild.system import arguments
from qabuild.system.reporter import SILENT, Reporter

__all__ = ["Comparison", "InterruptedComparison", "compare"]


class InterruptedComparison(KeyboardInterrupt):
    """The user interrupted a comparison; `comparison` holds what had been measured."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self.comparison = comparison


def compare(
    artifacts: str | Path | Sequence[str | Path],
    *,
    baseline: str | None = None,
    batch_sizes: Sequence[int] = (),
    latency: bool = False,
    dataset: str | None = None,
    samples: int | None = None,
    output: str | Path = FOLDER,
    offline: bool = False,
    allow_native: bool = False,
    reporter: Reporter = SILENT,
) -> Comparison:
    """Measure artifacts, or one, in one run; each is a folder, or a target (.toml) whose artifact is in `output`.

    `baseline` names the artifact that the others are compared with; the default is the first that is eager fp32, or
    else the first. All questions are answered in batches of the first artifact's `verify.batch_size`, and some at the
    further `batch_sizes`. `latency` measures single questions, too. `dataset` names the source of the questions if it
    is not the one that the artifacts name. `samples` asks about so many of the questions, in whole rounds of 32 spread
    evenly over them; the gates on F1 and agreement, which are for all questions, are then not applied.
    `allow_native` is that of `qabuild.load`.

    An artifact that cannot be measured is listed in the comparison's `failures`. Raises BadTarget if there is nothing
    to compare or two artifacts were verified on different data, UntrustedInput if `dataset` has other questions; if no
    artifact can be measured, the error of one of them. If the user interrupts after two rounds, the KeyboardInterrupt
    holds as its `comparison` what is complete.
    """
    from qabuild.evaluation.compare import rounds
    from qabuild.evaluation.compare.contestants import load_questions, open_contestants, require_baseline
    from qabuild.evaluation.compare.score import score

    several = arguments.paths("artifacts", artifacts)
    batch_sizes = arguments.wholes("batch_sizes", batch_sizes, 1, "give whole numbers from 1, as in [1, 32]")
    if samples is not None:
        samples = arguments.whole("samples", samples, 1, "give a whole number from 1, as in 256")
    contestants, failures = open_contestants(several, Path(output))
    require_baseline(contestants, failures, baseline)
    for contestant in contestants:
        if (failed := failed_folder(contestant.artifact.directory)).exists():
            reporter.say(f"{contestant.name} is an earlier build; the last one failed its verification: {failed}")
    for failure in failures:  # now, since measuring the others takes minutes
        reporter.say(f"{failure.name} is skipped: {failure.error.splitlines()[0]}")
    questions = load_questions(contestants, dataset, offline=offline)
    contestants = [contestant.reveal(questions) for contestant in contestants]
    asked = rounds.sampled(questions, samples)
    runs = rounds.measure(
        contestants,
        failures,
        asked,
        batch_sizes,
        squad_v2=questions.has_unanswerable,
        latency=latency,
        allow_native=allow_native,
        reporter=reporter,
    )
    comparison = score(runs, replace(asked, questions=asked.questions[: runs.questions]), baseline)
    if runs.interrupted:
        raise InterruptedComparison(comparison)
    return comparison
