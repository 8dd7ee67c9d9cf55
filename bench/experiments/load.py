"""A server under load: many clients that stream, some that leave, and long prompts that arrive.

    python -m bench.experiments.load -m model.gguf [--seconds 300]
    python -m bench.experiments.load --url http://127.0.0.1:8081 [--model NAME]

With -m it starts `lariat serve` for the run. --url is a server that runs already, ours or another
one with OpenAI's API, such as `python -m llama_cpp.server`.

Each client holds a conversation of --turns questions, then begins another one. Lengths of questions
are spread evenly on a logarithmic scale, those of answers evenly. A share of the requests (--leave)
closes the connection in the queue, in the prompt or in the answer. Beside the clients, a prompt of
--long tokens arrives every --long-every seconds. All lengths come from --seed; a word is about a
token, and the table has the tokens that the server has counted.

A gap is the time between two events with text of one answer. With --rates PP,TG (tokens a second of
`lariat bench --sequences N`, reading and writing) the table says how long that would take for the
same tokens, as a share of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_WORDS = ("the", "rain", "fell", "on", "a", "small", "red", "house", "near", "sea", "and", "old")
_WORDS += ("man", "who", "lived", "there", "went", "out", "to", "look", "for", "his", "dog", "with")
_WORDS += ("lamp", "in", "one", "hand", "while", "three", "birds", "sat", "tree", "above", "door")
_TIMEOUT = 600.0  # seconds without an event after which a request counts as failed
_LEAVING = ("at once", "while waiting", "in the answer")


@dataclass
class Answer:
    """An answer as a client sees it, times in seconds."""

    kind: str  # "first", "follow-up" or "long"
    first: float | None = None  # until the first text
    gaps: list[float] = field(default_factory=list)
    text: str = ""
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    has_left: bool = False
    error: str = ""

    @property
    def n_events(self) -> int:
        """Events with text."""
        return len(self.gaps) + (self.first is not None)


@dataclass(frozen=True)
class Load:
    """What clients do; see the flags."""

    n_clients: int
    seconds: float
    n_turns: int
    prompts: tuple[int, int]
    answers: tuple[int, int]
    n_long: int
    long_every: float
    leave: float
    seed: int


class Client:
    """Asks a server. Plain sockets: a library would take time from the server's processors."""

    def __init__(self, url: str, model: str | None, is_ours: bool) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._model, self._is_ours = model, is_ours

    async def get(self, path: str) -> tuple[int, bytes]:
        """The status and the body of a short answer."""
        async with self._sent("GET", path) as reader:
            return await _status(reader), await reader.read()

    async def ask(
        self,
        kind: str,
        messages: list[dict[str, str]],
        n_answer: int,
        leave: str,
        rng: random.Random,
    ) -> Answer:
        """Ask for an answer of at most `n_answer` tokens; `leave`: one of `_LEAVING`, or "" to
        stay."""
        answer = Answer(kind)
        body: dict[str, Any] = {"messages": messages, "max_tokens": n_answer, "stream": True}
        body["seed"] = rng.randrange(1 << 31)
        if self._model is not None:
            body["model"] = self._model
        if self._is_ours:  # others refuse these, or take no notice
            body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
        n_stay = rng.randrange(1, max(2, n_answer)) if leave == "in the answer" else 0
        seconds = rng.uniform(0.0, 2.0) if leave == "while waiting" else _TIMEOUT
        start = time.perf_counter()
        try:
            async with self._sent("POST", "/v1/chat/completions", body) as reader:
                if leave == "at once":
                    answer.has_left = True
                else:
                    await asyncio.wait_for(self._read(reader, answer, n_stay, start), seconds)
        except asyncio.TimeoutError:
            if leave == "while waiting":
                answer.has_left = True
            else:
                answer.error = f"no end within {_TIMEOUT:g} seconds"
        except (OSError, EOFError, ValueError, KeyError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        return answer

    async def _read(
        self, reader: asyncio.StreamReader, answer: Answer, n_stay: int, start: float
    ) -> None:
        """Read events until the end, or until `n_stay` had text (0: all)."""
        last = start
        status = await _status(reader)
        if status != 200:
            answer.error = f"status {status}: {(await reader.read())[:200]!r}"
            return
        while line := await reader.readline():
            if not line.startswith(b"data: "):  # the size of a chunk, a comment, an empty line
                continue
            if line.startswith(b"data: [DONE]"):
                return
            event = json.loads(line[6:])
            if "error" in event:
                answer.error = str(event["error"])[:200]
                return
            answer.usage = event.get("usage") or answer.usage
            for choice in event.get("choices", ()):
                answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
                text = choice["delta"].get("content")
                if text:
                    now = time.perf_counter()
                    if answer.first is None:
                        answer.first = now - start
                    else:
                        answer.gaps.append(now - last)
                    last = now
                    answer.text += text
            if n_stay and answer.n_events >= n_stay:
                answer.has_left = True
                return
        if answer.finish_reason is None:
            answer.error = "the stream has ended without a reason"

    @contextlib.asynccontextmanager
    async def _sent(
        self, method: str, path: str, body: object = None
    ) -> AsyncIterator[asyncio.StreamReader]:
        """Send a request; gives its answer, as it comes, and closes the connection at the end."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        try:
            data = b"" if body is None else json.dumps(body).encode()
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
                f"Connection: close\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\n\r\n".encode()
                + data
            )
            await writer.drain()
            yield reader
        finally:
            writer.close()


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of an answer, whose headers are read."""
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1])


