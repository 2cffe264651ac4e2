"""A tuning as the user asks for it: checked, and its folder locked, before anything slow is imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from qabuild.artifact import staging
from qabuild.builder.store.local import Store
from qabuild.models.runtime import Device
from qabuild.system.reporter import SILENT, Reporter
from qabuild.tuning import outputs
from qabuild.tuning.arguments import BUDGET, FINAL, Arguments, named
from qabuild.tuning.objective import Objective

if TYPE_CHECKING:
    from qabuild.tuning.result import Tuned


def tune(
    checkpoint: str | os.PathLike[str],
    *,
    dataset: str | os.PathLike[str] | None = None,
    train_dataset: str | os.PathLike[str] | None = None,
    max_f1_drop: float | None = None,
    objective: Objective = "throughput",
    device: Device | None = None,
    budget: float | str = BUDGET,
    samples: int = FINAL,
    backends: str | Collection[str] = (),
    allow: str | Collection[str] = (),
    output: str | os.PathLike[str] = outputs.FOLDER,
    offline: bool = False,
    reporter: Reporter = SILENT,
) -> Tuned:
    """Find the best artifact of `checkpoint` that loses at most `max_f1_drop` points of F1 on this machine.

    The default is 0.5 points, or what a target allows.

    `checkpoint` is a folder, a Hub id, "sample" or a target (.toml). `dataset` names the questions that verify
    (SQuAD's development set by default), `train_dataset` those that int8 is calibrated and pruning is done on.
    `objective` is what is best: "throughput" (questions/s at the target's batch size), "latency" (median of single
    questions) or "size" (bytes). `device` is a GPU by default where there is one. `budget` is in seconds, or text like
    "90s", "30m" or "1h30m"; a target's trainings are not counted. `samples` questions decide between the finalists.
    `backends` are those that are tried, all by default. `allow` = {"prune"} also tries narrower models.

    Writes into `output`: `tuned.toml` and its lock, the artifact, `report.html`, and what it built on the way. Where
    no candidate passes, `winner` of the result is None.

    Raises BadTarget for an argument that is wrong, for what cannot be tuned, where `output` holds what no tuning wrote,
    and for a `budget` that is too short to verify a single candidate; QABuildError where another tuning writes into
    `output`.
    """
    arguments = Arguments.checked(
        objective=objective,
        device=device,
        budget=budget,
        samples=samples,
        max_f1_drop=max_f1_drop,
        backends=backends,
        allow=allow,
    )
    source = named("checkpoint", checkpoint)
    questions = None if dataset is None else named("dataset", dataset)
    training = None if train_dataset is None else named("train_dataset", train_dataset)
    folder = Path(output)
    lock = f"tune-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}"
    with Store().lock(lock, wait=False, what=f"another tuning into {folder}"), staging.disk_explained(folder):
        outputs.require_ours(folder)
        from qabuild.tuning import start as starts
        from qabuild.tuning.job import Job
        from qabuild.tuning.tune import carry_out

        start = starts.read(
            source,
            dataset=questions,
            train_dataset=training,
            device=arguments.device,
            max_f1_drop=arguments.max_f1_drop,
            offline=offline,
            reporter=reporter,
        )
        job = Job(start=start, folder=folder, objective=arguments.objective, offline=offline, reporter=reporter)
        return carry_out(job, arguments)
