"""Distributed training: several processes, started by `torchrun` or `accelerate launch`, on one host or several.

Each process runs the same `qabuild` command. Rank 0 builds, and announces every training to the other ranks, which join
it; it does everything else alone. The hosts must share the folders of the checkpoints and of the cache (QABUILD_CACHE).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from qabuild.errors import MissingEnvironment
from qabuild.system.environment import integer
from qabuild.system.process import run_in_child

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables that a launcher sets for its processes, beside TORCHELASTIC_*."""
LAUNCH = "start it with torchrun or accelerate launch; or unset RANK and WORLD_SIZE, for one process"
PATIENCE = timedelta(days=30)
"""How long the other ranks wait for the next training."""


class Ranks:
    """The rank of this process and the number of processes, from the launcher's environment variables.

    Raises MissingEnvironment where these are incomplete or contradict each other.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self.rank = integer("RANK", 0, environment)
        self.count = integer("WORLD_SIZE", 1, environment, least=1)
        self._announced = 0
        if self.rank >= self.count:
            raise MissingEnvironment(f"RANK is {self.rank}, and WORLD_SIZE {self.count}", LAUNCH)
        if self.count > 1:
            integer("MASTER_PORT", 0, environment, least=1)
            if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]:
                raise MissingEnvironment(f"WORLD_SIZE is {self.count}, and {' and '.join(missing)} not set", LAUNCH)

    def announce(self, request: Mapping[str, Any] | None) -> dict[str, str]:
        """Announce a training to the other ranks, or with None the end.

        Returns the environment variables of this rank's training subprocess; empty without other ranks.
        """
        if self.count == 1:
            return {}
        message = {"request": request, "port": _free_port()}
        self._store.set(self._next(), json.dumps(message))
        return self._rendezvous(message)

    def follow(self) -> None:
        """Join every training that rank 0 announces, until the end."""
        while True:
            message = json.loads(self._store.get(self._next()))
            request = message["request"]
            if request is None:
                return
            run_in_child(
                "qabuild.models.training",
                request,
                Path(request["directory"]),
                "the training",
                environment=self._rendezvous(message),
            )

    def _next(self) -> str:
        self._announced += 1
        return f"qabuild/{self._announced}"

    def _rendezvous(self, message: Mapping[str, Any]) -> dict[str, str]:
        """A training's environment, with a store of its own, served by rank 0: stale keys would mislead the next."""
        store = {"MASTER_PORT": str(message["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        return {**self._environment, **store}

    @cached_property
    def _store(self) -> Any:
        from torch.distributed import TCPStore

        host, port = self._environment["MASTER_ADDR"], int(self._environment["MASTER_PORT"])
        return TCPStore(host, port, is_master=False, timeout=PATIENCE)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


@cache
def current() -> Ranks:
    """The rank of this process. The first call removes the launcher's variables from the environment.

    A library that finds them would wait for processes that never join.
    """
    names = [name for name in os.environ if name in VARIABLES or name.startswith("TORCHELASTIC_")]
    return Ranks({name: os.environ.pop(name) for name in names})
