"""Plots of a comparison, as Vega-Lite specifications. See https://vega.github.io/vega-lite/docs/."""

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
"""Colours of the artifacts in light and dark mode: the same hues, with enough contrast for thin lines."""


def picture(comparison: Comparison) -> Spec:
    """Plot of speed against F1: every artifact with its 95 % intervals, and the Pareto front."""
    points = [_point(measured) for measured in comparison.measured]
    for rank, point in enumerate(sorted(points, key=lambda point: point["speed"])):
        point["shift"] = LABEL_OFFSETS[rank % len(LABEL_OFFSETS)]
    relative = comparison.baseline is not None
    speed = f"speed, {comparison.baseline} = 1" if relative else "samples/s"
    fastest = max(point["high"] for point in points)
    # The wider margin is for the labels, which are to the right of their points.
    speeds = _axis(points, "low", "high", least=fastest / 2, before=0.06, after=0.2)
    scores = _axis(points, "f1_low", "f1_high", least=1.0, before=0.1, after=0.1)
    x: Spec = {"field": "speed", "type": "quantitative", "title": speed, "axis": {"tickCount": 8}, "scale": speeds}
    y: Spec = {"field": "f1", "type": "quantitative", "title": "F1", "axis": {"tickCount": 6}, "scale": scores}
    front_points = pareto_front(points)
    edge = [
        {"speed": speeds["domain"][0], "f1": front_points[0]["f1"]},
        *({"speed": point["speed"], "f1": point["f1"]} for point in front_points),
        {"speed": front_points[-1]["speed"], "f1": scores["domain"][0]},
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


LABEL_OFFSETS = (-9, 11, -23, 25, -37, 39)
"""Vertical offsets of the labels from their points, in pixels, cycled so that neighbours do not overlap."""
DETAILS = {
    "name": "approach",
    "f1_shown": "F1",
    "exact_match": "EM",
    "speed_shown": "speed",
    "samples": "samples/s",
    "size": "size",
    "memory": "memory",
}
"""Fields of a point's tooltip, with their titles."""


def _axis(points: Sequence[Spec], low: str, high: str, *, least: float, before: float, after: float) -> Spec:
    """A scale from the lowest to the highest value, over a range of at least `least`.

    `before` and `after` are the margins at its ends, as fractions of that range.
    """
    bottom, top = min(point[low] for point in points), max(point[high] for point in points)
    middle, span = (bottom + top) / 2, max(top - bottom, least)
    return {"domain": [middle - span * (0.5 + before), middle + span * (0.5 + after)], "nice": False}


def pareto_front(points: Sequence[Spec]) -> list[Spec]:
    """The points that no other point dominates in `speed` and `f1`, slowest first."""
    front: list[Spec] = []
    for point in sorted(points, key=lambda point: (-point["speed"], -point["f1"])):
        if not front or point["f1"] > front[-1]["f1"]:
            front.append(point)
    return front[::-1]


def latency(comparison: Comparison) -> Spec:
    """Cumulative distribution of the latency of single questions, for each artifact."""
    values = [
        {"name": measured.name, "ms": round(milliseconds, 3)}
        for measured in comparison.measured
        for milliseconds in (measured.latency.milliseconds if measured.latency else ())
    ]
    return _spec(
        "cumulative distribution of the latency of single questions, in milliseconds",
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


def lengths(comparison: Comparison) -> Spec:
    """Windows/s of the model alone by their length, for each batch size."""
    values = [
        {
            "name": measured.name,
            "batch": speed.batch_size,
            "tokens": length.tokens,
            "windows": round(length.windows_per_second, 2),
        }
        for measured in comparison.measured
        for speed in measured.throughput
        for length in speed.by_length
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


def batches(comparison: Comparison) -> Spec:
    """Samples/s of the pipeline from end to end, by batch size."""
    values = [
        {"name": measured.name, "batch": speed.batch_size, "samples": round(speed.samples_per_second, 2)}
        for measured in comparison.measured
        for speed in measured.throughput
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
    """A specification; screen readers read `description` instead of the plot."""
    return {"$schema": SCHEMA, "description": description, "width": "container", **parts}


def _layer(mark: Spec, **encoding: Any) -> Spec:
    return {"mark": mark, "encoding": encoding}


def _point(measured: Measured) -> Spec:
    accuracy, main = measured.accuracy, measured.throughput[0]
    speed = main.samples_per_second if main.speedup is None else main.speedup
    low, high = main.speedup_interval or (speed, speed)
    f1_low, f1_high = accuracy.f1_interval or (accuracy.f1, accuracy.f1)
    return {
        "name": measured.name,
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
        "size": f"{measured.size / 1e6:.1f} MB",
        "memory": f"{measured.peak_memory / 1e6:.0f} MB",
    }
