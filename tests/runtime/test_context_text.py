"""Text that is put into contexts: it continues what stands before it, in whatever pieces it comes.

`tests/tokenizers/test_tokenizer_parts.py` has the rule for ids; here are all ways in.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat import DEMO_MODEL, LLM, ChunkLibrary, ContextError, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
STORY = "One day Tom found a key. It was red.\nTom had a plan, and 12 nuts.\n\n'Look!' he said."


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(DEMO_MODEL, cache="raw", n_ctx=512, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def ending() -> Iterator[LLM]:
    """A file that asks for EOS behind each text."""
    overrides = {"tokenizer.ggml.add_eos_token": True}
    with LLM(DEMO_MODEL, cache="raw", n_ctx=512, n_threads=1, overrides=overrides) as llm:
        yield llm


def ends_of_tokens(llm: LLM, text: str) -> list[int]:
    """The characters at which tokens of an ASCII text end."""
    ends, at = [], -1  # the blank in front
    for i in llm.tokenize(text, add_bos=False):
        at += len(llm.tokenizer.decode_token(i))
        if at > 0:
            ends.append(at)
    return ends


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_appended_pieces_are_the_whole(llm: LLM, seed: int) -> None:
    rng = random.Random(seed)
    text = STORY[rng.randrange(len(STORY) - 5) :]
    ends = ends_of_tokens(llm, text)
    cuts = sorted({0, *rng.sample(ends, rng.randint(0, len(ends))), len(text)})
    whole = llm.tokenize(text)
    with llm.context() as context:
        for start, stop in itertools.pairwise(cuts):
            if rng.random() < 0.3:  # a prompt that is read, and nothing written
                piece = text[start:stop]
                llm.generate(piece, SamplingParams(max_tokens=0), context=context)
            else:
                context.append(text[start:stop])
        assert context.tokens == whole
        assert llm.detokenize(context.tokens) == text


def test_generate_and_logits_continue_too(llm: LLM) -> None:
    first, rest = STORY[:7], STORY[7:]
    assert len(first) in ends_of_tokens(llm, STORY)
    done = llm.generate(STORY, GREEDY)
    with llm.context() as context:
        context.append(first)
        assert len(context.logits(rest)) == len(done.prompt_ids) - len(context)
        assert llm.generate(rest, GREEDY, context=context).token_ids == done.token_ids
        assert context.tokens[: len(done.prompt_ids)] == done.prompt_ids


def test_text_continues_what_a_stream_has_written(llm: LLM) -> None:
    with llm.context() as context:
        done = llm.generate(STORY, SamplingParams(max_tokens=5, temperature=0), context=context)
        context.append("s and nuts")
        assert llm.detokenize(context.tokens) == STORY + done.text + "s and nuts"


@pytest.mark.parametrize("at", ["start", "middle", "end"])
def test_inserted_text_continues_what_stands_before_it(llm: LLM, at: str) -> None:
    """At token 0 it begins the context, in front of BOS too."""
    with llm.context() as context:
        context.append("Tom had a plan")
        n = {"start": 0, "middle": 3, "end": len(context)}[at]
        before, behind = context.tokens[:n], context.tokens[n:]
        context.insert(n, "key")
        added = context.tokens[n : len(context) - len(behind)]
        assert context.tokens == [*before, *added, *behind]
        whole = llm.tokenize("key", add_bos=False)
        assert (added == whole) is (at == "start")
        assert b"".join(map(llm.tokenizer.decode_token, added)) == (
            b" key" if at == "start" else b"key"
        )


def test_behind_bos_alone_a_text_begins(llm: LLM) -> None:
    with llm.context() as context:
        context.append([llm.tokenizer.bos_id])
        context.append("Tom had")
        assert context.tokens == llm.tokenize("Tom had")
        context.truncate(0)
        context.append("")
        context.append("Tom had")
        assert context.tokens == llm.tokenize("Tom had")


# ---- chunks ----


def test_chunks_are_the_text_that_they_hold(llm: LLM, tmp_path: Path) -> None:
    """In any order, and with a question behind them, the tokens are those of the whole text."""
    library = ChunkLibrary(tmp_path)
    documents = {"a": "Rules: be kind.\n", "b": "Key 4 is red.\n", "c": " blank first\n", "d": "\n"}
    for name, text in documents.items():
        library.add(llm, name, text)
    for names in ("ab", "ba", "cab", "dcab", "aa", "bdd"):
        whole = "".join(documents[name] for name in names) + "Which key?"
        with llm.context() as context:
            for name in names:
                context.append(ChunkLibrary(tmp_path)[name], recompute=0)
            context.append("Which key?")
            assert context.tokens == llm.tokenize(whole), names


def test_a_chunk_behind_text_computes_what_the_blank_changes(llm: LLM, tmp_path: Path) -> None:
    """As many of its first tokens as are asked for, and at least those."""
    library = ChunkLibrary(tmp_path)
    text = "key of the red door is here and there.\n"
    chunk = library.add(llm, "a", text)
    with llm.context() as context, llm.context() as plain:
        assert context.append(chunk) == 0
        n_first = len(context)
        plain.append(text)
        assert context.tokens == plain.tokens
        n_changed = context.append(chunk)
        assert 1 <= n_changed <= 3
        assert (n_first, context.tokens[n_first:]) == llm.tokenizer.encode_behind(
            plain.tokens, text
        )
        context.truncate(n_first)
        assert context.append(chunk, recompute=n_changed + 4) == n_changed + 4
        context.truncate(n_first)
        assert context.append(chunk, recompute="all") == len(context) - n_first
        plain.append(text)
        assert context.tokens == plain.tokens
        expected = plain.logits("next")
        assert abs(context.logits("next") - expected).max() < 1e-3 * abs(expected).max()


def test_ids_of_a_chunk_stay_as_they_are(llm: LLM, tmp_path: Path) -> None:
    ids = llm.tokenize("key of the door", add_bos=False)
    library = ChunkLibrary(tmp_path)
    of_ids, of_text = library.add(llm, "ids", ids), library.add(llm, "text", "key of the door")
    assert of_ids.tokens == of_text.tokens == ids
    with llm.context() as context:
        context.append("Tom")
        before = context.tokens
        assert context.append(library["ids"]) == 0
        assert context.tokens == before + ids


@pytest.mark.parametrize("other", ["-1", "99999 5", "1 x", "1 99999999", "1e3 5", "1" * 5000])
def test_a_forged_beginning_is_refused(llm: LLM, tmp_path: Path, other: str) -> None:
    """The checksum does not cover metadata."""
    library = ChunkLibrary(tmp_path)
    chunk = library.add(llm, "a", "key of the door")
    content = chunk.path.read_bytes()
    assert content.count(b'"beginning": "') == 1
    start = content.index(b'"beginning": "') + len(b'"beginning": "')
    stop = content.index(b'"', start)
    header = content[8:start] + other.encode() + content[stop:]
    grown = len(other) - (stop - start)
    n_header = int.from_bytes(content[:8], "little") + grown
    # The header stays a multiple of pages long, by the blanks behind it.
    blanks = (-(n_header + 8)) % 4096
    end = header.index(b"}}", start) + 2
    head, rest = header[:end], header[end:]
    n_blanks = len(rest) - len(rest.lstrip(b" "))
    head += b" " * (n_blanks + blanks)
    chunk.path.write_bytes(len(head).to_bytes(8, "little") + head + rest.lstrip(b" "))
    with llm.context() as context:
        context.append("Tom")
        before = context.tokens
        with pytest.raises(ContextError, match="damaged"):
            context.append(ChunkLibrary(tmp_path)["a"])
        assert context.tokens == before


# ---- the end token of files that ask for one ----


def test_no_end_token_stands_within_a_context(ending: LLM, tmp_path: Path) -> None:
    llm, eos = ending, ending.tokenizer.eos_id
    assert llm.tokenize("Tom had")[-1] == eos, "a whole text has it"
    library = ChunkLibrary(tmp_path)
    library.add(llm, "a", "A red key.\n")
    with llm.context() as context:
        context.append(library["a"])
        context.append("Tom had")
        context.insert(2, " and")
        context.logits(" a plan")
        llm.generate(" a plan", SamplingParams(max_tokens=0), context=context)
        assert eos not in context.tokens
        assert llm.stream("Tom had", GREEDY).completion.prompt_ids[-1] != eos


def test_prompts_are_continued_as_without_an_end_token(llm: LLM, ending: LLM) -> None:
    for prompt in ("Tom had", ["Tom had", "One day"]):
        both = [each.generate(prompt, GREEDY) for each in (llm, ending)]
        texts = [[d.text for d in (one if isinstance(one, list) else [one])] for one in both]
        assert texts[0] == texts[1]


# ---- special tokens ----


def test_special_tokens_count_where_it_is_asked_for(llm: LLM, tmp_path: Path) -> None:
    """`</s>` is a token with parse_special, and four characters without."""
    eos, text = llm.tokenizer.eos_id, "Tom</s>had"
    library = ChunkLibrary(tmp_path)
    for special in (False, True):
        wanted = llm.tokenize(text, parse_special=special)
        assert wanted.count(eos) == special
        stream = llm.stream(text, GREEDY, parse_special=special)
        assert stream.completion.prompt_ids == wanted
        stream.close()
        assert llm.generate(text, GREEDY, parse_special=special).prompt_ids == wanted
        both = llm.generate([text, "x"], GREEDY, parse_special=special)
        assert both[0].prompt_ids == wanted
        chunk = library.add(llm, "a", text, parse_special=special)
        with llm.context() as context:
            assert len(context.logits(text, parse_special=special)) == len(wanted)
            context.append(text, parse_special=special)
            assert context.tokens == wanted
            context.insert(0, text, parse_special=special)
            assert context.tokens == wanted[1:] + wanted
            context.truncate(0)
            context.append(chunk)
            assert context.tokens == wanted
            context.append("</s>", parse_special=special)
            assert (context.tokens[-1] == eos) is special
            context.append("had")
            assert (context.tokens[-1] == llm.tokenize("had")[-1]) is special


def test_by_default_text_is_text(llm: LLM, tmp_path: Path) -> None:
    eos = llm.tokenizer.eos_id
    with llm.context() as context:
        context.append("a</s>")
        context.append(ChunkLibrary(tmp_path).add(llm, "a", "b</s>"))
        llm.generate("c</s>", GREEDY, context=context)
        assert eos not in context.tokens
