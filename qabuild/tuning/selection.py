"""The selection of the winner, and what must be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite

from qabuild.artifact.evidence import describe
from qabuild.evaluation.compare import Comparison
from qabuild.tuning.budget import Budget
from qabuild.tuning.candidates import Candidate
from qabuild.tuning.job import Job
from qabuild.tuning.objective import Objective
from qabuild.tuning.ranking import ADJECTIVE, Timings, equals, ranked, times, times_better
from qabuild.tuning.result import Entry
from qabuild.tuning.table import Table

TOO_WIDE = 0.1
"""Width of the interval of a ratio of speeds from which on the machine is called noisy."""
EQUAL: dict[Objective, str] = {
    "throughput": "equally fast",
    "latency": "equally fast for single questions",
    "size": "equally small",
}
SUPERLATIVE: dict[Objective, str] = {
    "throughput": "the fastest",
    "latency": "the fastest for single questions",
    "size": "the smallest",
}


def choose(comparison: Comparison, objective: Objective, table: Table) -> tuple[Candidate | None, list[str]]:
    """The best; of several that cannot be told from it, the simplest. And what must be said of how sure that is.

    What does not answer as it was verified cannot win.
    """
    for measured in comparison.measured:
        if measured.failed_gates:
            reason = "; ".join(map(describe, measured.failed_gates))
            table.settle(table.candidates[measured.name], f"left out: {reason}", verified=False)
    timings = _timings(comparison)
    if not timings:
        return None, []
    alike = _best(timings, objective)
    winner = min((table.candidates[name] for name in alike), key=lambda candidate: candidate.simplicity)
    remarks = []
    for name, timing in timings.items():
        _, (low, high) = times_better(timings[winner.name], timing, objective)
        compared = f"the winner is {times(timings[winner.name], timing, objective)}"
        if name == winner.name:
            result = "winner"
        elif name in alike:
            result = f"equal to the winner, which is simpler: {compared}"
            if high - low > TOO_WIDE:
                more = _more_questions(comparison, objective, table.entries[winner.name].questions or 0)
                remedy = f", or compare more questions (--samples {more})" if more else ""
                remarks.append(
                    f"this machine is too noisy to tell {winner.name} from {name}: [{low:.2f}, {high:.2f}] times as "
                    f"{ADJECTIVE[objective]}; run nothing else on it{remedy}"
                )
        else:
            result = compared
        table.settle(table.candidates[name], result, latency=timing.latency)
    return winner, remarks


def _more_questions(comparison: Comparison, objective: Objective, available: int) -> int | None:
    """How many questions could tell more; None where there are no more, or as many single ones in any case."""
    compared = comparison.measured[0].throughput[0].questions
    return min(4 * compared, available) if objective == "throughput" and compared < available else None


def why(winner: Candidate | None, comparison: Comparison | None, job: Job, table: Table) -> str:
    """Why it won, or why none did."""
    max_f1_drop = job.start.max_f1_drop
    if winner is None or comparison is None:
        return f"no candidate loses at most {max_f1_drop:g} points of F1 and passes the other gates"
    entry = table.entries[winner.name]
    assert entry.f1_drop is not None
    assert entry.f1_drop_interval is not None
    lowest, highest = entry.f1_drop_interval
    timings = _timings(comparison)
    alike = _best(timings, job.objective)
    first = SUPERLATIVE[job.objective] + " that loses"
    if len(alike) > 1:
        first = f"the simplest of {len(alike)} that are {EQUAL[job.objective]} and lose"
    facts = [
        *_figures(entry, job.objective),
        *(
            f"{times(timings[winner.name], timings[name], job.objective)} as {name}"
            for name in [each for each in ranked(timings, job.objective) if each != winner.name][:1]
        ),
        f"{entry.f1_drop:.2f} [{lowest:.2f}, {highest:.2f}] points of F1 lost on {entry.questions} questions",
    ]
    return (
        f"of {len(table.entries)} candidates {first} at most {max_f1_drop:g} points of F1 on "
        f"{comparison.machine['cpu']}: {', '.join(facts)}"
    )


def _figures(entry: Entry, objective: Objective) -> list[str]:
    """What was measured of it: what counts for the objective first."""
    figures = []
    if objective == "size" and entry.size is not None:
        figures.append(f"{entry.size / 1e6:.1f} MB")
    if objective == "latency" and entry.latency is not None:
        figures.append(f"{entry.latency:.1f} ms, the median of single questions")
    if entry.speedup is not None:
        interval = "" if entry.speedup_interval is None else " [{:.2f}, {:.2f}]".format(*entry.speedup_interval)
        batches = "" if objective == "throughput" else " in batches"
        figures.append(f"{entry.speedup:.2f}{interval} times as fast{batches} as the checkpoint in eager fp32")
    return figures


def _timings(comparison: Comparison) -> dict[str, Timings]:
    """Of what answered as it was verified."""
    return {each.name: Timings.of(each) for each in comparison.measured if not each.failed_gates}


def _best(timings: Mapping[str, Timings], objective: Objective) -> list[str]:
    """The best, and those that cannot be told from it."""
    return equals(ranked(timings, objective)[0], timings, objective)


def level(winner: Candidate, comparison: Comparison, first: Mapping[str, Timings], table: Table) -> None:
    """Enter the speeds as artifacts took turns, in the `first` comparison and in the last one.

    Each verification compares with the checkpoint at another time, so that two of them tell less of two artifacts than
    their turns do. The winner keeps the speed of its verification, and the others get theirs by their ratio to it.
    """
    for timings in (first, _timings(comparison)):
        order = [winner.name, *ranked(timings, "throughput")]
        # A pruned one was verified against a checkpoint of its own.
        known = [name for name in order if name in timings and not table.candidates[name].pruned]
        if not known or not (speed := table.entries[known[0]].speedup):
            continue
        for name in timings.keys() - {known[0]}:
            ratio, (low, high) = times_better(timings[name], timings[known[0]], "throughput")
            table.settle(
                table.candidates[name],
                speedup=speed * ratio,
                speedup_interval=(speed * low, speed * high) if isfinite(high) else None,
            )


def place(entry: Entry, winner: Candidate | None, objective: Objective) -> tuple[bool, bool, bool, float]:
    """Where an entry stands in the table: the winner first, then what was verified, those left out last."""
    is_winner = winner is not None and entry.name == winner.name
    costs = {"throughput": -(entry.speedup or 0.0), "latency": entry.latency or inf, "size": float(entry.size or 0)}
    return (not is_winner, not entry.verified, entry.questions is None, costs[objective])


def late(table: Table, time: Budget) -> list[str]:
    """What the budget did not suffice for."""
    if not table.late:
        return []
    names = ", ".join(table.late)
    return [f"the budget of {time} did not suffice for {names}: the next run with more (--budget) goes on from here"]


def surprises(tried: Sequence[Candidate], table: Table) -> list[str]:
    """Where the rules of `qabuild doctor` were wrong: on the fastest dtype, or on what is slower than eager fp32."""
    entries = [table.entries[candidate.name] for candidate in tried]
    known = [entry for entry in entries if entry.expected and entry.speedup]
    dtypes = {candidate.name: candidate.form.runtime.dtype for candidate in tried}
    remarks = []
    if known:
        fastest = max(known, key=lambda entry: entry.speedup or 0)
        promised = max(entry.expected or 0 for entry in known)
        favourites = {dtypes[entry.name] for entry in known if entry.expected == promised}
        promising = [
            entry.speedup_interval[1] for entry in known if entry.expected == promised and entry.speedup_interval
        ]
        is_faster = not fastest.speedup_interval or fastest.speedup_interval[0] > max(promising, default=0.0)
        if dtypes[fastest.name] not in favourites and is_faster:
            names = " or ".join(sorted(favourites))
            remarks.append(
                f"{names} was expected to be the fastest dtype on this processor, and {fastest.name} is faster"
            )
    return remarks + [
        f"{entry.name} was expected to be {entry.expected:.2g} times as fast as eager fp32 here, and is "
        f"{entry.speedup:.2g} times as fast; `qabuild doctor` says so from now on"
        for entry in known
        if entry.expected and entry.speedup and (entry.expected - 1) * (entry.speedup - 1) < 0
    ]
