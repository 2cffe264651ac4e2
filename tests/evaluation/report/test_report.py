"""The page in a browser, opened from a file without a network; and the picture."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import contests
import pytest

from qabuild.artifact.evidence import Gate
from qabuild.evaluation import report
from qabuild.evaluation.compare import Comparison
from qabuild.evaluation.report import page, plots
from qabuild.system import files

pytest.importorskip("vl_convert", reason="the page's plots are made with vl-convert-python")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,2600"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write_page(contests.comparison(), path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a network."""
    driver, selenium = shutil.which("chromedriver"), pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and driver):
        pytest.skip("Chromium or chromedriver is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with selenium.Chrome(options, selenium.ChromeService(driver)) as chrome:
        chrome.set_script_timeout(120)
        chrome.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        chrome.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        yield chrome


@pytest.fixture
def shown(browser: Any, written: Path) -> Any:
    """The rendered page; the browser's log must be empty after the test."""
    browser.get(written.as_uri())
    wait_until(browser, "document.documentElement.dataset.drawn")
    yield browser
    assert browser.get_log("browser") == []


def wait_until(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120).until(lambda driver: driver.execute_script(f"return {condition}"))


def css(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def column(browser: Any, index: int) -> list[str]:
    return [row.find_elements("css selector", "th, td")[index].text for row in css(browser, "#figures tbody tr")]


# --- in a browser ---------------------------------------------------------------------------------------------------


def test_the_page_opens_with_the_picture_and_fetches_nothing(shown):
    first = css(shown, "main section")[0]
    assert first.find_elements("css selector", "#picture svg")
    assert [name.text for name in css(shown, "#picture svg .role-legend-label text")] == [
        "baseline",
        "ort-fp32",
        "ort-int8",
    ]
    assert [name.text for name in css(shown, "#picture svg .mark-text.role-mark text")] == ["min_f1_retention 0.9"]
    for plot in ("latency", "lengths", "batches"):
        assert css(shown, f"#{plot} svg path"), plot
    assert shown.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []


def test_hovering_over_a_point_shows_its_figures(shown):
    from selenium.webdriver import ActionChains

    point = css(shown, "#picture svg .mark-symbol.role-mark path")[-1]  # those of the legend are role-legend-symbol
    ActionChains(shown).move_to_element(point).perform()
    wait_until(shown, "document.querySelector('#vg-tooltip-element.visible')")
    text = css(shown, "#vg-tooltip-element")[0].text
    assert "ort-int8" in text
    assert "90.0 MB" in text


def test_a_heading_sorts_by_its_column_by_mouse_and_keyboard(shown):
    from selenium.webdriver import Keys

    heading = next(button for button in css(shown, "thead button") if button.text == "size")
    assert heading.tag_name == "button", "can be reached and pressed by keyboard"
    by_name, by_f1 = css(shown, "thead button")[0], css(shown, "thead button")[2]
    by_f1.click()
    assert column(shown, 0) == ["baseline", "ort-fp32", "ort-int8", "on-a-gpu"]
    by_f1.send_keys(Keys.ENTER)
    assert column(shown, 0)[0] == "ort-int8"
    assert column(shown, 0)[-1] == "on-a-gpu", "rows without a figure come last"
    assert [heading.get_attribute("aria-sort") for heading in css(shown, "thead th")][:3] == [
        "none",
        "none",
        "ascending",
    ]
    by_name.send_keys(Keys.SPACE)
    assert column(shown, 0) == sorted(column(shown, 0), reverse=True)


def test_changed_answers_can_be_filtered(shown):
    def questions() -> list[str]:
        return [re.findall(r"\d+(?=th)", heading.text)[0] for heading in css(shown, "#flips h3")]

    assert sorted(questions()) == ["3", "5", "6", "7", "90"]
    css(shown, "input[value=gained]")[0].click()
    assert questions() == ["3"]
    css(shown, "input[value=lost]")[0].click()
    assert sorted(questions()) == ["5", "6", "7", "90"]
    css(shown, "input[type=search]")[0].send_keys("90TH")
    assert questions() == ["90"]
    assert css(shown, "#count")[0].text == "1 of 5"


def test_answers_and_gold_are_marked_in_the_context(shown):
    css(shown, "input[value=gained]")[0].click()
    article = css(shown, "#flips article")[0]
    marks = {
        kind: [m.get_attribute("textContent") for m in article.find_elements("css selector", f".context mark.{kind}")]
        for kind in ("gold", "baseline", "artifact")
    }
    assert "".join(marks["gold"]) == "Alma & <b>Serin</b> in 1803"
    assert "".join(marks["artifact"]) == "Alma & <b>Serin</b> in 1803"
    assert marks["baseline"] == ["1803"]
    assert "The 3th bridge was built by Alma & <b>Serin</b> in 1803. It stands." in article.text


def test_failures_are_listed_with_their_reason(shown):
    assert css(shown, "ul.reasons")[0].text == "on-a-gpu: no CUDA device here"


def test_the_provenance_of_an_artifact_unfolds(shown):
    details = css(shown, "details")[1]
    details.find_element("css selector", "summary").click()
    assert "torch 2.13.0" in details.text
    assert "name onnxruntime, level 2" in details.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_plots_have_enough_contrast_in_light_and_dark_mode(shown, scheme):
    """At least 4.5:1 for text (WCAG 2.2, 1.4.3) and 3:1 for lines (1.4.11)."""
    shown.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    wait_until(shown, f"document.documentElement.dataset.drawn === '{scheme}'")
    background = colour(css(shown, "body")[0].value_of_css_property("background-color"))
    assert (sum(background) > 380) == (scheme == "light")
    texts = [
        css(shown, selector)[0].value_of_css_property("color") for selector in ("h1", ".note", "td", ".reasons strong")
    ]
    texts += [text.value_of_css_property("fill") for text in css(shown, "#picture svg text")]
    assert min(contrast(colour(text), background) for text in texts) >= 4.5
    lines = [path.value_of_css_property("stroke") for path in css(shown, "#latency svg .mark-line path")]
    assert len(lines) == 3
    assert min(contrast(colour(line), background) for line in lines) >= 3
    for kind in ("gold", "baseline", "artifact"):
        mark = css(shown, f".legend mark.{kind}")[0]
        mark_background = colour(mark.value_of_css_property("background-color")) if kind != "gold" else background
        assert contrast(colour(mark.value_of_css_property("color")), mark_background) >= 4.5, kind


def colour(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.findall(r"[\d.]+", text)[:3])


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""

    def luminance(rgb: tuple[float, ...]) -> float:
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in rgb)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# --- without a browser ----------------------------------------------------------------------------------------------


def test_texts_of_a_data_set_cannot_close_the_script_element(written):
    text = written.read_text(encoding="utf-8")
    script = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert "<" not in script[1]
    assert "<b>Serin</b>" in json.loads(script[1])["asked"]["q3"]["context"]


def test_the_picture_is_a_png_of_its_size(tmp_path):
    report.write_picture(contests.comparison(), tmp_path / "picture.png")
    content = (tmp_path / "picture.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > page.SCALE * page.WIDTH
    assert 0.3 < height / width < 1
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr(
        files.os, "replace", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path / "report.html", b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "old")]


@pytest.mark.parametrize("folder", ["gone", "file"])
def test_a_page_in_a_missing_folder_is_reported_by_its_own_path(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="directory") as refused:
        files.write(tmp_path / folder / "x.html", b"")
    assert refused.value.filename == str(tmp_path / folder / "x.html")


def test_the_pareto_front_has_the_points_that_no_other_dominates():
    points = [
        {"name": n, "speed": s, "f1": f}
        for n, s, f in [("a", 1, 90), ("b", 2, 90), ("c", 3, 80), ("d", 2, 85), ("e", 3, 79)]
    ]
    assert [point["name"] for point in plots.pareto_front(points)] == ["b", "c"]


def crowded(count: int, f1: list[float], limits: list[float], name: str = "an-artifact-with-a-long-name") -> Comparison:
    """`count` artifacts of about one speed, of these F1 and limits in turn."""
    comparison = contests.comparison()
    measured = []
    for number in range(count):
        one, points, limit = comparison.measured[number % 3], f1[number % len(f1)], limits[number % len(limits)]
        gates = [Gate(name="max_f1_drop", limit=limit, value=90 - points, passed=90 - points <= limit)]
        accuracy = replace(one.accuracy, f1=points, f1_interval=(points - 1, points + 1))
        measured.append(replace(one, name=f"{name}-{number}", accuracy=accuracy, gates=gates))
    return replace(comparison, measured=measured)


Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


def drawn(comparison: Comparison) -> tuple[dict[str, Box], list[Box]]:
    """The picture's texts, and the boxes of its straight lines, in its coordinates."""
    import vl_convert

    texts: dict[str, Box] = {}
    lines: list[Box] = []

    def walk(node: Element, x: float, y: float) -> None:
        for dx, dy in re.findall(r"translate\(([-\d.]+),\s*([-\d.]+)\)", node.get("transform", "")):
            x, y = x + float(dx), y + float(dy)
        kind = node.tag.rpartition("}")[2]
        if kind == "text" and "rotate" not in node.get("transform", ""):
            size = float(node.get("font-size", "11px").removesuffix("px"))
            below = 0.0
            for line in list(node) or [node]:
                text, below = line.text or "", below + float(line.get("dy", 0))
                width = 0.62 * size * len(text)  # more than the font takes
                left = {"middle": x - width / 2, "end": x - width}.get(node.get("text-anchor", "start"), x)
                base = y + below
                texts[f"{len(texts)} {text}"] = (left, base - 0.8 * size, left + width, base + 0.2 * size)
        if kind == "line":
            x2, y2 = x + float(node.get("x2", 0)), y + float(node.get("y2", 0))
            lines.append((min(x, x2), min(y, y2), max(x, x2), max(y, y2)))
        if kind == "path" and "mark-line" in parents[node].get("class", ""):
            ends = re.findall(r"[ML]([-\d.]+),([-\d.]+)", node.get("d", ""))
            corners = [(x + float(across), y + float(down)) for across, down in ends]
            lines.extend((min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in pairwise(corners))
        for child in node:
            walk(child, x, y)

    root = fromstring(vl_convert.vegalite_to_svg(page.picture_spec(comparison)))
    parents = {child: parent for parent in root.iter() for child in parent}
    walk(root, 0, 0)
    return texts, lines


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize(
    "comparison",
    [
        pytest.param(lambda: contests.comparison(), id="three"),
        pytest.param(lambda: crowded(10, [89.0], [0.5]), id="ten at one point"),
        pytest.param(lambda: crowded(9, [89.9, 88.8], [0.5, 0.52, 0.54, 0.56, 0.58]), id="five limits at one height"),
        pytest.param(lambda: crowded(4, [50.0, 90.0], [0.5, 30.0]), id="far apart"),
        pytest.param(lambda: crowded(2, [89.0], [0.5], "x" * 60), id="long names"),
    ],
)
def test_no_line_and_no_other_name_crosses_a_name(comparison):
    shown = comparison()
    texts, lines = drawn(shown)
    assert len(lines) > 2 * len(shown.measured), "two intervals of each, and the front"
    for measured in shown.measured:
        assert any(text.endswith(f" {measured.name}") for text in texts)
    for name, box in texts.items():
        assert not [line for line in lines if overlap(box, line)], name
        assert not [other for other, its in texts.items() if other != name and overlap(box, its)], name


def test_the_picture_names_checkpoint_questions_and_machine():
    comparison = contests.comparison()
    texts = " ".join(drawn(comparison)[0])
    for part in ("Speed against F1 of sample", "160 questions of bridges, in batches of 8", comparison.machine["cpu"]):
        assert part in texts
    assert "interrupted" not in texts
    assert "interrupted" in " ".join(drawn(replace(comparison, interrupted=True))[0])


def test_limits_of_gates_are_drawn_where_an_artifact_at_the_limit_would_be():
    gates = [
        Gate(name="min_f1_retention", limit=0.9, value=0.8, passed=False),
        Gate(name="max_f1_drop", limit=0.5, value=20.0, passed=False),
        Gate(name="min_agreement", limit=0.5, value=0.9, passed=True),
    ]
    one, two, three = contests.comparison().measured
    low = replace(one, accuracy=replace(one.accuracy, f1=64.0, f1_interval=None), gates=gates)
    limits = plots.f1_limits([low, replace(two, gates=[]), replace(three, gates=[])])
    assert limits == [
        {"f1": 83.5, "name": "max_f1_drop 0.5 (1 of 3)"},
        {"f1": 72.0, "name": "min_f1_retention 0.9 (1 of 3)"},
    ]
    far = replace(low, gates=[replace(gates[0], limit=0.01), replace(gates[1], value=None)])
    assert plots.f1_limits([far]) == [], "it would flatten the plot"


def test_equal_scores_are_centred_in_a_range_of_one_point_and_the_front_is_visible():
    comparison = contests.comparison()
    even = [replace(m, accuracy=replace(m.accuracy, f1=82.4, f1_interval=(82.4, 82.4))) for m in comparison.measured]
    spec = plots.picture(replace(comparison, measured=even))
    front, *layers = spec["layer"]
    low, high = layers[-1]["encoding"]["y"]["scale"]["domain"]
    assert low < 82.4 - 0.5 < 82.4 + 0.5 < high
    left, right = layers[-1]["encoding"]["x"]["scale"]["domain"]
    fastest = max(point["speed"] for point in spec["data"]["values"])
    assert left < 1 < fastest < right
    corners = [(corner["speed"], corner["f1"]) for corner in front["data"]["values"]]
    assert corners == [(left, 82.4), (fastest, 82.4), (fastest, low)]


def test_without_a_baseline_the_picture_shows_samples_per_second():
    comparison = contests.comparison("on-a-gpu")
    assert comparison.baseline is None
    values = plots.picture(comparison)["data"]["values"]
    assert [point["speed"] for point in values] == [
        measured.throughput[0].samples_per_second for measured in comparison.measured
    ]
    assert plots.picture(replace(comparison, measured=comparison.measured[:1]))["data"]["values"]


def test_the_page_of_a_tuning_begins_with_what_was_tried(tmp_path):
    columns, rows = ["candidate", "result"], [["<b>winner</b>", "won"], ["other", "left out: too large"]]
    asked = contests.questions()
    verified = contests.contestant("winner", asked, contests.answers(asked, wrong=[5])).verification.measurement
    title = "Tuned for size: <b>winner</b>"
    candidates = report.Candidates(title, ("why it won", "a note"), columns, rows, verified)
    report.write_page(contests.comparison(), tmp_path / "tuned.html", candidates)
    text = (tmp_path / "tuned.html").read_text()
    head = text[text.index("<main>") : text.index('id="picture-title"')]
    assert "<h1>Tuned for size: &lt;b&gt;winner&lt;/b&gt;</h1>" in head
    assert "<p>Why it won.</p>" in head
    assert "left out: too large" in head
    assert "<title>Tuned for size: &lt;b&gt;winner&lt;/b&gt;</title>" in text
    assert "What the winner changes against the checkpoint" in head
    assert "answers that changed: 1, 1 of them for the worse and 0 for the better" in head
    assert "Who built the 5th bridge, and when?" in head
    assert "relative to the baseline, baseline, the winner." in text
    assert "relative to the baseline, baseline." in page.page(contests.comparison())
    assert "What was tried" not in page.page(contests.comparison())
