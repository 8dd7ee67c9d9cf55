"""Perplexity and divergence against the float64 reference, and the file of predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM
from lariat.errors import LariatError
from lariat.tools.perplexity import (
    Base,
    BaseWriter,
    Mean,
    compare,
    cut,
    log_softmax,
    measure,
    n_scored,
    predictions,
)

from tests.reference import Reference
from tests.support.model_files import write_llama

TEXT = "the man and the hat " * 40
N_CTX = 40


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_ctx=96)


@pytest.fixture
def llm(path: Path):
    with LLM(path, n_ctx=N_CTX, n_threads=2) as llm:
        yield llm


def reference_log_probs(path: Path, ids: list[int]) -> np.ndarray:
    logits = np.asarray(Reference(path).logits(ids), np.float64)
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("cache", ["roped", "raw"])
@pytest.mark.parametrize("n_ctx", [40, 41])
@pytest.mark.parametrize("n_ubatch", [512, 7])
def test_perplexity_is_the_reference_s(path, cache, n_ctx, n_ubatch):
    with LLM(path, n_ctx=n_ctx, n_ubatch=n_ubatch, cache=cache, type_k="f32", type_v="f32") as llm:
        windows = cut(llm, TEXT, n_ctx, 3)
        found = measure(llm, windows)
    values = []
    for ids in windows.tolist():
        log_probs = reference_log_probs(path, ids)
        values += [-log_probs[t, ids[t + 1]] for t in range(n_ctx // 2, n_ctx - 1)]
    assert found.nll.n == len(values) == 3 * n_scored(n_ctx)
    assert found.value == pytest.approx(math.exp(np.mean(values)), rel=1e-5)
    error = np.std(values) / math.sqrt(len(values) - 1)
    assert found.error == pytest.approx(found.value * error, rel=1e-4)


def test_text_is_cut_as_llama_perplexity_cuts_it(llm):
    ids = llm.tokenize(TEXT)
    windows = cut(llm, TEXT, N_CTX)
    assert windows.shape == (len(ids) // N_CTX, N_CTX)
    assert set(windows[:, 0]) == {llm.tokenizer.bos_id}
    assert np.array_equal(windows[1, 1:], ids[N_CTX + 1 : 2 * N_CTX])
    assert len(cut(llm, TEXT, N_CTX, 2)) == 2
    assert len(cut(llm, TEXT, N_CTX, 10**6)) == len(windows)


def test_a_short_text_is_refused_with_both_numbers(llm):
    with pytest.raises(LariatError, match=r"has \d+ tokens.* 40 needs at least 80"):
        cut(llm, "the man", N_CTX)


def test_few_logits_at_a_time_give_the_same(llm, monkeypatch):
    from lariat.tools import perplexity

    windows = cut(llm, TEXT, N_CTX, 2)
    whole = np.concatenate([rows.log_probs for rows in predictions(llm, windows)])
    monkeypatch.setattr(perplexity, "_LOGITS", 3 * 4 * llm.n_vocab)
    rows = list(predictions(llm, windows))
    assert max(len(r.targets) for r in rows) == 3
    assert [(r.window, r.first) for r in rows[:8]] == [
        *((0, first) for first in range(0, 19, 3)),
        (1, 0),
    ]
    assert np.allclose(np.concatenate([r.log_probs for r in rows]), whole, atol=1e-5)


def test_blocks_of_the_cache_are_given_back(llm):
    n_free = llm.runner.cache.pool.n_free
    for _ in range(3):
        measure(llm, cut(llm, TEXT, N_CTX, 2))
    for _ in predictions(llm, cut(llm, TEXT, N_CTX, 2)):
        break
    assert llm.runner.cache.pool.n_free == n_free


def test_log_softmax_of_large_and_damaged_logits():
    logits = np.array([[1e4, 1e4 - 1, -1e4], [0, 0, -np.inf]], np.float32)
    expected = [[-math.log1p(math.exp(-1)), -1 - math.log1p(math.exp(-1))], [-math.log(2)] * 2]
    assert log_softmax(logits)[:, :2] == pytest.approx(np.array(expected), rel=1e-6)
    for bad in (np.nan, np.inf):
        with pytest.raises(LariatError, match="not finite"):
            log_softmax(np.array([[0, bad]], np.float32))


def test_mean_and_its_error():
    values = np.random.default_rng(0).normal(3, 2, 1000)
    mean = Mean()
    for part in np.array_split(values, 7):
        mean.add(part)
    assert mean.n == 1000
    assert mean.value == pytest.approx(values.mean())
    assert mean.error == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-3)
    assert math.isnan(Mean().value)
    assert math.isnan(Mean().error)


# ---- the file of predictions -------------------------------------------------------------


@pytest.fixture
def saved(llm, tmp_path: Path) -> Path:
    file = tmp_path / "base.kl"
    windows = cut(llm, TEXT, N_CTX, 3)
    with BaseWriter(file, windows, llm.n_vocab) as writer:
        measure(llm, windows, base=writer)
    return file


def test_a_run_compared_with_itself(llm, saved: Path):
    found = compare(llm, Base(saved))
    assert found.run.nll.n == found.kl.n == 3 * n_scored(N_CTX)
    # Levels are 0.0002 nats apart on this model; up to half a level of each token may be lost.
    assert abs(found.kl.value) < 1e-4
    assert found.kl_values[-1] < 1e-4
    assert found.log_ratio.value == pytest.approx(0, abs=1e-4)
    assert found.same_top.value > 0.95  # levels may tie
    assert found.base.value == pytest.approx(found.run.value, rel=1e-4)


def test_another_model_compared_with_the_reference(path, saved: Path, tmp_path: Path):
    """The KL divergence of two models, by NumPy in float64."""
    other = write_llama(tmp_path / "other.gguf", n_ctx=96, seed=5)
    base = Base(saved)
    with LLM(other, n_ctx=N_CTX, type_k="f32", type_v="f32") as llm:
        found = compare(llm, base)
    kl, same, ratio = [], [], []
    for ids in base.windows.tolist():
        p, q = (reference_log_probs(file, ids)[N_CTX // 2 : -1] for file in (path, other))
        kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        same += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
        targets = ids[N_CTX // 2 + 1 :]
        ratio += [p[i, t] - q[i, t] for i, t in enumerate(targets)]
    assert found.kl.value == pytest.approx(np.mean(kl), rel=5e-3)
    assert found.kl_values == pytest.approx(np.sort(kl), rel=2e-2, abs=1e-3)
    assert found.kl_percentile(90) == pytest.approx(np.percentile(kl, 90), rel=2e-2)
    assert found.same_top.value == pytest.approx(np.mean(same), abs=0.04)
    assert found.log_ratio.value == pytest.approx(np.mean(ratio), abs=2e-3)


def test_unlikely_tokens_keep_their_probability(tmp_path: Path):
    from lariat.tools.perplexity import Rows

    log_probs = log_softmax(np.array([[0, -30, -60, -200]] * 3, np.float32))
    windows = np.zeros((1, 7), np.int32)
    rows = Rows(0, 0, np.array([0, 1, 2], np.int32), log_probs)
    with BaseWriter(tmp_path / "b", windows, 4) as writer:
        writer.add(rows)
    found, kept = Base(tmp_path / "b").log_probs(rows)
    assert found[:, :3] == pytest.approx(log_probs[:, :3], abs=1e-3)
    assert kept.tolist() == [[True, True, True, False]] * 3


def test_the_file_appears_when_it_is_whole(llm, tmp_path: Path):
    file = tmp_path / "base.kl"
    file.write_text("what was there")
    windows = cut(llm, TEXT, N_CTX, 2)

    def interrupted() -> None:
        with BaseWriter(file, windows, llm.n_vocab) as writer:
            for rows in predictions(llm, windows):
                writer.add(rows)
                assert file.read_text() == "what was there"
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_an_error_and_leaves_nothing(llm, tmp_path: Path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        BaseWriter(tmp_path / "b", cut(llm, TEXT, N_CTX, 2), llm.n_vocab)
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, change) -> None:
    """Change the header of a safetensors file; the data stay."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(format="x"), "but not a lariat-kl-base"),
        (
            lambda h: h["__metadata__"].update(version="9"),
            "another format version: '9', expected '3'",
        ),
        (lambda h: h.pop("__metadata__"), "but not a lariat-kl-base"),
        (lambda h: h["tokens"].update(shape=[1, 120]), "do not fit each other"),
        (lambda h: h["ranges"].update(dtype="U32"), "of other types"),
        (lambda h: h["tokens"].update(dtype="F8_E5M2", shape=[2, 4 * 60]), "of other types"),
        (lambda h: h["tokens"].update(data_offsets=[0, 10**12]), "is damaged"),
    ],
)
def test_an_altered_file_is_refused(saved: Path, change, message: str):
    rewrite(saved, change)
    with pytest.raises(LariatError, match=message):
        Base(saved)


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_a_truncated_file_is_refused(saved: Path, size: int):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(LariatError, match="is damaged"):
        Base(saved)


def test_another_vocabulary_or_text_is_refused(llm, saved: Path, tmp_path: Path):
    base = Base(saved)
    base.check(llm, None)
    base.check(llm, cut(llm, TEXT, N_CTX, 3))
    for windows in (cut(llm, TEXT, N_CTX, 2), cut(llm, "hat " + TEXT, N_CTX, 3)):
        with pytest.raises(LariatError, match="another text"):
            base.check(llm, windows)
    with (
        LLM(write_llama(tmp_path / "o.gguf", n_vocab=300)) as other,
        pytest.raises(LariatError, match="vocabulary of 288 tokens, the model has 300"),
    ):
        base.check(other, None)
