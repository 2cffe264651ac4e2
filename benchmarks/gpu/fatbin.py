"""Cuts a library with GPU code down to one GPU architecture, for a transfer: the code for others becomes zeros.

nvcc puts the code into the ELF section `.nv_fatbin`: containers one after another, each with entries for several
architectures. A container has a header (magic number, version, header size, size of the rest); an entry has a header
(kind, version, header size, size of the code, and at byte 28 the architecture) and the code. Sizes and positions stay
as they are, and the driver reads only the code of the entry that it chooses, by the headers: one for its own
architecture wherever there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAGIC = 0xBA55ED50
_CONTAINER, _ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQ")
_ARCHITECTURE = 28
"""Where an entry's header holds the architecture."""


def cut(library: bytearray, architecture: int) -> int:
    """Zero the code for other architectures than `architecture` (90 for sm_90), in place; returns the bytes zeroed.

    A container without code for that architecture stays as it is. Raises ValueError for something else than a 64-bit
    ELF file, or a section of another layout.
    """
    zeroed = 0
    begin, end = section(library, b".nv_fatbin")
    for entries in containers(library, begin, end):
        if architecture in (own for own, _, _ in entries):
            for own, start, size in entries:
                if own != architecture:
                    library[start : start + size] = bytes(size)
                    zeroed += size
    return zeroed


def containers(library: bytearray, begin: int, end: int) -> Iterator[list[tuple[int, int, int]]]:
    """The entries of each container: architecture, and where the code starts and its size."""
    at = begin
    while at < end:
        magic, _, header, size = _CONTAINER.unpack_from(library, at)
        if magic != MAGIC:
            raise ValueError(f"there is no container of GPU code at byte {at}")
        entry, at = at + header, at + header + size
        entries = []
        while entry < at:
            _, _, header, size = _ENTRY.unpack_from(library, entry)
            (own,) = struct.unpack_from("<I", library, entry + _ARCHITECTURE)
            entries.append((own, entry + header, size))
            entry += header + size
        yield entries
        at += -at % 8


def section(library: bytearray, name: bytes) -> tuple[int, int]:
    """Where a section of a 64-bit ELF file begins and ends."""
    if library[:5] != b"\x7fELF\x02":
        raise ValueError("this is no 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + size * number) for number in range(count)]
    texts = headers[names][4]
    for title, _, _, _, offset, length in headers:
        if library[texts + title : library.index(b"\0", texts + title)] == name:
            return offset, offset + length
    raise ValueError(f"this file has no section {name.decode()}")
