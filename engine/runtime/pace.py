"""How long steps take: measured as they go by, so that the next one is bounded in time."""

from __future__ import annotations

MAX_SECONDS = 0.1  # of a step while requests decode, unless two of their steps take longer
_MAX_DECODE_STEPS = 2
_WEIGHT = 0.25  # of the newest step in what is remembered: some eight steps count


class Pace:
    """The cost of a prompt's token and of a step of decoding lately, in seconds."""

    def __init__(self) -> None:
        self._token = 0.0  # 0: not known yet
        self._decode = 0.0

    def add(self, n_prompt: int, n_decode: int, seconds: float) -> None:
        """Take in a forward pass over so many tokens of prompts and of requests that decode."""
        if not n_prompt:
            self._decode = _mixed(self._decode, seconds)
        elif seconds > 0:
            # Tokens that decode read the weights along with the prompt's. A pass of both that is
            # no longer than one of decoding alone says that its prompt was cheap, not free.
            alone = max(seconds - self._decode, 0.1 * seconds) if n_decode else seconds
            self._token = _mixed(self._token, alone / n_prompt)

    @property
    def budget(self) -> int | None:
        """How many tokens of prompts a step may compute beside requests that decode; None: any
        number, because nothing is known yet.

        The step then takes about the larger of 100 ms and two steps of decoding. At least one
        token, and few different numbers, because each size of batch has a program of its own.
        """
        if not self._token:
            return None
        seconds = max(MAX_SECONDS, _MAX_DECODE_STEPS * self._decode) - self._decode
        return _rounded(int(min(seconds / self._token, 1 << 20)))


def _mixed(old: float, new: float) -> float:
    return old + _WEIGHT * (new - old) if old else new


def _rounded(n: int) -> int:
    """The largest power of two, or one and a half of it, that is at most `n`; at least 1."""
    if n < 2:
        return 1
    power: int = 1 << (n.bit_length() - 1)
    return power + power // 2 if n >= power + power // 2 else power
