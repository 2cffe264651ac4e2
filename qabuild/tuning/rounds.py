"""The rounds of a tuning: screen all candidates, compare the better ones, verify the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from qabuild.artifact.evidence import Verification, describe
from qabuild.artifact.manifest import open_artifact
from qabuild.artifact.validation import judged_evidence
from qabuild.errors import BadTarget, QABuildError
from qabuild.evaluation.measure import SPEED_QUESTIONS
from qabuild.system import machine
from qabuild.system.reporter import Advance, Reporter
from qabuild.tuning import child, ranking
from qabuild.tuning.budget import Budget, shown
from qabuild.tuning.candidates import Candidate
from qabuild.tuning.job import Job
from qabuild.tuning.ranking import Timings, ranked, times, times_better
from qabuild.tuning.start import FROM_ORIGINAL
from qabuild.tuning.table import Table

SCREENED, VERIFIED = "screened", "verified"
"""Folders of the artifacts of both rounds of builds."""
QUESTIONS = 256
"""Of the screening and the first comparison: eight rounds, and enough to see a gross loss."""
LEAST_KEPT = 3
"""How many candidates go from the screening to the first comparison at least; else it is half of them."""
FINALISTS = 3
"""How many candidates that keep the answers are looked for."""
SPARE_MEMORY = 0.8
"""Share of the free memory that artifacts may take together."""
LIBRARIES = 400_000_000
"""Bytes that a process takes that runs any artifact at all."""
LEAST = 60.0
"""Seconds that the first candidate is given in any case: until the checkpoint answers, no one knows what it takes."""
OVERHEAD = 20.0
"""Seconds that a verification takes beside the answers: to import, load and compare logits."""


CHECKPOINT_ANSWERS = "checkpoint answers"
"""What `evaluation.reference` calls its progress."""


class Rounds:
    """Each round takes candidates and returns those that go on; the table says what became of the others."""

    def __init__(self, job: Job, budget: Budget, table: Table) -> None:
        self._job, self._budget, self._table = job, budget, table
        self._seen: dict[str, Verification] = {}
        """Of each candidate, the last verification."""
        self._verified = 0
        """How many were verified on all questions."""
        self._memory: dict[str, int] = {}
        """Peak memory of each candidate's builds, in bytes."""
        self._screens = job.start.questions > QUESTIONS
        """Whether there are more questions than a screening asks; else it would be a verification, and is one."""
        self._checkpoint: float | None = None
        """Questions/s of the checkpoint in eager fp32, once it answers."""
        self._refusal: BadTarget | None = None
        """Of the budget."""
        self.timings: Mapping[str, Timings] = {}
        """Of the first comparison."""

    def screen(self, several: Sequence[Candidate]) -> list[Candidate]:
        """Build each, verified on few questions. Returns those that lose no more than chance explains, best first.

        Where there are no more than few questions, they are verified on all, and those that pass are returned.
        Raises BadTarget where the budget does not suffice to verify one in full.
        """
        kept = []
        for number, candidate in enumerate(several, 1):
            self._table.add(candidate)
            spare = self._budget.left - (self._least_to_verify() if self._screens else 0)
            if self._seen or self._table.late:
                if spare < 0:
                    self._table.too_late(candidate, "tried")
                    continue
            else:
                spare = max(spare, LEAST)
            self._say(f"building {candidate.name} ({number} of {len(several)})")
            verification = self._build(candidate, self._first, self._screening(candidate), spare)
            if verification is None:
                continue
            if self._screens and len(self._seen) == 1 and verification.measurement.speed:
                self._require_budget(verification.measurement.speed.checkpoint)
            if self._judge(candidate, verification):
                kept.append(candidate)
        if self._table.late and not self._seen:
            raise self._too_short(self._least(self._checkpoint) if self._checkpoint else None)
        return self.in_order(kept)

    def _judge(self, candidate: Candidate, verification: Verification) -> bool:
        """Whether it goes on after the first round, which the table says."""
        if not self._screens:
            return self._passes(candidate, verification)
        lost = self._table.entries[candidate.name].f1_drop_interval
        if not verification.passed:
            self._table.tell(candidate, f"left out: {_failed(verification)}")
        elif lost and lost[0] > self._job.start.max_f1_drop:
            self._table.tell(candidate, "left out: it loses too much F1")
        else:
            self._table.tell(candidate, "screened")
            return True
        return False

    def _passes(self, candidate: Candidate, verification: Verification) -> bool:
        """Whether it passed its verification on all questions, which the table says."""
        self._verified += 1
        if verification.passed:
            self._table.tell(candidate, "passed", verified=True)
        else:
            self._table.tell(candidate, _failed(verification))
        return verification.passed

    def in_order(self, screened: Sequence[Candidate]) -> list[Candidate]:
        """Candidates by what the screening says, best first."""

        def cost(candidate: Candidate) -> float:
            entry = self._table.entries[candidate.name]
            return float(entry.size or 0) if self._job.objective == "size" else -(entry.speedup or 0.0)

        return sorted(screened, key=cost)

    def compare(self, order: Sequence[Candidate]) -> list[Candidate]:
        """The better half, or as many as fit the memory, best first after a comparison in turns; then the rest.

        For latency all that fit: the screening measures batches.
        """
        if self._job.objective == "size" or len(order) < 2:
            return list(order)
        half = len(order) if self._job.objective == "latency" else max(LEAST_KEPT, -(-len(order) // 2))
        better = [self._job.folder / self._first / each.name for each in order[:half]]
        fitting = better[: max(2, self._fitting(order))]
        try:
            comparison = ranking.compared(fitting, None, self._job, among=better)
        except QABuildError as error:
            self._job.reporter.say(f"artifacts could not take turns: {error.message}")
            return list(order)
        self.timings = {measured.name: Timings.of(measured) for measured in comparison.measured}
        failed = {failure.name for failure in comparison.failures}
        chosen = [each for each in order if each.name in self.timings or each.name in failed]
        for candidate in chosen:
            if timing := self.timings.get(candidate.name):
                self._table.settle(candidate, latency=timing.latency)
            else:
                self._table.tell(candidate, "left out: it failed when artifacts took turns", verified=False)
        best = [self._table.candidates[name] for name in ranked(self.timings, self._job.objective)]
        return [*best, *(each for each in order if each not in chosen)]

    def verify(self, order: Sequence[Candidate]) -> list[Candidate]:
        """Verify in full, best first, until those that pass include all that may be the best.

        Raises BadTarget where the budget does not suffice for a single one.
        """
        passed: list[Candidate] = []
        late = []
        for candidate in order:
            if passed and (reason := self._behind(candidate, passed[0])):
                self._table.settle(candidate, reason)
                continue
            if len(passed) == FINALISTS:
                asked = min(QUESTIONS, self._job.start.questions)
                self._table.settle(candidate, f"{FINALISTS} that were as good on {asked} questions passed before it")
                continue
            if self._table.entries[candidate.name].verified:
                passed.append(candidate)
                continue
            if self._budget.left < self._seconds_to_verify(candidate):
                self._table.too_late(candidate, "verified on all questions")
                late.append(candidate)
                continue
            self._say(f"verifying {candidate.name} on all {self._job.start.questions} questions")
            verification = self._build(candidate, VERIFIED, [], self._budget.left)
            if verification is not None and self._passes(candidate, verification):
                passed.append(candidate)
        if late and not self._verified:
            raise self._too_short(self._budget.spent + min(map(self._seconds_to_verify, late)))
        return passed

    def _fitting(self, several: Sequence[Candidate]) -> int:
        """How many of them fit the memory at once."""
        # A build that finds all in the cache loads nothing, so that its peak says little.
        sizes = [self._table.entries[each.name].size or 0 for each in several]
        largest = max(max(self._memory[each.name] for each in several), LIBRARIES + 2 * max(sizes))
        return int(SPARE_MEMORY * machine.free_memory() / largest)

    # --- builds -----------------------------------------------------------------------------------------------------

    def _build(self, candidate: Candidate, stage: str, overrides: Sequence[str], seconds: float) -> Verification | None:
        """The evidence of the candidate's artifact; None where it cannot be built, and the table says why.

        Raises BadTarget where the first answers of the checkpoint say that the budget is too short.
        """
        try:
            made = child.build(
                candidate.file,
                overrides,
                self._job.folder / stage,
                offline=self._job.offline,
                seconds=seconds,
                reporter=_Named(candidate.name, self._job.reporter, self._answered),
            )
            artifact = open_artifact(made.directory)
            verification = judged_evidence(artifact)
        except TimeoutError:
            screens = self._screens and stage == SCREENED
            self._table.too_late(candidate, "screened" if screens else "verified on all questions")
            return None
        except QABuildError as error:
            if error is self._refusal:
                raise
            self._table.tell(candidate, f"left out: {error.message.splitlines()[0]}")
            return None
        assert verification is not None
        self._memory[candidate.name] = max(made.peak_memory, self._memory.get(candidate.name, 1))
        self._seen[candidate.name] = verification
        self._table.measured(candidate, artifact, verification)
        return verification

    def _screening(self, candidate: Candidate) -> list[str]:
        """What a screening changes of a target: fewer questions, and gates on shares of them that few cannot decide."""
        if not self._screens:
            return []
        gate = FROM_ORIGINAL if candidate.pruned else self._job.start.drop_gate
        gates = {gate: 100, "min_f1_retention": 0, "min_agreement": 0}
        return [f"verify.samples={QUESTIONS}", *(f"verify.gates.{name}={limit}" for name, limit in gates.items())]

    def _behind(self, candidate: Candidate, best: Candidate) -> str | None:
        """Why it is not the best, by the first comparison or by the sizes; None where it may be."""
        if self._job.objective == "size":
            size, least = (self._table.entries[each.name].size or 0 for each in (candidate, best))
            return f"{best.name} is {size / least:.2f} times as small" if size > least else None
        if not self.timings:
            return None
        if candidate.name not in self.timings:
            return "slower than those that took turns"
        one, other = self.timings[best.name], self.timings[candidate.name]
        _, interval = times_better(one, other, self._job.objective)
        return f"{best.name} is {times(one, other, self._job.objective)}" if interval[0] > 1 else None

    # --- time -------------------------------------------------------------------------------------------------------

    def _least_to_verify(self) -> float:
        """About how many seconds a full verification takes of the quickest candidate that was seen."""
        return min((self._seconds_to_verify(self._table.candidates[name]) for name in self._seen), default=0.0)

    def _seconds_to_verify(self, candidate: Candidate) -> float:
        """About how many seconds a full verification of a candidate takes that was seen."""
        seen = self._seen[candidate.name].measurement
        rate = seen.speed.artifact if seen.speed else seen.samples_per_second
        speeds = [seen.measurement.speed for seen in self._seen.values()]
        checkpoint = max(speed.checkpoint for speed in speeds if speed)
        # The checkpoint answers once for all candidates; a pruned one is another checkpoint.
        once = self._job.start.questions / checkpoint * (bool(candidate.pruned) + (not self._verified))
        times = max(1, len(seen.by_batch)) + 0.3  # and a share of the questions in a second pipeline
        return once + self._job.start.questions * times / rate + self._timed / checkpoint + OVERHEAD

    def _answered(self, done: int, total: int, rate: float) -> None:
        """Learn how fast the checkpoint answers, from its first answers; nothing is known before of any candidate.

        Raises BadTarget where the budget will not suffice.
        """
        if self._seen:
            return
        self._checkpoint = rate
        # It answers again, in turns with the artifact.
        screening = total - done + total if self._screens else -done
        self._require_budget(rate, screening)

    def _require_budget(self, rate: float, questions: int = 0) -> None:
        """Raise BadTarget where a checkpoint of this many questions/s needs too long for a single verification.

        `questions` are what it has to answer before.
        """
        needed = self._least(rate) + questions / rate
        if needed > self._budget.seconds:
            raise self._too_short(needed)

    def _least(self, rate: float) -> float:
        """Seconds after which a verification can be done that starts now, however fast the artifact may be."""
        return self._budget.spent + (self._job.start.questions + self._timed) / rate + OVERHEAD

    @property
    def _timed(self) -> int:
        """How many questions the checkpoint answers in turns with an artifact that is verified."""
        return min(SPEED_QUESTIONS, self._job.start.questions)

    def _too_short(self, seconds: float | None) -> BadTarget:
        """The error that says how long it takes; None where the checkpoint has not answered yet."""
        takes = (
            f"it ended before the checkpoint answered a question, with {self._table.late[0]}"
            if seconds is None
            else f"that takes about {shown(seconds if seconds < 300 else 60 * ceil(seconds / 60))}"
        )
        questions = self._job.start.questions
        fewer = ", or tune a target that verifies on fewer questions (verify.samples)" if questions > QUESTIONS else ""
        self._refusal = BadTarget(
            f"a budget of {self._budget} is too short to verify one candidate on all {questions} questions: {takes}",
            f"give more (--budget){fewer}",
        )
        return self._refusal

    # --- words ------------------------------------------------------------------------------------------------------

    @property
    def _first(self) -> str:
        """The folder of the artifacts of the first round."""
        return SCREENED if self._screens else VERIFIED

    def _say(self, message: str) -> None:
        self._job.reporter.say(message)


@dataclass(frozen=True)
class _Named:
    """A reporter whose progress names the candidate. `heard` is called with the checkpoint's progress.

    Of a call, it gets the number of answers, that of all questions, and the answers per second.
    """

    name: str
    to: Reporter
    heard: Callable[[int, int, float], None]

    def say(self, message: str) -> None:
        self.to.say(message)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        with self.to.progress(f"{self.name}: {label}", total) as advance:
            yield self._timing(advance, total) if label == CHECKPOINT_ANSWERS else advance

    def _timing(self, advance: Advance, total: int) -> Advance:
        began, first, done = 0.0, 0, 0

        def heard(count: int) -> None:
            nonlocal began, first, done
            advance(count)
            done += count
            if not first:  # the first answers take longer
                began, first = time.monotonic(), done
            else:
                self.heard(done, total, (done - first) / max(time.monotonic() - began, 1e-9))

        return heard


def _failed(verification: Verification) -> str:
    return "; ".join(map(describe, verification.failed_gates))
