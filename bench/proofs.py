"""Proof that each architecture runs with each type of weights: the table in docs/models.md.

    python -m bench.proofs --python path/to/python [ARCHITECTURE ...]    (fills results/models.json)
    python -m bench.results render                                       (make results)

The interpreter that --python names has llama-cpp-python; without it the models are compared with
the float64 reference of the tests alone. For each pair it writes a small random model whose
matrices are of that type, and compares logits: with llama.cpp's from the same file, and with the
reference's, which rounds activations as the kernels do. A difference above `bound` is no
proof, and the exit code is 1. `--files` compares the files of `make real-models` with llama.cpp.
Pairs that are there already stay as they are unless --again is given.

An architecture needs a row in `MODELS` here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lariat import LLM, LariatError
from lariat.architectures import ARCHITECTURES
from lariat.formats.block_formats import SUPPORTED
from lariat.tools.inspection import inspect_file

from bench import results
from bench.peers import Engine, PeerError, Worker
from bench.workers import protocol
from tests.reference import Reference, relative_error
from tests.support.family_files import FAMILIES, write_family
from tests.support.model_files import write_llama

PATH = results.FOLDER / "models.json"
REAL = results.ROOT / ".real-models"
_SHAPE = {"dim": 256, "n_layers": 3, "n_heads": 8, "n_kv_heads": 2, "n_ff": 512, "n_vocab": 512}
# Rounding sends a token to another expert where two logits are close: to one of little weight.
_EXPERTS = {"n_experts": 12, "n_used": 6}
_WINDOW = {"gpt-oss.attention.sliding_window": 20}
_N_TOKENS = 60
# The tokens are drawn at random. A trained model has outliers among its activations, which both
# engines round to 8 bits in blocks of their own.
_FILE_BOUND = 0.1

Writer = Callable[..., Path]
# Writes a random model to a path; `weight_type` is that of its matrices.
MODELS: dict[str, Writer] = {
    "gpt-oss": partial(
        write_llama, arch="gpt-oss", biases=True, metadata=_WINDOW, **_SHAPE, **_EXPERTS
    ),
    "llama": partial(write_llama, **_SHAPE),
    "qwen2": partial(write_llama, arch="qwen2", tied=True, **_SHAPE),
    "qwen2moe": partial(write_llama, arch="qwen2moe", **_SHAPE, **_EXPERTS),
    "qwen3": partial(write_llama, arch="qwen3", tied=True, head_dim=64, **_SHAPE),
    "qwen3moe": partial(write_llama, arch="qwen3moe", head_dim=64, **_SHAPE, **_EXPERTS),
    **{name: partial(write_family, arch=name, **_SHAPE) for name in FAMILIES},
}

Proofs = dict[str, Any]
# {"files": {name: {"architecture", "types", "llama.cpp"}}, "random": {architecture: {type: {judge:
# relative error}}}}, where a judge is "llama.cpp" or "reference".


def bound(architecture: str, type_name: str, judge: str) -> float:
    """The largest relative error of logits that counts as the same.

    llama.cpp rounds activations to f16 with F16 weights, to bf16 with BF16 weights; both engines
    round them to 8 bits with quantized weights, where sums of another order move single
    activations to the neighbouring integer. Its GELU is a table of f16.
    """
    if type_name == "F32":
        return 2e-3 if judge == "llama.cpp" and architecture.startswith("gemma") else 1e-4
    if type_name in ("F16", "BF16"):
        return 3e-2 if judge == "llama.cpp" else 1e-4
    return 6e-2 if judge == "llama.cpp" else 3e-2


def types() -> list[str]:
    """All types of weights that run, in the order of their numbers."""
    return [type.name for type in sorted(SUPPORTED)]


def read() -> Proofs:
    """The contents of results/models.json."""
    return dict(json.loads(PATH.read_text("utf-8"))) if PATH.exists() else {}


def letter(proofs: Proofs, architecture: str, type_name: str) -> str:
    """The strongest proof of a pair: "F" a real file, "L" llama.cpp, "R" the reference, or ""."""
    for file in proofs.get("files", {}).values():
        is_it = file["architecture"] == architecture and type_name in file["types"]
        if is_it and file["llama.cpp"] <= _FILE_BOUND:
            return "F"
    errors = proofs["random"].get(architecture, {}).get(type_name, {})
    good = [j for j, error in errors.items() if error <= bound(architecture, type_name, j)]
    return "L" if "llama.cpp" in good else "R" if "reference" in good else ""


def table(proofs: Proofs) -> str:
    """The table of docs/models.md."""
    names = sorted(ARCHITECTURES)
    lines = ["| | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines.append("| --- |" + " --- |" * len(names))
    for type_name in types():
        cells = [letter(proofs, name, type_name) for name in names]
        lines.append(f"| {type_name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def render(page: str) -> str:
    """Return docs/models.md with the table between its marks."""
    return results.between_marks(page, table(read()))


def missing(proofs: Proofs, architectures: Iterable[str]) -> list[str]:
    """Gaps of the table, as sentences that say what to do."""
    lacking = []
    random: Mapping[str, Mapping[str, Any]] = proofs["random"]
    command = "`python -m bench.proofs --python PYTHON_WITH_LLAMA_CPP {}` and `make results`"
    for name in sorted(architectures):
        if not random.get(name):
            lacking.append(
                f"architecture {name}: add its row to MODELS in bench/proofs.py, then run "
                + command.format(name)
            )
    for type_name in types():
        if not any(type_name in row for row in random.values()):
            lacking.append(f"type {type_name}: run " + command.format(f"--types {type_name}"))
    return lacking


# ---- the command -------------------------------------------------------------------------------


class LlamaCpp:
    """llama.cpp in one process, for one model after the other."""

    def __init__(self, python: str, folder: Path) -> None:
        self._peer = Engine(
            "llama.cpp", python, "llama_cpp_worker.py", {"flash": False, "f32_cache": True}
        )
        self._file = folder / "logits.f32"
        self._worker: Worker | None = None

    def logits(self, path: Path, n_vocab: int) -> np.ndarray:
        """Logits of the tokens that `_logits` has too, float64 [n, n_vocab]. Raises PeerError."""
        sizes = {"n_ctx": 128, "n_batch": 128, "n_ubatch": 128, "n_seqs": 1}
        if self._worker is None:
            self._worker = Worker(self._peer, model=str(path), **sizes)
        else:
            self._worker.call("open", model=str(path), **self._peer.options, **sizes)
        self._worker.call("threads", n=1)
        self._worker.call("logits", n=_N_TOKENS, path=str(self._file))
        logits = np.fromfile(self._file, np.float32).reshape(_N_TOKENS, n_vocab)
        return logits.astype(np.float64)

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()


def _logits(path: Path) -> tuple[list[int], np.ndarray]:
    """Tokens, and Lariat's logits of them."""
    with LLM(path, n_ctx=128, n_threads=1, type_k="f32", type_v="f32") as llm:
        ids = protocol.tokens(_N_TOKENS, llm.n_vocab, 6)
        return ids, llm.logits(ids)


