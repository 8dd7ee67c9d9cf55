"""`lariat bench`: the speed of models here, with flags and columns of llama.cpp's llama-bench."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat.cli import (
    bench_output,
    bench_scaling,
    console,
    engine_flags,
    interrupts,
    model_file,
)
from lariat.cli.usage import UsageError
from lariat.config import CACHE_STRATEGIES, CACHE_TYPES, MAX_DRAFT, EngineConfig
from lariat.demo import DEMO_MODEL

if TYPE_CHECKING:
    from lariat.measure.cases import Case, Result, Speculation
    from lariat.measure.machine import Pins

_MAX_VALUES = 1000  # of one flag; more is a typing error
_TABLE = "rope-on-read"
_TABLE_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")

_DESCRIPTION = """\
Measure how fast a model reads prompts (pp) and writes (tg), as llama-bench of llama.cpp does, and
compare that with the machine: with its read bandwidth for writing, with its rate of 8-bit products
for prompts. Both ceilings are measured in the same run. The column `others` is the share of the
processors' time that others took meanwhile; `!` marks rows that they disturbed."""

_EPILOG = """\
Flags with LIST take lists (1,2), ranges (1-8, 1-8+2, 1-16*2) or both, and may be repeated. Every
combination runs. Repetitions of all combinations take turns, so that a machine that drifts slows
all of them alike.

examples:
  lariat bench -m model.gguf
  lariat bench -m model.gguf -p 0 -n 64 -d 0,4096 --cache roped,raw -t 1,2 -o json
  lariat bench -m model.gguf -p 0 --sequences 1-8*2
  lariat bench -m model.gguf -p 0 --spec off,4:0.7
  lariat bench -m model.gguf --table rope-on-read --plot ratio.png
  lariat bench -m model.gguf --scaling -t 1-8 --pin --plot scaling.pdf
  lariat bench -m model.gguf --tune

docs/benchmarks.md explains each column. Ctrl-C prints the results so far."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "bench", help="how fast a model runs here", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "-m",
        "--model",
        metavar="FILE",
        action="append",
        help="a GGUF file; may be given several times (default: the demo model)",
    )
    model_file.add_hub(parser, parser, action="append")
    model_file.add_no_mmap(parser)

    what = parser.add_argument_group("what to measure")
    what_lists = (
        (("-p", "--n-prompt"), "LIST", "tokens of a prompt; 0: none (default: 512)"),
        (("-n", "--n-gen"), "LIST", "tokens to write; 0: none (default: 128)"),
        (("-pg",), "PP,TG", "a prompt of PP tokens and then TG tokens written, in one test"),
        (("-d", "--n-depth"), "LIST", "tokens in the cache before the test (default: 0)"),
        (("--sequences",), "LIST", "sequences that run in one batch (default: 1)"),
        (
            ("--spec",),
            "off,N:P",
            "write with speculation: N guesses a pass, of which each comes with probability P if "
            "all before it do; guessing itself takes no time (default: off)",
        ),
    )
    for names, metavar, text in what_lists:
        what.add_argument(*names, metavar=metavar, action="append", help=text)
    what.add_argument(
        "--table",
        choices=[_TABLE],
        metavar=_TABLE,
        help="compare both caches from an empty cache, as llama.cpp pull request 3234 did; "
        "-p and -n choose the rows",
    )
    what.add_argument(
        "--scaling",
        dest="by_threads",
        action="store_true",
        help="speed-up and efficiency by threads, with both caches unless --cache is given: "
        "writing with -t, prompts with -tb; with fits of Amdahl's law and the roofline, and the "
        "numbers from which on more threads do not pay; --pin keeps threads on labelled cores",
    )

    what.add_argument(
        "--tune",
        action="store_true",
        help="find the fastest -t and -tb for each model; generate, chat, serve and LLM take them "
        "from then on where none are given",
    )

    engine = parser.add_argument_group("engine")
    engine_lists = (
        (("-t", "--threads"), "LIST", "threads that write (default: the physical cores)"),
        (("-tb", "--threads-batch"), "LIST", "threads that read prompts (default: -t)"),
        (("-b", "--batch-size"), "LIST", "max tokens of a batch (default: 2048)"),
        (("-ub", "--ubatch-size"), "LIST", "max tokens of a forward pass (default: 512)"),
        (("--cache",), ",".join(CACHE_STRATEGIES), "strategies of the key cache (default: roped)"),
        (("-ctk", "--cache-type-k"), ",".join(CACHE_TYPES), "types of cached keys (default: f16)"),
        (
            ("-ctv", "--cache-type-v"),
            ",".join(CACHE_TYPES),
            "types of cached values (default: f16)",
        ),
    )
    for names, metavar, text in engine_lists:
        engine.add_argument(*names, metavar=metavar, action="append", help=text)
    engine.add_argument("--pin", action="store_true", help="keep each thread on one processor")
    engine_flags.add_rope(parser)

    how = parser.add_argument_group("how often, and where to")
    how.add_argument(
        "-r",
        "--repetitions",
        type=int,
        metavar="N",
        help=f"repetitions of each test (default: 5; 2 with --table {_TABLE})",
    )
    how.add_argument(
        "--delay",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="time to wait before each test (default: 0)",
    )
    how.add_argument("--no-warmup", action="store_true", help="count the first run of each test")
    for names, text in (
        (("-o", "--output"), "format on standard output (default: md)"),
        (("-oe", "--output-err"), "format on standard error, as a second output"),
    ):
        how.add_argument(
            *names,
            choices=bench_output.FORMATS,
            metavar="|".join(bench_output.FORMATS),
            default="md" if names[0] == "-o" else None,
            help=text,
        )
    how.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the results: .png, .pdf or .svg; needs matplotlib (extra `plot`)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    if args.tune:
        return _tune(args)
    cases = _cases(args)
    repetitions = _repetitions(args)
    if args.plot:
        from lariat.measure import plots

        if args.table is None and not plots.has_axis(cases):
            raise UsageError(
                "argument --plot: there is nothing to draw; give several numbers of threads or "
                f"depths, or --table {_TABLE}"
            )
    args.model = model_file.find_all(args) or [DEMO_MODEL]
    _check_models(args.model, cases, args.use_mmap)

    from lariat.runtime import threads

    n_processors = threads.available()
    setting = bench_output.Setting(cases, args.pin, n_processors)
    printers = [_printer(args, args.output, setting, console.write)]
    if args.output_err:
        printers.append(_printer(args, args.output_err, setting, console.write_err))
    with contextlib.ExitStack() as stack:
        picture = stack.enter_context(plots.Picture(args.plot)) if args.plot else None
        results, interrupted = _measure(args, cases, repetitions, printers)
        if picture and results:
            if args.table:
                picture.draw_table(results)
            else:
                picture.draw_curves(results, n_processors)
    if interrupted:
        console.note("lariat: interrupted; the results are those of what was measured so far")
    return 130 if interrupted else 0


def _measure(
    args: argparse.Namespace,
    cases: Sequence[Case],
    repetitions: int,
    printers: Sequence[bench_output.Printer],
) -> tuple[list[Result], bool]:
    """Run the cases on each model and print its rows. Returns results, and whether Ctrl-C came."""
    from lariat.measure.benchmark import Benchmark
    from lariat.measure.machine import Probe

    interrupts.begin_work()
    n_threads = max(max(case.n_threads, case.n_threads_batch) for case in cases)
    results: list[Result] = []
    interrupted = started = False
    with contextlib.ExitStack() as stack:
        pins = stack.enter_context(_pins()) if args.pin else None
        if pins:
            pins.place(n_threads)
        try:
            probe = Probe(n_threads)
            for path in args.model:
                with console.Bar("loading") as bar:
                    benchmark = Benchmark(
                        path,
                        cases,
                        probe=probe,
                        pins=pins,
                        progress=bar,
                        use_mmap=args.use_mmap,
                    )
                with benchmark:
                    if not started:  # so that a full disk shows before the work
                        started = True
                        for printer in printers:
                            printer.start()
                    measure = benchmark.run_growing if args.table else benchmark.run
                    try:
                        with console.Bar("measuring") as bar:
                            measure(
                                repetitions,
                                warm_up=not args.no_warmup,
                                delay=args.delay,
                                progress=bar,
                            )
                    except KeyboardInterrupt:
                        interrupted = True
                    done = [result for result in benchmark.results if result.samples_ns]
                    results += done
                    for printer in printers:
                        printer.model(done)
                if interrupted:
                    break
        finally:
            if started:  # even if a later model cannot be loaded: JSON needs its bracket
                for printer in printers:
                    printer.end()
    return results, interrupted


def _tune(args: argparse.Namespace) -> int:
    from lariat.cli import bench_tune

    _refuse(
        args,
        "--tune: it chooses what to measure",
        ("-p", args.n_prompt),
        ("-n", args.n_gen),
        ("-pg", args.pg),
        ("-d", args.n_depth),
        ("--sequences", args.sequences),
        ("--spec", args.spec),
        ("--table", args.table),
        ("--scaling", args.by_threads or None),
        ("-t", args.threads),
        ("-tb", args.threads_batch),
        ("-r", args.repetitions),
        ("--plot", args.plot),
        ("-oe", args.output_err),
        ("--pin", args.pin or None),
    )
    if args.output not in ("md", "json"):
        raise UsageError("argument -o/--output: --tune prints md or json")
    return bench_tune.run(model_file.find_all(args) or [DEMO_MODEL], args.output, args.use_mmap)


def _pins() -> Pins:
    from lariat.measure.machine import Pins

    return Pins()


def _printer(
    args: argparse.Namespace,
    name: str,
    setting: bench_output.Setting,
    write: Callable[[str], None],
) -> bench_output.Printer:
    if name == "md" and args.table:
        return bench_output.RopeOnRead(setting, write)
    if args.by_threads and name in ("md", "json"):
        return (bench_scaling.Scaling if name == "md" else bench_scaling.Json)(setting, write)
    return bench_output.FORMATS[name](setting, write)


# ---- flags -------------------------------------------------------------------------------------


def _cases(args: argparse.Namespace) -> list[Case]:
    """Make every combination that the flags ask for. UsageError if they contradict each other."""
    from lariat.measure.cases import combinations
    from lariat.runtime import threads

    if args.table and args.by_threads:
        raise UsageError("argument --table: not allowed with argument --scaling")
    if args.table:
        _refuse(
            args,
            f"--table: {_TABLE} compares both caches from an empty cache",
            ("--cache", args.cache),
            ("-d", args.n_depth),
            ("-pg", args.pg),
            ("--sequences", args.sequences),
            ("--spec", args.spec),
        )
    both = bool(args.table or args.by_threads)
    n_threads = (
        list(range(1, threads.available() + 1)) if args.by_threads else [threads.available()]
    )
    n_gen = list(_TABLE_LENGTHS) if args.table else [128]
    prompts = _numbers("-p/--n-prompt", args.n_prompt, [512])
    writes = _numbers("-n/--n-gen", args.n_gen, n_gen)
    shapes = [(p, 0) for p in prompts if p] + [(0, n) for n in writes if n] + _pairs(args.pg)
    if not shapes:
        raise UsageError("there is nothing to measure: -p and -n are 0, and there is no -pg")
    lists: dict[str, list[int] | list[str]] = {
        "n_depth": _numbers("-d/--n-depth", args.n_depth, [0]),
        "n_sequences": _numbers("--sequences", args.sequences, [1], 1, 4096),
        "n_threads": _numbers("-t/--threads", args.threads, n_threads, 1, threads.MAX_THREADS),
        "n_batch": _numbers("-b/--batch-size", args.batch_size, [2048], 1, 1 << 20),
        "n_ubatch": _numbers("-ub/--ubatch-size", args.ubatch_size, [512], 1, 1 << 16),
        "type_k": _names("-ctk/--cache-type-k", args.cache_type_k, CACHE_TYPES, ["f16"]),
        "type_v": _names("-ctv/--cache-type-v", args.cache_type_v, CACHE_TYPES, ["f16"]),
        "cache": _names(
            "--cache", args.cache, CACHE_STRATEGIES, list(CACHE_STRATEGIES) if both else ["roped"]
        ),
    }
    if args.threads_batch and not args.by_threads:
        lists["n_threads_batch"] = _numbers(
            "-tb/--threads-batch", args.threads_batch, [], 1, threads.MAX_THREADS
        )
    rope = engine_flags.rope(args)
    for cache in lists["cache"]:
        try:
            EngineConfig(cache=str(cache), rope=rope)
        except ValueError as error:
            raise UsageError(f"argument --cache: {error}") from None
    if not args.by_threads:
        return combinations(shapes, rope, _specs(args.spec), **lists)
    # Each test has one number of threads: prompts those of -tb, the others those of -t.
    prompts_only = [shape for shape in shapes if not shape[1]]
    others = [shape for shape in shapes if shape[1]]
    cases = combinations(others, rope, _specs(args.spec), **lists)
    if args.threads_batch:
        lists["n_threads"] = _numbers(
            "-tb/--threads-batch", args.threads_batch, [], 1, threads.MAX_THREADS
        )
    return combinations(prompts_only, rope, [None], **lists) + cases


def _refuse(args: argparse.Namespace, why: str, *flags: tuple[str, object]) -> None:
    for name, value in flags:
        if value is not None:
            raise UsageError(f"argument {why}, so {name} cannot be given")


def _numbers(
    flag: str, texts: list[str] | None, default: list[int], minimum: int = 0, maximum: int = 1 << 27
) -> list[int]:
    """Return the whole numbers of a flag, from lists and ranges, in order, each once."""
    if texts is None:
        return default
    values: dict[int, None] = {}
    for part in ",".join(texts).split(","):
        for value in _range(flag, part):
            if not minimum <= value <= maximum:
                raise UsageError(f"argument {flag}: {value} is not within {minimum} to {maximum}")
            values[value] = None
            if len(values) > _MAX_VALUES:
                raise UsageError(f"argument {flag}: {part!r} makes more than {_MAX_VALUES} values")
    return list(values)


def _range(flag: str, text: str) -> Iterator[int]:
    """first, first-last, first-last+step or first-last*factor"""
    match = _RANGE.fullmatch(text.strip())
    if not match or len(text) > 60:
        raise UsageError(
            f"argument {flag}: {text!r} is not a number, nor a range such as 1-8, 1-8+2 or 1-16*2"
        )
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    by = int(match[4] or 1)
    if last < first:
        raise UsageError(f"argument {flag}: the range {text!r} ends before it begins")
    if by < (2 if match[3] == "*" else 1) or (match[3] == "*" and first == 0):
        raise UsageError(f"argument {flag}: the range {text!r} never reaches its end")
    while first <= last:
        yield first
        first = first * by if match[3] == "*" else first + by


def _specs(texts: list[str] | None) -> list[Speculation | None]:
    """Return the kinds of speculation of --spec, in order, each once."""
    from lariat.measure.cases import Speculation

    found: dict[Speculation | None, None] = {}
    for part in ",".join(texts or ["off"]).split(","):
        match = re.fullmatch(r"(\d{1,2}):(\d(?:\.\d{1,6})?|\.\d{1,6})", part.strip())
        if part.strip() == "off":
            found[None] = None
        elif match and 1 <= int(match[1]) <= MAX_DRAFT and float(match[2]) <= 1:
            found[Speculation(int(match[1]), float(match[2]))] = None
        else:
            raise UsageError(
                f"argument --spec: {part!r} is not off, nor guesses (1 to {MAX_DRAFT}) and a "
                "probability, such as 4:0.7"
            )
    return list(found)


def _pairs(texts: list[str] | None) -> list[tuple[int, int]]:
    """Return the pairs (n_prompt, n_gen) of -pg."""
    pairs = []
    for text in texts or []:
        match = re.fullmatch(r"(\d{1,9}),(\d{1,9})", text.strip())
        if not match or not int(match[1]) + int(match[2]):
            raise UsageError(f"argument -pg: {text!r} is not two numbers such as 512,128")
        pairs.append((int(match[1]), int(match[2])))
    return pairs


def _names(
    flag: str, texts: list[str] | None, known: tuple[str, ...], default: list[str]
) -> list[str]:
    """Return the names of a flag, in order, each once."""
    if texts is None:
        return default
    names = list(dict.fromkeys(part.strip() for part in ",".join(texts).split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"argument {flag}: {name!r} is not one of {', '.join(known)}")
    return names


def _repetitions(args: argparse.Namespace) -> int:
    if not 0 <= args.delay <= 86400:  # false for NaN too
        raise UsageError(f"argument --delay: {args.delay:g} is not within 0 to 86400 seconds")
    if args.repetitions is None:
        return 2 if args.table else 5
    if not 1 <= args.repetitions <= 1 << 20:
        raise UsageError(
            f"argument -r/--repetitions: {args.repetitions} is not within 1 to {1 << 20}"
        )
    return int(args.repetitions)


def _check_models(paths: Sequence[str], cases: Sequence[Case], use_mmap: bool) -> None:
    """Find bad models and cases that do not fit before the first model runs for an hour."""
    from lariat.architectures.loading import read_config
    from lariat.formats.gguf_split import GGUFModel
    from lariat.measure.cases import check_fits

    for path in paths:
        with GGUFModel(Path(path), use_mmap=use_mmap) as gguf:
            config = read_config(gguf)
            for case in cases:
                check_fits(case, config, path)
