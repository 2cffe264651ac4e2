"""The Hub's rules for the metadata of a model card, as far as they are known without asking it.

The Hub checks a card when it is committed, and on request (`/api/validate-yaml`), and does not publish that check. What
is here is stated in https://github.com/huggingface/hub-docs/blob/main/modelcard.md, or is what the check itself
answers: the license ids (https://github.com/huggingface/huggingface_hub/issues/4218) and the pattern of a data set
(https://github.com/embeddings-benchmark/mteb/issues/1111). Its rules for languages and further fields are not known.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

_IDS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""
LICENSES = tuple(_IDS.split())
"""Ids of licenses, as of May 2026."""

_FILLERS = {"the", "gnu", "license", "licence", "version", "or", "later", "only"}
_DATASET = re.compile(r"(?:[A-Za-z0-9_-]+/)?[A-Za-z0-9_.-]+")


def license_problem(license: str) -> str | None:
    """Why the Hub refuses that license, with a suggestion; None for an id of the Hub."""
    if license in LICENSES:
        return None
    # Without what "Apache License, Version 2.0" and "GPL-3.0-or-later" have more than the id.
    words = re.sub(r"[^a-z0-9.+]+|v(?=\d)", " ", license.lower()).split()
    name = "-".join(word for word in words if word not in _FILLERS)
    near = difflib.get_close_matches(name, LICENSES, n=1, cutoff=0.75)
    hint = f"perhaps {near[0]!r}" if near else "any other is 'other', with license_name in the card"
    return f"{license!r} is no id of a license on the Hub: {hint}"


def dataset_id(name: str) -> str:
    """`name`, of a data set or of any file, as the Hub takes it: other characters are replaced."""
    if _DATASET.fullmatch(name):
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", plain) or "_"


def problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What in a card's metadata the Hub refuses, a line each."""
    for license in _items(metadata.get("license")):
        if problem := license_problem(str(license)):
            yield f"license: {problem}"
    for key in ("tags", "language", "datasets", "base_model"):
        if not all(isinstance(item, str) and item for item in _items(metadata.get(key))):
            yield f"{key}: must be texts that are not empty"
    ids = [(f"datasets[{number}]", name) for number, name in enumerate(_items(metadata.get("datasets")))]
    for model in metadata.get("model-index") or ():
        ids += [("model-index: dataset.type", result["dataset"]["type"]) for result in model["results"]]
    for key, name in ids:
        if isinstance(name, str) and not _DATASET.fullmatch(name):
            yield f"{key}: {name!r} is no id of a data set: letters a to z, digits, '_', '-', '.', and one '/'"


def _items(value: Any) -> list[Any]:
    """A field that holds one value or a list of them, as a list."""
    return [] if value is None else value if isinstance(value, list) else [value]
