"""The prompt cache: what is reused of an earlier context, and the flags of --prompt-cache."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM
from lariat.cli.main import main
from lariat.reuse import prompt_reuse
from safetensors.numpy import load_file

from tests.reference import Reference, relative_error
from tests.support.contexts import CACHES, ids_of, load
from tests.support.model_files import write_llama

TEXT = "the man and the hat and the hen and the pot "


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer: there a key depends on its own token alone, so moving it has an exact answer."""
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=1, n_ctx=512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=2, n_ctx=512))


A, B, C, D = ids_of(40), ids_of(30, 1), ids_of(20, 2), ids_of(35, 3)


@pytest.mark.parametrize("cache", CACHES)
def test_the_longest_common_prefix_stays_and_changes_no_bit(path, cache):
    with load(path, cache) as llm, llm.context() as context, llm.context() as other:
        context.append(A + B)
        assert prompt_reuse.fit(context, A + C) == len(A)
        assert context.tokens == A
        context.append(C)
        other.append(A)
        other.append(C)
        assert np.array_equal(context.logits([4, 5]), other.logits([4, 5]))
        assert prompt_reuse.fit(context, A + C) == len(A + C)
        assert prompt_reuse.fit(context, B) == len(context) == 0


@pytest.mark.parametrize(
    ("cached", "prompt", "n_least", "n_reused", "tokens"),
    [
        (A + B + C, A + C + D, 20, 60, A + C),  # something was taken out
        (A + B + C, A + C + D, 21, 40, A),  # too short a run
        (A + C, A + B + C + D, 20, 60, A + B + C),  # something was put in, and is computed
        (A + B + C, B + A, 10, 70, B + A),  # another order
        (B, A + B[3:], 10, 27, A + B[3:]),  # nothing before it
        (A + B, B + B + B, 30, 90, B + B + B),  # once there, three times wanted
        (A, B + C, 5, 0, []),
        (A + B, A + C + [7] + B[10:] + D, 20, 60, A + C + [7] + B[10:]),
    ],
)
def test_later_runs_are_moved_into_place(path, cached, prompt, n_least, n_reused, tokens):
    with load(path) as llm, llm.context() as context:
        context.append(cached)
        assert prompt_reuse.fit(context, prompt, n_least) == n_reused
        assert context.tokens == tokens == prompt[: len(tokens)]
        if tokens:
            wanted = Reference(path).logits([*tokens, 9])[-1:]
            assert relative_error(context.logits([9]), wanted) < 1e-5


def test_without_room_for_both_the_prefix_has_to_do(path):
    with load(path, n_ctx=128) as llm, llm.context() as context:
        context.append(A + B + C)
        long = A + ids_of(60, 9) + B
        with llm.context() as rest:
            rest.append(ids_of(60))
            assert prompt_reuse.fit(context, long, 20) == len(A)
            assert context.tokens == A
        assert prompt_reuse.fit(context, long, 20) == len(A)
    with load(path, n_ctx=128) as llm, llm.context() as context:
        context.append(A + B + C)
        assert prompt_reuse.fit(context, [*A, 5, *B], 20) == len(A + B)


# ---- at the command line -----------------------------------------------------------------


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], model: str, tmp_path: Path):
    def run(*argv: str, prompt: str = TEXT) -> tuple[int, str, str]:
        capfd.readouterr()
        flags = (
            "--prompt-cache",
            str(tmp_path / "cache"),
            "-n",
            "8",
            "--temp",
            "0",
            "--ignore-eos",
        )
        code = main(["generate", "-m", model, "-p", prompt, *flags, *argv])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def counts(err: str) -> tuple[int, int]:
    """Tokens reused and computed, from the statistics."""
    reused = re.search(r"reused +(\d+) tokens", err)
    computed = re.search(r"prompt +(\d+) tokens", err)
    assert computed
    return int(reused[1]) if reused else 0, int(computed[1])


@pytest.fixture(scope="module")
def ids(model: str) -> list[int]:
    with LLM(model, n_threads=1) as llm:
        return llm.tokenize(TEXT)


@pytest.mark.parametrize("cache", CACHES)
def test_the_second_run_computes_one_token_and_writes_the_same(run, ids, cache, tmp_path):
    n = len(ids)
    first = run("--cache", cache)
    assert (first[0], counts(first[2])) == (0, (0, n))
    written = (tmp_path / "cache").read_bytes()
    second = run("--cache", cache)
    assert (second[0], counts(second[2]), second[1]) == (0, (n - 1, 1), first[1])
    assert (tmp_path / "cache").read_bytes() == written
    longer = run("--cache", cache, prompt=TEXT + "the cat")
    assert n - 1 <= counts(longer[2])[0] <= n  # its last token may be another one now
    assert (tmp_path / "cache").read_bytes() != written
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("cache", CACHES)
def test_what_was_written_is_kept_with_all(run, ids, cache, tmp_path):
    def kept() -> list[int]:
        return load_file(tmp_path / "cache")["tokens"].tolist()

    run("--cache", cache)
    assert kept() == ids
    assert run("--cache", cache, "--prompt-cache-all")[0] == 0
    assert kept()[: len(ids)] == ids
    assert len(kept()) == len(ids) + 8


