"""Connection to a Ray cluster, and the resources of workers on it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from qabuild.errors import MissingEnvironment, QABuildError

LOCAL = "local"
OBJECT_STORE_BYTES = 100 << 20
"""Shared memory of a Ray that is started here: nothing large passes through it."""
OF_THE_CLUSTER = (
    "the versions of Ray and Python here must be those of the cluster; if it has a token, set RAY_AUTH_MODE=token here"
)
CONNECT_SECONDS = 10.0


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address`, or at RAY_ADDRESS, or to one that is started here.

    Raises QABuildError where no cluster answers.
    """
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    _require_answer(address)
    import ray

    # Ray tells about dead workers on stdout, whatever its log level.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            _connect(ray, address)
            yield ray
        finally:
            ray.shutdown()


def get(ray: Any, result: Any) -> Any:
    """What a worker returned; raises what it raised, if a user can mend that, else Ray's error with its traceback.

    Raises RayError where the worker died.
    """
    from ray.exceptions import RayTaskError

    try:
        return ray.get(result)
    except RayTaskError as error:
        if isinstance(error.cause, (QABuildError, OSError, MemoryError)):
            raise error.cause from error
        raise RuntimeError("a worker of Ray failed") from error


def _connect(ray: Any, address: str) -> None:
    is_local = address == LOCAL
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if is_local else {}
    try:
        with _same_signals():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray has no class of its own for these, and raises Exception for a slow start
        raise QABuildError(
            f"{address}: Ray cannot be {'started' if is_local else 'reached'}: {' '.join(str(error).split())}",
            "-v shows more" if is_local else f"{OF_THE_CLUSTER}; -v shows more",
        ) from error


def _require_answer(address: str) -> None:
    """Raise QABuildError if nothing listens at HOST:PORT, for which Ray would wait a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "local" or "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise QABuildError(
            f"{address}: no Ray cluster answers there ({error})",
            "start one with `ray start --head`, or correct --address; without it, Ray is started on this machine",
        ) from error


@contextmanager
def _same_signals() -> Iterator[None]:
    """Restore the handlers of signals at the end of the block; Ray replaces that of SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def resources(
    nodes: Sequence[Mapping[str, Any]], workers: int | None, gpus_per_worker: float
) -> tuple[int, dict[str, Any]]:
    """How many workers to start on these nodes, as `ray.nodes()` describes them, and Ray's options of each.

    A worker gets as many CPUs as leave enough for the others. Raises MissingEnvironment if no number is given and
    none can start.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    fitting = [node for node in alive if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus_per_worker]
    if not fitting and not workers:
        need = f"{gpus_per_worker:g} GPU and 1 CPU" if gpus_per_worker else "a CPU"
        raise MissingEnvironment(
            f"no node of the Ray cluster has {need}", "name --workers to wait for nodes that start later"
        )
    count = workers or (
        sum(int(node["GPU"] // gpus_per_worker) for node in fitting) if gpus_per_worker else len(fitting)
    )
    most = max((int(node["CPU"]) for node in fitting), default=1)
    enough = (cpus for cpus in range(most, 0, -1) if sum(node["CPU"] // cpus for node in fitting) >= count)
    return count, {
        "num_cpus": next(enough, 1),
        "num_gpus": gpus_per_worker,
        "scheduling_strategy": "SPREAD",
        "max_restarts": 0,
        "max_task_retries": 0,
    }
