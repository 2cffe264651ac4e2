"""The training subprocess: `python -m qabuild.models.training < request.json`, see `qabuild.system.process`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from qabuild.models.training.allocator import keep_memory
from qabuild.models.training.options import MODULES
from qabuild.models.training.request import Request
from qabuild.system.process import Tell, serve


def work(document: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    """Run the step that the request names."""
    request = Request.from_dict(document)
    record: Mapping[str, Any] = import_module(MODULES[request.step]).run(request, tell)
    return record


if __name__ == "__main__":
    keep_memory()
    serve(work)
