"""Chat templates: how a conversation is written as text for a model.

The template in a file is a program in the language Jinja. It runs in a process of its own
(`template_worker`) under limits of time and memory, which no sandbox inside Python has. The
well-known formats need no program; each is a few texts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from lariat.chat import template_worker
from lariat.errors import ChatError, quote
from lariat.formats.gguf import GGUFFile

if TYPE_CHECKING:
    from lariat.tokenizers.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""A message as transformers has it: "role", "content", and for tools "tool_calls" and the like."""

KEY = "tokenizer.chat_template"
TOOLS_KEY = "tokenizer.chat_template.tool_use"  # another template, for conversations with tools
MAX_TEMPLATE = 1 << 18  # characters; the longest in use have 20,000
_MAX_WAIT = 20.0  # seconds on the clock, if the limit of processor time does not end it
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt")


class ChatTemplate(Protocol):
    """Turns messages into the text that the model continues."""

    source: str  # "" if it is no program
    drops_thoughts: bool  # whether it takes answers without their thoughts alone

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ready for the assistant's answer. Raises `ChatError`."""

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[str | ChatError]:
        """The text of each conversation, or the error for it. Raises `ChatError` if none can be
        rendered."""

    @property
    def end(self) -> str:
        """The text behind an answer, "" if it is not known."""


def choose(
    template: str | None,
    gguf: GGUFFile,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    variables: Mapping[str, Any] | None = None,
    now: float | None = None,
) -> ChatTemplate:
    """The template with a name in `FORMATS`, or with this Jinja source; None: the file's own.

    tools, variables, now: see `Jinja`. A file may have a template of its own for tools. Raises
    `ChatError` if there is no template, or if it is a named one, which takes neither.
    """
    if template is None:
        check_present(gguf)
        key = TOOLS_KEY if tools and TOOLS_KEY in gguf.metadata else KEY
        return Jinja(gguf.get_str(key), tokenizer, tools, variables, now)
    check_known(template)
    if template in FORMATS:
        for given, what in ((tools, "tools"), (variables, "variables (chat_template_kwargs)")):
            if given:
                raise ChatError(
                    f"the chat template {quote(template)} takes no {what}; only templates in "
                    f"Jinja do"
                )
        return Named(FORMATS[template], tokenizer)
    return Jinja(template, tokenizer, tools, variables, now)


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

    tools      JSON schemas of functions, which the template describes to the model
    variables  more variables of the template, such as `enable_thinking`
    now        the time at which the conversation began, in seconds since 1970; None: now

    `strftime_now` always gives that time. Otherwise the beginning of
    a conversation would change at midnight. Raises `ChatError` for a template that is too long, and
    for tools and variables that JSON cannot hold.
    """

    end = ""
    drops_thoughts = False

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> None:
        if len(source) > MAX_TEMPLATE:
            raise ChatError(f"the chat template has more than {MAX_TEMPLATE} characters")
        self.source = source
        ids = {
            "bos_token": tokenizer.bos_id,
            "eos_token": tokenizer.eos_id,
            "unk_token": tokenizer.unk_id,
        }
        self._variables = {
            **{name: tokenizer.piece(i) for name, i in ids.items() if i is not None},
            "tools": _checked_tools(tools, tokenizer),
            "documents": None,
            "add_generation_prompt": True,
            **_checked_variables(variables or {}),
        }
        self._now = time.time() if now is None else now

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ready for the assistant's answer. Raises `ChatError`."""
        (text,) = self.render_all([messages])
        if isinstance(text, ChatError):
            raise text
        return text

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[str | ChatError]:
        """The text of each conversation, or the error for it; all by one process.

        Raises `ChatError` if the process ends too early.
        """
        request = {
            "template": self.source,
            "variables": self._variables,
            "conversations": [list(map(dict, messages)) for messages in conversations],
            "now": self._now,
        }
        code, data = _run_worker(json.dumps([_paths(), request]).encode())
        if code < 0:  # by a signal
            raise ChatError("the chat template takes too long, or too much memory")
        try:
            answers = [] if code else json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            answers = []
        if len(answers) != len(conversations):
            raise ChatError("the chat template cannot be rendered")
        return [
            text if outcome == "text" else ChatError(f"the chat template {text}")
            for outcome, text in answers
        ]


