"""Hyper-parameter search for alpha and temperature with Optuna: each trial is a training, scored by held-out F1."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from qabuild.errors import QABuildError, UntrustedInput
from qabuild.models.training import curves, study
from qabuild.models.training.examples import Examples, examples_of
from qabuild.models.training.fit import fit
from qabuild.models.training.options import Search
from qabuild.models.training.request import Request
from qabuild.system.process import Tell

TABLE = "trials.json"
Fit = Callable[[Request, Examples], object]


def run(request: Request, tell: Tell) -> Mapping[str, Any]:
    """The step `search`: find the alpha and temperature of the best student."""
    _, examples = examples_of(request)
    return search(request, examples, lambda trial, subset: fit(trial, subset, tell))


def search(request: Request, examples: Examples, train: Fit) -> dict[str, Any]:
    """Run the trials of `distill.search`; return the best parameters and the table of all trials.

    Resumes an interrupted search from `request.work`, even within a trial. Hosts that share a storage share the trials.
    Raises QABuildError if no trial finished.
    """
    assert request.distill
    assert request.distill.search
    options = request.distill.search
    subset = _subset(examples, options)
    with study.opened(request.work, options) as trials:
        while trial := trials.claim():
            with trials.alive(trial):
                f1 = _run_trial(request, trial, subset, options, train)
            trials.finish(trial, f1)
        table = [_row(trial, options) for trial in trials.trials()]
    finished = [row for row in table if row["f1"] is not None]
    if not finished:
        raise QABuildError(
            f"none of the {len(table)} trials of the search finished",
            "train once without [distill.search] to see the error",
        )
    best = max(finished, key=lambda row: row["f1"])
    (request.directory / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return {"best": {name: best[name] for name in ("alpha", "temperature")}, "trials": table}


def _subset(examples: Examples, options: Search) -> Examples:
    """The windows of `options.samples` questions, drawn with its random seed."""
    if options.samples is None or options.samples >= len(examples.questions):
        return examples
    questions = random.Random(options.seed).sample(range(len(examples.questions)), options.samples)
    return replace(examples, rows=np.flatnonzero(np.isin(examples.windows.pair, questions)))


def _run_trial(request: Request, trial: FrozenTrial, examples: Examples, options: Search, fit: Fit) -> float | None:
    """Train with the trial's parameters and return the F1 on the held-out questions; None where that failed."""
    assert request.distill
    work = request.work / f"trial-{trial.number}"
    result = work / "result"
    result.mkdir(parents=True, exist_ok=True)
    trial_request = replace(
        request,
        distill=request.distill.model_copy(update=trial.params),
        train=request.train.model_copy(update={"epochs": options.epochs}),
        work=work,
        directory=result,
    )
    try:
        fit(trial_request, examples)
        scores: list[float] = [line["f1"] for line in curves.read(work / curves.FILE) if "f1" in line]
        return scores[-1]
    except QABuildError:  # such as a NaN loss: other parameters may work
        return None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _row(trial: FrozenTrial, options: Search) -> Mapping[str, Any]:
    """Raises UntrustedInput for a trial that no build has made: whoever can write to a shared storage can add some."""
    params = {name: trial.params.get(name) for name in ("alpha", "temperature")}
    for name, (least, most) in (("alpha", options.alpha), ("temperature", options.temperature)):
        value = params[name]
        if value is not None and not (isinstance(value, float) and least <= value <= most):
            raise UntrustedInput(
                f"distill.search.storage: trial {trial.number} has the {name} {value}, and the target searches from "
                f"{least} to {most}",
                "name another storage",
            )
    return {"trial": trial.number, **params, "f1": trial.value, "state": trial.state.name.lower()}
