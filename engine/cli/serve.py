"""`lariat serve`: a server that speaks OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import argparse
import os
import signal
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
from lariat.cli.usage import Flag, UsageError, add_flags, checked
from lariat.demo import DEMO_MODEL
from lariat.errors import LariatError
from lariat.server.options import ServerOptions

if TYPE_CHECKING:
    from lariat.protocol.served import Served

_KEY_VARIABLE = "LARIAT_API_KEY"
_LOOPBACK = ("127.", "::1", "localhost")
_PARTS = ("starlette", "uvicorn", "prometheus_client", "anyio", "markdown_it", "nh3")

# The bundled model tells stories: it goes on with what is said.
_STORY = "{% for message in messages %}{{ message.content }}{% endfor %}"

_ADDRESS = (
    Flag(("--host",), "host", str, "ADDRESS", "address to listen at; 0.0.0.0: all"),
    Flag(("--port",), "port", int, "N", "port to listen at; 0: any that is free"),
)
_LIMITS = (
    Flag(("-np", "--parallel"), "n_parallel", int, "N", "requests that are computed at a time"),
    Flag(("--max-queue",), "max_queue", int, "N", "requests that may wait; others get status 429"),
    Flag(("--max-queued-tokens",), "max_queued_tokens", int, "N", "tokens of their prompts"),
    Flag(("--max-body",), "max_body", int, "BYTES", "size of a request"),
    Flag(("-to", "--timeout"), "request_seconds", float, "S", "seconds until an answer is ready"),
    Flag(("--send-timeout",), "send_seconds", float, "S", "seconds until a client reads on"),
    Flag(
        ("--stop-timeout",), "stop_seconds", float, "S",
        "seconds that running requests have when SIGTERM or Ctrl-C stops the server",
    ),
)  # fmt: skip
_TLS = (
    ("--ssl-cert-file", "ssl_cert_file", "certificate for HTTPS (PEM)"),
    ("--ssl-key-file", "ssl_key_file", "its private key (PEM)"),
)

_DESCRIPTION = """\
Serve a model over HTTP, for clients of OpenAI's and Anthropic's APIs. It listens on this machine
alone, unless --host says otherwise."""

_EPILOG = f"""\
examples:
  lariat serve
  lariat serve -m model.gguf --port 8000 -c 16384 --parallel 16
  lariat serve -hf unsloth/Qwen3-0.6B-GGUF:Q8_0 --alias qwen
  {_KEY_VARIABLE}=secret lariat serve -m model.gguf --host 0.0.0.0

