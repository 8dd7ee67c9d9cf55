"""Stop texts, and characters of several tokens: what of an answer is shown, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat import LLM, Completion, SamplingParams
from lariat.runtime.request import StopText

from tests.support.contexts import byte_ids
from tests.support.model_files import write_llama

EOS = 2


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_ctx=256, n_vocab=288)


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_threads=1, type_k="f32", type_v="f32") as llm:
        yield llm
        health = llm.health()
        assert health.n_free == health.n_blocks, "blocks leaked"
        assert not health.n_running + health.n_waiting


def show(llm: LLM, script, text: str, **params) -> tuple[list[str], Completion]:
    script([5], [*byte_ids(text), EOS])
    stream = llm.stream([5], SamplingParams(**params))
    return list(stream), stream.completion


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("say END now", ("END",), "say "),
        ("say END now", "END", "say "),
        ("END", ("END",), ""),
        ("say ENENDx", ("END",), "say EN"),
        ("abcabd", ("abd",), "abc"),
        ("one\n\ntwo", ("\n\n", "never"), "one"),
        ("both x first y", ("y", "x"), "both "),
        ("über ßß!", ("ßß",), "über "),
        ("日本語", ("語",), "日本"),
    ],
)
def test_a_stop_text_split_over_tokens_ends_the_text(llm, script, text, stop, shown):
    pieces, done = show(llm, script, text, stop=stop)
    assert "".join(pieces) == done.text == shown
    assert done.finish_reason == "stop"
    assert done.token_ids == byte_ids(text)[: len(done.token_ids)], "no token after the stop text"
    assert llm.detokenize(done.token_ids).endswith(stop)


@pytest.mark.parametrize(("n", "reason"), [(7, "length"), (-1, "stop")])
def test_the_beginning_of_a_stop_text_is_shown_when_the_rest_never_comes(llm, script, n, reason):
    pieces, done = show(llm, script, "say ENDlessly"[:7], stop=("ENDS",), max_tokens=n)
    assert "".join(pieces) == done.text == "say END"
    assert done.finish_reason == reason


def test_a_stop_text_at_the_last_token_is_a_stop(llm, script):
    _, done = show(llm, script, "say END", stop=("END",), max_tokens=7)
    assert (done.text, done.finish_reason) == ("say ", "stop")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_texts_follow_a_plain_search(pieces, stops):
    stop, shown, total = StopText(tuple(stops)), "", ""
    for piece in pieces:
        total += piece
        text, met = stop.feed(piece)
        shown += text
        found = [(total.find(s), i, s) for i, s in enumerate(stops) if s in total]
        assert met == (min(found)[2] if found else "")
        if met:
            assert shown == total[: min(found)[0]]
            return
        assert total.startswith(shown)
        held = total[len(shown) :]
        assert not held or any(s.startswith(held) for s in stops), "holds back more than it must"
    assert shown + stop.flush() == total


def test_pieces_are_whole_characters(llm, script):
    text = "aé日本😀z"
    pieces, done = show(llm, script, text)
    assert pieces == list(text)
    assert done.text == text


def test_a_character_cut_by_the_limit_is_replaced_once(llm, script):
    pieces, done = show(llm, script, "a😀", max_tokens=3)
    assert pieces == ["a", "\N{REPLACEMENT CHARACTER}"]
    assert done.text == "".join(pieces)
    assert len(done.token_ids) == 3
    _, done = show(llm, script, "a😀", max_tokens=3, stop=("\N{REPLACEMENT CHARACTER}",))
    assert (done.text, done.finish_reason) == ("a", "stop")
