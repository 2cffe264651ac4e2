"""Counts and durations, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
QUESTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("qabuild_requests", "Requests.", ["path", "status"], registry=self._registry)
        self._seconds = Histogram(
            "qabuild_request_seconds", "Duration of requests.", ["path"], buckets=SECONDS, registry=self._registry
        )
        self._questions = Counter("qabuild_questions", "Questions answered.", ["model"], registry=self._registry)
        self._batches = Histogram(
            "qabuild_batch_questions", "Questions of a batch.", ["model"], buckets=QUESTIONS, registry=self._registry
        )
        self._queue = Gauge("qabuild_queue_questions", "Questions that wait.", ["model"], registry=self._registry)

    def add_request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def add_batch(self, model: str, questions: int) -> None:
        self._questions.labels(model).inc(questions)
        self._batches.labels(model).observe(questions)

    def watch_queue(self, model: str, length: Callable[[], int]) -> None:
        """Report what `length` returns as the number of questions that wait for the model."""
        self._queue.labels(model).set_function(length)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their media type, in the format that the header `Accept` asks for."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type
