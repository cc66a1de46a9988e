"""The tour prints what its pages say, and draws its pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
import docs_tour

DECIMAL = re.compile(r"\d+\.\d+")


def assert_same(written: str, found: str, hint: str) -> None:
    """Equal texts, but for decimals that differ by three units of their last digit: limits are sampled there."""
    assert DECIMAL.sub("#", written) == DECIMAL.sub("#", found), hint
    for a, b in zip(DECIMAL.findall(written), DECIMAL.findall(found), strict=True):
        unit = 10.0 ** -len(a.partition(".")[2])
        assert len(a.partition(".")[2]) == len(b.partition(".")[2])
        assert abs(float(a) - float(b)) < 3.5 * unit, f"{a} on the page, {b} printed: {hint}"


@pytest.mark.parametrize("name", docs_tour.CHAPTERS)
def test_a_chapter_prints_what_its_page_says(name: str, tmp_path: Path) -> None:
    written = (docs_tour.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert_same(written, docs_tour.page(name, tmp_path), f"run python tests/docs_tour.py {name}")
    for picture in re.findall(r"\(images/(.+?)\)", written):
        assert (docs_tour.PICTURES / picture).stat().st_size < 200_000
        assert (tmp_path / picture).exists()


def test_the_list_of_chapters_is_up_to_date() -> None:
    assert len(docs_tour.CHAPTERS) == 14
    assert (docs_tour.FOLDER / "README.md").read_text(encoding="utf-8") == docs_tour.contents()
    pages = {path.stem for path in docs_tour.FOLDER.glob("*.md")} - {"README"}
    assert pages == set(docs_tour.CHAPTERS)
    text = "".join(path.read_text(encoding="utf-8") for path in docs_tour.FOLDER.glob("*.md"))
    used = set(re.findall(r"\(images/(.+?)\)", text))
    assert used == {path.name for path in docs_tour.PICTURES.iterdir()}
