"""A worker process that answers questions with one artifact: `python -m qabuild.evaluation.compare.worker`.

The first request names the artifact and holds all questions; each later one states which of them to answer, and the
batch size. The protocol is that of `qabuild.system.process`.
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
"""One call of the model: windows, tokens of each window, seconds."""


def main() -> None:
    """Answer requests from stdin until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process group; the parent kills this process
    artifact: LoadedArtifact | None = None

    def work(request: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
        nonlocal artifact
        if artifact is None:
            artifact = LoadedArtifact(**request)
            return {"load_seconds": artifact.load_seconds}
        return artifact.answer(**request)

    serve(work)


class LoadedArtifact:
    """A loaded artifact and the questions to answer: dictionaries with `question` and `context`."""

    def __init__(
        self, artifact: str, digest: str, allow_native: bool, squad_v2: bool, questions: Sequence[Mapping[str, str]]
    ) -> None:
        started = time.perf_counter()
        from qabuild.artifact.load import load_model
        from qabuild.artifact.manifest import open_artifact
        from qabuild.qa.pipeline import QuestionAnsweringPipeline

        opened = open_artifact(Path(artifact), digest)
        # The audit reports an artifact that failed its verification; others were refused before.
        model, tokenizer = load_model(opened, allow_native=allow_native, allow_unverified=True)
        self.load_seconds = time.perf_counter() - started
        self._model = _TimedModel(model)
        parameters = {"handle_impossible_answer": squad_v2, **opened.manifest.parameters}
        self._pipeline = QuestionAnsweringPipeline(self._model, tokenizer, **parameters)
        self._questions = questions

    def answer(self, start: int, stop: int, batch_size: int | None, one_by_one: bool) -> dict[str, Any]:
        """Answer questions `start` to `stop` in one call of the pipeline, or with one call for each.

        Returns the fields of a Turn: text, begin and end (characters of the context) of each answer, the seconds of
        each call of the pipeline, the calls of the model, and the peak memory of this process so far, in bytes.
        """
        questions = self._questions[start:stop]
        answers: list[tuple[str, int, int]] = []
        seconds: list[float] = []
        for batch in [[question] for question in questions] if one_by_one else [questions]:
            started = time.perf_counter()
            results: Any = self._pipeline(batch, batch_size=batch_size)
            seconds.append(time.perf_counter() - started)
            # The result of a single question is not in a list. Where no span is left, as with NaN logits, it is an
            # empty list.
            results = results if len(batch) > 1 else [results]
            answers += [
                (result["answer"], result["start"], result["end"]) if result else ("", 0, 0) for result in results
            ]
        calls = self._model.take_calls()
        return {"answers": answers, "seconds": seconds, "calls": calls, "peak_memory": peak_memory()}


class _TimedModel:
    """A model that records the shape and duration of each call; on a GPU, without synchronising after each."""

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
        start = _timestamp(on_gpu)
        output = self._model(**inputs)
        self._calls.append((windows, tokens, start, _timestamp(on_gpu)))
        return output

    def _submit(self, **inputs: Any) -> _TimedFuture:
        windows, tokens = inputs["input_ids"].shape
        started = time.perf_counter()
        record = lambda seconds: self._submitted.append((windows, tokens, started, started + seconds))  # noqa: E731
        return _TimedFuture(self._model.submit(**inputs), record)

    def take_calls(self) -> list[Call]:
        """The calls since the last `take_calls`, which it forgets."""
        calls, self._calls = self._calls, []
        submitted, self._submitted = self._submitted, []
        durations = time_shares([call[2:] for call in submitted], self._model.at_once) if submitted else []
        return [
            *((windows, tokens, _elapsed(start, end)) for windows, tokens, start, end in calls),
            *(
                (windows, tokens, duration)
                for (windows, tokens, _, _), duration in zip(submitted, durations, strict=True)
            ),
        ]


class _TimedFuture:
    """A future that passes the call's duration in seconds to `record` when it is done."""

    def __init__(self, future: Any, record: Callable[[float], None]) -> None:
        self._future, self._record = future, record

    def result(self) -> Any:
        output = self._future.result()
        self._record(self._future.seconds)
        return output


def time_shares(spans: Sequence[tuple[float, float]], at_once: int) -> list[float]:
    """Seconds of each call, where up to `at_once` calls run concurrently; the sum is the time in which any call ran.

    `spans` are submission and end of each call, in order of submission. A call that has to wait starts when an earlier
    one ends. The time in which any call ran is divided in proportion to the calls' running times.
    """
    ends: list[float] = []  # a heap: the end of the last call in each of the `at_once` slots
    durations = []
    for start, end in spans:
        begin = max(start, heapq.heappop(ends)) if len(ends) == at_once else start
        heapq.heappush(ends, end)
        durations.append(end - begin)
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return [total / sum(durations) * duration for duration in durations]


def _timestamp(on_gpu: bool) -> Any:
    """The present time, or a CUDA event in the GPU's stream."""
    if not on_gpu:
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _elapsed(start: Any, end: Any) -> float:
    """Seconds between two timestamps."""
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def peak_memory() -> int:
    """Peak resident memory (RSS) of this process, in bytes; 0 if the system does not report it.

    Not from `getrusage`, whose ru_maxrss starts at the parent's memory when it started this process.
    """
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(peak[1]) * 1024 if peak else 0


if __name__ == "__main__":
    main()
