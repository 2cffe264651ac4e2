"""Locks what a target names, and the widths that a build chose for its `prune.speedup`."""

from __future__ import annotations

from pathlib import Path

from qabuild.builder.facts import gather
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget
from qabuild.system import arguments
from qabuild.target.lineage import derivations
from qabuild.target.lock import Lock, WidthsPin, chosen_by, path_of, write
from qabuild.target.lock import make as make_lock
from qabuild.target.model import Target
from qabuild.target.read import load


def lock(target: str | Path, *, offline: bool = False) -> Lock:
    """Pin what the target at that path names, in a lock file beside it: commits, and digests of files and questions.

    Widths of a `prune.speedup` are those of its last build on this machine. Raises BadTarget for a bad target, a
    speedup that was not built yet, or a folder with the lock's name; UntrustedInput for damaged inputs, or ones that
    differ from the target's own pins; QABuildError if the Hub or the disk fails.
    """
    path = Path(arguments.path("target", target))
    pins = make(load(path), offline=offline)
    write(pins, path_of(path))
    return pins


def make(target: Target, *, offline: bool = False, results: Store | None = None) -> Lock:
    """`qabuild.target.lock.make`, with the widths that the store's results have for each `prune.speedup`.

    Raises BadTarget also for a speedup that was not built yet.
    """
    pins = make_lock(target, offline=offline)
    if not any(derived.target.prune and derived.target.prune.speedup for derived in derivations(target.origin)):
        return pins
    store = results or Store()
    facts = gather(target, store, target.name, fetch=False, offline=offline)
    widths = []
    for derivation in facts.derivations:
        owner, entry = derivation.derived.target, store.find(derivation.key or "")
        if derivation.derived.stage != "prune" or owner.prune is None or owner.prune.speedup is None:
            continue
        if entry is None:
            raise BadTarget(
                f"{owner.name}: prune.speedup = {owner.prune.speedup:g} was not built on this machine, which chooses "
                "its widths",
                f"build {owner.name} first, then lock it",
            )
        pin = {"target": owner.name, "chosen_by": chosen_by(owner), "widths": entry.record["widths"]}
        widths.append(WidthsPin.model_validate(pin))
    return pins.model_copy(update={"widths": tuple(widths)})
