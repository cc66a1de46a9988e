"""Results as files: one ``.npz`` archive of plain arrays with a JSON header, and no pickle."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.results import LimitResult, Result, SimulationResult, TangentKernel

FORMAT = "tpcompile-result-1"
_HEADER = "header"
_CLASSES: dict[str, type[Result]] = {cls.__name__: cls for cls in (LimitResult, SimulationResult)}
_SPECIAL = {"ntk_shares", "ntk_source", "metrics_stderr", "metrics_stderr_source", "_cache"}
_TUPLES = {"activations", "output_shape"}


def save_result(result: Result, path: str | Path, ntk: bool = True) -> None:
    """Write ``result`` to ``path``; see :meth:`tpcompile.results.Result.save`."""
    if type(result).__name__ not in _CLASSES:
        raise UsageError(f"only {' and '.join(_CLASSES)} can be saved, found {type(result).__name__}")
    arrays: dict[str, np.ndarray] = {}
    values = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in _SPECIAL}
    content = {name: _pack(value, arrays) for name, value in values.items()}
    content["metrics_stderr"] = _pack(result.metric_errors(), arrays)
    tangent = result._tangent_kernel() if ntk else None
    if tangent is not None:
        content["ntk_shares"] = {
            "tangent": [_pack(part, arrays) for part in (tangent.shares, tangent.shares_stderr, tangent.stderr)]
        }
    header = {"format": FORMAT, "class": type(result).__name__, "content": content}
    arrays[_HEADER] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_result(path: str | Path) -> LimitResult | SimulationResult:
    """Read a file of :func:`save_result`. Raises :class:`UsageError` if it is missing or of another kind."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays[_HEADER].tobytes().decode())
        cls, content = _CLASSES[header["class"]], header["content"]
        if header["format"] != FORMAT:
            raise UsageError(f"{path} has the format '{header['format']}', expected '{FORMAT}'")
        values = {name: _unpack(value, arrays) for name, value in content.items() if name != "ntk_shares"}
        for name in _TUPLES & values.keys():
            values[name] = tuple(values[name])
        if "ntk_shares" in content:
            values["ntk_shares"] = TangentKernel(*(_unpack(part, arrays) for part in content["ntk_shares"]["tangent"]))
        return cls(**values)  # type: ignore[return-value]
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(
            f"{path} is not a result that tpcompile saved ({error})", advice="write it with result.save(path)"
        ) from error


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """JSON for ``value``, with its tensors moved to ``arrays``."""
    if isinstance(value, Tensor):
        key = f"a{len(arrays)}"
        plain = value.detach().cpu().contiguous()
        arrays[key] = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
        return {"tensor": key, "dtype": str(plain.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"mapping": [[name, _pack(item, arrays)] for name, item in value.items()]}
    if isinstance(value, tuple):
        return list(value)
    return value


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = torch.from_numpy(arrays[value["tensor"]].copy())
        return tensor.view(torch.bfloat16) if value["dtype"] == "bfloat16" else tensor
    return {name: _unpack(item, arrays) for name, item in value["mapping"]}
