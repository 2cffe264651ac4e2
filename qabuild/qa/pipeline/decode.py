"""Search for the best spans of windows, given their logits.

A span's score is the probability of its first token times that of its last, each a softmax over the window's
context tokens and the CLS token. Only spans of up to `max_answer_len` tokens count: for every first token the
best last one is a running maximum, and the n best spans begin at the n best first tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qabuild.qa.pipeline.windows import Windows

    Integers = NDArray[np.int64]
    Floats = NDArray[np.floating[Any]]

MASKED = -10000.0
"""The logit of a token that cannot be in an answer; its probability is 0 in fp32."""
SEARCH_BATCH = 192
"""Windows searched together on the CPU: few calls, and arrays that fit its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """The best spans of windows, best first; arrays are [windows, n_best] unless stated otherwise."""

    first: Integers
    """First token, counted from the window's first context token."""
    last: Integers
    """Last token, inclusive."""
    score: Floats
    """fp32; below 0 where a window has no more spans."""
    null: Floats
    """[windows]: the score of no answer, at the CLS token."""
    mass: Floats
    """[windows, 2]: log of the softmax's denominator, for first and last tokens (fp64)."""


def best_spans(start: Floats, end: Floats, size: Integers, n_best: int, max_answer_len: int) -> Spans:
    """The best spans of windows; ties go to the earlier first token, then to the shorter span.

    `start` and `end` are logits [windows, 1 + tokens] in fp32: the CLS token, then the window's `size` context
    tokens; the rest is MASKED.
    """
    import numpy as np

    start, start_mass = _softmax(start)
    end, end_mass = _softmax(end)
    first, last, score = _search(start[:, 1:], end[:, 1:], size, n_best, max_answer_len)
    return Spans(
        first=first,
        last=last,
        score=score,
        null=start[:, 0] * end[:, 0],
        mass=np.stack([start_mass, end_mass], axis=1),
    )


def _softmax(logits: Floats) -> tuple[Floats, Floats]:
    """The softmax of each row, and the log of its denominator."""
    import numpy as np

    top = logits.max(axis=1, keepdims=True)
    exp = np.exp(logits - top)
    total = exp.sum(axis=1, keepdims=True)
    exp /= total
    return exp, (top + np.log(total.astype(np.float64)))[:, 0]


