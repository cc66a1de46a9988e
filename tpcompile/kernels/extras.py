"""Optional dependencies of kernels."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tpcompile.errors import MissingExtraError


def require(module: str, extra: str) -> Any:
    """The module. Raises MissingExtraError that names the extra to install."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{package} is not installed", advice=f"python -m pip install 'tpcompile[{extra}]'"
        ) from error
