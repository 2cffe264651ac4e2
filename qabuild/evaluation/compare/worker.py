"""One artifact in a process of its own: `python -m qabuild.evaluation.compare.worker`.

The first request names the artifact and holds all questions; each later one says which of them to answer, and in
batches of what size. See `qabuild.system.process`.
"""

from __future__ import annotations

import heapq
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qabuild.system.process import Tell, serve

Call = tuple[int, int, float]
"""Windows, tokens of each, seconds: one call of the model."""


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends this one
    loaded: Loaded | None = None

    def work(request: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
        nonlocal loaded
        if loaded is None:
            loaded = Loaded(**request)
            return {"load_seconds": loaded.seconds}
        return loaded.ask(**request)

    serve(work)


class Loaded:
    """A loaded artifact and the questions that it may be asked: dictionaries with `question` and `context`."""

    def __init__(self, artifact: str, digest: str, squad_v2: bool, questions: Sequence[Mapping[str, str]]) -> None:
        started = time.perf_counter()
        from qabuild.artifact.load import load_model
        from qabuild.artifact.manifest import open_artifact
        from qabuild.qa.pipeline import QuestionAnsweringPipeline

        model, tokenizer = load_model(open_artifact(Path(artifact), digest))
        self.seconds = time.perf_counter() - started
        self._model = _Timed(model)
        self._pipeline = QuestionAnsweringPipeline(self._model, tokenizer, handle_impossible_answer=squad_v2)
        self._questions = questions

    def ask(self, start: int, stop: int, batch_size: int | None, one_by_one: bool) -> dict[str, Any]:
        """Answer questions `start` to `stop`, all in one call of the pipeline or each in one of its own.

        Replies with answer, begin and end (characters of the context) of each, the seconds of each call of the
        pipeline, the calls of the model, and the most memory that this process has held so far, in bytes.
        """
        questions = self._questions[start:stop]
        answers: list[tuple[str, int, int]] = []
        seconds: list[float] = []
        for together in [[question] for question in questions] if one_by_one else [questions]:
            started = time.perf_counter()
            results: Any = self._pipeline(together, batch_size=batch_size)
            seconds.append(time.perf_counter() - started)
            # The result of a single question is not in a list. Where no span is left, as with logits that are not
            # numbers, it is an empty list.
            each = results if len(together) > 1 else [results]
            answers += [(found["answer"], found["start"], found["end"]) if found else ("", 0, 0) for found in each]
        calls = self._model.take_calls()
        return {"answers": answers, "seconds": seconds, "calls": calls, "peak_memory": peak_memory()}


class _Timed:
    """A model that notes the shape and duration of each of its calls; on a GPU without waiting for it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._calls: list[tuple[int, int, Any, Any]] = []
        self._submitted: list[tuple[int, int, float, float]] = []
        if hasattr(model, "submit"):
            self.submit = self._submit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        windows, tokens = inputs["input_ids"].shape
        on_gpu = inputs["input_ids"].is_cuda
        started = _mark(on_gpu)
        output = self._model(**inputs)
        self._calls.append((windows, tokens, started, _mark(on_gpu)))
        return output

    def _submit(self, **inputs: Any) -> _Promise:
        windows, tokens = inputs["input_ids"].shape
        started = time.perf_counter()
        note = lambda seconds: self._submitted.append((windows, tokens, started, started + seconds))  # noqa: E731
        return _Promise(self._model.submit(**inputs), note)

    def take_calls(self) -> list[Call]:
        """The calls since this was last asked."""
        calls, self._calls = self._calls, []
        submitted, self._submitted = self._submitted, []
        times = shares([call[2:] for call in submitted], self._model.at_once) if submitted else []
        return [
            *((windows, tokens, _between(start, end)) for windows, tokens, start, end in calls),
            *((windows, tokens, spent) for (windows, tokens, _, _), spent in zip(submitted, times, strict=True)),
        ]


class _Promise:
    """A call under way."""

    def __init__(self, promise: Any, ended: Callable[[float], None]) -> None:
        self._promise, self._ended = promise, ended

    def result(self) -> Any:
        output = self._promise.result()
        self._ended(self._promise.seconds)
        return output


def shares(spans: Sequence[tuple[float, float]], at_once: int) -> list[float]:
    """What each of some calls took of the time of all, where `at_once` are computed at the same time; in seconds.

    `spans` are start and end of each, in the order in which they were started. One that waits begins when one before
    it ends. The sum is the time in which any was under way.
    """
    ends: list[float] = []  # of those that begin last in each place, a heap
    spent = []
    for start, end in spans:
        begin = max(start, heapq.heappop(ends)) if len(ends) == at_once else start
        heapq.heappush(ends, end)
        spent.append(end - begin)
    whole, until = 0.0, float("-inf")
    for start, end in spans:
        whole += max(0.0, end - max(start, until))
        until = max(until, end)
    return [whole / sum(spent) * each for each in spent]


def _mark(on_gpu: bool) -> Any:
    """This moment, or that in the GPU's queue of work."""
    if not on_gpu:
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    """Seconds from one mark to the other."""
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def peak_memory() -> int:
    """The most memory that this process has held, in bytes.

    Not `getrusage`: its ru_maxrss begins with what the parent held when it started this process.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
