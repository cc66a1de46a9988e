"""The pages of the tour, from runs of its scripts. ``python tests/docs_tour.py [CHAPTER ..]`` writes them.

A chapter is a script of cells in the percent format, which editors open as a notebook: ``# %% [markdown]`` begins text,
``# %%`` code, and ``# %% tags=["picture"]`` code that the page leaves out for the picture that it saves.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch

FOLDER = Path(__file__).parents[1] / "docs" / "tour"
PICTURES = FOLDER / "images"
CHAPTERS = tuple(sorted(path.stem for path in FOLDER.glob("*.py")))
_CELL = re.compile(r"^# %%(.*)\n", flags=re.MULTILINE)
_SAVED = re.compile(r'savefig\("(.+?)".*\)  # (.+)')
_HEAD = """# A tour of the theory

Fourteen short chapters, from averages over independent coordinates to hyperparameters that transfer between widths.
Each is a script that opens as a notebook; its page shows the code and what it prints, and the tests run them all.
"""


def cells(name: str) -> list[tuple[str, str]]:
    """Pairs (header, source) of a chapter; code keeps the line numbers of the file."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    marks = list(_CELL.finditer(text))
    ends = [*(m.start() for m in marks[1:]), len(text)]
    lines = [text[: m.end()].count("\n") for m in marks]
    return [
        (m[1].strip(), "\n" * line + text[m.end() : end].rstrip() + "\n")
        for m, end, line in zip(marks, ends, lines, strict=True)
    ]


def words(source: str) -> str:
    """The text of a Markdown cell."""
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in source.strip().splitlines())


def page(name: str, pictures: Path) -> str:
    """One chapter as Markdown, from a run of its script in the folder ``pictures``."""
    path = FOLDER / f"{name}.py"
    names: dict[str, object] = {"__name__": "__main__", "__file__": str(path)}
    parts = []
    matplotlib.use("Agg")
    with contextlib.chdir(pictures), torch.random.fork_rng(devices=()):
        for header, source in cells(name):
            if header == "[markdown]":
                parts.append(words(source))
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(source, str(path), "exec"), names)
            if "picture" not in header:
                parts.append(f"```python\n{source.strip()}\n```")
            if text := "\n".join(line.rstrip() for line in printed.getvalue().splitlines()).strip("\n"):
                parts.append(f"```\n{text}\n```")
            parts += [f"![{alt}](images/{file})" for file, alt in _SAVED.findall(source)]
    before, after = CHAPTERS.index(name) - 1, CHAPTERS.index(name) + 1
    ways = [f"[Script]({name}.py)", "[contents](README.md)"]
    if before >= 0:
        ways.append(f"before: [{title(CHAPTERS[before])}]({CHAPTERS[before]}.md)")
    if after < len(CHAPTERS):
        ways.append(f"next: [{title(CHAPTERS[after])}]({CHAPTERS[after]}.md)")
    return "\n\n".join([*parts, " · ".join(ways)]) + "\n"


def title(name: str) -> str:
    """The heading of a chapter."""
    return words(cells(name)[0][1]).splitlines()[0].removeprefix("# ")


def contents() -> str:
    """The list of chapters, with the first paragraph of each."""
    entries = []
    for number, name in enumerate(CHAPTERS, 1):
        first = words(cells(name)[0][1]).split("\n\n")[1]
        entries.append(f"{number}. [{title(name)}]({name}.md). {' '.join(first.split())}\n")
    return _HEAD + "\n" + "".join(entries)


def write(chosen: Sequence[str]) -> None:
    """Write the pages of chapters, their pictures, and the list."""
    PICTURES.mkdir(exist_ok=True)
    for name in chosen:
        (FOLDER / f"{name}.md").write_text(page(name, PICTURES), encoding="utf-8")
    (FOLDER / "README.md").write_text(contents(), encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1:] or CHAPTERS)
