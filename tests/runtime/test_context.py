"""Contexts that are edited: exactness, isolation, streams, and that no block is ever lost.

What concerns types by channel is in test_context_channels.py, saved contexts in
test_context_file.py.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from lariat import SamplingParams, _kernels
from lariat.config import CACHE_TYPES
from lariat.errors import ContextError
from lariat.runtime.context import Context

from tests.reference import Reference, relative_error
from tests.support.cache_blocks import CHANNEL_TYPES
from tests.support.contexts import CACHES, GREEDY, ids_of, load, n_free, write_deep, write_shallow
from tests.support.model_files import write_llama


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shallow(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _restore_isa():
    before = _kernels.isa()
    yield
    _kernels.use_isa(before)


# ---- exactness ---------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("types", ["f32", "f16", "q8_0", "q4_0"])
def test_deleting_and_appending_the_same_end_changes_no_bit(deep, cache, types):
    # In the same pieces: up to 4 tokens at once are summed by another kernel than more are.
    pieces = [ids_of(75), ids_of(7, 1), ids_of(12, 2), ids_of(1, 3)]
    with load(deep, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        for piece in pieces:
            context.append(piece)
        expected = context.logits([7, 8])
        for n_kept in (3, 2, 1):
            context.delete(sum(map(len, pieces[:n_kept])), 95)
            for piece in pieces[n_kept:]:
                context.append(piece)
            assert context.tokens == [token for piece in pieces for token in piece]
            assert np.array_equal(context.logits([7, 8]), expected)


@pytest.mark.parametrize("isa", _kernels.supported_isas())
@pytest.mark.parametrize("types", CACHE_TYPES)
@pytest.mark.parametrize("cache", CACHES)
def test_edited_keys_score_as_the_reference_s_at_their_new_positions(path, cache, types, isa):
    """With one layer, an edited context is what its tokens would have been from the start."""
    if cache == "roped" and types in CHANNEL_TYPES:
        pytest.skip("roped keys by channel keep their positions")
    a, b, c = ids_of(50), ids_of(41, 1), ids_of(37, 2)
    reference = Reference(path)
    # Rotated keys are rounded again by every rotation, here up to nine times.
    bound = {"f32": 1e-5, "f16": 2e-3, "q4_0": 0.3, "q4_ch": 0.2}.get(types, 5e-2)
    _kernels.use_isa(isa)

    def check(context: Context, expected: list[int]) -> None:
        assert context.tokens == expected
        assert context.positions.tolist() == list(range(len(expected)))
        got = context.logits([9, 10, 11])
        wanted = reference.logits([*expected, 9, 10, 11])[-3:]
        assert relative_error(got, wanted) < bound

    with load(path, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        context.append(a + b + c)
        check(context, a + b + c)
        context.delete(50, 91)
        check(context, a + c)
        context.insert(13, b)
        check(context, a[:13] + b + a[13:] + c)
        context.move(13, 54, 20)
        check(context, a[:20] + b + a[20:] + c)
        context.move(20, 61, 5)
        check(context, a[:5] + b + a[5:] + c)
        with llm.context() as other:
            other.append(c)
            context.insert(3, other)
            context.insert(100, other)
            once = a[:5] + b + a[5:] + c
            once = once[:3] + c + once[3:]
            once = once[:100] + c + once[100:]
            check(context, once)
            check(other, c)
        context.compact()
        check(context, once)


@pytest.mark.parametrize("cache", CACHES)
def test_keys_that_are_normalised_before_rope_move_too(tmp_path, cache):
    path = write_llama(tmp_path / "m.gguf", arch="qwen3", n_layers=1, head_dim=32)
    a, b = ids_of(20), ids_of(41, 1)
    with load(path, cache) as llm, llm.context() as context:
        context.append(a + b)
        context.move(20, 61, 5)
        context.delete(0, 3)
        expected = [*a[3:5], *b, *a[5:], 9, 10, 11]
        got = context.logits(expected[-3:])
    assert relative_error(got, Reference(path).logits(expected)[-3:]) < 1e-5


@pytest.mark.parametrize("cache", CACHES)
def test_a_context_put_into_itself(path, cache):
    a = ids_of(45)
    with load(path, cache) as llm, llm.context() as context:
        context.append(a)
        with context.fork() as copy:
            context.insert(10, copy)
        expected = a[:10] + a + a[10:]
        wanted = Reference(path).logits([*expected, 9])[-1:]
        assert context.tokens == expected
        assert relative_error(context.logits([9]), wanted) < 1e-5


def test_raw_edits_touch_no_key(deep):
    with load(deep, "raw") as llm, llm.context() as context:
        context.append(ids_of(100))
        before = [array.memory.copy() for array in llm.runner.cache._memory.arrays]
        context.delete(10, 20)
        context.move(30, 60, 0)
        with context.fork() as other:
            context.insert(7, other)
        for array, memory in zip(llm.runner.cache._memory.arrays, before, strict=True):
            assert np.array_equal(array.memory, memory)


# ---- isolation ---------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
def test_a_fork_and_its_parent_never_affect_each_other(deep, cache):
    ids = ids_of(70)
    with load(deep, cache) as llm:
        with llm.context() as plain:
            plain.append(ids)
            expected = plain.logits([5])
        parent = llm.context()
        parent.append(ids)
        held = llm.runner.cache.pool.n_blocks - n_free(llm)
        child = parent.fork()
        assert llm.runner.cache.pool.n_blocks - n_free(llm) == held  # by reference
        child.append(ids_of(9, 3))
        child.delete(0, 33)
        assert np.array_equal(parent.logits([5]), expected)
        grown = child.logits([6])
        parent.append(ids_of(40, 4))
        parent.move(50, 90, 2)
        parent.delete(1, 60)
        assert np.array_equal(child.logits([6]), grown)
        parent.close()
        assert np.array_equal(child.logits([6]), grown)
        child.close()
        assert n_free(llm) == llm.runner.cache.pool.n_blocks


@pytest.mark.parametrize("cache", CACHES)
def test_thousands_of_random_edits_leak_no_block(path, cache):
    """Against lists of ids; a pool so small that edits fail often, and must change nothing then."""
    rng = random.Random(0)
    n_failed = 0
    with load(path, cache, n_ctx=160) as llm:
        contexts = [llm.context() for _ in range(3)]
        model: list[list[int]] = [[], [], []]
        for step in range(1500):
            who = rng.randrange(3)
            context, ids = contexts[who], model[who]
            n = len(ids)
            a, b = sorted((rng.randint(0, n), rng.randint(0, n)))
            what = rng.choice(["append", "insert", "delete", "move", "fork", "join", "compact"])
            try:
                if what == "append":
                    new = ids_of(rng.randint(0, 9), step)
                    context.append(new)
                    ids = ids + new
                elif what == "insert":
                    new = ids_of(rng.randint(0, 5), step)
                    context.insert(a, new)
                    ids = ids[:a] + new + ids[a:]
                elif what == "delete":
                    context.delete(a, b)
                    ids = ids[:a] + ids[b:]
                elif what == "move":
                    rest = ids[:a] + ids[b:]
                    to = rng.randint(0, len(rest))
                    context.move(a, b, to)
                    ids = rest[:to] + ids[a:b] + rest[to:]
                elif what == "fork":
                    contexts[who].close()
                    source = rng.choice([i for i in range(3) if i != who])
                    contexts[who], ids = contexts[source].fork(), list(model[source])
                elif what == "join":
                    source = rng.choice([i for i in range(3) if i != who])
                    if len(model[source]) < 40:
                        context.insert(a, contexts[source])
                        ids = ids[:a] + model[source] + ids[a:]
                else:
                    context.compact()
            except ContextError:
                n_failed += 1
            model[who] = ids
            assert [c.tokens for c in contexts] == model
        assert n_failed > 20
        for context, ids in zip(contexts, model, strict=True):
            room = 160 - len(ids)
            if ids and room > 0 and n_free(llm) > 2:
                wanted = Reference(path).logits([*ids, 4])[-1:]
                assert relative_error(context.logits([4]), wanted) < 1e-4
        for context in contexts:
            context.close()
        assert n_free(llm) == llm.runner.cache.pool.n_blocks


# ---- with streams ------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
def test_generating_in_steps_writes_what_one_prompt_does(deep, cache):
    one, two = ids_of(40), ids_of(8, 1)
    with load(deep, cache) as llm, llm.context() as context:
        first = llm.generate(one, GREEDY, context=context)
        assert context.tokens == one + first.token_ids
        second = llm.generate(two, GREEDY, context=context)
        whole = [*one, *first.token_ids, *two]
        assert second.token_ids == llm.generate(whole, GREEDY).token_ids
        assert context.tokens == whole + second.token_ids
        assert second.timings.n_prompt == len(two) + 1  # the last token of the first was pending
        more = llm.generate([], GREEDY, context=context)
        assert more.token_ids == llm.generate(whole + second.token_ids, GREEDY).token_ids


def test_a_stream_that_is_given_up_leaves_what_it_wrote(deep):
    with load(deep, "raw") as llm, llm.context() as context:
        with llm.stream(ids_of(20), GREEDY, context=context) as stream:
            next(stream)
            with pytest.raises(ContextError, match="a stream is writing"):
                context.delete(0, 1)
            with pytest.raises(ContextError, match="a stream is writing"):
                llm.generate([4], GREEDY, context=context)
        n = len(stream.completion.token_ids)
        assert context.tokens == ids_of(20) + stream.completion.token_ids
        assert 1 <= n < 6
        context.delete(0, 1)
        assert len(context) == 19 + n


def test_text_begins_with_bos_only_in_an_empty_context(deep):
    with load(deep, "raw") as llm, llm.context() as context:
        context.append("the man")
        context.append(" and the hat")
        assert context.tokens == llm.tokenize("the man and the hat")
        assert context.tokens.count(llm.tokenizer.bos_id) == 1


def test_contexts_that_hold_the_cache_end_a_stream_with_a_sentence(path):
    with load(path, "raw", n_ctx=64) as llm:
        with llm.context() as context, llm.context() as small:
            context.append(ids_of(64))
            small.append(ids_of(60))
            with pytest.raises(ContextError, match="the KV cache is full: close contexts"):
                llm.generate(ids_of(40), GREEDY)
            done = llm.generate([4], SamplingParams(ignore_eos=True), context=small)
            assert (done.finish_reason, len(small)) == ("context", 64)
            assert context.tokens == ids_of(64)
        assert llm.generate(ids_of(40), GREEDY).token_ids


def test_an_interrupted_step_leaves_the_context_as_it_was(deep, monkeypatch):
    with load(deep, "raw") as llm, llm.context() as context:
        context.append(ids_of(40))
        expected = context.logits([3])
        forward = llm.runner.model.forward

        def interrupted(*args):
            forward(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(llm.runner.model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([5, 6], GREEDY, context=context)
        monkeypatch.undo()
        context.truncate(40)
        assert np.array_equal(context.logits([3]), expected)


# ---- bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
def test_bad_edits_change_nothing(path, cache):
    with load(path, cache, n_ctx=64) as llm, llm.context() as context:
        context.append(ids_of(60))
        expected = context.logits([3])
        for edit, error, match in (
            (lambda: context.delete(50, 61), IndexError, "tokens 50 to 61 of a context of 60"),
            (lambda: context.delete(-1, 5), IndexError, "tokens -1 to 5"),
            (lambda: context.delete(9, 5), IndexError, "tokens 9 to 5"),
            (lambda: context.truncate(61), IndexError, "61"),
            (lambda: context.move(0, 10, 51), IndexError, "place 51 is not within 0 to 50"),
            (lambda: context.insert(61, [4]), IndexError, "place 61"),
            (lambda: context.append(ids_of(5)), ContextError, "65 tokens, more than .* 64"),
            (lambda: context.append([288]), ValueError, "288 is out of range"),
            (lambda: context.insert(2, context), ContextError, "more than the context"),
        ):
            with pytest.raises(error, match=match):
                edit()
            assert context.tokens == ids_of(60)
            assert np.array_equal(context.logits([3]), expected)
        with load(path, cache) as other, other.context() as foreign:
            foreign.append([4])
            with pytest.raises(ContextError, match="another LLM"):
                context.append(foreign)
    with pytest.raises(ValueError, match="closed"):
        context.append([4])


def test_what_it_says_of_itself(path):
    with load(path, "raw") as llm, llm.context() as context:
        assert len(context) == context.nbytes == 0
        context.append(ids_of(33))
        assert repr(context) == "<Context of 33 tokens in 2 segments>"
        assert context.nbytes == 2 * llm.runner.cache.block_bytes
        with context.fork() as other:
            context.append(other)  # by reference: the chunk's blocks, twice in one context
            assert context.nbytes == 2 * llm.runner.cache.block_bytes
        assert len(context) == 66
