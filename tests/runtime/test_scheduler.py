"""The scheduler alone: a made-up model computes nothing, and says what the next token is."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable
from lariat.cache.prefix_cache import PrefixCache
from lariat.config import SamplingParams
from lariat.runtime.request import Completion, Request
from lariat.runtime.scheduler import Scheduler, Step

from tests.support.contexts import next_step


class SilentDecoder:
    def feed(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class Simulation:
    """Runs what the scheduler chooses, and checks each choice."""

    def __init__(self, n_blocks: int, n_batch: int) -> None:
        self.pool = BlockPool(n_blocks)
        self.n_batch = n_batch
        self.scheduler = Scheduler(self.pool, n_batch)
        self.open: list[Request] = []  # in the order they came
        self.n_preempted = 0
        self._let_in: list[Request] = []  # at some time

    def add(self, n_prompt: int, max_tokens: int, first: int = 0) -> Request:
        prompt = list(range(first, first + n_prompt))
        request = Request(
            prompt,
            SamplingParams(max_tokens=max_tokens),
            BlockTable(self.pool),
            np.random.default_rng(0),
            Completion(prompt),
            decoder=SilentDecoder(),
            eog_ids=frozenset(),
            n_ctx=1 << 20,
        )
        self.scheduler.add(request)
        self.open.append(request)
        return request

    def remove(self, request: Request) -> None:
        held, n_free = len(request.table.segments), self.pool.n_free
        self.scheduler.remove(request)
        self.open.remove(request)
        assert self.pool.n_free == n_free + held, "its blocks are free at once"
        assert self.scheduler.n_unfinished == len(self.open)

    def step(self) -> list[tuple[Request, int]]:
        held = {s: s.table.n_tokens for s in self.open}
        step = next_step(self.scheduler)
        self._check(step, held)
        for request, n in step:
            wants_logits = n == request.n_pending
            request.table.append(n)  # IndexError if the pool has too few
            if wants_logits:
                token = next_token(request.ids)
                request.ids.append(token)
                request.completion.token_ids.append(token)
                if len(request.completion.token_ids) == request.params.max_tokens:
                    request.completion.finish_reason = "length"
                    self.remove(request)
        assert self.pool.n_free == self.pool.n_blocks - self._blocks_held()
        return step

    def run(self, limit: int) -> int:
        """Steps until all is done."""
        for n_steps in range(limit):
            if not self.scheduler.n_unfinished:
                return n_steps
            self.step()
        raise AssertionError(f"not done after {limit} steps")

    def _blocks_held(self) -> int:
        return sum(len(s.table.segments) for s in self.open)

    def _check(self, step: list[tuple[Request, int]], held: dict[Request, int]) -> None:
        chosen = [s for s, _ in step]
        assert step or not self.open, "there is work, and nothing was chosen"
        assert len(set(chosen)) == len(chosen), "a request stands twice in a step"
        assert all(s in self.open and 1 <= n <= s.n_pending for s, n in step)
        assert sum(n for _, n in step) <= self.n_batch
        needed = sum(s.table.n_new_blocks(n) for s, n in step)
        assert needed <= self.pool.n_free, "more blocks than are free"

        preempted = [s for s in self.open if s.table.n_tokens < held[s]]
        assert all(s.table.n_tokens == 0 and s not in chosen for s in preempted)
        self.n_preempted += len(preempted)
        for s in self.open:
            assert s in preempted or s.table.n_tokens == held[s]

        decoding = [s for s in self.open if not s.in_prompt and s.table.n_tokens]
        if any(s.in_prompt for s in chosen):
            assert all(s in chosen for s in decoding), "a prompt was served before a decoding one"
        order = [s.in_prompt for s in chosen]
        assert order == sorted(order), "decoding requests come first"
        assert all(n == 1 for s, n in step if not s.in_prompt)

        let_in = self.scheduler.requests[: self.scheduler.n_running]
        new = [s for s in let_in if s not in self._let_in]
        waiting = [s for s in self.open if s not in self._let_in]
        assert new == waiting[: len(new)], "requests are let in in the order they came"
        assert all(s in let_in for s in chosen)
        self._let_in += new
        reading = [(s, n) for s, n in step if s.in_prompt]
        if reading:
            shares = sum(n for _, n in reading)
            oldest = next(s for s in let_in if s.in_prompt)
            assert dict(reading).get(oldest, 0) >= min(oldest.n_pending, shares // 2)
            left = [s.n_pending for s, _ in reading]
            assert left == sorted(left), "prompts with few tokens left come first"


def next_token(ids: list[int]) -> int:
    """A token that depends on all before it, so that a lost or doubled one shows."""
    return zlib.crc32(np.asarray(ids, np.int64).tobytes()) % 100_000


def alone(n_prompt: int, max_tokens: int, first: int = 0) -> list[int]:
    ids = list(range(first, first + n_prompt))
    for _ in range(max_tokens):
        ids.append(next_token(ids))
    return ids


loads = st.lists(
    st.tuples(
        st.integers(1, 150),  # prompt
        st.integers(1, 80),  # tokens to generate
        st.integers(0, 30),  # the step in which it comes
        st.one_of(st.none(), st.none(), st.integers(0, 60)),  # the step in which it is dropped
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.one_of(st.integers(1, 12), st.integers(1, 300)), loads)
def test_any_load_is_finished_with_the_tokens_of_each_alone(n_blocks, n_batch, load):
    """No deadlock, no starvation, no leak, no wrong token: whatever comes and goes when."""
    room = n_blocks * SLOTS
    load = [(min(p, room), min(m, room + 1 - min(p, room)), at, drop) for p, m, at, drop in load]
    simulation = Simulation(n_blocks, n_batch)
    requests: dict[int, Request] = {}
    # Each request is preempted only for an older one, so the work stays bounded; this is ample.
    limit = 100 + 20 * sum(p + m for p, m, _, _ in load)
    n_steps = 0
    while len(requests) < len(load) or simulation.scheduler.n_unfinished:
        for i, (n_prompt, max_tokens, at, _) in enumerate(load):
            if i not in requests and at <= n_steps:
                requests[i] = simulation.add(n_prompt, max_tokens, first=1000 * i)
        for i, (_, _, at, drop) in enumerate(load):
            if drop is not None and drop >= at and drop == n_steps and not requests[i].finished:
                simulation.remove(requests[i])
        if simulation.scheduler.n_unfinished:
            simulation.step()
        n_steps += 1
        assert n_steps < limit, "no end in sight"
    assert simulation.pool.n_free == n_blocks
    for i, (n_prompt, max_tokens, _, drop) in enumerate(load):
        if requests[i].finished:
            assert requests[i].ids == alone(n_prompt, max_tokens, first=1000 * i)
        else:
            assert drop is not None, "only a dropped request may stay unfinished"


def test_a_prompt_is_cut_to_n_batch():
    simulation = Simulation(8, 50)
    request = simulation.add(120, 1)
    assert [simulation.step()[0][1] for _ in range(3)] == [50, 50, 20]
    assert request.finished


def test_decoding_comes_first_and_prompts_that_are_equal_take_the_rest_oldest_first():
    simulation = Simulation(16, 8)
    a = simulation.add(4, 10)
    simulation.step()
    b, c = simulation.add(9, 10), simulation.add(9, 10)
    assert simulation.step() == [(a, 1), (b, 7)]
    assert simulation.step() == [(a, 1), (b, 2), (c, 5)]
    assert simulation.step() == [(a, 1), (b, 1), (c, 4)]
    assert simulation.step() == [(a, 1), (b, 1), (c, 1)]


def test_a_request_waits_until_the_pool_has_room_for_its_whole_prompt():
    simulation = Simulation(3, 512)
    a = simulation.add(64, 2)
    simulation.step()
    b = simulation.add(33, 1)
    assert simulation.step() == [(a, 1)], "one block is free (and a takes it), b needs two"
    assert a.finished
    assert simulation.step() == [(b, 33)]


def test_the_prompt_is_admitted_only_if_all_of_it_fits_although_a_chunk_would():
    simulation = Simulation(4, 8)
    a = simulation.add(40, 4)
    b = simulation.add(96, 1)
    simulation.step()
    for _ in range(4):
        assert [s for s, _ in simulation.step()] == [a]
    assert b.table.n_tokens == 0


def test_a_small_request_does_not_overtake_a_large_one_that_waits():
    simulation = Simulation(4, 512)
    a = simulation.add(70, 20)
    large, small = simulation.add(100, 1), simulation.add(1, 1)
    while not a.finished:
        assert [s for s, _ in simulation.step()] == [a]
    assert simulation.step() == [(large, 100)]
    assert simulation.step() == [(small, 1)]


def test_the_youngest_is_preempted_and_ends_with_the_same_tokens():
    simulation = Simulation(3, 512)
    a, b = simulation.add(30, 50), simulation.add(30, 50, first=500)
    simulation.run(1000)
    assert simulation.n_preempted > 0
    assert a.ids == alone(30, 50)
    assert b.ids == alone(30, 50, first=500)


def test_the_oldest_is_never_preempted():
    simulation = Simulation(4, 512)
    a = simulation.add(20, 100)
    others = [simulation.add(20, 60, first=100 * i) for i in range(1, 6)]
    n_before = 0
    while not a.finished:
        simulation.step()
        assert a.finished or a.table.n_tokens == n_before + (20 if n_before == 0 else 1)
        n_before = a.table.n_tokens
    assert simulation.n_preempted > 0
    simulation.run(2000)
    assert all(other.finished for other in others)


def test_a_preempted_request_comes_back_before_those_that_wait():
    simulation = Simulation(3, 512)
    a, b = simulation.add(30, 50), simulation.add(30, 50, first=500)
    simulation.step()
    late = simulation.add(40, 1, first=900)  # two blocks, and only one is free
    while not a.finished:
        simulation.step()
    assert simulation.n_preempted == 1
    assert late.table.n_tokens == b.table.n_tokens == 0
    assert [s for s, _ in simulation.step()] == [b]
    simulation.run(100)
    assert late.finished


def test_a_finished_sequence_makes_room_in_the_very_next_step():
    simulation = Simulation(2, 512)
    a, b = simulation.add(64, 1), simulation.add(64, 1)
    assert simulation.step() == [(a, 64)]
    assert simulation.pool.n_free == 2
    assert simulation.step() == [(b, 64)]


@pytest.mark.parametrize("n_steps", [0, 1, 3])
def test_removing_is_safe_at_any_time_and_twice(n_steps):
    simulation = Simulation(2, 16)
    a, b = simulation.add(40, 5), simulation.add(40, 5)
    for _ in range(n_steps):
        simulation.step()
    simulation.remove(a)
    simulation.scheduler.remove(a)
    assert simulation.scheduler.n_unfinished == 1
    simulation.run(100)
    assert b.ids == alone(40, 5)


def test_removing_a_stranger_does_nothing():
    simulation = Simulation(2, 16)
    simulation.add(40, 5)
    simulation.scheduler.remove(Simulation(2, 16).add(1, 1))
    assert simulation.scheduler.n_unfinished == 1


@pytest.mark.parametrize("n_batch", [1, 3, 64])
def test_a_long_request_is_not_starved_by_an_endless_stream_of_short_ones(n_batch):
    rng = random.Random(n_batch)
    simulation = Simulation(5, n_batch)
    simulation.add(10, 10)
    long = simulation.add(100, 30, first=1000)
    for n_steps in range(2000):
        if len(simulation.open) < 6:
            simulation.add(rng.randint(1, 40), rng.randint(1, 20), first=2000 + n_steps)
        simulation.step()
        if long.finished:
            break
    assert long.finished
    assert long.ids == alone(100, 30, first=1000)


def test_one_sequence_may_fill_the_whole_pool():
    simulation = Simulation(3, 7)
    request = simulation.add(90, 7)
    simulation.run(30)
    assert request.finished
    assert request.ids == alone(90, 7)


def test_an_idle_scheduler_chooses_nothing():
    simulation = Simulation(2, 8)
    assert simulation.scheduler.schedule() == Step(n_tokens_left=8)
    assert simulation.scheduler.n_unfinished == 0


# ---- a budget of prompt tokens ----


def numbers(scheduler: Scheduler, budget: int | None) -> list[int]:
    """A step's tokens, computed; requests that decode get their next one."""
    step = scheduler.schedule(budget)
    for request, n in step.compute:
        wants_logits = n == request.n_pending
        request.table.append(n)
        if wants_logits:
            request.ids.append(1)
            request.completion.token_ids.append(1)
    return [n for _, n in step.compute]


