"""Edited contexts of keys and values by channel, which are quantized once a block is full."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from lariat.errors import ContextError
from lariat.runtime.context import Context

from tests.reference import Reference, relative_error
from tests.support.cache_blocks import CHANNEL_TYPES
from tests.support.contexts import CACHES, ids_of, load, n_free, write_shallow


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shallow(tmp_path_factory.mktemp("model"))


def blocks_of(context: Context) -> list[int]:
    return context._table.segments[:, 0].tolist()


@pytest.mark.parametrize("types", CHANNEL_TYPES)
@pytest.mark.parametrize("cache", CACHES)
def test_a_shortened_block_is_never_written_again(path, cache, types):
    """What follows stands in a fresh block, and the old one keeps its bytes."""
    with load(path, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        context.append(ids_of(110))
        pool, memory = llm.runner.cache.pool, llm.runner.cache._memory
        sealed = [pool.is_sealed(block) for block in blocks_of(context)]
        assert sealed == [True, True, True, False]
        first, second, *_ = blocks_of(context)
        sealed = memory.keys.blocks[:, [first, second]].copy()
        with context.fork() as other:
            context.truncate(40)
            context.append(ids_of(9, 1))
            assert blocks_of(context)[:2] == [first, second]
            assert len(context._table.segments) == 3
            context.append(ids_of(60, 2))
            expected = context.logits([3])
            other.append(ids_of(60, 3))
            other.truncate(10)
            other.append(ids_of(60, 4))
        assert np.array_equal(context.logits([3]), expected)
        assert np.array_equal(memory.keys.blocks[:, [first, second]], sealed)
        n = 40 + 9 + 60
        assert context.compact() == 0
        assert len(context) == n
    assert (memory.open_at >= 0).sum() <= 4  # each context's last two blocks


@pytest.mark.parametrize("types", CHANNEL_TYPES)
def test_raw_edits_quantize_nothing_anew(path, types):
    with load(path, "raw", type_k=types, type_v=types) as llm, llm.context() as context:
        context.append(ids_of(128))
        memory = llm.runner.cache._memory
        before = [array.blocks.copy() for array in memory.arrays]
        context.delete(10, 20)
        context.move(30, 60, 0)
        with context.fork() as other:
            context.insert(7, other)
        assert (memory.open_at >= 0).sum() == 1  # the last one, whose tokens can be taken back
        for array, blocks in zip(memory.arrays, before, strict=True):
            assert np.array_equal(array.blocks, blocks)


@pytest.mark.parametrize("types", CHANNEL_TYPES)
def test_roped_keys_by_channel_keep_their_positions(path, types):
    with load(path, "roped", type_k=types, type_v=types) as llm, llm.context() as context:
        context.append(ids_of(80))
        expected = context.logits([3])
        for edit in (
            lambda: context.delete(3, 9),
            lambda: context.move(0, 40, 10),
            lambda: context.insert(5, [4]),
        ):
            with pytest.raises(ContextError, match="cannot change their positions: use the raw"):
                edit()
            assert np.array_equal(context.logits([3]), expected)
        context.delete(60, 80)
        with context.fork() as other:
            assert np.array_equal(other.logits([3]), context.logits([3]))


def test_values_by_channel_move_with_roped_keys_of_another_type(path):
    """Blocks that another context reads are copied with their scales."""
    ids = ids_of(100)
    with load(path, "roped", type_k="f32", type_v="q8_ch") as llm, llm.context() as context:
        context.append(ids)
        expected = context.logits([3])
        with context.fork() as other:
            other.delete(0, 20)
            wanted = Reference(path).logits([*ids[20:], 3])[-1:]
            assert relative_error(other.logits([3]), wanted) < 2e-2
            other.insert(5, context)
            wanted = Reference(path).logits([*ids[20:25], *ids, *ids[25:], 3])[-1:]
            assert relative_error(other.logits([3]), wanted) < 2e-2
        assert np.array_equal(context.logits([3]), expected)


@pytest.mark.parametrize("types", ["q8_0", *CHANNEL_TYPES])
def test_random_edits_of_quantized_contexts(path, types):
    """Against lists of ids, and against the reference, from which 8 bits stay near."""
    rng = random.Random(1)
    with load(path, "raw", n_ctx=256, type_k=types, type_v="q8_ch") as llm:
        contexts, model = [llm.context(), llm.context()], [[], []]
        for step in range(300):
            who = rng.randrange(2)
            context, ids = contexts[who], model[who]
            a, b = sorted((rng.randint(0, len(ids)), rng.randint(0, len(ids))))
            new = ids_of(rng.randint(0, 40), step)
            try:
                match rng.choice(["append", "insert", "delete", "move", "fork", "join", "compact"]):
                    case "append":
                        context.append(new)
                        ids = ids + new
                    case "insert":
                        context.insert(a, new[:5])
                        ids = ids[:a] + new[:5] + ids[a:]
                    case "delete":
                        context.delete(a, b)
                        ids = ids[:a] + ids[b:]
                    case "move":
                        rest = ids[:a] + ids[b:]
                        to = rng.randint(0, len(rest))
                        context.move(a, b, to)
                        ids = rest[:to] + ids[a:b] + rest[to:]
                    case "fork":
                        context.close()
                        contexts[who], ids = contexts[1 - who].fork(), list(model[1 - who])
                    case "join":
                        context.insert(a, contexts[1 - who])
                        ids = ids[:a] + model[1 - who] + ids[a:]
                    case _:
                        context.compact()
            except ContextError:
                pass
            model[who] = ids
            assert [c.tokens for c in contexts] == model
            if step % 20 == 19 and 0 < len(ids) < 250:
                try:
                    got = contexts[who].logits([4])
                except ContextError:
                    continue
                wanted = Reference(path).logits([*ids, 4])[-1:]
                assert relative_error(got, wanted) < (0.3 if types == "q4_ch" else 3e-2)
        for context in contexts:
            context.close()
        assert n_free(llm) == llm.runner.cache.pool.n_blocks
        llm.runner.cache._memory.open(np.zeros(0, np.int32), llm.runner.cache.pool)
        assert (llm.runner.cache._memory.open_at == -1).all()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("types", [*CHANNEL_TYPES, "f32", "q8_0"])
def test_a_file_loads_into_blocks_of_any_order(path, cache, types, tmp_path):
    """Blocks are handed out in the order in which others gave them back."""
    file = tmp_path / "a.context"
    with load(path, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        context.append(ids_of(150))
        expected = context.logits([5, 6])
        context.save(file)
        others = [llm.context() for _ in range(8)]
        for i, other in enumerate(others):
            other.append(ids_of(20, i))
        for i in (3, 0, 6, 1, 7, 2, 5, 4):
            others[i].close()
        with llm.context() as loaded:
            loaded.load(file)
            assert np.array_equal(loaded.logits([5, 6]), expected)
