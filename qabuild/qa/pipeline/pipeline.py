"""The question-answering pipeline: calls in, results out."""

from __future__ import annotations

import bisect
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from qabuild.qa.model_inputs import input_names, signature
from qabuild.qa.padding import is_paddable
from qabuild.qa.pipeline import inputs
from qabuild.qa.pipeline.decode import Decoder, Spans
from qabuild.qa.pipeline.device import device_of, moved
from qabuild.qa.pipeline.inputs import Pair
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.qa.pipeline.results import Result, results
from qabuild.qa.pipeline.windows import Cut, WindowMaker, Windows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

Item = TypeVar("Item")

IGNORED = (
    *("args_parser", "binary_output", "dtype", "feature_extractor", "image_processor", "model_kwargs", "num_workers"),
    *("processor", "torch_dtype", "trust_remote_code", "use_fast"),
)
"""Parameters of the stock pipeline's constructor that have no effect here, and few there."""

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
"""Windows of paddable models are padded to multiples of this many tokens: few shapes, and lengths that suit attention
kernels."""
CPU_TOKENS, GPU_TOKENS = 1536, 16384
"""Tokens of a batch. On a CPU eight windows of SQuAD's usual length, as the stock pipeline has at batch size 8: batches
of 8,000 tokens outgrow the cache of some CPUs, and are slower there than those of 1,000."""


class QuestionAnsweringPipeline:
    """Answers questions from their contexts with any extractive model; a drop-in for transformers' pipeline.

    `model` is called with those of `input_ids`, `attention_mask` and `token_type_ids` that it takes and the tokenizer
    names (int64 [batch, sequence], on the model's device), and returns `start_logits` and `end_logits` [batch,
    sequence]. The tokenizer is a fast one. `device` (a name, a torch.device or the number of an accelerator) moves the
    model first; without it, or with -1, the model stays where it is. What else the stock pipeline's constructor takes
    has no effect; a warning says so.

    A model may have a method `submit` as well, which takes the same, returns before it is computed, and can be called
    again meanwhile; what it returns has a method `result`, which waits for the output. Its `at_once` is the number of
    batches that it computes concurrently: windows are divided among so many.

    A pipeline can be pickled and copied where its model can.

    Every parameter can be set here for all calls or in a call:

    - `top_k` (1): answers to return, best first. One answer comes as a dictionary, several as a list of them.
    - `doc_stride` (half of `max_seq_len`, 128 at most): tokens that two windows of a long context share.
    - `max_answer_len` (15): tokens of an answer, at most.
    - `max_seq_len` (what the model reads, 384 at most): tokens of a window: question, context and special tokens.
    - `max_question_len` (all if question and context fit one window, else 7/8 of `max_seq_len` less special tokens and
      `doc_stride`): tokens of the question that are read. The results of a question that was truncated have
      `question_truncated`, which is True.
    - `handle_impossible_answer` (False): let the empty answer compete, with the score of the CLS token in the window
      where it is lowest.
    - `align_to_words` (True): let answers begin and end with a word, as the tokenizer splits text. In scripts without
      spaces between words, such as Chinese, Japanese and Thai, its words are whole sentences: with "auto", a token that
      holds a character of such a script is a word by itself.
    - `batch_size`: windows of a batch; without it, up to as many as make up `batch_tokens` tokens. With 1, no window is
      padded and a stream is not read ahead. A model whose logits padding changes gets no padding with any: its batches
      hold windows of one length. Model types not known to ignore padding (`qabuild.qa.padding`) count as such.
    - `normalize` ("window"): "window" makes the scores of each window sum up to 1, as the stock pipeline does, so
      that a window without the answer can win; "context" does so over all windows of a context, so that the highest
      logits win, and counts an answer that several windows find once. So does "none", whose scores are no
      probabilities but e to the power of the span's two logits: they can be compared between contexts.
    - `padding`: "max_length" pads every window to `max_seq_len`.
    - `num_workers` has no effect: there are no worker processes.

    A call takes `question=` and `context=` (strings, or lists of the same length, or a list of questions and one
    context), a dictionary with these keys, a list of such dictionaries, or a generator or torch Dataset of them. The
    latter two give an iterator that holds some hundred questions at a time, on a GPU some thousand; a Dataset's has its
    length. A result is a dictionary: `score`, `start` and `end` (characters of the context), and `answer`.
    """

    task = "question-answering"
    digest: str | None = None
    """Of the manifest of the artifact that `qabuild.load` loaded; None for a pipeline made otherwise."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        modelcard: Any = None,
        framework: str | None = None,
        task: str = "",
        *,
        device: Any = None,
        **parameters: Any,
    ) -> None:
        ignored = {name: parameters.pop(name, None) for name in IGNORED} | {"modelcard": modelcard}
        ignored |= {"framework": framework} if framework != "pt" else {}
        ignored |= {"task": task} if task != self.task else {}
        if without_effect := sorted(name for name, value in ignored.items() if value):
            warnings.warn(f"without effect in this pipeline: {', '.join(without_effect)}", UserWarning, stacklevel=2)
        if not callable(model):
            raise TypeError(
                f"model is {model!r}, not a model: load one with AutoModelForQuestionAnswering.from_pretrained, or an "
                "artifact with qabuild.load"
            )
        self.model = model if device is None else moved(model, device)
        self.tokenizer = tokenizer
        self._parameters = Parameters().updated(
            parameters, others=(*IGNORED, "device", "framework", "modelcard", "task")
        )
        self._make_windows = WindowMaker(tokenizer)
        self._names = input_names(model, tokenizer)
        self._extra = {"use_cache": False} if "use_cache" in signature(model) else {}
        self._is_paddable = is_paddable(model)
        self._submit = getattr(model, "submit", None)
        self._concurrent: int = getattr(model, "at_once", 1) if self._submit else 1

    def __call__(self, *args: Any, **named: Any) -> Result | list[Result] | list[Any] | Iterator[Any]:
        """Answer questions; the class describes the forms of a call.

        Raises ValueError, KeyError or TypeError for invalid arguments or parameters.
        """
        call = inputs.read(args, named)
        parameters = self._parameters.updated({key: value for key, value in named.items() if key not in inputs.FORMS})
        parameters.check(self.tokenizer.model_max_length)
        cut = parameters.cut(self.tokenizer)
        at_once = self._at_once(parameters, call.shape == "stream")
        if isinstance(call.pairs, inputs.DatasetPairs):
            return DatasetResults(call.pairs, lambda pairs: self._answer(pairs, parameters, cut, at_once))
        answers = self._answer(call.pairs, parameters, cut, at_once)
        if call.shape == "stream":
            return answers
        return next(answers) if call.shape == "one" else list(answers)

    def check(self, **named: Any) -> None:
        """Raise ValueError or TypeError if no call can have these parameters, for this model's tokenizer."""
        parameters = self._parameters.updated(named)
        parameters.check(self.tokenizer.model_max_length)
        self._make_windows.check(parameters.cut(self.tokenizer))

    def transform(self, X: Any) -> Any:
        """Answer questions, as a call does: scikit-learn's name for it."""
        return self(X)

    def predict(self, X: Any) -> Any:
        """Answer questions, as a call does: scikit-learn's name for it."""
        return self(X)

    @property
    def device(self) -> Any:
        """The model's device."""
        return device_of(self.model)

    @property
    def dtype(self) -> Any:
        """The model's dtype; None if it states none."""
        return getattr(self.model, "dtype", None)

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
            groups = _groups(windows, parameters, cut, device, self._is_paddable, self._concurrent)
            alone = len(groups) == 1 and len(windows) <= groups[0][2]
            for rows, length, count in groups:
                tensors = self._tensors(windows.arrays(rows, length, self._names), device)
                batches = zip(*(tensor.split(count) for tensor in tensors.values()), strict=True)
                place = windows.place(rows, length)
                for start, batch in zip(range(0, len(rows), count), batches, strict=True):
                    output = self._send(dict(zip(tensors, batch, strict=True)), device, alone=alone)
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


