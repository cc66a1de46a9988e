"""A coordinate of a wide vector is a draw: averages over coordinates become expectations."""

import torch

torch.manual_seed(0)
print("width   mean of tanh(x)^2   distance from the limit, times sqrt(width)")
t = torch.linspace(-12, 12, 200001, dtype=torch.float64)
limit = torch.trapezoid(torch.tanh(t) ** 2 * torch.exp(-t * t / 2) / (2 * torch.pi) ** 0.5, t)
for n in (100, 10_000, 1_000_000):
    means = (torch.tanh(torch.randn(8, n, dtype=torch.float64)) ** 2).mean(1)
    print(f"{n:>7}   {means[0]:.4f}   {((means - limit).square().mean() * n).sqrt():.1f}")
print(f"  limit   {limit:.4f}")
