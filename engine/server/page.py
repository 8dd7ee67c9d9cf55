"""`GET /`: the web page, its files, and Markdown that becomes safe HTML for it.

The page is static files of this package, which need no key; all that it asks for then does. Its
policy lets it load nothing from elsewhere, run no code that is written in it, and stand in no frame
of another page.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
from lariat.protocol import errors
from lariat.server.endpoint import Call, Endpoint, Raw

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_MAX_MARKDOWN = 200_000  # characters
# Pictures are left out: a model's text must not make the browser fetch anything.
_TAGS = frozenset(
    (
        *("a", "blockquote", "br", "code", "del", "em", "hr", "li", "ol", "p", "pre", "s", "ul"),
        *("strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr"),
        *("h1", "h2", "h3", "h4", "h5", "h6"),
    )
)
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "code": {"class"}}
_SCHEMES = {"http", "https", "mailto"}


class MarkdownRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text in Markdown."""

    text: str


class MarkdownAnswer(msgspec.Struct, kw_only=True):
    """Safe HTML."""

    html: str


class ServerAnswer(msgspec.Struct, kw_only=True):
    """A model as the page needs to know it.

    documents  whether there is a library of documents
    reuse      whether text that moves in a context can be reused
    """

    model: str
    n_ctx: int
    documents: bool
    reuse: bool


def safe_html(text: str) -> str:
    """Markdown (CommonMark, with tables and struck text) as HTML without scripts, styles, frames
    and pictures. HTML in the text is shown as text."""
    import nh3

    html = _markdown().render(text)
    return nh3.clean(
        html,
        tags=set(_TAGS),
        attributes=_ATTRIBUTES,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
    )


@cache
def _markdown():  # type: ignore[no-untyped-def]
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


async def _html(call: Call) -> MarkdownAnswer:
    if len(call.body.text) > _MAX_MARKDOWN:
        raise errors.bad(f"the text has more than {_MAX_MARKDOWN} characters", "text")
    return MarkdownAnswer(html=await call.service.in_thread(safe_html, call.body.text))


async def _server(call: Call) -> ServerAnswer:
    llm = call.served.llm
    return ServerAnswer(
        model=call.served.name,
        n_ctx=llm.n_ctx,
        documents=call.service.library is not None,
        reuse=llm.settings.cache == "raw",
    )


def _file(path: Path, route: str) -> Endpoint:
    content = path.read_bytes()

    async def send(_: Call) -> Raw:
        return Raw(content, _TYPES[path.suffix], headers=_HEADERS)

    return Endpoint(
        "GET", route, send, "A file of the web page.", media_type=_TYPES[path.suffix], is_open=True,
        is_listed=False,
    )  # fmt: skip


ENDPOINTS = (
    _file(_FOLDER / "index.html", "/"),
    *(
        _file(path, f"/ui/{path.relative_to(_FOLDER)}")
        for path in sorted(_FOLDER.rglob("*.*"))
        if path.suffix in _TYPES and path.name != "index.html"
    ),
    Endpoint("GET", "/ui/server", _server, "The model, for the web page.", answer=ServerAnswer),
    Endpoint(
        "POST", "/ui/markdown", _html, "Turns Markdown into safe HTML.",
        request=MarkdownRequest, answer=MarkdownAnswer,
    ),
)  # fmt: skip
