"""The page of the tour: every chapter's script and what it prints. ``python tests/docs_tour.py`` writes it."""

from __future__ import annotations

import ast
import contextlib
import io
import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "tour"
PAGE = FOLDER / "README.md"
CHAPTERS = {
    "law_of_large_numbers": "Law of large numbers",
    "central_limit_theorem": "Central limit theorem, by the moment method",
    "semicircle": "Moments of random matrices and the semicircle law",
    "marchenko_pastur": "Marchenko-Pastur again, in three lines",
}
_HEAD = """# A tour of the theory

Short scripts, each with what it prints; the tests run them all. A network's limit is built from the first two: averages
over coordinates, and sums of products with independent entries.
"""


def chapter(name: str) -> str:
    """One chapter as Markdown, from a run of its script."""
    path = FOLDER / f"{name}.py"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(path), run_name="__main__")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (
        f"## {CHAPTERS[name]}\n\n{text}\n\n[{name}.py]({name}.py) prints\n\n```\n{printed.getvalue().rstrip()}\n```\n"
    )


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *map(chapter, CHAPTERS)])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
