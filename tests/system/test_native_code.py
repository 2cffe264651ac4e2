"""The register of native code that this user compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest

from qabuild.errors import MissingEnvironment
from qabuild.system import files, native_code


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.so"
    path.write_bytes(b"\x7fELF")
    return path


def test_a_registered_file_is_known_by_its_content(library: Path) -> None:
    assert not native_code.is_registered(files.sha256(library))
    native_code.register(library)
    assert native_code.is_registered(files.sha256(library))
    library.write_bytes(b"\x7fELF, changed")
    assert not native_code.is_registered(files.sha256(library))


def test_the_register_is_readable_by_its_user_alone(library: Path) -> None:
    native_code.register(library)
    assert native_code.folder().stat().st_mode & 0o077 == 0
    assert [path.name for path in native_code.folder().iterdir() if path.stat().st_mode & 0o077] == []


def test_an_entry_of_another_key_does_not_count(library: Path) -> None:
    native_code.register(library)
    before = native_code.compiler_id()
    assert before == native_code.compiler_id()
    (native_code.folder() / "key").write_bytes(b"another user's")
    assert native_code.compiler_id() != before
    assert not native_code.is_registered(files.sha256(library))


def test_an_entry_of_another_file_does_not_count(library: Path) -> None:
    native_code.register(library)
    entry = native_code.folder() / files.sha256(library)
    (native_code.folder() / ("0" * 64)).write_bytes(entry.read_bytes())
    assert not native_code.is_registered("0" * 64)


def test_a_register_that_cannot_be_written_is_an_error(tmp_path: Path, library: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(MissingEnvironment, match="register of native code"):
        native_code.register(library)
