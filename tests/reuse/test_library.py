"""Chunk libraries: exact at any place, one copy in memory, settings that fit, no block ever lost.

The files of a library are in test_library_folder.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lariat import ChunkLibrary, ContextError, _kernels, os_memory
from lariat.config import RopeConfig
from lariat.runtime.context import Context

from tests.reference import Reference, relative_error
from tests.support.cache_blocks import QUANTIZED
from tests.support.contexts import GREEDY, MAPPED, ids_of, load, n_held, write_mapped
from tests.support.model_files import write_llama

BOS = 1
# Blocks that are no whole pages are copied.
SHAPES = {"mapped": MAPPED, "copied": {"dim": 96, "n_heads": 4, "n_kv_heads": 2}}
A, B, C = ids_of(50), ids_of(41, 1), ids_of(37, 2)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One layer: there a key depends on its own token alone, so any place has an exact answer."""
    folder = tmp_path_factory.mktemp("model")
    return {
        name: write_llama(folder / f"{name}.gguf", n_layers=1, n_ctx=512, **shape)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def quantized_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Heads that quantized types can hold; 16 of 128 are whole pages with each type."""
    folder = tmp_path_factory.mktemp("model")
    return {
        name: write_llama(folder / f"{name}.gguf", n_layers=1, n_ctx=512, **shape)
        for name, shape in {
            "mapped": {"dim": 64, "n_heads": 16, "n_kv_heads": 16, "head_dim": 128},
            "copied": {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32},
        }.items()
    }


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mapped(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _restore_isa() -> Iterator[None]:
    before = _kernels.isa()
    yield
    _kernels.use_isa(before)


# ---- exactness ---------------------------------------------------------------------------


@pytest.mark.parametrize("isa", _kernels.supported_isas())
@pytest.mark.parametrize("types", ["f32", "f16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_chunk_scores_as_the_reference_s_keys_at_its_place(paths, shelf, shape, types, isa):
    reference = Reference(paths[shape])
    bound = 1e-5 if types == "f32" else 2e-3
    _kernels.use_isa(isa)

    def check(context: Context, expected: list[int]) -> None:
        assert context.tokens == expected
        wanted = reference.logits([*expected, 9, 10, 11])[-3:]
        assert relative_error(context.logits([9, 10, 11]), wanted) < bound

    with load(paths[shape], type_k=types, type_v=types) as llm:
        for name, ids in {"a": A, "b": B, "c": C}.items():
            shelf.add(llm, name, ids)
        a, b, c = shelf["a"], shelf["b"], shelf["c"]
        with llm.context() as context, llm.context() as other:
            assert context.append(ids_of(7, 5)) == 7
            assert context.append(b) == 0
            assert context.append(a, recompute=11) == 11
            check(context, ids_of(7, 5) + B + A)
            other.append(a)
            other.append(a)
            other.append([5, 6])
            other.insert(61, c)  # in an empty context BOS comes along
            check(other, [BOS, *A, *A[:10], *C, *A[10:], 5, 6])
            assert context.insert(0, c, recompute=3) == 0  # behind nothing, but without BOS
            context.insert(100, a)
            once = C + ids_of(7, 5) + B + A
            once = once[:100] + A + once[100:]
            check(context, once)
            context.delete(20, 60)
            check(context, once[:20] + once[60:])
            check(other, [BOS, *A, *A[:10], *C, *A[10:], 5, 6])
        assert n_held(llm) == 0


@pytest.mark.parametrize("shape", ["mapped", "copied"])
@pytest.mark.parametrize("types", QUANTIZED)
def test_quantized_chunks_are_what_was_computed_wherever_they_stand(
    quantized_paths, shelf, types, shape
):
    """From the file and from the memory that it was written from: the same bits, at odd positions,
    twice in one context, and with their first tokens computed anew."""
    path = quantized_paths[shape]
    with load(path, type_k=types, type_v=types) as llm, llm.context() as context:
        a, b = (shelf.add(llm, name, ids) for name, ids in {"a": A, "b": B}.items())
        assert context.append(ids_of(7, 5)) == 7
        assert context.append(b, recompute="none") == 0
        assert context.append(a, recompute=11) == 11
        assert context.append(a, recompute="none") == 0
        assert context.insert(3, b, recompute="none") == 0
        once = ids_of(7, 5)[:3] + B + ids_of(7, 5)[3:] + B + A + A
        assert context.tokens == once
        got = context.logits([9, 10, 11])
        n_blocks = context.nbytes // llm.runner.cache.block_bytes
        assert n_blocks == 1 + 2 + 1 + 2, "7 tokens, B, 11 of A anew, A: each once"
        wanted = Reference(path).logits([*once, 9, 10, 11])[-3:]
        assert relative_error(got, wanted) < (0.3 if types.startswith("q4") else 3e-2)
    with load(path, type_k=types, type_v=types) as llm, llm.context() as context:
        parts = []
        for ids in (A, B):
            part = llm.context()
            part.append([BOS])
            part.append(ids)
            # The last block is filled, since types by channel quantize whole ones, and left
            # behind, since a context that is cut short in its last 32 tokens goes on there.
            part.append([ids[-1]] * (-len(part) % 32 + 32))
            part.truncate(1 + len(ids))
            part.delete(0, 1)
            parts.append(part)
        a, b = parts
        context.append(ids_of(7, 5))
        context.append(b)
        context.append(A[:11])
        with a.fork() as rest:
            rest.delete(0, 11)
            context.append(rest)
        context.append(a)
        context.insert(3, b)
        assert context.tokens == once
        assert np.array_equal(context.logits([9, 10, 11]), got)


def test_blocks_of_whole_pages_are_mapped_and_others_copied(paths, shelf, monkeypatch):
    mapped = []
    map_file = os_memory.map_file

    def counted(target: np.ndarray, *where: int) -> bool:
        done = map_file(target, *where)
        mapped.append(target.nbytes if done else 0)
        return done

    monkeypatch.setattr("lariat.cache.kv_cache.map_file", counted)
    for shape in SHAPES:
        with load(paths[shape], type_k="f16", type_v="f16") as llm:
            chunk = shelf.add(llm, shape, A)
            with llm.context() as context:
                context.append(chunk)
                assert sum(mapped) == (chunk.nbytes if shape == "mapped" else 0)
                context.append(chunk)
                assert sum(mapped) == (chunk.nbytes if shape == "mapped" else 0), "once is enough"
        mapped.clear()


@pytest.mark.parametrize("types", ["f32", "f16"])
def test_behind_bos_it_is_what_would_be_computed_there(deep, shelf, types):
    """To the bit, where BOS comes along."""
    with load(deep, type_k=types, type_v=types) as llm, llm.context() as plain:
        plain.append([BOS])
        plain.append(A)
        chunk = shelf.add(llm, "a", A)
        with llm.context() as context, llm.context() as behind:
            assert context.append(chunk, recompute=16) == 0  # nothing to compute
            assert context.tokens == [BOS, *A]
            expected = plain.logits(B)
            assert np.array_equal(context.logits(B), expected)
            behind.append([BOS])
            assert behind.append(chunk, recompute=16) == 0
            # BOS has a segment of its own: the sum is another one, in its last bits, which may turn
            # a number of a key or value of B over to the next one in f16.
            assert relative_error(behind.logits(B), expected) < (1e-6 if types == "f32" else 1e-5)
            context.append(B)
            plain.append(B)
            assert np.array_equal(context.logits([4]), plain.logits([4]))


def test_recomputed_tokens_see_what_is_before_them(deep, shelf):
    with load(deep) as llm, llm.context() as plain:
        plain.append(B)
        plain.append(A[:16])
        at_16 = plain.logits(A[16:32])
        plain.append(A[16:])
        whole = plain.logits([4])
        chunk = shelf.add(llm, "a", A)
        errors = []
        for k in ("none", 16, 40, "all"):
            with llm.context() as context:
                context.append(B)
                assert context.append(chunk, recompute=k) == {"none": 0, "all": len(A)}.get(k, k)
                errors.append(relative_error(context.logits([4]), whole))
                if k == 16:
                    context.truncate(len(B) + 16)
                    assert np.array_equal(context.logits(A[16:32]), at_16)
        # All of it, computed at once and not in two pieces: only the last bits may differ.
        assert errors[3] < 1e-6 < min(errors[:3])


def test_a_document_is_computed_behind_what_is_cut_off_again(deep, shelf):
    front = ids_of(40, 7)
    with load(deep) as llm, llm.context() as context, llm.context() as plain:
        chunk = shelf.add(llm, "a", A, behind=front)
        assert (chunk.tokens, chunk.sink) == (A, [BOS])
        assert shelf.add(llm, "b", A).checksum != chunk.checksum
        assert shelf.add(llm, "c", A, behind=front).path == chunk.path
        plain.append([BOS, *front])
        plain.append(A)
        plain.delete(1, 1 + len(front))
        context.append(chunk, recompute="none")
        assert context.tokens == plain.tokens == [BOS, *A]
        assert np.array_equal(context.logits([4, 5]), plain.logits([4, 5]))
        texts = [shelf.add(llm, "t", "the hat", behind=text) for text in ("", "the man. ")]
        assert texts[0].tokens == texts[1].tokens
        assert texts[0].path != texts[1].path
        for bad, what in ((ids_of(600), "more than the context"), ([-1], "out of range")):
            with pytest.raises(ValueError, match=what):
                shelf.add(llm, "d", A, behind=bad)


# ---- memory ------------------------------------------------------------------------------


def test_a_chunk_stands_in_the_pool_once(deep, shelf):
    with load(deep) as llm:
        chunk = shelf.add(llm, "a", A)
        assert n_held(llm) == 0
        with llm.context() as context, llm.context() as other:
            context.append(chunk, recompute="none")
            once, held = context.nbytes, n_held(llm)
            context.append(chunk, recompute="none")
            assert len(context) == 1 + 2 * len(A)
            assert (context.nbytes, n_held(llm)) == (once, held)
            other.append(C)
            other.append(chunk, recompute="none")
            assert n_held(llm) == held + 2  # the two blocks of C
            context.append([4])  # behind the chunk's end: into a copy of its last block
            assert context.nbytes == once + llm.runner.cache.block_bytes
        assert n_held(llm) == 0


def test_what_is_written_behind_a_chunk_changes_neither_chunk_nor_file(deep, shelf):
    with load(deep, n_ctx=128) as llm:
        chunk = shelf.add(llm, "a", A)
        before = chunk.path.read_bytes()
        with llm.context() as context:
            context.append(chunk)
            expected = context.logits([4])
        for _ in range(3):
            with llm.context() as context:
                context.append(chunk)
                context.append(ids_of(70, 3))
            with llm.context() as context:  # the pool needs all its blocks: mapped ones too
                context.append(ids_of(128, 4))
            with llm.context() as context:
                context.append(chunk)
                assert np.array_equal(context.logits([4]), expected)
        assert chunk.path.read_bytes() == before


def test_a_removed_chunk_stays_where_it_is_used(deep, shelf):
    with load(deep) as llm, llm.context() as context:
        context.append(shelf.add(llm, "a", A))
        expected = context.logits([4])
        shelf.remove("a")
        assert not list(shelf.folder.glob("*.safetensors"))
        assert np.array_equal(context.logits([4]), expected)


def test_random_edits_forks_chunks_and_shared_prefixes_leak_no_block(paths, shelf):
    """Against lists of ids, in a pool so small that much fails and must change nothing then."""
    rng = random.Random(0)
    texts = [ids_of(rng.randint(1, 50), i) for i in range(4)]
    base = ids_of(90, 77)
    n_failed = n_streams = 0
    with load(paths["mapped"], n_ctx=192, type_k="f16", type_v="f16") as llm:
        chunks = [shelf.add(llm, str(i), text) for i, text in enumerate(texts)]
        contexts = [llm.context() for _ in range(3)]
        model: list[list[int]] = [[], [], []]
        for step in range(500):
            who = rng.randrange(3)
            context, ids = contexts[who], model[who]
            n = len(ids)
            a, b = sorted((rng.randint(0, n), rng.randint(0, n)))
            what = rng.choice(["append", "chunk", "chunk", "delete", "fork", "stream", "compact"])
            try:
                if what == "append":
                    new = ids_of(rng.randint(0, 9), step)
                    context.append(new)
                    ids = ids + new
                elif what == "chunk":
                    i = rng.randrange(4)
                    context.insert(a, chunks[i], recompute=rng.choice(["auto", "none", 3, "all"]))
                    ids = ids[:a] + ([] if ids else [BOS]) + texts[i] + ids[a:]
                elif what == "delete":
                    context.delete(a, b)
                    ids = ids[:a] + ids[b:]
                elif what == "fork":
                    context.close()
                    source = rng.choice([i for i in range(3) if i != who])
                    contexts[who], ids = contexts[source].fork(), list(model[source])
                elif what == "stream":
                    n_streams += bool(llm.generate(base[: rng.randint(1, 90)], GREEDY).text or 1)
                else:
                    context.compact()
            except ContextError:
                n_failed += 1
            model[who] = ids
            assert [c.tokens for c in contexts] == model
        assert min(n_failed, n_streams) > 10
        for context, ids in zip(contexts, model, strict=True):
            if ids and len(ids) < 190 and llm.runner.cache.pool.n_free > 2:
                wanted = Reference(paths["mapped"]).logits([*ids, 4])[-1:]
                assert relative_error(context.logits([4]), wanted) < 2e-3
        for context in contexts:
            context.close()
        assert n_held(llm) == 0


# ---- what fits ---------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(deep, paths, shelf, tmp_path):
    with load(deep) as llm:
        shelf.add(llm, "a", A)
    for path, options, match in (
        (deep, {"cache": "roped"}, "chunks need the raw cache"),
        (deep, {"type_k": "f16"}, "another type of keys: 'f32', expected 'f16'"),
        (deep, {"type_v": "f16"}, "another type of values"),
        (paths["mapped"], {}, "another model"),
        (deep, {"n_ctx": 52}, "53 tokens, more than the context of 52"),
    ):
        with load(path, **options) as llm, llm.context() as context:
            context.append([4, 5, 6])
            with pytest.raises(ContextError, match=match):
                context.append(shelf["a"])
            assert context.tokens == [4, 5, 6]
            assert n_held(llm) == 1
    with load(deep, "roped") as llm, pytest.raises(ContextError, match="need the raw cache"):
        shelf.add(llm, "x", A)
    with load(deep, n_ctx=32) as llm:
        with pytest.raises(ContextError, match=r"'x' has 51 tokens.* more than the context of 32"):
            shelf.add(llm, "x", A)
        with pytest.raises(ContextError, match="is empty"):
            shelf.add(llm, "x", "")
        with pytest.raises(ContextError, match="no name for a chunk"):
            shelf.add(llm, "a\nb", [4])
        (tmp_path / "file").touch()
        for folder in (tmp_path / "file", tmp_path / "file" / "x", "/proc/lariat"):
            with pytest.raises(ContextError, match="the library cannot be written"):
                ChunkLibrary(folder).add(llm, "x", [4])
    with pytest.raises(ContextError, match="no chunk named 'x'"):
        shelf["x"]
    with pytest.raises(ContextError, match="no chunk named 'x'"):
        shelf.remove("x")
    assert [e.name for e in shelf.entries()] == ["a"]


def test_rope_settings_are_part_of_a_chunk(deep, shelf):
    """Raw keys have no angle, but what their tokens saw in the first layer had. Chunks that were
    computed with the same angles are the same, whatever the settings are called."""
    stretched = RopeConfig("yarn", scale=2.0)
    words = "another RoPE: 'base 10000.0', expected 'base 10000.0, scale 2.0, yarn 1.0 of 512"
    with load(deep) as llm, llm.context() as context:
        chunk = shelf.add(llm, "a", A)
        for rope, match in (
            (stretched, words),
            (RopeConfig(freq_base=5e4), "expected 'base 50000.0'"),
            (RopeConfig("linear", scale=2.0), "expected 'base 10000.0, scale 2.0'"),
            (RopeConfig(yarn_attn_factor=1.5), "expected 'base 10000.0, scores times 2.25'"),
            (RopeConfig("dynamic", scale=2.0, yarn_orig_ctx=50), "dynamic 2.0 of 50"),
            (RopeConfig(grp_attn_n=5, grp_attn_w=50), "Self-Extend 5 beyond 50"),
        ):
            llm.set_rope(rope)
            with pytest.raises(ContextError, match=match) as error:
                context.append(shelf["a"])
            assert str(chunk.path) in str(error.value)
            assert (context.tokens, n_held(llm)) == ([], 0)
        for rope in (
            RopeConfig("none", scale=3.0),
            RopeConfig("dynamic", scale=2.0, yarn_orig_ctx=51),  # not beyond it with BOS
            RopeConfig(grp_attn_n=3, grp_attn_w=51),
        ):
            llm.set_rope(rope)
            assert shelf.add(llm, "b", A).path == chunk.path
            context.append(shelf["a"])
            context.truncate(0)
        # The way to read them with other angles: place them, then change RoPE.
        llm.set_rope(RopeConfig())
        context.append(chunk)
        llm.set_rope(stretched)
        assert np.isfinite(context.logits([4])).all()
        assert shelf.add(llm, "a", A).path != chunk.path
    with load(deep, rope=stretched) as llm, llm.context() as context:
        context.append(shelf["a"])
        with pytest.raises(ContextError, match=r"expected .*, scale 2.0, yarn 1.0 of"):
            context.append(shelf["b"])
        assert context.tokens == [BOS, *A]
