"""The scores of an artifact as the Hub's evaluation results, which it shows beside the model.

The Hub reads `.eval_results/*.yaml`, one score a file (https://huggingface.co/docs/hub/eval-results). Anyone may add
results of other evaluations there, so that only files with our prefix are written, replaced and deleted.
"""

from __future__ import annotations

from typing import Any

from qabuild.artifact.evidence import Verification, at_batch
from qabuild.artifact.manifest import EVAL_RESULTS, EVIDENCE, Artifact

_PREFIX = f"{EVAL_RESULTS}/qabuild-"
_METRICS = {"exact_match": "Exact match", "f1": "F1"}


def make(artifact: Artifact, verification: Verification, repo: str, revision: str) -> dict[str, bytes]:
    """The files by name: EM and F1 on all questions of a split of a Hub data set; none where fewer were answered."""
    from huggingface_hub.utils import yaml_dump

    data = verification.measurement.data
    if not data["revision"] or data["seed"] is not None:
        return {}
    return {
        f"{_PREFIX}{metric}.yaml": yaml_dump([_entry(metric, artifact, verification, repo, revision)]).encode()
        for metric in _METRICS
    }


def _entry(metric: str, artifact: Artifact, verification: Verification, repo: str, revision: str) -> dict[str, Any]:
    from huggingface_hub.constants import ENDPOINT

    manifest, measurement = artifact.manifest, verification.measurement
    data = measurement.data
    at = f"{manifest.backend['name']} {manifest.runtime.dtype}{at_batch(measurement.batch_size)}"
    return {
        "dataset": {
            "id": data["dataset"],
            "task_id": data.get("configuration") or "default",
            "revision": data["revision"],
        },
        "value": round(getattr(measurement, metric), 4),
        "date": verification.verified_at,
        "source": {"url": f"{ENDPOINT}/{repo}/blob/{revision}/{EVIDENCE}", "name": "qabuild's verification"},
        "notes": f"{_METRICS[metric]} in percent, split {data['split']}, {at}",
    }


def is_ours(name: str) -> bool:
    return name.startswith(_PREFIX)


def is_of_others(name: str) -> bool:
    return name.startswith(f"{EVAL_RESULTS}/") and not is_ours(name)