def _checked_tools(
    tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer
) -> list[dict[str, Any]] | None:
    """Tools with their special tokens marked, None if there are none, as transformers has it."""
    if isinstance(tools, str | Mapping) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ChatError("tools are a list of JSON schemas, each a dictionary")
    return [marked(copied(tool, "a tool"), tokenizer.mark) for tool in tools] or None


def _checked_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise ChatError("the variables of a chat template are a dictionary with names as keys")
    for name in _OWN_VARIABLES:
        if name in variables:
            raise ChatError(f"the variable {name} of a chat template cannot be set")
    return cast(dict[str, Any], copied(variables, "a variable of the chat template"))


def copied(value: Any, what: str) -> Any:
    """A copy of a value that JSON can hold. Raises `ChatError` for others."""
    try:
        if isinstance(value, Mapping):
            value = dict(value)
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(f"{what} cannot be written as JSON: {error}") from None


def marked(value: Any, mark: Any) -> Any:
    """A value of JSON with `mark` applied to each of its texts, keys included."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, list):
        return [marked(item, mark) for item in value]
    if isinstance(value, dict):
        return {mark(key): marked(item, mark) for key, item in value.items()}
    return value


def _run_worker(request: bytes) -> tuple[int, bytes]:
    """Exit code and output of a worker; the code is negative if a signal ended it, or `_MAX_WAIT`.

    It writes to a pipe, so no folder has to be writable. Raises `ChatError` if it cannot start.
    """
    # An answer that is longer is none: the worker itself keeps to a limit of a sixth, and JSON
    # writes a byte as six at most.
    max_answer = 6 * (4 * len(request) + (2 << 20))
    try:
        worker = subprocess.Popen(
            # -I: isolated from the user's environment; -S: no site packages, saves 20 ms.
            [_interpreter(), "-I", "-S", template_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.sep,
        )
    except OSError as error:
        raise ChatError(
            f"the chat template gets no process of its own: {error.strerror}"
        ) from error
    with worker:
        try:
            data = _exchange(worker, request, max_answer)
        except BaseException:
            worker.kill()
            raise
        if data is None:
            worker.kill()
            return -1, b""
    return worker.returncode, data


def _exchange(worker: subprocess.Popen[bytes], request: bytes, max_answer: int) -> bytes | None:
    """Send a request and read the answer. None if it comes too late or is too long."""
    to, back = cast(IO[bytes], worker.stdin), cast(IO[bytes], worker.stdout)
    deadline = time.monotonic() + _MAX_WAIT
    os.set_blocking(to.fileno(), False)
    answer, n_sent = bytearray(), 0
    with selectors.DefaultSelector() as selector:
        selector.register(to, selectors.EVENT_WRITE)
        selector.register(back, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready or len(answer) > max_answer:
                return None
            for key, _ in ready:
                if key.fileobj is back:
                    data = os.read(back.fileno(), 1 << 16)
                    if not data:
                        return bytes(answer)
                    answer += data
                    continue
                try:
                    n_sent += os.write(to.fileno(), request[n_sent : n_sent + (1 << 16)])
                except BlockingIOError:
                    continue
                except BrokenPipeError:  # it is gone; its exit code says how
                    n_sent = len(request)
                if n_sent == len(request):
                    selector.unregister(to)
                    to.close()


def _interpreter() -> str:
    """The program of this Python. Where Python is part of another program, it may not know it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = sys.executable or shutil.which(version, path=str(Path(sys.exec_prefix, "bin")))
    found = found or shutil.which(version) or shutil.which("python3")
    if not found:
        raise ChatError("the chat template needs a Python program, and there is none on PATH")
    return found


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
    always removed, because a blank before an answer belongs to the format. start, end: the texts
    with which an answer begins and ends while it is written, if they are not those of `assistant`.
    drops_thoughts: earlier answers are written without their thoughts.
    """

    system: str
    user: str
    assistant: str
    merge: bool = False
    strip: bool = False
    start: str | None = None
    end: str | None = None
    drops_thoughts: bool = False


class Named:
    """One of `FORMATS`, with the begin and end tokens of a model."""

    source = ""

    def __init__(self, format: Format, tokenizer: Tokenizer) -> None:
        self._format = format
        self.drops_thoughts = format.drops_thoughts
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
        self._tokens = {k: "" if i is None else tokenizer.piece(i) for k, i in ids.items()}
        before, _, behind = format.assistant.partition("{}")
        # The model writes the blank before an answer itself.
        self._start = (format.start or before).format(**self._tokens).rstrip(" ")
        self.end = (format.end or behind).format(**self._tokens).strip()

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ready for the assistant's answer.

        Raises `ChatError` for roles and calls of tools, of which these formats know nothing.
        """
        f, parts, before = self._format, [], ""
        for message in messages:
            role, text = message["role"], message["content"]
            if role not in ("system", "user", "assistant") or not isinstance(text, str):
                raise ChatError(
                    f"the chat template has no form for a message of the role {quote(role)} with "
                    f"content of type {type(text).__name__}"
                )
            if message.get("tool_calls"):
                raise ChatError("the chat template has no form for tool_calls")
            text = text.strip() if f.strip or role == "assistant" else text
            if role == "system" and f.merge:
                before = f.system.format(text)
                continue
            pattern = {"system": f.system, "user": f.user, "assistant": f.assistant}[role]
            parts.append(pattern.format(before + text, **self._tokens))
            before = ""
        return "".join(parts) + self._start

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[str | ChatError]:
        """The text of each conversation, or the error for it."""
        texts: list[str | ChatError] = []
        for messages in conversations:
            try:
                texts.append(self.render(messages))
            except ChatError as error:
                texts.append(error)
        return texts


