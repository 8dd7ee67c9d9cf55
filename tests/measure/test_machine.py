"""Probes of the machine: their sums at every level, their arguments, pins, memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from lariat import _kernels, _machine
from lariat.errors import LariatError
from lariat.measure import machine
from lariat.os_memory import allocate
from lariat.runtime import threads

ISAS = _kernels.supported_isas()
LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not this system's way")


@pytest.fixture
def memory() -> np.ndarray:
    values = allocate(_machine.STEP_BYTES * 37)
    values[:] = np.random.default_rng(1).integers(0, 256, len(values), dtype=np.uint8)
    return values


# ---- the compiled probes ----


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_threads", [1, 2, 3, 40])
def test_reading_reads_every_byte_once(memory, isa, n_threads):
    expected = int(memory.view(np.uint64).sum(dtype=np.uint64))
    assert _machine.read(memory, isa, n_threads) == expected
    at = 8 * 1000
    memory[at] ^= 255
    assert _machine.read(memory, isa, n_threads) != expected


@pytest.mark.parametrize("n_bytes", [0, 255, 257])
def test_reading_wants_whole_steps(n_bytes):
    with pytest.raises(ValueError, match="multiple of 256"):
        _machine.read(np.zeros(n_bytes, np.uint8), "scalar", 1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("activation", [1, 77, 100])
def test_all_products_are_done(isa, n_threads, activation):
    n = 25 * n_threads * _machine.STEP_PRODUCTS
    expected = n * activation * _machine.STEP_WEIGHT % 2**32
    assert _machine.multiply(25, activation, isa, n_threads) == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("x", [1, 0.5, -3])
def test_all_products_of_floats_are_done(isa, n_threads, x):
    expected = 25 * n_threads * _machine.STEP_PRODUCTS * x
    assert _machine.multiply_floats(25, x, isa, n_threads) == expected


@pytest.mark.parametrize("activation", [0, 101, -1])
def test_products_that_would_overflow_are_refused(activation):
    with pytest.raises(ValueError, match="1 to 100"):
        _machine.multiply(1, activation, "scalar", 1)


def test_unknown_levels_are_refused(memory):
    for work in (
        lambda: _machine.read(memory, "neon", 1),
        lambda: _machine.multiply(1, 1, "", 1),
        lambda: _machine.multiply_floats(1, 1, "avx", 1),
    ):
        with pytest.raises(ValueError):
            work()


@pytest.mark.parametrize("n_threads", [0, -1])
def test_no_threads_are_refused(memory, n_threads):
    for work in (
        lambda: _machine.read(memory, "scalar", n_threads),
        lambda: _machine.multiply(1, 1, "scalar", n_threads),
        lambda: _machine.multiply_floats(1, 1, "scalar", n_threads),
        lambda: _machine.fill(memory, n_threads),
        lambda: _machine.thread_ids(n_threads),
    ):
        with pytest.raises(ValueError, match="threads"):
            work()


@pytest.mark.parametrize("n_threads", [1, 2, 3, 50])
def test_filling_writes_everything(n_threads):
    values = allocate(12345)
    _machine.fill(values, n_threads)
    assert values.all()


# ---- ceilings ----


def test_probe_measures_with_the_level_in_use(monkeypatch):
    monkeypatch.setattr(machine, "_PASS_SECONDS", 1e-4)
    seen = []
    monkeypatch.setattr(_machine, "read", lambda memory, isa, n: seen.append((len(memory), isa, n)))

    def watch(name):
        multiply = getattr(_machine, name)

        def spy(n_steps, factor, isa, n_threads):
            seen.append((name, isa, n_threads))
            return multiply(n_steps, factor, isa, n_threads)

        monkeypatch.setattr(_machine, name, spy)

    watch("multiply")
    watch("multiply_floats")
    before = _kernels.isa()
    try:
        for isa in ISAS:
            _kernels.use_isa(isa)
            probe = machine.Probe(2, 1000)
            assert probe.n_bytes == 1024
            assert probe.read_bandwidth(2) > 0
            assert seen[-1] == (1024, isa, 2)
            assert probe.int8_peak(3) > 0
            assert seen[-1] == ("multiply", isa, 3)
            assert probe.float_peak(2) > 0
            assert seen[-1] == ("multiply_floats", isa, 2)
    finally:
        _kernels.use_isa(before)


def test_probe_counts_bytes_and_products(monkeypatch):
    """With a clock that moves by one second each time it is read, every pass takes a second."""
    ticks = iter(range(1000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))
    probe = machine.Probe(1, 4096)
    assert probe.read_bandwidth(1) == 4096.0
    looks = next(ticks)
    assert probe.read_bandwidth(1, 2) == 4096.0
    assert next(ticks) - looks == 1 + 2 * 2  # two at each pass
    assert probe.int8_peak(2) == 2 * 256 * _machine.STEP_PRODUCTS
    assert probe.float_peak(2) == 2 * 256 * _machine.STEP_PRODUCTS


def test_probe_takes_a_share_of_the_memory_that_is_free(monkeypatch):
    for free, expected in ((100 << 30, 1 << 30), (4 << 30, 512 << 20), (1 << 20, 64 << 20)):
        monkeypatch.setattr(machine, "_available_memory", lambda free=free: free)
        monkeypatch.setattr(machine, "allocate", lambda n: np.zeros(1, np.uint8))
        assert machine.Probe(1).n_bytes == expected


# ---- pins ----


@LINUX
def test_threads_are_pinned_and_let_go():
    before = os.sched_getaffinity(0)
    with machine.Pins() as pins:
        for n_threads in (2, 3, 1, 2):
            pins.place(n_threads)
            ids = _machine.thread_ids(n_threads)
            assert len(set(ids)) == n_threads
            assert ids[0] == threading.get_native_id()
            masks = [os.sched_getaffinity(i) for i in ids]
            assert all(len(mask) == 1 for mask in masks)
            assert len(set().union(*masks)) == min(n_threads, len(before))
    assert all(os.sched_getaffinity(i) == before for i in [0, *_machine.thread_ids(3)])


@LINUX
def test_cores_come_before_their_siblings(tmp_path, monkeypatch):
    for cpu, siblings in {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 4, 1, 0, 9})
    assert machine.processors(threads.cores(str(tmp_path))) == [0, 1, 9, 4, 5]


def test_systems_without_pins_say_so(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(LariatError, match="cannot keep threads"):
        machine.Pins()


# ---- memory and names ----


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_memory_rises_and_starts_anew():
    machine.reset_peak_memory()
    low = machine.peak_memory()
    block = allocate(64 << 20)
    block[:] = 1
    high = machine.peak_memory()
    assert high - low > 50 << 20
    del block
    assert machine.peak_memory() > high - (8 << 20)  # Linux counts pages in batches
    machine.reset_peak_memory()
    assert machine.peak_memory() < high - (50 << 20)


def test_peak_memory_without_proc(monkeypatch):
    monkeypatch.setattr(machine, "_read_kib", lambda *_: None)
    assert machine.peak_memory() > 1 << 20
    assert machine._available_memory() > 1 << 20


def test_numbers_of_proc_files(tmp_path):
    path = tmp_path / "status"
    path.write_text("Name: x\nVmHWM:\t   1234 kB\nVmBad: x kB\nVmNone:\n")
    assert machine._read_kib(str(path), "VmHWM") == 1234
    assert machine._read_kib(str(path), "VmBad") is None
    assert machine._read_kib(str(path), "VmNone") is None
    assert machine._read_kib(str(path), "VmPeak") is None
    assert machine._read_kib(str(tmp_path / "missing"), "VmHWM") is None
