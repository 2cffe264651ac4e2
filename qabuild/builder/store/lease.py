"""The right to make one result, which at most one of the processes that share a remote cache has at a time.

A lease is an object that its holder rewrites a few times in a period. Whoever waits for it, and has seen it
unchanged for a whole period by the own monotonic clock, takes over; clocks of two hosts are never compared. An expired
lease is taken over by creating its successor, whose name follows from it: of several that wait, one succeeds, as with
the first lease. Only who created a lease writes to it.

A farm gives all of its workers one owner and runs each step once: a lease of the own owner is that of a dead worker,
and is taken over at once.

Where a store cannot create an object only if it is absent, or a holder was suspended, two may hold a lease. Then a
step runs twice, and nothing else happens, since results are named by what decides them.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol, Self, TypeVar

from qabuild.system.storage import Location

T = TypeVar("T")

BEATS = 4
"""How often in a period its holder rewrites a lease."""
POLLS = 24
"""How often in a period a waiter reads it."""
MAX_EXPIRED = 3
"""Leases of others that may expire while one waits for a result; after that it is made without a lease."""
LARGEST = 1024
"""Bytes of a lease that are read."""


class Attempt(Protocol):
    """Runs a request to the remote cache; None where that fails, now or earlier."""

    def __call__(self, request: Callable[[], T], *, writing: bool = False) -> T | None: ...


class Lease:
    """The lease of one key. In a `with` block, which releases it."""

    def __init__(
        self,
        locate: Callable[[str], Location],
        key: str,
        *,
        period: float,
        attempt: Attempt,
        say: Callable[[str], None],
        owner: str = "",
    ) -> None:
        """`locate` gives the place of a lease by its name; `period` is in seconds; `say` hears who is waited for.

        An `owner` is 32 hex digits. It has one process at a time make a result: what another one left has expired.
        """
        self._locate, self._key = locate, key
        self._period, self._attempt, self._say = period, attempt, say
        self._name = key
        self._expired: list[str] = []
        self._waited_for = 0
        self._owner = owner.encode()
        self._holder = f"{socket.gethostname()} {owner}{secrets.token_hex(16)}"
        self._beats = 0
        self._waiting = False
        self._released = threading.Event()
        self._heart: threading.Thread | None = None
        self.held = False
        """Whether this process is to make the result; also where the remote cache no longer answers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._heart is None:
            return
        self._released.set()
        self._heart.join(self._period / BEATS)  # a beat that arrives later would bring the lease back
        for name in (self._name, *reversed(self._expired)):  # the first one last: it is what newcomers look at
            self._attempt(partial(self._remove, name), writing=True)

    def acquire(self) -> None:
        """Take the lease; or wait until its holder released it, or let it expire."""
        created = self._attempt(lambda: self._locate(self._name).create(self._content()), writing=True)
        if created is not False:
            self.held = True
            if created:
                self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
                self._heart.start()
            return
        seen, since = b"", time.monotonic()
        while (content := self._attempt(lambda: self._read(self._name))) is not None:
            host = content.partition(b" ")[0]
            if content != seen:
                seen, since = content, time.monotonic()
            if self._is_abandoned(content) or time.monotonic() - since > self._period:
                self._waited_for += not self._is_abandoned(content)
                self.held = self._waited_for > MAX_EXPIRED  # somebody puts leases there that no build holds
                self._expired.append(self._name)
                self._name = f"{self._key}.{_successor(content)}"
                return
            if not self._waiting:
                self._say("".join(filter(str.isprintable, host[:64].decode(errors="replace"))))
            self._waiting = True
            time.sleep(self._period / POLLS)
        self._name, self._expired = self._key, []  # its holder released all; if it failed, all begin with the first

    def remove_abandoned(self) -> None:
        """Remove what dead processes of the owner left, which others would wait for, one lease after the other."""
        names, name = [], self._key
        while content := self._attempt(partial(self._read, name)):
            if not self._is_abandoned(content) or name in names:
                break
            names.append(name)
            name = f"{self._key}.{_successor(content)}"
        for name in reversed(names):  # the first one last: it is what newcomers look at
            self._attempt(partial(self._remove, name), writing=True)

    def _is_abandoned(self, content: bytes) -> bool:
        return self._owner != b"" and content.partition(b" ")[2].startswith(self._owner)

    def _read(self, name: str) -> bytes | None:
        return self._locate(name).read(LARGEST)

    def _remove(self, name: str) -> None:
        self._locate(name).remove()

    def _content(self) -> bytes:
        """Host, holder and number of beats: different each time, so that a watcher sees that its holder is alive."""
        self._beats += 1
        return f"{self._holder} {self._beats}".encode()

    def _beat(self) -> None:
        while not self._released.wait(self._period / BEATS):
            with suppress(Exception):  # the next beat is another attempt
                self._locate(self._name).write(self._content())


def _successor(content: bytes) -> str:
    """The same for all who saw the lease expire, after whichever of its beats."""
    return hashlib.sha256(content.rpartition(b" ")[0]).hexdigest()[:16]
