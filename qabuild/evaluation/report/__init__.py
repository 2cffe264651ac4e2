"""A comparison as a self-contained HTML page, and as a picture.

`plots` specifies the plots in Vega-Lite; `page` renders the template `page.html` with `page.css` and `page.js`.
"""

from __future__ import annotations

from qabuild.evaluation.report.page import Candidates, write_page, write_picture

__all__ = ["PACKAGES", "Candidates", "write_page", "write_picture"]

PACKAGES = ("jinja2", "vl-convert-python")
"""Distributions that render the page and the picture."""
