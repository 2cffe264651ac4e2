"""What is drawn, as Vega-Lite specifications. See https://vega.github.io/vega-lite/docs/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qabuild.evaluation.compare.result import Comparison, Measured

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
COLOUR: Spec = {"field": "name", "type": "nominal", "title": None, "sort": None}
LINES: Spec = {
    key: {**COLOUR, "legend": {"symbolType": "stroke", "symbolSize": 400}} for key in ("color", "strokeDash")
}
COLOURS = {
    "light": ["#3465a4", "#b8370f", "#1b7f3b", "#8a5a00", "#7b3fa0", "#0b7285", "#a61e6b", "#555555"],
    "dark": ["#7cb0ff", "#ff9a7a", "#6fd08c", "#e8bf4d", "#cf9cf2", "#5fd0e0", "#ff8fc7", "#c4c4c4"],
}
"""One for each artifact: the same hues dark on white and light on black, so that thin lines stay legible."""


def picture(found: Comparison) -> Spec:
    """Speed against F1: every artifact with its 95 % intervals, and the Pareto front."""
    points = [_point(each) for each in found.measured]
    for rank, point in enumerate(sorted(points, key=lambda each: each["speed"])):
        point["shift"] = SHIFTS[rank % len(SHIFTS)]
    relative = found.baseline is not None
    speed = f"speed, {found.baseline} = 1" if relative else "samples/s"
    fastest = max(point["high"] for point in points)
    speeds = _axis(points, "low", "high", least=fastest / 2, before=0.06, after=0.2)  # names stand to the right
    scores = _axis(points, "f1_low", "f1_high", least=1.0, before=0.1, after=0.1)
    x: Spec = {"field": "speed", "type": "quantitative", "title": speed, "axis": {"tickCount": 8}, "scale": speeds}
    y: Spec = {"field": "f1", "type": "quantitative", "title": "F1", "axis": {"tickCount": 6}, "scale": scores}
    best = pareto_front(points)
    edge = [
        {"speed": speeds["domain"][0], "f1": best[0]["f1"]},
        *({"speed": point["speed"], "f1": point["f1"]} for point in best),
        {"speed": best[-1]["speed"], "f1": scores["domain"][0]},
    ]
    front = {
        "data": {"values": [{"rank": rank, **corner} for rank, corner in enumerate(edge)]},
        "mark": {"type": "line", "interpolate": "step-before", "strokeDash": [5, 4], "opacity": 0.8, "color": "#888"},
        "encoding": {"x": x, "y": y, "order": {"field": "rank"}},
    }
    tooltip = [{"field": key, "type": "nominal", "title": title} for key, title in DETAILS.items()]
    rule, point = {"type": "rule", "strokeWidth": 1.5}, {"type": "point", "filled": True, "size": 110, "opacity": 1}
    label = {"type": "text", "align": "left", "dx": 9, "dy": {"expr": "datum.shift"}, "fontSize": 12}
    colour = {**COLOUR, "legend": None}
    layers = [
        _layer(rule, x={**x, "field": "low"}, x2={"field": "high"}, y=y, color=colour),
        _layer(rule, x=x, y={**y, "field": "f1_low"}, y2={"field": "f1_high"}, color=colour),
        _layer(point, x=x, y=y, color=colour, tooltip=tooltip),
        _layer(label, x=x, y=y, color=colour, text={"field": "name"}),
    ]
    return _spec("speed against F1", layer=[front, *layers], data={"values": points}, height=380)


SHIFTS = (-9, 11, -23, 25, -37, 39)
"""How far above or below their points the names stand, in pixels, by turns: neighbours do not cover each other's."""
DETAILS = {
    "name": "approach",
    "f1_shown": "F1",
    "exact_match": "EM",
    "speed_shown": "speed",
    "samples": "samples/s",
    "size": "size",
    "memory": "memory",
}
"""What hovering over a point shows."""


def _axis(points: Sequence[Spec], low: str, high: str, *, least: float, before: float, after: float) -> Spec:
    """A scale from the lowest to the highest value, over a range of at least `least`.

    `before` and `after` are the room at its ends, in shares of that range.
    """
    bottom, top = min(point[low] for point in points), max(point[high] for point in points)
    middle, span = (bottom + top) / 2, max(top - bottom, least)
    return {"domain": [middle - span * (0.5 + before), middle + span * (0.5 + after)], "nice": False}


