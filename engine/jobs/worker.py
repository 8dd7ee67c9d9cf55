"""BatchWorker: answers rows wherever other programs run it: Dask, Ray, Spark, process pools."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from lariat.config import SamplingParams
from lariat.demo import DEMO_MODEL
from lariat.jobs import frames, rows
from lariat.jobs.answers import Answers
from lariat.jobs.batch import Batch
from lariat.jobs.files import settings_of
from lariat.protocol.bodies import encode

if TYPE_CHECKING:
    from lariat.llm import LLM

NOON_2025 = 1735732800.0  # 2025-01-01, the day that chat templates are told

_lock = threading.Lock()
_loaded: dict[bytes, tuple[int, LLM, Answers]] = {}  # by the worker's state; with the process


class BatchWorker:
    """Answers rows; a callable that can be pickled, and loads its model once a process.

    model        a GGUF file
    name         of the model in answers; None: the file's name
    max_tokens   of rows that say nothing
    seed         seeds of rows follow from it and their custom_ids
    n_parallel   texts that are computed at a time
    n_ctx        tokens of the context, which they share
    n_threads    None: the processors that the process was given, by Dask, by Ray or OMP_NUM_THREADS
                 (which Spark sets), or by the system
    template     as for `lariat.Chat`; None: the one of the model's file
    variables    of the template
    sampling     fields of `SamplingParams`, where rows say nothing; None: as the model's file says
    options      others of `LLM`

    It takes a list of rows, a dict of arrays (Ray), a DataFrame of pandas or a table of pyarrow,
    and returns the same type. Rows of a list are those of `lariat batch`, and so are answers.
    Columns of the others are fields of plain rows; further columns go along, and answers are
    columns behind them: text, finish_reason, prompt_tokens, completion_tokens, error.

    A row has the same answer in any batch and any process. Without a custom_id its seed follows
    from all that is in it, so equal rows have equal answers.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEMO_MODEL,
        *,
        name: str | None = None,
        max_tokens: int = 256,
        seed: int = 0,
        n_parallel: int = 32,
        n_ctx: int = 0,
        n_threads: int | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        SamplingParams(**(sampling or {}))  # what is wrong is wrong here, not in a worker
        self.model = os.fspath(model)
        self.name = name
        self.max_tokens, self.seed, self.n_parallel = max_tokens, seed, n_parallel
        self.n_threads = n_threads
        self.template, self.variables = template, dict(variables or {})
        self.sampling = dict(sampling or {})
        self.options = {**options, "n_ctx": n_ctx}

    def __call__(self, given: Any) -> Any:
        """The answers of rows, in their order."""
        if isinstance(given, (list, tuple)):
            return [msgspec.json.decode(line) for line in self.lines(given)]
        columns = frames.columns(given)
        asked = frames.rows_of(columns)
        answers = [msgspec.json.decode(line) for line in self.lines(asked)]
        return frames.with_answers(given, answers)

    def frames(self, given: Iterable[Any]) -> Iterator[Any]:
        """The answers of many frames, one after the other: for `mapInPandas` of Spark."""
        return map(self, given)

    def lines(self, given: Iterable[Mapping[str, Any]]) -> list[bytes]:
        """The answers of rows as JSON, in their order: the bytes that `lariat batch` writes."""
        asked = [rows.of_value(dict(row), number) for number, row in enumerate(given, 1)]
        found: dict[int, bytes] = {}
        with _lock:
            batch = Batch(self._answers(), self.n_parallel)
            for row, line in batch.lines(asked):
                found[row.number] = line
        return [found[number] for number in range(1, len(asked) + 1)]

    def load(self) -> None:
        """Load the model of this process now. Raises what `LLM` raises."""
        with _lock:
            self._answers()

    def _answers(self) -> Answers:
        from lariat.llm import LLM
        from lariat.protocol.served import Served, name_of

        key = msgspec.json.encode(vars(self), order="sorted", enc_hook=repr)
        pid, llm, answers = _loaded.get(key, (0, None, None))
        if pid == os.getpid() and answers is not None:
            return answers
        for _, other, _ in _loaded.values():
            other.close()
        _loaded.clear()
        n_threads = threads_given() if self.n_threads is None else self.n_threads
        llm = LLM(self.model, n_threads=n_threads, **self.options)
        served = Served(
            llm,
            [self.name or name_of(self.model)],
            template=self.template,
            variables=self.variables,
            defaults=SamplingParams(**{**llm.sampling.asked, **self.sampling}),
            now=NOON_2025,
        )
        settings = settings_of(served, seed=self.seed, max_tokens=self.max_tokens)
        answers = Answers(served, self.seed, self.max_tokens, encode(settings))
        _loaded[key] = (os.getpid(), llm, answers)
        return answers


def threads_given() -> int | None:
    """Threads for as many processors as this process was given; None: the system knows."""
    with contextlib.suppress(Exception):
        if ray := sys.modules.get("ray"):
            n = ray.get_runtime_context().get_assigned_resources().get("CPU")
            if n:
                return max(1, int(n))
    with contextlib.suppress(Exception):
        if distributed := sys.modules.get("distributed"):
            return max(1, int(distributed.get_worker().state.nthreads))
    n = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(n)) if n.isdecimal() else None
