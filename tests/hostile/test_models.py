"""Hostile models: sound GGUF files with harmful metadata, weights or texts."""

from __future__ import annotations

import os
import pty
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, GGUFError, LariatError, ModelError, SamplingParams
from lariat.cli import console
from lariat.cli.main import main
from lariat.formats.block_formats import BLOCK, GGMLType, dequantize
from lariat.formats.gguf import GGUFFile
from lariat.measure.benchmark import Benchmark
from lariat.measure.cases import Case
from lariat.tools.perplexity import cut, measure

from tests.support.model_files import N_SPECIAL, vocabulary, write_llama

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\n\x9b1m"
# fmt: off
GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_ctx=64)


def check_sentence(error: Exception | str, path: Path, said: str) -> None:
    """One short line that names the file and says what was found."""
    sentence = str(error)
    assert said in sentence
    assert sentence.startswith(f"{path}: ")
    assert sentence.isprintable()
    assert len(sentence) < 400 + len(str(path))


# ---- Metadata ----

NAN, INF = float("nan"), float("inf")
METADATA: list[tuple[str, Any, str]] = [
    ("block_count", 0, "is 0, expected 1 to 512"),
    ("block_count", 513, "is 513, expected 1 to 512"),
    ("block_count", 2**31, "is 2147483648, expected 1 to 512"),
    ("block_count", -1, "is -1, expected"),
    ("block_count", 2.0, "is 2.0, expected a whole number"),
    ("block_count", True, "is true, expected a whole number"),
    ("block_count", "2", "is '2', expected a whole number"),
    ("block_count", 1, "tensor 'blk.1.attn_norm.weight' has no place in a 'llama' model"),
    ("block_count", 3, "tensor 'blk.2.attn_norm.weight' is missing"),
    ("attention.head_count", 0, "is 0, expected 1 to 4096"),
    ("attention.head_count", 2**32 - 1, "is 4294967295, expected 1 to 4096"),
    ("attention.head_count", 3, "3 query heads do not divide among 2 KV heads"),
    ("attention.head_count", 6, "embedding length 64 does not divide by 6 heads"),
    ("attention.head_count_kv", 0, "is 0, expected 1 to 4096"),
    ("attention.head_count_kv", 3, "4 query heads do not divide among 3 KV heads"),
    ("attention.head_count_kv", 4096, "4 query heads do not divide among 4096 KV heads"),
    ("attention.key_length", 15, "key length 15 of a head is odd"),
    ("attention.key_length", 0, "is 0, expected 1 to 4096"),
    ("attention.key_length", 2**31, "is 2147483648, expected 1 to 4096"),
    ("attention.value_length", 4098, "is 4098, expected 1 to 4096"),
    ("rope.dimension_count", 7, "is 7, expected an even number of at most 16"),
    ("rope.dimension_count", 18, "is 18, expected an even number of at most 16"),
    ("rope.dimension_count", 0, "is 0, expected 1 to 4096"),
    ("context_length", 0, "is 0, expected 1 to 134217728"),
    ("context_length", 2**63, "is 9223372036854775808, expected 1 to"),
    ("embedding_length", 0, "is 0, expected 1 to 131072"),
    ("embedding_length", 2**40, "is 1099511627776, expected 1 to 131072"),
    ("embedding_length", 128, "has shape"),
    ("feed_forward_length", 0, "is 0, expected 1 to 131072"),
    ("feed_forward_length", 97, "'blk.0.ffn_gate.weight' has shape [96, 64], expected [97, 64]"),
    ("attention.layer_norm_rms_epsilon", -1e-5, "is -1e-05, expected 0.0 to 1.0"),
    ("attention.layer_norm_rms_epsilon", NAN, "is nan, expected a finite number"),
    ("attention.layer_norm_rms_epsilon", INF, "is inf, expected a finite number"),
    ("attention.layer_norm_rms_epsilon", "x" * 10**6, "xxx'..., expected a number"),
    ("rope.freq_base", 0.0, "is 0.0, expected 0.001 to"),
    ("rope.freq_base", -1e4, "is -10000.0, expected"),
    ("rope.freq_base", INF, "is inf, expected a finite number"),
    ("rope.freq_base", NAN, "is nan, expected a finite number"),
    ("rope.scaling.factor", NAN, "is nan, expected a finite number"),
    ("rope.scaling.factor", -2.0, "is -2.0, expected 0.001 to"),
    ("rope.scaling.type", ESCAPES, r"RoPE scaling '\x1b]0;owned\x07\x1b[2J\x1b[31m\r\n\x9b1m'"),
    ("rope.scaling.type", "x" * 10**6, "xxx'... is not supported"),
    ("rope.scaling.original_context_length", 0, "is 0, expected 1 to"),
    ("rope.scaling.attn_factor", 0.0, "is 0.0, expected 0.001 to"),
    ("expert_count", 8, "expert_used_count is missing"),
    ("expert_count", 2**31, "is 2147483648, expected 0 to 4096"),
    ("expert_count", -8, "is -8, expected 0 to"),
]
# fmt: on


