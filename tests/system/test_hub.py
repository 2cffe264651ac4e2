"""Errors of the Hub are explained, and the Hub on loopback answers like the real one."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hub import Hub

from qabuild.errors import BadTarget, QABuildError
from qabuild.system import hub

pytestmark = pytest.mark.both_lines


@pytest.mark.parametrize(
    ("source", "is_path"),
    [
        ("/abs", True),
        ("./here", True),
        ("../up", True),
        (".", True),
        ("~/home", True),
        (Path("owner/name"), True),
        ("owner/name", False),
        ("name", False),
        ("sample", False),
    ],
)
def test_paths_and_ids_are_distinguished(source: str | Path, is_path: bool) -> None:
    assert hub.is_path(source) is is_path


@pytest.mark.parametrize("name", ["gone.json", "folder/gone.jsonl", "a/b/gone.csv", "gone.PARQUET", "gone.json.gz"])
def test_the_name_of_a_file_is_no_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadTarget, match=f"{name}: there is no such file") as refused:
        hub.check_id(name, None, "dataset")
    assert f"'./{name}'" in (refused.value.hint or "")
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("[]")
    with pytest.raises(BadTarget, match=r"a local file|no data set on the Hub has the id"):
        hub.check_id(name, None, "dataset")


def test_who_meant_a_folder_learns_that_it_is_not_here() -> None:
    hint = hub.unreachable("nothere", "model", ConnectionError()).hint
    assert hint
    assert "'./nothere', and none of that name is here" in hint
    with pytest.raises(QABuildError, match=r"'nothere'.* is not in the cache.*\n.*'\./nothere'"):
        hub.commit("nothere", None, "model", offline=True)


def test_network_errors_are_explained() -> None:
    for error, message in (
        (ConnectionResetError(errno.ECONNRESET, "reset"), "no answer from"),
        (TimeoutError(), "no answer from"),
        (OSError("Consistency check failed: file should be of size 3"), "could not be fetched: Consistency check"),
    ):
        with pytest.raises(QABuildError, match=message) as caught, hub.errors_explained("qa/tiny", None, "model"):
            raise error
        assert caught.value.hint
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("kind", [RuntimeError, FileNotFoundError])
def test_a_failed_transfer_by_xet_is_explained(kind: type[Exception]) -> None:
    """hf_xet's errors are known by the function of huggingface_hub that calls it."""
    scope: dict[str, Any] = {"kind": kind}
    source = "def xet_get():\n raise kind('CAS error')"
    exec(compile(source, "/site-packages/huggingface_hub/file_download.py", "exec"), scope)
    explained = hub.errors_explained("qa/tiny", None, "model")
    with pytest.raises(QABuildError, match="could not be fetched: CAS error") as caught, explained:
        scope["xet_get"]()
    assert caught.value.hint
    with pytest.raises(kind), hub.errors_explained("qa/tiny", None, "model"):
        raise kind("not of Xet")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), FileNotFoundError("no data")])
def test_errors_that_are_not_the_hubs_pass_unchanged(error: OSError) -> None:
    with pytest.raises(type(error)) as caught, hub.errors_explained("qa/tiny", None, "dataset"):
        raise error
    assert caught.value is error


def test_the_setting_of_progress_bars_is_restored() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    with hub.bars_on_terminals_only():
        assert are_progress_bars_disabled()
    assert are_progress_bars_disabled() == before


@pytest.mark.hub
def test_the_hub_on_loopback_serves_byte_ranges() -> None:
    with Hub() as server:
        sha = server.commit("model", "qa/tiny", {"a/b.txt": b"0123456789"})
        address = f"{server.url}/qa/tiny/resolve/main/a/b.txt"
        with urlopen(Request(address, headers={"Range": "bytes=3-5"})) as answer:
            assert (answer.status, answer.read()) == (206, b"345")
            assert answer.headers["Content-Range"] == "bytes 3-5/10"
        with urlopen(Request(address, headers={"Range": "bytes=8-"})) as answer:
            assert answer.read() == b"89"
        with urlopen(Request(address, method="HEAD")) as answer:
            assert (answer.headers["Content-Length"], answer.headers["X-Repo-Commit"]) == ("10", sha)
        with urlopen(f"{server.url}/api/models/qa/tiny/tree/main?recursive=true") as answer:
            assert [(entry["type"], entry["path"]) for entry in json.load(answer)] == [
                ("directory", "a"),
                ("file", "a/b.txt"),
            ]
        with pytest.raises(HTTPError, match="404") as caught:
            urlopen(f"{server.url}/qa/tiny/resolve/main/c")
        assert caught.value.headers["X-Error-Code"] == "EntryNotFound"
        assert server.requests[-1] == "GET /qa/tiny/resolve/main/c"
