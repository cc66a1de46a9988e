"""Expectations of products of functions of jointly Gaussian numbers: dual activations."""

from tpcompile.evaluate.duals.blocks import together
from tpcompile.evaluate.duals.dual import Dual, Single, dual, expectation
from tpcompile.evaluate.duals.functions import LINEAR, Factor, Function
from tpcompile.evaluate.duals.integral import integral
from tpcompile.evaluate.duals.pair import Pair

__all__ = ["LINEAR", "Dual", "Factor", "Function", "Pair", "Single", "dual", "expectation", "integral", "together"]
