"""llama.cpp through the low-level interface of llama-cpp-python, for `bench.peers`."""

from __future__ import annotations

import ctypes

import llama_cpp
import protocol


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    pass


class LlamaCpp:
    """Sequence 0 filled to a depth, and others for batches; a cache for all of them."""

    def __init__(
        self,
        model: str,
        n_ctx: int,
        n_seqs: int,
        n_batch: int,
        n_ubatch: int,
        flash: bool,
        f32_cache: bool = False,
    ) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = n_ctx, n_seqs, True
        params.n_batch, params.n_ubatch = n_batch, n_ubatch
        params.flash_attn_type = 1 if flash else 0
        if f32_cache:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._batch = llama_cpp.llama_batch_init(n_batch, 0, 1)
        self._n_batch, self._depth = n_batch, 0

    def about(self) -> dict[str, object]:
        """Facts about the engine, for the report."""
        info = llama_cpp.llama_print_system_info().decode()
        return {
            "n_vocab": self._n_vocab,
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "system": info,
        }

    def threads(self, n: int) -> None:
        """Set the number of threads for everything that follows."""
        llama_cpp.llama_set_n_threads(self._context, n, n)

    def fill(self, depth: int) -> None:
        """Bring the cache to `depth` tokens."""
        if depth < self._depth:
            self._forget(0, depth)
            self._depth = depth
        if depth > self._depth:
            self._prompt(protocol.tokens(depth - self._depth, self._n_vocab, 1))
            self._depth = depth

    def prompt(self, n: int) -> float:
        """Return seconds for n tokens behind those of the cache, with the logits of the last."""
        ids = protocol.tokens(n, self._n_vocab, 2)
        took = protocol.seconds(lambda: self._prompt(ids))
        self._forget(0, self._depth)
        return took

    def decode(self, n: int) -> float:
        """Return seconds for n tokens, one after the other, behind those of the cache."""
        ids = protocol.tokens(n, self._n_vocab, 3)

        def work() -> None:
            for i, token in enumerate(ids):
                self._run([(token, self._depth + i, 0, True)])

        took = protocol.seconds(work)
        self._forget(0, self._depth)
        return took

    def decode_together(self, n_seqs: int, n: int) -> float:
        """Return seconds for n tokens of each of n_seqs empty sequences. Empties the cache."""
        self._clear()
        ids = protocol.tokens(n, self._n_vocab, 4)

        def work() -> None:
            for i, token in enumerate(ids):
                self._run([(token, i, s, True) for s in range(n_seqs)])

        took = protocol.seconds(work)
        self._clear()
        return took

    def greedy(self, n_prompt: int, n: int) -> list[int]:
        """Return the likeliest n tokens after a prompt. Empties the cache."""
        self._clear()
        ids = protocol.tokens(n_prompt, self._n_vocab, 5)
        self._prompt(ids)
        found: list[int] = []
        for i in range(n):
            logits = llama_cpp.llama_get_logits_ith(self._context, -1)
            values = logits[: self._n_vocab]
            found.append(max(range(self._n_vocab), key=values.__getitem__))
            self._run([(found[-1], n_prompt + i, 0, True)])
        self._clear()
        return found

    def logits(self, n: int, path: str) -> None:
        """Write the logits of n tokens to a file, float32 [n, n_vocab]. Empties the cache."""
        self._clear()
        ids = protocol.tokens(n, self._n_vocab, 6)
        self._run([(token, i, 0, True) for i, token in enumerate(ids)])
        with open(path, "wb") as file:
            for i in range(n):
                row = llama_cpp.llama_get_logits_ith(self._context, i)
                file.write(ctypes.string_at(row, 4 * self._n_vocab))
        self._clear()

    def memory(self) -> dict[str, int]:
        """See `protocol.memory`."""
        return protocol.memory()

    def _prompt(self, ids: list[int]) -> None:
        for at in range(0, len(ids), self._n_batch):
            part = ids[at : at + self._n_batch]
            self._run(
                [
                    (token, self._depth + at + i, 0, at + i == len(ids) - 1)
                    for i, token in enumerate(part)
                ]
            )

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One decode of (token, position, sequence, whether logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self._context)

    def _forget(self, sequence: int, start: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)
        self._depth = 0


if __name__ == "__main__":
    protocol.serve(LlamaCpp)
