"""Logits and greedy tokens beside llama.cpp's, file by file.

    python -m bench.experiments.agreement --python path/to/python [-m model.gguf ...]

The interpreter that --python names has llama-cpp-python.

Without -m, it writes small random models of each architecture, with weights of several types. Both
engines keep keys and values in float32. The differences that remain come from rounding: of float32
sums; of activations to f16 with F16 weights, which llama.cpp does and Lariat does not; and of
single activations to the neighbouring integer with quantized weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lariat import LLM
from lariat.architectures import ARCHITECTURES
from lariat.errors import LariatError

from bench.peers import Engine, PeerError, Worker
from bench.workers import protocol

_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
_SHAPE = {"dim": 256, "n_layers": 4, "n_heads": 8, "n_kv_heads": 2, "n_ff": 512, "n_vocab": 512}
_PROMPT, _GREEDY = 8, 16  # tokens


def main(argv: list[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", action="append", help="may be given several times")
    parser.add_argument("--python", default=sys.executable, help="one that has llama-cpp-python")
    parser.add_argument("-n", type=int, default=100, help="tokens whose logits are compared")
    args = parser.parse_args(argv)
    print("| model | logits: relative error | same likeliest token | greedy tokens in common |")
    print("| --- | ---: | ---: | ---: |")
    try:
        with tempfile.TemporaryDirectory() as folder:
            models = [(Path(m).name, m) for m in args.model or ()] or _random_models(Path(folder))
            for name, path in models:
                print(f"| {name} | {_compare(path, args.n, args.python, Path(folder))} |")
    except (LariatError, OSError) as error:
        print(f"bench.experiments.agreement: error: {error}", file=sys.stderr)
        return 1
    return 0


def _random_models(folder: Path) -> Iterator[tuple[str, str]]:
    from tests.support.family_files import FAMILIES, write_family
    from tests.support.model_files import write_llama

    for model in (*ARCHITECTURES, "llama with experts"):
        arch = model.partition(" ")[0]
        for name in _TYPES:
            # Qwen 3 has heads whose length is not dim / n_heads; small Qwens have a tied output.
            shape = {"head_dim": 64} if arch.startswith("qwen3") else {}
            if arch.endswith(("moe", "-oss")) or "experts" in model:
                shape |= {"n_experts": 16, "n_used": 4}
            if arch == "gpt-oss":
                shape |= {"biases": True, "metadata": {"gpt-oss.attention.sliding_window": 20}}
            tied = arch in ("qwen2", "qwen3", "qwen3moe")
            path = folder / "random.gguf"
            if arch in FAMILIES:
                write_family(path, arch, weight_type=name, **_SHAPE)
            else:
                write_llama(path, arch=arch, weight_type=name, tied=tied, **_SHAPE, **shape)
            yield f"{model} {name}", str(path)


def _compare(path: str, n: int, python: str, folder: Path) -> str:
    """Three cells of the table."""
    options = {"n_ctx": max(n, _PROMPT + _GREEDY) + 8, "n_batch": n + 8, "n_ubatch": n + 8}
    peer = Engine("llama.cpp", python, "llama_cpp_worker.py", {"flash": False, "f32_cache": True})
    with Worker(peer, model=path, n_seqs=1, **options) as worker:
        file = folder / "logits.f32"
        worker.call("logits", n=n, path=str(file))
        greedy = worker.call("greedy", n_prompt=_PROMPT, n=_GREEDY)
    with LLM(path, type_k="f32", type_v="f32", **options) as llm:
        expected = np.fromfile(file, np.float32).reshape(n, llm.n_vocab).astype(np.float64)
        got = llm.logits(protocol.tokens(n, llm.n_vocab, 6))
        ids = protocol.tokens(_PROMPT, llm.n_vocab, 5)
        for _ in range(_GREEDY):
            ids.append(int(llm.logits(ids)[-1].argmax()))
    if not np.isfinite(expected).all():
        raise PeerError("llama.cpp gives logits that are not finite")
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    same = np.mean(got.argmax(axis=1) == expected.argmax(axis=1))
    common = sum(a == b for a, b in zip(ids[_PROMPT:], greedy, strict=True))
    return f"{error:.1e} | {same:.0%} | {common} of {_GREEDY}"


if __name__ == "__main__":
    sys.exit(main())
