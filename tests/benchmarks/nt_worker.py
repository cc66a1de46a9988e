# pyright: reportMissingImports=false
"""The models of ``tests/kernel_specs.py`` in neural-tangents. Run by its own interpreter, which has jax and no torch.

PYTHON tests/benchmarks/nt_worker.py golden FILE writes kernels of all models to an npz file.
PYTHON tests/benchmarks/nt_worker.py serve answers requests for timings (see ``nt_speed.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from neural_tangents import stax

sys.path.insert(0, str(Path(__file__).parents[1]))
import kernel_specs
import serving

POINTWISE = {
    "relu": stax.Relu,
    "erf": stax.Erf,
    "gelu": stax.Gelu,
    "leaky": stax.LeakyRelu,
    "abs": stax.Abs,
    "sin": stax.Sin,
    "cos": stax.Cos,
    "exp": stax.Exp,
    "gaussian": stax.Gaussian,
    "polynomial": stax.Polynomial,
    "monomial": stax.Monomial,
    "rectified": stax.RectifiedMonomial,
    "sign": stax.Sign,
    "sigmoid_like": stax.Sigmoid_like,
}


def built(spec: kernel_specs.Spec) -> Any:
    """The layers in series; of no layers the identity."""
    return stax.serial(*map(layer, spec)) if spec else stax.Identity()


def layer(one: tuple[Any, ...]) -> Any:
    name, *numbers = one
    if name == "dense":
        return stax.Dense(1, *numbers)
    if name == "conv":
        window, stride, padding, weight, bias = numbers
        return stax.Conv(1, window, (stride,) * len(window), padding, W_std=weight, b_std=bias or None)
    if name == "pool":
        return stax.AvgPool((numbers[0],) * 2, (numbers[1],) * 2)
    if name == "norm":
        return stax.LayerNorm(eps=0.0)
    if name == "flatten":
        return stax.Flatten()
    if name == "mean":
        return stax.GlobalAvgPool()
    if name == "attention":
        heads, key, value, out = numbers
        return stax.GlobalSelfAttention(1, 1, 1, heads, True, key, value, key, out)
    if name in ("sum", "product"):
        join = stax.FanInSum() if name == "sum" else stax.FanInProd()
        return stax.serial(stax.FanOut(len(numbers)), stax.parallel(*map(built, numbers)), join)
    return POINTWISE[name](*numbers)


def golden(path: str) -> None:
    """Kernels of all models in float64; a model that the library refuses is left out, with its reason printed."""
    jax.config.update("jax_enable_x64", True)
    found = {}
    for name, spec in kernel_specs.SPECS.items():
        x = kernel_specs.inputs(spec)
        try:
            kernels = built(spec)[2](x, None, ("nngp", "ntk"))
        except NotImplementedError as error:
            print(f"{name}: {error}")
            continue
        found[f"{name}/nngp"], found[f"{name}/ntk"] = np.asarray(kernels.nngp), np.asarray(kernels.ntk)
    np.savez_compressed(path, **found)


def prepare(request: serving.Request) -> Callable[[], Any]:
    """The kernels of a request under jit."""
    jax.config.update("jax_enable_x64", request.dtype == "float64")  # else it computes float32 in float64
    get = ("nngp", "ntk") if request.get == "both" else (request.get,)
    kernel = jax.jit(built(request.layers)[2], static_argnames="get")
    x1, x2 = (None if x is None else jax.numpy.asarray(x) for x in request.inputs())
    return lambda: jax.block_until_ready(kernel(x1, x2, get))


if __name__ == "__main__":
    golden(sys.argv[2]) if sys.argv[1] == "golden" else serving.serve(prepare)
