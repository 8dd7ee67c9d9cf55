"""`lariat generate`: continue a text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from engine.cli import console, engine_flags, model_file, prompt, reuse
from engine.cli.usage import Flag, UsageError, add_flags, checked
from engine.config import SamplingParams
from engine.errors import LariatError

if TYPE_CHECKING:
    from engine.llm import LLM, Completion

_LONG_PROMPT = 256  # tokens; shorter ones need no bar

_LENGTH = (
    Flag(
        ("-n", "--predict", "--n-predict"),
        "max_tokens",
        int,
        "N",
        "tokens to write at most; -1: until the model ends or the context is full",
    ),
    Flag(
        ("--keep",),
        "n_keep",
        int,
        "N",
        "with --context-shift, first tokens that always stay; -1: the prompt",
    ),
)
_SAMPLING = (  # in the order in which it is done
    Flag(
        ("--repeat-penalty",),
        "repeat_penalty",
        float,
        "X",
        "above 1: make tokens that occurred less likely; 1: off",
    ),
    Flag(
        ("--repeat-last-n",),
        "repeat_last_n",
        int,
        "N",
        "how many last tokens the penalties look at; 0: none, -1: the whole context",
    ),
    Flag(
        ("--frequency-penalty",),
        "frequency_penalty",
        float,
        "X",
        "subtracted from a token's logit for each time it occurred; 0: off",
    ),
    Flag(
        ("--presence-penalty",),
        "presence_penalty",
        float,
        "X",
        "subtracted from a token's logit if it occurred; 0: off",
    ),
    Flag(("--top-k",), "top_k", int, "K", "keep the K likeliest tokens; 0: all"),
    Flag(("--typical",), "typical_p", float, "P", "locally typical sampling; 1: off"),
    Flag(
        ("--top-p",),
        "top_p",
        float,
        "P",
        "keep the likeliest tokens that make up P together; 1: all",
    ),
    Flag(("--min-p",), "min_p", float, "P", "keep tokens at least P times as likely as the best"),
    Flag(("--temp",), "temperature", float, "T", "temperature; 0 always takes the likeliest token"),
)

_DESCRIPTION = """\
Continue a text. The prompt and what the model adds to it stream to standard output."""

_EPILOG = """\
examples:
  lariat generate -p "Once upon a time"
  lariat generate -m model.gguf -p "Once upon a time" -n 128
  lariat generate -m model.gguf -f story.txt --temp 0 --cache raw -q
  lariat generate -m model.gguf -e -p "Q: Who?\\nA:" -r "\\nQ:" --seed 7

