"""The tangent kernel of a real model at a finite width: Jacobians by ``torch.func``, a share per parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from tpcompile.capture.forward import call_with
from tpcompile.errors import TpcompileError

JACOBIAN_BYTES = 2**28  # parameters are taken in groups whose Jacobians stay below this, one at least


def tangent_kernel(
    model: nn.Module, inputs: Tensor, learning_rates: Mapping[str, float], others: Tensor | None = None
) -> dict[str, Tensor]:
    """``lr_p <df_i(a)/dp, df_j(b)/dp>`` for every parameter of ``learning_rates``.

    ``inputs`` is ``(N, ...)`` and gives the ``a``, ``others`` ``(N2, ...)`` the ``b``, the same inputs by default;
    each share is ``(N, N2, k, k)`` with ``k`` the flattened output of one input. A model whose outputs
    depend on the whole batch (batch normalisation) is differentiated as it is, batch by batch. Raises
    :class:`TpcompileError` if the model cannot be differentiated by ``torch.func``.
    """
    parameters = dict(model.named_parameters())
    frozen = {name: value.detach() for name, value in parameters.items()}
    leaves = {name: value.detach().requires_grad_(value.requires_grad) for name, value in parameters.items()}
    batches = [inputs] if others is None else [inputs, others]
    with torch.enable_grad():  # a forward pass may take gradient steps itself
        outputs = [_call(model, leaves, x).detach().reshape(x.shape[0], -1) for x in batches]
    jacobians = [_jacobian_function(model, frozen, x, f) for x, f in zip(batches, outputs, strict=True)]
    shares = {}
    size = sum(f.numel() * f.element_size() for f in outputs)
    for names in _groups(learning_rates, {name: frozen[name].numel() * size for name in learning_rates}):
        found = [jacobian(names) for jacobian in jacobians]
        for name in names:
            flat = [rows[name].reshape(f.numel(), -1) for rows, f in zip(found, outputs, strict=True)]
            gram = (flat[0] @ flat[-1].T).reshape(*outputs[0].shape, *outputs[-1].shape)
            shares[name] = learning_rates[name] * gram.permute(0, 2, 1, 3)
    return {name: shares[name] for name in learning_rates}


def _jacobian_function(
    model: nn.Module, frozen: dict[str, Tensor], inputs: Tensor, outputs: Tensor
) -> Callable[[list[str]], dict[str, Tensor]]:
    """A function from parameter names to their Jacobians ``(N, k, *parameter shape)``."""

    def single(chosen: dict[str, Tensor], x: Tensor) -> Tensor:
        return _call(model, {**frozen, **chosen}, x.unsqueeze(0)).reshape(-1)

    def whole(chosen: dict[str, Tensor]) -> Tensor:
        return _call(model, {**frozen, **chosen}, inputs).reshape(outputs.shape)

    try:
        with torch.no_grad():
            alone = vmap(single, in_dims=(None, 0))({}, inputs)
        independent = alone.shape == outputs.shape and torch.allclose(alone, outputs, rtol=1e-4, atol=1e-6)
    except Exception:  # what vmap cannot batch is differentiated as a whole
        independent = False

    def _batched(chosen: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return vmap(jacrev(single), in_dims=(None, 0))(chosen, inputs)
        except RuntimeError:  # in-place operations inside torch (RNN cells) need every operand to have the batch axis
            copies = {name: p.expand(len(inputs), *p.shape) for name, p in chosen.items()}
            return vmap(jacrev(single), in_dims=(0, 0))(copies, inputs)

    def jacobian(names: list[str]) -> dict[str, Tensor]:
        chosen = {name: frozen[name] for name in names}
        try:
            return _batched(chosen) if independent else jacrev(whole)(chosen)
        except Exception as error:
            raise TpcompileError(
                f"torch.func cannot differentiate the model for its tangent kernel ({error})",
                where=f"parameters {', '.join(names)}",
            ) from error

    return jacobian


def _call(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    return call_with(model, {**parameters, **buffers}, x)


def _groups(names: Iterable[str], sizes: Mapping[str, int]) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name in names:
        if not groups or sizes[name] > room:
            groups.append([])
            room = JACOBIAN_BYTES
        groups[-1].append(name)
        room -= sizes[name]
    return groups
