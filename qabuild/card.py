"""The model card, README.md: made from the manifest and the evidence, around what people wrote into it themselves.

What is made stands between two HTML comments. What stands before and after them, and metadata of other names than
those that are made, is people's own and is kept. The opening comment holds a sum over that, so that an edit shows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from qabuild.artifact import Artifact
from qabuild.backends import BACKENDS, Dtype, Runtime, backend
from qabuild.errors import BadTarget
from qabuild.evidence import Flip, Verification
from qabuild.hub import first_line
from qabuild.repository import MAIN

FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
FLIPS = 20  # answers that changed, shown in the table; the rest is counted

OPENED = "<!-- qabuild: made by `qabuild publish` from here, {sum} -->"
CLOSED = "<!-- qabuild: to here -->"
_MADE = re.compile(rf"{re.escape(OPENED).replace(re.escape('{sum}'), '(?P<sum>[0-9a-f]{64})')}.*?{CLOSED}", re.S)
_METADATA = frozenset(
    {
        "base_model",
        "base_model_relation",
        "datasets",
        "library_name",
        "metrics",
        "model-index",
        "model_name",
        "pipeline_tag",
    }
)
"""Names of the metadata that are made. `tags` are made and own ones together; `license` is made where none is own."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """What people wrote into a card."""

    before: str = ""
    after: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    published: str | None = None
    """The sum of what was own when the card was made."""

    @property
    def sum(self) -> str:
        text = json.dumps([self.before, self.after, dict(self.metadata)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def read(text: str | None) -> Own:
    """What is people's own in the text of a card; all of it where the card was not made here.

    Raises BadTarget where its metadata cannot be read.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if not text:
        return Own()
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (YAMLError, ValueError) as error:
        raise BadTarget(
            f"{FILE}: its metadata cannot be read: {first_line(error)}",
            "between the lines '---' at its top, write YAML",
        ) from error
    metadata = {key: value for key, value in card.data.to_dict().items() if key not in _METADATA}
    metadata["tags"] = [tag for tag in metadata.get("tags") or [] if tag not in _own_vocabulary()]
    metadata = {key: value for key, value in metadata.items() if value}
    made = _MADE.search(card.text)
    if made is None:
        return Own(before=card.text.strip(), metadata=metadata)
    before, after = card.text[: made.start()].strip(), card.text[made.end() :].strip()
    return Own(before=before, after=after, metadata=metadata, published=made["sum"])


def without_made(text: str) -> str:
    """The card with nothing but people's own parts, for an artifact that the rest does not speak of."""
    from huggingface_hub import CardData

    own = read(text)
    if own.published is None:
        return text
    metadata = f"---\n{CardData(**own.metadata).to_yaml()}\n---\n" if own.metadata else ""
    opened = OPENED.format(sum=own.published)
    return f"{metadata}{own.before}\n\n{opened}\n\nNot published yet.\n\n{CLOSED}\n\n{own.after}\n"


def merge(here: Own, there: Own) -> Own:
    """What is people's own in the card beside the artifact and in the one on the Hub, where either was edited.

    Raises BadTarget where both were, differently, since the card was published.
    """
    if here.sum == there.sum or there == Own():
        return here
    if not (there.before or there.after):  # as in a repository that was made on the Hub's pages
        return replace(here, metadata={**there.metadata, **here.metadata})
    base = here.published or Own().sum
    if here.sum == base:
        return there
    if there.sum == base:
        return here
    raise BadTarget(
        f"{FILE} was edited both beside the artifact and on the Hub, and differs",
        "put into the one beside the artifact what is to stay, and take the other's text out on the Hub",
    )


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


def _metadata(artifact: Artifact, found: Verification, own: Own, base_license: str | None) -> Any:
    """The card's metadata, as huggingface_hub's ModelCardData."""
    from huggingface_hub import EvalResult, ModelCardData

    manifest, data = artifact.manifest, found.measurement.data
    name, relation = manifest.checkpoint["name"], "finetune" if "train" in manifest.steps else "quantized"
    base = {"base_model": name, "base_model_relation": relation} if manifest.checkpoint["revision"] else {}
    license = manifest.publish.get("license") or own.metadata.get("license") or base_license
    weights = any(file.endswith(".safetensors") for file in manifest.files if "/" not in file)
    scores = {"exact_match": ("EM", found.measurement.exact_match), "f1": ("F1", found.measurement.f1)}
    return ModelCardData(
        **{key: value for key, value in own.metadata.items() if key not in ("license", "tags")},
        **({"license": license} if license else {}),
        **base,
        datasets=[data["dataset"]] if data["revision"] else None,
        library_name="transformers" if weights else manifest.backend["name"],
        metrics=list(scores),
        model_name=manifest.name,
        pipeline_tag="question-answering",
        tags=["qabuild", manifest.backend["name"], manifest.runtime["dtype"], *own.metadata.get("tags", [])],
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
        "backend": manifest.backend["name"],
        "runtime": manifest.runtime,
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
    module = backend(artifact.manifest.backend["name"])
    options = module.Options.model_validate(dict(artifact.manifest.backend))
    return module.snippet(options, Runtime.model_validate(dict(artifact.manifest.runtime)))


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
        "runtime": manifest.runtime,
        "verify": {key: value for key, value in verify.items() if key != "gates"},
        "verify.gates": manifest.verify["gates"],
    }
    return "\n\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None)])
        for name, table in tables.items()
    )


def _own_vocabulary() -> set[str]:
    """Tags that are made."""
    return {"qabuild", *BACKENDS, *get_args(Dtype)}
