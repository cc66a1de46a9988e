"""One HTML page about a training setup: verdict, limit, picture and program, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType

from tpcompile.errors import MissingExtraError
from tpcompile.report.plot import plot_training
from tpcompile.results import Result, SimulationResult

_WIDTH = 150
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; border-bottom: 1px solid #ddd; margin-top: 2rem; }
pre { font: 12px/1.35 ui-monospace, monospace; overflow-x: auto; background: #fafafa; padding: .7rem; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; } img { max-width: 100%; } .problem { color: #a40000; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<dl>
{%- for name, text in facts.items() %}
<dt>{{ name }}</dt><dd>{{ text }}</dd>
{%- endfor %}
</dl>
{%- for section in sections %}
<h2>{{ section.title }}</h2>
{%- if section.problem %}
<p class="problem">{{ section.problem }}</p>
{%- endif %}
{%- if section.picture %}
<img alt="{{ section.title }}" src="data:image/png;base64,{{ section.picture }}">
{%- endif %}
{%- if section.text %}
<pre>{{ section.text }}</pre>
{%- endif %}
{%- endfor %}
<p>Written by tpcompile {{ version }}.</p>
</body>
</html>
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: text set as in a terminal, a PNG picture in base64, or what went wrong."""

    title: str
    text: str = ""
    picture: str = ""
    problem: str = ""

    @staticmethod
    def of(title: str, renderable: RenderableType) -> Section:
        """A section with what the command line prints, without colours."""
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        with console.capture() as capture:
            console.print(renderable, highlight=False, markup=False)
        return Section(title, "\n".join(line.rstrip() for line in capture.get().splitlines()))


def picture(title: str, result: Result, simulations: Sequence[SimulationResult]) -> Section:
    """Curves and kernels of a result. Raises MissingExtraError without matplotlib."""
    file = io.BytesIO()
    plot_training(result, simulations).savefig(file, format="png", dpi=110)
    return Section(title, picture=base64.b64encode(file.getvalue()).decode())


def check_extra() -> None:
    """MissingExtraError, before the work starts, without jinja2."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the page needs jinja2", advice="pip install 'tpcompile[report]'") from error


def write_page(path: str | Path, title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Write the page; everything in it is escaped. Raises MissingExtraError without jinja2."""
    check_extra()
    from jinja2 import Environment

    import tpcompile

    template = Environment(autoescape=True).from_string(_PAGE)
    text = template.render(title=title, facts=facts, sections=sections, version=tpcompile.__version__)
    Path(path).write_text(text, encoding="utf-8")
