"""`lariat batch`: answers for all rows of a file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat.cli import (
    console,
    engine_flags,
    interrupts,
    model_file,
    report,
    sampling_flags,
    template_flags,
)  # fmt: skip
from lariat.cli.usage import UsageError

if TYPE_CHECKING:
    from lariat.jobs.batch import Progress

_DESCRIPTION = """\
Answer all rows of a file. A row is a line of JSON: OpenAI's batch lines (custom_id, method, url,
body), or {"prompt": ...} or {"messages": ...} with fields of sampling beside it."""

_EPILOG = """\
examples:
  lariat batch rows.jsonl -o answers.jsonl -m model.gguf -c 16384
  lariat batch rows.jsonl -o answers.jsonl -m model.gguf -c 16384 --resume
  lariat batch rows.jsonl -o answers-3.jsonl -m model.gguf --shard 3/8 --date 2026-12-01

The output appears when all rows are done. Until then, rows that are done stand in OUT.part, and
--resume goes on from there after any interruption. An error of a row stands in its line of the
output. The context (-c) is shared by all rows that are computed at a time. See docs/batch.md."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "batch", help="answer all rows of a file", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=run)
    parser.add_argument("source", metavar="IN", help="the file of rows")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file of answers")
    model = parser.add_argument_group("model")
    model_file.add_arguments(model)
    model.add_argument(
        "-a", "--alias", metavar="NAME",
        help="name of the model in rows and answers (default: the file's name)",
    )  # fmt: skip
    template_flags.add(model)
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "-n", "--predict", dest="max_tokens", type=int, default=256, metavar="N",
        help="maximum of tokens of plain rows that say nothing; -1: no limit (default: 256)",
    )  # fmt: skip
    rows.add_argument(
        "-np", "--parallel", dest="n_parallel", type=int, default=32, metavar="N",
        help="texts that are computed at a time (default: 32)",
    )  # fmt: skip
    rows.add_argument("--resume", action="store_true", help="go on where another run has ended")
    rows.add_argument(
        "--unordered", action="store_true", help="write rows as they were done, not as they came"
    )
    rows.add_argument("--shard", metavar="K/N", help="only every Nth row, from row K; K is 1 to N")
    rows.add_argument(
        "--date", metavar="YYYY-MM-DD",
        help="the day that chat templates are told (default: 2025-01-01)",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument("-q", "--quiet", action="store_true", help="no bars, only errors")
    engine_flags.add(parser)
    sampling_flags.add(parser)


def run(args: argparse.Namespace) -> int:
    """Answer all rows, and return the exit code."""
    shard = _shard(args.shard)
    now = _time(args.date)
    if args.n_parallel < 1:
        raise UsageError(f"argument -np/--parallel: {args.n_parallel}, expected at least 1")
    if args.max_tokens < -1:
        raise UsageError(f"argument -n/--predict: {args.max_tokens}, expected -1 or more")
    base_seed, max_tokens = max(0, args.seed), args.max_tokens
    args.max_tokens, args.ignore_eos, args.stop, args.escape = None, False, [], False
    params = sampling_flags.params(args)
    config = engine_flags.config(args)
    overrides = model_file.overrides(args)
    template = template_flags.template(args)
    variables = template_flags.variables(args)

    from lariat.jobs import files
    from lariat.jobs.answers import Answers
    from lariat.protocol.bodies import encode
    from lariat.protocol.served import Served, name_of

    plan = files.Plan(
        Path(args.source), Path(args.output), args.n_parallel, shard, args.resume,
        not args.unordered,
    )  # fmt: skip
    files.check(plan)
    interrupts.begin_work()
    with (
        engine_flags.load(args, config, overrides) as llm,
        console.Bar("rows", enabled=not args.quiet) as bar,
    ):
        name = args.alias or name_of(args.model)
        defaults = sampling_flags.with_file(params, llm.sampling, args)
        served = Served(
            llm, [name], template=template, variables=variables, defaults=defaults, now=now
        )
        settings = files.settings_of(served, seed=base_seed, max_tokens=max_tokens)
        answers = Answers(served, base_seed, max_tokens, encode(settings))
        if not args.quiet:
            console.note(report.headline(llm, args))
        since = time.monotonic()

        def tell(progress: Progress, n_rows: int) -> None:
            bar(progress.n_rows / max(1, n_rows), _label(progress, n_rows))

        done = files.run(plan, answers, settings, tell)
        seconds = time.monotonic() - since
    if not args.quiet:
        console.note(
            f"lariat batch: {done.n_rows} rows ({done.n_failed} with an error), {done.n_prompt} "
            f"tokens read and {done.n_tokens} written in {seconds:.1f} s, "
            f"{_rate(done):.1f} tokens per second"
        )
    return 0


def _label(done: Progress, n_rows: int) -> str:
    left = done.seconds / max(1, done.n_rows) * (n_rows - done.n_rows)
    hours, rest = divmod(int(left), 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}"
    return f"{done.n_rows}/{n_rows} rows, {_rate(done):.0f} tokens/s, {clock} left"


def _rate(done: Progress) -> float:
    return (done.n_prompt + done.n_tokens) / max(1e-9, done.seconds)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise UsageError(f"argument --shard: {text!r}, expected K/N with K from 1 to N")
    return int(k), int(n)


def _time(text: str | None) -> float:
    """Noon of a day, so that it is this day in most time zones."""
    from datetime import datetime, timezone

    try:
        day = datetime.strptime(text or "2025-01-01", "%Y-%m-%d")
    except ValueError:
        raise UsageError(f"argument --date: {text!r}, expected a day such as 2026-12-01") from None
    return day.replace(hour=12, tzinfo=timezone.utc).timestamp()
