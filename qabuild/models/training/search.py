"""The search for alpha and temperature, with Optuna: each trial a training, scored on the held-out questions."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from qabuild.errors import QABuildError
from qabuild.models.training import curves
from qabuild.models.training.examples import Examples, examples_of
from qabuild.models.training.fit import fit
from qabuild.models.training.options import Search
from qabuild.models.training.request import Request
from qabuild.system.process import Tell

JOURNAL = "trials.log"
TABLE = "trials.json"
Fit = Callable[[Request, Examples], object]


def run(request: Request, tell: Tell) -> Mapping[str, Any]:
    """The step `search`: look for the alpha and the temperature of the best student."""
    tokenizer, examples = examples_of(request)
    return search(request, examples, lambda trial, part: fit(trial, part, tokenizer, tell))


def search(request: Request, found: Examples, train: Fit) -> dict[str, Any]:
    """Try as many pairs as `distill.search` says, and return the best with the table of all.

    What `request.work` holds of an interrupted search is gone on from, in the middle of a trial too. Raises
    QABuildError where no trial came to an end.
    """
    assert request.distill
    assert request.distill.search
    asked = request.distill.search
    learnt = _part(found, asked)
    with _study(request.work / JOURNAL) as study:
        while len(study.trials) < asked.trials or study.get_trials(states=(TrialState.RUNNING,)):
            trial = _unfinished(study) or _next(study, asked)
            study.tell(trial.number, *_try(request, trial, learnt, asked, train))
        table = [_row(trial) for trial in study.trials]
    finished = [row for row in table if row["f1"] is not None]
    if not finished:
        raise QABuildError(
            f"none of the {len(table)} trials of the search came to an end",
            "train once without [distill.search], to see what goes wrong",
        )
    best = max(finished, key=lambda row: row["f1"])
    (request.directory / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return {"best": {name: best[name] for name in ("alpha", "temperature")}, "trials": table}


def _part(found: Examples, asked: Search) -> Examples:
    """The windows of as many questions as a trial takes."""
    if asked.samples is None or asked.samples >= len(found.questions):
        return found
    drawn = random.Random(asked.seed).sample(range(len(found.questions)), asked.samples)
    return replace(found, rows=np.flatnonzero(np.isin(found.windows.pair, drawn)))


@contextmanager
def _study(journal: Path) -> Iterator[optuna.Study]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        yield optuna.create_study(storage=storage, study_name="distill", direction="maximize", load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _unfinished(study: optuna.Study) -> FrozenTrial | None:
    """The trial that a kill has interrupted, if it had got as far as its parameters."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if {"alpha", "temperature"} <= trial.params.keys():
            return trial
        study.tell(trial.number, state=TrialState.FAIL)
    return None


def _next(study: optuna.Study, asked: Search) -> FrozenTrial:
    # A sampler for each trial: one that was seeded once would begin its row of draws anew after an interruption.
    study.sampler = optuna.samplers.TPESampler(seed=asked.seed + len(study.trials))
    trial = study.ask()
    trial.suggest_float("alpha", *asked.alpha)
    trial.suggest_float("temperature", *asked.temperature)
    return study.trials[trial.number]


def _try(
    request: Request, trial: FrozenTrial, learnt: Examples, asked: Search, fit: Fit
) -> tuple[float | None, TrialState]:
    """F1 on the held-out questions after a training with the trial's parameters."""
    assert request.distill
    work = request.work / f"trial-{trial.number}"
    result = work / "result"
    result.mkdir(parents=True, exist_ok=True)
    tried = replace(
        request,
        distill=request.distill.model_copy(update=trial.params),
        train=request.train.model_copy(update={"epochs": asked.epochs}),
        work=work,
        directory=result,
    )
    try:
        fit(tried, learnt)
        scores = [line["f1"] for line in curves.read(work / curves.FILE) if "f1" in line]
        return scores[-1], TrialState.COMPLETE
    except QABuildError:  # as of a loss that is no number: other parameters may do better
        return None, TrialState.FAIL
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _row(trial: FrozenTrial) -> Mapping[str, Any]:
    params = {name: trial.params.get(name) for name in ("alpha", "temperature")}
    return {"trial": trial.number, **params, "f1": trial.value, "state": trial.state.name.lower()}
