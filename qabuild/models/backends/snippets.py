"""Fills in the templates of backends' snippets: source text that loads a compiled model without qabuild."""

from __future__ import annotations

from string import Template

from qabuild.models.runtime import Runtime

AUTOCAST = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}


def filled(text: str, runtime: Runtime) -> str:
    """Substitute `$device`, the device's name, and `$modes`, the contexts of a `with` statement, in `text`."""
    modes = ["torch.inference_mode()"]
    if runtime.dtype in AUTOCAST:
        modes.append(f'torch.autocast("{runtime.device}", dtype={AUTOCAST[runtime.dtype]})')
    return Template(text).substitute(device=runtime.device, modes=", ".join(modes))
