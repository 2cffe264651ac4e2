"""The remote cache: results that several machines share, on an object store or in a shared folder.

    <url>/v1/results/<key>.tar      a result, see `archive`
    <url>/v1/leases/<key>           who is making it, see `lease`

It is an accelerator: whatever happens to it, a build goes on without it. The first failure is reported, and ends its
use in this build.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from qabuild.builder.store import archive
from qabuild.builder.store.lease import Lease
from qabuild.builder.store.local import Store
from qabuild.builder.store.signing import EllipticSigning
from qabuild.errors import BadTarget, QABuildError
from qabuild.system import files, storage
from qabuild.system.cache import LAYOUT
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.storage import Location

T = TypeVar("T")

URL = "QABUILD_REMOTE_CACHE"
KEY = "QABUILD_REMOTE_CACHE_KEY"
EVIDENCE = frozenset({"reference", "original", "deviation", "verify"})
"""The steps whose results are evidence: what models answered. Gates judge others by them, so they are not taken on the
word of whoever can write to the remote cache: without signatures, each machine answers and measures for itself."""

PATIENCE = 30.0
"""Seconds without an answer after which the remote cache is given up."""
PERIOD = 120.0
"""Seconds after which an unchanged lease has expired; the attribute cache of NFS may hide changes for one minute."""

WITHOUT_IT = "; going on without it"
"""How a remark ends that says why the remote cache is not used any more."""
_MODE = re.compile(r"\?([a-z]+=[^?/]*)/*$")


def open_store(
    *, key: str | Path | None = None, offline: bool = False, reporter: Reporter = SILENT, owner: str = ""
) -> Store:
    """The store of this machine, with the remote cache that QABUILD_REMOTE_CACHE names, if it does.

    `key` is the file of a private or public key, by default what QABUILD_REMOTE_CACHE_KEY names; `owner` is that of the
    leases. Raises BadTarget where it holds none, is named by an empty variable, or there is no remote cache, and for an
    unknown mode.
    """
    url = os.environ.get(URL)
    if key and not url:
        raise BadTarget(f"{key}: a key, but no remote cache", f"name the remote cache in {URL}")
    key = key or os.environ.get(KEY)  # one that is empty is a mistake, as by a secret that is not there
    if not url:
        return Store()
    if key == "":
        raise BadTarget(f"{KEY} is empty", "let it name the file of the key; or unset it, to do without signatures")
    if offline:
        reporter.say(f"remote cache {url}: not used offline")
        return Store(signed=key is not None)
    signing = EllipticSigning(Path(key)) if key else None
    return Store(remote=Remote(url, signing=signing, reporter=reporter, owner=owner))


class Remote:
    """The remote cache at a URL that fsspec has a driver for, or in a folder; read-only where it ends in ?mode=ro."""

    def __init__(
        self,
        url: str,
        *,
        signing: EllipticSigning | None = None,
        reporter: Reporter = SILENT,
        patience: float = PATIENCE,
        period: float = PERIOD,
        owner: str = "",
    ) -> None:
        """`patience` and `period` are seconds, as `PATIENCE` and `PERIOD`; `owner` is that of the leases. Raises
        BadTarget for an unknown mode."""
        mode = _MODE.search(url)
        if mode and mode[1] != "mode=ro":
            raise BadTarget(f"{URL}: ?{mode[1]}: there is no such option", "write ?mode=ro, or nothing")
        self._url = _MODE.sub("", url)
        self._writes = not mode and (signing is None or signing.can_sign)
        self._signing, self._reporter = signing, reporter
        self._patience, self._period, self._owner = patience, period, owner
        self._is_local = not storage.is_url(self._url)
        self._down = False
        self._refused: set[str] = set()
        self._newer = False

    @property
    def is_signed(self) -> bool:
        """Whether what is fetched was signed with the key."""
        return self._signing is not None

    @property
    def writes(self) -> bool:
        """Whether results are put."""
        return self._writes and not self._down

    def shares(self, step: str) -> bool:
        """Whether results of the step are fetched and put."""
        return not self._down and (self._signing is not None or step not in EVIDENCE)

    def holds(self, key: str) -> bool:
        """Whether it has a result with that key, of which nothing is read. One request."""
        return bool(self._attempt(lambda: self._result(key).exists()))

    def fetch(self, step: str, key: str, stage: Path, scratch: Path) -> bool:
        """Write the result into the empty folder `stage`, every byte checked. Returns whether there was a good one.

        `scratch` is a folder for the download. One request.
        """
        try:
            fetched = self._attempt(lambda: self._fetch(key, stage, scratch)) is True
        except archive.Newer:
            if not self._newer:
                self._say("holds results of a newer version of qabuild; they are ignored")
            self._newer = True
            return False
        except archive.Refused as error:
            if key not in self._refused:
                self._say(f"the result {key[:16]} of {step} is ignored: {error}")
            self._refused.add(key)
            return False
        if fetched:
            self._reporter.say(f"{step}: from the remote cache")
        return fetched

    def _fetch(self, key: str, stage: Path, scratch: Path) -> bool:
        path = scratch / secrets.token_hex(8)  # a name of its own: a download that was given up may still write there
        if self._is_local:
            path = Path(self._result(key).path)
        elif not self._result(key).get(path):
            return False
        try:
            with files.opened(path) as file:
                archive.read(file, key, stage, self._signing)
        except FileNotFoundError:
            return False
        return True

    def put(self, key: str, result: Path, scratch: Path) -> None:
        """Put the result in the folder `result` of the store, unless there is a good one.

        `scratch` is a folder for the archive. Two requests, and more for files that the driver uploads in parts.
        """
        self._attempt(lambda: self._put(key, result, scratch), writing=True)

    def _put(self, key: str, result: Path, scratch: Path) -> None:
        if key not in self._refused and self._result(key).exists():
            return
        if self._is_local:
            self._put_local(Path(self._result(key).path), result)
            return
        path = scratch / secrets.token_hex(8)
        with open(path, "xb") as file:
            archive.write(result, file, self._signing)
        self._result(key).put(path)

    def _put_local(self, path: Path, result: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A user's own name: what another user's killed build left cannot be written to.
        partial = path.with_name(f".{path.name}.{os.getuid()}.partial")
        with suppress(BlockingIOError), files.exclusive(partial) as file:  # else another process is putting it
            file.truncate(0)
            archive.write(result, file, self._signing)
            files.sync(file)
            os.replace(partial, path)

    def lease(self, step: str, key: str, owner: str = "") -> Lease:
        """The lease of making the result; held at once where nothing is put. Without an `owner`, of its own one."""
        lease = Lease(
            lambda name: self._root.child(f"{LAYOUT}/leases/{name}"),
            key,
            period=self._period,
            attempt=self._attempt,
            say=lambda host: self._reporter.say(f"{step}: {host} is making it; waiting for that"),
            owner=owner or self._owner,
        )
        lease.held = not self._writes
        return lease

    @cached_property
    def _root(self) -> Location:
        return replace(storage.locate(self._url), patience=self._patience)

    def _result(self, key: str) -> Location:
        return self._root.child(f"{LAYOUT}/results/{key}.tar")

    def _attempt(self, request: Callable[[], T], *, writing: bool = False) -> T | None:
        """What the request returns; None where it fails, or one before it did. Raises Newer and Refused."""
        if self._down or (writing and not self._writes):
            return None
        try:
            return request()
        except (archive.Newer, archive.Refused):
            raise
        except Exception as error:  # of drivers, whose errors have no class in common
            problem = error.message if isinstance(error, QABuildError) else str(error) or type(error).__name__
            if writing and _is_denied(error):
                self._writes = False
                self._say(f"{problem.splitlines()[0]}; nothing is put there")
            else:
                self._down = True
                self._say(f"{problem.splitlines()[0]}{WITHOUT_IT}")
            return None

    def _say(self, message: str) -> None:
        self._reporter.say(f"remote cache {self._url}: {message.removeprefix(f'{self._url}: ')}")


def _is_denied(error: Exception) -> bool:
    """Whether this user may not write there, but perhaps read."""
    cause = error.__cause__ if isinstance(error, QABuildError) else error
    return isinstance(cause, OSError) and (isinstance(cause, PermissionError) or cause.errno == errno.EROFS)
