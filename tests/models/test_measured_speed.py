"""Speeds that were measured on this machine."""

from __future__ import annotations

import json

import pytest

from qabuild.cli.doctor_report import examine, slow
from qabuild.models import measured_speed
from qabuild.models.dtype_speed import expected
from qabuild.models.measured_speed import MeasuredSpeed
from qabuild.models.recommendation import recommended
from qabuild.system import machine, packages
from qabuild.target.model import Target


def speed(backend="openvino", dtype="int8", speedup=5.0, **changes):
    given = {"variant": {}, "device": "cpu", "checkpoint": "minilm", "measured_at": "2026-01-02T03:04:05+00:00"}
    return MeasuredSpeed(**{"backend": backend, "dtype": dtype, "speedup": speedup, **given, **changes})


def target(backend="openvino", dtype="int8", **options):
    tables = {"backend": {"name": backend, **options}, "runtime": {"dtype": dtype}, "checkpoint": {"model": "sample"}}
    return Target.model_validate({"name": "t", **tables})


def test_a_later_measurement_replaces_an_earlier_one():
    measured_speed.remember([speed(speedup=2.0), speed(dtype="bf16", speedup=3.0)])
    measured_speed.remember([speed(speedup=4.0)])
    assert [(each.dtype, each.speedup) for each in measured_speed.recall("cpu")] == [("int8", 4.0), ("bf16", 3.0)]
    assert measured_speed.recall("cuda") == []


def test_options_that_were_tried_make_a_difference_and_others_none():
    measured_speed.remember([speed(variant={"rest": "bf16"}, speedup=7.0), speed(speedup=5.0)])
    found = [
        expected(each.runtime, each.backend.name, measured_speed.variant_of(each.backend, each.runtime.dtype))
        for each in (target(rest="bf16"), target(), target(calibration_samples=9))
    ]
    assert [(rule.measured, rule.rate) for rule in found if rule] == [(True, 7.0), (True, 5.0), (True, 5.0)]


@pytest.mark.parametrize("what", ["processor", "version"])
def test_it_counts_for_this_processor_and_version_of_the_runtime_only(what, monkeypatch):
    measured_speed.remember([speed()])
    if what == "processor":
        monkeypatch.setattr(machine, "cpu", lambda: "another")
    else:
        versions = packages.versions
        monkeypatch.setattr(packages, "versions", lambda names: dict.fromkeys(versions(names), "0"))
    assert measured_speed.recall("cpu") == []


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"speed": 1, "conditions": {}}]', "\x00"])
def test_a_damaged_file_counts_as_none_and_is_written_anew(content, isolated_cache):
    measured_speed.remember([speed()])
    (path,) = isolated_cache.rglob("speeds.json")
    path.write_text(content)
    assert measured_speed.recall("cpu") == []
    measured_speed.remember([speed()])
    assert len(measured_speed.recall("cpu")) == 1
    assert isinstance(json.loads(path.read_text()), list)


def test_doctor_says_what_was_measured():
    measured_speed.remember([speed(speedup=5.0), speed(backend="eager", dtype="bf16", speedup=0.4)])
    finding = next(each for each in examine() if each.subject == "measured on cpu")
    assert finding.found == "int8 with openvino (5.0x), then bf16 with eager (0.4x)"
    assert "minilm, 2026-01-02" in finding.note
    assert "0.4 times as fast as eager fp32 on this machine" in (slow(target("eager", "bf16")) or "")
    assert slow(target()) is None


def test_init_takes_what_was_measured_rather_than_what_is_expected():
    config = {"model_type": "bert"}
    measured_speed.remember([speed("torch_export", "fp32", 1.3, variant={"aot": True}), speed("eager", "fp32", 1.0)])
    best = recommended(config, "cpu")[-1]
    assert (best.backend, best.options.aot, best.expected.rate) == ("torch_export", True, 1.3)