def _marked(role: str, end: str, strip: bool = False) -> Format:
    """A format whose roles differ only in their names."""
    system, user, assistant = (role.format(n) + "{}" + end for n in ("system", "user", "assistant"))
    return Format(system, user, assistant, strip=strip)


# The names are those of llama.cpp (src/llama-chat.cpp). Where it differs from the format that the
# makers of a model published, this follows the makers: the end token is the file's, `llama2` has
# the marks of the system prompt and the blank before </s>, `mistral-v1` begins without a blank, and
# `gpt-oss` drops the thoughts of earlier answers and writes these in the channel "final". `olmo2`,
# which llama.cpp does not have, is that of OLMo 2 and of Tulu.
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
    "gpt-oss": Format(
        "<|start|>system<|message|>{}<|end|>",
        "<|start|>user<|message|>{}<|end|>",
        "<|start|>assistant<|channel|>final<|message|>{}<|end|>",
        start="<|start|>assistant",
        end="<|return|>",
        drops_thoughts=True,
    ),
    "granite": _marked("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>\n"),
    "granite-4.0": _marked("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>\n"),
    "granite-4.1": _marked("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>\n"),
    "llama2": Format(
        "<<SYS>>\n{}\n<</SYS>>\n\n",
        "{bos}[INST] {} [/INST]",
        " {} {eos}",
        merge=True,
        strip=True,
    ),
    "llama3": _marked("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>", strip=True),
    "llama4": _marked("<|header_start|>{}<|header_end|>\n\n", "<|eot|>", strip=True),
    "megrez": _marked("<|role_start|>{}<|role_end|>", "<|turn_end|>"),
    "mistral-v1": Format("{}\n\n", "[INST] {} [/INST]", " {}{eos}", merge=True),
    "mistral-v3": Format("{}\n\n", "[INST] {}[/INST]", " {}{eos}", merge=True),
    "mistral-v3-tekken": Format("{}\n\n", "[INST]{}[/INST]", "{}{eos}", merge=True),
    "mistral-v7": Format("[SYSTEM_PROMPT] {}[/SYSTEM_PROMPT]", "[INST] {}[/INST]", " {}{eos}"),
    "mistral-v7-tekken": Format("[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", "[INST]{}[/INST]", "{}{eos}"),
    "monarch": _marked("{{bos}}{}\n", "{eos}\n"),
    "olmo2": Format("<|system|>\n{}\n", "<|user|>\n{}\n", "<|assistant|>\n{}{eos}\n"),
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
