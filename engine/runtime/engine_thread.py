"""The engine thread: one thread that steps the runner for everybody.

Requests come in through a queue, and the thread goes on as long as somebody wants text: a thread
that waits for its stream's next piece, or an event loop, whose streams are always wanted. A step
computes all requests together. Text comes out through the queue of each request, and the thread
tells those who wait.

A thread whose requests are the only ones steps itself. Nobody else waits then, and handing each
token from one thread to another would take a small model several percent of its speed. Ctrl-C
there interrupts its own requests alone.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from queue import SimpleQueue
from typing import Protocol

from lariat.errors import LariatError
from lariat.runtime import threads
from lariat.runtime.context import Context
from lariat.runtime.request import Request
from lariat.runtime.runner import Runner

N_UNREAD = 256  # deltas; behind so many a request is no longer wanted
_CLOSE_SECONDS = 10.0  # within which a step ends whose requests are all given up


class Mailbox(Protocol):
    """Where the news of some requests go."""

    def deliver(self, requests: list[Request]) -> None:
        """These have text or are over. The engine thread calls it, so it must return at once."""


class EngineThread:
    """Steps a runner in a thread of its own, which starts with the first request that needs it.

    Whoever holds a request either calls `advance` for its text, or has it watched.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._bell: SimpleQueue[None] = SimpleQueue()  # C code, so no exception strikes within
        self._waiting: dict[SimpleQueue[None], Request] = {}  # of threads in `advance`
        self._watched: dict[Request, Mailbox] = {}
        self._told: set[Request] = set()  # of those, who have not looked since
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._is_stopped = False
        _all.add(self)

    def start(self, request: Request, context: Context | None = None) -> None:
        """Queue a request, which continues `context` if there is one.

        Without tokens to write it is over at once. Raises what `Context.lend` raises.
        """
        request.reader = threading.get_ident()
        if request.params.max_tokens == 0 and not request.n_to_score:
            if context is not None:
                context.read(request)
            request.completion.finish_reason = "length"
            request.closed = True
        elif context is None:
            self._runner.submit(request)
        else:
            with self._runner.exclusive:
                self._runner.sweep()  # a stream on it that is over gives it back
                self._runner.submit(request)
                try:
                    context.lend(request)
                except BaseException:
                    request.closed = True
                    raise

    def advance(self, request: Request) -> bool:
        """Wait until `request` has text; False when none will come any more.

        Raises the error of the request, and ValueError if the model is closed. An exception that
        strikes while it waits, such as KeyboardInterrupt, gives the request up.
        """
        me = request.reader = threading.get_ident()
        while not request.deltas and not request.closed:
            if not self._watched and not self._waiting:
                with self._runner.exclusive:
                    self._runner.take_in()
                    if self._is_alone(me):
                        if not request.closed:
                            self._runner.step()
                        continue
            threads.check_not_forked()
            self._runner.check_open()
            self._wait(request)
        if not request.deltas and isinstance(request.error, Exception):
            raise request.error
        return bool(request.deltas)

    def watch(self, request: Request, mailbox: Mailbox) -> None:
        """Compute `request` whether somebody waits or not, and tell `mailbox` of news, once
        until `look` is called."""
        request.reader = None
        self._watched[request] = mailbox
        self._ring()

    def look(self, request: Request) -> None:
        """Whoever had `request` watched is about to take its text: what comes now is news."""
        self._told.discard(request)

    def taken(self, request: Request) -> None:
        """Whoever had `request` watched has taken a piece of its text, after which it may be
        computed further."""
        if len(request.deltas) == N_UNREAD - 1:
            self._bell.put(None)

    def give_up(self, request: Request) -> None:
        """Compute nothing more of a request; its blocks are free when the pass that runs ends.

        It waits for nobody.
        """
        self._watched.pop(request, None)
        self._told.discard(request)
        self._runner.give_up(request)
        if self._thread is not None and not threads.is_forked():
            self._bell.put(None)

    def cancel(self, request: Request) -> None:
        """Compute nothing more of a request; its blocks are free now or after the pass that
        runs."""
        self._runner.cancel(request)

    def stop(self) -> None:
        """End all requests and the thread; the pass that runs ends early. Twice does no harm.

        RuntimeError from within a callback of the runner.
        """
        if threads.is_forked():
            return
        if self._runner.exclusive.is_mine:
            raise RuntimeError("an LLM cannot be used from within its own callbacks")
        self._is_stopped = True
        for request in () if self._runner.closed else self._runner.requests:
            if not request.closed:
                request.give_up(ValueError("the model is closed"))
        self._runner.stop.look()
        if self._thread is not None:
            self._bell.put(None)
            self._thread.join(_CLOSE_SECONDS)

    def __del__(self) -> None:
        if hasattr(self, "_bell"):
            self._is_stopped = True
            self._bell.put(None)

    # ---- the threads that wait ----

    def _is_alone(self, me: int) -> bool:
        """Whether thread `me` reads all requests."""
        return all(request.reader == me for request in self._runner.requests)

    def _wait(self, request: Request) -> None:
        told: SimpleQueue[None] = SimpleQueue()
        try:
            self._waiting[told] = request
            self._ring()
            told.get()
        except BaseException:
            self._runner.cancel(request)
            raise
        finally:
            self._waiting.pop(told, None)

    def _ring(self) -> None:
        """Have the thread look around; start it if there is none."""
        if self._thread is None or not self._thread.is_alive():
            with self._starting:
                if self._thread is None or not self._thread.is_alive():
                    self._runner.check_open()
                    # It must not keep the engine: one that nobody holds any more is to go.
                    self._thread = threading.Thread(
                        target=_work,
                        args=(weakref.ref(self), self._bell),
                        name="lariat-engine",
                        daemon=True,
                    )
                    self._thread.start()
        self._bell.put(None)

    # ---- the engine thread ----

    def run(self) -> bool:
        """Step as long as somebody wants text; False when the engine is stopped."""
        while not self._is_stopped and not self._runner.closed:
            self._tell()
            try:
                with self._runner.exclusive:
                    if not self._step():
                        return True
            except ValueError:  # closed by another thread meanwhile
                break
        for request in (*self._waiting.values(), *self._watched):
            if not request.closed:
                request.give_up(ValueError("the model is closed"))
        self._tell()
        return False

    def _step(self) -> bool:
        """Take a step if one is wanted. Its exception ends the requests that it strikes, or all if
        it strikes none."""
        requests = self._runner.requests
        before = [request for request in requests if not request.closed]
        self._runner.sweep()
        if not self._is_wanted():
            return False
        try:
            self._runner.step()
        except BaseException as error:
            for request in [one for one in before if one.closed] or before:
                if request.error in (None, error):
                    is_plain = isinstance(error, Exception)
                    request.give_up(
                        error if is_plain else LariatError(f"the step ended: {error!r}")
                    )
        return True

    def _is_wanted(self) -> bool:
        watched = list(self._watched)  # other threads add to it
        return bool(self._waiting) or any(
            len(request.deltas) < N_UNREAD for request in watched if not request.closed
        )

    def _tell(self) -> None:
        """Tell those who wait for requests that have text or are over."""
        for told, request in list(self._waiting.items()):
            if request.deltas or request.closed:
                self._waiting.pop(told, None)
                told.put(None)
        news: dict[Mailbox, list[Request]] = {}
        for request, mailbox in list(self._watched.items()):
            if request.closed:
                self._watched.pop(request, None)
                news.setdefault(mailbox, []).append(request)
            elif request.deltas and request not in self._told:
                self._told.add(request)
                news.setdefault(mailbox, []).append(request)
        for mailbox, requests in news.items():
            try:
                mailbox.deliver(requests)
            except Exception:  # nobody is there any more
                for request in requests:
                    self.give_up(request)


def _work(engine_of: weakref.ref[EngineThread], bell: SimpleQueue[None]) -> None:
    """The thread: whenever the bell rings, it runs the engine until it has nothing to do."""
    is_on = True
    while is_on:
        bell.get()
        while not bell.empty():
            bell.get()
        engine = engine_of()
        is_on = engine is not None and engine.run()
        del engine


_all: weakref.WeakSet[EngineThread] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Before the interpreter goes, and its threads with it, in whose midst they may be."""
    for engine in list(_all):
        with contextlib.suppress(RuntimeError):
            engine.stop()
