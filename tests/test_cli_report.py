"""``tpcompile report``: the page, for setups with and without a limit."""

from __future__ import annotations

import builtins
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tpcompile.cli import main

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn

inputs = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
targets = torch.ones(3, 1)
loss = F.mse_loss
steps = 1


class Named(nn.Module):
    def __init__(self, n, power):
        super().__init__()
        self.first, self.last = nn.Linear(2, n), nn.Linear(n, 1, bias=False)
        nn.init.normal_(self.last.weight, std=1 / n)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def make(width, power=-1.0):
    model = Named(width, power)
    return model, torch.optim.SGD(model.parameters(), lr=0.1 * width**power)


def wild(width):
    return make(width, 1.0)
"""


class Tags(HTMLParser):
    """Tags that are opened, and those still open."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def written(path: Path) -> tuple[str, Tags]:
    text, tags = path.read_text(encoding="utf-8"), Tags()
    tags.feed(text)
    assert not tags.open
    assert all(address.startswith("data:") for address in tags.addresses)  # nothing to load
    return text, tags


def test_a_page_with_everything(file, tmp_path, capsys):
    page = tmp_path / "page.html"
    call = ["report", f"{file}:make", "--out", str(page), "--particles", "256", "--simulate", "16,32", "--json"]
    assert main(call) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == []
    text, tags = written(page)
    assert tags.seen.count("img") == 1
    for part in ("kernel regime", "particles", "first.weight", "Finite widths", "Feature learning", "Program"):
        assert part in text


def test_no_limit_is_said_on_the_page(file, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", f"{file}:wild", "--out", str(page)]) == 0
    assert "UnstableError" in capsys.readouterr().out
    text, tags = written(page)
    assert "unstable" in text
    assert "img" not in tags.seen


def test_at_initialisation_and_without_finite_widths(file, tmp_path):
    file.write_text(MODEL.replace("loss = F.mse_loss\nsteps = 1", "").replace("targets =", "unused ="))
    page = tmp_path / "page.html"
    assert main(["report", f"{file}:make", "--out", str(page), "--particles", "64", "--simulate", "none"]) == 0
    assert "Exponents" not in written(page)[0]


def test_bad_calls(file, tmp_path, capsys, monkeypatch):
    assert main(["report", f"{file}:make", "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert main(["report", f"{file}:make", "--simulate", "wide"]) == 2
    assert main(["report", f"{file}:nothing"]) == 2
    capsys.readouterr()
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["report", f"{file}:make", "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert "tpcompile[report]" in error
    assert error.count("\n") == 1
