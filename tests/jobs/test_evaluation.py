"""lm-evaluation-harness with local task files: nothing is downloaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lariat import DEMO_MODEL, LLM, SamplingParams
from lariat.protocol.served import Served

from tests.support.command_line import Run, check_refused, runner

TASK = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{"test": "{data}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
target_delimiter: " "
metric_list:
  - metric: acc
"""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "eval", "-t", "1", "-c", "256", "-q")


def questions() -> list[dict[str, object]]:
    subjects = ["The cat", "One day a girl", "The dog", "Tom", "The sun", "Her mother"]
    return [
        {"question": f"{subject} went to the", "choices": ["park", "xylem", "house of"],
         "answer": i % 3}
        for i, subject in enumerate(subjects)
    ]  # fmt: skip


def test_a_local_task_has_the_accuracy_of_scores(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in questions()))
    (tmp_path / "local.yaml").write_text(TASK.format(data=data))
    code, out, _ = run("--tasks", "local_choice", "--include-path", str(tmp_path), "-o", "json")
    assert code == 0
    n_right = 0
    with LLM(DEMO_MODEL, n_ctx=256, n_threads=1) as llm:
        for one in questions():
            logits = [
                llm.score(str(one["question"]), f" {choice}").logprob
                for choice in one["choices"]  # type: ignore[attr-defined]
            ]
            n_right += int(np.argmax(logits)) == one["answer"]
    found = json.loads(out.splitlines()[-1])["local_choice"]["acc,none"]
    assert found == pytest.approx(n_right / 6)


def test_the_model_of_the_harness() -> None:
    pytest.importorskip("lm_eval")
    from lariat.jobs.evaluation import EvaluatedModel

    with LLM(DEMO_MODEL, n_ctx=96, n_threads=1) as llm:
        model = EvaluatedModel(Served(llm, ["demo"]))
        asked = [SimpleNamespace(args=("The cat", text)) for text in (" sat", " and", " sat down")]
        found = model.loglikelihood(asked)
        for (logprob, is_greedy), one in zip(found, asked, strict=True):
            score = llm.score(*one.args)
            assert (logprob, is_greedy) == (score.logprob, score.is_greedy)
        (long,) = model.loglikelihood([SimpleNamespace(args=("The cat sat. " * 60, " Then"))])
        assert np.isfinite(long[0])
        (whole,) = model.loglikelihood_rolling([SimpleNamespace(args=("The cat sat. " * 60,))])
        assert whole == llm.score_text("The cat sat. " * 60).logprob
        given = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
        texts = model.generate_until(
            [SimpleNamespace(args=(text, given)) for text in ("One day", "The dog")]
        )
        params = SamplingParams(max_tokens=12, stop=(".",), temperature=0)
        assert texts == [llm.generate(text, params).text for text in ("One day", "The dog")]


def test_refusals(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_refused(run("--tasks", "x", "--limit", "-1"), 2, "--limit", "expected 0 or more")
    check_refused(run("--tasks", "x", "--include-path", str(tmp_path / "no")), 2, "not a folder")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "lariat.jobs.evaluation", raising=False)
    check_refused(run("--tasks", "x"), 1, "pip install 'lariat[eval]'")
