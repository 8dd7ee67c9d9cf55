"""Runs the application: listens, loads the model meanwhile, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn
from lariat.protocol.served import Served
from lariat.server.app import build_app
from lariat.server.options import ServerOptions
from lariat.server.service import Service

_MAX_CONNECTIONS = 4096
_MAX_HEADERS = 64 << 10


def listen(options: ServerOptions) -> socket.socket:
    """A socket at the address. Raises OSError if it cannot be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    where = (options.host, options.port)
    try:
        return socket.create_server(where, family=family, backlog=2048)
    except OSError as error:
        text = f"cannot listen at port {options.port}: {error.strerror or error}"
        raise OSError(error.errno, text, options.host) from None


def address(options: ServerOptions, listener: socket.socket) -> str:
    """The address for clients on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if options.ssl_cert_file else 'http'}://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's, with our way of stopping: SIGTERM and the first Ctrl-C let running requests
    finish, the second one does not."""

    def __init__(self, service: Service) -> None:
        options = service.options
        super().__init__(
            uvicorn.Config(
                build_app(service),
                lifespan="off",
                ws="none",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=max(1, round(options.stop_seconds)),
                limit_concurrency=_MAX_CONNECTIONS,
                h11_max_incomplete_event_size=_MAX_HEADERS,
                ssl_certfile=options.ssl_cert_file,
                ssl_keyfile=options.ssl_key_file,
            )
        )
        self.service = service
        self.signal: int | None = None  # that has stopped it

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Care for signals; they are not raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.signal = self.signal or sig
        self.stop()

    def stop(self) -> None:
        """Take no more requests, and end when those that run are finished."""
        self.should_exit = True


async def serve(
    server: Server,
    listener: socket.socket,
    load: Callable[[], Served],
    ready: Callable[[Served], None] = lambda _: None,
) -> int | None:
    """Serve until a signal, `server.stop()` or an error; returns the number of the signal.

    load   loads the model, in a thread of its own
    ready  is called when it is loaded

    Raises what `load` raises.
    """
    service = server.service
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[Served] = loop.create_future()

    def settle(served: Served | None, error: BaseException | None) -> None:
        if loaded.done():
            return
        if served is not None:
            loaded.set_result(served)
        else:
            assert error is not None
            loaded.set_exception(error)

    def work() -> None:
        served, failed = None, None
        try:
            served = load()
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
            loop.call_soon_threadsafe(settle, served, failed)

    async def begin() -> None:
        try:
            served = await loaded
        except BaseException:
            server.stop()
            raise
        service.loaded(served)
        ready(served)

    async def tell_stop() -> None:
        while not server.should_exit:
            await asyncio.sleep(0.1)
        service.stop()

    threading.Thread(target=work, name="lariat-load", daemon=True).start()
    beginning = asyncio.ensure_future(begin())
    stopping = asyncio.ensure_future(tell_stop())
    try:
        await server.serve([listener])
    finally:
        stopping.cancel()
        service.stop()
        service.close()
    if not beginning.done():  # stopped while loading: the thread holds nothing that must be saved
        beginning.cancel()
    elif beginning.exception() is not None:
        raise beginning.exception()  # type: ignore[misc]
    return server.signal
