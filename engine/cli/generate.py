"""`lariat generate`: continue a text."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from lariat.cli import (
    console,
    engine_flags,
    grammar_flags,
    model_file,
    prompt,
    report,
    reuse,
    rope_read,
    sampling_flags,
)  # fmt: skip
from lariat.cli.usage import Flag, UsageError, add_flags
from lariat.config import SamplingParams
from lariat.errors import LariatError

if TYPE_CHECKING:
    from lariat.llm import LLM, Completion

_LONG_PROMPT = 256  # tokens; shorter prompts get no progress bar

_TEXT = (
    Flag(
        ("--min-tokens",),
        "min_tokens",
        int,
        "N",
        "tokens that are written before the model or a text of -r can end the text",
    ),
    Flag(
        ("--logprobs",),
        "logprobs",
        int,
        "N",
        "with -o json, log-probabilities of the tokens, and the N likeliest of each place",
    ),
    Flag(
        ("--keep",),
        "n_keep",
        int,
        "N",
        "with --context-shift, the number of first tokens that always stay; -1: the prompt",
    ),
)

_DESCRIPTION = """\
Continue a text. The prompt and the model's text stream to standard output, or with -o json one
object with the model's text comes at the end."""

_EPILOG = """\
examples:
  lariat generate -p "Once upon a time"
  lariat generate -m model.gguf -p "Once upon a time" -n 128
  lariat generate -m model.gguf -f story.txt --temp 0 --cache raw -q
  lariat generate -m model.gguf -e -p "Q: Who?\\nA:" -r "\\nQ:" --seed 7
  lariat generate -m model.gguf -p "A cat as JSON: " --json-schema-file cat.json
  lariat generate -m model.gguf -e -p "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"

The text ends at the model's end token, at a text of -r (which is not printed), after -n tokens, or
when the context is full. With -n -1 --context-shift --ignore-eos it never ends. Ctrl-C ends it and
prints the statistics so far. Exit code: 0, 1 error, 2 usage, 130 Ctrl-C, 141 closed pipe. The
environment variable LARIAT_ISA forces an instruction set: scalar, avx2, avx512, amx; on ARM
scalar, neon, dotprod, i8mm.

-o json prints a line for each completion, an object with
  text           what the model wrote, without the prompt
  ids            its tokens
  finish_reason  stop (the model ended, or wrote a text of -r, or all that a grammar allows), length
                 (-n), context (full), or null (Ctrl-C)
  logprobs       with --logprobs, for each token its id, token, logprob and top_logprobs, the
                 likeliest ones; they are the model's own, before sampling changes them
  rope           with --rope-read, the settings that the question was read with
  timings        seconds: load_s, prompt_s, decode_s; tokens: n_prompt of the prompt were computed,
                 n_reused were in the cache already, n_decode were written one at a time, n_tried
                 were computed to choose among settings of --rope-read; of n_reused, n_exact stand
                 where they were computed, n_moved behind other text; of n_prompt, n_recomputed
                 were in the cache too; n_passes computed n_decode; with --spec, n_drafted were
                 guessed, and n_accepted of them came; rates: prompt_per_s, decode_per_s,
                 decode_per_pass"""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "generate", help="continue a text", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=run)

    text = parser.add_argument_group("text")
    prompt.add_arguments(text)
    prompt.add_parse_special(text)
    sampling_flags.add_length(text)
    add_flags(text, _TEXT, SamplingParams)
    text.add_argument(
        "--context-shift",
        action="store_true",
        help="when the context is full, forget the oldest 32 tokens behind --keep and continue",
    )
    text.add_argument(
        "--no-display-prompt", action="store_true", help="print only the model's text"
    )
    text.add_argument(
        "-o",
        "--output",
        choices=("text", "json"),
        default="text",
        help="text, or an object of JSON, see below (default: text)",
    )
    text.add_argument(
        "-q", "--quiet", action="store_true", help="no bars and no statistics, only errors"
    )

    engine_flags.add(parser)
    rope_read.add(parser)
    reuse.add(parser)
    grammar_flags.add(parser)
    sampling_flags.add(parser)


