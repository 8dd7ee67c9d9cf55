"""A loaded model as clients see it: its names, its defaults, and its chat template."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from lariat.chat import chat_template
from lariat.chat.chat_template import FORMATS
from lariat.chat.rendering import Prompt, Rendering
from lariat.demo import DEMO_MODEL
from lariat.errors import ChatError
from lariat.protocol import errors

if TYPE_CHECKING:
    from lariat.config import SamplingParams
    from lariat.llm import LLM

_MAX_RENDERINGS = 32  # sets of tools and variables of the template that are kept
_MAX_KNOWN = 512  # answers whose tokens are kept
_DAY = 86400.0


class Served:
    """A model, and what requests leave open.

    llm       the model
    names     under which clients ask for it; the first one stands in answers
    template  as for `lariat.Chat`; None: the one of the model's file
    variables of the template, for all requests
    defaults  sampling where a request says nothing
    now       the time that templates are told, in seconds since 1970; None: the clock's
    created   seconds since 1970 at which it was loaded
    """

    def __init__(
        self,
        llm: LLM,
        names: Sequence[str],
        *,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        defaults: SamplingParams | None = None,
        now: float | None = None,
    ) -> None:
        self.llm, self.names = llm, tuple(names)
        self.template, self.variables = template, dict(variables or {})
        self.defaults = defaults or llm.sampling.params
        self.now = now
        self.created = int(time.time())
        self._renderings: OrderedDict[bytes, Rendering] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name in answers."""
        return self.names[0]

    def check_name(self, asked: str | None) -> None:
        """ApiError with the status 404 for another model. None and "" are for any."""
        if asked and asked not in self.names:
            raise errors.ApiError(
                404,
                f"the model {asked[:100]!r} is not served here, only {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )

    @property
    def template_source(self) -> str:
        """The chat template: a name of `FORMATS`, or Jinja. "" if there is none."""
        if self.template is not None:
            return self.template
        return self.llm.gguf.get_str(chat_template.KEY, default="")

    def takes(self, variable: str) -> bool:
        """Whether the chat template looks for a variable."""
        source = self.template_source
        return source not in FORMATS and variable in source

    def rendering(
        self, tools: Sequence[Mapping[str, Any]] = (), variables: Mapping[str, Any] | None = None
    ) -> Rendering:
        """How conversations with these tools become tokens. Raises `ChatError`.

        It starts a process where it is not known yet, so call it in a thread.
        """
        variables = {**self.variables, **(variables or {})}
        now = time.time() if self.now is None else self.now
        day = int(now // _DAY)  # templates may write the date
        key = msgspec.json.encode([day, list(tools), variables], order="sorted")
        with self._lock:
            known = self._renderings.get(key)
            if known is not None:
                self._renderings.move_to_end(key)
                return known
        form = chat_template.choose(
            self.template, self.llm.gguf, self.llm.tokenizer, tools=tools, variables=variables,
            now=self.now,
        )  # fmt: skip
        rendering = Rendering(self.llm.tokenizer, form)
        with self._lock:
            self._renderings[key] = rendering
            while len(self._renderings) > _MAX_RENDERINGS:
                self._renderings.popitem(last=False)
        return rendering

    def prompt(self, rendering: Rendering, messages: list[dict[str, Any]]) -> Prompt:
        """A conversation, ready for the assistant's answer. Raises `ChatError`.

        It starts a process, so call it in a thread.
        """
        return rendering.prompt(messages)

    def learn(self, rendering: Rendering, prompt: Prompt, text: str, ids: list[int]) -> None:
        """Keep the tokens of an answer, so that the next turn finds them in the cache."""
        with self._lock:
            rendering.known = dict(rendering.known)  # others may be reading the one before
            rendering.learn(prompt, text, ids)
            while len(rendering.known) > _MAX_KNOWN:
                del rendering.known[next(iter(rendering.known))]

    def check_length(self, ids: Sequence[int], max_tokens: int) -> None:
        """ApiError with the status 400 for a prompt that leaves no room for a token."""
        n_ctx = self.llm.n_ctx
        if len(ids) + (max_tokens != 0) > n_ctx:
            raise errors.too_long(len(ids), n_ctx)
        if not ids:
            raise errors.bad("the prompt is empty")


def name_of(path: str) -> str:
    """The name of a file's model for clients."""
    return "lariat-demo" if path == DEMO_MODEL else Path(path).stem


def has_template(served: Served) -> bool:
    """Whether the model can chat."""
    try:
        chat_template.check_present(served.llm.gguf)
    except ChatError:
        return served.template is not None
    return True
