"""Resolve every relative link and anchor of docs/ and of the pages beside it; a dead one fails the run.

python tools/links.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^()\s>]+)>?[^()]*\)")
FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def pages() -> list[Path]:
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "docs").rglob("llms*.txt")),
    ]


def anchors(text: str) -> set[str]:
    """The ids of a page's headings, where GitHub and Python-Markdown derive the same one."""
    found: dict[str, int] = {}
    for title in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").strip().lower()
        plain = re.sub(r"[^\w\s-]", "", plain)
        github, markdown = re.sub(r"\s", "-", plain), re.sub(r"[-\s]+", "-", plain)
        if github == markdown:
            found[github] = found.get(github, 0) + 1
    return {anchor for anchor, times in found.items() if times == 1}  # the ids of the second and later ones differ


def dead_links(path: Path) -> Iterator[str]:
    """What a page links to and is not there, each with the reason."""
    text = path.read_text(encoding="utf-8")
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):  # another host's
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.is_file():
            yield f"{link}: no such file"
        elif path.is_relative_to(ROOT / "docs") and not target.is_relative_to(ROOT / "docs"):
            yield f"{link}: outside docs/, so not part of the site"
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            yield f"{link}: no such heading"


def main() -> int:
    dead = [f"{path.relative_to(ROOT)}: {problem}" for path in pages() for problem in dead_links(path)]
    print("\n".join(dead) or f"all links of {len(pages())} pages resolve")
    return int(bool(dead))


if __name__ == "__main__":
    sys.exit(main())
