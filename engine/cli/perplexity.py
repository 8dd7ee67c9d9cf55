"""`lariat perplexity`: how well a model predicts a text, measured as llama-perplexity does it."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat.cli import console, engine_flags, model_file, prompt, text_windows
from lariat.cli.usage import UsageError
from lariat.errors import LariatError

if TYPE_CHECKING:
    from lariat.llm import LLM
    from lariat.tools.perplexity import Base, BaseWriter, Divergence, Ids, Perplexity

_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0)

_DESCRIPTION = """\
Print the perplexity of a text: exp of the mean negative log-likelihood of its tokens. Lower is
better. As in llama-perplexity, windows of -c tokens are computed one by one, and the second half of
each is scored."""

_EPILOG = """\
examples:
  lariat perplexity -m model.gguf -f text.txt
  lariat perplexity -m model.gguf -f text.txt -c 2048 --chunks 8 --cache raw -o json
what a change costs, in nats and in other likeliest tokens:
  lariat perplexity -m model-f16.gguf  -f text.txt --kl-base base.kl
  lariat perplexity -m model-q4_0.gguf --kl-base base.kl --kl-divergence

The file of --kl-base has 2 bytes for each pair of a scored token and a token of the vocabulary. The
second command takes its text from this file. With -f it checks that the text is the same."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "perplexity",
        help="how well a model predicts a text",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    text = text_windows.add(parser, "score", required=False)
    text.add_argument(
        "--kl-base",
        "--kl-divergence-base",
        dest="kl_base",
        metavar="FILE",
        help="save all predictions to this file, or with --kl-divergence compare with them",
    )
    text.add_argument(
        "--kl-divergence",
        action="store_true",
        help="compare with the predictions of --kl-base instead of saving",
    )
    text.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="default: text"
    )
    text.add_argument("-q", "--quiet", action="store_true", help="no bars, only the result")
    engine_flags.add(parser, n_ctx=512)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    n_windows = text_windows.asked(args)
    if args.kl_divergence and not args.kl_base:
        raise UsageError("--kl-divergence needs the file to compare with: --kl-base FILE")
    has_text = args.prompt is not None or args.file is not None
    if not has_text and not args.kl_divergence:
        raise UsageError("one of -p/--prompt and -f/--file is required (the text)")
    config = engine_flags.config(args)
    if 0 < config.n_ctx < 4:
        raise UsageError(f"argument -c/--ctx-size: {config.n_ctx}, expected at least 4")
    overrides = model_file.overrides(args)
    text = prompt.read(args) if has_text else None

    from lariat.formats.atomic import check_writable
    from lariat.tools import perplexity

    base = perplexity.Base(args.kl_base) if args.kl_divergence else None
    if base is not None:
        config = replace(config, n_ctx=base.windows.shape[1])
    elif args.kl_base:
        check_writable(Path(args.kl_base), LariatError)
    with (
        engine_flags.load(args, config, overrides) as llm,
        console.Bar("scoring", enabled=not args.quiet) as bar,
    ):
        windows = None
        if text is not None:
            windows = perplexity.cut(
                llm, text, llm.n_ctx, n_windows, parse_special=args.parse_special
            )
        about = _about(llm, args)
        if base is not None:
            return _compare(llm, base, windows, about, args, bar)
        assert windows is not None
        return _measure(llm, windows, about, args, bar)


def _measure(
    llm: LLM, windows: Ids, about: dict[str, Any], args: argparse.Namespace, bar: console.Bar
) -> int:
    from lariat.tools import perplexity

    running: list[float] = []

    def on_window(n_done: int, value: float) -> None:
        running.append(value)
        bar(n_done / len(windows), f"scoring, PPL {value:.4f}")

    if args.kl_base:
        with perplexity.BaseWriter(args.kl_base, windows, llm.n_vocab) as writer:
            found = _scored(llm, windows, writer, on_window)
    else:
        found = _scored(llm, windows, None, on_window)
    bar.close()
    if args.output == "json":
        _print_json({**about, "n_windows": len(windows), **_numbers(found), "running": running})
    else:
        if not args.quiet:
            console.note(_headline(about, len(windows)))
        console.write(f"Final estimate: PPL = {found.value:.4f} +/- {found.error:.5f}\n")
    return 0


