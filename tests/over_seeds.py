"""Many small networks trained at once, one a seed: the spread of their outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

TOGETHER = 50
Factory = Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]


def trained(
    make: Factory, inputs: Tensor, targets: Tensor, others: Tensor, *, steps: int, width: int, seeds: int
) -> Tensor:
    """Outputs ``(seeds, T+1, N + N_others)`` under plain gradient descent on the mean squared error of one output."""
    every = torch.cat([inputs, others])
    runs = []
    with torch.random.fork_rng():
        for start in range(0, seeds, TOGETHER):
            models = []
            for seed in range(start, min(start + TOGETHER, seeds)):
                torch.manual_seed(seed)
                models.append(make(width))
            base, optimizer = models[0]
            names = {id(p): name for name, p in base.named_parameters()}
            rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
            parameters = {n: p.detach() for n, p in stack_module_state([model for model, _ in models])[0].items()}

            def outputs(p: dict[str, Tensor], x: Tensor, base: nn.Module = base) -> Tensor:
                return functional_call(base, p, (x,))[:, 0]

            def loss(p: dict[str, Tensor], outputs: Callable[..., Tensor] = outputs) -> Tensor:
                return F.mse_loss(outputs(p, inputs), targets[:, 0])

            steps_of_run = []
            for step in range(steps + 1):
                steps_of_run.append(vmap(outputs, (0, None))(parameters, every))
                if step < steps:
                    gradients = vmap(grad(loss))(parameters)
                    parameters = {n: p - rates[n] * gradients[n] for n, p in parameters.items()}
            runs.append(torch.stack(steps_of_run, 1))
    return torch.cat(runs)


def scaled_covariances(outputs: Tensor, width: int) -> Tensor:
    """``width`` times the covariance over seeds at every step, ``(T+1, N, N)``."""
    return width * torch.stack([torch.cov(x.T) for x in outputs.unbind(1)])