async def converse(client: Client, load: Load, number: int, end: float) -> list[Answer]:
    """One client: conversations until the end."""
    rng = random.Random(load.seed * 1000 + number)
    answers = []
    while time.perf_counter() < end:
        messages: list[dict[str, str]] = []
        for turn in range(load.n_turns):
            if time.perf_counter() >= end:
                break
            low, high = load.prompts if turn == 0 else (load.prompts[0], 4 * load.prompts[0])
            n_prompt = round(math.exp(rng.uniform(math.log(low), math.log(high))))
            n_answer = rng.randint(*load.answers)
            leave = rng.choice(_LEAVING) if rng.random() < load.leave else ""
            messages.append({"role": "user", "content": words(n_prompt, rng)})
            kind = "follow-up" if turn else "first"
            answer = await client.ask(kind, messages, n_answer, leave, rng)
            answers.append(answer)
            if answer.error:
                await asyncio.sleep(0.1)  # a server that is gone must not be asked at full speed
            if answer.has_left or answer.error:
                break
            messages.append({"role": "assistant", "content": answer.text})
    return answers


async def long_prompts(client: Client, load: Load, end: float) -> list[Answer]:
    """Prompts of `load.n_long` tokens that arrive whether the last one was answered or not."""
    rng = random.Random(load.seed * 1000 + 999)
    asked = []
    while load.n_long and time.perf_counter() < end:
        messages = [{"role": "user", "content": words(load.n_long, rng)}]
        asked.append(asyncio.ensure_future(client.ask("long", messages, 32, "", rng)))
        await asyncio.sleep(min(load.long_every, max(0.0, end - time.perf_counter())))
    return list(await asyncio.gather(*asked))


def words(n: int, rng: random.Random) -> str:
    """A text that begins like no other one, so that no prefix is shared."""
    return " ".join([str(rng.randrange(10**6)), *(rng.choice(_WORDS) for _ in range(n))])


