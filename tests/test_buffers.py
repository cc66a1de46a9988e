"""Memory that is used again, and results that are written to given memory."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from tpcompile.analysis.semantics import contract, execute
from tpcompile.evaluate.buffers import Arena
from tpcompile.ir import Map, Mul, Sum, Width

N = 5000


def test_memory_is_used_again_when_the_last_view_is_gone():
    arena = Arena()
    shape = (4, 2**16)
    first = arena.large(shape, torch.float32)
    if first is None:
        pytest.skip("a system without huge pages")
    place, size = first.data_ptr(), first.nbytes
    view = first[1:3]
    second = arena.take(shape, torch.float32)
    assert second.data_ptr() >= place + size
    del first
    third = arena.take(shape, torch.float32)
    assert third.data_ptr() >= second.data_ptr() + size  # the view is still there
    del view
    larger = arena.take((4, 2**16 + 64), torch.float32)
    assert larger.data_ptr() > third.data_ptr()  # does not fit into the gap
    assert arena.take(shape, torch.float32).data_ptr() == place
    del second
    assert arena.take((6, 2**16), torch.float32).data_ptr() == place  # two gaps are one
    assert arena.large((8,), torch.float32) is None
    assert arena.take((8,), torch.float32).shape == (8,)


def test_tensors_of_an_arena_do_not_overlap():
    arena = Arena()
    generator = torch.Generator().manual_seed(0)
    alive: dict[int, torch.Tensor] = {}
    for i in range(400):
        size = int(torch.randint(2**15, 2**20, (), generator=generator))
        alive[i] = arena.take((size,), torch.float32).fill_(i)
        if len(alive) > 12:
            del alive[list(alive)[int(torch.randint(len(alive), (), generator=generator))]]
        assert all(bool((x == j).all()) for j, x in alive.items()) or i % 20
    assert all(bool((x == j).all()) for j, x in alive.items())


def test_a_tensor_may_end_on_another_thread():
    arena = Arena()
    places = set()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(8):
            x = [arena.take((2**18,), torch.float32)]
            places.add(x[0].data_ptr())
            pool.submit(x.clear).result()
    assert len(places) == 1 or arena.large((2**18,), torch.float32) is None


@pytest.mark.parametrize("shapes", [((3, N), (N,)), ((2, N), (2, 1), ()), ((N, 2), (N, 1), (N, 2)), ((), (3, N))])
def test_sums_and_products_in_given_memory_are_the_same(shapes):
    x = [torch.randn(s, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(shapes)]
    whole = torch.broadcast_shapes(*shapes)
    dims = tuple(Width() if d == N else d for d in whole)
    for op in (Sum((1.0, -0.5, 2.0)[: len(x)]), Sum((-2.0, 0.5, 1.0)[: len(x)]), Mul()):
        want = execute(op, x, dims, lambda w: N, torch.float64)
        assert torch.equal(execute(op, x, dims, lambda w: N, torch.float64, torch.empty(whole).double()), want)


@pytest.mark.parametrize("shape", [(3, 2**16), (2**16, 3), (2**17,)])
def test_functions_in_given_memory_are_the_same(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = execute(Map("gelu"), [x], (), lambda w: 0, torch.float64, torch.empty_like(x))
    assert torch.equal(found, execute(Map("gelu"), [x], (), lambda w: 0, torch.float64))
    assert torch.allclose(found, F.gelu(x), atol=1e-14)


@pytest.mark.parametrize(
    "spec", ["a,b->ab", "a,b->ba", "a,ab->b", "b,ab->a", "ab,a->b", "ab,b->a", "ab,bc->ac", "ab,bc->ca", "ab,cb->ac"]
)
def test_contractions_are_those_of_einsum(spec):
    sizes = {"a": 3, "b": 5, "c": 4}
    first, second = spec.split("->")[0].split(",")
    x, y = (torch.randn([sizes[i] for i in letters], dtype=torch.float64) for letters in (first, second))
    want = torch.einsum(spec, x, y)
    assert torch.allclose(contract(spec, (x, y)), want, atol=1e-14)
    out = torch.empty_like(want, memory_format=torch.contiguous_format)
    contract(spec, (x, y), out)
    assert torch.allclose(out, want, atol=1e-14)