def _scored(llm: LLM, windows: Ids, writer: BaseWriter | None, on_window: Any) -> Perplexity:
    from lariat.tools import perplexity

    return perplexity.measure(llm, windows, base=writer, on_window=on_window)


def _compare(
    llm: LLM,
    base: Base,
    windows: Ids | None,
    about: dict[str, Any],
    args: argparse.Namespace,
    bar: console.Bar,
) -> int:
    from lariat.tools import perplexity

    base.check(llm, windows)
    n = len(base.windows)

    def on_window(n_done: int, value: float) -> None:
        bar(n_done / n, f"comparing, PPL {value:.4f}")

    found = perplexity.compare(llm, base, on_window=on_window)
    bar.close()
    if args.output == "json":
        _print_json({**about, "n_windows": n, **_numbers(found.run), **_kl_numbers(found)})
    else:
        if not args.quiet:
            console.note(_headline(about, n))
        console.write(_kl_text(found))
    return 0


def _about(llm: LLM, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": model_file.shown(args.model),
        "n_ctx": llm.n_ctx,
        "cache": args.cache,
        "type_k": args.type_k,
        "type_v": args.type_v,
    }


def _headline(about: dict[str, Any], n_windows: int) -> str:
    return (
        f"lariat: {console.printable(about['model'])}, {n_windows} windows of {about['n_ctx']}, "
        f"{about['cache']} cache (keys {about['type_k']}, values {about['type_v']})"
    )


def _numbers(found: Perplexity) -> dict[str, Any]:
    return {
        "n_tokens": found.nll.n,
        "nll": found.nll.value,
        "nll_error": found.nll.error,
        "ppl": found.value,
        "ppl_error": found.error,
    }


def _kl_numbers(found: Divergence) -> dict[str, Any]:
    from lariat.tools.perplexity import exp

    ratio = exp(found.log_ratio.value)
    return {
        "base_ppl": found.base.value,
        "base_ppl_error": found.base.error,
        "ppl_ratio": ratio,
        "ppl_ratio_error": ratio * found.log_ratio.error,
        "kl": found.kl.value,
        "kl_error": found.kl.error,
        "kl_max": float(found.kl_values[-1]),
        "kl_min": float(found.kl_values[0]),
        "kl_percentiles": {f"{p:g}": found.kl_percentile(p) for p in _PERCENTILES},
        "same_top": found.same_top.value,
        "same_top_error": found.same_top.error,
        "delta_p": found.delta_p.value,
        "delta_p_rms": math.sqrt(found.delta_p_squared.value),
    }


def _kl_text(found: Divergence) -> str:
    numbers = _kl_numbers(found)
    lines = [
        ("PPL", f"{found.run.value:.4f} +/- {found.run.error:.4f}"),
        ("PPL of the base", f"{found.base.value:.4f} +/- {found.base.error:.4f}"),
        ("PPL ratio", f"{numbers['ppl_ratio']:.5f} +/- {numbers['ppl_ratio_error']:.5f}"),
        ("mean KLD", f"{found.kl.value:.6f} +/- {found.kl.error:.6f} nats"),
        ("maximum KLD", f"{numbers['kl_max']:.6f}"),
        *(
            ("median KLD" if p == 50 else f"{p:.1f} % KLD", f"{found.kl_percentile(p):.6f}")
            for p in _PERCENTILES
        ),
        ("same top token", f"{100 * numbers['same_top']:.3f} +/- {_percent(found):.3f} %"),
        ("mean of p - base p", f"{100 * numbers['delta_p']:.3f} %"),
        ("RMS of p - base p", f"{100 * numbers['delta_p_rms']:.3f} %"),
    ]
    return "".join(f"{name + ':':<20}{value}\n" for name, value in lines)


def _percent(found: Divergence) -> float:
    return 100 * found.same_top.error


def _print_json(value: dict[str, Any]) -> None:
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in value.items()
    }
    console.write(json.dumps(finite, indent=2) + "\n")
