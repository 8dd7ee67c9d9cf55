"""Lariat, for `bench.peers`."""

from __future__ import annotations

import protocol
from lariat import LLM, _kernels
from lariat.runtime.batch import Part, split


class Lariat:
    """A block table filled to a depth, and others for batches."""

    def __init__(
        self, model: str, n_ctx: int, n_seqs: int, n_batch: int, n_ubatch: int, cache: str
    ) -> None:
        self._llm = LLM(model, n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, cache=cache)
        self._main = self._llm.runner.new_table()

    def about(self) -> dict[str, object]:
        """Facts about the engine, for the report."""
        return {"n_vocab": self._llm.n_vocab, "isa": _kernels.isa()}

    def threads(self, n: int) -> None:
        """Set the number of threads for everything that follows."""
        runner = self._llm.runner
        runner.n_threads = runner.n_threads_batch = n

    def fill(self, depth: int) -> None:
        """Bring the cache to `depth` tokens."""
        self._main.truncate(min(depth, self._main.n_tokens))
        n = depth - self._main.n_tokens
        if n:
            self._prompt(protocol.tokens(n, self._llm.n_vocab, 1))

    def prompt(self, n: int) -> float:
        """Return seconds for n tokens behind those of the cache, with the logits of the last."""
        depth = self._main.n_tokens
        ids = protocol.tokens(n, self._llm.n_vocab, 2)
        took = protocol.seconds(lambda: self._prompt(ids))
        self._main.truncate(depth)
        return took

    def decode(self, n: int) -> float:
        """Return seconds for n tokens, one after the other, behind those of the cache."""
        depth = self._main.n_tokens
        ids = protocol.tokens(n, self._llm.n_vocab, 3)

        def work() -> None:
            for token in ids:
                self._llm.runner.forward([Part(self._main, [token], "last")])

        took = protocol.seconds(work)
        self._main.truncate(depth)
        return took

    def decode_together(self, n_seqs: int, n: int) -> float:
        """Return seconds for n tokens of each of n_seqs empty sequences. Empties the cache."""
        self._main.clear()
        tables = [self._llm.runner.new_table() for _ in range(n_seqs)]
        ids = protocol.tokens(n, self._llm.n_vocab, 4)

        def work() -> None:
            for token in ids:
                self._llm.runner.forward([Part(table, [token], "last") for table in tables])

        took = protocol.seconds(work)
        for table in tables:
            table.clear()
        return took

    def greedy(self, n_prompt: int, n: int) -> list[int]:
        """Return the likeliest n tokens after a prompt. Empties the cache."""
        self._main.clear()
        ids = protocol.tokens(n_prompt, self._llm.n_vocab, 5)
        found: list[int] = []
        for _ in range(n):
            logits = self._llm.runner.forward([Part(self._main, ids, "last")])
            ids = [int(logits[0].argmax())]
            found += ids
        self._main.clear()
        return found

    def memory(self) -> dict[str, int]:
        """See `protocol.memory`."""
        return protocol.memory()

    def _prompt(self, ids: list[int]) -> None:
        for group in split([Part(self._main, ids, "last")], self._llm.runner.n_ubatch):
            self._llm.runner.forward(group)


if __name__ == "__main__":
    protocol.serve(Lariat)
