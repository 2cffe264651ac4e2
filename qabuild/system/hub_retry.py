"""Retries with backoff after temporary errors of the Hub; messages for permanent ones, without tokens.

For publishing, which must inspect the repository before it tries again. Downloads need none: huggingface_hub retries
them itself, with backoff.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qabuild.errors import BadTarget, MissingEnvironment, QABuildError
from qabuild.system import hub
from qabuild.system.reporter import Reporter

T = TypeVar("T")

WAITS = (1, 2, 4, 8)
"""Seconds before each retry, unless the Hub sends Retry-After."""
LONGEST_WAIT = 300
"""Seconds; a longer Retry-After is cut to this."""
RETRYABLE = frozenset({409, 412, 429, 500, 502, 503, 504})
"""HTTP statuses of temporary errors: a concurrent commit, too many requests, a busy server."""


def with_retries(work: Callable[[], T], about: str, reporter: Reporter) -> T:
    """Call `work` and return its result; after a temporary error of the Hub, wait and retry.

    `work` must be idempotent: it inspects the repository and does what is left to do. Raises QABuildErrors that name
    `about`, such as a repository's id.
    """
    for wait in (*WAITS, None):
        try:
            with _quiet(reporter):
                return work()
        except QABuildError:
            raise
        except Exception as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            if wait is None or not refusal.retryable:
                # The library's message may repeat the request, so it is chained only if it holds no token.
                raise refusal.as_error(about) from (None if _holds_token(error) else error)
            seconds = refusal.wait or wait
            reporter.say(f"{about}: {refusal.name}; trying again in {seconds:g} s")
            time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """An error of the Hub or of the network."""

    error: Exception
    name: str
    status: int | None = None
    detail: str = ""
    """The Hub's message, with a colon before it."""
    retryable: bool
    wait: float | None = None
    """Seconds from the Retry-After header."""

    def as_error(self, about: str) -> QABuildError:
        match self.status:
            case 401:
                return MissingEnvironment(f"{about}: the Hub does not accept the token{self.detail}", LOG_IN)
            case 403:
                return MissingEnvironment(
                    f"{about}: the token has no permission for this{self.detail}",
                    "take a token with write permission there, name a repository of your own with --repo, "
                    "or propose it with --create-pr",
                )
            case 404:
                return BadTarget(
                    f"{about}: the Hub knows no such repository or revision{self.detail}", "check the spelling"
                )
            case None if self.detail and self.retryable:
                return QABuildError(
                    f"{about}: {self.name}{self.detail}",
                    "check the network and try again; HF_HUB_DISABLE_XET=1 transfers without Xet",
                )
            case None if self.retryable:
                return hub.unreachable(about, "artifact", self.error)
            case None | 400 | 413 | 422:
                return BadTarget(f"{about}: the Hub refused it{self.detail}", "fix what it names, and publish again")
            case _:
                return QABuildError(f"{about}: {self.name}{self.detail}", "try again later")


def _refusal(error: Exception) -> _Refusal | None:
    """The Hub's response or the network error behind `error`; None where there is neither."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    chain = [cause for cause in _chain(error) if isinstance(cause, Exception)]
    if http_error := next((cause for cause in chain if _response(cause) is not None), None):
        return _http_refusal(http_error)
    if hub.is_from_xet(error):
        return _Refusal(error=error, name="the transfer by Xet failed", detail=_detail([str(error)]), retryable=True)
    for cause in chain:
        # Skip the system's errors, which have an errno, except those of connections.
        incomplete = isinstance(cause, OSError) and cause.errno is None and not isinstance(cause, FileNotFoundError)
        if incomplete or isinstance(cause, hub.network_errors()):
            retryable = not isinstance(cause, OfflineModeIsEnabled)
            return _Refusal(error=cause, name=f"no answer ({type(cause).__name__})", retryable=retryable)
    if _is_from_huggingface_hub(error):  # ValueError: bad metadata, a file too large; RuntimeError: a transfer by Xet
        retryable = isinstance(error, RuntimeError)
        return _Refusal(error=error, name="the transfer failed", detail=_detail([str(error)]), retryable=retryable)
    return None


def _http_refusal(error: Exception) -> _Refusal:
    response = _response(error)
    seconds = str(response.headers.get("Retry-After", ""))
    return _Refusal(
        error=error,
        name=f"the Hub answered with HTTP status {response.status_code}",
        status=response.status_code,
        detail=_detail((getattr(error, "server_message", None) or "").splitlines()),
        retryable=response.status_code in RETRYABLE,
        wait=min(float(seconds), LONGEST_WAIT) if seconds.isdigit() else None,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None)


def _is_from_huggingface_hub(error: Exception) -> bool:
    """Whether huggingface_hub itself raised the error."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, (ValueError, RuntimeError)) and "huggingface_hub" in Path(frames[-1]).parts


def _detail(lines: list[str]) -> str:
    """A message of the Hub or of a library on one line, with tokens redacted."""
    text = " ".join(" ".join(lines).split())
    return f": {_without_token(text)}" if text else ""


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(token)") if token else text


def _holds_token(error: BaseException) -> bool:
    return any(_without_token(str(cause)) != str(cause) for cause in _chain(error))


@contextmanager
def _quiet(reporter: Reporter) -> Iterator[None]:
    """Silence huggingface_hub's log, which holds signed URLs; report its warnings about a model card."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with hub.bars_on_terminals_only(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                reporter.say(str(warning.message))
    finally:
        logging.set_verbosity(verbosity)


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write permission"
