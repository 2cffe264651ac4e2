"""What the Hub refuses for the moment is asked again; what it refuses for good is explained. No token is in either."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from qabuild import hub
from qabuild.console import Reporter
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

WAITS = (1, 2, 4, 8)
"""Seconds before each further attempt, where the Hub names no other time."""
LONGEST_WAIT = 300
PASSING = frozenset({409, 412, 429, 500, 502, 503, 504})
"""HTTP status of refusals that may not be repeated: another commit came first, too many requests, a busy server."""

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write permission"


def log_in() -> HfApi:
    """A client of the Hub that may write. Raises MissingEnvironment without a token, or with one that only reads."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise MissingEnvironment("there is no token for the Hub here", LOG_IN)
    api = HfApi(token=token)
    account: dict[str, Any] = api.whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise MissingEnvironment(f"the token of '{account.get('name')}' may read only", LOG_IN)
    return api


def persistently(work: Callable[[], T], about: str, reporter: Reporter) -> T:
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
            found = _refusal(error)
            if found is None:
                raise
            if wait is None or not _passes(found):
                told = _explained(found, about)
            else:
                seconds = _asked_to_wait(found) or wait
                reporter.say(f"{about}: {_named(found)}; trying again in {seconds:g} s")
                time.sleep(seconds)
                continue
            # The library's own words may repeat what was sent, so they are shown only where no token is in them.
            raise told from (None if _holds_token(error) else error)
    raise AssertionError("the last attempt returns or raises")


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


def _refusal(error: BaseException) -> BaseException | None:
    """The answer of the Hub, or of the network, that is behind an error; None where there is none."""
    from requests import RequestException

    chain = list(_chain(error))
    # Other than its base class, an OSError of the system, these are about the network.
    about_network = [e for e in chain if isinstance(e, (RequestException, ConnectionError, TimeoutError))]
    if about_network:
        return next((e for e in about_network if _status(e)), about_network[0])
    # What huggingface_hub says of the Hub's answers beside HTTP status, as on metadata or a file that is too large.
    return error if isinstance(error, (ValueError, RuntimeError)) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _passes(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status in PASSING
    return not isinstance(error, (OfflineModeIsEnabled, ValueError, RuntimeError))


def _asked_to_wait(error: BaseException) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    seconds = str(headers.get("Retry-After", ""))
    return min(float(seconds), LONGEST_WAIT) if seconds.isdigit() else None


def _named(error: BaseException) -> str:
    status = _status(error)
    return f"the Hub answered with HTTP status {status}" if status else f"no answer ({type(error).__name__})"


def _explained(error: BaseException, about: str) -> QABuildError:
    status, said = _status(error), _said(error)
    if status == 401:
        return MissingEnvironment(f"{about}: the Hub does not accept the token{said}", LOG_IN)
    if status == 403:
        return MissingEnvironment(
            f"{about}: the token has no permission for this{said}",
            "take a token with write permission there, name a repository of your own with --repo, "
            "or propose it with --create-pr",
        )
    if status == 404:
        return BadTarget(f"{about}: the Hub knows no such repository or revision{said}", "check the spelling")
    if status in (400, 413, 422) or (status is None and isinstance(error, (ValueError, RuntimeError))):
        return BadTarget(f"{about}: the Hub refused it{said}", "mend what it says, and publish again")
    if status is None:
        return hub.unreachable(about, "model", error if isinstance(error, Exception) else Exception())
    return QABuildError(f"{about}: {_named(error)}{said}", "try again later")


def _said(error: BaseException) -> str:
    """The server's own words, less any token in them."""
    words = getattr(error, "server_message", None)
    if words is None and isinstance(error, (ValueError, RuntimeError)):
        words = str(error)
    lines = [line.strip() for line in str(words or "").splitlines() if line.strip()]
    return f": {_without_token(' '.join(lines))}" if lines else ""


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(token)") if token else text


def _holds_token(error: BaseException) -> bool:
    return any(_without_token(str(each)) != str(each) for each in _chain(error))
