"""Properties of simulated machines, given their /proc/cpuinfo, packages and GPUs, and what is missing on them."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from qabuild.builder import requirements
from qabuild.cli import doctor_report
from qabuild.errors import MissingEnvironment
from qabuild.models.backends import BACKENDS, backend
from qabuild.system import machine, packages
from qabuild.target.model import Target

ROOT = Path(__file__).resolve().parents[2]

SAPPHIRE_RAPIDS = """\
processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model		: 143
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags		: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 avx_vnni amx_bf16 amx_tile amx_int8 avx512_fp16
bugs		: spectre_v1

processor	: 1
model name	: another
flags		: fpu
"""
ALDER_LAKE = "processor : 0\ncpu family : 6\nmodel : 151\nmodel name : 12th Gen Core\nflags : sse2 avx2 avx_vnni\n"
ZEN_5 = "processor : 0\nvendor_id : AuthenticAMD\ncpu family : 26\nflags : avx2 avx512f avx512_vnni avx512_bf16\n"
WITHOUT_AMX = "processor : 0\nvendor_id : GenuineIntel\ncpu family : 6\nflags : avx2 avx512f avx512_vnni avx512_bf16\n"
ZEN_3 = "processor : 0\ncpu family : 25\nmodel : 1\nmodel name : AMD EPYC\nflags : sse2 avx2 vaes\n"
GRAVITON = "processor : 0\nBogoMIPS : 2100.00\nFeatures : fp asimd asimddp i8mm bf16\nCPU implementer : 0x41\n"


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`processor(text)`: simulate a machine whose /proc/cpuinfo is `text`."""

    def simulate(text: str) -> None:
        path = tmp_path / f"cpuinfo-{len(list(tmp_path.iterdir()))}"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(machine, "CPUINFO", path)

    return simulate


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str | None]], None]:
    """`installed({"onnx": None, "torch": "2.9"})`: simulate a machine without onnx and with torch 2.9."""

    def simulate(packages: Mapping[str, str | None]) -> None:
        real = metadata.version

        def version(name: str) -> str:
            installed_version = packages.get(name, "") if name in packages else real(name)
            if installed_version is None:
                raise metadata.PackageNotFoundError(name)
            return installed_version

        monkeypatch.setattr(metadata, "version", version)

    return simulate


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine with a GPU and its driver."""
    monkeypatch.setattr(machine, "gpus", lambda: ("NVIDIA H100",))
    monkeypatch.setattr(machine, "gpu_architecture", lambda: "sm_90")
    monkeypatch.setattr(machine, "driver_version", lambda: "570.1")


def target(backend: str = "eager", device: str = "cpu", dtype: str = "fp32") -> Target:
    return Target.model_validate(
        {
            "name": "x",
            "checkpoint": {"model": "sample"},
            "backend": {"name": backend},
            "runtime": {"device": device, "dtype": dtype},
        }
    )


# --- processors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpuinfo", "name", "sets"),
    [
        (
            SAPPHIRE_RAPIDS,
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz (family 6, model 143)",
            ("AVX2", "AVX512", "AVX512-VNNI", "AVX-VNNI", "AVX512-BF16", "AMX", "AMX-BF16", "AMX-INT8"),
        ),
        (ALDER_LAKE, "12th Gen Core (family 6, model 151)", ("AVX2", "AVX-VNNI")),
        (ZEN_3, "AMD EPYC (family 25, model 1)", ("AVX2",)),
        ("cpu family : 6\n", "(family 6)", ()),
    ],
    ids=["sapphire-rapids", "alder-lake", "zen-3", "terse"],
)
def test_a_processor_has_a_name_and_instruction_sets(processor, cpuinfo, name, sets):
    processor(cpuinfo)
    assert machine.cpu().endswith(name)
    assert machine.instruction_sets() == sets


@pytest.mark.parametrize("cpuinfo", [GRAVITON, "", "\n\n\n", "no colon here", "model name\n"])
def test_an_unknown_processor_has_a_name_and_no_instruction_sets(processor, cpuinfo):
    processor(cpuinfo)
    assert machine.cpu()
    assert machine.instruction_sets() == ()


def test_a_system_without_cpuinfo_has_a_processor_name(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "gone")
    assert machine.cpu()
    assert machine.instruction_sets() == ()


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ({}, 8),
        ({"": "max 100000"}, 8),
        ({"pod/app": "150000 100000"}, 2),
        ({"pod": "300000 100000", "pod/app": "max 100000"}, 3),
        ({"pod": "50000 100000", "pod/app": "400000 100000"}, 1),
        ({"pod/other": "100000 100000", "pod/app": "not numbers"}, 8),
    ],
    ids=["none", "unlimited", "own", "parent", "smallest", "another group"],
)
def test_cores_are_limited_by_the_control_groups_quota(tmp_path, monkeypatch, quotas, cores):
    for group, text in quotas.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(f"{text}\n")
    membership = tmp_path / "cgroup"
    membership.write_text("1:cpu:/elsewhere\n0::/pod/app\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", membership)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert machine.cores() == cores
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "gone")
    assert machine.cores() == 8


@pytest.mark.parametrize(
    ("limits", "free"),
    [({}, 8e9), ({"pod/app": ("max", "5")}, 8e9), ({"pod/app": ("3000000000", "1500000000")}, 2e9)],
    ids=["the system's", "unlimited", "a control group's"],
)
def test_free_memory_is_what_system_and_control_group_leave(tmp_path, monkeypatch, limits, free):
    for group, (limit, used) in limits.items():
        (tmp_path / group).mkdir(parents=True)
        (tmp_path / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / group / "memory.current").write_text(f"{used}\n")
        (tmp_path / group / "memory.stat").write_text("anon 9\ninactive_file 500000000\n")
    (tmp_path / "cgroup").write_text("0::/pod/app\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    7812500 kB\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert machine.free_memory() == free


def test_limits_of_version_1_control_groups_count_too(tmp_path, monkeypatch):
    cpu, memory = tmp_path / "cpu/pod", tmp_path / "memory/pod"
    for folder, files in {
        cpu: {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"},
        cpu / "app": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
        memory / "app": {"memory.limit_in_bytes": "3000000000", "memory.usage_in_bytes": "1500000000"},
    }.items():
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")
    (memory / "app/memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500000000\n")
    (tmp_path / "cgroup").write_text("5:memory:/pod/app\n2:cpu,cpuacct:/pod/app\n1:name=systemd:/\n0::/\n")
    (tmp_path / "meminfo").write_text("MemAvailable:    7812500 kB\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert machine.cores() == 3
    assert machine.free_memory() == 2e9


@pytest.mark.parametrize(
    ("cpuinfo", "order", "why"),
    [
        (SAPPHIRE_RAPIDS, ["bf16", "int8", "fp32"], "AMX-BF16 multiplies whole tiles"),
        (ZEN_5, ["int8", "bf16", "fp32"], "AVX512-BF16 makes two products"),
        (WITHOUT_AMX, ["int8", "fp32", "bf16"], "it is AMX that is fast there"),
        (ALDER_LAKE, ["int8", "fp32", "bf16"], "AVX-VNNI makes four products"),
        (ZEN_3, ["int8 with onnxruntime", "fp32", "int8 with openvino", "bf16"], "needs overflow_fix"),
    ],
    ids=["sapphire-rapids", "zen-5", "without-amx", "alder-lake", "zen-3"],
)
def test_the_doctor_ranks_dtypes_by_speed_and_says_why(processor, without_runtimes, cpuinfo, order, why):
    processor(cpuinfo)
    fastest = finding("fastest on the CPU")
    assert f"expected: {', then '.join(order)}" in fastest.found
    assert why in fastest.note
    assert "qabuild compare" in fastest.note


def test_slow_bf16_is_reported(processor):
    processor(WITHOUT_AMX)
    assert "slower than fp32" in doctor_report.slow(target("eager", dtype="bf16"))
    processor(ZEN_3)
    assert doctor_report.slow(target("eager", dtype="bf16")) == (
        "likely to be slower than fp32: no bf16 instructions, so that it is emulated"
    )
    assert doctor_report.slow(target("onnxruntime", dtype="int8")) is None
    processor(ZEN_5)
    assert doctor_report.slow(target("eager", dtype="bf16")) is None


def test_this_machine_describes_itself_in_json():
    described = json.loads(json.dumps(machine.describe()))
    assert described["cpu"]
    assert described["cores"] >= 1
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))
    assert ("gpus" in described) == bool(machine.gpus())


def test_the_description_includes_the_gpu(gpu):
    assert {"gpus": ["NVIDIA H100"], "gpu_architecture": "sm_90", "driver": "570.1"}.items() <= (
        machine.describe().items()
    )


# --- packages -------------------------------------------------------------------------------------------------------


def test_versions_are_those_of_installed_packages(installed):
    installed({"torch": "2.9.1", "deepspeed": None})
    assert packages.versions(["torch", "deepspeed", "no-such-package"]) == {"torch": "2.9.1"}


@pytest.mark.parametrize(
    ("distributions", "versions"),
    [
        ({"onnxruntime": "1.20", "onnxruntime-gpu": None}, {"onnxruntime": "1.20"}),
        ({"onnxruntime": None, "onnxruntime-gpu": "1.21"}, {"onnxruntime-gpu": "1.21"}),
        ({"onnxruntime": "1.20", "onnxruntime-gpu": "1.21"}, {"onnxruntime": "1.20", "onnxruntime-gpu": "1.21"}),
        ({"onnxruntime": None, "onnxruntime-gpu": None}, {}),
    ],
    ids=["cpu", "gpu", "both", "neither"],
)
def test_either_distribution_provides_onnxruntime(installed, distributions, versions):
    installed(distributions)
    assert packages.versions(["onnxruntime"]) == versions
    missing = packages.missing({"onnxruntime": ()}, "cpu")
    assert bool(missing) == (not versions)


def test_all_missing_packages_are_reported_at_once_with_remedies(installed, monkeypatch):
    installed({"onnx": None, "deepspeed": None, "torch": None})
    monkeypatch.setattr(machine, "gpus", lambda: ())
    with pytest.raises(MissingEnvironment) as caught:
        packages.require({"onnx": ("cpu", "gpu"), "deepspeed": ("deepspeed",), "torch": (), "transformers": ()}, "cuda")
    message = str(caught.value)
    assert "onnx is not installed: pip install 'qabuild[cpu]' or 'qabuild[gpu]'" in message
    assert "deepspeed is not installed: pip install 'qabuild[deepspeed]'" in message
    assert "torch is not installed: pip install torch" in message
    assert "no CUDA device here" in message
    assert "--compile-only" in message
    assert "transformers" not in message
    assert "qabuild doctor" in message


def test_nothing_is_missing_where_packages_and_device_are_available(gpu):
    packages.require({"torch": (), "transformers": ()}, "cuda")
    assert packages.missing({"torch": ()}, "cpu") == []


# --- the doctor -----------------------------------------------------------------------------------------------------


def test_the_doctor_prints_only_json_whatever_the_packages_print():
    command = [sys.executable, "-m", "qabuild", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    findings = {finding["subject"]: finding for finding in report["machine"]}
    assert machine.cpu() in findings["processor"]["found"]
    assert findings["torch"]["found"] == f"torch {metadata.version('torch')}"
    assert findings["transformers"]["found"] == f"transformers {metadata.version('transformers')}"
    assert (findings["GPU"]["found"] == "none") == (not machine.gpus())
    if packages.versions(["onnxruntime"]):
        assert "CPUExecutionProvider" in findings["ONNX Runtime"]["note"]
    if packages.versions(["deepspeed"]):
        assert "inference kernels" in findings["DeepSpeed"]["note"]
    assert list(report["backends"]) == list(BACKENDS)
    assert {entry["target"] for entry in report["targets"]} == {path.stem for path in ROOT.glob("targets/*.toml")}


def finding(subject: str) -> doctor_report.Finding:
    return next(finding for finding in doctor_report.examine() if finding.subject == subject)


@pytest.fixture
def without_runtimes(installed: Any) -> None:
    """Simulate a machine with no runtime but torch, so that inspecting the others takes no time."""
    installed(dict.fromkeys(("onnxruntime", "onnxruntime-gpu", "deepspeed", "openvino")))


@pytest.mark.usefixtures("without_runtimes")
def test_a_missing_package_is_a_finding_with_its_remedy():
    assert (finding("ONNX Runtime").found, finding("DeepSpeed").found) == ("not installed", "not installed")
    assert "pip install 'qabuild[cpu]'" in finding("ONNX Runtime").note
    assert finding("DeepSpeed").note == "pip install 'qabuild[deepspeed]'"
    report = doctor_report.report([target("onnxruntime")])
    assert report["backends"]["eager"] == []
    assert report["backends"]["onnxruntime"] == report["targets"][0]["missing"]
    assert "onnxruntime is not installed" in report["targets"][0]["missing"][0]


@pytest.mark.parametrize(
    ("package", "version", "cve"),
    [
        ("transformers", "4.57.6", "CVE-2026-4372"),
        ("transformers", "5.2.0", "CVE-2026-4372"),
        ("transformers", "5.3.0", None),
        ("transformers", "4.55.4", None),
        ("torch", "2.9.1+cpu", "CVE-2026-24747"),
        ("torch", "2.10.0+cpu", None),
        ("onnx", "1.20.1", "CVE-2026-28500"),
        ("onnx", "1.21.0", None),
        ("onnx", None, None),
    ],
)
def test_a_version_with_a_known_vulnerability_is_a_finding(package, version, cve, installed):
    installed({"transformers": None, "torch": None, "onnx": None, package: version})
    found = [(f.found, f.note) for f in doctor_report.examine() if f.subject == "vulnerability"]
    assert len(found) == (cve is not None)
    if cve:
        assert found[0][0] == f"{package} {version}"
        assert found[0][1].startswith(f"{cve}: ")
        assert "as of 2026-" in found[0][1]


def test_both_distributions_of_onnx_runtime_at_once_are_reported(installed):
    installed({"onnxruntime": "1.20", "onnxruntime-gpu": "1.21", "deepspeed": None})
    assert finding("ONNX Runtime").found == "onnxruntime 1.20 and onnxruntime-gpu 1.21"
    assert "overwrite each other" in finding("ONNX Runtime").note


@pytest.mark.parametrize("error", [ImportError("libcudart.so.12: cannot open"), OSError("bad ELF"), RuntimeError("")])
def test_a_package_that_does_not_load_is_a_finding_not_a_failure(installed, monkeypatch, error):
    installed({"onnxruntime": "1.20", "onnxruntime-gpu": None, "deepspeed": "0.19"})

    def fail() -> None:
        raise error

    for name in ("onnxruntime", "deepspeed"):
        monkeypatch.setattr(backend(name), "here", fail)
    for subject in ("ONNX Runtime", "DeepSpeed"):
        assert finding(subject).note == f"does not load: {str(error) or 'RuntimeError'}"


@pytest.mark.usefixtures("without_runtimes")
@pytest.mark.parametrize(
    ("cpuinfo", "bf16", "int8"),
    [
        (SAPPHIRE_RAPIDS, "AVX512-BF16, AMX-BF16", "AVX512-VNNI, AVX-VNNI, AMX-INT8"),
        (ALDER_LAKE, "no instructions for it", "AVX-VNNI"),
        (ZEN_3, "no instructions for it", "no instructions for it"),
    ],
    ids=["sapphire-rapids", "alder-lake", "zen-3"],
)
def test_the_doctor_reports_instruction_sets_of_each_dtype(processor, cpuinfo, bf16, int8):
    processor(cpuinfo)
    assert (finding("bf16 on the CPU").found, finding("int8 on the CPU").found) == (bf16, int8)
    assert (doctor_report.slow(target("eager", dtype="bf16")) is None) == (bf16 != "no instructions for it")
    assert doctor_report.slow(target("onnxruntime", dtype="int8")) is None, "its int8 makes do with AVX2"
    assert doctor_report.slow(target()) is None
    assert doctor_report.slow(target(device="cuda", dtype="bf16")) is None


@pytest.mark.usefixtures("without_runtimes", "gpu")
def test_a_gpu_that_torch_cannot_use_is_reported(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert finding("GPU").note == "sm_90, driver 570.1"
    assert requirements.missing(target(device="cuda")) == [
        "torch finds no CUDA device: install torch's CUDA build for this driver"
    ]
    assert requirements.missing(target()) == []
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "though a GPU is here" in finding("torch").note
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "does not work here" in finding("torch").note


@pytest.mark.usefixtures("gpu")
def test_an_onnx_runtime_without_gpu_support_is_reported(installed, monkeypatch):
    import torch

    versions = dict.fromkeys(("onnxruntime", "onnx"), "1.0")
    installed({**versions, "onnxruntime-gpu": None})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    providers = ["CPUExecutionProvider"]
    fake = types.SimpleNamespace(get_available_providers=lambda: providers)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    (problem,) = requirements.missing(target("onnxruntime", device="cuda"))
    assert "no CUDAExecutionProvider" in problem
    assert "pip uninstall onnxruntime, then pip install 'qabuild[gpu]'" in problem
    providers.append("CUDAExecutionProvider")
    assert requirements.missing(target("onnxruntime", device="cuda")) == []