def test_prompts_get_the_budget_while_others_decode() -> None:
    simulation = Simulation(64, 100)
    simulation.add(3, 90), simulation.add(4, 90)
    assert numbers(simulation.scheduler, 5) == [3, 4], "nobody decodes yet"
    simulation.add(40, 9), simulation.add(6, 9)
    assert numbers(simulation.scheduler, 7) == [1, 1, 4, 3]
    assert numbers(simulation.scheduler, 1) == [1, 1, 1], "the short one's"
    assert numbers(simulation.scheduler, 32) == [1, 1, 1, 31]
    assert numbers(simulation.scheduler, 500) == [1, 1, 1, 6], "the rest of the long one"
    assert numbers(simulation.scheduler, None) == [1, 1, 1, 1]


@pytest.mark.parametrize("n_before", [0, 3])
def test_a_short_prompt_does_not_wait_for_long_ones(n_before: int) -> None:
    """Three long ones with 1,000 tokens are there first; it takes the steps of its own tokens."""
    simulation = Simulation(200, 512)
    simulation.add(3, 900)
    numbers(simulation.scheduler, 64)
    long = [simulation.add(1000, 9, first=2000 * i) for i in range(1, 4)]
    for _ in range(n_before):
        numbers(simulation.scheduler, 64)
    short = simulation.add(50, 9, first=9000)
    n_steps = 0
    while not short.completion.token_ids:
        numbers(simulation.scheduler, 64)
        n_steps += 1
    assert n_steps == 2  # of its 32 tokens a step
    assert not any(request.completion.token_ids for request in long)
    assert long[0].table.n_tokens >= 32 * n_steps, "the oldest got the other half"