class DatasetResults(Iterator[Any]):
    """The results of a torch Dataset, computed as they are read. `iter` begins anew, and `len` is the Dataset's."""

    def __init__(self, pairs: inputs.DatasetPairs, answer: Callable[[Iterable[Pair]], Iterator[Any]]) -> None:
        self._pairs, self._answer = pairs, answer
        self._results = answer(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> DatasetResults:
        self._results = self._answer(self._pairs)
        return self

    def __next__(self) -> Any:
        return next(self._results)


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


def _groups(
    windows: Windows, parameters: Parameters, cut: Cut, device: Any, is_paddable: bool, concurrent: int
) -> list[tuple[Integers, int, int]]:
    """Groups of windows whose arrays are built together, the length to pad them to, and the batch size.

    Long windows come first, and shorter ones fill up their last batch, so that all batches of a length except the
    very last have the same shape. Of a model that is not paddable, all windows of a batch have its length. Of one that
    computes so many batches `concurrent`ly, the batches are about equal.
    """
    import numpy as np

    tokens = parameters.batch_tokens or (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)
    lengths = _lengths(windows, parameters, cut, is_paddable)
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    if is_paddable and not parameters.batch_size and len(order) >= concurrent > 1:
        tokens = even_tokens(lengths.tolist(), tokens, concurrent)
    groups = []
    start = 0
    while start < len(order):
        length = int(lengths[start])
        count = parameters.batch_size or max(1, tokens // length)
        same_length = int(np.searchsorted(-lengths, -length, side="right")) - start
        size = count * min(-(-same_length // count), max(1, WINDOWS_AT_ONCE // count))
        stop = start + (size if is_paddable else min(size, same_length))
        groups.append((order[start:stop], length, count))
        start = stop
    return groups


def even_tokens(lengths: Sequence[int], tokens: int, concurrent: int) -> int:
    """The fewest tokens of a batch that make as many batches as `tokens` do, rounded up to a multiple of `concurrent`.

    So no core waits long for the last batch. `lengths` are those of the windows, long ones first.
    """

    def batches(tokens: int) -> int:
        start = count = 0
        while start < len(lengths):
            start += max(1, tokens // lengths[start])
            count += 1
        return count

    most = -(-batches(tokens) // concurrent) * concurrent
    return bisect.bisect_left(range(tokens), True, key=lambda fewer: batches(fewer) <= most)


def _lengths(windows: Windows, parameters: Parameters, cut: Cut, is_paddable: bool) -> Integers:
    """[windows]: the lengths to pad to. Of a model that is not paddable, only those that `padding` asks for."""
    import numpy as np

    if parameters.padding == "max_length":
        return np.full(len(windows), cut.max_seq_len)
    if is_paddable and parameters.batch_size != 1:
        return np.minimum(-(-windows.length // LENGTH_STEP) * LENGTH_STEP, cut.max_seq_len)
    if parameters.padding in (True, "longest"):  # the longest window of a context, as in the stock pipeline
        firsts = np.flatnonzero(np.diff(windows.pair, prepend=-1))
        return np.maximum.reduceat(windows.length, firsts)[windows.pair]
    return windows.length
