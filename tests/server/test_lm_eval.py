"""lm-evaluation-harness against a running server: its log-likelihoods are those of `LLM.score`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lariat import DEMO_MODEL, LLM, SamplingParams

from tests.support.real_models import SMOLLM2
from tests.support.servers import Running, running

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity", reason="lm-eval[api] is not installed")

PAIRS = [
    ("Once upon a time", " there was a little girl named Lily."),
    ("Once upon a time", " xylem and phloem"),
    ("The dog ran to the", " park"),
    ("The dog ran to the ", "park"),
    ("", "One day"),
    ("She said:", ' "I am happy, 42 times!"'),
]


@pytest.fixture(scope="module", params=["demo", pytest.param("real", marks=pytest.mark.real)])
def served(request: pytest.FixtureRequest) -> Iterator[Running]:
    if request.param == "real" and not SMOLLM2.is_file():
        pytest.skip("make real-models gets SmolLM2")
    path = SMOLLM2 if request.param == "real" else DEMO_MODEL
    with LLM(path, n_ctx=512) as llm, running(llm, names=("m",)) as server:
        yield server


def harness(server: Running, **more: Any) -> Any:
    """The harness's own client, which takes the server's tokenizer as it would take vLLM's."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    url = f"{server.base_url}/completions"
    client = LocalCompletionsAPI(model="m", base_url=url, max_length=512, max_retries=1, **more)
    assert client.tokenizer_backend == "remote", "the server has the routes that it looks for"
    return client


def asked(pairs: list[tuple[str, str]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_log_likelihoods_are_those_of_score(served: Running, batch_size: int) -> None:
    client = harness(served, batch_size=batch_size)
    found = client.loglikelihood(asked(PAIRS), disable_tqdm=True)
    assert len(found) == len(PAIRS)
    for pair, (logprob, is_greedy) in zip(PAIRS, found, strict=True):
        ids = client._encode_pair(*pair) if pair[0] else ([client.prefix_token_id],
                                                          client.tok_encode(pair[1]))  # fmt: skip
        expected = served.llm.score(*ids)
        assert logprob == pytest.approx(expected.logprob, abs=1e-4), pair
        assert is_greedy == expected.is_greedy, pair


def test_a_greedy_continuation_is_told(served: Running) -> None:
    client = harness(served)
    context = "Once upon a time"
    ids = client.tok_encode(context)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    text = served.llm.generate(ids, params).text
    ((logprob, is_greedy),) = client.loglikelihood(asked([(context, text)]), disable_tqdm=True)
    assert is_greedy
    assert logprob == pytest.approx(served.llm.score(*client._encode_pair(context, text)).logprob,
                                    abs=1e-4)  # fmt: skip


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_for_any_number_of_new_tokens(served: Running, max_tokens: int) -> None:
    """With 0, as later clients ask, there is none to leave out at the end."""
    llm = served.llm
    before, behind = (llm.tokenize(text, add_bos=False) for text in PAIRS[0])
    body = {"prompt": before + behind, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    (choice,) = served.post("/v1/completions", body | {"temperature": 0}).json()["choices"]
    told = choice["logprobs"]["token_logprobs"]
    assert len(told) == len(before) + len(behind) + max_tokens
    assert told[0] is None
    end = len(before) + len(behind)
    expected = llm.score(before, behind)
    assert sum(told[len(before) : end]) == pytest.approx(expected.logprob, abs=1e-4)
    assert told[len(before) : end] == pytest.approx(expected.token_logprobs, abs=1e-5)


def test_texts_are_tokens_as_the_harness_asks_for_them(served: Running) -> None:
    llm = served.llm
    info = served.get("/tokenizer_info").json()
    for field, id in (("bos_token", llm.tokenizer.bos_id), ("eos_token", llm.tokenizer.eos_id)):
        assert info[field] == (None if id is None else llm.tokenizer.piece(id))
    assert info["n_vocab"] == llm.n_vocab
    for adds in (False, True):
        body = {"prompt": "the rain", "add_special_tokens": adds}
        answer = served.post("/tokenize", body).json()
        assert answer["tokens"] == llm.tokenize("the rain", add_bos=adds)
        assert answer["count"] == len(answer["tokens"])
        assert answer["max_model_len"] == llm.n_ctx
    text = served.post("/detokenize", {"tokens": llm.tokenize("the rain", add_bos=False)}).json()
    assert text["prompt"] == text["content"] == "the rain"
    for wrong in ({}, {"prompt": "a", "content": "a"}):
        assert served.post("/tokenize", wrong).status_code == 400
