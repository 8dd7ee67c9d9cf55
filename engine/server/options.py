"""How the server behaves. `lariat serve` has a flag for each."""

from __future__ import annotations

from dataclasses import dataclass

from lariat.checks import check_real, check_whole

_WHOLE = {
    "port": (0, 65535),
    "n_parallel": (1, 4096),
    "max_queue": (0, 1 << 20),
    "max_queued_tokens": (0, 1 << 40),
    "max_body": (1 << 10, 1 << 32),
}
_SECONDS = (
    "body_seconds",
    "request_seconds",
    "send_seconds",
    "ping_seconds",
    "stop_seconds",
    "stall_seconds",
)


@dataclass(frozen=True)
class ServerOptions:
    """Limits and rights.

    host               the address to listen at
    port               0: any that is free
    api_keys           one of them has to come with each request; (): none is asked for
    allowed_hosts      names in the header Host beside `host`, localhost and addresses; "*": any
    cors_origins       origins of web pages that may use the server, such as "https://a.example"
    n_parallel         streams that run at a time
    max_queue          streams that may wait
    max_queued_tokens  tokens of their prompts
    max_body           bytes of a request
    body_seconds       within which a body has to come
    request_seconds    within which a request has to be answered, waiting included
    send_seconds       within which a client has to take what is sent
    ping_seconds       after which a silent stream gets a comment
    stop_seconds       within which running requests may finish when the server stops
    stall_seconds      without a step while requests run, after which it says that it is ill
    library            a folder of documents; None: there are none
    context_dir        a folder for saved contexts; None: they cannot be saved
    log_requests       whether each request is a line on standard error, without what it says
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    n_parallel: int = 8
    max_queue: int = 256
    max_queued_tokens: int = 1 << 20
    max_body: int = 16 << 20
    body_seconds: float = 30.0
    request_seconds: float = 3600.0
    send_seconds: float = 60.0
    ping_seconds: float = 15.0
    stop_seconds: float = 30.0
    stall_seconds: float = 120.0
    library: str | None = None
    context_dir: str | None = None
    log_requests: bool = False
    ssl_cert_file: str | None = None
    ssl_key_file: str | None = None

    def __post_init__(self) -> None:
        """ValueError for numbers that make no sense."""
        for name, (minimum, maximum) in _WHOLE.items():
            check_whole(name, getattr(self, name), minimum, maximum)
        for name in _SECONDS:
            check_real(name, getattr(self, name), 0.01, 1e7)