def _search(
    start: Floats, end: Floats, size: Integers, n_best: int, max_answer_len: int
) -> tuple[Integers, Integers, Floats]:
    """First tokens, last tokens and scores of the best spans; `start` and `end` are probabilities [rows, tokens]."""
    import numpy as np

    rows, tokens = start.shape
    reach = min(max_answer_len, tokens)
    ends = np.full((rows, tokens + reach - 1), -1.0, dtype=np.float32)  # no span ends after its window's context
    np.copyto(ends[:, :tokens], end, where=np.arange(tokens) < size[:, None])
    row = np.arange(rows)[:, None]
    firsts = np.sort(_top(start * _running_maximum(ends, reach)[:, :tokens], n_best), axis=1)
    products = start[row, firsts][:, :, None] * np.lib.stride_tricks.sliding_window_view(ends, reach, 1)[row, firsts]
    scores = products.reshape(rows, -1)
    places = _top(scores, n_best)
    first = firsts[row, places // reach]
    last = first + places % reach
    return first, last, np.where(last < size[:, None], scores[row, places], np.float32(-1))


def _running_maximum(values: Floats, reach: int) -> Floats:
    """[rows, columns]: the maximum of each value and the reach - 1 values after it."""
    import numpy as np

    maximum = values.copy()
    width = 1
    while width < reach:
        step = min(width, reach - width)
        np.maximum(maximum[:, :-step], maximum[:, step:], out=maximum[:, :-step])
        width += step
    return maximum


def _top(values: Floats, count: int) -> Integers:
    """[rows, up to count]: the columns of each row's largest fp32 values, in descending order, ties from the left.

    Non-negative fp32 values sort like integers of the same bits (negative ones below them), so value and column are
    packed into one integer, which numpy sorts vectorised, unlike indices.
    """
    import numpy as np

    columns = values.shape[1]
    count = min(count, columns)
    keys = values.view(np.int32).astype(np.int64)
    keys <<= 32
    keys |= np.arange(columns)[::-1]
    keys.partition(columns - count, axis=1)
    top = np.sort(keys[:, columns - count :], axis=1)[:, ::-1]
    places: Integers = columns - 1 - (top & 0xFFFFFFFF)
    return places


def best_spans_on_device(start: Any, end: Any, place: Any, tokens: int, n_best: int, max_answer_len: int) -> Any:
    """`best_spans` in torch, for logits on a device; ties are in any order.

    `start` and `end` are a batch's logits [rows, columns], `place` int64 [3, rows] on the same device: each row's
    first context column, number of context tokens and CLS column (-1 for none); `tokens` is the largest number of
    context tokens. Returns (span, score, null, mass), where a span is its first token times the reach plus the
    number of tokens that follow it, and the reach is min(max_answer_len, tokens).
    """
    import torch

    first, size, cls = place[:, :, None]
    count = torch.arange(tokens, device=start.device)
    inside = count < size
    columns = torch.cat([cls.clamp(min=0), (first + count).clamp(max=start.shape[1] - 1)], dim=1)
    allowed = torch.cat([cls >= 0, inside], dim=1)
    logits = torch.stack([start, end]).float().gather(2, columns.expand(2, -1, -1)).masked_fill(~allowed, MASKED)
    mass = logits.logsumexp(dim=2).T
    start, end = torch.softmax(logits, dim=2)
    reach = min(max_answer_len, tokens)
    ends = torch.nn.functional.pad(end[:, 1:], (0, reach - 1), value=-1.0).unfold(1, reach, 1)
    lasts_inside = torch.nn.functional.pad(inside, (0, reach - 1)).unfold(1, reach, 1)
    scores = (start[:, 1:, None] * ends).masked_fill(~lasts_inside, -1.0).flatten(1)
    score, span = scores.topk(min(n_best, scores.shape[1]), dim=1)
    return span, score, start[:, 0] * end[:, 0], mass


class Decoder:
    """Collects the logits of windows, batch by batch in any order, and returns the spans of all windows.

    Logits on a GPU are searched there, without synchronising before `finish`.
    """

    def __init__(self, windows: Windows, n_best: int, max_answer_len: int) -> None:
        self._windows, self._n_best, self._max_answer_len = windows, n_best, max_answer_len
        self._cpu_batches: list[tuple[Integers, Integers, Floats, Floats]] = []
        self._gpu_batches: list[tuple[Integers, int, Any, Any]] = []
        self._spans = _no_spans(len(windows), n_best)

    def add(self, rows: Integers, place: Integers, start: Any, end: Any) -> None:
        """Add the logits of the windows `rows`: torch tensors [rows, columns] of any float dtype, on any device.

        `place` locates the context in windows of that many columns (`Windows.place`).
        """
        if start.is_cuda:
            self._search_on_gpu(rows, place, start, end)
            return
        self._cpu_batches.append((rows, place, start.float().cpu().numpy(), end.float().cpu().numpy()))
        if sum(len(batch[0]) for batch in self._cpu_batches) >= SEARCH_BATCH:
            self._search_on_cpu()

    def finish(self) -> Spans:
        """The spans of all windows, in the windows' order."""
        if self._cpu_batches:
            self._search_on_cpu()
        for rows, reach, copied, results in self._gpu_batches:
            copied.synchronize()
            span, score, null, mass = (tensor.numpy() for tensor in results)
            first = span // reach
            self._store(rows, Spans(first=first, last=first + span % reach, score=score, null=null, mass=mass))
        self._gpu_batches.clear()
        return self._spans

    def _search_on_cpu(self) -> None:
        import numpy as np

        rows = np.concatenate([batch[0] for batch in self._cpu_batches])
        start, end = _gather(self._cpu_batches)
        self._cpu_batches.clear()
        self._store(rows, best_spans(start, end, self._windows.size[rows], self._n_best, self._max_answer_len))

    def _search_on_gpu(self, rows: Integers, place: Integers, start: Any, end: Any) -> None:
        """Search a batch on its GPU and copy the spans to pinned memory, asynchronously."""
        import torch

        tokens = max(1, int(place[1].max()))
        place_on_gpu = torch.from_numpy(place.copy()).pin_memory().to(start.device, non_blocking=True)
        results = best_spans_on_device(start, end, place_on_gpu, tokens, self._n_best, self._max_answer_len)
        host_results = [torch.empty(result.shape, dtype=result.dtype, pin_memory=True) for result in results]
        for host_result, result in zip(host_results, results, strict=True):
            host_result.copy_(result, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(start.device))
        self._gpu_batches.append((rows, min(self._max_answer_len, tokens), copied, host_results))

    def _store(self, rows: Integers, spans: Spans) -> None:
        count = spans.score.shape[1]
        for name in ("first", "last", "score"):
            getattr(self._spans, name)[rows, :count] = getattr(spans, name)
        self._spans.null[rows], self._spans.mass[rows] = spans.null, spans.mass


def _no_spans(windows: int, n_best: int) -> Spans:
    import numpy as np

    return Spans(
        first=np.zeros((windows, n_best), dtype=np.int64),
        last=np.zeros((windows, n_best), dtype=np.int64),
        score=np.full((windows, n_best), -1.0, dtype=np.float32),
        null=np.zeros(windows, dtype=np.float32),
        mass=np.zeros((windows, 2)),
    )


def _gather(batches: list[tuple[Integers, Integers, Floats, Floats]]) -> list[Floats]:
    """The start and end logits of all batches, of any length and padding side, as `best_spans` takes them."""
    import numpy as np

    first, size, cls = np.concatenate([place for _, place, _, _ in batches], axis=1)
    columns = np.repeat([start.shape[1] for _, _, start, _ in batches], [len(rows) for rows, _, _, _ in batches])
    offsets = np.cumsum(columns) - columns  # of each window in the concatenated batches
    context = np.arange(max(1, int(size.max())))
    source = np.column_stack([offsets + cls, (offsets + first)[:, None] + context])
    outside = np.column_stack([cls < 0, context >= size[:, None]])
    gathered = []
    for part in (2, 3):
        logits = np.concatenate([batch[part].ravel() for batch in batches]).take(source, mode="clip")
        np.copyto(logits, MASKED, where=outside)
        gathered.append(logits)
    return gathered
