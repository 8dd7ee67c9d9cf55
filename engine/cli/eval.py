"""`lariat eval`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from lariat.cli import console, engine_flags, interrupts, model_file, template_flags
from lariat.cli.usage import UsageError
from lariat.errors import LariatError

_DESCRIPTION = """\
Evaluate a model on tasks of lm-evaluation-harness (lm-eval). Prompts that begin alike share what
they have in common."""

_EPILOG = """\
examples:
  lariat eval -m model.gguf --tasks hellaswag,arc_easy --limit 200
  lariat eval -m model.gguf --tasks mine --include-path tasks/ -o json

--include-path names a folder with task files of your own. Other tasks are downloaded. The command
needs `pip install 'lariat[eval]'`."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "eval", help="tasks of lm-evaluation-harness", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=run)
    model = parser.add_argument_group("model")
    model_file.add_arguments(model)
    template_flags.add(model)
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--tasks", required=True, metavar="NAMES", help="tasks, with commas between")
    tasks.add_argument("--include-path", metavar="DIR", help="a folder with more task files")
    tasks.add_argument("--num-fewshot", type=int, metavar="N", help="examples before a question")
    tasks.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    tasks.add_argument(
        "--use-cache", metavar="PATH", help="keep answers in a file, and take those that are there"
    )
    tasks.add_argument(
        "--apply-chat-template", action="store_true", help="ask as in a conversation"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="default: text"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="no bars, only the result")
    engine_flags.add(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print, and return the exit code."""
    for name in ("num_fewshot", "limit"):
        if (getattr(args, name) or 0) < 0:
            flag = name.replace("_", "-")
            raise UsageError(f"argument --{flag}: {getattr(args, name)}, expected 0 or more")
    if args.include_path is not None and not os.path.isdir(args.include_path):
        raise UsageError(f"argument --include-path: {args.include_path} is not a folder")
    config = engine_flags.config(args)
    overrides = model_file.overrides(args)
    template = template_flags.template(args)
    variables = template_flags.variables(args)
    interrupts.begin_work()
    try:
        from lariat.jobs.evaluation import EvaluatedModel
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "lariat":
            raise
        raise LariatError(
            f"evaluation needs {error.name}, which is missing: pip install 'lariat[eval]'"
        ) from None
    from lariat.protocol.served import Served, name_of

    manager = TaskManager(include_path=args.include_path)
    names = args.tasks.split(",")
    missing = [name for name in names if not manager.match_tasks([name])]
    if missing:
        raise LariatError(f"there is no task {missing[0]!r}")
    with engine_flags.load(args, config, overrides) as llm:
        served = Served(llm, [name_of(args.model)], template=template, variables=variables)
        found = simple_evaluate(
            EvaluatedModel(served, parse_special=args.apply_chat_template),
            tasks=names,
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            use_cache=args.use_cache,
            apply_chat_template=args.apply_chat_template,
            task_manager=manager,
            bootstrap_iters=1000,
            log_samples=False,
        )
    if args.output == "json":
        console.write(json.dumps(found["results"], default=str) + "\n")
    else:
        console.write(make_table(found) + "\n")
    return 0
