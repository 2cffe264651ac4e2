"""The process that trains: `python -m qabuild.models.training < request.json`, see `qabuild.system.process`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.models.training.allocator import keep_memory
from qabuild.system.process import Tell, serve


def work(document: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    """Carry out the step that is asked for."""
    from qabuild.models.training import run as steps
    from qabuild.models.training.request import Request

    request = Request.from_dict(document)
    by_name = {"logits": steps.logits, "search": steps.search, "train": steps.train}
    return by_name[request.step](request, tell)


if __name__ == "__main__":
    keep_memory()
    serve(work)
