"""The teacher's logits on every window, computed once for all epochs, trials and processes.

They are one fp32 file, [2, tokens of all windows, concatenated], start logits first. It is memory-mapped, so that
processes share it and load only what they read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qabuild.errors import UntrustedInput
from qabuild.models import sdpa_kernels
from qabuild.models.checkpoint.interface import positions
from qabuild.models.training.collate import Collator, Logits, batches_by_length
from qabuild.models.training.examples import Examples, examples_of
from qabuild.models.training.request import Request
from qabuild.qa.model_inputs import input_names
from qabuild.system.process import Tell

FILE = "logits.f32"


def run(request: Request, tell: Tell) -> Mapping[str, Any]:
    """The step `logits`: compute the teacher's logits on every window."""
    from qabuild.models.checkpoint.load import load_model

    assert request.teacher
    tokenizer, examples = examples_of(request)
    model = load_model(request.teacher).to(request.device)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell({"step": done, "steps": len(examples)})

    with sdpa_kernels.of_any_shape(request.device):
        compute(model, input_names(model, tokenizer), examples, request.directory, _autocast(request), advance)
    return {"examples": examples.counts}


def _autocast(request: Request) -> Any:
    import torch

    if request.dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(request.device, torch.bfloat16 if request.dtype == "bf16" else torch.float16)


def open_logits(directory: Path, examples: Examples) -> Logits:
    """Open the logits in `directory`. Raises UntrustedInput if their number does not fit the windows of `examples`."""
    import numpy as np

    offsets = np.concatenate([[0], np.cumsum(examples.windows.length)])
    path = directory / FILE
    if path.stat().st_size != 8 * offsets[-1]:
        raise UntrustedInput(
            f"{path}: holds {path.stat().st_size // 8} logits, and the windows have {offsets[-1]} tokens",
            "the data set changed during the build: build again",
        )
    return Logits(values=np.memmap(path, np.float32, "r", shape=(2, offsets[-1])), offsets=offsets)


def compute(
    model: Any,
    names: Sequence[str],
    examples: Examples,
    directory: Path,
    autocast: Any,
    advance: Callable[[int], None],
) -> None:
    """Compute the logits of the teacher `model` from its inputs `names`, on its device, and write them.

    `autocast` is a context manager. Raises UntrustedInput if the logits are not all finite.
    """
    import numpy as np
    import torch

    windows = examples.windows
    offsets = np.concatenate([[0], np.cumsum(windows.length)])
    values = np.memmap(directory / FILE, np.float32, "w+", shape=(2, offsets[-1]))
    collate = Collator(examples, names, longest=positions(model.config))
    for rows in batches_by_length(windows.length):
        batch = {name: tensor.to(model.device) for name, tensor in collate(rows.tolist()).items() if name in names}
        with torch.inference_mode(), autocast:
            output = model(**batch)
        shift = windows.place(rows, batch["input_ids"].shape[1])[0] - windows.first[rows]
        logits = torch.stack([output.start_logits, output.end_logits]).float().cpu().numpy()
        for row, (window, offset) in enumerate(zip(rows, shift, strict=True)):
            columns = slice(offset, offset + windows.length[window])
            values[:, offsets[window] : offsets[window + 1]] = logits[:, row, columns]
        advance(len(rows))
    if not np.isfinite(values).all():
        raise UntrustedInput(
            "the teacher's logits are not all finite",
            'compute them in fp32 (train.dtype = "fp32"), or take another',
        )
    values.flush()
