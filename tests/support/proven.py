"""Small verified artifacts for tests of publishing: sealed and judged by qabuild itself, with fake weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from qabuild.artifact import handler, judge, measurements, sealed_reference
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import CrossCheck, Flip, Measurement, ReferenceCheck, Speed
from qabuild.artifact.manifest import Artifact
from qabuild.evaluation import cross_check
from qabuild.evaluation.verify import write_evidence
from qabuild.models.backends import eager
from qabuild.models.runtime import Runtime
from qabuild.qa import ask
from qabuild.system import machine, packages
from qabuild.system.files import sha256
from qabuild.system.sealed import MANIFEST
from qabuild.target.gates import Gates

DATA = {
    "dataset": "rajpurkar/squad",
    "file": False,
    "revision": "a" * 40,
    "split": "validation",
    "samples": 2,
    "seed": None,
    "fingerprint": "f" * 64,
}
FLIP = Flip(
    id="2", question="Who | built *it*?", checkpoint="Ann", artifact="<b>Ben</b>", gold=["Ann"], f1_difference=-100.0
)

FAILED: dict[str, Any] = {
    "exact_match": 0.0,
    "f1": 0.0,
    "f1_difference": -100.0,
    "f1_difference_interval": (-100.0, -100.0),
    "f1_difference_interval_999": (-100.0, -100.0),
    "agreement": 0.0,
    "flips": [FLIP, replace(FLIP, id="1", checkpoint="one", gold=["one"])],
}
"""Fields of a measurement that fails the gates."""


def make(directory: Path, *, weights: bytes = b"weights" * 999, **facts: Any) -> Path:
    """Write an artifact into `directory`, which is returned; `facts` are fields of its manifest."""
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "config.json").write_text('{"model_type": "bert"}\n')
    options, runtime = eager.Options(), Runtime(device="cpu", dtype="fp32")
    versions = packages.versions({*eager.PACKAGES, *ask.PACKAGES})
    handler.write(options, runtime, versions, directory)
    (directory / sealed_reference.FOLDER).mkdir()
    answers = {"data": DATA, "probes": [], "answers": {"1": "one", "2": "Ann"}}
    (directory / sealed_reference.FOLDER / sealed_reference.ANSWERS).write_text(json.dumps(answers))
    sealed = artifacts.seal(
        directory,
        **{
            "name": directory.name,
            "qabuild": "0.1.0",
            "checkpoint": {"name": "them/base", "revision": "b" * 40, "digest": "d" * 64, "model_type": "bert"},
            "backend": options.model_dump(),
            "runtime": runtime,
            "verify": {
                "split": "validation",
                "samples": None,
                "seed": 0,
                "cross_check": 0.1,
                "batch_size": 8,
                "gates": Gates(min_f1_retention=0.4, min_agreement=0.5).model_dump(),
            },
            "publish": {"repo": "me/tiny", "license": None},
            "record": {},
            "versions": versions,
            "steps": {"compile": "c" * 64, "reference": "e" * 64},
            **facts,
        },
    )
    verify(sealed)
    return directory


def alter(directory: Path, *, config: dict[str, Any] | None = None, **facts: Any) -> Path:
    """Change facts of a manifest, and keys of config.json, and return the folder: opens with `allow_unverified` only.

    The handler, which would not fit, is removed.
    """
    manifest = json.loads((directory / MANIFEST).read_text()) | facts
    if config:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        manifest["files"]["config.json"] = {"size": path.stat().st_size, "sha256": sha256(path)}
    for name in (handler.HANDLER, handler.REQUIREMENTS):
        (directory / name).unlink()
        del manifest["files"][name]
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return directory


def verify(artifact: Artifact, **fields: Any) -> None:
    """Write evidence beside the manifest, as measured on this machine; `fields` are fields of the measurement."""
    measurement = Measurement(
        **{
            "data": DATA,
            "questions": 2,
            "checkpoint_exact_match": 100.0,
            "checkpoint_f1": 100.0,
            "exact_match": 50.0,
            "f1": 50.0,
            "f1_difference": -50.0,
            "f1_difference_interval": (-100.0, 0.0),
            "agreement": 0.5,
            "flips": [FLIP],
            "samples_per_second": 20.0,
            "speed": Speed(
                artifact=20.0, checkpoint=10.0, speedup=2.0, speedup_interval=(1.9, 2.1), questions=2, rounds=1
            ),
            "cross_check": CrossCheck(
                pipeline=cross_check.PLAIN,
                questions=2,
                batch_size=1,
                differences=0,
                ties=0,
                samples_per_second=10.0,
                speedup=2.0,
            ),
            "same_tokens": True,
            "finite_logits": True,
            "logit_difference": 0.0001,
            "logit_rms": 0.00001,
            "probes": [],
            "versions": packages.versions({*cross_check.PACKAGES, *eager.PACKAGES}),
            "machine": machine.describe(),
            "f1_difference_interval_999": (-100.0, 0.0),
            "reference_check": ReferenceCheck(questions=2, differences=0, ties=0, logit_difference=0.0),
            **fields,
        }
    )
    measurements.register(artifact, measurement)
    verification = judge.judge(artifact, measurement, artifact.manifest.gates)
    write_evidence(verification, artifact.directory)
