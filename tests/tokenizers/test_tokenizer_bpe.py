"""Byte-level BPE: against ids that llama.cpp gave, and against a slow reference of its rules.

`data/bpe_llama_cpp.json` holds a vocabulary trained on made-up text in many scripts, texts, and
their ids by llama-cpp-python, whose version it names.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat.errors import GGUFError, ModelError
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.pre_tokenizers import SCHEMES
from lariat.tokenizers.tokenizer import Tokenizer

from tests.support.model_files import write_gguf
from tests.support.vocabularies import BYTE_CHARACTERS

JUDGED = json.loads((Path(__file__).parents[1] / "data" / "bpe_llama_cpp.json").read_text())
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

Make = Callable[..., Tokenizer]


FEW = ["q x"]  # merges; a GGUF file cannot hold an empty array


def spell(text: str) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in text.encode())


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(
        tokens: Sequence[Any], merges: Any, types: Sequence[int] | None = None, **keys: Any
    ) -> Tokenizer:
        metadata = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": list(tokens),
            "tokenizer.ggml.token_type": None if types is None else list(types),
            "tokenizer.ggml.merges": merges,
            **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
        }
        path = write_gguf(tmp_path / "v.gguf", metadata)
        with GGUFFile(path) as file:
            return Tokenizer.from_gguf(file)

    return make


@pytest.fixture
def judged(make: Make) -> Callable[..., Tokenizer]:
    def judged(pre: str, **keys: Any) -> Tokenizer:
        ends = {"bos_token_id": JUDGED["bos"], "eos_token_id": JUDGED["eos"]}
        return make(
            JUDGED["tokens"], JUDGED["merges"], JUDGED["types"], **{"pre": pre, **ends, **keys}
        )

    return judged


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """The vocabulary that llama.cpp was run with, for each pre-tokenizer."""
    path = write_gguf(
        tmp_path_factory.mktemp("every") / "v.gguf",
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": JUDGED["tokens"],
            "tokenizer.ggml.token_type": JUDGED["types"],
            "tokenizer.ggml.merges": JUDGED["merges"],
            "tokenizer.ggml.add_bos_token": False,
        },
    )
    tokenizers = {}
    for pre in JUDGED["ids"]:
        with GGUFFile(path, {"tokenizer.ggml.pre": pre}) as file:
            tokenizers[pre] = Tokenizer.from_gguf(file)
    return tokenizers


# ---- against llama.cpp ----


@pytest.mark.parametrize("pre", JUDGED["ids"])
def test_ids_are_those_of_llama_cpp(judged: Any, pre: str) -> None:
    tokenizer = judged(pre)
    for text, expected in zip(JUDGED["texts"], JUDGED["ids"][pre], strict=True):
        assert tokenizer.encode(text, parse_special=True) == expected, ascii(text)


def test_the_schemes_do_not_all_cut_alike() -> None:
    """Otherwise the test above would not notice a wrong scheme."""
    different = {json.dumps(ids) for ids in JUDGED["ids"].values()}
    assert len(different) == len(JUDGED["ids"])


def test_all_end_tokens_of_llama_3_end(judged: Any) -> None:
    tokenizer = judged("llama-bpe")
    assert sorted(tokenizer.eog_ids) == JUDGED["eog"]
    ends = {tokenizer.piece(i) for i in tokenizer.eog_ids}
    assert ends >= {"<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "[PAD]"}


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("llama3", "llama-bpe"),
        ("llama-v3", "llama-bpe"),
        ("pixtral", "llama-bpe"),
        ("deepseek-r1-qwen", "qwen2"),
        ("starcoder", "smollm"),
        ("phi-2", "gpt-2"),
        ("olmo", "gpt-2"),
        ("llama4", "gpt-4o"),
        ("minimax-m2", "gpt-4o"),
        ("cohere2moe", "tiny_aya"),
        ("bailingmoe", "qwen2"),
        ("hunyuan-dense", "deepseek-v3"),
        ("bloom", "poro-chat"),
    ],
)
def test_aliases(judged: Any, alias: str, name: str) -> None:
    tokenizer = judged(alias)
    for text, expected in zip(JUDGED["texts"], JUDGED["ids"][name], strict=True):
        assert tokenizer.encode(text, parse_special=True) == expected


@pytest.mark.parametrize("pre", ["afmoe", "superbpe", "tiny_aya"])
def test_long_numbers_are_cut_into_threes_from_their_end(judged: Any, pre: str) -> None:
    """In steps of larger groups, in linear time; none of them may be seen."""
    tokenizer = judged(pre)
    for n in (2, 3, 4, 5, 6, 47, 48, 49, 1535, 1536, 1538, 49_151, 49_152, 49_153, 100_000):
        number = "7" * n
        words = [number[: n % 3]] * (n % 3 > 0) + [number[i : i + 3] for i in range(n % 3, n, 3)]
        expected = [i for word in words for i in tokenizer.encode(word, add_bos=False)]
        assert tokenizer.encode(number, add_bos=False) == expected, n


def test_every_expression_is_judged() -> None:
    judged = {SCHEMES[pre].expressions for pre in (*JUDGED["ids"], "bailingmoe")}
    assert {scheme.expressions for scheme in SCHEMES.values()} == judged


def test_glm_has_no_begin_token_unless_the_file_names_one(judged: Any) -> None:
    assert judged("glm4", bos_token_id=None).bos_id is None
    assert judged("gpt-2", bos_token_id=None).bos_id == 11
    assert judged("glm4").bos_id == JUDGED["bos"]
    for text, expected in zip(JUDGED["texts"], JUDGED["ids"]["llama-bpe"], strict=True):
        assert judged("glm4").encode(text, parse_special=True) == expected[1:]


def test_a_file_without_pre_gets_the_default(judged: Any) -> None:
    tokenizer = judged("default")
    silent = judged(None)
    for text in JUDGED["texts"]:
        assert silent.encode(text) == tokenizer.encode(text)


# ---- against a slow reference ----


def reference_merge(tokens: Sequence[str], merges: Sequence[str], word: str) -> list[int]:
    """llama.cpp's rule in the slowest way: join the pair of lowest rank, leftmost first."""
    ids = {token: i for i, token in enumerate(tokens)}
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        ranks.setdefault((left, right), rank)
    symbols = list(spell(word))
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not pairs:
            break
        i = min(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    out: list[int] = []
    for symbol in symbols:
        out += [ids[s] for s in ([symbol] if symbol in ids else symbol) if s in ids and s != "Ġ"]
    return out


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("complete", [True, False])
def test_ids_are_those_of_the_reference(make: Make, seed: int, complete: bool) -> None:
    """Random merges; unless `complete`, many pass through texts that are not tokens."""
    rng = random.Random(seed)
    letters = "abcd"
    tokens = list(BYTE_CHARACTERS)
    if not complete:
        tokens.remove("d")  # a byte without a token
    known = list(letters)
    merges = []
    for _ in range(60):
        left, right = rng.choice(known), rng.choice(known)
        merges.append(f"{left} {right}")
        if len(left + right) < 9:
            known.append(left + right)
    merges += rng.sample(merges, 5)  # twice: the first counts
    for text in dict.fromkeys("".join(merge.split()) for merge in merges):
        if complete or rng.random() < 0.6:
            tokens.append(text)
    tokenizer = make(tokens, merges)
    for _ in range(40):
        word = "".join(rng.choices(letters, k=rng.choice([1, 2, 7, 30])))
        assert tokenizer.encode(word) == reference_merge(tokens, merges, word), word


def test_a_word_that_is_a_token_is_not_merged_where_the_file_says_so(make: Make) -> None:
    tokens = [*BYTE_CHARACTERS, "ab", "abc"]  # no merge leads to abc
    assert make(tokens, ["a b"]).encode("abc") == [256, BYTE_CHARACTERS.index("c")]
    llama3 = {"pre": "llama-bpe", "bos_token_id": 257, "add_bos_token": False}
    assert make(tokens, ["a b"], **llama3).encode("abc") == [257]
    assert make(tokens, ["a b"], **llama3).encode("abcc")[0] == 256


# ---- special tokens ----


def test_special_tokens_only_when_asked_for(judged: Any) -> None:
    tokenizer = judged("llama-bpe")
    eot = JUDGED["tokens"].index("<|eot_id|>")
    tool = JUDGED["tokens"].index("<tool>")
    plain = tokenizer.encode("a<|eot_id|><tool>")
    assert eot not in plain
    assert plain[-1] == tool  # user-defined tokens are always found
    assert tokenizer.decode(plain) == "a<|eot_id|><tool>"
    parsed = tokenizer.encode("a<|eot_id|><tool>", parse_special=True)
    assert parsed[-2:] == [eot, tool]
    assert tokenizer.decode(parsed) == "a<tool>"


def test_text_cannot_be_merged_into_control_tokens(make: Make) -> None:
    tokens = [*BYTE_CHARACTERS, "ab", "abc"]
    types = [NORMAL] * 257 + [CONTROL]
    tokenizer = make(tokens, ["a b", "ab c"], types)
    a, b, c = (BYTE_CHARACTERS.index(letter) for letter in "abc")
    assert tokenizer.encode("abc") == [256, c]
    assert tokenizer.encode("abc", parse_special=True) == [257]
    whole = make(tokens, ["a b"], [NORMAL] * 256 + [UNKNOWN] * 2, pre="qwen2")
    assert whole.encode("abc") == [a, b, c]


def test_bos_follows_the_scheme_and_the_metadata(make: Make) -> None:
    a = BYTE_CHARACTERS.index("a")
    assert make(BYTE_CHARACTERS, FEW).encode("a") == [a]
    assert make(BYTE_CHARACTERS, FEW, pre="llama-bpe", bos_token_id=7).encode("a") == [7, a]
    assert make(BYTE_CHARACTERS, FEW, pre="tekken").encode("a") == [11, a]  # llama.cpp's default id
    silent = make(BYTE_CHARACTERS, FEW, pre="llama-bpe", add_bos_token=False, add_eos_token=True)
    assert silent.encode("a") == [a, 11]
    assert make(BYTE_CHARACTERS, FEW, add_bos_token=True, bos_token_id=3).encode("", True) == [3]


def test_harmony_messages_do_not_end_at_every_end_mark(make: Make) -> None:
    marks = ["<|end|>", "<|return|>", "<|call|>", "<|channel|>"]
    tokenizer = make(
        [*BYTE_CHARACTERS, *marks], FEW, [NORMAL] * 256 + [CONTROL] * 4, eos_token_id=257
    )
    assert tokenizer.eog_ids == {257, 258}
    assert tokenizer.decode([256, 257, 258, 259]) == "<|end|><|channel|>"
    alone = make(
        [*BYTE_CHARACTERS, *marks[:2]], FEW, [NORMAL] * 256 + [CONTROL] * 2, eos_token_id=257
    )
    assert alone.eog_ids == {256, 257}


# ---- decoding ----


@pytest.mark.parametrize("pre", ["llama-bpe", "smollm", "default", "deepseek-llm"])
def test_text_comes_back(judged: Any, pre: str) -> None:
    tokenizer = judged(pre)
    for text in JUDGED["texts"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        decoder = tokenizer.decoder()
        assert "".join([decoder.feed(i) for i in ids]) + decoder.flush() == text


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), again=st.integers(1, 3))
@pytest.mark.parametrize("pre", ["llama-bpe", "tekken", "deepseek-v3", "default"])
def test_any_text_comes_back(every: Mapping[str, Tokenizer], pre: str, text: str, again: int):
    tokenizer, text = every[pre], text * again
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.n_vocab for i in ids)
    assert tokenizer.decode(ids) == text
    decoder = tokenizer.decoder()
    assert "".join([decoder.feed(i) for i in ids]) + decoder.flush() == text


