"""Kernel matrices on disk: resumed after a kill, and computed by workers one of which is killed, to the same bits."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_store_job import Net, inputs

import tpcompile as tp
from tpcompile.errors import MissingExtraError, UsageError

pytest.importorskip("zarr")
BLOCKS = 21  # of 6 times 6, on and above the diagonal


@pytest.fixture(scope="module")
def kernel() -> tp.Kernel:
    return tp.kernel(Net, torch.zeros(3))


@pytest.fixture(scope="module")
def serial(kernel: tp.Kernel, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, ...]:
    found = kernel.to_zarr(inputs(), tmp_path_factory.mktemp("serial") / "k", block=4)
    assert found.nngp.chunks == (4, 4)
    return tuple(matrix[...] for matrix in found)


def same(found, serial: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a[...], b) for a, b in zip(found, serial, strict=True))


def test_the_matrix_on_disk_is_the_matrix(kernel: tp.Kernel, serial, tmp_path: Path) -> None:
    x = inputs()
    for found, wanted in zip(serial, kernel(x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found, found.T, rtol=1e-14, atol=1e-14)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert same(kernel.to_zarr(x.numpy(), tmp_path / "threads", block=4), serial)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    half = kernel.to_zarr(x, tmp_path / "half", inputs(6, 1), "ntk", block=5, dtype=torch.float32)
    assert half.shape == (23, 6)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half[...], kernel.ntk(x, inputs(6, 1)), rtol=1e-4, atol=1e-4)
    given = kernel.to_zarr(x, tmp_path / "v", get="nngp", block=30, variances={"readout": torch.tensor(2.0)})
    np.testing.assert_allclose(given[...], 2 * kernel.nngp(x))


def test_the_diagonal_on_disk(kernel: tp.Kernel, tmp_path: Path) -> None:
    x = inputs()
    seen: list[tuple[int, int]] = []
    found = kernel.to_zarr(x, tmp_path / "k", block=4, diagonal=True, progress=lambda *at: seen.append(at))
    assert seen[-1] == (6, 6)
    for values, wanted in zip(found, kernel(x, diagonal=True), strict=True):
        assert values.shape == (23,)
        np.testing.assert_allclose(values[...], wanted, rtol=1e-14)
    for call in (lambda: kernel.to_zarr(x, tmp_path / "n", x, diagonal=True), lambda: kernel(x, x, diagonal=True)):
        with pytest.raises(UsageError, match="x2"):
            call()
    parts = kernel(x, diagonal=True, block=4)
    assert torch.equal(parts.ntk, torch.from_numpy(found.ntk[...]))


def test_positions(tmp_path: Path) -> None:
    from test_kernel_predict import Tokens

    kernel = tp.kernel(Tokens, torch.zeros(3, 2))
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    found = kernel.to_zarr(x, tmp_path / "k", get="nngp", block=2)
    np.testing.assert_allclose(found[...], kernel.nngp(x), rtol=1e-5, atol=1e-6)


def test_a_killed_run_is_taken_up(kernel: tp.Kernel, serial, tmp_path: Path) -> None:
    path = tmp_path / "k"
    script = Path(__file__).with_name("kernel_store_job.py")
    environment = os.environ | {"PYTHONPATH": str(Path(tp.__file__).parents[1])}
    run = subprocess.Popen([sys.executable, script, path], stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("7 "):
            break
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run.stdout.close()
    before = {file: file.stat().st_mtime_ns for file in (path / "nngp" / "c").rglob("*") if file.is_file()}
    assert before
    seen: list[int] = []
    found = kernel.to_zarr(inputs(), path, block=4, progress=lambda done, total: seen.append(done))
    assert seen[0] >= 7
    assert seen[-1] == BLOCKS
    assert seen == list(range(seen[0], BLOCKS + 1))
    assert same(found, serial)
    kept = sum(file.stat().st_mtime_ns == stamp for file, stamp in before.items())
    assert kept >= len(before) - 2 * torch.get_num_threads()  # those that were in the making
    assert kernel.to_zarr(inputs(), path, block=4, progress=lambda *_: pytest.fail("done already")).nngp.shape == (
        23,
        23,
    )


def test_a_half_written_block_does_not_count(kernel: tp.Kernel, serial, tmp_path: Path) -> None:
    import zarr

    path = tmp_path / "k"
    kernel.to_zarr(inputs(), path, block=4)
    group = zarr.open_group(path, mode="r+")
    done, ntk = group["done"], group["ntk"]
    done[1, 3] = 0  # type: ignore[index]
    ntk[4:8, 12:16] = 7.0  # type: ignore[index]
    seen: list[int] = []
    assert same(kernel.to_zarr(inputs(), path, block=4, progress=lambda i, n: seen.append(i)), serial)
    assert seen == [BLOCKS]


def test_another_matrix_is_refused(kernel: tp.Kernel, tmp_path: Path) -> None:
    path = tmp_path / "k"
    x = inputs(6)
    kernel.to_zarr(x, path, block=4)
    other = tp.kernel(lambda n: torch.nn.Sequential(Net(n), torch.nn.Identity()), torch.zeros(3))
    assert other.to_zarr(x[:2], tmp_path / "other", get="nngp").shape == (2, 2)
    for change, word in (
        (lambda: kernel.to_zarr(x + 1, path, block=4), "inputs"),
        (lambda: kernel.to_zarr(x, path, x, block=4), "inputs2"),
        (lambda: kernel.to_zarr(x, path, block=3), "block"),
        (lambda: kernel.to_zarr(x, path, get="ntk", block=4), "get"),
        (lambda: kernel.to_zarr(x, path, block=4, dtype=torch.float32), "dtype"),
        (lambda: kernel.to_zarr(x, path, block=4, diagonal=True), "diagonal"),
        (lambda: kernel.to_zarr(x, path, block=4, seed=1), "options"),
        (lambda: kernel.to_zarr(x, path, block=4, variances={"readout": 2.0}), "variances"),
        (lambda: other.to_zarr(x, path, block=4), "program"),
    ):
        with pytest.raises(UsageError, match=rf"another kernel matrix: .*{word}.* differ"):
            change()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    with pytest.raises(UsageError, match="no zarr group"):
        kernel.to_zarr(x, tmp_path / "folder")
    with pytest.raises(UsageError, match="shape"):
        kernel.to_zarr(x[:, :2], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="block"):
        kernel.to_zarr(x, tmp_path / "new", block=0)


def test_a_bar_on_terminals_only(kernel: tp.Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, screen, wanted, shown in (
        ("a", Screen(), True, True),
        ("b", io.StringIO(), True, False),
        ("c", Screen(), False, False),
    ):
        monkeypatch.setattr(sys, "stderr", screen)
        kernel.to_zarr(inputs(6), tmp_path / name, block=4, get="nngp", progress=wanted)
        assert ("kernel blocks" in screen.getvalue()) == shown
        assert ("3/3" in screen.getvalue()) == shown


def test_missing_packages_are_named(kernel: tp.Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtraError, match=r"tpcompile\[scale\]"):
        kernel.to_zarr(inputs(), tmp_path / "k")


@pytest.mark.slow
def test_a_cluster_with_a_killed_worker_gives_the_same_bits(kernel: tp.Kernel, tmp_path: Path) -> None:
    import zarr

    distributed = pytest.importorskip("distributed")
    x, pids, written = inputs(100), [], []

    def kill_one(done: int, total: int) -> None:
        if done >= total // 4 and not written:
            os.kill(pids[0], signal.SIGKILL)
            written.append(int(zarr.open_group(tmp_path / "k", mode="r")["done"][...].sum()))  # type: ignore[index]
            assert written[0] < total

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options, local_directory=str(tmp_path)) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids += client.run(os.getpid).values()
        assert os.getpid() not in pids
        found = kernel.to_zarr(x, tmp_path / "k", block=6, client=client, progress=kill_one)
        assert written
    assert same(found, tuple(m[...] for m in kernel.to_zarr(x, tmp_path / "serial", block=6)))
