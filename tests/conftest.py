"""Every test lives in a home and cache of its own, without a network; checkpoints are made, not downloaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

sys.path.append(str(ROOT))  # for tools/, and last: qabuild is tested as it was installed

settings.register_profile(
    "qabuild", deadline=None, database=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("qabuild")
# A failure of CI is one of the change: what chance finds, it finds on the machines of those who write the tests.
settings.register_profile("ci", derandomize=True)


def pytest_configure(config: pytest.Config) -> None:
    """Isolate the session before anything is imported: huggingface_hub reads these variables only once."""
    home = Path(tempfile.mkdtemp(prefix="qabuild-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    # Kernels that DeepSpeed compiled for this machine stay where they are: minutes of work, and no state.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions"))
    os.environ.setdefault("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip"))
    # What runs in the background of a script is started with interrupts ignored, and so would be all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # One thread for each of the workers that pytest-xdist starts: more wait for each other, and spin.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("ENDPOINT", "TOKEN", "HUB_CACHE", "DATASETS_CACHE", "XET_CACHE", "ASSETS_CACHE"):
        os.environ.pop(f"HF_{name}", None)
    os.environ.update(
        HOME=str(home),
        HF_HOME=str(home / "huggingface"),
        QABUILD_CACHE=str(home / "qabuild"),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses the real input, so that `-m "not shared"` leaves it out.

    Skip what needs transformers 4.57 where that is not installed, and what installs packages unless it is chosen.
    """
    line457 = version("transformers").startswith("4.57.")
    for item in items:
        if item.get_closest_marker("sealed") and "sealed" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="installs packages: choose it with -m sealed"))
        if item.get_closest_marker("line457") and not line457:
            item.add_marker(pytest.mark.skip(reason="needs transformers 4.57"))
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared)


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of kept results that no other test has written to."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("QABUILD_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_checkpoint(model_type="bert", **config_overrides)`: the folder of a tiny checkpoint, made once.

    The folder is shared by the whole session: copy it before changing it.
    """
    made: dict[str, Path] = {}

    def factory(model_type: str = "bert", **config_overrides: Any) -> Path:
        key = json.dumps([model_type, config_overrides], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / model_type
            made[key] = tiny.make(folder, model_type, **config_overrides)
        return made[key]

    return factory


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the embedded checkpoint; copy it before changing it."""
    import qabuild

    folder = tmp_path_factory.mktemp("artifact")
    (folder / "tiny.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "eager"\n[verify]\ndataset = "sample"\nsamples = 4\n'
    )
    return qabuild.build(folder / "tiny.toml", folder).directory


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real checkpoints and real SQuAD files, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no real input: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def squad_dev(shared: Path) -> Path:
    """The 10,570 questions of SQuAD v1.1's development set."""
    return shared / "squad" / "dev-v1.1.json"


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