def test_streaming_ends_an_incomplete_character(make: Make) -> None:
    tokenizer = make(BYTE_CHARACTERS, FEW)
    decoder = tokenizer.decoder()
    fed = [decoder.feed(byte) for byte in "é😀".encode()]
    assert fed == ["", "é", "", "", "", "😀"]
    assert [decoder.feed(byte) for byte in (0xF0, 0x9F)] == ["", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.feed(0x41) == "A"
    assert tokenizer.decode([0xF0, 0x9F, 0x41, 0xFF]) == "\ufffdA\ufffd"


def test_what_tokens_show(make: Make) -> None:
    extra = ["Ġhi", "Ġhi<", "<0x41>", "gone", "日", b"\xff"]
    types = [NORMAL, USER_DEFINED, BYTE, UNUSED, NORMAL, NORMAL]
    tokenizer = make([*BYTE_CHARACTERS, *extra], FEW, [NORMAL] * 256 + types)
    shown = [tokenizer.decode_token(256 + i) for i in range(6)]
    assert shown == [b" hi", "Ġhi<".encode(), b"A", b"", "日".encode(), "\ufffd".encode()]
    assert tokenizer.piece(256) == "Ġhi"
    assert [tokenizer.decode_token(i) for i in range(256)] == [bytes([i]) for i in range(256)]


def test_long_texts_are_cut_where_words_end(judged: Any, monkeypatch: Any) -> None:
    from lariat.tokenizers import bpe

    text = "\n".join(JUDGED["texts"] * 2)
    for pre in JUDGED["ids"]:
        tokenizer = judged(pre)
        whole = tokenizer.encode(text)
        with monkeypatch.context() as patch:
            patch.setattr(bpe, "_PART", 7)
            assert len(list(bpe.parts(text, re.compile(SCHEMES[pre].seam)))) > 10
            assert tokenizer.encode(text) == whole, pre


# ---- bad files ----


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": [1, 2]}, "merges is not an array of strings"),
        ({"merges": "a b"}, "merges is not an array of strings"),
        ({"token_type": [1] * 255}, "token_type has 255 values"),
        ({"token_type": [6] + [1] * 255}, "byte token 0 is"),
        ({"pre": 7}, "tokenizer.ggml.pre is 7, expected a string"),
        ({"bos_token_id": 256}, "bos_token_id is 256, expected 0 to 255"),
    ],
)
def test_bad_metadata(make: Make, keys: dict[str, Any], message: str) -> None:
    keys = {"merges": FEW, "types": None, **keys}
    with pytest.raises(GGUFError, match=message) as caught:
        make(BYTE_CHARACTERS, keys.pop("merges"), keys.pop("types"), **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pre", ["klingon", "", "a\n\x1b[2Jb"])
def test_an_unknown_pre_tokenizer_is_named(make: Make, pre: str) -> None:
    with pytest.raises(ModelError, match=r"is not supported, .*llama-bpe") as caught:
        make(BYTE_CHARACTERS, FEW, pre=pre)
    assert repr(pre) in str(caught.value)
    assert "--override-kv tokenizer.ggml.pre=str:NAME" in str(caught.value)


def test_pre_can_be_overridden(tmp_path: Path) -> None:
    keys = {
        "model": "gpt2",
        "pre": "klingon",
        "tokens": BYTE_CHARACTERS,
        "merges": ["1 2", "12 3", "3 4"],
    }
    path = write_gguf(
        tmp_path / "v.gguf",
        {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
        | {"tokenizer.ggml.tokens": [*BYTE_CHARACTERS, "12", "123", "34"]},
    )
    with GGUFFile(path, {"tokenizer.ggml.pre": "qwen2"}) as file:
        assert Tokenizer.from_gguf(file).encode("123") == [BYTE_CHARACTERS.index(d) for d in "123"]
    with GGUFFile(path, {"tokenizer.ggml.pre": "gpt-2"}) as file:
        assert Tokenizer.from_gguf(file).encode("1234") == [257, BYTE_CHARACTERS.index("4")]


def test_odd_vocabularies(make: Make) -> None:
    odd = ["", "dup", "dup", b"\xff\xfe", "sp ace", "new\nline", "n\0n"]
    merges = ["d u", "du p", "oops", "", " ", "a ", " b", "a b c", "x \n", b"\xff \xfe"]
    tokenizer = make([*BYTE_CHARACTERS, *odd, "du"], merges)
    assert tokenizer.encode("dup") == [258]  # the last of two
    for text in ("dup", "new\nline", "n\0n", "sp ace", "oops", "a b c", "ÿþ"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    only = make(["a"], ["a a"], bos_token_id=0)
    assert only.encode("aab") == [0, 0]  # a byte without a token is lost, as in llama.cpp
    assert only.encode(" é") == []


def test_only_the_library_that_a_file_needs_is_imported(tmp_path: Path) -> None:
    from tests.support.model_files import vocabulary_metadata

    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": BYTE_CHARACTERS, "merges": ["a b"]}
    bpe = write_gguf(tmp_path / "b.gguf", {f"tokenizer.ggml.{k}": v for k, v in keys.items()})
    spm = write_gguf(tmp_path / "s.gguf", vocabulary_metadata(300))
    code = (
        "import sys; from lariat import GGUFFile, Tokenizer; "
        "Tokenizer.from_gguf(GGUFFile(sys.argv[1])); "
        "print([m for m in ('tokenizers', 'sentencepiece') if m in sys.modules])"
    )
    for path, expected in ((bpe, "['tokenizers']"), (spm, "['sentencepiece']")):
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr
