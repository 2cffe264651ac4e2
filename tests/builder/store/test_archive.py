"""A result as one object: whatever the object holds, a reader gets the result that was asked for, or refuses."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qabuild.builder.keys import json_digest
from qabuild.builder.store import archive
from qabuild.builder.store.local import Entry, Store

FILES = {"a.bin": bytes(range(256)) * 5, "sub/é.txt": b"accented, so that the tar needs a second header", "empty": b""}


def produce(folder: Path) -> Mapping[str, Any]:
    (folder / "sub").mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return {"fused": 3}


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    return Store(tmp_path_factory.mktemp("store")).make("compile", {"a": 1}, produce)


@pytest.fixture(scope="module")
def stored(entry: Entry) -> bytes:
    """The object of the result."""
    file = io.BytesIO()
    archive.write(entry.directory.parent, file, None)
    return file.getvalue()


def read(content: bytes, key: str, folder: Path) -> dict[str, bytes]:
    """The files that the object gives, read into `folder`/stage; nothing else of the folder may change."""
    stage = folder / "stage"
    stage.mkdir()
    archive.read(io.BufferedReader(io.BytesIO(content)), key, stage, None)
    assert sorted(os.listdir(stage)) == ["entry.json", "files"]
    return files_in(stage / "files")


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forged(entry: Entry, *members: tuple[tarfile.TarInfo, bytes], **fields: Any) -> bytes:
    """An object whose entry has those fields instead, its sum right, and those members."""
    document = json.loads((entry.directory.parent / "entry.json").read_text()) | fields
    document["sha256"] = json_digest({name: value for name, value in document.items() if name != "sha256"})
    header = json.dumps({"format": 1, "entry": document, "signature": None}).encode()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for info, content in (member("result.json", header), *members):
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def sealed(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """What an entry states of the files."""
    return {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }


def test_what_was_written_is_read(entry, stored, tmp_path):
    assert read(stored, entry.key, tmp_path) == FILES
    assert (tmp_path / "stage" / "entry.json").read_bytes() == (entry.directory.parent / "entry.json").read_bytes()


def test_an_object_is_an_ordinary_tar_and_the_same_on_every_machine(entry, stored):
    with tarfile.open(fileobj=io.BytesIO(stored)) as tar:
        assert tar.getnames() == ["result.json", "files/a.bin", "files/empty", "files/sub/é.txt"]
        assert {info.mtime for info in tar} == {0}
    again = io.BytesIO()
    archive.write(entry.directory.parent, again, None)
    assert again.getvalue() == stored


def test_the_result_of_another_step_is_refused(entry, stored, tmp_path):
    for name, content, key in [
        ("another key", stored, "0" * 64),
        ("inputs of another key", forged(entry, inputs={"a": 2}), entry.key),
    ]:
        (tmp_path / name).mkdir()
        with pytest.raises(archive.Refused, match="another step"):
            read(content, key, tmp_path / name)


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "sub/../../evil", "a/./b", "..", "a\\b", "a\nb", "", "\u202eevil", "sub//evil"]
)
def test_names_that_lead_elsewhere_are_refused_and_nothing_is_written(entry, tmp_path, name):
    content = forged(entry, member(f"files/{name}", b"evil"), files=sealed({name: b"evil"}))
    with pytest.raises(archive.Refused):
        read(content, entry.key, tmp_path)
    assert list(files_in(tmp_path)) == []


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
        *(tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z"),
    ],
)
def test_links_devices_and_folders_are_refused(entry, tmp_path, kind):
    content = forged(entry, member("files/x", b"", kind, link="/etc/passwd"), files=sealed({"x": b""}))
    with pytest.raises(archive.Refused):
        read(content, entry.key, tmp_path)
    assert sorted(os.listdir(tmp_path / "stage")) == ["files"]
    assert os.listdir(tmp_path / "stage" / "files") == []


def test_a_file_too_many_too_few_or_in_another_order_is_refused(entry, tmp_path):
    both = sealed({"x": b"one", "y": b"two"})
    x, y = member("files/x", b"one"), member("files/y", b"two")
    for number, members in enumerate([(x,), (y, x), (x, y, member("files/z")), (x, y, y), (x, x)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(archive.Refused):
            read(forged(entry, *members, files=both), entry.key, folder)
    (tmp_path / "right").mkdir()
    assert read(forged(entry, x, y, files=both), entry.key, tmp_path / "right") == {"x": b"one", "y": b"two"}


def test_a_header_that_would_fill_the_memory_is_not_read(entry, tmp_path):
    header = member("pax", b"")[0]
    header.size, header.type = 1 << 40, tarfile.XHDTYPE
    content = forged(entry)
    end = content.rstrip(b"\0")
    sizes = []

    class Recorded(io.BufferedReader):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size)
            return super().read(size)

    file = Recorded(io.BytesIO(end + b"\0" * (-len(end) % 512) + header.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(archive.Refused):
        archive.read(file, entry.key, tmp_path, None)
    assert max(sizes) <= 1 << 20


def test_a_newer_format_is_told_from_damage(entry, tmp_path):
    header = json.dumps({"format": 2, "something": "else"}).encode()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(member("result.json", header)[0], io.BytesIO(header))
    with pytest.raises(archive.Newer):
        read(file.getvalue(), entry.key, tmp_path)


def attempt(content: bytes, key: str) -> bool:
    """Whether the object is taken; then it gives the very files. Nothing is written outside its folder."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            taken = read(content, key, Path(folder)) == FILES
            assert taken
        except (archive.Refused, archive.Newer):
            taken = False
        assert set(os.listdir(folder)) == {"stage"}
        return taken


def test_a_flipped_byte_anywhere_is_noticed_or_changes_nothing(entry, stored):
    """What fills the fields and blocks of a tar means nothing; every other byte counts."""
    end = len(stored.rstrip(b"\0"))
    for position in range(0, end, 5):
        mutated = bytearray(stored)
        mutated[position] ^= 0xFF
        if attempt(bytes(mutated), entry.key):
            assert stored[position] in b"\0 "


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.9])
def test_a_truncated_object_is_refused(entry, stored, share):
    assert not attempt(stored[: int(share * len(stored.rstrip(b"\0")))], entry.key)


EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 14), st.integers(0, 600), st.binary(max_size=600)), min_size=1, max_size=4
)


@settings(max_examples=200)
@given(edits=EDITS, data=st.data())
def test_no_mutation_gives_other_files_or_writes_elsewhere(entry, stored, edits, data):
    content = stored
    for position, removed, inserted in edits:
        start = position % (len(content) + 1)
        same_length = data.draw(st.booleans())
        removed = len(inserted) if same_length else removed
        content = content[:start] + inserted + content[start + removed :]
    attempt(content, entry.key)
