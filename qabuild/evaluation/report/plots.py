"""Plots of a comparison, as Vega-Lite specifications. See https://vega.github.io/vega-lite/docs/."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qabuild.evaluation.compare.result import Comparison, Measured
from qabuild.system.units import count_of

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
    """Plot of speed against F1: every artifact with its 95 % intervals, the limits of its gates, and the Pareto front.

    Names are in the legend and at the right edge, outside of the area with lines.
    """
    points = [_point(measured) for measured in comparison.measured]
    limits = f1_limits(comparison.measured)
    relative = comparison.baseline is not None
    speed = f"speed, {comparison.baseline} = 1" if relative else "samples/s"
    fastest = max(point["high"] for point in points)
    lowest = [{"f1_low": limit["f1"], "f1_high": limit["f1"]} for limit in limits]
    speeds = _axis(points, "low", "high", least=fastest / 2, margin=0.06)
    scores = _axis([*points, *lowest], "f1_low", "f1_high", least=1.0, margin=0.1)
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
    colour, named = {**COLOUR, "legend": None}, {**COLOUR, "legend": LEGEND}
    layers = [
        _layer(rule, x={**x, "field": "low"}, x2={"field": "high"}, y=y, color=colour),
        _layer(rule, x=x, y={**y, "field": "f1_low"}, y2={"field": "f1_high"}, color=colour),
        _layer(point, x=x, y=y, color=named, shape={**named, "scale": {"range": SHAPES}}, tooltip=tooltip),
    ]
    layers = [front, *_limit_layers(limits, y), *layers]
    # Else the legend of the points is one of colours and one of shapes.
    own = {"scale": {"color": "independent", "shape": "independent"}}
    return _spec("speed against F1", layer=layers, data={"values": points}, height=HEIGHT, resolve=own)


HEIGHT = 380
"""Of the picture's area of lines, in points."""
LEGEND: Spec = {"orient": "bottom", "direction": "vertical", "symbolOpacity": 1}
SHAPES = ["circle", "square", "triangle-up", "cross", "diamond", "triangle-right", "triangle-down"]
"""One less than there are colours, so that it takes 56 artifacts until one repeats both."""
LABEL_HEIGHT = 14
"""Least vertical distance of two names of limits, in points."""
FARTHEST_LIMIT = 10.0
"""Points of F1 below the lowest artifact; a limit farther away is not drawn, as it would flatten the plot."""


def title(comparison: Comparison) -> Spec:
    """What the picture shows: the checkpoints, the questions and the machine."""
    checkpoints = dict.fromkeys(measured.manifest["checkpoint"]["name"] for measured in comparison.measured)
    machine, main = comparison.machine, comparison.measured[0].throughput[0]
    cores = count_of(machine["cores"], "core")
    hardware = ", ".join([machine["cpu"], cores, *dict.fromkeys(machine.get("gpus") or ())])
    asked = f"{count_of(main.questions, 'question')} of {comparison.data['dataset']}, in batches of {main.batch_size}"
    interrupted = ", interrupted" if comparison.interrupted else ""
    lines = [f"{asked}{interrupted}", hardware]
    return {
        "text": _wrapped(f"Speed against F1 of {', '.join(checkpoints)}"),
        "subtitle": [part for line in lines for part in _wrapped(line)],
        "anchor": "start",
        "offset": 12,
    }


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 90)


def f1_limits(compared: Sequence[Measured]) -> list[Spec]:
    """The lowest F1 that the gates allow, highest first: `f1` and the `name` of the gate.

    A gate compares with the checkpoint, whose F1 follows from what it measured of the artifact.
    """
    gates: Counter[tuple[float, str]] = Counter()
    for measured in compared:
        f1 = measured.accuracy.f1
        for gate in measured.gates:
            if gate.name == "min_f1_retention" and gate.limit and gate.value:
                at, name = gate.limit * f1 / gate.value, f"min_f1_retention {gate.limit:g}"
            elif gate.name == "max_f1_drop" and gate.value is not None:
                at, name = f1 + gate.value - gate.limit, f"max_f1_drop {gate.limit:g}"
            else:
                continue
            gates[round(at, 4), name] += 1
    lowest = min(measured.accuracy.f1 for measured in compared) - FARTHEST_LIMIT
    return [
        {"f1": f1, "name": name if count == len(compared) else f"{name} ({count} of {len(compared)})"}
        for (f1, name), count in sorted(gates.items(), reverse=True)
        if f1 >= lowest
    ]


def _limit_layers(limits: Sequence[Spec], y: Spec) -> list[Spec]:
    """A line across for each limit, and its name right of the plot, where no line is; names keep a distance."""
    low, high = y["scale"]["domain"]
    values: list[Spec] = []
    for limit in limits:
        at = HEIGHT * (high - limit["f1"]) / (high - low)
        values.append({**limit, "at": max([at, *(value["at"] + LABEL_HEIGHT for value in values[-1:])])})
    rule = {"type": "rule", "strokeDash": [2, 2], "color": LIMIT}
    text = {"type": "text", "align": "left", "dx": 6, "fontSize": 11}
    at = {"field": "at", "type": "quantitative", "scale": None}
    return [
        {"data": {"values": values}, **_layer(rule, y=y)},
        {"data": {"values": values}, **_layer(text, x={"value": "width"}, y=at, text={"field": "name"})},
    ]


LIMIT = "#c4342b"
"""Colour of the limits, with a contrast of more than 3:1 on both backgrounds."""
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


def _axis(points: Sequence[Spec], low: str, high: str, *, least: float, margin: float) -> Spec:
    """A scale from the lowest to the highest value, over a range of at least `least`.

    `margin` is the margin at each of its ends, as a fraction of that range.
    """
    bottom, top = min(point[low] for point in points), max(point[high] for point in points)
    middle, span = (bottom + top) / 2, max(top - bottom, least)
    return {"domain": [middle - span * (0.5 + margin), middle + span * (0.5 + margin)], "nice": False}


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
