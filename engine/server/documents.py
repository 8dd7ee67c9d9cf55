"""`/v1/documents`: documents that are computed once and kept, for contexts and conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lariat.errors import ContextError
from lariat.protocol.contexts import Deleted, DocumentAnswer, DocumentList, KeepDocument
from lariat.protocol.errors import ApiError
from lariat.server.endpoint import Call, Endpoint

if TYPE_CHECKING:
    from lariat.reuse.library import ChunkLibrary


def library_of(call: Call) -> ChunkLibrary:
    """The server's library. ApiError with the status 404 if it has none."""
    if call.service.library is None:
        raise ApiError(404, "the server has no library: start it with --library DIR")
    return call.service.library


async def _all(call: Call) -> DocumentList:
    entries = await call.service.in_thread(library_of(call).entries)
    return DocumentList(
        data=[DocumentAnswer(id=e.name, n_tokens=e.n_tokens, n_bytes=e.n_bytes) for e in entries]
    )


async def _keep(call: Call) -> DocumentAnswer:
    library, llm, given = library_of(call), call.served.llm, call.body

    def keep() -> DocumentAnswer:
        chunk = library.add(llm, given.id, given.text)
        return DocumentAnswer(id=given.id, n_tokens=len(chunk), n_bytes=chunk.nbytes)

    await call.service.make_room(len(given.text))  # more than its tokens
    return await call.service.in_thread(keep)


async def _one(call: Call) -> DocumentAnswer:
    llm = call.served.llm

    def read() -> DocumentAnswer:
        chunk = call.service.open_document(call.path["id"])
        text = llm.detokenize([int(i) for i in chunk.tokens])
        return DocumentAnswer(
            id=call.path["id"], n_tokens=len(chunk), n_bytes=chunk.nbytes, text=text
        )

    return await call.service.in_thread(read)


async def _remove(call: Call) -> Deleted:
    library, id = library_of(call), call.path["id"]
    try:
        await call.service.in_thread(library.remove, id)
    except ContextError as error:
        raise ApiError(404, str(error), code="document_not_found") from None
    return Deleted(id=id)


ENDPOINTS = (
    Endpoint("GET", "/v1/documents", _all, "Lists the documents.", answer=DocumentList),
    Endpoint(
        "POST", "/v1/documents", _keep, "Computes a document once, and keeps it.",
        request=KeepDocument, answer=DocumentAnswer,
    ),
    Endpoint(
        "GET", "/v1/documents/{id}", _one, "A document and its text.", answer=DocumentAnswer
    ),
    Endpoint("DELETE", "/v1/documents/{id}", _remove, "Removes a document.", answer=Deleted),
)  # fmt: skip
