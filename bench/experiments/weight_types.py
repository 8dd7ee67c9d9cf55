"""Each type of weights beside llama.cpp: predictions of a text, and speed.

    python -m bench.experiments.weight_types --python path/to/python [Q4_K Q6_K ...]

The interpreter that --python names has llama-cpp-python.

For the first table, llama.cpp's quantizer writes the demo model in each type, and both engines
predict the same held-out stories from the same file. The last column says whether
`lariat quantize`, where it knows the type, writes the same file. For the second table, both engines
run a synthetic model (`bench.synthetic` writes it) in turns, so that a machine that drifts slows
both alike. It has medians, the ratio of Lariat's to llama.cpp's, and the share of the read
bandwidth that was measured in the same repetitions.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import LlamaFileType
from lariat import LLM, GGUFFile, LariatError
from lariat.measure.machine import Probe
from lariat.runtime import threads
from lariat.tools import quantize

from bench.peers import Engine, PeerError, Worker, machine_line
from bench.synthetic import SHAPES, model_path
from models import corpus
from models.evaluate import SHIPPED, nll

TYPES = (
    *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_0", "IQ4_NL", "IQ4_XS"),
    *("MXFP4", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
    *("TQ2_0", "TQ1_0"),
)
_PEER = Path(__file__).parents[2] / "models" / "peer.py"


# llama-quantize gives MXFP4 to experts alone, which the model has not, and wants a matrix for some.
_NOT_WRITTEN = {"MXFP4", "IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"}


def file_type(name: str) -> LlamaFileType:
    """llama.cpp's mixture with the fewest other types."""
    small = "_S" if name in ("Q3_K", "Q4_K", "Q5_K") else ""
    return LlamaFileType[f"MOSTLY_{name}{small}"]


def predict(name: str, python: str, texts: list[str], quantizer: Worker, folder: Path) -> str:
    """A row of the first table."""
    source, path = SHIPPED["F16"], folder / f"{name}.gguf"
    quantizer.call("quantize", source=str(source), target=str(path), file_type=file_type(name))
    same = ""
    if name in quantize.TYPES:
        ours = folder / "ours.gguf"
        quantize.quantize_file(source, ours, quantize.QuantizeConfig(name), force=True)
        same = "yes" if filecmp.cmp(ours, path, shallow=False) else "no"
    done = subprocess.run(
        [python, str(_PEER), str(path)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise PeerError(
            f"llama.cpp ended: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
        )
    answers = json.loads(done.stdout)
    n = sum(len(answer["ids"]) - 1 for answer in answers)
    theirs = sum(answer["nll"] for answer in answers) / n
    with LLM(path) as llm:
        found = sum(nll(llm, answer["ids"]) for answer in answers) / n
    return f"{found:.4f} | {theirs:.4f} | {100 * (found / theirs - 1):+.2f} % | {same}"


def race(name: str, engines: list[Engine], args: argparse.Namespace, probe: Probe) -> str:
    """A row of the second table."""
    path = model_path(args.shape, name)
    with GGUFFile(path) as gguf:
        # A token reads one row of the embedding.
        n_bytes = sum(t.n_bytes for t in gguf.tensors.values() if t.name != "token_embd.weight")
    n_ctx = -(-max(args.n_prompt, args.n_gen) // 256) * 256
    options = {"n_ctx": n_ctx, "n_seqs": 1, "n_batch": args.n_prompt, "n_ubatch": args.n_prompt}
    took: dict[tuple[str, int], list[float]] = {}
    bandwidth = []
    workers: list[Worker] = []
    try:
        for engine in engines:
            workers.append(Worker(engine, model=str(path), **options))
            workers[-1].call("threads", n=args.threads)
        for i in range(args.repetitions + 1):  # the first warms up
            for phase, n in (("decode", args.n_gen), ("prompt", args.n_prompt)):
                for w, worker in enumerate(workers):
                    seconds = worker.call(phase, n=n)
                    if i:
                        took.setdefault((phase, w), []).append(n / seconds)
            if i:
                bandwidth.append(probe.read_bandwidth(args.threads))
    finally:
        for worker in workers:
            worker.close()
    speed = {key: statistics.median(values) for key, values in took.items()}
    share = n_bytes * speed["decode", 0] / statistics.median(bandwidth)
    cells = [f"{n_bytes / 1e6:.0f} MB"]
    for phase in ("decode", "prompt"):
        ours, theirs = speed[phase, 0], speed[phase, 1]
        cells += [f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}"]
        if phase == "decode":
            cells.append(f"{100 * share:.0f} % of {statistics.median(bandwidth) / 1e9:.0f} GB/s")
    return " | ".join(cells)


def main(argv: list[str] | None = None) -> int:
    """Print both tables and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help=f"of {' '.join(TYPES)}; all")
    parser.add_argument("--python", default=sys.executable, help="one that has llama-cpp-python")
    parser.add_argument("--only", choices=("text", "speed"), help="one table")
    parser.add_argument("--texts", type=int, default=20, metavar="N", help="stories that are read")
    parser.add_argument("--shape", choices=SHAPES, default="7b4l")
    parser.add_argument("-p", "--n-prompt", type=int, default=256)
    parser.add_argument("-n", "--n-gen", type=int, default=24)
    parser.add_argument("-t", "--threads", type=int, default=threads.available())
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    args = parser.parse_args(argv)
    names = args.types or TYPES
    if unknown := set(names) - set(TYPES):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(TYPES)}")
    try:
        if args.only != "speed":
            _texts(names, args)
        if args.only != "text":
            _speeds(names, args)
    except (LariatError, OSError) as error:
        print(f"bench.experiments.weight_types: error: {error}", file=sys.stderr)
        return 1
    return 0


def _texts(names: list[str], args: argparse.Namespace) -> None:
    texts = [corpus.story_number(corpus.HELD_OUT, i) for i in range(args.texts)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker(Engine("llama.cpp", args.python, "llama_cpp_quantizer.py", {})) as quantizer,
    ):
        print(f"{len(texts)} stories; {quantizer.about['version']}\n")
        print("| type | nats a token: Lariat | llama.cpp | difference | same file |")
        print("| --- | ---: | ---: | ---: | --- |")
        for name in (name for name in names if name not in _NOT_WRITTEN):
            row = predict(name, args.python, texts, quantizer, Path(folder))
            print(f"| {name} | {row} |", flush=True)


def _speeds(names: list[str], args: argparse.Namespace) -> None:
    engines = [
        Engine("lariat", sys.executable, "lariat_worker.py", {"cache": "roped"}),
        Engine("llama.cpp", args.python, "llama_cpp_worker.py", {"flash": False}),
    ]
    print(f"\n**{args.shape}** on {machine_line([args.threads])}\n")
    tests = [f"tg{args.n_gen}", f"pp{args.n_prompt}"]
    heads = [f"{test} t/s: Lariat | llama.cpp | ratio" for test in tests]
    print(f"| type | read a token | {heads[0]} | share | {heads[1]} |")
    print("| --- " + "| ---: " * 8 + "|")
    probe = Probe(args.threads)
    for name in names:
        print(f"| {name} | {race(name, engines, args, probe)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
