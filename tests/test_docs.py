"""What the documentation says is so: commands run, snippets work, tables and excerpts are up to date."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import docs_duals
import pytest
from docs_nonlinearities import PAGE, page

import tpcompile as tp
from tpcompile.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_python_snippets_run() -> None:
    (snippet,) = blocks(README, "python")
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    result, compiled = names["result"], names["compiled"]
    assert isinstance(result, tp.LimitResult)
    assert isinstance(compiled, tp.Compiled)
    for line in snippet.splitlines():  # the shapes in the comments
        if match := re.match(r"(result\.\S.*?)\s+# (\([\d, ]+\))", line):
            value = eval(match[1], {"result": result})
            assert tuple(value.shape) == eval(match[2])


def test_snippets_of_the_kernels_page_run_in_order() -> None:
    names: dict[str, object] = {}
    for snippet in blocks((ROOT / "docs" / "kernels.md").read_text(encoding="utf-8"), "python"):
        exec(compile(snippet, "kernels.md", "exec"), names)
    kernel = names["k"]
    assert isinstance(kernel, tp.Kernel)
    assert kernel.nngp_exponent == kernel.ntk_exponent == 0
    assert not kernel.sampled


def test_snippets_of_the_parametrizations_page_run_in_order() -> None:
    names: dict[str, object] = {}
    for snippet in blocks((ROOT / "docs" / "parametrizations.md").read_text(encoding="utf-8"), "python"):
        exec(compile(snippet, "parametrizations.md", "exec"), names)


def test_snippet_of_the_finite_width_page_runs() -> None:
    (snippet,) = blocks((ROOT / "docs" / "finite-width.md").read_text(encoding="utf-8"), "python")
    names: dict[str, object] = {}
    exec(compile(snippet, "finite-width.md", "exec"), names)
    for line in snippet.splitlines():
        if match := re.match(r"(law\.\S.*?)\s+# (\([\d, ]+\))", line):
            assert tuple(eval(match[1], names).shape) == eval(match[2])


def test_snippets_of_the_random_matrices_page_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for snippet in blocks((ROOT / "docs" / "random-matrices.md").read_text(encoding="utf-8"), "python"):
        exec(compile(snippet, "random-matrices.md", "exec"), names)
    assert "W Wᵀ W Wᵀ" in capsys.readouterr().out


def test_set_up_is_two_commands() -> None:
    install, tests = (b.strip() for b in blocks(README, "sh")[:2])
    assert install.startswith("python -m pip install '.[plot,digits]' && tpcompile compile examples/")
    assert tests == "python -m pip install '.[test]' && python -m pytest -n auto --dist loadfile"
    script = (ROOT / ".ci" / "run").read_text()
    assert f"\n{tests}\n" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def commands() -> list[str]:
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    return [line[line.index("tpcompile ") :] for line in lines if re.search(r"(^|&& )tpcompile ", line)]


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_readme_run(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    words = shlex.split(command)[1:]
    if words[0] == "compile":  # the same command, cheaper
        words += ["--particles", "1024", "--replicas", "2", "--steps", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out


def test_nonlinearities_are_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/docs_nonlinearities.py"


def test_excerpts_are_of_the_golden_program() -> None:
    golden = (ROOT / "tests" / "golden" / "mup_mlp.inspect.txt").read_text(encoding="utf-8").splitlines()
    excerpts = blocks(GUIDE, "")
    assert len(excerpts) == 5
    for line in "".join(excerpts).splitlines():
        assert line in golden


def test_errors_of_the_guide_exist() -> None:
    named = set(re.findall(r"^\| `(\w+Error)` \|", GUIDE, flags=re.MULTILINE))
    known = {name for name in vars(tp.errors) if name.endswith("Error") and name != "TpcompileError"}
    assert named == known


@pytest.mark.parametrize("source", [README, GUIDE], ids=["README", "how-it-works"])
def test_links_lead_somewhere(source: str) -> None:
    folder = ROOT if source is README else ROOT / "docs"
    for target in re.findall(r"\]\(([^)]+)\)", source):
        if not target.startswith("https://"):
            assert (folder / target).exists(), target


def test_gaussian_expectations_are_up_to_date() -> None:
    assert docs_duals.PAGE.read_text(encoding="utf-8") == docs_duals.page(), "run python tests/docs_duals.py"
