"""Forward passes of a benchmark, their order, the tables that they start from, and the results.

No test looks at how long anything takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, GGUFFile
from lariat.architectures.loading import read_config
from lariat.architectures.model import Model
from lariat.errors import ContextError, GGUFError
from lariat.measure import benchmark
from lariat.measure.benchmark import Benchmark
from lariat.measure.cases import Case, ModelFacts, Result, Speculation, check_fits, combinations
from lariat.measure.disturbance import Usage
from lariat.measure.machine import Pins
from lariat.runtime.batch import Batch

from tests.reference import relative_error
from tests.support.family_files import write_family
from tests.support.model_files import write_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return write_llama(path, n_ctx=400, weight_type="Q8_0", output_type="F16")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int], int, int]]:
    """Every forward pass: its sequences' new tokens and lengths, logits, threads."""
    seen: list[tuple[list[int], list[int], int, int]] = []
    original = Model.forward

    def forward(self: Model, batch: Batch, n_threads: int) -> np.ndarray:
        new = np.diff(batch.token_starts)
        ends = (batch.n_past + new).tolist()
        seen.append((new.tolist(), ends, len(batch.logit_rows), n_threads))
        return original(self, batch, n_threads)

    monkeypatch.setattr(Model, "forward", forward)
    return seen


class FixedProbe:
    """A machine of 1 GB/s and 2 GMAC/s a thread."""

    n_bytes = 0

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def read_bandwidth(self, n_threads: int) -> float:
        self.asked.append(("read", n_threads))
        return 1e9 * n_threads

    def int8_peak(self, n_threads: int) -> float:
        self.asked.append(("int8", n_threads))
        return 2e9 * n_threads


# ---- cases ----


@pytest.mark.parametrize(
    ("values", "name", "phase", "n_tokens", "n_positions"),
    [
        ({"n_prompt": 512}, "pp512", "prompt", 512, 512),
        ({"n_gen": 128}, "tg128", "decode", 128, 128),
        ({"n_gen": 128, "n_depth": 4096}, "tg128 @ d4096", "decode", 128, 4224),
        ({"n_prompt": 5, "n_gen": 7, "n_sequences": 3}, "pp5+tg7", "both", 36, 12),
    ],
)
def test_names_are_those_of_llama_bench(values, name, phase, n_tokens, n_positions):
    case = Case(**values)
    assert (case.name, case.phase) == (name, phase)
    assert (case.n_tokens, case.n_positions) == (n_tokens, n_positions)


def test_every_combination_is_made_once():
    lists = {
        "n_depth": [0, 8],
        "n_threads": [1, 2],
        "n_batch": [16],
        "n_ubatch": [4, 8],
        "type_k": ["f16", "f32"],
        "n_sequences": [1, 3],
        "cache": ["roped", "raw"],
    }
    cases = combinations([(4, 0), (0, 2), (4, 0)], **lists)
    assert len(cases) == len(set(cases)) == 2 * 2 * 2 * 1 * 2 * 2 * 2 * 2
    for case in cases:
        assert case.n_threads_batch == case.n_threads
        assert all(getattr(case, name) in values for name, values in lists.items())


def test_caches_stand_side_by_side():
    cases = combinations([(4, 0), (0, 2)], n_threads=[1, 2], cache=["roped", "raw"])
    assert [(c.n_threads, c.name, c.cache) for c in cases[:4]] == [
        (1, "pp4", "roped"),
        (1, "pp4", "raw"),
        (1, "tg2", "roped"),
        (1, "tg2", "raw"),
    ]


def test_prompt_threads_of_their_own():
    cases = combinations([(4, 0)], n_threads=[1, 2], n_threads_batch=[3, 4])
    assert [(c.n_threads, c.n_threads_batch) for c in cases] == [(1, 3), (1, 4), (2, 3), (2, 4)]


def test_case_beyond_the_context_is_refused(model):
    with GGUFFile(model) as gguf:
        config = read_config(gguf)
    check_fits(Case(n_gen=200, n_depth=200), config, "x")
    for case in (Case(n_gen=201, n_depth=200), Case(n_prompt=401)):
        with pytest.raises(ContextError, match=f"{case.n_positions} positions.*400"):
            check_fits(case, config, "x")
        with pytest.raises(ContextError, match="400"):
            Benchmark(model, [case])


