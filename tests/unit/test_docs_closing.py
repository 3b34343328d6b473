"""The documentation's state diagrams are those of the code."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_closing_diagrams_are_drawn_from_the_tables() -> None:
    page = runpy.run_path(str(DOCS / "draw_closing.py"))["page"]
    assert (DOCS / "tcp-closing.md").read_text("utf-8") == page()
