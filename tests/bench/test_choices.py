"""The questions of bench.experiments.evaluation, and its comparison."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("bench.choices", reason="runs from the source tree only")
from bench import choices
from bench.experiments import evaluation
from bench.experiments.evaluation import Answers


def test_two_hundred_questions_with_one_right_choice_each() -> None:
    asked = choices.questions()
    assert len(asked) == 200
    assert len({one["question"] for one in asked}) == 200
    right = {}
    for facts in choices.TABLES:
        right.update({facts.sentence.format(what): answer for what, answer in facts.answers()})
    for one in asked:
        assert len(set(one["choices"])) == choices.N_CHOICES
        assert one["choices"][one["answer"]] == right[one["question"]]
    assert min(Counter(one["answer"] for one in asked).values()) > 30
    assert choices.questions() == asked


def test_files_of_the_task(tmp_path: Path) -> None:
    assert choices.write_task(tmp_path, choices.questions()[:3]) == choices.TASK
    lines = (tmp_path / f"{choices.TASK}.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["question"] == "The capital of France is"
    text = (tmp_path / f"{choices.TASK}.yaml").read_text()
    assert 'doc_to_text: "{{question}}"' in text
    assert json.dumps(str(tmp_path / f"{choices.TASK}.jsonl")) in text


def test_the_report_counts_what_only_one_has_right() -> None:
    logprobs = np.array([[-1.0, -2.0], [-4.0, -3.0]])
    right, wrong = np.array([True, True]), np.array([True, False])
    told = evaluation.report(
        Answers(logprobs * 1.01, right, right), Answers(logprobs, wrong, right)
    )
    assert "| acc | 1.000 | 0.500 | 1 |" in told
    assert "| acc_norm | 1.000 | 1.000 | 0 |" in told
    assert "median 1.00%" in told