def _prove(path: Path, peer: LlamaCpp | None) -> dict[str, float]:
    """The relative error of logits from each judge."""
    ids, got = _logits(path)
    judges = {"reference": Reference(path, activations="q8_f16").logits(ids)}
    if peer is not None:
        judges["llama.cpp"] = peer.logits(path, got.shape[1])
    return {judge: float(f"{relative_error(got, e):.2g}") for judge, e in judges.items()}


def _prove_file(path: Path, peer: LlamaCpp) -> dict[str, Any] | None:
    """The entry of a real file; None for one that does not run."""
    with inspect_file(path) as found:
        if found.reason or found.config is None:
            return None
        matrices = [t for t in found.gguf.tensors.values() if len(t.shape) > 1]
        about = {
            "architecture": found.config.architecture,
            "types": sorted({t.type.name for t in matrices}),
        }
    got = _logits(path)[1]
    error = relative_error(got, peer.logits(path, got.shape[1]))
    return about | {"llama.cpp": float(f"{error:.2g}")}


def _write(proofs: Proofs) -> None:
    random = proofs["random"]
    order = types()
    proofs["random"] = {
        name: {t: random[name][t] for t in order if t in random[name]} for name in sorted(random)
    }
    lines = json.dumps(proofs, indent=1).replace('{\n    "reference"', '{"reference"')
    PATH.write_text(lines.replace(",\n    ", ", ").replace("\n   }", "}") + "\n", "utf-8")


def main(argv: list[str] | None = None) -> int:
    """Fill the file; 1 if a pair is not proved."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architectures", nargs="*", help="default: all")
    parser.add_argument("--types", nargs="+", help="default: all")
    parser.add_argument("--python", help="one that has llama-cpp-python")
    parser.add_argument("--files", action="store_true", help="compare the real models too")
    parser.add_argument("--again", action="store_true", help="compute what is there already too")
    args = parser.parse_args(argv)
    proofs = {"files": {}, "random": {}} | read()
    failed = False
    try:
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder, peer = Path(name), None
            if args.python or args.files:
                peer = LlamaCpp(args.python or sys.executable, folder)
                stack.callback(peer.close)
            for path in sorted(REAL.glob("*.gguf")) if args.files and peer else ():
                entry = _prove_file(path, peer)
                if entry is not None:
                    proofs["files"][path.name] = entry
                    print(f"{path.name}: {entry}", flush=True)
            for architecture in args.architectures or sorted(MODELS):
                row = proofs["random"].setdefault(architecture, {})
                for type_name in args.types or types():
                    if type_name in row and not args.again:
                        continue
                    path = MODELS[architecture](folder / "random.gguf", weight_type=type_name)
                    row[type_name] = errors = _prove(path, peer)
                    shown = ", ".join(f"{judge} {error}" for judge, error in errors.items())
                    good = letter({"random": proofs["random"]}, architecture, type_name)
                    failed |= not good
                    print(f"{architecture} {type_name}: {shown} {good or 'NOT PROVED'}", flush=True)
    except (LariatError, PeerError, OSError) as error:
        print(f"bench.proofs: error: {error}", file=sys.stderr)
        return 1
    finally:
        _write(proofs)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
