"""transformers on PyTorch, for `bench.peers`: the file's weights as float32, no repacking."""

from __future__ import annotations

import os

import protocol
import torch
import transformers


class Transformers:
    """One cache, filled to a depth."""

    def __init__(self, model: str, n_ctx: int, n_seqs: int, n_batch: int, n_ubatch: int) -> None:
        transformers.utils.logging.disable_progress_bar()
        folder, name = os.path.split(os.path.abspath(model))
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32
        ).eval()
        self._n_vocab = self._model.config.vocab_size
        self._clear()

    def about(self) -> dict[str, object]:
        """Facts about the engine, for the report."""
        return {
            "n_vocab": self._n_vocab,
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
        }

    def threads(self, n: int) -> None:
        """Set the number of threads for everything that follows."""
        torch.set_num_threads(n)

    def fill(self, depth: int) -> None:
        """Bring the cache to `depth` tokens."""
        if depth < self._depth:
            self._cut(depth)
        if depth > self._depth:
            self._run(protocol.tokens(depth - self._depth, self._n_vocab, 1))
        self._depth = depth

    def prompt(self, n: int) -> float:
        """Return seconds for n tokens behind those of the cache, with the logits of the last."""
        ids = protocol.tokens(n, self._n_vocab, 2)
        took = protocol.seconds(lambda: self._run(ids))
        self._back()
        return took

    def decode(self, n: int) -> float:
        """Return seconds for n tokens, one after the other, behind those of the cache."""
        ids = protocol.tokens(n, self._n_vocab, 3)

        def work() -> None:
            for token in ids:
                self._run([token])

        took = protocol.seconds(work)
        self._back()
        return took

    def greedy(self, n_prompt: int, n: int) -> list[int]:
        """Return the likeliest n tokens after a prompt. Empties the cache."""
        self._clear()
        ids = protocol.tokens(n_prompt, self._n_vocab, 5)
        found: list[int] = []
        for _ in range(n):
            ids = [int(self._run(ids)[0, -1].argmax())]
            found += ids
        self._clear()
        return found

    def memory(self) -> dict[str, int]:
        """See `protocol.memory`."""
        return protocol.memory()

    @torch.inference_mode()
    def _run(self, ids: list[int]) -> torch.Tensor:
        out = self._model(torch.tensor([ids]), past_key_values=self._cache, logits_to_keep=1)
        logits: torch.Tensor = out.logits
        return logits

    def _back(self) -> None:
        if self._depth:
            self._cut(self._depth)
        else:
            self._clear()

    def _cut(self, depth: int) -> None:
        n = self._cache.get_seq_length() - depth
        if n:  # 0 would cut everything
            self._cache.crop(-n)

    def _clear(self) -> None:
        self._cache = transformers.DynamicCache()
        self._depth = 0


if __name__ == "__main__":
    protocol.serve(Transformers)
