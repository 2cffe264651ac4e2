"""The question-answering pipeline: calls in, results out."""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from qabuild.qa.pipeline import inputs
from qabuild.qa.pipeline.decode import Decoder, Spans
from qabuild.qa.pipeline.inputs import Pair
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.qa.pipeline.results import Result, results
from qabuild.qa.pipeline.windows import Cut, WindowMaker, Windows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

Item = TypeVar("Item")

MAX_CHARACTERS_AT_ONCE = 1 << 22
"""Characters of contexts, counted for each question, tokenised and answered together."""
AT_ONCE = 4096
"""Questions tokenised, sorted by length and answered together: the more, the less each costs."""
AT_ONCE_ASYNCHRONOUS = 1024
"""The same for asynchronous models: the next questions are tokenised while the model computes."""
STREAM_ON_CPU = 256
"""The same for streams on a CPU, which takes seconds for so many: answers come often, and an interruption loses few."""
WINDOWS_AT_ONCE = 256
"""Windows of similar length whose arrays are built together, even if a batch is smaller."""
LENGTH_STEP = 16
"""Windows are padded to multiples of this many tokens: few shapes, and lengths that suit attention kernels."""
CPU_TOKENS, GPU_TOKENS = 1536, 16384
"""Tokens of a batch. On a CPU eight windows of SQuAD's usual length, as the stock pipeline has at batch size 8: batches
of 8,000 tokens outgrow the cache of some CPUs, and are slower there than those of 1,000."""


