"""Parts of a conversation's prompt, and documents in it."""

from __future__ import annotations

import pytest
from lariat import LLM
from lariat.chat import chat_template
from lariat.chat.rendering import Rendering
from lariat.chat.segments import Segment, segments, with_documents
from lariat.errors import ChatError
from lariat.reuse.library import ChunkLibrary
from lariat.reuse.rearrange import find_document

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Who was at the fair?"}
ANSWER = {"role": "assistant", "content": "The old man."}
SECOND = {"role": "user", "content": "And who else?"}


def rendering_of(llm: LLM, name: str = "chatml") -> Rendering:
    return Rendering(llm.tokenizer, chat_template.choose(name, llm.gguf, llm.tokenizer))


def test_documents_stand_before_the_first_words_of_the_user():
    found = with_documents([SYSTEM, FIRST, ANSWER, SECOND], ["One.", "Two."])
    assert found[1]["content"] == "One.\n\nTwo.\n\nWho was at the fair?"
    assert found[::2] == [SYSTEM, ANSWER]
    assert FIRST["content"] == "Who was at the fair?"
    assert with_documents([FIRST], []) == [FIRST]
    with pytest.raises(ChatError, match="there is none"):
        with_documents([SYSTEM], ["One."])


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma"])
def test_the_parts_are_the_messages_in_order(llm, name):
    rendering = rendering_of(llm, name)
    messages = [FIRST, ANSWER, SECOND]
    ids = rendering.prompt(messages).ids
    found = segments(rendering, messages, ids)
    assert [one.index for one in found] == [0, 1, 2]
    assert [one.start for one in found] == [0, *(one.stop for one in found[:-1])]
    assert found[-1].stop == len(ids)
    for one, message in zip(found, messages, strict=True):
        assert message["content"] in llm.detokenize(ids[one.start : one.stop])


def test_documents_are_parts_of_their_own(raw, tmp_path):
    library = ChunkLibrary(tmp_path / "library")
    texts = ["The old man went to the fair. " * 8, "A girl sold red apples there. " * 8]
    chunks = [library.add(raw, f"d{i}", text) for i, text in enumerate(texts)]
    rendering = rendering_of(raw)
    messages = with_documents([FIRST, ANSWER, SECOND], texts)
    ids = rendering.prompt(messages).ids
    documents = [find_document(chunk, ids) for chunk in chunks]
    found = segments(rendering, messages, ids, [(d.start, d.stop) for d in documents])
    assert [one.document for one in found if one.document is not None] == [0, 1]
    assert [one.stop - one.start for one in found if one.document is not None] == [
        d.stop - d.start for d in documents
    ]
    assert sum(one.stop - one.start for one in found) == len(ids)
    assert [one.index for one in found] == [0, 0, 0, 0, 0, 1, 2]


def test_messages_that_a_template_refuses_alone_are_one_part(llm):
    class Strict:
        def prompt(self, messages):
            if len(messages) == 1:
                raise ChatError("a system prompt alone is no conversation")
            return rendering_of(llm).prompt(messages)

    messages = [SYSTEM, FIRST, ANSWER]
    ids = rendering_of(llm).prompt(messages).ids
    found = segments(Strict(), messages, ids)
    assert [(one.index, one.start) for one in found] == [(0, 0), (2, found[0].stop)]
    assert found[-1] == Segment(found[0].stop, len(ids), 2)
