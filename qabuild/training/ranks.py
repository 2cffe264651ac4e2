"""Several processes for one training, as `torchrun` or `accelerate launch` start them, on one host or several.

Each of them runs the same `qabuild` command. The first builds, and tells the others of every training, in which they
take part; all else it does alone. The hosts share the folders of the checkpoints and of the results (QABUILD_CACHE).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from qabuild.apart import run_apart

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
        self._trainings = 0

    def environment(self) -> dict[str, str]:
        """Variables for the process that takes part in the next training.

        The number of a restart keeps what one training leaves in the launcher's store from the next.
        """
        restart = 1000 * int(self._environment.get("TORCHELASTIC_RESTART_COUNT", "0")) + self._trainings
        return {**self._environment, "TORCHELASTIC_RESTART_COUNT": str(restart)} if self.count > 1 else {}

    def announce(self, request: Mapping[str, Any] | None) -> None:
        """Tell the others of a training, or with None that there will be no more."""
        if self.count > 1:
            self._trainings += 1
            self._store.set(f"qabuild/{self._trainings}", json.dumps(request))

    def follow(self) -> None:
        """Take part in every training that the first process tells of, until there are no more."""
        while True:
            self._trainings += 1
            request = json.loads(self._store.get(f"qabuild/{self._trainings}"))
            if request is None:
                return
            run_apart(
                "qabuild.training", request, Path(request["directory"]), "training", environment=self.environment()
            )

    @cached_property
    def _store(self) -> Any:
        from torch.distributed import TCPStore

        host, port = self._environment["MASTER_ADDR"], int(self._environment["MASTER_PORT"])
        return TCPStore(host, port, is_master=False, timeout=PATIENCE)


@cache
def current() -> Ranks:
    """This process's place. The launcher's variables leave its environment when this is first asked.

    A library that finds them would wait for processes that never come.
    """
    names = [name for name in os.environ if name in VARIABLES or name.startswith("TORCHELASTIC_")]
    return Ranks({name: os.environ.pop(name) for name in names})
