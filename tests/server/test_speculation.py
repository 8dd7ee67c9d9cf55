"""A server whose model has a draft model: the same answers, and counts of what was guessed."""

from __future__ import annotations

import re

from lariat import DEMO_MODEL, LLM

from tests.support.servers import Running, running

BODY = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "seed": 3, "n": 2}


def test_answers_stay_and_guesses_are_counted(server: Running) -> None:
    expected = server.post("/v1/completions", BODY).json()
    details = expected["usage"]["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (0, 0)
    with (
        LLM(DEMO_MODEL, n_ctx=1024, n_threads=1, draft_model=DEMO_MODEL) as llm,
        running(llm) as guessing,
    ):
        found = guessing.post("/v1/completions", BODY).json()
        counts = guessing.get("/metrics").text
    assert [c["text"] for c in found["choices"]] == [c["text"] for c in expected["choices"]]
    details = found["usage"]["completion_tokens_details"]
    accepted = details["accepted_prediction_tokens"]
    assert accepted > 20
    assert details["rejected_prediction_tokens"] == 0  # the model guesses for itself
    told = {
        name: float(re.search(rf"^lariat_{name}_total (\S+)$", counts, re.M)[1])  # type: ignore[index]
        for name in (
            *("spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"),
            *("generation_passes", "generation_tokens"),
        )
    }
    assert told["spec_decode_num_draft_tokens"] == accepted
    assert told["spec_decode_num_accepted_tokens"] == accepted
    # The pass of each prompt gives the first token.
    assert told["generation_passes"] == told["generation_tokens"] - accepted - 2