def test_facts_of_a_file(model):
    with GGUFFile(model) as gguf:
        facts = ModelFacts.of(gguf)
        assert facts.n_bytes == sum(info.n_bytes for info in gguf.tensors.values())
    n_layer = 64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 96 + 2 * 64
    assert facts.n_params == 2 * n_layer + 2 * 288 * 64 + 64
    assert facts.type == f"llama {facts.n_params / 1e3:.0f}K Q8_0"
    assert facts.path == str(model)


# ---- what runs ----


def test_prompt_is_cut_like_llama_bench(model, passes):
    case = Case(n_prompt=50, n_batch=24, n_ubatch=16, n_threads=1, n_threads_batch=2)
    with Benchmark(model, [case]) as b:
        b.run(2, warm_up=False)
    sizes = [16, 8, 16, 8, 2]
    assert [new for new, _, _, _ in passes] == [[n] for n in sizes] * 2
    assert [n_logits for _, _, n_logits, _ in passes] == [0, 0, 0, 0, 1] * 2
    assert {n_threads for _, _, _, n_threads in passes} == {2}
    assert [ends[0] for _, ends, _, _ in passes] == np.cumsum(sizes).tolist() * 2


def test_decode_goes_token_by_token(model, passes):
    with Benchmark(model, [Case(n_gen=5, n_depth=40, n_threads=2)]) as b:
        b.run(2, warm_up=False)
    filling, decoding = passes[:-10], passes[-10:]
    assert sum(sum(new) for new, _, _, _ in filling) == 40
    assert decoding == [([1], [41 + i], 1, 2) for i in range(5)] * 2


def test_warm_up_runs_prompts_whole_and_decodes_one_token(model, passes):
    with Benchmark(model, [Case(n_prompt=20), Case(n_gen=6)]) as b:
        b.run(1)
    assert [new for new, _, _, _ in passes] == [[20], [1], [20], *[[1]] * 6]
    assert [len(r.samples_ns) for r in b.results] == [1, 1]


def test_sequences_are_decoded_together(model, passes):
    with Benchmark(model, [Case(n_prompt=3, n_gen=4, n_depth=33, n_sequences=3)]) as b:
        b.run(1, warm_up=False)
    assert passes[-5:] == [([3] * 3, [36] * 3, 3, 1)] + [
        ([1] * 3, [37 + i] * 3, 3, 1) for i in range(4)
    ]


def test_speculation_computes_guesses_and_cuts_off_those_that_do_not_come(model, passes):
    spec = Speculation(3, 0.7)
    case = Case(n_gen=20, n_depth=40, n_sequences=2, n_threads=2, spec=spec)
    with Benchmark(model, [case]) as b:
        b.run(2, warm_up=False)
        assert {table.n_tokens for table in b._tables(case)} == {40}
    done, n_passes = [[0, 0], [0, 0]], 0
    for repetition in range(2):
        number = 0
        while min(done[repetition]) < 20:
            new, ends, n_rows, n_threads = passes[passes_of_filling(passes) + n_passes]
            running = [i for i in range(2) if done[repetition][i] < 20]
            assert [end - n for n, end in zip(new, ends, strict=True)] == [
                40 + done[repetition][i] for i in running
            ]
            assert (n_rows, n_threads) == (sum(new), 2)
            for i, n in zip(running, new, strict=True):
                number += 1
                assert n == min(4, 20 - done[repetition][i])
                done[repetition][i] += min(1 + spec.n_accepted(number), n)
            n_passes += 1
    assert len(passes) == passes_of_filling(passes) + n_passes


def passes_of_filling(passes) -> int:
    """Passes that fill the cache: those that want no logits."""
    return sum(n_rows == 0 for _, _, n_rows, _ in passes)


@pytest.mark.parametrize(("n", "p"), [(4, 0.7), (8, 0.5), (1, 0.0), (3, 1.0)])
def test_forced_guesses_come_as_often_as_asked(n, p):
    spec = Speculation(n, p)
    came = [spec.n_accepted(i) for i in range(1, 1001)]
    assert 1 + np.mean(came) == pytest.approx(spec.tokens_per_pass, abs=0.02)
    for k in range(1, n + 1):  # of the guesses before which all came, a share of p
        before, those = sum(c >= k - 1 for c in came), sum(c >= k for c in came)
        assert before < 50 or those / before == pytest.approx(p, abs=0.05)