It ends at the model's end token, at a text of -r (not printed), after -n tokens or when the context
is full; with -n -1 --context-shift --ignore-eos never. Ctrl-C ends it with the statistics so far.
Exit code: 0, 1 error, 2 usage, 130 Ctrl-C, 141 closed pipe. The environment variable LARIAT_ISA
(scalar, avx2, avx512) forces an instruction set."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "generate", help="continue a text", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=run)

    text = parser.add_argument_group("text")
    prompt.add_arguments(text)
    add_flags(text, _LENGTH, SamplingParams)
    text.add_argument(
        "-r",
        "--reverse-prompt",
        dest="stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end where the model writes this text; may be given several times",
    )
    text.add_argument(
        "--context-shift",
        action="store_true",
        help="where the context is full, forget the oldest 32 tokens behind --keep and go on",
    )
    text.add_argument(
        "--ignore-eos",
        action="store_true",
        help="write on where the model would end",
    )
    text.add_argument(
        "--no-display-prompt", action="store_true", help="print only what the model adds"
    )
    text.add_argument(
        "-q", "--quiet", action="store_true", help="no bars and no statistics, only errors"
    )

    engine_flags.add(parser)
    reuse.add(parser)

    sampling = parser.add_argument_group("sampling, in the order in which it is done")
    add_flags(sampling, _SAMPLING, SamplingParams)
    sampling.add_argument(
        "-s",
        "--seed",
        type=int,
        default=-1,
        metavar="N",
        help="the same seed writes the same text; -1: another one each time (default: -1)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the text and return the exit code."""
    params = checked(
        SamplingParams,
        _LENGTH + _SAMPLING,
        args,
        ignore_eos=args.ignore_eos,
        context_shift=args.context_shift,
        stop=prompt.stop_texts(args),
        seed=None if args.seed == -1 else args.seed,
    )
    config = engine_flags.config(args)
    reuse.check(args)
    overrides = model_file.overrides(args)
    text = prompt.read(args)

    from engine.llm import LLM

    with console.Bar("loading", enabled=not args.quiet) as bar:
        llm = LLM(args.model, **vars(config), progress=bar, overrides=overrides)
    with llm:
        return _generate(llm, text, params, args)


def _generate(llm: LLM, text: str, params: SamplingParams, args: argparse.Namespace) -> int:
    bar = console.Bar("reading the prompt", enabled=not args.quiet)

    def prompt_progress(n_done: int, n_prompt: int) -> None:
        if n_prompt >= _LONG_PROMPT:
            bar(n_done / n_prompt)

    # The prompt is shown when it has been read, so that a prompt that does not fit prints nothing
    # and the bar has the line to itself.
    shown = "" if args.no_display_prompt else text
    try:
        start = reuse.start(llm, text, args)
        stream = llm.stream(
            start.prompt, params, context=start.context, prompt_progress=prompt_progress
        )
    except LariatError:
        raise
    except ValueError as error:  # such as a prompt without a single token
        raise UsageError(str(error)) from None
    if not args.quiet:
        console.note(_headline(llm, args))
    last, code = "", 0
    try:
        try:
            is_read = False
            for piece in stream:
                bar.close()
                if not is_read:
                    start.prompt_read(stream.completion)
                    is_read = True
                if shown + piece:
                    console.write(shown + piece)
                    last, shown = (shown + piece)[-1], ""
        finally:
            bar.close()
        if not is_read:
            start.prompt_read(stream.completion)
        if shown:  # the model ended at once
            console.write(shown)
            last = shown[-1]
    except KeyboardInterrupt:
        code = 130
    if last not in ("", "\n"):
        console.write("\n")
    stream.close()
    start.close(stream.completion)
    if not args.quiet:
        console.note(_statistics(stream.completion))
    return code


def _headline(llm: LLM, args: argparse.Namespace) -> str:
    from engine import _kernels

    return (
        f"lariat: {console.printable(model_file.shown(args.model))}, context {llm.n_ctx}, "
        f"{args.cache} cache (keys {args.type_k}, values {args.type_v}), "
        f"{_kernels.isa()}, threads {llm.n_threads} (prompt {llm.n_threads_batch})"
    )


def _statistics(completion: Completion) -> str:
    timings = completion.timings
    reason = {
        "stop": "the model ended, or wrote a text of -r",
        "length": "-n tokens are written",
        "context": "the context is full",
        None: "interrupted",
    }[completion.finish_reason]
    lines = [
        f"lariat: load        {timings.load_s * 1000:.1f} ms",
        f"lariat: prompt      {_rate(timings.n_prompt, timings.prompt_s)}",
        f"lariat: generation  {_rate(timings.n_decode, timings.decode_s)}",
        f"lariat: finished    {reason}",
    ]
    if timings.n_reused:
        lines.insert(1, f"lariat: reused      {timings.n_reused} tokens")
    return "\n".join(lines)


def _rate(n_tokens: int, seconds: float) -> str:
    text = f"{n_tokens} tokens in {seconds * 1000:.1f} ms"
    if n_tokens and seconds > 0:
        text += (
            f", {seconds * 1000 / n_tokens:.2f} ms per token, "
            f"{n_tokens / seconds:.2f} tokens per second"
        )
    return text
