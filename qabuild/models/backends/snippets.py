"""What the backends' snippets have in common: text that loads a compiled model and needs no qabuild. Runs nothing."""

from __future__ import annotations

from string import Template

from qabuild.models.runtime import Runtime

AUTOCAST = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}


def filled(text: str, runtime: Runtime) -> str:
    """`text` with `$device` and `$modes` as the runtime has them: the device's name, and contexts for `with`."""
    modes = ["torch.inference_mode()"]
    if runtime.dtype in AUTOCAST:
        modes.append(f'torch.autocast("{runtime.device}", dtype={AUTOCAST[runtime.dtype]})')
    return Template(text).substitute(device=runtime.device, modes=", ".join(modes))
