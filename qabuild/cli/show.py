"""`show` and `fetch`: what an artifact is, here and on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.options import common, output_option, signer_options
from qabuild.system.units import count_of, size_of

if TYPE_CHECKING:
    from qabuild.artifact.evidence import Gate, Measurement
    from qabuild.artifact.summary import Summary


@click.command()
@click.argument("artifact")
@click.option("--revision", help="Branch, tag or commit of an artifact on the Hub.")
@common
def show(artifact: str, revision: str | None, console: Console) -> None:
    """Show what ARTIFACT is, a folder or a repository on the Hub (owner/name): from what it was made, and its evidence.

    Checks every file against the manifest and judges the evidence again, but loads no model. Shows an artifact that
    failed its verification, or has none, too.
    """
    from qabuild.artifact.load import find
    from qabuild.artifact.summary import summary

    shown = summary(find(artifact, revision=revision, allow_unverified=True))
    console.result(shown.to_dict(), lambda: _print(shown))


@click.command()
@click.argument("repo", metavar="OWNER/NAME")
@output_option
@click.option("--revision", help="Branch, tag or commit.")
@click.option("--digest", metavar="SHA256", help="Required SHA-256 of the manifest.")
@signer_options
@common
def fetch(repo: str, output: Path, revision: str | None, digest: str | None, signer: Any, console: Console) -> None:
    """Download the artifact OWNER/NAME from the Hub to OUTPUT/NAME.

    Checks every file against the manifest, before the folder gets its name: it is complete, or not there. Replaces
    nothing.
    """
    from qabuild.artifact.fetch import fetch as fetch_artifact
    from qabuild.artifact.summary import summary

    fetched = summary(fetch_artifact(repo, output, revision=revision, digest=digest, key=signer))
    console.result(fetched.to_dict(), lambda: emit(f"{fetched.artifact}: {fetched.state}, manifest {fetched.digest}"))


def _print(shown: Summary) -> None:
    from qabuild.artifact.stages import described

    manifest, verification = shown.manifest, shown.verification
    facts = {
        "artifact": f"{shown.artifact}: {shown.state}",
        "manifest": f"{shown.digest}, written by qabuild {manifest.qabuild}",
        "size": f"{size_of(shown.size)} in {count_of(len(manifest.files), 'file')}",
        "checkpoint": _line(manifest.checkpoint),
        "training": _line(manifest.training or {}),
        "stages": " ".join(described(manifest.stages)),
        "backend": _line(manifest.backend),
        "runtime": _line(manifest.runtime.model_dump(mode="json")),
        "answer": _line(manifest.parameters),
        "versions": _line(manifest.versions),
        "shows": shown.questions,
        "signatures": ", ".join(shown.signatures) and f"{', '.join(shown.signatures)}; not checked: verify with --key",
    }
    if verification:
        facts["measured"] = _figures(verification.measurement)
        facts["verified"] = f"{verification.verified_at}, on {_line(verification.measurement.machine)}"
    width = max(map(len, facts))
    emit("\n".join(f"{name:{width}}  {fact}" for name, fact in facts.items() if fact))
    if verification:
        table(["gate", "measured", "must be", ""], [_row(gate) for gate in verification.gates])
    if shown.reason:
        emit(shown.reason)


def _figures(m: Measurement) -> str:
    speed = f", {m.speed.speedup:.2f} times as fast as the checkpoint" if m.speed else ""
    return (
        f"EM {m.exact_match:.2f} (checkpoint: {m.checkpoint_exact_match:.2f}), F1 {m.f1:.2f} "
        f"(checkpoint: {m.checkpoint_f1:.2f}), {100 * m.agreement:.2f} % of {m.questions} answers alike{speed}"
    )


def _row(gate: Gate) -> list[str]:
    from qabuild.artifact.evidence import figure, requirement

    at = f", {100 * gate.confidence:g} % confidence" if gate.confidence else ""
    return [gate.name, f"{figure(gate.value)}{at}", requirement(gate), "passed" if gate.passed else "FAILED"]


def _line(facts: Mapping[str, Any]) -> str:
    """The facts that say something, in one line."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}"
        for name, value in facts.items()
        if value not in (None, {}, [], "")
    )
