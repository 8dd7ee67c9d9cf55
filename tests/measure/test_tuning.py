"""The search for the best number of threads, on simulated machines, and on this one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from lariat import DEMO_MODEL
from lariat.measure import tuning
from lariat.measure.tuning import fewest_fastest

from tests.support.model_files import write_llama


class Machine:
    """A machine on which a piece of work takes a known time with each number of threads.

    n_cores  threads that run at once
    serial   share of the work that one thread does
    memory   cores that use up the memory's bandwidth: more do not help
    barrier  share of the time that each thread adds by waiting for it
    quota    processors that the control group grants, None for all
    """

    def __init__(
        self,
        n_cores: int,
        *,
        serial: float = 0.01,
        memory: float = 1e9,
        barrier: float = 0.0,
        quota: float | None = None,
    ) -> None:
        self.n_cores = n_cores
        self.serial, self.memory, self.barrier, self.quota = serial, memory, barrier, quota
        self.n_measured = 0

    def seconds(self, n: int) -> float:
        """What the work takes with n threads when nobody disturbs."""
        taken = self.serial + (1 - self.serial) / min(n, self.n_cores, self.memory)
        taken += self.barrier * n
        if n > self.n_cores:
            taken *= 2  # threads wait for others that do not run
        if self.quota is not None and n > self.quota:
            taken *= 1.3 * n / self.quota  # all stand still until the next period
        return taken

    def best(self) -> float:
        """The least of all."""
        return min(self.seconds(n) for n in range(1, self.n_cores + 1))

    def disturbed(self, seed: int, noise: float, bursts: float = 0.0) -> Callable[[int], float]:
        """`seconds` with noise, and with a neighbour that comes for a share of the time, and then
        takes a third of it."""
        rng = random.Random(seed)

        def run(n: int) -> float:
            self.n_measured += 1
            slower = 1.5 if rng.random() < bursts else 1.0
            drift = 1 + 0.3 * abs((self.n_measured % 200) / 100 - 1)
            return self.seconds(n) * slower * drift * rng.uniform(1, 1 + noise)

        return run


MACHINES = {
    "two cores": Machine(2),
    "all help": Machine(16),
    "memory is the bound": Machine(16, memory=5),
    "barriers cost": Machine(32, barrier=0.002),
    "barriers cost much": Machine(64, barrier=0.01),
    "serial": Machine(8, serial=0.9),
    "many": Machine(192, memory=40, barrier=0.0002),
    "odd": Machine(13, memory=7),
    "one": Machine(1),
}


@pytest.mark.parametrize("name", MACHINES)
def test_on_a_quiet_machine_the_choice_is_within_3_percent_of_a_full_sweep(name: str) -> None:
    machine = MACHINES[name]
    for seed in range(20):
        found = fewest_fastest(machine.disturbed(seed, noise=0.02), machine.n_cores)
        assert machine.best() / machine.seconds(found.best) >= 0.97, (seed, found.best)


@pytest.mark.parametrize("name", MACHINES)
def test_beside_a_busy_neighbour_it_is_within_10_percent(name: str) -> None:
    machine = MACHINES[name]
    for seed in range(20):
        run = machine.disturbed(seed, noise=0.1, bursts=0.2)
        found = fewest_fastest(run, machine.n_cores)
        assert machine.best() / machine.seconds(found.best) >= 0.9, (seed, found.best)


@pytest.mark.parametrize("quota", [1.5, 3.0, 6.5])
def test_under_a_quota_it_is_within_10_percent(quota: float) -> None:
    machine = Machine(16, quota=quota)
    for seed in range(20):
        found = fewest_fastest(machine.disturbed(seed, noise=0.05), machine.n_cores)
        assert machine.best() / machine.seconds(found.best) >= 0.9, (seed, found.best)


def test_threads_that_bring_nothing_are_left_to_others() -> None:
    machine = Machine(16, serial=0.0, memory=4)
    found = fewest_fastest(machine.disturbed(0, noise=0.001), 16)
    assert found.best == 4


def test_a_search_is_much_shorter_than_a_sweep() -> None:
    machine = Machine(192, memory=150)
    fewest_fastest(machine.disturbed(0, noise=0.02), 192)
    assert machine.n_measured < 192 * tuning._N_ROUNDS / 4


def test_progress_ends_at_one() -> None:
    seen: list[float] = []
    fewest_fastest(Machine(8).disturbed(0, noise=0.02), 8, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_real_model_is_measured_with_each_number_of_threads(tmp_path) -> None:
    path = write_llama(tmp_path / "model.gguf")
    with tuning.loaded(str(path)) as (gguf, work):
        assert gguf.path == path
        for n_threads in (1, 2, 3):
            assert work.decode(n_threads) > 0
            assert work.prompt(n_threads) > 0


def test_the_work_of_a_measurement_is_repeated_until_it_takes_long_enough() -> None:
    with tuning.loaded(str(DEMO_MODEL)) as (_, work):
        n_passes = []
        forward = work._runner.forward
        work._runner.forward = lambda parts, n: (n_passes.append(1), forward(parts, n))[1]
        work.decode(1)
        n_passes.clear()
        work.decode(1)
        assert len(n_passes) > 1
