"""Programs: order of phases, any number of threads, some phases only, empty phases."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np
import pytest
from lariat import _kernels
from lariat._program import Program, Stop, run
from lariat.os_memory import allocate

DIM = 96


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def matrix(rng: np.random.Generator, n_rows: int = DIM, n_cols: int = DIM) -> _kernels.Matrix:
    values = (rng.standard_normal((n_rows, n_cols)) / np.sqrt(n_cols)).astype(np.float32)
    packed = allocate(_kernels.packed_bytes("F32", n_rows, n_cols))
    return _kernels.Matrix(values.view(np.uint8), "F32", n_cols, packed)


def chain(rng: np.random.Generator, n_phases: int) -> tuple[Program, list[np.ndarray]]:
    """Each phase reads the result of the one before: a thread that runs ahead shows in the end."""
    x = [rng.standard_normal((3, DIM)).astype(np.float32)]
    unused, program = _kernels.Activations(1, 32), Program()
    weight = np.ones(DIM, np.float32)
    for _ in range(n_phases):
        x += [np.zeros_like(x[0]), np.zeros_like(x[0])]
        program.then(_kernels.matmul(matrix(rng), x[-3], unused, x[-2]))
        program.then(_kernels.rms_norm(x[-2], weight, 1e-5, x[-1]))
    return program, x


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
def test_phases_follow_each_other(rng, n_threads):
    program, x = chain(rng, 60)
    program.run(1)
    expected = [a.copy() for a in x]
    for _ in range(20):
        for a in x[1:]:
            a[:] = np.nan
        program.run(n_threads)
        assert all(np.array_equal(a, b) for a, b in zip(x, expected, strict=True))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_all_operations_of_a_phase_are_done(rng, n_threads):
    bias = rng.standard_normal((5, DIM)).astype(np.float32)
    outs = np.zeros((5, 70, DIM), np.float32)  # two tasks each
    program = Program().then(
        *[_kernels.add_bias(b, out) for b, out in zip(bias, outs, strict=True)]
    )
    for _ in range(3):
        program.run(n_threads)
    assert np.allclose(outs, 3 * np.broadcast_to(bias[:, None], outs.shape))


class Wish:
    closed = False


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_run_stops_when_all_whom_it_is_for_are_closed(rng, n_threads):
    """At any moment, while it runs; afterwards the program is as good as new."""
    program, x = chain(rng, 60)
    program.run(1)
    expected = [a.copy() for a in x]
    stop, wishes = Stop(), [Wish(), Wish()]
    stop.begin(wishes)
    wishes[0].closed = True
    stop.look()
    assert not stop.is_set
    for i in range(20):
        stop.begin(wishes)
        wishes[1].closed = False
        for a in x[1:]:
            a[:] = np.nan

        def close():
            wishes[1].closed = True
            stop.look()

        timer = threading.Timer(i * 1e-4, close)
        timer.start()
        for _ in range(50):
            program.run(n_threads, stop=stop)
        timer.join(30)
        assert stop.is_set
        x[1][:] = np.nan
        program.run(n_threads, stop=stop)
        assert np.isnan(x[1]).all(), "stopped before the first phase"
        assert stop.end()
        stop.look()  # for nobody
        assert not stop.is_set
        program.run(n_threads, stop=stop)
        assert all(np.array_equal(a, b) for a, b in zip(x, expected, strict=True))


def test_a_run_for_those_who_have_given_up_before_does_nothing(rng):
    program, x = chain(rng, 2)
    stop, wish = Stop(), Wish()
    wish.closed = True
    stop.begin([wish])
    program.run(2, stop=stop)
    assert not x[-1].any()


def test_a_part_of_a_program(rng):
    out, one = np.zeros((2, DIM), np.float32), np.ones(DIM, np.float32)
    program = Program()
    for factor in (1, 10, 100):
        program.then(_kernels.add_bias(factor * one, out))
    assert program.n_phases == 3
    program.run(2, 1, 2)
    assert (out == 10).all()
    program.run(2, 1)
    assert (out == 120).all()
    program.run(2, 3)
    assert (out == 120).all()


def test_empty_phases_and_operations_do_nothing(rng):
    nothing, one = np.zeros((0, DIM), np.float32), np.ones(DIM, np.float32)
    out = np.zeros((2, DIM), np.float32)
    program = (
        Program().then().then(_kernels.add_bias(one, nothing)).then(_kernels.add_bias(one, out))
    )
    program.then()
    program.run(2)
    assert (out == 1).all()
    Program().run(2)
    run(n_threads=2)


def test_a_program_grows_between_runs(rng):
    out, one = np.zeros((2, DIM), np.float32), np.ones(DIM, np.float32)
    program = Program().then(_kernels.add_bias(one, out))
    program.run(2)
    program.then(_kernels.add_bias(one, out))
    program.run(2)
    assert (out == 3).all()


def test_it_keeps_what_its_operations_need(rng):
    out, program = np.zeros((300, DIM), np.float32), Program()
    for _ in range(50):
        program.then(_kernels.add_bias(np.full(DIM, 0.5, np.float32), out))
    program.run(2)
    assert (out == 25).all()


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (0, 2), (1, 0), (2, -1)])
def test_parts_that_are_not_there_are_refused(first, last):
    program = Program().then()
    with pytest.raises(ValueError, match="phases"):
        program.run(1, first, last)
    with pytest.raises(ValueError, match="0 threads"):
        program.run(0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted in /proc")
def test_programs_give_their_memory_back(rng):
    """C allocates it, so Python's tools do not see it."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    operation = _kernels.add_bias(np.zeros(DIM, np.float32), np.zeros((1, DIM), np.float32))

    def make(n: int) -> None:
        for _ in range(n):
            program = Program()
            for _ in range(30):
                program.then(operation)
            program.run(2)

    make(200)
    before = resident()
    make(6000)  # each has more than 2 KB of operations, phases and counters
    assert resident() - before < 3 << 20


def test_working_memory_is_apart_for_each_thread():
    program = Program()
    areas = program.work_areas(3)
    assert areas.shape == (3, program.n_work + 16)  # a cache line behind each
    assert areas.dtype == np.float32
    areas[:] = 7
    program.run(3)
    assert (program.work_areas(3) == 7).all()
