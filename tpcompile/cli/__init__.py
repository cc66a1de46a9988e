"""The command line: ``tpcompile compile|inspect|verify|mup|kernel|spectrum|report FILE.py:make``, a file for each verb.

Exit code 0; 2 for bad usage or input, with one line on stderr that says what and where.
"""

from tpcompile.cli import compile, inspect, kernel, mup, report, spectrum, verify
from tpcompile.cli.app import app, main

__all__ = ["app", "compile", "inspect", "kernel", "main", "mup", "report", "spectrum", "verify"]
