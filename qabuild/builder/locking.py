"""Locks what a target names, and the widths that a build chose for its `prune.speedup`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from qabuild.builder.facts import gather
from qabuild.builder.store.local import Store
from qabuild.builder.store.remote import open_store
from qabuild.errors import BadTarget
from qabuild.system import arguments
from qabuild.target.lineage import derivations
from qabuild.target.lock import Lock, WidthsPin, chosen_by, path_of, read, widths_of, write
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
    pins = pins_of(path, offline=offline)
    write(pins, path_of(path))
    return pins


def pins_of(path: Path, *, offline: bool = False) -> Lock:
    """What a lock of the target at that path would pin. Raises as `lock` does."""
    target, earlier = load(path), None
    with suppress(BadTarget):  # a damaged one is replaced
        earlier = read(path_of(path))
    return make(target, offline=offline, earlier=earlier)


def make(target: Target, *, offline: bool = False, results: Store | None = None, earlier: Lock | None = None) -> Lock:
    """`qabuild.target.lock.make`, with the widths that the store's results have for each `prune.speedup`.

    Those of an `earlier` lock stay where builds have used them since. Raises BadTarget also for a speedup that was not
    built yet.
    """
    pins = make_lock(target, offline=offline)
    if not any(derived.target.prune and derived.target.prune.speedup for derived in derivations(target.origin)):
        return pins
    store = results or open_store(offline=True)
    facts = gather(target, store, target.name, fetch=False, offline=offline)
    widths = []
    for derivation in facts.derivations:
        owner, entry = derivation.derived.target, store.find(derivation.key or "")
        if derivation.derived.stage != "prune" or owner.prune is None or owner.prune.speedup is None:
            continue
        kept = widths_of(owner, earlier.widths if earlier else ())
        if entry is None and kept is None:
            raise BadTarget(
                f"{owner.name}: prune.speedup = {owner.prune.speedup:g} was not built on this machine, which chooses "
                "its widths",
                f"build {owner.name} first, then lock it",
            )
        found = entry.record["widths"] if entry else kept
        pin = {"target": owner.name, "chosen_by": chosen_by(owner), "widths": found}
        widths.append(WidthsPin.model_validate(pin))
    return pins.model_copy(update={"widths": tuple(widths)})
