"""The teacher's logits on every window, computed once: they serve every epoch, every trial and every process.

One file of fp32 numbers, [2, tokens of all windows end to end], the start logits first. It is mapped into memory, so
that processes share it and only what is read is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.errors import UntrustedInput
from qabuild.models import sdpa_kernels
from qabuild.models.training.collate import Collator, Logits
from qabuild.models.training.examples import Examples, examples_of
from qabuild.models.training.request import Request
from qabuild.system.process import Tell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float32]

FILE = "logits.f32"
BATCH_TOKENS = 8192
"""Tokens, padding included, that go through the teacher at once."""


def run(request: Request, tell: Tell) -> Mapping[str, Any]:
    """The step `logits`: let the teacher answer every window, once."""
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
        make(model, tokenizer.model_input_names, examples, request.directory, _autocast(request), advance)
    return {"examples": examples.counts}


def _autocast(request: Request) -> Any:
    import torch

    if request.dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(request.device, torch.bfloat16 if request.dtype == "bf16" else torch.float16)


def open_logits(directory: Path, examples: Examples) -> Logits:
    """The logits in `directory`, which were made of the same windows. Raises UntrustedInput for others."""
    import numpy as np

    offsets = np.concatenate([[0], np.cumsum(examples.windows.length)])
    path = directory / FILE
    if path.stat().st_size != 8 * offsets[-1]:
        raise UntrustedInput(
            f"{path}: holds {path.stat().st_size // 8} logits, and the windows have {offsets[-1]} tokens",
            "the data set changed while it was built: build again",
        )
    return Logits(numbers=np.memmap(path, np.float32, "r", shape=(2, offsets[-1])), offsets=offsets)


def make(
    model: Any,
    input_names: Sequence[str],
    examples: Examples,
    directory: Path,
    autocast: Any,
    advance: Callable[[int], None],
) -> None:
    """Write what the teacher `model`, on its device, says of each window. `autocast` is a context manager.

    Raises UntrustedInput for a teacher whose logits are not finite.
    """
    import numpy as np
    import torch

    windows = examples.windows
    offsets = np.concatenate([[0], np.cumsum(windows.length)])
    numbers = np.memmap(directory / FILE, np.float32, "w+", shape=(2, offsets[-1]))
    collate = Collator(examples, input_names)
    for rows in _batches(windows.length):
        batch = {
            name: tensor.to(model.device) for name, tensor in collate(rows.tolist()).items() if name in input_names
        }
        with torch.inference_mode(), autocast:
            output = model(**batch)
        shift = windows.place(rows, batch["input_ids"].shape[1])[0] - windows.first[rows]
        both = torch.stack([output.start_logits, output.end_logits]).float().cpu().numpy()
        for row, (window, by) in enumerate(zip(rows, shift, strict=True)):
            numbers[:, offsets[window] : offsets[window + 1]] = both[:, row, by : by + windows.length[window]]
        advance(len(rows))
    if not np.isfinite(numbers).all():
        raise UntrustedInput(
            "the teacher's logits are not all finite", 'let it compute in fp32 (train.dtype = "fp32"), or take another'
        )
    numbers.flush()


def _batches(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of about one length, the longest first, with up to BATCH_TOKENS tokens each."""
    import numpy as np

    order = np.argsort(-lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, BATCH_TOKENS // int(lengths[order[begin]]))
        batches.append(order[begin : begin + size])
        begin += size
    return batches