def test_speculation_stands_beside_decoding_without_it():
    cases = combinations([(5, 0), (0, 7)], None, [None, Speculation(4, 0.7)], n_threads=[1])
    assert [case.name for case in cases] == ["pp5", "tg7", "tg7 spec 4:0.7"]


def test_more_sequences_than_a_batch_holds(model, passes):
    with Benchmark(model, [Case(n_gen=2, n_sequences=5, n_ubatch=2)]) as b:
        b.run(1, warm_up=False)
    assert [len(new) for new, _, _, _ in passes] == [2, 2, 1] * 2


def test_depth_is_computed_once_for_all_that_need_it(model, passes):
    cases = combinations(
        [(8, 0), (0, 3)], n_depth=[0, 64, 90, 200], cache=["roped", "raw"], n_sequences=[2]
    )
    with Benchmark(model, cases) as b:
        b.run(3, warm_up=False)
        timed = 3 * sum(case.n_tokens for case in cases)
        # The deepest in whole blocks, and the tokens of each depth beyond its own: 26 and 8.
        filled = 2 * 2 * (192 + 26 + 8)
        assert sum(sum(new) for new, _, _, _ in passes) == timed + filled
    for case in cases:
        if case.n_gen:
            n = sum(ends == [case.n_depth + case.n_gen] * 2 for _, ends, _, _ in passes)
            assert n >= 3


@pytest.mark.parametrize("cache", ["roped", "raw"])
def test_every_depth_holds_the_tokens_it_says(model, cache):
    """Logits behind each depth are those of the whole text from an empty context."""
    depths = [0, 1, 32, 75, 130]
    cases = combinations([(0, 2)], n_depth=depths, cache=[cache], type_k=["f32"], type_v=["f32"])
    with Benchmark(model, cases) as b, LLM(model, type_k="f32", type_v="f32") as llm:
        b.run(2)
        for case in reversed(cases):
            filled = b._filled_for(case)
            (table,) = b._tables(case)
            assert table.n_tokens == case.n_depth
            ids = filled.token_ids(0)
            got = filled.runner.forward([filled.runner.part(table, [7], "last")], 1)
            expected = llm.logits([*ids[: case.n_depth].tolist(), 7])[-1]
            assert relative_error(got[0], expected) < 1e-5
            table.truncate(case.n_depth)


def test_repetitions_take_turns(model, monkeypatch):
    order = []
    monkeypatch.setattr(Benchmark, "_time", lambda self, case: order.append(case) or 1)
    cases = combinations([(4, 0), (0, 4)], n_depth=[0, 32], cache=["roped", "raw"])
    with Benchmark(model, cases) as b:
        b.run(3, warm_up=False)
    assert order == cases * 3


def test_blocks_come_back(model):
    cases = [Case(n_prompt=100, n_gen=50), Case(n_gen=70, n_depth=65, n_sequences=2)]
    with Benchmark(model, cases) as b:
        b.run(1)
        pool = b._filled_for(cases[0]).runner.cache.pool
        n_free = pool.n_free
        b.run(2)
        assert pool.n_free == n_free


def test_tables_of_several_depths_share_the_blocks_of_the_deepest(model):
    cases = [Case(n_gen=1, n_depth=depth) for depth in (70, 130)]
    with Benchmark(model, cases) as b:
        (short,), (deep,) = b._tables(cases[0]), b._tables(cases[1])
        assert short.segments[:2].tolist() == deep.segments[:2].tolist()
        short.truncate(63)  # shortens its own segment of the second block, not the other's
        assert (short.n_tokens, deep.n_tokens) == (63, 130)


def test_weights_are_loaded_once(model, monkeypatch):
    n_loads = []
    original = benchmark.load_weights

    def load(*args: Any) -> Any:
        n_loads.append(1)
        return original(*args)

    monkeypatch.setattr(benchmark, "load_weights", load)
    cases = combinations([(4, 0)], cache=["roped", "raw"], type_k=["f16", "f32"])
    with Benchmark(model, cases) as b:
        b.run(1)
    assert len(n_loads) == 1


def test_bad_file_is_refused_and_closed(tmp_path):
    path = write_llama(tmp_path / "model.gguf", drop_tensors=["output_norm.weight"])
    with pytest.raises(GGUFError, match="output_norm"):
        Benchmark(path, [Case(n_gen=1)])


