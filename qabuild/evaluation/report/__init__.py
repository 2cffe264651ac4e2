"""A comparison as one page that needs no network, and as a picture.

`plots` says what is drawn, in Vega-Lite; `page.html`, `page.css` and `page.js` are the page, filled in by `page`.
"""

from __future__ import annotations

from qabuild.evaluation.report.page import write_page, write_picture

__all__ = ["PACKAGES", "write_page", "write_picture"]

PACKAGES = ("jinja2", "vl-convert-python")
"""What the page is made with."""
