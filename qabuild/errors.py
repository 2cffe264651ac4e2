"""Everything that can go wrong in a way the user can mend.

One base class; each child has an exit status of its own. `message` says what is wrong and where,
`hint` what to do about it. The command line prints both and nothing else; any other exception is
a defect of the program and keeps its traceback.
"""

from __future__ import annotations

import re
from typing import ClassVar

_SECRETS = re.compile(
    r"(?<=://)([^\s/@:]*):[^\s/@]*(?=@)"
    r"|(?<=[?&])(X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-Signature|sig|(?:access_)?token|password)"
    r"=[^\s&'\"]+?(?=[:;,.)]*(?:[\s&'\"]|$))",
    re.IGNORECASE,
)
"""In URLs: the password of user:password@host, and what signs a request, as in a presigned URL."""


class QABuildError(Exception):
    """Something else went wrong: the network, the disk, another build at work."""

    exit_status: ClassVar[int] = 5

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = without_secrets(message)
        self.hint = hint and without_secrets(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def without_secrets(text: str) -> str:
    """The text with the passwords and signatures of URLs replaced by ***."""
    return _SECRETS.sub(lambda match: f"{match[1]}:***" if match[2] is None else f"{match[2]}=***", text)


class VerificationFailed(QABuildError):
    """The artifact was examined and does not do what its target promises."""

    exit_status = 1


class BadTarget(QABuildError):
    """The target, or the command line, asks for something that cannot be.

    `key` is the dotted key of the target that asks for it, where one does: who reads the file knows its line.
    """

    exit_status = 2

    def __init__(self, message: str, hint: str | None = None, *, key: str | None = None) -> None:
        super().__init__(message, hint)
        self.key = key


class RenamedKey(FutureWarning):
    """A target uses the old name of a key, which still works."""


class MissingEnvironment(QABuildError):
    """The request is sound, but this machine lacks a device or a package for it."""

    exit_status = 3


class UntrustedInput(QABuildError):
    """A checkpoint, a data set or an artifact is damaged, unsafe to load, or not what it claims to be."""

    exit_status = 4


INTERRUPTED = 130  # 128 + SIGINT, as shells report it