def test_progress_ends_at_one(model):
    for run in (Benchmark.run, Benchmark.run_growing):
        seen: list[float] = []
        cases = combinations([(40, 0), (0, 70)], n_depth=[0, 50], n_sequences=[1, 2])
        with Benchmark(model, cases) as b:
            run(b, 2, progress=seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == 1.0
        assert len(seen) > 10


def test_interrupted_run_keeps_what_it_has(model, monkeypatch):
    calls = iter(range(100))

    def time_or_stop(self: Benchmark, case: Case) -> int:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return 5

    monkeypatch.setattr(Benchmark, "_time", time_or_stop)
    with Benchmark(model, [Case(n_gen=1), Case(n_gen=2)]) as b:
        with pytest.raises(KeyboardInterrupt):
            b.run(5, warm_up=False)
        assert [r.samples_ns for r in b.results] == [[5, 5], [5]]


def fake_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take half a second of ten whenever something is measured."""

    class FakeMeter:
        def usage(self) -> Usage:
            return Usage(10.0, 0.0, 0.5)

    monkeypatch.setattr(benchmark, "Meter", FakeMeter)
    monkeypatch.setattr(benchmark, "load_average", lambda: 1.5)


def test_load_of_others_stands_beside_each_repetition(model, monkeypatch):
    fake_meter(monkeypatch)
    with Benchmark(model, [Case(n_prompt=4), Case(n_gen=2)]) as b:
        b.run(3)
        for result in b.results:
            assert result.usages == [Usage(10.0, 0.0, 0.5)] * 3
            assert result.load_averages == [1.5] * 3
            assert result.usage == Usage(30.0, 0.0, 1.5)


def test_load_of_others_adds_up_while_caches_grow_in_turns(model, monkeypatch):
    fake_meter(monkeypatch)
    results = grown(model, [64, 128], [])
    # a meter for each turn of 64 tokens, and for each prompt
    assert [r.usages[0].total for r in results] == [10, 10, 10, 10, 20, 20]
    assert {len(r.usages) for r in results} == {len(r.samples_ns) for r in results} == {2}


# ---- growing together ----


def grown(model: Path, lengths: Sequence[int], passes: list, repetitions: int = 2) -> list[Result]:
    cases = combinations([(16, 0), *((0, n) for n in lengths)], cache=["roped", "raw"])
    with Benchmark(model, cases) as b:
        b.run_growing(repetitions, warm_up=False)
        return b.results


def test_growing_decodes_only_as_far_as_the_longest(model, passes):
    results = grown(model, [8, 100, 64], passes)
    decoded = [ends[0] for new, ends, _, _ in passes if new == [1]]
    assert len(decoded) == 2 * 2 * 100
    # in turns: to 8, to 64, to 100, each cache from where it stood
    first = [*range(1, 9), *range(1, 9), *range(9, 65), *range(9, 65), *range(65, 101)]
    assert decoded[: len(first)] == first
    for result in results:
        assert len(result.samples_ns) == 2
        assert result.test_time
        assert result.peak_memory > 0
    for cache in ("roped", "raw"):
        times = {r.case.n_gen: r.samples_ns for r in results if r.case.cache == cache}
        for i in range(2):
            assert times[8][i] < times[64][i] < times[100][i]


def test_caches_may_grow_to_different_lengths(model, passes):
    cases = [Case(n_gen=10), Case(n_gen=20, cache="raw")]
    with Benchmark(model, cases) as b:
        b.run_growing(1, warm_up=False)
        assert [len(r.samples_ns) for r in b.results] == [1, 1]
    assert sum(new == [1] for new, _, _, _ in passes) == 30


# ---- the cost of a token ----


SHAPES = [
    Case(n_prompt=70, n_batch=48, n_ubatch=32),
    Case(n_prompt=70, n_batch=48, n_ubatch=32, n_sequences=3),
    Case(n_prompt=33, n_depth=100, type_k="f32"),
    Case(n_gen=9, n_depth=77, type_v="f32"),
    Case(n_gen=9, n_depth=77, n_sequences=5, n_ubatch=3),
    Case(n_prompt=40, n_gen=6, n_sequences=2, n_depth=32),
]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_bytes_are_those_of_the_passes_that_run(model, passes, case):
    """Each pass reads all matrices but the embedding, and the keys and values of each sequence."""
    with Benchmark(model, [case]) as b:
        b._tables(case)
        passes.clear()
        b.run(1, warm_up=False)
        (result,) = b.results
    q8_0 = 34 / 32
    inner = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96) * q8_0
    output = 288 * 64 * 2
    position = 2 * 32 * ((4 if case.type_k == "f32" else 2) + (4 if case.type_v == "f32" else 2))
    total = sum(inner + output + position * sum(ends) for _, ends, _, _ in passes)
    assert result.bytes_per_token == pytest.approx(total / case.n_tokens, rel=1e-12)


def test_windows_read_no_more_than_they_see(tmp_path):
    window = {"attention.sliding_window": 40}
    path = write_family(tmp_path / "m.gguf", "phi3", keys=window, n_layers=2, n_ctx=1024)
    cases = [Case(n_gen=4, n_depth=d) for d in (8, 500)]
    cases += [Case(n_prompt=100, n_depth=d) for d in (0, 500)]
    with Benchmark(path, cases) as b:
        short, long, prompt, deep = (result.bytes_per_token for result in b.results)
    position = 2 * 2 * 32 * 2  # two layers, keys and values of 32 numbers, f16
    assert long - short == pytest.approx((40 - (9 + 10 + 11 + 12) / 4) * position)
    # 139 keys are in a window of one of 100 tokens.
    assert deep - prompt == pytest.approx((139 - 100) / 100 * position)


@pytest.mark.parametrize("arch", ["llama", "qwen2moe"])
def test_of_experts_only_those_that_are_chosen_are_read(tmp_path, arch):
    shape = {"arch": arch, "n_experts": 16, "n_used": 4}
    path = write_llama(tmp_path / "m.gguf", weight_type="Q8_0", **shape)
    cases = [Case(n_gen=1), Case(n_gen=1, n_sequences=3), Case(n_prompt=100)]
    with Benchmark(path, cases) as b:
        one, three, prompt = b.results
    q8_0 = 34 / 32
    of_all = 2 * (2 * 64 * 64 + 2 * 32 * 64) * q8_0 + 2 * 16 * 64 * 4 + 288 * 64 * q8_0
    macs = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 16 * 64 + 4 * 3 * 64 * 96) + 288 * 64 / 100
    if arch == "qwen2moe":
        of_all += 2 * 2 * 64 * 144 * q8_0 + 2 * 64 * 144 * 4  # down has no whole blocks
        macs += 2 * 3 * 64 * 144
    expert, position = 2 * 3 * 64 * 96 * q8_0, 2 * 2 * 32 * 2
    assert one.bytes_per_token == pytest.approx(of_all + 4 * expert + position)
    n_read = 16 * (1 - (3 / 4) ** 3)  # if all experts are equally likely
    assert three.bytes_per_token == pytest.approx((of_all + n_read * expert) / 3 + position)
    rest = of_all + 16 * expert + position * 100
    assert prompt.bytes_per_token == pytest.approx(rest / 100)
    assert prompt.macs_per_token == pytest.approx(macs)


def test_embedding_counts_only_where_it_is_the_output(tmp_path):
    def n_bytes(**shape: Any) -> float:
        with Benchmark(write_llama(tmp_path / "m.gguf", **shape), [Case(n_gen=1)]) as b:
            return b.results[0].bytes_per_token

    assert n_bytes(tied=True) == n_bytes(tied=False)


def test_products_of_a_prompt(model, tmp_path):
    inner, output = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96), 288 * 64
    cases = [Case(n_prompt=10, n_sequences=2), Case(n_gen=3), Case(n_prompt=3, n_gen=3)]
    with Benchmark(model, cases) as b:
        assert [r.macs_per_token for r in b.results] == [inner + output / 10, None, None]
    floats = write_llama(tmp_path / "f32.gguf")
    with Benchmark(floats, cases[:1]) as b:  # nothing to compare with the int8 peak
        assert b.results[0].macs_per_token is None


# ---- ceilings ----


def run_with(model: Path, probe: FixedProbe, cases: list[Case]) -> list[Result]:
    with Benchmark(model, cases, probe=probe) as b:  # type: ignore[arg-type]
        b.run(2)
        return b.results


def test_shares_are_of_the_ceiling_that_bounds(model, monkeypatch):
    monkeypatch.setattr(benchmark.threads, "available", lambda: 3)
    cases = [
        Case(n_prompt=8, n_threads=1, n_threads_batch=2),
        Case(n_gen=3, n_threads=3),
        Case(n_prompt=8, n_gen=3),
    ]
    probe = FixedProbe()
    prompt, decode, both = run_with(model, probe, cases)
    assert sorted(probe.asked) == [("int8", 2), ("read", 3)]  # not again within seconds
    assert (prompt.read_bandwidth, prompt.int8_peak) == (None, 4e9)
    assert prompt.share_of_int8_peak == prompt.avg_ts * prompt.macs_per_token / 4e9
    assert (decode.read_bandwidth, decode.int8_peak) == (3e9, None)
    assert decode.share_of_bandwidth == decode.avg_ts * decode.bytes_per_token / 3e9
    assert prompt.share_of_bandwidth is decode.share_of_int8_peak is None
    assert both.share_of_bandwidth is both.share_of_int8_peak is None
    assert both.read_bandwidth is both.int8_peak is None


def test_more_threads_than_processors_have_the_ceiling_of_all_processors(model, monkeypatch):
    monkeypatch.setattr(benchmark.threads, "available", lambda: 2)
    probe = FixedProbe()
    results = run_with(model, probe, [Case(n_gen=3, n_threads=n) for n in (2, 3)])
    assert probe.asked == [("read", 2)]
    assert [result.read_bandwidth for result in results] == [2e9, 2e9]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be pinned here")
def test_pinned_threads_have_the_ceilings_of_all_processors(model):
    n_processors = benchmark.threads.available()
    probe = FixedProbe()
    case = Case(n_gen=1, n_threads=2)
    with Pins() as pins:
        pins.place(2)  # now this thread has one processor
        with Benchmark(model, [case], probe=probe, pins=pins) as b:  # type: ignore[arg-type]
            b.run(1)
    assert probe.asked == [("read", min(2, n_processors))]


def test_ceilings_are_measured_again_after_a_while(model, monkeypatch):
    monkeypatch.setattr(benchmark, "_PROBE_AGE", 0.0)
    probe = FixedProbe()
    (result,) = run_with(model, probe, [Case(n_gen=1)])
    assert probe.asked == [("read", 1)] * 2
    assert result.bandwidths == [1e9] * 2


def test_no_probe_no_share(model):
    with Benchmark(model, [Case(n_gen=2)]) as b:
        b.run(1)
        assert b.results[0].share_of_bandwidth is None
        assert b.results[0].peak_memory > 0


def test_statistics_are_those_of_llama_bench():
    facts = ModelFacts("m", "llama", 1, 1)
    result = Result(Case(n_gen=4, n_sequences=3), facts, "scalar", False, 10.0, None)
    for ns in (2_000_000_000, 3_000_000_000, 4_000_000_000):
        result.add(ns)
    assert result.samples_ts == [6.0, 4.0, 3.0]
    assert result.avg_ts == pytest.approx(13 / 3)  # the mean of speeds, not of times
    assert result.stddev_ts == pytest.approx(np.std([6, 4, 3], ddof=1))
    assert (result.avg_ns, result.stddev_ns) == (3e9, 1e9)
    one = Result(Case(n_gen=4), facts, "scalar", False, 10.0, None, samples_ns=[5])
    assert (one.stddev_ts, one.stddev_ns) == (0.0, 0.0)


# ---- pins ----


def test_threads_are_placed_before_they_run(model, monkeypatch):
    events: list[Any] = []

    class PinsThatTell:
        n_processors = 2

        def place(self, n_threads: int) -> None:
            events.append(n_threads)

    original: Callable[..., np.ndarray] = Model.forward

    def forward(self: Model, batch: Batch, n_threads: int) -> np.ndarray:
        events.append((batch.n_tokens, n_threads))
        return original(self, batch, n_threads)

    monkeypatch.setattr(Model, "forward", forward)
    case = Case(n_prompt=4, n_gen=2, n_threads=1, n_threads_batch=2)
    with Benchmark(model, [case], pins=PinsThatTell()) as b:  # type: ignore[arg-type]
        assert events == [2]
        b.run(1, warm_up=False)
        assert b.results[0].pinned
    assert events[-5:] == [2, (4, 2), 1, (1, 1), (1, 1)]
