"""Lists every handler.py that this version of qabuild can write, in the form of qabuild/artifact/earlier_handlers.txt.

Artifacts of a release stay valid in later versions if the list has its handlers. So, at a release and before a change
of a handler that users' artifacts already hold: python tools/handlers.py >> qabuild/artifact/earlier_handlers.txt
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, get_args, get_origin

from qabuild.artifact import handler
from qabuild.errors import BadTarget
from qabuild.models.backends import BACKENDS, backend
from qabuild.models.runtime import Runtime
from qabuild.system.frozen import Frozen


def main() -> None:
    known = set(handler.EARLIER_HANDLERS.read_text(encoding="ascii").splitlines())
    print("\n".join(sorted(handlers() - known)))


def handlers() -> set[str]:
    """A line for each handler: its digest, backend, device and dtype."""
    lines = set()
    for name in BACKENDS:
        module = backend(name)
        for device, dtypes in module.DTYPES.items():
            for dtype, options in product(dtypes, _options(module.Options)):
                runtime = Runtime(device=device, dtype=dtype)  # type: ignore[arg-type]
                try:
                    module.check({}, options, runtime)
                except BadTarget:
                    continue
                text = handler.contents(options, runtime, {})[handler.HANDLER]
                lines.add(f"{hashlib.sha256(text.encode()).hexdigest()} {name} {device} {dtype}")
    return lines


def _options(model: type[Frozen]) -> Iterator[Frozen]:
    """Options of every combination of flags and choices; others, which no handler depends on, have their defaults."""
    choices: dict[str, list[Any]] = {}
    for name, field in model.model_fields.items():
        for member in (field.annotation, *get_args(field.annotation)):
            if member is bool:
                choices[name] = [False, True]
            elif get_origin(member) is Literal:
                choices[name] = [*get_args(member), *([] if field.is_required() else [field.default])]
    for values in product(*choices.values()):
        yield model.model_construct(**dict(zip(choices, values, strict=True)))


if __name__ == "__main__":
    main()
