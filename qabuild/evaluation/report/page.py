"""Write the page and the picture, atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qabuild.artifact.evidence import Flip, Measurement, at_batch, describe
from qabuild.evaluation.compare import tables
from qabuild.evaluation.compare.result import Comparison, Measured
from qabuild.evaluation.report import plots
from qabuild.system import files
from qabuild.system.units import count_of

HERE = Path(__file__).parent
MOST_CHANGES = 100
"""Changed answers of the chosen candidate that a page lists."""
WIDTH, SCALE = 720, 2
"""Width of the picture in points, and pixels per point."""


@dataclass(frozen=True)
class Candidates:
    """What a tuning tried, for the head of its page."""

    title: str
    sentences: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """A row for each candidate, the chosen one first."""
    chosen: Measurement
    """How the chosen one was verified against its checkpoint."""

    @property
    def changes(self) -> Sequence[Flip]:
        """The answers that the chosen one changes, largest loss first; none where the artifact does not show them."""
        return [flip for flip in self.chosen.flips if flip.question][:MOST_CHANGES]

    @property
    def changed(self) -> str:
        """What the chosen one changes against its checkpoint."""
        chosen = self.chosen
        worse = sum(flip.f1_difference < 0 for flip in chosen.flips)
        better = sum(flip.f1_difference > 0 for flip in chosen.flips)
        low, high = chosen.f1_difference_interval
        original = ""
        if chosen.original:
            least, most = chosen.original.f1_difference_interval
            original = (
                f" From the original checkpoint's {chosen.original.f1:.2f}, F1 differs by "
                f"{chosen.original.f1_difference:+.2f} [{least:.2f}, {most:.2f}] points."
            )
        return (
            f"As verified on {count_of(chosen.questions, 'question')}: F1 {chosen.checkpoint_f1:.2f} became "
            f"{chosen.f1:.2f}, a difference of {chosen.f1_difference:+.2f} [{low:.2f}, {high:.2f}] points"
            f"{at_batch(chosen.batch_size)}; "
            f"F1 retention {100 * chosen.f1_retention:.2f} %; answers that changed: {len(chosen.flips)}, {worse} of "
            f"them for the worse and {better} for the better.{original}"
        )


def write_page(comparison: Comparison, path: Path, candidates: Candidates | None = None) -> None:
    """Write the comparison as one self-contained HTML file. Raises OSError if `path` cannot be written.

    With `candidates`, the page begins with what the artifacts were chosen from.
    """
    files.write(path, page(comparison, candidates).encode())


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write the plot of speed against F1 as a PNG. Raises OSError if `path` cannot be written."""
    import vl_convert

    files.write(path, vl_convert.vegalite_to_png(picture_spec(comparison), scale=SCALE))


def picture_spec(comparison: Comparison) -> plots.Spec:
    """The picture, which says by itself what it shows: the page has that in its head."""
    config = {"range": {"category": plots.COLOURS["light"]}, "legend": {"labelLimit": 0}}
    spec = {**plots.picture(comparison), "title": plots.title(comparison), "width": WIDTH}
    return {**spec, "background": "white", "padding": 12, "config": config}


def page(comparison: Comparison, candidates: Candidates | None = None) -> str:
    """The comparison as an HTML page."""
    import jinja2
    import vl_convert

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        comparison=comparison,
        candidates=candidates,
        columns=tables.columns(comparison),
        rows=tables.rows(comparison),
        conditions=tables.conditions(comparison),
        failures=_failures(comparison),
        origins={measured.name: _provenance(measured) for measured in comparison.measured},
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed"),
        data=_script_json(
            {
                "plots": _plots(comparison),
                "changes": _changes(comparison),
                "asked": _changed_questions(comparison),
                "colours": plots.COLOURS,
            }
        ),
    )


def _plots(comparison: Comparison) -> dict[str, plots.Spec]:
    """Plot specifications by the id of their HTML element; only plots of what was measured."""
    specs = {"picture": plots.picture(comparison), "lengths": plots.lengths(comparison)}
    if comparison.measured[0].latency:
        specs["latency"] = plots.latency(comparison)
    if len(comparison.measured[0].throughput) > 1:
        specs["batches"] = plots.batches(comparison)
    return specs


def _changes(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    return {
        measured.name: [asdict(change) for change in measured.changes]
        for measured in comparison.measured
        if measured.changes
    }


def _changed_questions(comparison: Comparison) -> dict[str, dict[str, Any]]:
    return {name: asdict(question) for name, question in comparison.asked.items()}


def _failures(comparison: Comparison) -> dict[str, str]:
    """By name, the error or the failed gates of artifacts that were not measured or failed the audit."""
    reasons = {
        measured.name: ", ".join(map(describe, measured.failed_gates))
        for measured in comparison.measured
        if measured.failed_gates
    }
    return reasons | {failure.name: failure.error for failure in comparison.failures}


def _provenance(measured: Measured) -> list[tuple[str, str]]:
    """The artifact's provenance: pairs of a heading and a line of text."""
    manifest = measured.manifest
    return [
        ("manifest", manifest["digest"]),
        ("checkpoint", _line(manifest["checkpoint"])),
        ("training", _line(manifest["training"] or {})),
        ("stages", " ".join(map(str, manifest.get("stages") or ()))),
        ("backend", _line(manifest["backend"])),
        ("runtime", _line(manifest["runtime"])),
        ("compiling", _line(manifest["record"])),
        ("versions", _line({"qabuild": manifest["qabuild"], **manifest["versions"]})),
        ("gates", ", ".join(map(describe, measured.gates))),
    ]


def _line(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}"
        for key, value in facts.items()
        if value not in (None, {}, [])
    )


def _script_json(document: Any) -> str:
    """JSON that is safe inside a script element: no text in it can close the element."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
