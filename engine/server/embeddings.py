"""`POST /v1/embeddings`. Bodies are `lariat.protocol.embeddings`'s."""

from __future__ import annotations

from functools import partial

from lariat.protocol import embeddings, errors
from lariat.protocol.embeddings import EmbeddingList, EmbeddingRequest
from lariat.server.endpoint import Call, Endpoint


async def _embed(call: Call) -> EmbeddingList:
    service = call.service
    job = await service.in_thread(embeddings.prepare, call.body, call.served)
    service.admission.check(1, sum(map(len, job.prompts)))
    embed = partial(call.served.llm.embed, pooling=job.pooling, normalize=job.normalize)
    vectors = []
    async with service.admission.slot(sum(map(len, job.prompts))):
        for ids in job.prompts:  # between two of them it may be cancelled
            try:
                vectors.append(await service.in_thread(embed, ids))
            except Exception as error:
                raise errors.while_running(error) from error
    return embeddings.answer(job, vectors)


ENDPOINTS = (
    Endpoint(
        "POST", "/v1/embeddings", _embed, "Vectors of texts.",
        request=EmbeddingRequest, answer=EmbeddingList,
    ),
)  # fmt: skip
