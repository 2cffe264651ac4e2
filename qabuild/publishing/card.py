"""The model card: generated from manifest and evidence, with the user's own content around it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qabuild.artifact import disclosure, stages
from qabuild.artifact.evidence import Flip, Verification, requirement
from qabuild.artifact.manifest import Artifact
from qabuild.artifact.readme import BEGIN_MARKER, END_MARKER, UserContent, read
from qabuild.evaluation import cross_check
from qabuild.models.backends import backend
from qabuild.publishing.repository import MAIN
from qabuild.system import card_metadata

TEMPLATE = Path(__file__).with_name("card.md.jinja")
FLIPS = 20  # rows of the table of changed answers; the others are only counted


def make(
    artifact: Artifact,
    verification: Verification,
    user: UserContent,
    *,
    repo: str,
    revision: str,
    base_license: str | None,
) -> str:
    """The card of the artifact at `revision` of `repo`, with the user content around the generated part."""
    from huggingface_hub import ModelCard

    text = TEMPLATE.read_text(encoding="utf-8")
    context = {
        **_facts(artifact, verification),
        "repo": repo,
        "revision": None if revision == MAIN else revision,
        "snippet": _snippet(artifact),
        "before": user.before,
        "after": user.after,
        "end_marker": END_MARKER,
    }
    metadata = _metadata(artifact, verification, user, base_license)

    def render(digest: str) -> str:
        marker = BEGIN_MARKER.format(digest=digest)
        return str(ModelCard.from_template(metadata, template_str=text, **context, begin_marker=marker))

    # The digest covers the user content as `read` returns it, so the card is rendered once before its digest is known.
    return render(read(render("0" * 64)).digest)


def _metadata(artifact: Artifact, verification: Verification, user: UserContent, base_license: str | None) -> Any:
    """The card's metadata, as huggingface_hub's ModelCardData."""
    from huggingface_hub import EvalResult, ModelCardData

    manifest, measurement = artifact.manifest, verification.measurement
    data = measurement.data
    model = stages.source(manifest)
    relation = "finetune" if manifest.training or manifest.stages else "quantized"
    related = {"base_model": model["name"], "base_model_relation": relation} if model["revision"] else {}
    license = manifest.publish.get("license") or user.metadata.get("license") or base_license
    weights = any(file.endswith(".safetensors") for file in manifest.files if "/" not in file)
    scores = {"exact_match": ("EM", measurement.exact_match), "f1": ("F1", measurement.f1)}
    return ModelCardData(
        **{key: value for key, value in user.metadata.items() if key not in ("license", "tags")},
        **({"license": license} if license else {}),
        **related,
        datasets=[data["dataset"]] if data["revision"] else None,
        library_name="transformers" if weights else manifest.backend["name"],
        metrics=list(scores),
        model_name=manifest.name,
        pipeline_tag="question-answering",
        tags=["qabuild", manifest.backend["name"], manifest.runtime.dtype, *user.metadata.get("tags", [])],
        eval_results=[
            EvalResult(
                task_type="question-answering",
                dataset_type=card_metadata.dataset_id(data["dataset"]),
                dataset_name=data["dataset"],
                dataset_config=data.get("configuration"),
                dataset_split=data["split"],
                dataset_revision=data["revision"],
                metric_type=metric,
                metric_name=label,
                metric_value=round(value, 4),
            )
            for metric, (label, value) in scores.items()
        ],
    )


def _facts(artifact: Artifact, verification: Verification) -> dict[str, Any]:
    """Values for the template; `f1_retention` and its interval are in percent."""
    manifest, m = artifact.manifest, verification.measurement
    low, high = (100 * (1 + end / m.checkpoint_f1) if m.checkpoint_f1 else 0.0 for end in m.f1_difference_interval)
    return {
        "name": manifest.name,
        "checkpoint": manifest.checkpoint,
        "training": manifest.training,
        "stages": stages.described(manifest.stages),
        "needs": manifest.record.get("needs") or {},
        "limits": manifest.record.get("limits") or [],
        "backend": manifest.backend["name"],
        "runtime": manifest.runtime.model_dump(mode="json"),
        "answer": manifest.answer,
        "qabuild": manifest.qabuild,
        "digest": artifact.digest,
        "verified_at": verification.verified_at,
        "gates": [(gate.name, requirement(gate), gate.value) for gate in verification.gates],
        "m": m,
        "second_pipeline": cross_check.LABELS[m.cross_check.pipeline] if m.cross_check else None,
        "f1_retention": (100 * m.f1_retention, low, high),
        "machine": m.machine,
        "versions": {name: m.versions[name] for name in sorted(m.versions)},
        "shown": disclosure.shown(m.data),
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
    """Text escaped for a cell of a Markdown table."""
    escaped = re.sub(r"([\\\\`*_\[\]<>|~$])", r"\\\1", " ".join(text.split()))
    return escaped or "(no answer)"


def _target(artifact: Artifact, data: Mapping[str, Any]) -> str:
    """The target as TOML, rebuilt from the manifest; local files are named without their folder."""
    manifest = artifact.manifest
    source = manifest.checkpoint["name"]
    dataset = f"./{data['dataset']}" if data["file"] else data["dataset"]
    verify = {"dataset": dataset, "revision": data["revision"], **manifest.verify}
    tables = {
        "checkpoint": {
            "model": source if manifest.checkpoint["revision"] or source == "sample" else f"./{source}",
            "revision": manifest.checkpoint["revision"],
            "digest": manifest.checkpoint["digest"],
        },
        "backend": manifest.backend,
        "runtime": manifest.runtime.model_dump(mode="json"),
        **({} if manifest.answer is None else {"answer": manifest.answer}),
        "verify": {key: value for key, value in verify.items() if key != "gates"},
        "verify.gates": manifest.verify["gates"],
    }
    return "\n\n".join(_table(name, table) for name, table in tables.items())


def _table(name: str, values: Mapping[str, Any]) -> str:
    """A TOML table; JSON and TOML write its strings, numbers and booleans alike."""
    lines = [f"{key} = {json.dumps(v, ensure_ascii=False)}" for key, v in values.items() if v is not None]
    return "\n".join([f"[{name}]", *lines])