def test_a_long_prompt_takes_twice_its_time_at_most_whatever_comes_behind_it() -> None:
    simulation = Simulation(400, 512)
    simulation.add(3, 10_000)
    numbers(simulation.scheduler, 64)
    long = simulation.add(2000, 9, first=2000)
    n_steps = 0
    while not long.completion.token_ids:
        for request in [r for r in simulation.open if r.completion.token_ids][1:]:
            simulation.remove(request)
        while simulation.scheduler.n_unfinished < 12:
            simulation.add(40, 9, first=10_000 + 100 * n_steps)
        numbers(simulation.scheduler, 64)
        n_steps += 1
    assert n_steps == -(-2000 // 32)


def test_a_prompt_that_waits_its_turn_keeps_the_room_that_it_was_let_in_for() -> None:
    """Six blocks are promised to the long one while the short one is read, so another one that
    would need them waits."""
    simulation = Simulation(10, 512)
    simulation.add(3, 9)
    numbers(simulation.scheduler, 8)
    long, short = simulation.add(190, 9, first=1000), simulation.add(20, 9, first=2000)
    late = simulation.add(90, 9, first=3000)
    while not short.completion.token_ids:
        numbers(simulation.scheduler, 8)
    assert late in simulation.scheduler.requests[simulation.scheduler.n_running :]
    n_before = long.table.n_tokens
    while not long.completion.token_ids:
        numbers(simulation.scheduler, 8)
        assert long.table.n_tokens >= n_before, "it was preempted"
        n_before = long.table.n_tokens
    assert not late.table.n_tokens


@pytest.mark.parametrize(("n_blocks", "passes"), [(100, True), (60, False)])
def test_who_waits_for_anothers_blocks_holds_up_nobody_but_keeps_its_room(
    n_blocks: int, passes: bool
) -> None:
    """Two prompts of 1,000 tokens are the same, so the second waits for the blocks of the first."""
    simulation = Simulation(n_blocks, 512)
    simulation.scheduler.prefixes = PrefixCache(simulation.pool)
    simulation.add(3, 900, first=9000)
    numbers(simulation.scheduler, 64)
    first, same = simulation.add(1000, 9), simulation.add(1000, 9)
    other = simulation.add(50, 9, first=5000)
    for _ in range(2):
        numbers(simulation.scheduler, 64)
    assert bool(other.completion.token_ids) == passes
    assert not same.table.n_tokens
    while not same.completion.token_ids:
        numbers(simulation.scheduler, 64)
        if not first.completion.token_ids:
            assert not same.table.n_tokens
    assert same.table.segments[:30, 0].tolist() == first.table.segments[:30, 0].tolist()
    assert same.completion.timings.n_reused == 992
    while not other.completion.token_ids:
        numbers(simulation.scheduler, 64)


def test_a_lone_prompt_gets_the_whole_batch() -> None:
    simulation = Simulation(64, 100)
    simulation.add(250, 9)
    assert [numbers(simulation.scheduler, 1) for _ in range(4)] == [[100], [100], [50], [1]]
    simulation.add(250, 9)
    simulation.add(250, 9)
    assert numbers(simulation.scheduler, 3) == [1, 3]


def test_a_long_prompt_that_is_older_than_those_who_decode_takes_the_blocks_of_the_youngest() -> (
    None
):
    """They come first in a step all the same, so one that is chosen may have to go again."""
    simulation = Simulation(8, 500)
    simulation.add(8, 400)
    numbers(simulation.scheduler, 4)
    long, young = simulation.add(150, 9), simulation.add(32, 9)
    seen = [numbers(simulation.scheduler, 30) for _ in range(12)]
    assert all(n >= 1 for step in seen for n in step)
    assert long.completion.token_ids
    assert simulation.pool.n_free >= 0
    assert young in simulation.scheduler.requests