def pareto_front(points: Sequence[Spec]) -> list[Spec]:
    """Those that no other beats in speed without losing in F1 or in F1 without losing in speed, the slowest first."""
    best: list[Spec] = []
    for point in sorted(points, key=lambda each: (-each["speed"], -each["f1"])):
        if not best or point["f1"] > best[-1]["f1"]:
            best.append(point)
    return best[::-1]


def latency(found: Comparison) -> Spec:
    """For each artifact, how many of the questions were answered within so many milliseconds."""
    values = [
        {"name": each.name, "ms": round(spent, 3)}
        for each in found.measured
        for spent in (each.latency.milliseconds if each.latency else ())
    ]
    return _spec(
        "share of questions answered within so many milliseconds",
        data={"values": values},
        transform=[
            {"window": [{"op": "cume_dist", "as": "share"}], "sort": [{"field": "ms"}], "groupby": ["name"]},
        ],
        mark={"type": "line", "interpolate": "step-after", "tooltip": True},
        encoding={
            "x": {
                "field": "ms",
                "type": "quantitative",
                "title": "milliseconds",
                "scale": {"type": "log", "nice": False},
            },
            "y": {"field": "share", "type": "quantitative", "title": "share of questions", "axis": {"format": "%"}},
            **LINES,
        },
        height=260,
    )


def lengths(found: Comparison) -> Spec:
    """Windows a second through the model alone, by their length, for each batch size."""
    values = [
        {"name": each.name, "batch": speed.batch_size, "tokens": at.tokens, "windows": round(at.windows_per_second, 2)}
        for each in found.measured
        for speed in each.throughput
        for at in speed.by_length
    ]
    lines = {
        "mark": {"type": "line", "point": True, "tooltip": True},
        "encoding": {
            "x": {"field": "tokens", "type": "quantitative", "title": "tokens of a window"},
            "y": {
                "field": "windows",
                "type": "quantitative",
                "title": "windows/s",
                "scale": {"type": "log", "nice": False},
            },
            **LINES,
        },
        "width": 260,
        "height": 220,
    }
    facet = {"column": {"field": "batch", "type": "ordinal", "title": "batch size"}}
    description = "windows a second by length and batch size"
    return {"$schema": SCHEMA, "description": description, "data": {"values": values}, "facet": facet, "spec": lines}


def batches(found: Comparison) -> Spec:
    """Questions a second through the whole pipeline, by batch size."""
    values = [
        {"name": each.name, "batch": speed.batch_size, "samples": round(speed.samples_per_second, 2)}
        for each in found.measured
        for speed in each.throughput
    ]
    return _spec(
        "questions a second by batch size",
        data={"values": values},
        mark={"type": "line", "point": True, "tooltip": True},
        encoding={
            "x": {"field": "batch", "type": "ordinal", "title": "batch size", "axis": {"labelAngle": 0}},
            "y": {"field": "samples", "type": "quantitative", "title": "samples/s"},
            **LINES,
        },
        height=260,
    )


def _spec(description: str, **parts: Any) -> Spec:
    """`description` is read out in place of the plot."""
    return {"$schema": SCHEMA, "description": description, "width": "container", **parts}


def _layer(mark: Spec, **encoding: Any) -> Spec:
    return {"mark": mark, "encoding": encoding}


def _point(each: Measured) -> Spec:
    accuracy, main = each.accuracy, each.throughput[0]
    speed = main.samples_per_second if main.speedup is None else main.speedup
    low, high = main.speedup_interval or (speed, speed)
    f1_low, f1_high = accuracy.f1_interval or (accuracy.f1, accuracy.f1)
    return {
        "name": each.name,
        "speed": speed,
        "low": low,
        "high": high,
        "f1": accuracy.f1,
        "f1_low": f1_low,
        "f1_high": f1_high,
        "f1_shown": f"{accuracy.f1:.2f} ({f1_low:.2f} to {f1_high:.2f})",
        "exact_match": f"{accuracy.exact_match:.2f}",
        "speed_shown": f"{speed:.2f} ({low:.2f} to {high:.2f})",
        "samples": f"{main.samples_per_second:.1f}",
        "size": f"{each.size / 1e6:.1f} MB",
        "memory": f"{each.peak_memory / 1e6:.0f} MB",
    }
