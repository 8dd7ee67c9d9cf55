"""Speculation on real text: the speed of decoding with each way to guess, beside that without.

python -m bench.experiments.speculation
python -m bench.experiments.speculation -m .real-models/SmolLM2-135M-Instruct.Q4_1.gguf

The demo model answers questions about facts in its prompt (edit) and tells stories (story). A model
with a chat template corrects and summarises prose that is in its prompt (edit, summary), and writes
stories. Prompts run with each way in turn, so that a machine that drifts slows all alike. A ratio
is that of a repetition over all prompts, in which all ways write the same greedy text.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from lariat import DEMO_MODEL, LLM, Chat, SamplingParams
from lariat.cli.console import Bar
from lariat.runtime.timings import Timings

from bench.prose import prose
from models import corpus

_WAYS = ("ngram", "auto", "draft")
_SAID = {
    "edit": "Correct the spelling of this text, and write it again without any other change.\n\n",
    "summary": "Summarise this text. Quote its most important sentences word for word.\n\n",
    "story": "Write a story of your own. These sentences say what it is about.\n\n",
}
_CHARACTERS = (500, 1500)  # of the prose in a prompt


def prompts(task: str, is_demo: bool, n: int) -> list[str]:
    """What the model gets, `n` texts."""
    if is_demo and task == "story":
        stories = [corpus.story_number(corpus.HELD_OUT, i) for i in range(n)]
        return [" ".join(story.split()[:12]) for story in stories]
    if is_demo:
        return [corpus.held_out_passage(i, 400).prompt for i in range(n)]
    fitting = [text for text in prose() if _CHARACTERS[0] <= len(text) <= _CHARACTERS[1]]
    return [_SAID[task] + text for text in fitting[:: len(fitting) // n][:n]]


def written(llm: LLM, prompt: str, is_demo: bool, n_gen: int) -> tuple[str, Timings]:
    """What the model writes, and how fast."""
    params = SamplingParams(temperature=0, max_tokens=n_gen)
    if is_demo:
        done = llm.generate(prompt, params)
        return done.text, done.timings
    with Chat(llm) as chat:
        reply = chat.say(prompt, params)
        return "".join(reply), reply.timings


def rows(args: argparse.Namespace) -> Iterator[str]:
    """A row of the table for each task and way."""
    is_demo = args.model == DEMO_MODEL
    ways = [way for way in _WAYS if way != "draft" or is_demo or args.model_draft]
    tasks = [task for task in _SAID if task != "summary" or not is_demo]
    with ExitStack() as stack:
        options = {"n_threads": args.threads, "cache": args.cache, "n_draft": args.draft_max}
        llms = {"": stack.enter_context(LLM(args.model, **options))}
        for way in ways:
            draft = args.model_draft if way == "draft" else None
            llm = LLM(args.model, speculative=way, draft_model=draft, **options)
            llms[way] = stack.enter_context(llm)
        for task in tasks:
            seconds: dict[str, list[float]] = {way: [] for way in llms}
            last: dict[str, list[Timings]] = {}
            n_different = dict.fromkeys(llms, 0)
            texts = prompts(task, is_demo, args.n_prompts)
            with Bar(task) as bar:
                for repetition in range(args.repetitions + 1):  # the first one warms up
                    last = {way: [] for way in llms}
                    for i, text in enumerate(texts):
                        found = {}
                        for way, llm in llms.items():
                            found[way], timings = written(llm, text, is_demo, args.n_gen)
                            last[way].append(timings)
                            n_different[way] += found[way] != found[""]
                        bar((repetition + (i + 1) / len(texts)) / (args.repetitions + 1))
                    for way in llms if repetition else ():
                        seconds[way].append(sum(t.decode_s for t in last[way]))
            for way in ways:
                n_drafted = sum(t.n_drafted for t in last[way])
                n_accepted = sum(t.n_accepted for t in last[way])
                n_decode = sum(t.n_decode for t in last[way])
                n_passes = sum(t.n_passes for t in last[way])
                ratios = [a / b for a, b in zip(seconds[""], seconds[way], strict=True)]
                yield (
                    f"| {task} | {way} | {n_decode} | {n_different[way]} | {n_drafted} | "
                    f"{100 * n_accepted / max(n_drafted, 1):.0f} % | {n_decode / n_passes:.2f} | "
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
                )


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default=DEMO_MODEL)
    parser.add_argument("-md", "--model-draft", help="for the way draft; the demo model has one")
    parser.add_argument("-n", "--n-gen", type=int, default=200, help="most tokens of a text")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--cache", default="roped")
    parser.add_argument("--draft-max", type=int, default=8)
    parser.add_argument("--n-prompts", type=int, default=8)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    args = parser.parse_args(argv)
    print(f"{Path(args.model).name}, greedy, {args.n_prompts} prompts")
    print("| text | guesses by | tokens | other texts | guessed | came | tokens a pass | speed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows(args):
        print(row, flush=True)


if __name__ == "__main__":
    main()
