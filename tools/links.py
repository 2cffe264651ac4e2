"""Check every relative link and anchor of docs/ and of the Markdown files at the root; a dead link is status 1.

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
    """The heading ids of a page on which GitHub and Python-Markdown agree."""
    counts: dict[str, int] = {}
    for title in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").strip().lower()
        plain = re.sub(r"[^\w\s-]", "", plain)
        github, markdown = re.sub(r"\s", "-", plain), re.sub(r"[-\s]+", "-", plain)
        if github == markdown:
            counts[github] = counts.get(github, 0) + 1
    return {anchor for anchor, count in counts.items() if count == 1}  # repeated headings get different ids


def dead_links(path: Path) -> Iterator[str]:
    """The dead links of a page, each with the reason."""
    text = path.read_text(encoding="utf-8")
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):  # an absolute URL
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
