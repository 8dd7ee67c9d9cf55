"""Renders an untrusted Jinja template, in a process of its own that `chat_template` starts.

This program imports nothing of the package. It reads a request from standard input and writes an
answer to standard output. Jinja's sandbox keeps a template away from the insides of Python, but
lets it loop for ever and multiply strings. No code in the same process can stop that: a single
`'a' * 10**10` runs in C. So the system limits this process, which ends alone.

The names and settings are those that templates expect from transformers (`apply_chat_template`):
https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

_MAX_OUTPUT = 1 << 20  # bytes beyond four times the request, of all texts together
_MAX_MEMORY = 128 << 20  # bytes of address space; Python with Jinja takes 25 MB
_MAX_SECONDS = 1.0  # of processor time, after the imports
_MORE_SECONDS = 0.1  # for each conversation beyond the first
_MAX_MESSAGE = 300  # characters of an error


class Refusal(Exception):
    """The reason why a template refuses a conversation."""


def compiled(template: str, now: float) -> Any:
    """A template of Jinja with the settings of transformers.

    `now`: seconds since the epoch, for `strftime_now`. Raises Jinja's errors of syntax.
    """
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks the assistant's tokens for training; it has no effect."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: object) -> None:
        raise Refusal(str(message))

    def strftime_now(format: str) -> str:
        return datetime.fromtimestamp(now).strftime(format)

    def tojson(value: object, ensure_ascii: bool = False, **more: Any) -> str:
        # Jinja's own filter escapes < and > for HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(template)


def render(template: str, variables: dict[str, Any], now: float) -> str:
    """The text of a template, without limits on time and memory.

    Raises `Refusal` if the template calls `raise_exception`, and any other exception for other
    errors.
    """
    return str(compiled(template, now).render(variables))


def answer(request: dict[str, Any], max_bytes: int = _MAX_OUTPUT) -> list[tuple[str, str]]:
    """The answer for each of `request["conversations"]`: "text" and the text, or "error" and a
    sentence.

    request: besides these lists of messages the "template", the "variables" that all have in
    common, and "now". max_bytes: of all texts together.
    """
    template: Any = None

    def text_of(messages: object) -> str:
        nonlocal template
        template = template or compiled(request["template"], request["now"])
        return str(template.render({**request["variables"], "messages": messages}))

    answers, n_left = [], max_bytes
    for messages in request["conversations"]:
        outcome, text = _attempt(text_of, messages)
        if outcome == "text":
            if len(text) > n_left or len(text.encode("utf-8", "replace")) > n_left:
                outcome, text = "error", f"writes more than {max_bytes} bytes"
            else:
                n_left -= len(text.encode("utf-8", "replace"))
        if outcome == "error":
            shown = text[:_MAX_MESSAGE]
            text = "".join(
                c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown
            )
        answers.append((outcome, text))
    return answers


def _attempt(text_of: Any, messages: object) -> tuple[str, str]:
    """The text of a conversation, or the sentence for an error."""
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

    try:
        return "text", text_of(messages)
    except Refusal as error:
        return "error", f"refuses the conversation: {error}"
    except TemplateSyntaxError as error:
        return "error", f"has a syntax error in line {error.lineno}: {error.message}"
    except SecurityError as error:
        return "error", f"does what is forbidden: {error}"
    except TemplateError as error:
        return "error", f"fails: {error}"
    except MemoryError:
        return "error", f"needs more than {_MAX_MEMORY >> 20} MiB"
    except RecursionError:
        return "error", "is nested too deeply"
    except Exception as error:
        return "error", f"fails: {type(error).__name__}: {error}"


def _limit(n_conversations: int) -> None:
    """Set the limits of this process. Time is processor time, so other processes do not matter."""
    for name, maximum in (
        ("RLIMIT_AS", _MAX_MEMORY),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),  # it writes to a pipe, and to no file
        ("RLIMIT_NPROC", 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(getattr(resource, name), (maximum, maximum))
    # The default action of the signal ends the process even within a single operation of C.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _MAX_SECONDS + _MORE_SECONDS * (n_conversations - 1))


def main() -> None:
    """Answer one request."""
    data = sys.stdin.buffer.read()
    max_bytes = _MAX_OUTPUT + 4 * len(data)
    paths, request = json.loads(data)
    sys.path += paths  # where Jinja is: with -I and -S Python does not find it itself
    import jinja2.sandbox  # noqa: F401

    _limit(len(request["conversations"]))
    answers = json.dumps(answer(request, max_bytes), ensure_ascii=False)
    sys.stdout.buffer.write(answers.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