@contextlib.contextmanager
def our_server(args: argparse.Namespace) -> Iterator[str]:
    """`lariat serve` for a while; gives its address."""
    command = [sys.executable, "-m", "lariat", "serve", "--port", "0", "-np", str(args.clients + 4)]
    command += ["-m", args.model] if args.model else ["--chat-template", "chatml"]
    command += ["-c", str(args.context)] if args.context else []
    command += ["-t", str(args.threads)] if args.threads else []
    command += args.serve.split()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        try:
            for line in process.stderr:
                said += line
                found = re.search(r"ready at (http://\S+)", line)
                if found:
                    yield found[1]
                    break
            else:
                raise SystemExit(f"the server did not start:\n{said}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()


async def counts(client: Client) -> dict[str, float]:
    """The counts of our server's /metrics, by name; nothing of another server."""
    status, body = await client.get("/metrics")
    found = re.findall(r"^(lariat_\w+) (\S+)$", body.decode(), re.M) if status == 200 else []
    return {name: float(value) for name, value in found}


async def settled(client: Client) -> dict[str, float]:
    """The counts once nothing runs and nothing waits."""
    for _ in range(600):
        found = await counts(client)
        if not found.get("lariat_num_requests_running", 0):
            return found
        await asyncio.sleep(0.1)
    return found


async def run(client: Client, load: Load) -> tuple[list[Answer], dict[str, float], float]:
    """All answers, what our server has counted meanwhile, and the seconds it took."""
    before = await counts(client)
    start = time.perf_counter()
    end = start + load.seconds
    done = await asyncio.gather(
        long_prompts(client, load, end),
        *(converse(client, load, number, end) for number in range(load.n_clients)),
    )
    seconds = time.perf_counter() - start
    after = await settled(client)
    counted = {name: value - before.get(name, 0.0) for name, value in after.items()}
    counted["in use"] = after.get("lariat_kv_cache_usage_perc", math.nan)
    return [answer for some in done for answer in some], counted, seconds


def summary(
    answers: list[Answer], counted: dict[str, float], seconds: float, rates: list[float] | None
) -> dict[str, Any]:
    """All figures of a run."""
    stayed = [one for one in answers if not one.has_left and not one.error]
    gaps = [gap for one in answers for gap in one.gaps]
    n_written = counted.get("lariat_generation_tokens_total") or sum(
        one.usage["completion_tokens"] if one.usage else one.n_events for one in answers
    )
    n_read = counted.get("lariat_prompt_tokens_total") or sum(
        one.usage["prompt_tokens"] for one in answers if one.usage
    )
    found: dict[str, Any] = {
        "seconds": seconds,
        "requests": len(answers),
        "left": sum(one.has_left for one in answers),
        "errors": sum(bool(one.error) for one in answers),
        "tokens read": n_read,
        "tokens written": n_written,
        "written / s": n_written / seconds,
        "tokens / s": (n_read + n_written) / seconds,
        "gap p50": quantile(gaps, 0.5),
        "gap p99": quantile(gaps, 0.99),
        "gap max": max(gaps, default=math.nan),
    }
    for kind in ("first", "follow-up", "long"):
        waited = [one.first for one in stayed if one.kind == kind and one.first is not None]
        found[f"{kind}: first token p50"] = quantile(waited, 0.5)
        found[f"{kind}: first token p99"] = quantile(waited, 0.99)
    found["cache in use at the end"] = counted["in use"]
    if rates is not None:
        found["time at the rates of bench"] = (n_read / rates[0] + n_written / rates[1]) / seconds
    return found


def quantile(values: list[float], share: float) -> float:
    """Linear between neighbours; NaN without values."""
    if len(values) < 2:
        return values[0] if values else math.nan
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def main(argv: list[str] | None = None) -> int:
    """Print a table; 1 if a request has failed or blocks are lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", help="a file; with --url the name in requests")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--theirs", action="store_true", help="the server is not ours")
    parser.add_argument("-c", "--context", type=int, default=0, help="tokens, of our server")
    parser.add_argument("-t", "--threads", type=int, default=0, help="of our server")
    parser.add_argument("--serve", default="", metavar="FLAGS", help="more flags for our server")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--turns", type=int, default=2, help="questions of a conversation")
    parser.add_argument("--prompts", default="16,512", metavar="N,N", help="tokens of questions")
    parser.add_argument("--answers", default="16,128", metavar="N,N", help="tokens of answers")
    parser.add_argument("--long", type=int, default=4000, help="tokens of long prompts; 0: none")
    parser.add_argument("--long-every", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument("--leave", type=float, default=0.1, help="share of requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rates", metavar="PP,TG", help="of lariat bench, tokens a second")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    args = parser.parse_args(argv)
    prompts, answers = ([int(n) for n in text.split(",")] for text in (args.prompts, args.answers))
    load = Load(
        args.clients, args.seconds, args.turns, (prompts[0], prompts[1]), (answers[0], answers[1]),
        args.long, args.long_every, args.leave, args.seed,
    )  # fmt: skip
    rates = [float(rate) for rate in args.rates.split(",")] if args.rates else None
    with contextlib.ExitStack() as stack:
        url = args.url or stack.enter_context(our_server(args))
        client = Client(url, args.model if args.url else None, not args.theirs)
        done, counted, seconds = asyncio.run(run(client, load))
    found = summary(done, counted, seconds, rates)
    for name, value in found.items():
        print(f"{name:28}  {value:.3f}" if isinstance(value, float) else f"{name:28}  {value}")
    for error in sorted({one.error for one in done if one.error})[:10]:
        print(error, file=sys.stderr)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"load": vars(args), **found}, file, indent=1)
    return int(found["errors"] > 0 or found["cache in use at the end"] > 0)


if __name__ == "__main__":
    sys.exit(main())