class QuestionAnsweringPipeline:
    """Answers questions from their contexts with any extractive model; a drop-in for transformers' pipeline.

    `model` is called with those of `input_ids`, `attention_mask` and `token_type_ids` that the tokenizer names (int64
    [batch, sequence], on the model's device), and returns `start_logits` and `end_logits` [batch, sequence]. The
    tokenizer is a fast one.

    A model may have a method `submit` as well, which takes the same, returns before it is computed, and can be called
    again meanwhile; what it returns has a method `result`, which waits for the output.

    Every parameter can be set here for all calls or in a call:

    - `top_k` (1): answers to return, best first. One answer comes as a dictionary, several as a list of them.
    - `doc_stride` (half of `max_seq_len`, 128 at most): tokens that two windows of a long context share.
    - `max_answer_len` (15): tokens of an answer, at most.
    - `max_seq_len` (what the model reads, 384 at most): tokens of a window: question, context and special tokens.
    - `max_question_len` (64): tokens of the question that are read.
    - `handle_impossible_answer` (False): let the empty answer compete, with the score of the CLS token in the window
      where it is lowest.
    - `align_to_words` (True): let answers begin and end with a word.
    - `batch_size`: windows of a batch; without it, as many as make up `batch_tokens` tokens. With 1, no window is
      padded and a stream is not read ahead.
    - `normalize` ("window"): "window" makes the scores of each window sum up to 1, as the stock pipeline does, so
      that a window without the answer can win; "context" does so over all windows of a context, so that the highest
      logits win, and counts an answer that several windows find once.
    - `padding`: "max_length" pads every window to `max_seq_len`.

    A call takes `question=` and `context=` (strings, or lists of the same length, or a list of questions and one
    context), a dictionary with these keys, a list of such dictionaries, or a generator or torch Dataset of them. The
    latter two give an iterator that holds some hundred questions at a time, on a GPU some thousand. A result is a
    dictionary: `score`, `start` and `end` (characters of the context), and `answer`.
    """

    task = "question-answering"

    def __init__(self, model: Any, tokenizer: Any, **parameters: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._parameters = Parameters().updated(parameters)
        self._make_windows = WindowMaker(tokenizer)
        self._names = [
            name
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in tokenizer.model_input_names or name == "attention_mask"
        ]
        self._extra = {"use_cache": False} if _takes(model, "use_cache") else {}
        self._submit = getattr(model, "submit", None)

    def __call__(self, *args: Any, **named: Any) -> Result | list[Result] | list[Any] | Iterator[Any]:
        """Answer questions; the class describes the forms of a call.

        Raises ValueError, KeyError or TypeError for invalid arguments or parameters.
        """
        call = inputs.read(args, named)
        parameters = self._parameters.updated({key: value for key, value in named.items() if key not in inputs.FORMS})
        cut = parameters.cut(self.tokenizer)
        answers = self._answer(call.pairs, parameters, cut, self._at_once(parameters, call.shape == "stream"))
        if call.shape == "stream":
            return answers
        return next(answers) if call.shape == "one" else list(answers)

    @property
    def device(self) -> Any:
        """The model's device."""
        import torch

        device = getattr(self.model, "device", None)
        if device is None and hasattr(self.model, "parameters"):
            device = next((weight.device for weight in self.model.parameters()), None)
        return torch.device("cpu" if device is None else device)

    @property
    def _is_asynchronous(self) -> bool:
        """Whether calls return before the model has computed, as on a GPU or with `submit`."""
        return bool(self.device.type == "cuda" or self._submit)

    def _at_once(self, parameters: Parameters, stream: bool) -> int:
        """How many questions are answered together; a stream is read that far ahead."""
        if stream and parameters.batch_size == 1:
            return 1
        if stream and self.device.type == "cpu":
            return parameters.questions_at_once(STREAM_ON_CPU)
        return parameters.questions_at_once(AT_ONCE_ASYNCHRONOUS if self._is_asynchronous else AT_ONCE)

    def _answer(
        self, pairs: Iterable[Pair], parameters: Parameters, cut: Cut, at_once: int
    ) -> Iterator[Result | list[Result]]:
        """The results in order. For an asynchronous model, the next questions are tokenised and sent before the results
        of the previous ones are awaited."""
        device = self.device
        chunks = _chunks(pairs, at_once)
        if not self._is_asynchronous or at_once == 1:
            for chunk in chunks:
                windows = self._make_windows(chunk, cut)
                yield from results(chunk, windows, self._run(windows, parameters, cut, device).finish(), parameters)
            return
        with ThreadPoolExecutor(max_workers=1) as pool:
            tokenised = _one_behind((chunk, pool.submit(self._make_windows, chunk, cut)) for chunk in chunks)
            windowed = ((chunk, windows.result()) for chunk, windows in tokenised)
            running = ((chunk, windows, self._run(windows, parameters, cut, device)) for chunk, windows in windowed)
            for chunk, windows, outputs in _one_behind(running):
                yield from results(chunk, windows, outputs.finish(), parameters)

    def _run(self, windows: Windows, parameters: Parameters, cut: Cut, device: Any) -> _Outputs:
        """Run the model on all windows, long ones first."""
        import torch

        outputs = _Outputs(Decoder(windows, parameters.n_best, parameters.max_answer_len))
        with torch.inference_mode():
            for rows, length, count in _groups(windows.length, parameters, cut, device):
                tensors = self._tensors(windows.arrays(rows, length, self._names), device)
                batches = zip(*(tensor.split(count) for tensor in tensors.values()), strict=True)
                place = windows.place(rows, length)
                for start, batch in zip(range(0, len(rows), count), batches, strict=True):
                    output = self._send(dict(zip(tensors, batch, strict=True)), device, alone=len(windows) <= count)
                    outputs.add(rows[start : start + count], place[:, start : start + count], output)
        return outputs

    def _tensors(self, arrays: Mapping[str, Integers], device: Any) -> dict[str, Any]:
        """The arrays as tensors; for a GPU in pinned memory, which it copies asynchronously."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if device.type == "cuda" else tensors

    def _send(self, tensors: Mapping[str, Any], device: Any, *, alone: bool) -> Any:
        """The model's output, or the future that its `submit` returns; a batch that is `alone` is not submitted."""
        if self._submit and not alone:
            return self._submit(**tensors)
        if device.type != "cpu":
            tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return self.model(**tensors, **self._extra)


class _Outputs:
    """The outputs of batches: those at hand are searched at once, futures in `finish`."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._futures: deque[tuple[Integers, Integers, Any]] = deque()

    def add(self, rows: Integers, place: Integers, output: Any) -> None:
        """Add the output of the windows `rows`, or a future whose `result()` waits for it."""
        if hasattr(output, "result"):
            self._futures.append((rows, place, output))
        else:
            self._decoder.add(rows, place, *_logits(output))

    def finish(self) -> Spans:
        """The spans of all windows."""
        while self._futures:
            rows, place, future = self._futures.popleft()
            self._decoder.add(rows, place, *_logits(future.result()))
        return self._decoder.finish()


def _logits(output: Any) -> tuple[Any, Any]:
    if hasattr(output, "start_logits"):
        return output.start_logits, output.end_logits
    return (output["start_logits"], output["end_logits"]) if isinstance(output, Mapping) else output[:2]


def _takes(model: Any, name: str) -> bool:
    try:
        return name in inspect.signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):  # compiled code has no signature
        return False


def _chunks(pairs: Iterable[Pair], at_once: int) -> Iterator[list[Pair]]:
    """Pairs in lists of up to `at_once` pairs and `MAX_CHARACTERS_AT_ONCE` characters.

    If the source raises, the pairs read before are yielded first.
    """
    chunk: list[Pair] = []
    characters = 0
    try:
        for pair in pairs:
            chunk.append(pair)
            characters += len(pair[1])
            if len(chunk) >= at_once or characters >= MAX_CHARACTERS_AT_ONCE:
                yield chunk
                chunk, characters = [], 0
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after the next one was created, so that the two overlap."""
    source = iter(items)
    pending = list(itertools.islice(source, 1))
    try:
        for item in source:
            yield pending.pop()
            pending.append(item)
    except Exception:
        yield from pending
        raise
    yield from pending


def _groups(lengths: Integers, parameters: Parameters, cut: Cut, device: Any) -> Iterator[tuple[Integers, int, int]]:
    """Groups of windows whose arrays are built together, the length to pad them to, and the batch size.

    Long windows come first, and shorter ones fill up their last batch, so that all batches of a length except the
    very last have the same shape.
    """
    import numpy as np

    tokens = parameters.batch_tokens or (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)
    step = 1 if parameters.batch_size == 1 else LENGTH_STEP
    order = np.argsort(-lengths, kind="stable")
    padded = np.minimum(-(-lengths[order] // step) * step, cut.max_seq_len)
    if parameters.padding == "max_length":
        padded[:] = cut.max_seq_len
    start = 0
    while start < len(order):
        length = int(padded[start])
        count = parameters.batch_size or max(1, tokens // length)
        same_length = int(np.searchsorted(-padded, -length, side="right")) - start
        stop = start + count * min(-(-same_length // count), max(1, WINDOWS_AT_ONCE // count))
        yield order[start:stop], length, count
        start = stop
