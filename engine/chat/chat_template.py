"""Chat templates: how a conversation is written as text for a model.

The template in a file is a program in the language Jinja. It runs in a process of its own
(`template_worker`) under limits of time and memory, which no sandbox inside Python has. The
well-known formats need no program; each is a few texts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lariat.chat import template_worker
from lariat.errors import ChatError, quote
from lariat.formats.gguf import GGUFFile

if TYPE_CHECKING:
    from lariat.tokenizers.tokenizer import Tokenizer

Message = Mapping[str, str]  # "role": system, user or assistant; "content": the text

KEY = "tokenizer.chat_template"
MAX_TEMPLATE = 1 << 18  # characters; the longest in use have 20,000
_MAX_WAIT = 20.0  # seconds on the clock, if the limit of processor time does not end it


class ChatTemplate(Protocol):
    """Turns messages into the text that the model continues."""

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ready for the assistant's answer. Raises `ChatError`."""

    @property
    def end(self) -> str:
        """The text behind an answer, "" if it is not known."""


def choose(template: str | None, gguf: GGUFFile, tokenizer: Tokenizer) -> ChatTemplate:
    """The template with a name in `FORMATS`, or with this Jinja source; None: the file's own.

    Raises `ChatError` if there is none.
    """
    if template is None:
        check_present(gguf)
        return Jinja(gguf.get_str(KEY), tokenizer)
    check_known(template)
    if template in FORMATS:
        return Named(FORMATS[template], tokenizer)
    return Jinja(template, tokenizer)


def check_known(template: str) -> None:
    """Raise `ChatError` unless this is a name in `FORMATS`, or Jinja source, which has a brace."""
    if template not in FORMATS and "{" not in template:
        raise ChatError(
            f"there is no chat template {quote(template)}; those with a name are "
            f"{', '.join(FORMATS)}"
        )


def check_present(gguf: GGUFFile) -> None:
    """Raise `ChatError` unless the file has a template."""
    if KEY not in gguf.metadata:
        raise ChatError(
            f"{gguf.path}: has no chat template ({KEY}); name one (--chat-template, in Python "
            f"template=): {', '.join(FORMATS)}"
        )


class Jinja:
    """A template in Jinja, rendered as transformers renders it.

    `strftime_now` always gives the time at which the conversation began. Otherwise the beginning of
    a conversation would change at midnight.
    """

    end = ""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        if len(source) > MAX_TEMPLATE:
            raise ChatError(f"the chat template has more than {MAX_TEMPLATE} characters")
        self._source = source
        ids = {
            "bos_token": tokenizer.bos_id,
            "eos_token": tokenizer.eos_id,
            "unk_token": tokenizer.unk_id,
        }
        self._specials = {k: tokenizer.piece(i) for k, i in ids.items() if i is not None}
        self._now = time.time()

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ready for the assistant's answer. Raises `ChatError`."""
        request = {
            "template": self._source,
            "variables": {
                **self._specials,
                "messages": [dict(message) for message in messages],
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
            },
            "now": self._now,
        }
        with tempfile.TemporaryFile() as answer:  # a file, because the system limits its size
            try:
                done = subprocess.run(
                    # -I: isolated from the user's environment; -S: no site packages, saves 20 ms.
                    [sys.executable, "-I", "-S", template_worker.__file__],
                    input=json.dumps([_paths(), request]).encode(),
                    stdout=answer,
                    stderr=subprocess.DEVNULL,
                    timeout=_MAX_WAIT,
                    cwd=os.sep,
                )
                code = done.returncode
            except subprocess.TimeoutExpired:
                code = -1
            except BrokenPipeError:
                code = 1
            except OSError as error:
                raise ChatError(
                    f"the chat template gets no process of its own: {error.strerror}"
                ) from error
            answer.seek(0)
            outcome, _, text = answer.read().decode("utf-8", "replace").partition("\n")
        if code < 0:  # by a signal
            raise ChatError("the chat template takes too long, or too much memory")
        if code or outcome not in ("text", "error"):
            raise ChatError("the chat template cannot be rendered")
        if outcome == "error":
            raise ChatError(f"the chat template {text}")
        return text


def _paths() -> list[str]:
    """Folders where the worker finds Jinja."""
    found = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        found.append(str(Path(spec.origin).parent.parent))
    return found