Clients take http://127.0.0.1:8080/v1 as their base URL. The context (-c) is shared by all requests
that are computed at a time. docs/server.md has the routes and the limits. The server needs
`pip install 'lariat[server]'`.
Exit code: 0 after SIGTERM, 1 error, 2 usage, 130 Ctrl-C."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "serve", help="serve a model over HTTP", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=run)
    model = parser.add_argument_group("model")
    model_file.add_arguments(model)
    model.add_argument(
        "-a",
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="name of the model for clients; may be given several times (default: the file's name)",
    )
    template_flags.add(model)
    address = parser.add_argument_group("address")
    add_flags(address, _ADDRESS, ServerOptions)
    for name, dest, what in _TLS:
        address.add_argument(name, dest=dest, metavar="FILE", help=what)
    rights = parser.add_argument_group("rights")
    rights.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that requests need; may be given several times (better: --api-key-file or "
        f"{_KEY_VARIABLE}, which nobody sees in a list of processes)",
    )
    rights.add_argument("--api-key-file", metavar="FILE", help="keys, one on each line")
    rights.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which clients reach the server, beside --host, localhost and addresses; "
        "*: any",
    )
    rights.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin whose web pages may use the server, such as https://chat.example",
    )
    kept = parser.add_argument_group("documents and contexts, see docs/server.md")
    kept.add_argument(
        "--library",
        metavar="DIR",
        help="a folder of documents, as `lariat chunk` has; for /v1/documents and the page",
    )
    kept.add_argument(
        "--context-dir", metavar="DIR", help="a folder in which clients may save contexts"
    )
    limits = parser.add_argument_group("limits")
    add_flags(limits, _LIMITS, ServerOptions)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--log-requests",
        action="store_true",
        help="a line for each request on standard error, without what it says",
    )
    output.add_argument("-q", "--quiet", action="store_true", help="no bars, only errors")
    engine_flags.add(parser)
    parser.set_defaults(cache="raw")  # so that text can move in a context; it costs nothing
    sampling_flags.add(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes, and return the exit code."""
    options = _options(args)
    # Where a text ends is each request's own.
    args.max_tokens, args.ignore_eos, args.stop, args.escape = None, False, [], False
    params = sampling_flags.params(args)
    config = engine_flags.config(args)
    overrides = model_file.overrides(args)
    variables = template_flags.variables(args)
    template = template_flags.template(args)
    try:
        import asyncio

        from lariat.protocol.served import Served, name_of
        from lariat.server import run as server
        from lariat.server.service import Service
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _PARTS:
            raise
        raise LariatError(
            f"the server needs {error.name}, which is missing: pip install 'lariat[server]'"
        ) from None
    if template is None and args.model == DEMO_MODEL and args.hf_repo is None:
        template = _STORY

    def load() -> Served:
        llm = engine_flags.load(args, config, overrides)
        defaults = sampling_flags.with_file(params, llm.sampling, args)
        names = args.alias or [name_of(args.model)]
        return Served(llm, names, template=template, variables=variables, defaults=defaults)

    listener = server.listen(options)
    where = server.address(options, listener)

    def ready(served: Served) -> None:
        if not args.quiet:
            console.note(report.headline(served.llm, args))
        console.note(f"lariat serve: {console.brief(served.name)} ready at {where}")

    interrupts.begin_work()
    if not options.api_keys and not options.host.startswith(_LOOPBACK):
        console.note(
            f"lariat: warning: whoever reaches {options.host} may use the model, because there is "
            "no --api-key"
        )
    running = server.Server(Service(options))
    stopped_by = asyncio.run(server.serve(running, listener, load, ready))
    return interrupts.CODE if stopped_by == signal.SIGINT else 0


def _options(args: argparse.Namespace) -> ServerOptions:
    """The options of all flags. Raises UsageError that names the flag at fault."""
    keys = [*args.api_key, *filter(None, [os.environ.get(_KEY_VARIABLE)])]
    if args.api_key_file is not None:
        keys += template_flags.read(args.api_key_file).split()
        if not keys:
            raise UsageError("argument --api-key-file: the file has no key")
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or key != key.strip():
            raise UsageError("an API key is empty, or has characters that a header cannot have")
    if bool(args.ssl_cert_file) != bool(args.ssl_key_file):
        raise UsageError("--ssl-cert-file and --ssl-key-file belong together: give both")
    if args.library is not None and args.cache != "raw":
        raise UsageError("argument --library: needs --cache raw, whose keys have no position")
    if args.context_dir is not None and not Path(args.context_dir).is_dir():
        raise UsageError(f"argument --context-dir: {args.context_dir} is not a folder")
    for _, dest, _ in _TLS:
        path = getattr(args, dest)
        if path is not None:
            with open(path, "rb"):
                pass  # an error now, not when somebody connects
    return checked(
        ServerOptions, _ADDRESS + _LIMITS, args,
        api_keys=tuple(keys), allowed_hosts=tuple(args.allowed_host),
        cors_origins=tuple(args.cors_origin), log_requests=args.log_requests,
        library=args.library, context_dir=args.context_dir,
        ssl_cert_file=args.ssl_cert_file, ssl_key_file=args.ssl_key_file,
    )  # fmt: skip
