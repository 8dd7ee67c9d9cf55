"""A long conversation with a real model: SmolLM2, in Python, through a pipe and in a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lariat import LLM, Chat, SamplingParams

MODEL = Path(__file__).parents[2] / ".real-models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not MODEL.exists(), reason=f"{MODEL.name} is not in .real-models/"),
]

N_TURNS, N_CTX, N_ANSWER = 30, 256, 12
SAID = [f"Name a thing that is older than {i} years, please." for i in range(N_TURNS)]
PARAMS = SamplingParams(temperature=0, max_tokens=N_ANSWER)
FLAGS = ("-c", str(N_CTX), "-n", str(N_ANSWER), "--temp", "0")
# What the file's template writes if there is no system prompt in front.
DEFAULT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, n_ctx=N_CTX) as llm:
        yield llm


@pytest.fixture(scope="module")
def answers(llm: LLM) -> list[str]:
    """The answers of a conversation in which, turn by turn, the tokens in the context are those of
    the conversation written anew: the answers as they were sampled, everything else tokenized."""
    answers: list[str] = []
    sampled: list[list[int]] = []
    with Chat(llm, params=PARAMS) as chat:
        for text in SAID:
            reply = chat.say(text)
            answers.append("".join(reply))
            sampled.append(reply.token_ids)
            first = chat.n_forgotten // 2
            expected, piece = [], DEFAULT + "<|im_end|>\n"
            for said, ids in zip(SAID[first : len(answers)], sampled[first:], strict=True):
                piece += f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
                expected += llm.tokenizer.encode(piece, add_bos=False, parse_special=True) + ids
                piece = "<|im_end|>\n"
            assert chat.context.tokens == expected
            assert len(expected) <= N_CTX
        assert chat.n_forgotten > N_TURNS
        assert [m["content"] for m in chat.messages] == [
            text for turn in zip(SAID, answers, strict=True) for text in turn
        ]
    return answers


def test_thirty_turns(llm: LLM, answers: list[str]) -> None:
    assert len(answers) == N_TURNS
    assert all(answer.strip() for answer in answers)
    # The first turn is one of an empty context.
    with Chat(llm, params=PARAMS) as chat:
        assert "".join(chat.say(SAID[0])) == answers[0]


def test_thirty_turns_through_a_pipe(answers: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lariat", "chat", "-m", str(MODEL), *FLAGS],
        cwd=MODEL.parents[1],
        input="\n".join(SAID).encode(),
        capture_output=True,
        timeout=300,
        check=True,
    )
    shown = [answer.lstrip() for answer in answers]
    assert done.stdout.decode() == "".join(s + "\n" * (not s.endswith("\n")) for s in shown)
    assert done.stderr == b""


def test_thirty_turns_in_a_terminal(answers: list[str]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lariat", "chat", "-m", str(MODEL), *FLAGS, "--no-history"],
        cwd=MODEL.parents[1],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "dumb", "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = ""

    def until(pattern: str) -> str:
        nonlocal seen
        deadline = time.monotonic() + 60
        while not (match := re.search(pattern, seen)):
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], seen
            seen += os.read(ours, 1 << 16).decode("utf-8", "replace")
        shown, seen = seen[: match.end()], seen[match.end() :]
        return shown

    try:
        until(r"\n> $")
        for said, answer in zip(SAID, answers, strict=True):
            os.write(ours, f"{said}\n".encode())
            shown = until(r"\n> $").replace("\r", "")
            assert answer.strip() in shown
            assert "\x1b" not in shown
        os.write(ours, b"/stats\n")
        assert f"messages    {2 * N_TURNS}, " in until(r"\n> $")
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