def test_read_only_is_never_written(run, ids, tmp_path):
    code, out, err = run("--prompt-cache-ro")
    assert (code, out) == (1, "")
    assert "No such file" in err
    run()
    before = (tmp_path / "cache").read_bytes()
    _, _, err = run("--prompt-cache-ro", prompt=TEXT + "the cat and the man")
    assert counts(err)[0] >= len(ids) - 1
    assert (tmp_path / "cache").read_bytes() == before


def test_later_runs_are_reused_with_raw(run, ids):
    run("--cache", "raw", prompt="the cat " + TEXT)
    assert counts(run("--cache", "raw", prompt=TEXT)[2])[0] < 5
    run("--cache", "raw", prompt="the cat " + TEXT)
    code, out, err = run("--cache", "raw", "--cache-reuse", "5", prompt=TEXT)
    assert (code, out.startswith(TEXT)) == (0, True)
    n_reused, n_computed = counts(err)
    assert n_reused > len(ids) - 5
    assert n_reused + n_computed == len(ids)
    assert re.search(rf"reused +{n_reused} tokens, \d+ of them behind other text", err)
    run("--cache", "raw", prompt="the cat " + TEXT)
    out = run("--cache", "raw", "--cache-reuse", "5", "-o", "json", prompt=TEXT)[1]
    timings = json.loads(out)["timings"]
    assert (timings["n_reused"], timings["n_prompt"]) == (n_reused, n_computed)
    assert 0 < timings["n_exact"] < 5
    assert timings["n_exact"] + timings["n_moved"] == n_reused


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("new", "n_computed", "n_kept"),
    [
        (lambda ids: [*ids[:40], *ids[100:]], 0, 140),
        # The first tokens behind the cut are others, and some in the midst.
        (lambda ids: [*ids[:40], 5, 6, *ids[102:]], 2, 140),
        (lambda ids: [*ids[:40], *ids[100:150], 5, 6, 7, *ids[152:]], 3, 141),
        # What is new at the end is left to others.
        (lambda ids: [*ids[:40], *ids[100:], 5, 6, 7], 0, 140),
        # Of what was to go nothing stays.
        (lambda ids: [*ids[:40], *ids[60:90]], 0, 40),
    ],
    ids=["cut", "first tokens", "tokens in the midst", "end", "run that was to go"],
)
def test_shift_moves_what_stays_up(path, cache, new, n_computed, n_kept, monkeypatch):
    ids = ids_of(200)
    wanted = new(ids)
    with load(path, cache) as llm, llm.context() as context:
        context.append(ids)
        with monkeypatch.context() as patch:
            counts, forward = [], llm.runner.forward

            def counting(parts):
                counts.extend(len(part.token_ids) for part in parts)
                return forward(parts)

            patch.setattr(llm.runner, "forward", counting)
            prompt_reuse.shift(context, wanted, 100)
        assert context.tokens == wanted[:n_kept]
        assert sum(counts) == n_computed
        context.append(wanted[n_kept:])
        expected = llm.logits([*wanted, 9])[-1]
        assert relative_error(context.logits([9])[-1], expected) < 1e-4


def test_an_empty_file_is_a_new_one(run, tmp_path):
    (tmp_path / "cache").touch()
    assert run()[0] == 0
    assert (tmp_path / "cache").stat().st_size


def test_bad_files_and_flags_are_refused_and_nothing_is_lost(run, tmp_path):
    run("--cache", "raw")
    whole = (tmp_path / "cache").read_bytes()
    for flags, code, sentence in (
        (("--cache", "roped"), 1, "another cache strategy: 'raw', expected 'roped'"),
        (("--cache", "raw", "-ctk", "f32"), 1, "another type of keys"),
        (("--cache", "raw", "--rope-freq-base", "500"), 1, "another RoPE: 'base 10000.0'"),
        (("--cache-reuse", "9"), 2, "--cache-reuse: needs --cache raw"),
        (("--cache", "raw", "--cache-reuse", "-1"), 2, "-1 is negative"),
        (("--prompt-cache-all", "--prompt-cache-ro"), 2, "not allowed with"),
        (("--prompt-cache", str(tmp_path)), 1, "not a regular file"),
        (("--prompt-cache", str(tmp_path / "no" / "x")), 1, "is not a folder that can be written"),
        (("--cache", "raw", "-c", "8"), 1, "more than the context of 8"),
    ):
        got = run(*flags)
        assert got[:2] == (code, "")
        assert sentence in got[2]
        assert got[2].count("\n") == 1
        assert (tmp_path / "cache").read_bytes() == whole
    (tmp_path / "cache").write_bytes(whole[:-9])
    code, out, err = run("--cache", "raw")
    assert (code, out) == (1, "")
    assert "damaged" in err


def test_flags_that_need_the_file(capfd, model):
    for flags in (["--prompt-cache-all"], ["--prompt-cache-ro"], ["--cache-reuse", "4"]):
        assert main(["generate", "-m", model, "-p", TEXT, *flags]) == 2
        assert f"argument {flags[0]}: needs --prompt-cache" in capfd.readouterr().err
