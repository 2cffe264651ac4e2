"""The process that trains: `python -m qabuild.training < request.json`, see `qabuild.apart`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.apart import Tell, serve
from qabuild.training.allocator import keep_memory


def work(document: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    """Carry out the step that is asked for."""
    from qabuild.training import work as steps
    from qabuild.training.request import Request

    request = Request.from_dict(document)
    by_name = {"logits": steps.logits, "search": steps.search, "train": steps.train}
    return by_name[request.step](request, tell)


if __name__ == "__main__":
    keep_memory()
    serve(work)
