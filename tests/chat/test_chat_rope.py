"""Chats whose answers are read with a RoPE of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from lariat import LLM, Chat, RopeConfig, SamplingParams

from tests.support.chats import ENDLESS, GREEDY, N_VOCAB, asked
from tests.support.model_files import chat_metadata, write_llama

YARN, EXTEND = RopeConfig("yarn", 3.0), RopeConfig(grp_attn_n=4, grp_attn_w=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "chat.gguf"
    return write_llama(path, n_vocab=N_VOCAB, n_ctx=256, metadata=chat_metadata(N_VOCAB))


def test_each_answer_is_read_as_asked_for(model: Path) -> None:
    message = "the hat and the man " * 8
    with LLM(model, cache="raw") as llm:
        with Chat(llm, template="chatml", params=GREEDY, rope_read=YARN) as chat:
            reply = chat.say(message)
            text = "".join(reply)
            assert reply.rope == YARN.over(llm.config.rope)
        ids = asked(llm, ("user", message))
        params = SamplingParams(8, 0.0, logit_bias=GREEDY.logit_bias, stop=("<|im_end|>",))
        assert text == llm.generate(ids, params, rope_read=YARN).text
        with Chat(llm, template="chatml", params=GREEDY, rope_read=[YARN, EXTEND]) as chat:
            for said in (message, "the man"):
                reply = chat.say(said)
                "".join(reply)
                assert reply.timings.n_tried > 0
                assert reply.rope in [rope.over(llm.config.rope) for rope in (YARN, EXTEND)]
        with Chat(llm, template="chatml", params=GREEDY) as chat:
            reply = chat.say(message)
            "".join(reply)
            assert reply.rope is None


def test_an_answer_that_outlives_a_turn_keeps_its_setting(model: Path) -> None:
    """When the oldest turn is forgotten, a new stream goes on with the answer."""
    with (
        LLM(model, cache="raw", n_ctx=160) as llm,
        Chat(llm, template="chatml", params=GREEDY, rope_read=[YARN, EXTEND]) as chat,
    ):
        "".join(chat.say("the hat and the man"))
        reply = chat.say("the man", ENDLESS)
        next(reply)
        tried, rope = None, None
        for _ in reply:
            tried = tried or reply.timings.n_tried
            rope = rope or reply.rope
            if chat.n_forgotten and len(reply.text) > 300:
                break
        reply.close()
        assert chat.n_forgotten
        assert reply.rope == rope
        assert reply.timings.n_tried == tried, "it was chosen once"


@pytest.mark.parametrize("odd", ["other", 3, []])
def test_a_chat_refuses_other_values(model: Path, odd: object) -> None:
    with LLM(model, cache="raw") as llm, pytest.raises(ValueError, match="rope_read"):
        Chat(llm, template="chatml", rope_read=odd)
    with LLM(model) as llm, pytest.raises(ValueError, match="raw cache"):
        Chat(llm, template="chatml", rope_read="auto")
