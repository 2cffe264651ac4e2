"""The page and the picture, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qabuild.artifact.evidence import describe
from qabuild.evaluation.compare import tables
from qabuild.evaluation.compare.result import Comparison, Measured
from qabuild.evaluation.report import plots
from qabuild.system import files

HERE = Path(__file__).parent
WIDTH, SCALE = 720, 2
"""Of the picture: points, and pixels of each."""


def write_page(found: Comparison, path: Path) -> None:
    """Write the comparison as one HTML file, with all it needs in it."""
    files.write(path, page(found).encode())


def write_picture(found: Comparison, path: Path) -> None:
    """Write speed against F1 as a PNG."""
    import vl_convert

    config = {"range": {"category": plots.COLOURS["light"]}}
    spec = {**plots.picture(found), "width": WIDTH, "background": "white", "padding": 12, "config": config}
    files.write(path, vl_convert.vegalite_to_png(spec, scale=SCALE))


def page(found: Comparison) -> str:
    """The page as HTML."""
    import jinja2
    import vl_convert

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        found=found,
        columns=tables.columns(found),
        rows=tables.rows(found),
        conditions=tables.conditions(found),
        failures=_failures(found),
        origins={each.name: _origin(each) for each in found.measured},
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed"),
        data=_embedded(
            {"plots": _plots(found), "changes": _changes(found), "asked": _asked(found), "colours": plots.COLOURS}
        ),
    )


def _plots(found: Comparison) -> dict[str, plots.Spec]:
    """The specifications by the id of the element that shows each; none of what was not measured."""
    drawn = {"picture": plots.picture(found), "lengths": plots.lengths(found)}
    if found.measured[0].latency:
        drawn["latency"] = plots.latency(found)
    if len(found.measured[0].throughput) > 1:
        drawn["batches"] = plots.batches(found)
    return drawn


def _changes(found: Comparison) -> dict[str, list[dict[str, Any]]]:
    return {each.name: [asdict(change) for change in each.changes] for each in found.measured if each.changes}


def _asked(found: Comparison) -> dict[str, dict[str, Any]]:
    return {name: asdict(asked) for name, asked in found.asked.items()}


def _failures(found: Comparison) -> dict[str, str]:
    """Why some were not measured, or do not answer as they did when they were verified."""
    reasons = {each.name: ", ".join(map(describe, each.failed_gates)) for each in found.measured if each.failed_gates}
    return reasons | {each.name: each.error for each in found.failures}


def _origin(each: Measured) -> list[tuple[str, str]]:
    """What it was built from, with what and with which versions, a line each."""
    manifest = each.manifest
    return [
        ("manifest", manifest["digest"]),
        ("checkpoint", _line(manifest["checkpoint"])),
        ("training", _line(manifest["training"] or {})),
        ("backend", _line(manifest["backend"])),
        ("runtime", _line(manifest["runtime"])),
        ("compiling", _line(manifest["record"])),
        ("versions", _line({"qabuild": manifest["qabuild"], **manifest["versions"]})),
        ("gates", ", ".join(map(describe, each.gates))),
    ]


def _line(facts: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}"
        for key, value in facts.items()
        if value not in (None, {}, [])
    )


def _embedded(document: Any) -> str:
    """JSON that may stand in a script element, whatever texts are in it."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
