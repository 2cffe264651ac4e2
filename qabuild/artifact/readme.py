"""The model card, README.md: separates what its users write from the part that qabuild generates.

The generated part is between two HTML comments. The text before and after them, and metadata under names that qabuild
does not generate, are user content and are preserved. The first comment holds a digest of the user content, which
shows whether it was edited.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from qabuild.errors import BadTarget
from qabuild.models.backends import BACKENDS
from qabuild.models.runtime import Dtype
from qabuild.system.hub import first_line

FILE = "README.md"
BEGIN_MARKER = "<!-- qabuild: made by `qabuild publish` from here, {digest} -->"
END_MARKER = "<!-- qabuild: to here -->"
_GENERATED = re.compile(
    rf"{re.escape(BEGIN_MARKER).replace(re.escape('{digest}'), '(?P<digest>[0-9a-f]{64})')}.*?{END_MARKER}", re.S
)
_GENERATED_METADATA = frozenset(
    {
        "base_model",
        "base_model_relation",
        "datasets",
        "eval_results",
        "library_name",
        "metrics",
        "model-index",
        "model_name",
        "pipeline_tag",
    }
)
"""Names of generated metadata. `tags` combine generated and user tags; `license` is generated unless a user sets it."""


@dataclass(frozen=True, kw_only=True)
class UserContent:
    """What users wrote into a card."""

    before: str = ""
    after: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    published_digest: str | None = None
    """Digest of the user content when the card was generated."""

    @property
    def digest(self) -> str:
        """SHA-256 of text and metadata, in hex."""
        text = json.dumps([self.before, self.after, dict(self.metadata)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def read(text: str | None) -> UserContent:
    """The user content of a card; all of it where qabuild did not generate the card.

    Raises BadTarget where the card's metadata cannot be read.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if not text:
        return UserContent()
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
        metadata = _user_metadata(card.data.to_dict())
    except (YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise BadTarget(
            f"{FILE}: its metadata cannot be read: {first_line(error)}",
            "between the lines '---' at its top, write YAML",
        ) from error
    generated = _GENERATED.search(card.text)
    if generated is None:
        return UserContent(before=card.text.strip(), metadata=metadata)
    before, after = card.text[: generated.start()].strip(), card.text[generated.end() :].strip()
    return UserContent(before=before, after=after, metadata=metadata, published_digest=generated["digest"])


def without_generated(text: str) -> str:
    """The card without its generated part, which describes another artifact."""
    from huggingface_hub import CardData

    content = read(text)
    if content.published_digest is None:
        return text
    metadata = f"---\n{CardData(**content.metadata).to_yaml()}\n---\n" if content.metadata else ""
    begin = BEGIN_MARKER.format(digest=content.published_digest)
    return f"{metadata}{content.before}\n\n{begin}\n\nNot published yet.\n\n{END_MARKER}\n\n{content.after}\n"


def merge(local: UserContent, remote: UserContent) -> UserContent:
    """The user content of the card beside the artifact or of the one on the Hub, whichever was edited.

    Raises BadTarget where both were edited, differently, since the card was published.
    """
    if local.digest == remote.digest or remote == UserContent():
        return local
    if not (remote.before or remote.after):  # as in a repository that was created on the Hub's pages
        return replace(local, metadata={**remote.metadata, **local.metadata})
    base = local.published_digest or UserContent().digest
    if local.digest == base:
        return remote
    if remote.digest == base:
        return local
    raise BadTarget(
        f"{FILE} was edited both beside the artifact and on the Hub, and the edits differ",
        "put the text to keep into the one beside the artifact, and remove your text from the one on the Hub",
    )


def _user_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that qabuild does not generate. Raises TypeError where the tags are no list of texts."""
    own = {key: value for key, value in metadata.items() if key not in _GENERATED_METADATA}
    own["tags"] = [tag for tag in own.get("tags") or [] if tag not in _generated_tags()]
    return {key: value for key, value in own.items() if value}


def _generated_tags() -> set[str]:
    """Every tag that qabuild may generate."""
    return {"qabuild", *BACKENDS, *get_args(Dtype)}
