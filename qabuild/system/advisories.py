"""Published vulnerabilities of the packages that qabuild uses. `doctor` names those of the installed versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qabuild.system import packages

AS_OF = "2026-11-28"
"""When the table was last checked against the advisories of GitHub and NVD."""


class Advisory(NamedTuple):
    """A vulnerability of the versions from `since` on and before `fixed`."""

    package: str
    cve: str
    since: str
    fixed: str
    risk: str


ADVISORIES = (
    Advisory(
        "transformers",
        "CVE-2026-4372",
        "4.56",
        "5.3",
        "config.json can run code (_attn_implementation_internal); qabuild refuses that key, other programs may not",
    ),
    Advisory("torch", "CVE-2026-24747", "0", "2.10", "torch.load runs code even with weights_only=True"),
    Advisory("filelock", "CVE-2026-112909", "0", "4.2.1", "a lock can truncate a file that another user moves onto it"),
    Advisory("aiohttp", "CVE-2026-47265", "0", "3.14", "cookies are sent on after a redirect to another host"),
    Advisory("urllib3", "CVE-2026-21441", "0", "2.6.3", "a redirect can answer with a decompression bomb"),
    Advisory("onnx", "CVE-2026-28500", "0", "1.21", "onnx.hub.load(silent=True) trusts every repository"),
)


def installed() -> Iterator[tuple[str, Advisory]]:
    """Each advisory that affects an installed package, with the installed version."""
    from packaging.version import Version

    versions = packages.versions({advisory.package for advisory in ADVISORIES})
    for advisory in ADVISORIES:
        version = versions.get(advisory.package)
        if version and Version(advisory.since) <= Version(Version(version).public) < Version(advisory.fixed):
            yield version, advisory
