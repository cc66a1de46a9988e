"""A sample for every lowering rule: a function that the tracer turns into the rule's operations.

A sample is called with ``h`` of shape (4, 6, n), a linear image of the inputs, and the module ``m`` that it runs in,
with parameters ``m.w`` (n, n), ``m.k`` (n, n, 3), ``m.g`` (n) and ``m.b`` (n). It returns (4, ..., n) or (4, ...).
Backward rules share the sample of their forward one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sample = Callable[[Tensor, Any], Tensor]
SAMPLES: dict[str, Sample] = {}
N = 6
aten = torch.ops.aten
COMPOSITE = frozenset(
    f"aten.{name}.default"
    for name in (
        *("positive", "alias", "contiguous", "detach", "lift_fresh_copy", "reshape", "view_as", "broadcast_to"),
        *("adaptive_avg_pool1d", "avg_pool1d"),
    )
)
"""Targets that the tracer writes as others of the same rule."""
SIZES = frozenset(f"aten.arange.{name}" for name in ("default", "start", "start_step"))
"""Targets of which only sizes are followed, so that there is no program at a width."""


def sample(targets: str, f: Sample) -> None:
    """Register a sample for targets such as ``"add.Tensor add.Scalar"``."""
    for target in targets.split():
        assert target not in SAMPLES, target
        SAMPLES[f"aten.{target}"] = f


class Sampled(nn.Module):
    """A linear layer, the sample, and a readout."""

    def __init__(self, n: int, f: Sample) -> None:
        super().__init__()
        self.n, self.f = n, f
        self.inp = nn.Linear(3, n)
        self.w = nn.Parameter(torch.randn(n, n) * n**-0.5)
        self.k = nn.Parameter(torch.randn(n, n, 3) * n**-0.5)
        self.g = nn.Parameter(torch.ones(n))
        self.b = nn.Parameter(torch.randn(n))
        self.out = nn.Parameter(torch.randn(n) / n)

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(self.inp(x), self)
        if y.shape[-1] == self.n:
            y = (y * self.out).sum(-1)
        return y.flatten(1)


def best(z: Tensor) -> Tensor:
    """The two largest, zero elsewhere."""
    values, index = z.topk(2, -1)
    return torch.zeros_like(z).scatter(-1, index, 3 * values)


def images(h: Tensor) -> Tensor:
    """(4, n, 2, 3)"""
    return h.transpose(1, 2).unflatten(-1, (2, 3))


def volumes(h: Tensor) -> Tensor:
    """(4, n, 2, 3, 2)"""
    return torch.stack([images(h), images(h).sin()], -1)


def last(x: Tensor) -> Tensor:
    """Channels to the end, positions flattened."""
    return x.flatten(2).transpose(1, 2)


def logits(h: Tensor, m: Any) -> Tensor:
    """(4, 6) numbers of order one."""
    return (h * m.b).mean(-1)


# arithmetic
sample("add.Tensor add.Scalar", lambda h, m: aten.add.Scalar(torch.add(h, h.flip(1), alpha=0.5), 0.3))
sample("sub.Tensor sub.Scalar", lambda h, m: aten.sub.Scalar(torch.sub(h, m.b, alpha=0.5), 0.3))
sample("rsub.Scalar rsub.Tensor", lambda h, m: aten.rsub.Tensor(aten.rsub.Scalar(h, 0.3), m.b, alpha=2))
sample("neg.default", lambda h, m: -h)
sample("mul.Tensor mul.Scalar", lambda h, m: aten.mul.Scalar(h * m.b, 0.7))
sample("div.Tensor div.Scalar", lambda h, m: aten.div.Scalar(h / (2 + m.b.sin()), 0.7))
sample(
    "addcmul.default addcdiv.default", lambda h, m: torch.addcdiv(torch.addcmul(h, h, m.b), h, m.b.cosh(), value=0.5)
)
sample("lerp.Scalar lerp.Tensor", lambda h, m: torch.lerp(torch.lerp(h, m.b.expand_as(h), 0.3), h.sin(), h.sigmoid()))
sample("where.self gt.Scalar gt.Tensor", lambda h, m: torch.where(h > 0.1, h, h.sin()) * (h > m.b))
sample("lt.Scalar lt.Tensor", lambda h, m: h * (h < 0.1) + (h < m.b))
sample("le.Scalar le.Tensor", lambda h, m: h * (h <= 0.1) + (h <= m.b))
sample("ge.Scalar ge.Tensor", lambda h, m: h * (h >= 0.1) + (h >= m.b))
sample("eq.Scalar eq.Tensor", lambda h, m: h * (h == 0.1) + h * (h == m.b) + h)
sample("ne.Scalar ne.Tensor", lambda h, m: h * (h != 0.1) + h * (h != m.b))
sample("clamp.default clamp_min.default", lambda h, m: h.clamp(-0.5, 0.7) + aten.clamp_min(h, 0.2))
sample("clamp_min.Tensor clamp_max.Tensor", lambda h, m: aten.clamp_min(h, m.b) * aten.clamp_max(h, m.b))
sample("clamp_max.default", lambda h, m: aten.clamp_max(h, 0.2))
sample("maximum.default minimum.default", lambda h, m: torch.maximum(h, m.b) * torch.minimum(h, m.b))
sample("logical_and.default logical_not.default", lambda h, m: h * ((h > 0).logical_and((h < 1).logical_not())))
sample("bitwise_and.Tensor bitwise_not.default", lambda h, m: h * ((h > 0) & ~(h < 1)))
sample(
    "masked_fill.Scalar masked_fill.Tensor",
    lambda h, m: h.masked_fill(h > 0, 0.5) + h.masked_fill(h < 0, torch.tensor(0.25)),
)

# products
sample("mm.default t.default", lambda h, m: torch.mm(h.flatten(0, 1), m.w.t()).view(4, N, -1))
sample("bmm.default", lambda h, m: torch.bmm(torch.bmm(h, h.transpose(1, 2)) / m.n, h))
sample("mv.default", lambda h, m: torch.mv(m.w, h.mean((0, 1))) * h)
sample("dot.default vdot.default", lambda h, m: h * (torch.dot(m.g, m.b) + torch.vdot(m.b, m.b)) / m.n)
sample("addmm.default", lambda h, m: torch.addmm(m.b, h.flatten(0, 1), m.w, alpha=0.5).view(4, N, -1))
sample("addmv.default", lambda h, m: torch.addmv(m.b, m.w, m.b, beta=0.5) * h)
sample("baddbmm.default", lambda h, m: torch.baddbmm(h, torch.bmm(h, h.transpose(1, 2)) / m.n, h, beta=0.5))

# reductions
sample("logsumexp.default logaddexp.default", lambda h, m: torch.logaddexp(h, m.b) * h.logsumexp(1, keepdim=True))
sample("cumsum.default", lambda h, m: h.cumsum(1) * h.cumsum(-2).sin())
sample("sum.default mean.default", lambda h, m: h * h.square().mean() + h.sin().sum() / m.n)
sample("sum.dim_IntList mean.dim", lambda h, m: h * h.mean(1, keepdim=True) + h.sum(1, keepdim=True))
sample("linalg_vector_norm.default", lambda h, m: h / torch.linalg.vector_norm(h, dim=-1, keepdim=True))
sample("var.correction std.correction", lambda h, m: h * h.var(1, keepdim=True) + h.std(-1, correction=0, keepdim=True))
sample("var_mean.correction", lambda h, m: torch.add(*(x * h for x in torch.var_mean(h, 1, keepdim=True))))

# gates, losses, softmax, norms
sample("glu.default glu_backward.default", lambda h, m: F.glu(h, 1))
sample(
    "glu_jvp.default",
    lambda h, m: F.glu(h, 1) + aten.glu_jvp(F.glu(x := h.detach(), 1), x, x.sin(), 1),
)
sample(
    "_prelu_kernel.default _prelu_kernel_backward.default",
    lambda h, m: F.prelu(h, m.b.mean(0, keepdim=True)) + aten._prelu_kernel(h, m.b),
)
sample("_softmax.default _softmax_backward_data.default", lambda h, m: logits(h, m).softmax(-1)[..., None] * h)
sample("_safe_softmax.default", lambda h, m: aten._safe_softmax(logits(h, m), -1)[..., None] * h)
sample("_log_softmax.default _log_softmax_backward_data.default", lambda h, m: logits(h, m).log_softmax(-1))
sample("mse_loss.default mse_loss_backward.default", lambda h, m: F.mse_loss(logits(h, m), 1 + logits(h, m).sin()) * h)
sample("native_layer_norm.default native_layer_norm_backward.default", lambda h, m: F.layer_norm(h, (m.n,), m.g, m.b))
sample(
    "native_group_norm.default native_group_norm_backward.default",
    lambda h, m: last(F.group_norm(images(h), 2, m.g, m.b)),
)
sample(
    "_native_batch_norm_legit_functional.default native_batch_norm_backward.default",
    lambda h, m: last(F.batch_norm(images(h), torch.zeros(m.n), torch.ones(m.n), m.g, m.b, training=True)),
)
sample(
    "native_batch_norm.default",
    lambda h, m: last(aten.native_batch_norm(images(h), m.g, m.b, None, None, True, 0.1, 1e-5)[0]),
)

# shapes
sample("view.default _unsafe_view.default", lambda h, m: aten._unsafe_view(h.view(4, 2, 3, -1), [4, N, m.n]))
sample("unsqueeze.default squeeze.dim squeeze.dims", lambda h, m: h[:, None, :, None].squeeze(1).squeeze((2,)))
sample("squeeze.default", lambda h, m: aten.squeeze(h.unsqueeze(1)))
sample("expand.default", lambda h, m: h + m.b.expand(N, -1) * h[:, :1].expand(-1, N, -1))
sample("transpose.int permute.default", lambda h, m: h.transpose(0, 1).permute(1, 0, 2))
sample("repeat.default", lambda h, m: h.repeat(1, 2, 1) * m.b.repeat(4, 2 * N, 1))
sample("clone.default", lambda h, m: h.clone())
sample("_to_copy.default", lambda h, m: h * h.to(torch.float64).to(h.dtype))
sample("slice.Tensor slice_backward.default", lambda h, m: h[:, 1:5:2])
sample("select.int select_backward.default", lambda h, m: (h[:, 1] * h[:, -1])[:, None])
sample("unbind.int stack.default", lambda h, m: torch.stack(h.unbind(1)[1:4], 1))
sample("split.Tensor unsafe_split.Tensor", lambda h, m: torch.mul(*h.split(3, 1)) + torch.mul(*h.unsafe_split(3, 1)))
sample(
    "split_with_sizes.default unsafe_split_with_sizes.default cat.default",
    lambda h, m: torch.cat(h.split([2, 4], 1)[::-1], 1) * torch.cat(h.unsafe_split_with_sizes([1, 5], 1), 1),
)


def written(empty: Callable[[Tensor], Tensor]) -> Sample:
    """Rows of h written into fresh memory, in another order."""

    def f(h: Tensor, m: Any) -> Tensor:
        out = empty(h)
        out[:, 1:] = h[:, :-1].sin()
        out[:, 0] = h[:, -1]
        return out

    return f


sample("empty_like.default", written(torch.empty_like))
sample("eye.default", lambda h, m: h @ (torch.eye(m.n) + 2 * m.w) @ m.w.T)
sample("eye.m", lambda h, m: h @ (m.w @ m.w - torch.eye(m.n, m.n)))
sample("diag_embed.default", lambda h, m: h @ (m.w @ torch.diag(m.b.detach()) @ m.w) + h @ (m.w.T * m.b.detach()))
sample("new_empty.default", written(lambda h: h.new_empty(h.shape)))
sample("empty.memory_format", written(lambda h: torch.empty(h.shape)))
sample("select_scatter.default", lambda h, m: torch.select_scatter(h, h[:, 2].sin(), 1, -1))
sample("slice_scatter.default", lambda h, m: torch.slice_scatter(h, h[:, :2].sin(), 1, 2, 4))

# indexing
INDEX = torch.tensor([0, 3, 3, 1])
sample("index.Tensor index_put.default", lambda h, m: h[:, INDEX])
sample("_unsafe_index.Tensor _unsafe_index_put.default", lambda h, m: aten._unsafe_index(h, [None, INDEX]))
sample("index_select.default index_add.default", lambda h, m: h.index_select(1, INDEX))
sample("topk.default scatter.src", lambda h, m: best(logits(h, m)))
sample("gather.default scatter_add.default", lambda h, m: logits(h, m).gather(1, INDEX.expand(4, 4)))
sample(
    "embedding.default embedding_dense_backward.default",
    lambda h, m: F.embedding(INDEX[:, None].expand(4, N), h.mean(0)) * h,
)

# positions
sample("convolution.default convolution_backward.default", lambda h, m: last(F.conv1d(h.transpose(1, 2), m.k, m.b)))
sample("im2col.default col2im.default", lambda h, m: F.fold(F.unfold(logits(h, m).view(4, 1, 2, 3), 2), (2, 3), 2))
sample(
    "constant_pad_nd.default",
    lambda h, m: (
        F.pad(h, (0, 0, 1, 2), value=0.5) * F.pad(h, (0, 0, 4, -1)) + F.pad(logits(h, m), (1, 2), value=0.5)[..., None]
    ),
)
sample("flip.default roll.default", lambda h, m: h.flip(1) * h.roll(2, 1))
sample("unfold.default unfold_backward.default", lambda h, m: h.unfold(1, 3, 1).transpose(2, 3))
sample(
    "amax.default amin.default",
    lambda h, m: (images(h).amax((-1, -2)) * h.amin(1) + images(h).amin(-1).mean(-1))[:, None],
)
sample("max.dim min.dim", lambda h, m: h.max(1).values[:, None] * h.min(1, keepdim=True).values)
sample(
    "max_pool2d_with_indices.default max_pool2d_with_indices_backward.default",
    lambda h, m: last(F.max_pool2d(images(h), 2)),
)
sample(
    "max_pool3d_with_indices.default max_pool3d_with_indices_backward.default",
    lambda h, m: last(F.max_pool3d(volumes(h), 2)),
)
sample(
    "_adaptive_avg_pool2d.default _adaptive_avg_pool2d_backward.default",
    lambda h, m: last(F.adaptive_avg_pool2d(images(h), (2, 2))),
)
sample(
    "_adaptive_avg_pool3d.default _adaptive_avg_pool3d_backward.default",
    lambda h, m: last(F.adaptive_avg_pool3d(volumes(h), (2, 2, 1))),
)
sample("avg_pool2d.default avg_pool2d_backward.default", lambda h, m: last(F.avg_pool2d(images(h), 2)))
sample("avg_pool3d.default avg_pool3d_backward.default", lambda h, m: last(F.avg_pool3d(volumes(h), 2)))
for mode in ("reflection", "replication"):
    for d, shaped in ((1, lambda h: h.transpose(1, 2)), (2, images), (3, volumes)):
        pad = getattr(aten, f"{mode}_pad{d}d")
        sample(
            f"{mode}_pad{d}d.default {mode}_pad{d}d_backward.default",
            lambda h, m, pad=pad, d=d, shaped=shaped: last(pad(shaped(h), [1] * 2 * d)),
        )
for mode, d, shaped in (
    ("nearest1d", 1, lambda h: h.transpose(1, 2)),
    ("nearest2d", 2, images),
    ("nearest3d", 3, volumes),
    ("linear1d", 1, lambda h: h.transpose(1, 2)),
    ("bilinear2d", 2, images),
    ("bicubic2d", 2, images),
):
    name = f"upsample_{mode}"
    sample(
        f"{name}.default {name}_backward.default",
        lambda h, m, mode=mode[:-2], d=d, shaped=shaped: last(F.interpolate(shaped(h), (3, 4, 3)[:d], mode=mode)),
    )
