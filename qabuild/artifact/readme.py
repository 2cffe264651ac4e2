"""The model card, README.md, as people write it: what of it is their own, and what stands around what was made.

What is made stands between two HTML comments. What stands before and after them, and metadata of other names than
those that are made, is people's own and is kept. The opening comment holds a sum over that, so that an edit shows.
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
OPENED = "<!-- qabuild: made by `qabuild publish` from here, {sum} -->"
CLOSED = "<!-- qabuild: to here -->"
_MADE = re.compile(rf"{re.escape(OPENED).replace(re.escape('{sum}'), '(?P<sum>[0-9a-f]{64})')}.*?{CLOSED}", re.S)
_METADATA = frozenset(
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


def _own_vocabulary() -> set[str]:
    """Tags that are made."""
    return {"qabuild", *BACKENDS, *get_args(Dtype)}
