"""A script for ``test_kernel_store.py``: write a kernel matrix to the folder given, slowly enough to be killed."""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.kernels import store


class Net(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(n, 3))
        self.second = nn.Parameter(torch.randn(n, n))
        self.readout = nn.Parameter(torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.first.T)
        x = torch.relu(x @ self.second.T / self.second.shape[0] ** 0.5)
        return x @ self.readout.T / self.readout.shape[1] ** 0.5


def inputs(count: int = 23, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    quick = store.compute_block

    def slow(kernel: tp.Kernel, job: store.Job, place: store.Place) -> store.Place:
        time.sleep(0.2)
        return quick(kernel, job, place)

    store.compute_block = slow
    torch.set_num_threads(1)
    kernel = tp.kernel(Net, torch.zeros(3))
    kernel.to_zarr(inputs(), sys.argv[1], block=4, progress=lambda done, total: print(done, total, flush=True))
