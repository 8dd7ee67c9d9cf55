"""Grammars in the tokens of vocabularies: which tokens may come, judged by trying each one."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lariat import Grammar, LariatError
from lariat._masks import forbid
from lariat.formats.gguf import GGUFFile
from lariat.structured.matcher import Grammars, Matcher
from lariat.tokenizers.tokenizer import Tokenizer

from tests.support.model_files import write_gguf
from tests.support.vocabularies import BYTE_CHARACTERS, BYTES, NORMAL

CONTROL, UNKNOWN, USER_DEFINED, UNUSED = 3, 2, 4, 5
WORDS = ["yes", "yet", "ye", "no", "n", "y", "es", "e", "s", "t", "o", "é", "日本", "日", " yes"]
WORDS += [" ", "{", '"', '{"', '":', ":", "1", "12", "}", ",", "\n", "a", "b", "ab", "aé"]


def byte_level(texts: list[str]) -> dict:
    spelled = ["".join(BYTE_CHARACTERS[byte] for byte in text.encode()) for text in texts]
    tokens = list(dict.fromkeys([*BYTE_CHARACTERS, *spelled]))
    marks = ["<|end|>x", "<|im_end|>", "<tool>", "[CALL]", "<unused>"]
    types = [NORMAL] * len(tokens) + [CONTROL, CONTROL, USER_DEFINED, CONTROL, UNUSED]
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*tokens, *marks],
        "token_type": types,
        "merges": ["q x"],
        "eos_token_id": len(tokens) + 1,
    }


def spaced(texts: list[str], model: str) -> dict:
    head = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<tool>", USER_DEFINED)]
    head += [("[CALL]", CONTROL), ("<unused>", UNUSED)] + [(text, kind) for text, _, kind in BYTES]
    pieces = list(dict.fromkeys(text.replace(" ", "\u2581") for text in texts))
    keys = {
        "model": model,
        "tokens": [text for text, _ in head] + pieces,
        "token_type": [kind for _, kind in head] + [NORMAL] * len(pieces),
        "scores": [-float(i) for i in range(len(head) + len(pieces))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return keys if model == "llama" else keys | {"merges": ["q x"]}


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma4", "gemma4, no end"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    kind = request.param
    keys = byte_level(WORDS) if kind == "gpt2" else spaced(WORDS, kind.removesuffix(", no end"))
    if kind.endswith("no end"):
        keys["tokens"] = ["<|x|>" if text == "</s>" else text for text in keys["tokens"]]
        keys["eos_token_id"] = None
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}
    path = write_gguf(tmp_path_factory.mktemp(kind[:5]) / "v.gguf", metadata)
    with GGUFFile(path) as file:
        made = Tokenizer.from_gguf(file)
    assert bool(made.eog_ids) != kind.endswith("no end")
    return made


def allowed(matcher: Matcher, n_vocab: int) -> set[int]:
    logits = np.zeros(n_vocab, np.float32)
    matcher.mask(logits)
    assert set(np.unique(logits)) <= {0.0, -np.inf}
    return set(np.flatnonzero(logits == 0).tolist())


def judged(tokenizer: Tokenizer, so_far: bytes, may_begin: Callable[[bytes], bool]) -> set[int]:
    """Tokens whose bytes some complete text may go on with. Control tokens have none. Of tokens
    with the same text, the one that is no byte token."""
    texts = {tokenizer.decode_token(i): i for i in range(tokenizer.n_vocab)}
    return {i for text, i in texts.items() if text and may_begin(so_far + text)}


CHOICES = ["yes", "yet", "no", "日本", "aéb", ' "y": 12', "<tool>", "</s>", "[CALL]", "n\n"]


def test_allowed_tokens_are_those_that_some_choice_goes_on_with(tokenizer):
    data = [text.encode() for text in CHOICES]
    grammars = Grammars(tokenizer)
    grammar = grammars.of(Grammar.choices(CHOICES))
    n_states = 0

    def visit(tokens: list[int], so_far: bytes) -> None:
        nonlocal n_states
        n_states += 1
        matcher = grammar.start()
        for token in tokens:
            matcher.accept(token)
        rest = [text[len(so_far) :] for text in data if text.startswith(so_far)]
        if rest == [b""]:
            assert matcher.is_done
            assert matcher.forced() == []
            assert allowed(matcher, tokenizer.n_vocab) == set(tokenizer.eog_ids)
            return
        assert not matcher.is_done
        expected = judged(
            tokenizer, so_far, lambda text: any(choice.startswith(text) for choice in data)
        )
        ends = set(tokenizer.eog_ids) if b"" in rest else set()
        forced, found = matcher.forced(), allowed(matcher, tokenizer.n_vocab)
        written = b"".join(map(tokenizer.decode_token, forced))
        assert all(text.startswith(written) for text in rest)
        if len(rest) == 1:  # the token comes to which the text that must follow is tokenized
            expected &= found
            assert len(found) == 1
        assert found == expected | ends
        if n_states < 400:
            for token in expected:
                visit([*tokens, token], so_far + tokenizer.decode_token(token))

    visit([], b"")
    assert n_states > 50


def test_an_expression_in_bytes_of_characters(tokenizer):
    """Tokens that end within a character may come if the character may."""
    grammar = Grammars(tokenizer).of(Grammar.regex("(日|é|y)+"))
    firsts = [text.encode() for text in "日éy"]
    whole = re.compile("[日éy]*")

    def may_begin(text: bytes) -> bool:
        for cut in range(4):
            start, rest = text[: len(text) - cut], text[len(text) - cut :]
            try:
                decoded = start.decode()
            except UnicodeDecodeError:
                continue
            if whole.fullmatch(decoded):
                return not rest or any(first.startswith(rest) for first in firsts)
        return False

    rng = np.random.default_rng(0)
    for _ in range(20):
        matcher, so_far = grammar.start(), b""
        for _ in range(12):
            expected = judged(tokenizer, so_far, may_begin)
            found = allowed(matcher, tokenizer.n_vocab)
            assert found - tokenizer.eog_ids == expected
            is_whole = bool(so_far) and may_begin(so_far) and not _ends_within(so_far)
            assert (found >= tokenizer.eog_ids) == (is_whole or not tokenizer.eog_ids)
            token = int(rng.choice(sorted(expected)))
            matcher.accept(token)
            so_far += tokenizer.decode_token(token)


def _ends_within(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False


def test_forced_tokens_are_those_that_the_text_is_tokenized_to(tokenizer):
    grammar = Grammars(tokenizer).of(Grammar.regex(r'\{"yes": [0-9]+\}'))
    matcher = grammar.start()
    tokens = []
    while forced := matcher.forced():
        for token in forced:
            matcher.accept(token)
        tokens += forced
    text = b"".join(map(tokenizer.decode_token, tokens))
    assert b'{"yes": '.startswith(text)
    assert len(text) >= 4
    behind = tokenizer.encode("1", add_bos=False)[-1:] if tokenizer.add_space_prefix else []
    _, ids = tokenizer.encode_behind(behind, '{"yes": 12}', add_bos=False)
    assert ids[: len(tokens)] == tokens


def test_control_tokens_come_by_their_names_alone(tokenizer):
    grammars = Grammars(tokenizer)
    call = next(i for i in range(tokenizer.n_vocab) if tokenizer.piece(i) == "[CALL]")
    anything = grammars.of(Grammar.regex(r"(?s:.)+")).start()
    found = allowed(anything, tokenizer.n_vocab)
    assert not found & {i for i in range(tokenizer.n_vocab) if not tokenizer.decode_token(i)}
    named = grammars.of(Grammar.lark(f'start: <[{call}]> "yes"')).start()
    assert allowed(named, tokenizer.n_vocab) == {call}
    assert named.forced()[0] == call
    with pytest.raises(ValueError, match="unknown special token"):
        grammars.of(Grammar.lark("start: <|nothing|>"))


def test_an_error_stays(tokenizer):
    matcher = Grammars(tokenizer).of(Grammar.choices(["yes", "no"])).start()
    wrong = next(i for i in range(tokenizer.n_vocab) if tokenizer.decode_token(i) == b"a")
    with pytest.raises(LariatError):
        matcher.accept(wrong)
    logits = np.ones(tokenizer.n_vocab, np.float32)
    for again in (
        lambda: matcher.mask(logits),
        matcher.forced,
        lambda: matcher.is_done,
        lambda: matcher.accept(wrong),
    ):
        with pytest.raises(LariatError):
            again()


def test_texts_of_one_grammar_do_not_disturb_each_other(tokenizer):
    grammar = Grammars(tokenizer).of(Grammar.choices(["yes", "no"]))
    first, second = grammar.start(), grammar.start()
    (y,) = judged(tokenizer, b"", lambda text: text == b"y")
    before = allowed(second, tokenizer.n_vocab)
    first.accept(y)
    assert (
        allowed(second, tokenizer.n_vocab) == before == allowed(grammar.start(), tokenizer.n_vocab)
    )
    assert allowed(first, tokenizer.n_vocab) != before


def test_more_logits_than_tokens(tokenizer):
    """Some files have rows that stand for no token."""
    n_vocab = tokenizer.n_vocab + 70
    matcher = Grammars(tokenizer).of(Grammar.choices(["yes"])).start()
    found = allowed(matcher, n_vocab)
    assert found
    assert max(found) < tokenizer.n_vocab


def test_threads_share_the_grammars_of_a_model(tokenizer):
    grammars = Grammars(tokenizer)
    found: list[set[int]] = []

    def work(i: int) -> None:
        for k in range(40):  # more than are kept
            matcher = grammars.of(Grammar.choices(["yes", f"no{(i + k) % 40}"])).start()
            found.append(allowed(matcher, tokenizer.n_vocab))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert all(tokens == found[0] for tokens in found)


# ---- the compiled loop ----


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 65, 1000, 49_152])
def test_forbid(n):
    rng = np.random.default_rng(n)
    for share in (0, 0.01, 0.5, 0.99, 1):
        may_come = rng.random(n) < share
        bits = np.zeros((n + 31) // 32 * 32, bool)
        bits[:n] = may_come
        bits[n:] = True  # bits behind the last token do not matter
        mask = np.packbits(bits, bitorder="little").view(np.uint32)
        logits = rng.standard_normal(n).astype(np.float32)
        expected = np.where(may_come, logits, -np.inf).astype(np.float32)
        forbid(logits, mask)
        assert np.array_equal(logits, expected)


def test_forbid_refuses_a_mask_of_another_size():
    logits = np.zeros(33, np.float32)
    for n_words in (1, 3):
        with pytest.raises(ValueError, match=f"a mask of {n_words} words for 33 tokens"):
            forbid(logits, np.zeros(n_words, np.uint32))
    assert not logits.any()


def test_the_file_is_read(tmp_path: Path):
    """The judge itself: it knows the bytes of all three types of vocabularies."""
    keys = {f"tokenizer.ggml.{k}": v for k, v in spaced(WORDS, "llama").items()}
    with GGUFFile(write_gguf(tmp_path / "v.gguf", keys)) as file:
        tokenizer = Tokenizer.from_gguf(file)
    found = judged(tokenizer, b"y", lambda text: b"yes".startswith(text))
    assert {tokenizer.piece(i) for i in found} == {"e", "es"}
