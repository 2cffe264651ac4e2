"""What the Hub refuses for the moment is asked again; what it refuses for good is explained. No token is in either."""

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
"""Seconds before each further attempt, where the Hub names no other time."""
LONGEST_WAIT = 300
PASSING = frozenset({409, 412, 429, 500, 502, 503, 504})
"""HTTP status of refusals that may not be repeated: another commit came first, too many requests, a busy server."""


def with_retries(work: Callable[[], T], about: str, reporter: Reporter) -> T:
    """What `work` gives. It is called again, some seconds later, where the Hub refused it for the moment.

    So `work` must be whole in itself: it looks at what is there, and does what is left to do. Raises QABuildErrors
    that speak of `about`, such as a repository's name.
    """
    for wait in (*WAITS, None):
        try:
            with _quiet(reporter):
                return work()
        except QABuildError:
            raise
        except Exception as error:
            refusal = _understand(error)
            if refusal is None:
                raise
            if wait is None or not refusal.passing:
                # The library's own words may repeat what was sent, so they are shown only where no token is in them.
                raise refusal.told(about) from (None if _holds_token(error) else error)
            seconds = refusal.wait or wait
            reporter.say(f"{about}: {refusal.name}; trying again in {seconds:g} s")
            time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """Why the Hub, or the way to it, did not do what was asked."""

    error: Exception
    name: str
    status: int | None = None
    words: str = ""
    """What the Hub said, with a colon before it."""
    passing: bool
    wait: float | None = None
    """Seconds that it asks to wait."""

    def told(self, about: str) -> QABuildError:
        match self.status:
            case 401:
                return MissingEnvironment(f"{about}: the Hub does not accept the token{self.words}", LOG_IN)
            case 403:
                return MissingEnvironment(
                    f"{about}: the token has no permission for this{self.words}",
                    "take a token with write permission there, name a repository of your own with --repo, "
                    "or propose it with --create-pr",
                )
            case 404:
                return BadTarget(
                    f"{about}: the Hub knows no such repository or revision{self.words}", "check the spelling"
                )
            case None if self.words and self.passing:
                return QABuildError(
                    f"{about}: {self.name}{self.words}",
                    "check the network and try again; HF_HUB_DISABLE_XET=1 transfers without Xet",
                )
            case None if self.passing:
                return hub.unreachable(about, "artifact", self.error)
            case None | 400 | 413 | 422:
                return BadTarget(f"{about}: the Hub refused it{self.words}", "mend what it says, and publish again")
            case _:
                return QABuildError(f"{about}: {self.name}{self.words}", "try again later")


def _understand(error: Exception) -> _Refusal | None:
    """The answer of the Hub, or of the network, that is behind an error; None where there is none."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from requests import RequestException

    chain = [each for each in _chain(error) if isinstance(each, Exception)]
    if answered := next((each for each in chain if _response(each) is not None), None):
        return _answer(answered)
    for each in chain:
        # Not the system's own errors, which have a number, but for those of connections.
        incomplete = isinstance(each, OSError) and each.errno is None and not isinstance(each, FileNotFoundError)
        if incomplete or isinstance(each, (RequestException, ConnectionError, TimeoutError)):
            passing = not isinstance(each, OfflineModeIsEnabled)
            return _Refusal(error=each, name=f"no answer ({type(each).__name__})", passing=passing)
    if _is_of_the_library(error):  # on metadata, on a file that is too large; and of a transfer by Xet, which may pass
        passing = isinstance(error, RuntimeError)
        return _Refusal(error=error, name="the transfer failed", words=_told([str(error)]), passing=passing)
    return None


def _answer(error: Exception) -> _Refusal:
    response = _response(error)
    seconds = str(response.headers.get("Retry-After", ""))
    return _Refusal(
        error=error,
        name=f"the Hub answered with HTTP status {response.status_code}",
        status=response.status_code,
        words=_told((getattr(error, "server_message", None) or "").splitlines()),
        passing=response.status_code in PASSING,
        wait=min(float(seconds), LONGEST_WAIT) if seconds.isdigit() else None,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None)


def _is_of_the_library(error: Exception) -> bool:
    """Whether huggingface_hub raised it, in words of its own."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, (ValueError, RuntimeError)) and "huggingface_hub" in Path(frames[-1]).parts


def _told(lines: list[str]) -> str:
    """Someone else's words in one line, less any token in them."""
    said = " ".join(" ".join(lines).split())
    return f": {_without_token(said)}" if said else ""


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(token)") if token else text


def _holds_token(error: BaseException) -> bool:
    return any(_without_token(str(each)) != str(each) for each in _chain(error))


@contextmanager
def _quiet(reporter: Reporter) -> Iterator[None]:
    """Without huggingface_hub's log, which names signed addresses; its remarks on a card are passed on."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with hub.bars_on_terminals_only(), warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always", UserWarning)
            yield
        for remark in remarks:
            if issubclass(remark.category, UserWarning):
                reporter.say(str(remark.message))
    finally:
        logging.set_verbosity(verbosity)


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write permission"
