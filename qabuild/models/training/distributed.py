"""Several processes for one training, as `torchrun` or `accelerate launch` start them, on one host or several.

Each of them runs the same `qabuild` command. The first builds, and tells the others of every training, in which they
take part; all else it does alone. The hosts share the folders of the checkpoints and of the results (QABUILD_CACHE).
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

from qabuild.system.process import run_in_child

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells its processes; TORCHELASTIC_* say more."""
PATIENCE = timedelta(days=30)
"""How long the others wait for the next training."""


class Ranks:
    """This process among those of the launcher, by its environment variables."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self.rank = int(environment.get("RANK", "0"))
        self.count = int(environment.get("WORLD_SIZE", "1"))
        self._told = 0

    def announce(self, request: Mapping[str, Any] | None) -> dict[str, str]:
        """Tell the others of a training, or with None that there will be no more.

        Returns the variables for the process by which this one takes part: none where there are no others.
        """
        if self.count == 1:
            return {}
        message = {"request": request, "port": _free_port()}
        self._store.set(self._next(), json.dumps(message))
        return self._meeting(message)

    def follow(self) -> None:
        """Take part in every training that the first process tells of, until there are no more."""
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
                environment=self._meeting(message),
            )

    def _next(self) -> str:
        self._told += 1
        return f"qabuild/{self._told}"

    def _meeting(self, message: Mapping[str, Any]) -> dict[str, str]:
        """Each training has a store of its own, kept by its first process: leftovers of one would mislead the next."""
        store = {"MASTER_PORT": str(message["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        return {**self._environment, **store}

    @cached_property
    def _store(self) -> Any:
        from torch.distributed import TCPStore

        host, port = self._environment["MASTER_ADDR"], int(self._environment["MASTER_PORT"])
        return TCPStore(host, port, is_master=False, timeout=PATIENCE)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


@cache
def current() -> Ranks:
    """This process's place. The launcher's variables leave its environment when this is first asked.

    A library that finds them would wait for processes that never come.
    """
    names = [name for name in os.environ if name in VARIABLES or name.startswith("TORCHELASTIC_")]
    return Ranks({name: os.environ.pop(name) for name in names})
