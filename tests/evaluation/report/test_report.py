"""The page in a browser, opened from a file without a network; and the picture."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import contests
import pytest

from qabuild.evaluation import report
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
    assert [mark.text for mark in css(shown, "#picture svg .mark-text.role-mark text")] == [
        "baseline",
        "ort-fp32",
        "ort-int8",
    ]
    for plot in ("latency", "lengths", "batches"):
        assert css(shown, f"#{plot} svg path"), plot
    assert shown.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []


def test_hovering_over_a_point_shows_its_figures(shown):
    from selenium.webdriver import ActionChains

    point = css(shown, "#picture svg .mark-symbol path")[-1]
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
