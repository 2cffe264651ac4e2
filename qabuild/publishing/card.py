"""The model card: made from the manifest and the evidence, around what people wrote into it themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qabuild.artifact.evidence import Flip, Verification
from qabuild.artifact.manifest import Artifact
from qabuild.artifact.readme import CLOSED, OPENED, Own, read
from qabuild.models.backends import backend
from qabuild.publishing.repository import MAIN

TEMPLATE = Path(__file__).with_name("card.md.jinja")
FLIPS = 20  # answers that changed, shown in the table; the rest is counted


def make(
    artifact: Artifact, found: Verification, own: Own, *, repo: str, revision: str, base_license: str | None
) -> str:
    """The text of the card, to be read at that revision of that repository, around what is people's own."""
    from huggingface_hub import ModelCard

    text = TEMPLATE.read_text(encoding="utf-8")
    context = {
        **_facts(artifact, found),
        "repo": repo,
        "revision": None if revision == MAIN else revision,
        "snippet": _snippet(artifact),
        "before": own.before,
        "after": own.after,
        "closed": CLOSED,
    }
    metadata = _metadata(artifact, found, own, base_license)

    def written(own_sum: str) -> str:
        return str(ModelCard.from_template(metadata, template_str=text, **context, opened=OPENED.format(sum=own_sum)))

    # The sum speaks of the text as it will be read again, so the text is made before it.
    return written(read(written("0" * 64)).sum)


def base(artifact: Artifact) -> Mapping[str, Any]:
    """name and revision of the model that it all started from: what was trained, or the checkpoint itself."""
    training = artifact.manifest.training
    return training["start"] if training else artifact.manifest.checkpoint


def _metadata(artifact: Artifact, found: Verification, own: Own, base_license: str | None) -> Any:
    """The card's metadata, as huggingface_hub's ModelCardData."""
    from huggingface_hub import EvalResult, ModelCardData

    manifest, data = artifact.manifest, found.measurement.data
    model = base(artifact)
    relation = "finetune" if manifest.training else "quantized"
    related = {"base_model": model["name"], "base_model_relation": relation} if model["revision"] else {}
    license = manifest.publish.get("license") or own.metadata.get("license") or base_license
    weights = any(file.endswith(".safetensors") for file in manifest.files if "/" not in file)
    scores = {"exact_match": ("EM", found.measurement.exact_match), "f1": ("F1", found.measurement.f1)}
    return ModelCardData(
        **{key: value for key, value in own.metadata.items() if key not in ("license", "tags")},
        **({"license": license} if license else {}),
        **related,
        datasets=[data["dataset"]] if data["revision"] else None,
        library_name="transformers" if weights else manifest.backend["name"],
        metrics=list(scores),
        model_name=manifest.name,
        pipeline_tag="question-answering",
        tags=["qabuild", manifest.backend["name"], manifest.runtime.dtype, *own.metadata.get("tags", [])],
        eval_results=[
            EvalResult(
                task_type="question-answering",
                dataset_type=data["dataset"],
                dataset_name=data["dataset"],
                dataset_split=data["split"],
                dataset_revision=data["revision"],
                metric_type=metric,
                metric_name=label,
                metric_value=round(value, 4),
            )
            for metric, (label, value) in scores.items()
        ],
    )


def _facts(artifact: Artifact, found: Verification) -> dict[str, Any]:
    """What the template tells, in the words and figures that it tells it with."""
    manifest, m = artifact.manifest, found.measurement
    low, high = (100 * (1 + end / m.checkpoint_f1) if m.checkpoint_f1 else 0.0 for end in m.f1_difference_interval)
    return {
        "name": manifest.name,
        "checkpoint": manifest.checkpoint,
        "training": manifest.training,
        "needs": manifest.record.get("needs") or {},
        "backend": manifest.backend["name"],
        "runtime": manifest.runtime.model_dump(mode="json"),
        "qabuild": manifest.qabuild,
        "digest": artifact.digest,
        "verified_at": found.verified_at,
        "gates": found.gates,
        "m": m,
        "kept": (100 * m.f1_retention, low, high),
        "machine": m.machine,
        "versions": {name: m.versions[name] for name in sorted(m.versions)},
        "flips": [_row(flip) for flip in m.flips[:FLIPS]],
        "more_flips": max(0, len(m.flips) - FLIPS),
        "data": m.data,
        "target": _target(artifact, m.data),
    }


def _snippet(artifact: Artifact) -> str:
    manifest = artifact.manifest
    return backend(manifest.backend["name"]).snippet(manifest.options, manifest.runtime)


def _row(flip: Flip) -> list[str]:
    return [_cell(text) for text in (flip.question, flip.checkpoint, flip.artifact, " / ".join(flip.gold))]


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table shows it as it is."""
    escaped = re.sub(r"([\\\\`*_\[\]<>|~$])", r"\\\1", " ".join(text.split()))
    return escaped or "(no answer)"


def _target(artifact: Artifact, data: Mapping[str, Any]) -> str:
    """The target as TOML, made from the manifest: its tables, in which files are named without their folder."""
    manifest = artifact.manifest
    source = manifest.checkpoint["name"]
    asked = f"./{data['dataset']}" if data["file"] else data["dataset"]
    verify = {"dataset": asked, "revision": data["revision"], **manifest.verify}
    tables = {
        "checkpoint": {
            "model": source if manifest.checkpoint["revision"] or source == "sample" else f"./{source}",
            "revision": manifest.checkpoint["revision"],
            "digest": manifest.checkpoint["digest"],
        },
        "backend": manifest.backend,
        "runtime": manifest.runtime.model_dump(mode="json"),
        "verify": {key: value for key, value in verify.items() if key != "gates"},
        "verify.gates": manifest.verify["gates"],
    }
    return "\n\n".join(_table(name, table) for name, table in tables.items())


def _table(name: str, values: Mapping[str, Any]) -> str:
    """A table of TOML. Its strings, numbers and booleans are written as JSON writes them."""
    lines = [f"{key} = {json.dumps(v, ensure_ascii=False)}" for key, v in values.items() if v is not None]
    return "\n".join([f"[{name}]", *lines])
