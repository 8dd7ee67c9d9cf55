"""How likely a continuation is: pairs of texts as tokens, and the score of each pair.

The pairs are cut into tokens as lm-evaluation-harness does it, so that scores can be compared: the
whole text is encoded, and the tokens that its prompt has alone are the prompt's. Blanks at the end
of a prompt go to its continuation, which begins a word there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lariat.runtime.logprobs import PromptLogprobs
from lariat.runtime.runner import Runner
from lariat.runtime.stream import Stream
from lariat.tokenizers.tokenizer import Tokenizer

_N_AT_ONCE = 64  # requests

Text = str | list[int]  # or its token ids
Scored = tuple[list[int], int]  # token ids, and the first of them that is scored


@dataclass(frozen=True)
class Score:
    """How likely a model thinks a continuation is.

    logprob         the sum of `token_logprobs`
    is_greedy       whether greedy decoding would write this continuation
    token_ids       of the continuation
    token_logprobs  one for each of `token_ids`
    """

    logprob: float
    is_greedy: bool
    token_ids: list[int]
    token_logprobs: list[float]

    @property
    def n_tokens(self) -> int:
        """Tokens of the continuation."""
        return len(self.token_ids)


def scores(start: Callable[[list[int], int], Stream], scored: Iterable[Scored]) -> Iterator[Score]:
    """Score tokens, some requests at a time. `start` begins to compute one."""
    begun: deque[tuple[Stream, int]] = deque()
    try:
        for ids, first in scored:
            if len(begun) == _N_AT_ONCE:
                yield _finished(*begun[0])
                begun.popleft()
            begun.append((start(ids, first), first))
        while begun:
            yield _finished(*begun[0])
            begun.popleft()
    finally:
        for one, _ in begun:
            one.close()


def _finished(one: Stream, first: int) -> Score:
    """Compute a prompt to its end, and score its tokens from `first` on."""
    for _ in one:
        pass
    prompt = one.completion.prompt_logprobs
    assert isinstance(prompt, PromptLogprobs)
    logprobs = prompt.logprobs[first:].tolist()
    return Score(
        sum(logprobs),
        bool((prompt.ranks[first:] == 1).all()),
        prompt.token_ids[first:].tolist(),
        logprobs,
    )


def joined(scores: Sequence[Score]) -> Score:
    """Score of texts that follow one another."""
    return Score(
        sum(score.logprob for score in scores),
        all(score.is_greedy for score in scores),
        [token for score in scores for token in score.token_ids],
        [logprob for score in scores for logprob in score.token_logprobs],
    )


def encoded(
    tokenizer: Tokenizer,
    runner: Runner,
    pairs: Iterable[tuple[Text, Text]],
    *,
    parse_special: bool = False,
) -> list[Scored]:
    """Token ids of pairs of a prompt and its continuation, both texts or both ids.

    ValueError for other things, and for a continuation without tokens; ContextError for a pair of
    more than `n_ctx` tokens.
    """
    scored = []
    for pair in pairs:
        try:
            prompt, continuation = pair
        except (TypeError, ValueError):
            raise ValueError(f"{pair!r} is no pair of a prompt and its continuation") from None
        if isinstance(prompt, str) and isinstance(continuation, str):
            before, behind = encode_pair(tokenizer, prompt, continuation, parse_special)
        elif isinstance(prompt, str) or isinstance(continuation, str):
            raise ValueError("a prompt and its continuation are two texts, or token ids of both")
        else:
            before = runner.token_ids(prompt) or begin_of(tokenizer)
            behind = runner.token_ids(continuation)
        if not behind:
            raise ValueError("the continuation has no tokens of its own")
        scored.append((runner.check_ids([*before, *behind]), len(before)))
    return scored


def encode_pair(
    tokenizer: Tokenizer, prompt: str, continuation: str, parse_special: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its continuation. The prompt gets the begin token if the
    vocabulary asks for it; an empty one is the token that texts begin or end with."""
    stripped = prompt.rstrip()
    prompt, continuation = stripped, prompt[len(stripped) :] + continuation
    if not prompt:
        return begin_of(tokenizer), tokenizer.encode_part(
            continuation, add_bos=False, parse_special=parse_special
        )
    whole = tokenizer.encode_part(prompt + continuation, parse_special=parse_special)
    before = tokenizer.encode_part(prompt, parse_special=parse_special)
    return before, whole[len(before) :]


def begin_of(tokenizer: Tokenizer) -> list[int]:
    """The token in front of a text that nothing stands before. ValueError if there is none."""
    token = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if token is None:
        raise ValueError("the vocabulary has no begin token, so the prompt must not be empty")
    return [token]


def rolling(ids: Sequence[int], begin: Sequence[int], n: int) -> Iterator[Scored]:
    """Cut a text into windows of `n` tokens and one more, so that each token is scored once.

    Yields token ids and which of them is the first that is scored. The first window has `begin` in
    front; the others begin with tokens that were scored before, and the last has as many of them
    as fit.
    """
    done = 0
    while done < len(ids):
        stop = min(done + n, len(ids))
        start = max(0, stop - n - 1)
        if done == 0:
            yield [*begin, *ids[:stop]], len(begin)
        else:
            yield list(ids[start:stop]), done - start
        done = stop
