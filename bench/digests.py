"""Digests of all that the engine computes: they show that a redesign changes no result.

python -m bench.digests -o FILE.json         writes digests of all levels that this processor has
python -m bench.digests --check FILE.json    computes them again and names each that deviates

A digest stands for one way to run: a level (instruction set and kind of core), an architecture, a
type of weights, a cache and a type of keys and values, as in "avx2-other/llama/Q4_K/raw/q8_0". It
is the beginning of the SHA-256 of all logits, float32, that five stages bring:

prompt  75 tokens in one pass: wide tiles, and attention over three blocks
pieces  42 of them in passes of 7
tokens  34 of them one by one: one column, one query
batch   three sequences that decode together; token ids, and logits from the keys they left
edit    a context: append, delete a span, go on, with several tokens and with one

Each runs with one thread and with two, which must agree. F32 weights, which hide least, also run
with heads of other shapes (a sixth part of the key names them), with the other types of keys and
values, and with other angles of RoPE. The scalar level is so slow that other weights run there with
a roped cache of f16 only. Three architectures run with every type of weights; the others, which
share the kernels, with the types of `MORE_ARCHS`.

Models are random and made anew each time. The file has digests of them too, so that another model
is told apart from another result. Angles of RoPE are NumPy's cosines, which may end in another bit
on another processor: compare on one machine, or know that it can matter.

Exit code: 0, 1 where something deviates, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lariat import LLM, RopeConfig, SamplingParams
from lariat._kernels import core, isa, supported_isas
from lariat.formats.block_formats import SUPPORTED

from tests.support.family_files import FAMILIES, write_family
from tests.support.model_files import write_llama

ROOT = Path(__file__).parents[1]
TYPES = tuple(type.name for type in sorted(SUPPORTED))
# Where matrices of experts are multiplied, MXFP4 is the type of gpt-oss.
EXPERTS = ("mixtral", "qwen2moe", "qwen3moe", "gpt-oss")
MORE_ARCHS = dict.fromkeys(FAMILIES, ("F32", "Q4_K")) | dict.fromkeys(
    EXPERTS, ("F32", "Q4_K", "MXFP4")
)
ARCHS = ("llama", "qwen2", "qwen3", *MORE_ARCHS)
CORES = ("other", "intel")
CACHES = ("roped", "raw")
KV_TYPES = ("f16", "q8_0", "q4_ch")
STAGES = ("prompt", "pieces", "tokens", "batch", "edit")

N_VOCAB = 288
N_PROMPT = 75  # three blocks of 32, the last one not full
IDS: list[int] = np.random.default_rng(3).integers(3, N_VOCAB, N_PROMPT).tolist()


@dataclass(frozen=True)
class Way:
    """Heads of a model, and how it is run."""

    name: str = ""  # last part of the key
    model: str = ""  # last part of the model's name
    heads: dict[str, int] = field(default_factory=dict)
    caches: tuple[str, ...] = CACHES
    kv_types: tuple[str, ...] = KV_TYPES
    rope: RopeConfig | None = None


_EXPERTS = {"n_layers": 2, "n_experts": 16, "n_used": 4}
_WINDOW = {"gpt-oss.attention.sliding_window": 20}
# Writes a random model to a path; the shapes that all have are given too.
WRITERS: dict[str, Callable[..., Path]] = {
    **{arch: partial(write_llama, arch=arch) for arch in ("llama", "qwen2", "qwen3")},
    **{arch: partial(write_family, arch=arch, n_layers=4) for arch in FAMILIES},
    "mixtral": partial(write_llama, arch="llama", **_EXPERTS),
    "qwen2moe": partial(write_llama, arch="qwen2moe", **_EXPERTS),
    "qwen3moe": partial(write_llama, arch="qwen3moe", **_EXPERTS),
    "gpt-oss": partial(write_llama, arch="gpt-oss", biases=True, metadata=_WINDOW, **_EXPERTS),
}

USUAL = Way()
OF_MORE_ARCHS = Way(kv_types=("f16", "q8_0"))
# Of weights that are not F32, at the scalar level
USUAL_OF_SCALAR = Way(caches=("roped",), kv_types=("f16",))
MORE_ARCHS_OF_SCALAR = Way(kv_types=("f16",))
# Only of F32 weights, and of the architectures that run with every type
OTHERS = (
    Way(kv_types=("f32", "q4_0", "q8_ch")),
    Way("group8", "group8", {"n_heads": 8, "n_kv_heads": 1}),
    Way("group1", "group1", {"n_heads": 4, "n_kv_heads": 4}),
    Way("dim128", "dim128", {"head_dim": 128}),
    # Quantized keys and values need a multiple of 32.
    Way("dim40", "dim40", {"head_dim": 40}, kv_types=("f16", "f32")),
    Way("part", "part", {"rope_dim": 24}, kv_types=("f16",)),
    Way("yarn", kv_types=("f16",), rope=RopeConfig(scaling="yarn", scale=4, yarn_orig_ctx=64)),
    Way("far", caches=("raw",), rope=RopeConfig(grp_attn_n=4, grp_attn_w=32)),
)


def ways(level: str, arch: str, weight_type: str) -> tuple[Way, ...]:
    if arch in MORE_ARCHS:
        return (MORE_ARCHS_OF_SCALAR if level == "scalar" else OF_MORE_ARCHS,)
    if weight_type == "F32":
        return (USUAL, *OTHERS)
    return (USUAL_OF_SCALAR,) if level == "scalar" else (USUAL,)


def types_of(arch: str, types: list[str]) -> list[str]:
    """Those of `types` with which `arch` runs."""
    return [type for type in types if type in MORE_ARCHS.get(arch, TYPES)]


def levels() -> tuple[str, ...]:
    """All that this processor can run."""
    vectors = [f"{isa}-{core}" for isa in supported_isas() if isa != "scalar" for core in CORES]
    return ("scalar", *vectors)


def joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


# ---- models ----


def write_models(folder: Path, archs: list[str], types: list[str]) -> dict[str, str]:
    """The SHA-256 of each model, by name; a file that is there already is left as it is."""
    digests = {}
    for arch in archs:
        for type in types_of(arch, types):
            for way in ways("", arch, type):
                path = folder / file_name(arch, type, way)
                if not path.exists():
                    unfinished = path.with_suffix(".part")
                    WRITERS[arch](
                        unfinished, weight_type=type, dim=256, n_ff=512, n_vocab=N_VOCAB,
                        **way.heads,
                    )  # fmt: skip
                    unfinished.rename(path)
                name = joined(arch, type, way.model)
                digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def file_name(arch: str, type: str, way: Way) -> str:
    return joined(arch, type, way.model).replace("/", "-") + ".gguf"


# ---- what is computed, in a process of one level ----


def stages(path: Path, way: Way, cache: str, kv_type: str, n_threads: int) -> dict[str, bytes]:
    """The bytes of each stage: float32 logits, and int32 token ids before those of the batch."""

    def load(n_ubatch: int = 512) -> LLM:
        return LLM(
            path, n_ctx=256, n_threads=n_threads, n_ubatch=n_ubatch, cache=cache, type_k=kv_type,
            type_v=kv_type, rope=way.rope,
        )  # fmt: skip

    found = {}
    with load(n_ubatch=7) as llm:
        found["pieces"] = llm.logits(IDS[:42]).tobytes()
    with load(n_ubatch=1) as llm:
        found["tokens"] = llm.logits(IDS[:34]).tobytes()
    with load() as llm:
        found["prompt"] = llm.logits(IDS).tobytes()
        found["batch"] = b"".join(_batch(llm))
        # Roped keys by channel stay at their positions, so only the end can go.
        from_end = cache == "roped" and kv_type.endswith("_ch")
        found["edit"] = b"".join(_edit(llm, 25 if from_end else 10))
    return found


def _batch(llm: LLM) -> Iterator[bytes]:
    """Three sequences decode together. Their logits are out of reach; their keys and values are
    what the next logits are made of."""
    contexts = [llm.context() for _ in range(3)]
    starts = [IDS[:34], IDS[34:43], IDS[43:46]]
    params = SamplingParams(temperature=0.9, seed=7, max_tokens=4, ignore_eos=True)
    streams = [
        llm.stream(ids, params, context=context)
        for ids, context in zip(starts, contexts, strict=True)
    ]
    for stream in streams:
        for _ in stream:
            pass
        yield np.array(stream.completion.token_ids, np.int32).tobytes()
    for context in contexts:
        yield context.logits(IDS[60:62]).tobytes()
        context.close()


def _edit(llm: LLM, start: int) -> Iterator[bytes]:
    """20 tokens go out of 45; those behind move up."""
    with llm.context() as context:
        context.append(IDS[:45])
        context.delete(start, start + 20)
        context.append(IDS[45:49])
        yield context.logits(IDS[:3]).tobytes()
        yield context.logits(IDS[3:4]).tobytes()


def work() -> None:
    """Compute what standard input asks for; the answer goes to standard output as JSON."""
    job = json.load(sys.stdin)
    level, folder = job["level"], Path(job["folder"])
    assert level in (isa(), f"{isa()}-{core()}"), level
    digests: dict[str, str] = {}
    differ: list[str] = []
    for arch in job["archs"]:
        for type in types_of(arch, job["types"]):
            began, n = time.perf_counter(), len(digests)
            for way in ways(level, arch, type):
                path = folder / file_name(arch, type, way)
                for cache in way.caches:
                    for kv_type in way.kv_types:
                        one, two = (stages(path, way, cache, kv_type, n) for n in (1, 2))
                        key = joined(level, arch, type, cache, kv_type, way.name)
                        differ += [joined(key, s) for s in STAGES if one[s] != two[s]]
                        digests |= _digests(key, one, job["stages"])
            seconds = time.perf_counter() - began
            what = joined(level, arch, type)
            print(f"{what}: {len(digests) - n} digests, {seconds:.1f} s", file=sys.stderr)
    json.dump({"digests": digests, "threads_differ": differ}, sys.stdout)


def _digests(key: str, found: dict[str, bytes], by_stage: bool) -> dict[str, str]:
    if by_stage:
        return {joined(key, stage): _digest(found[stage]) for stage in STAGES}
    return {key: _digest(b"".join(found[stage] for stage in STAGES))}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


# ---- all levels ----


def compute(
    levels: list[str], archs: list[str], types: list[str], by_stage: bool, models: Path | None
) -> dict[str, Any]:
    """All that a file of digests holds, computed here."""
    result: dict[str, Any] = {
        "processor": processor(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "gguf": version("gguf"),
        "by_stage": by_stage,
        "threads_differ": [],
        "models": {},
        "digests": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result["models"] = write_models(folder, archs, types)
        # Threads that wait sleep: others may use this machine, and no result depends on it.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        for level in levels:
            name, _, kind = level.partition("-")
            job = {
                "level": level, "folder": str(folder.resolve()), "archs": archs, "types": types,
                "stages": by_stage,
            }  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-c", "from bench.digests import work; work()"],
                input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT,
                env=environment | {"LARIAT_ISA": name, "LARIAT_CORE": kind},
            )  # fmt: skip
            answer = json.loads(done.stdout)
            result["digests"] |= answer["digests"]
            result["threads_differ"] += answer["threads_differ"]
    return result


def processor() -> str:
    """The name that the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def compare(
    before: dict[str, Any],
    now: dict[str, Any],
    levels: list[str],
    archs: list[str] | None = None,
    types: list[str] | None = None,
) -> tuple[list[str], str]:
    """A line for each deviation of `now`, and a summary. None: all that `before` has.

    A digest that is only in `now` is no deviation: a new type has no past.
    """

    def is_due(name: str) -> bool:
        arch, type = name.split("/")[:2]
        return (archs is None or arch in archs) and (types is None or type in types)

    lines = [f"{key}: one thread and two differ" for key in now["threads_differ"]]
    for name, digest in before["models"].items():
        if is_due(name) and now["models"].get(name) != digest:
            is_gone = name not in now["models"]
            lines.append(f"{name}: the model file is {'gone' if is_gone else 'another one'}")
    counts: Counter[str] = Counter()
    for key, digest in before["digests"].items():
        level, _, rest = key.partition("/")
        if level not in levels or not is_due(rest):
            counts["left out"] += 1
        elif key not in now["digests"]:
            counts["gone"] += 1
            lines.append(f"{key}: gone")
        elif now["digests"][key] != digest:
            counts["changed"] += 1
            lines.append(f"{key}: {digest} became {now['digests'][key]}")
        else:
            counts["equal"] += 1
    counts["new"] = len(now["digests"].keys() - before["digests"].keys())
    if not counts["equal"] + counts["changed"] + counts["gone"]:
        lines.append("nothing was compared: the file has no such digests")
    names = ("equal", "changed", "gone", "new", "left out")
    summary = ", ".join(f"{counts[name]} {name}" for name in names)
    return lines, f"{summary}; {len(lines)} deviations"