@dataclass(frozen=True)
class Format:
    """A well-known format: the texts around a system prompt, a message and an answer.

    `{}` is the text itself; {bos} and {eos} are the model's tokens. merge: the system prompt is a
    part of the first message. strip: blanks around messages are removed. Blanks around answers are
    always removed, because a blank before an answer belongs to the format.
    """

    system: str
    user: str
    assistant: str
    merge: bool = False
    strip: bool = False


class Named:
    """One of `FORMATS`, with the begin and end tokens of a model."""

    def __init__(self, format: Format, tokenizer: Tokenizer) -> None:
        self._format = format
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
        self._tokens = {k: "" if i is None else tokenizer.piece(i) for k, i in ids.items()}
        before, _, behind = format.assistant.partition("{}")
        # The model writes the blank before an answer itself.
        self._start = before.format(**self._tokens).rstrip(" ")
        self.end = behind.format(**self._tokens).strip()

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ready for the assistant's answer."""
        f, parts, before = self._format, [], ""
        for message in messages:
            role, text = message["role"], message["content"]
            text = text.strip() if f.strip or role == "assistant" else text
            if role == "system" and f.merge:
                before = f.system.format(text)
                continue
            pattern = {"system": f.system, "user": f.user, "assistant": f.assistant}[role]
            parts.append(pattern.format(before + text, **self._tokens))
            before = ""
        return "".join(parts) + self._start


def _marked(role: str, end: str, strip: bool = False) -> Format:
    """A format whose roles differ only in their names."""
    system, user, assistant = (role.format(n) + "{}" + end for n in ("system", "user", "assistant"))
    return Format(system, user, assistant, strip=strip)


# The names are those of llama.cpp (src/llama-chat.cpp). Where it differs from the format that the
# makers of a model published, this follows the makers: the end token is the file's, `llama2` has
# the marks of the system prompt and the blank before </s>, `mistral-v1` begins without a blank.
FORMATS: dict[str, Format] = {
    "chatml": _marked("<|im_start|>{}\n", "<|im_end|>\n"),
    "deepseek": Format("{}", "### Instruction:\n{}\n", "### Response:\n{}\n<|EOT|>\n"),
    "deepseek2": Format("{}\n\n", "User: {}\n\n", "Assistant: {}<｜end▁of▁sentence｜>"),
    "deepseek3": Format("{}\n\n", "<｜User｜>{}", "<｜Assistant｜>{}<｜end▁of▁sentence｜>"),
    "falcon3": _marked("<|{}|>\n", "\n"),
    "gemma": Format(
        "{}\n\n",
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "<start_of_turn>model\n{}<end_of_turn>\n",
        merge=True,
        strip=True,
    ),
    "llama2": Format(
        "<<SYS>>\n{}\n<</SYS>>\n\n",
        "{bos}[INST] {} [/INST]",
        " {} {eos}",
        merge=True,
        strip=True,
    ),
    "llama3": _marked("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>", strip=True),
    "megrez": _marked("<|role_start|>{}<|role_end|>", "<|turn_end|>"),
    "mistral-v1": Format("{}\n\n", "[INST] {} [/INST]", " {}{eos}", merge=True),
    "mistral-v3": Format("{}\n\n", "[INST] {}[/INST]", " {}{eos}", merge=True),
    "mistral-v3-tekken": Format("{}\n\n", "[INST]{}[/INST]", "{}{eos}", merge=True),
    "mistral-v7": Format("[SYSTEM_PROMPT] {}[/SYSTEM_PROMPT]", "[INST] {}[/INST]", " {}{eos}"),
    "mistral-v7-tekken": Format("[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", "[INST]{}[/INST]", "{}{eos}"),
    "monarch": _marked("{{bos}}{}\n", "{eos}\n"),
    "openchat": Format(
        "{}<|end_of_turn|>",
        "GPT4 Correct User: {}<|end_of_turn|>",
        "GPT4 Correct Assistant: {}<|end_of_turn|>",
    ),
    "phi3": _marked("<|{}|>\n", "<|end|>\n"),
    "phi4": _marked("<|im_start|>{}<|im_sep|>", "<|im_end|>"),
    "vicuna": Format("{}\n\n", "USER: {}\n", "ASSISTANT: {}{eos}\n"),
    "vicuna-orca": Format("SYSTEM: {}\n", "USER: {}\n", "ASSISTANT: {}{eos}\n"),
    "zephyr": _marked("<|{}|>\n", "{eos}\n"),
}