def run(args: argparse.Namespace) -> int:
    """Write the text and return the exit code."""
    params = sampling_flags.params(
        args, _TEXT, context_shift=args.context_shift, grammar=grammar_flags.asked(args)
    )
    reuse.check(args)
    rope_read.asked(args)
    if args.logprobs is not None and args.output != "json":
        raise UsageError("argument --logprobs: they are shown by -o json alone")
    config = engine_flags.config(args)
    if args.context_shift and not config.can_shift:
        raise UsageError(
            f"argument --context-shift: keys of type {config.type_k} cannot move in the roped "
            "cache: choose --cache raw, or another type of keys"
        )
    overrides = model_file.overrides(args)
    text = prompt.read(args)
    reuse.check_files(args)

    with engine_flags.load(args, config, overrides) as llm:
        params = sampling_flags.with_file(params, llm.sampling, args)
        return _generate(llm, text, params, args)


def _generate(llm: LLM, text: str, params: SamplingParams, args: argparse.Namespace) -> int:
    bar = console.Bar("reading the prompt", enabled=not args.quiet)

    def prompt_progress(n_done: int, n_prompt: int) -> None:
        if n_prompt >= _LONG_PROMPT:
            bar(n_done / n_prompt)

    # The prompt is shown after it was read: a prompt that does not fit prints nothing, and the
    # progress bar has the line to itself.
    is_json = args.output == "json"
    shown = "" if args.no_display_prompt or is_json else text
    try:
        start = reuse.start(llm, text, args)
        stream = llm.stream(
            start.prompt,
            params,
            context=start.context,
            prompt_progress=prompt_progress,
            parse_special=args.parse_special,
            rope_read=rope_read.asked(args),
        )
    except LariatError:
        raise
    except ValueError as error:  # such as a prompt without a single token
        raise UsageError(str(error)) from None
    if not args.quiet:
        console.note(report.headline(llm, args))
    last, code = "", 0
    try:
        try:
            is_read = False
            for piece in stream:
                bar.close()
                if not is_read:
                    start.prompt_read(stream.completion)
                    is_read = True
                if shown + piece and not is_json:
                    console.show(shown + piece)
                    last, shown = (shown + piece)[-1], ""
        finally:
            bar.close()
        if not is_read:
            start.prompt_read(stream.completion)
        if shown:  # the model ended at once
            console.show(shown)
            last = shown[-1]
    except (LariatError, MemoryError):
        if last not in ("", "\n"):
            console.write("\n")  # so that the error has a line to itself
        raise
    except KeyboardInterrupt:
        code = 130
    if last not in ("", "\n"):
        console.write("\n")
    stream.close()
    start.close(stream.completion)
    if is_json:
        console.write(json.dumps(_object(stream.completion, llm)) + "\n")
    if not args.quiet:
        console.note(_statistics(stream.completion, llm))
    return code


def _object(completion: Completion, llm: LLM) -> dict[str, Any]:
    """A completion as -o json prints it."""
    rope = completion.rope and rope_read.words(completion.rope, llm.config.rope)
    timings = completion.timings
    names = ("n_exact", "prompt_per_s", "decode_per_s", "decode_per_pass")
    more = {name: getattr(timings, name) for name in names}
    return {
        "text": completion.text,
        "ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        **({"logprobs": _logprobs(completion, llm)} if completion.logprobs is not None else {}),
        **({"rope": rope} if rope else {}),
        "timings": dataclasses.asdict(timings) | more,
    }


def _logprobs(completion: Completion, llm: LLM) -> list[dict[str, Any]]:
    """Log-probabilities as -o json prints them; their names are those of llama.cpp's server."""

    def named(token: int, logprob: float) -> dict[str, Any]:
        return {"id": token, "token": llm.detokenize([token]), "logprob": logprob}

    return [
        named(one.token_id, one.logprob) | {"top_logprobs": [named(*top) for top in one.top]}
        for one in completion.logprobs or ()
    ]


def _statistics(completion: Completion, llm: LLM) -> str:
    timings = completion.timings
    reason = {
        "stop": "the model ended, or wrote a text of -r",
        "length": "-n tokens are written",
        "context": "the context is full",
        None: "interrupted",
    }[completion.finish_reason]
    lines = [
        f"lariat: load        {timings.load_s * 1000:.1f} ms",
        f"lariat: prompt      {report.rate(timings.n_prompt, timings.prompt_s)}",
        f"lariat: generation  {report.rate(timings.n_decode, timings.decode_s)}",
        f"lariat: finished    {reason}",
    ]
    rope = rope_read.statistics(completion, llm.config.rope)
    if rope:
        lines.insert(2, f"lariat: rope        {rope}")
    if timings.n_drafted:
        lines.insert(-1, f"lariat: guessed     {report.guessed(timings)}")
    if timings.n_reused:
        lines.insert(1, f"lariat: reused      {report.reused(timings)}")
    return "\n".join(lines)
