"""A model for lm-evaluation-harness, which needs `lm_eval`.

https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/model_guide.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lariat.config import SamplingParams
from lariat.runtime import scoring
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

if TYPE_CHECKING:
    from lariat.protocol.served import Served

_MAX_TOKENS = 256  # of a text, where the task does not say it; the harness's own default
_AT_ONCE = 64  # texts
_SAME = ("temperature", "top_p", "top_k", "min_p")


@register_model("lariat")
class EvaluatedModel(LM):
    """A model as the harness sees it.

    Requests are computed together, and those that begin alike share what they have in common.
    Contexts that are too long lose their beginning, as the harness's own models do it.
    """

    def __init__(self, served: Served, *, parse_special: bool = False) -> None:
        """`parse_special`: control tokens in texts count, as chat templates write them."""
        super().__init__()
        self._served, self._parse_special = served, parse_special
        self._llm = served.llm

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether greedy decoding would write it."""
        pairs = [self._pair(*request.args) for request in requests]
        order = sorted(range(len(pairs)), key=lambda i: pairs[i])
        scores = self._llm.score([pairs[i] for i in order])
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for i, score in zip(order, scores, strict=True):
            found[i] = (score.logprob, score.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[i].args, found[i])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-likelihood of whole texts of any length."""
        found = []
        for request in requests:
            (text,) = request.args
            score = self._llm.score_text(text, parse_special=self._parse_special).logprob
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), score)
            found.append(score)
        return found

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The texts behind contexts, up to a stop text. They are greedy unless a task samples."""
        work = []
        for i, request in enumerate(requests):
            context, given = request.args
            params = self._params(given)
            ids = self._llm.tokenize(context, parse_special=self._parse_special)
            room = max(1, self._llm.n_ctx - params.max_tokens)
            work.append((repr(params), ids[-room:], i, params))
        work.sort(key=lambda one: one[:3])
        found = [""] * len(requests)
        while work:
            some = [one for one in work[:_AT_ONCE] if one[0] == work[0][0]]
            del work[: len(some)]
            done = self._llm.generate([ids for _, ids, _, _ in some], some[0][3])
            for (_, _, i, _), one in zip(some, done, strict=True):
                if one.error is not None:
                    raise one.error
                found[i] = one.text
                self.cache_hook.add_partial("generate_until", requests[i].args, one.text)
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text. ValueError unless it waits for an answer."""
        if not add_generation_prompt:
            raise ValueError("a chat template cannot begin an answer that the task begins itself")
        return self._served.rendering().text([dict(message) for message in chat_history])

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template, for reports."""
        return self._served.template_source if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """A name for caches of requests."""
        return self._served.name

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, behind = scoring.encode_pair(
            self._llm.tokenizer, context, continuation, self._parse_special
        )
        room = max(1, self._llm.n_ctx - len(behind))
        return before[-room:], behind

    def _params(self, given: dict[str, Any]) -> SamplingParams:
        until = given.get("until") or []
        stop = [until] if isinstance(until, str) else until
        limit = given.get("max_gen_toks", given.get("max_tokens", _MAX_TOKENS))
        values = {name: given[name] for name in _SAME if given.get(name) is not None}
        if not given.get("do_sample", values.get("temperature", 0) > 0):
            values = {"temperature": 0.0}
        return SamplingParams(
            max_tokens=limit, stop=tuple(text for text in stop if text),
            seed=given.get("seed", 0), **values,
        )  # fmt: skip