# ---- the command ----


def main(argv: list[str] | None = None) -> int:
    """Write digests or compare with those of a file; 1 if anything deviates."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.digests", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", metavar="FILE", type=Path, help="write digests to FILE")
    what.add_argument(
        "--check", metavar="FILE", type=Path, help="compute again, and compare with FILE"
    )
    parser.add_argument(
        "--levels", metavar="LIST",
        help="levels to run, separated by commas; avx2 is both avx2-other and avx2-intel "
        "(default: all of this processor)",
    )  # fmt: skip
    parser.add_argument("--archs", metavar="LIST", help=f"some of {','.join(ARCHS)}")
    parser.add_argument("--types", metavar="LIST", help=f"some of {','.join(TYPES)}")
    parser.add_argument(
        "--stages", action="store_true",
        help="with -o: a digest for each stage, which tells where a deviation begins",
    )  # fmt: skip
    parser.add_argument(
        "--models", metavar="FOLDER", type=Path,
        help="keep model files there, and use those that are there already (default: made anew); "
        "spares an emulator the making",
    )  # fmt: skip
    args = parser.parse_args(argv)

    try:
        chosen = _chosen_levels(args.levels)
        archs, types = _chosen(args.archs, ARCHS), _chosen(args.types, TYPES)
        before = json.loads(args.check.read_text("utf-8")) if args.check else None
    except (ValueError, OSError) as error:
        parser.error(str(error))
    by_stage = before["by_stage"] if before else args.stages
    began = time.perf_counter()
    now = compute(chosen, archs or list(ARCHS), types or list(TYPES), by_stage, args.models)
    seconds = time.perf_counter() - began
    if before is None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(now, indent=0) + "\n", "utf-8")
        for key in now["threads_differ"]:
            print(f"{key}: one thread and two differ")
        print(f"{args.output}: {len(now['digests'])} digests, {seconds:.0f} s")
        return 1 if now["threads_differ"] else 0
    for name in ("processor", "numpy", "gguf"):
        if before[name] != now[name]:
            print(f"note: {name} was {before[name]}, is {now[name]}")
    absent = {key.partition("/")[0] for key in before["digests"]} - set(levels())
    if absent:
        print(f"note: this processor cannot run {', '.join(sorted(absent))}")
    lines, summary = compare(before, now, chosen, archs, types)
    print("\n".join([*lines, f"{summary}; {seconds:.0f} s"]))
    return 1 if lines else 0


def _chosen_levels(text: str | None) -> list[str]:
    """Levels by their names, or by those of their instruction sets."""
    here = levels()
    if text is None:
        return list(here)
    groups: dict[str, list[str]] = {}
    for level in here:
        for name in {level, level.partition("-")[0]}:
            groups.setdefault(name, []).append(level)
    names = _chosen(text, tuple(groups)) or []
    return list(dict.fromkeys(level for name in names for level in groups[name]))


def _chosen(text: str | None, known: tuple[str, ...]) -> list[str] | None:
    """Names of a list with commas; ValueError if one is not known."""
    if text is None:
        return None
    for name in text.split(","):
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