@pytest.mark.parametrize(("key", "value", "said"), METADATA)
def test_metadata_is_refused_before_any_tensor_is_touched(
    sound: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, said: str
) -> None:
    """`overrides` are checked like the file's own values."""

    def touch(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(GGUFFile, "data", touch)
    with pytest.raises((GGUFError, ModelError)) as caught:
        LLM(sound, n_threads=1, overrides={f"llama.{key}": value})
    check_sentence(caught.value, sound, said)


@pytest.mark.parametrize("value", [7, 1.5, True, "abc", [1, 2], ["a"]])
def test_a_vocabulary_that_is_none(tmp_path: Path, value: Any) -> None:
    path = write_llama(tmp_path / "m.gguf", metadata={"tokenizer.ggml.tokens": value})
    with pytest.raises(GGUFError) as caught:
        LLM(path, n_threads=1)
    check_sentence(caught.value, path, "token")


def test_heads_that_are_more_than_any_model_has(tmp_path: Path) -> None:
    """The order of their rows would take gigabytes if it were made before shapes are checked."""
    keys = {"attention.head_count": 4096, "attention.head_count_kv": 4096}
    keys |= {"attention.key_length": 4096, "attention.value_length": 4096}
    path = write_llama(tmp_path / "m.gguf")
    with pytest.raises(GGUFError, match="4096 heads of 4096 make 16777216 dims, expected at most"):
        LLM(path, overrides={f"llama.{key}": value for key, value in keys.items()})


def test_a_context_as_long_as_can_be_announced(tmp_path: Path) -> None:
    """Unused memory of the cache costs nothing, and blocks are counted when they are used."""
    path = write_llama(
        tmp_path / "m.gguf", dim=32, n_heads=1, n_kv_heads=1, head_dim=2, n_layers=1, n_ctx=1 << 27
    )
    with LLM(path, n_threads=1) as llm:
        assert llm.n_ctx == 1 << 27
        assert len(llm.generate([1, 5], GREEDY).token_ids) == 3
        assert len(llm.runner.cache.pool._n_holders) < 10


# ---- Values ----

F16_AT = {"Q4_0": 0, "Q8_0": 0, "Q4_K": 0, "Q6_K": 208, "IQ4_NL": 0, "IQ4_XS": 0, "Q5_1": 2}
F16_AT |= {"IQ2_S": 0, "TQ2_0": 64}
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NAMES = [f"blk.0.{name}.weight" for name in ("attn_norm", "ffn_norm", *MATRICES)]
NAMES += ["output_norm.weight", "output.weight"]


def poisoned(path: Path, name: str, value: float) -> Path:
    """The model at `path` with one number of tensor `name` replaced: a weight, or a scale."""
    content = bytearray(path.read_bytes())
    with GGUFFile(path) as file:
        info = file.tensors[name]
    at = info.offset
    if len(info.shape) == 2:  # in the middle, so that some query, key or value has it
        at += info.shape[0] // 2 * (info.n_bytes // info.shape[0])
    if info.type == GGMLType.F32:
        content[at + 4 : at + 8] = struct.pack("<f", value)
    else:
        at += F16_AT.get(info.type.name, 0)
        content[at : at + 2] = struct.pack("<e", value)
    bad = path.with_name("bad.gguf")
    bad.write_bytes(content)
    return bad


@pytest.mark.parametrize(
    ("weight_type", "cache"),
    [
        ("F32", {"type_k": "f32", "type_v": "f32"}),
        ("F16", {"cache": "raw"}),
        ("Q4_0", {}),
        ("Q8_0", {"cache": "raw", "type_k": "q8_0", "type_v": "q4_0"}),
        ("Q5_1", {"type_k": "q4_0", "type_v": "q8_0"}),
        ("IQ4_NL", {"cache": "raw", "type_k": "q8_ch", "type_v": "q8_ch"}),
        ("Q4_K", {"cache": "raw", "type_k": "q4_ch", "type_v": "q4_ch"}),
        ("Q6_K", {}),
        ("IQ4_XS", {}),
        ("IQ2_S", {}),
        ("TQ2_0", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()) or "roped",
)
def test_nan_and_inf_anywhere_end_in_an_error(
    tmp_path: Path, weight_type: str, cache: Any, isa: str
) -> None:
    """Of a norm, or of a scale of any matrix: at the first logits, for prompts short and long.

    Comparisons lose NaN, so every maximum and every clamp of a kernel is a place where a damaged
    weight could turn into numbers that look sound.
    """
    size = BLOCK[GGMLType[weight_type]][0]
    size = 256 if size == 256 else 64
    path = write_llama(
        tmp_path / "m.gguf", dim=size, n_heads=2, n_kv_heads=1, head_dim=32, n_ff=size,
        n_layers=1, n_ctx=128, weight_type=weight_type,
    )  # fmt: skip
    long = [N_SPECIAL + i for i in range(70)]
    values = (NAN, INF) if isa != "scalar" else (NAN,)
    for name in NAMES:
        for value in values:
            with LLM(poisoned(path, name, value), n_threads=1, **cache) as llm:
                for prompt in ([1, 5], long):
                    with pytest.raises(LariatError, match=r"the logits hold (nan|-?inf)"):
                        llm.generate(prompt, GREEDY)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = write_llama(tmp_path / "m.gguf", weight_type="Q8_0", n_ctx=64)
    return poisoned(path, "blk.0.attn_norm.weight", NAN)


WAYS: dict[str, Callable[[LLM], object]] = {
    "generate": lambda llm: llm.generate("a", GREEDY),
    "sampled": lambda llm: llm.generate("a", SamplingParams(max_tokens=1)),
    "logits": lambda llm: llm.logits([1, 5]),
    "context": lambda llm: llm.context().logits([1, 5]),
    "perplexity": lambda llm: measure(llm, cut(llm, "ab" * 200, 32, 1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_logits_looks_at_them(damaged: Path, way: str) -> None:
    with LLM(damaged, n_threads=1) as llm, pytest.raises(LariatError, match="the logits hold nan"):
        WAYS[way](llm)


def test_a_benchmark_of_nonsense_is_none(damaged: Path) -> None:
    with (
        Benchmark(damaged, [Case(n_prompt=8, n_threads=1)]) as benchmark,
        pytest.raises(LariatError, match="the logits hold nan"),
    ):
        benchmark.run(1, warm_up=False)


@pytest.mark.parametrize("token", range(5, 11))
def test_minus_infinity_is_no_logit_either(tmp_path: Path, token: int) -> None:
    """It would silently forbid a word. Its sign depends on the token before."""
    path = write_llama(tmp_path / "m.gguf", n_ctx=64)
    bad = poisoned(path, "output.weight", -INF)
    with LLM(bad, n_threads=1) as llm, pytest.raises(LariatError, match=r"the logits hold -?inf"):
        llm.generate([1, token], GREEDY)


def test_one_request_with_a_damaged_token_does_not_end_the_others(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", n_ctx=64)
    content = bytearray(path.read_bytes())
    with GGUFFile(path) as file:
        info = file.tensors["token_embd.weight"]
    row = info.offset + 9 * info.n_bytes // info.shape[0]
    content[row : row + 4] = struct.pack("<f", NAN)
    path.write_bytes(content)
    with LLM(path, n_threads=1) as llm:
        good, bad = llm.stream([1, 5], GREEDY), llm.stream([1, 9], GREEDY)
        list(good)
        assert len(good.completion.token_ids) == 3
        with pytest.raises(LariatError, match="the logits hold nan"):
            list(bad)


def test_blocks_of_the_types_above(tmp_path: Path) -> None:
    """`poisoned` hits a scale."""
    for name, at in F16_AT.items():
        assert 0 <= at <= BLOCK[GGMLType[name]][1] - 2
        path = write_llama(
            tmp_path / "m.gguf", dim=256, n_ff=256, n_layers=1, weight_type=name
        )  # fmt: skip
        with GGUFFile(poisoned(path, "blk.0.attn_q.weight", NAN)) as file:
            weight_type = file.tensors["blk.0.attn_q.weight"].type
            assert weight_type.name == name
            assert np.isnan(dequantize(file.data("blk.0.attn_q.weight"), weight_type)).any()


# ---- Messages ----


@pytest.mark.parametrize(
    "metadata",
    [
        {"general.architecture": ESCAPES},
        {"general.architecture": "x" * 10**6},
        {"tokenizer.ggml.model": ESCAPES},
        {"tokenizer.ggml.model": "x" * 10**6},
        {"llama.block_count": ESCAPES * 1000},
    ],
)
def test_errors_at_the_command_line_are_one_short_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], metadata: dict[str, Any]
) -> None:
    path = write_llama(tmp_path / "m.gguf", metadata=metadata)
    for command in (["generate", "-p", "a"], ["tokenize", "-p", "a"], ["perplexity", "-p", "a"]):
        code = main([*command, "-m", str(path)])
        out, err = capfd.readouterr()
        if code:  # the tokenizer accepts any architecture
            assert code == 1
            assert out == ""
            assert err.endswith("\n")
            assert err[:-1].isprintable()
            assert len(err) < 400 + len(str(path))


def test_info_and_tokenize_escape_and_cut(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metadata = {
        "general.name": ESCAPES,
        "general.description": "x" * 10**6,
        f"odd.{ESCAPES}": 1,
        "k" * 60000: ESCAPES,
        "odd.list": [ESCAPES, "y" * 10**6],
    }
    path = write_llama(tmp_path / "m.gguf", metadata=metadata)
    assert main(["info", "-m", str(path)]) == 0
    out, _ = capfd.readouterr()
    assert all(line.isprintable() for line in out.splitlines())
    assert len(out) < 10_000
    assert r"\x1b]0;owned" in out
    tokens, scores, _ = vocabulary(288)
    tokens[-1], scores[-1] = ESCAPES[:2], 1.0  # the beginning of the text, which is merged first
    path = write_llama(
        tmp_path / "t.gguf",
        metadata={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores},
    )
    assert main(["tokenize", "-m", str(path), "-p", ESCAPES]) == 0
    out, _ = capfd.readouterr()
    assert all(line.isprintable() for line in out.splitlines())
    assert r"    287  \x1b]" in out


def test_what_a_model_says_does_not_command_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal; through a pipe every byte goes unchanged."""
    master, slave = pty.openpty()
    reader, writer = os.pipe()
    for end, expected in ((slave, "a\ufffd]0;owned\ufffd\ufffd[2J\ufffd[31m\ufffd\r\n\ufffd1m"),
                          (writer, "a" + ESCAPES)):  # fmt: skip
        with os.fdopen(end, "w", encoding="utf-8") as stdout:
            monkeypatch.setattr("sys.stdout", stdout)
            console.show("a" + ESCAPES)
            source = master if end == slave else reader
            assert os.read(source, 1000).decode() == expected
            monkeypatch.undo()
    os.close(master)
    os.close(reader)
