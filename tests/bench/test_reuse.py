"""`bench.experiments.reuse`: its tasks, and a run on the demo model."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("bench", reason="runs from the source tree only")

from bench import reuse_tasks
from bench.experiments import reuse


def n_words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("name", reuse_tasks.TASKS)
def test_tasks_are_the_same_each_time_and_hold_their_answers(name):
    for number in range(3):
        one = reuse_tasks.task(name, number, n_words)
        assert one == reuse_tasks.task(name, number, n_words)
        assert one != reuse_tasks.task(name, number + 1, n_words)
        assert len(one.asked) >= 2
        for asked in one.asked:
            needed = " ".join(one.documents[i] for i in asked.needed)
            for word in asked.answer.strip(" .").split():
                assert word.strip(".,") in needed or word in ("and", "the", "access", "code", "is")
            if name != "log":
                digits = [w for w in asked.answer.split() if w.strip(".").isdigit()]
                others = [d for i, d in enumerate(one.documents) if i not in asked.needed]
                assert not any(w.strip(".") in d.split(".") for w in digits for d in others)


@pytest.mark.parametrize("n", [4, 12])
def test_documents_are_as_many_and_as_long_as_asked_for(n):
    one = reuse_tasks.task("keys", 0, n_words, n)
    assert len(one.documents) == n
    assert all(60 < n_words(text) < 420 for text in one.documents)


def test_prose_is_plain():
    assert len(reuse_tasks.paragraphs()) > 300
    assert all(text.endswith(".") and "\n" not in text for text in reuse_tasks.paragraphs())


def test_a_run(tmp_path, capsys, monkeypatch):
    def small(name: str, number: int, count: object) -> reuse_tasks.Task:
        asked = (
            reuse_tasks.Asked("Question: What is the key of the red door?\nAnswer:", " The", (0,)),
            reuse_tasks.Asked("Question: What is the key of the old gate?\nAnswer:", " The", (1,)),
        )
        documents = (
            "The key of the red door is 4 8 2 1.\n",
            "The key of the old gate is 1 2 3 4.\n",
        )
        return reuse_tasks.Task(name, documents, asked)

    monkeypatch.setattr(reuse, "task", small)
    output = tmp_path / "out.json"
    methods = "none,auto,behind newlines,chunk by likelihood"
    reuse.main(["measure", "--tasks", "keys", "-n", "2", "--methods", methods, "-o", str(output)])
    rows = json.loads(output.read_text())
    assert len(rows) == 2 * 2 * 6
    by_method = {name: [r for r in rows if r["method"] == name] for name in reuse.METHODS}
    assert all(r["n_computed"] == 0 for r in by_method["none"])
    n_second = rows[0]["n_documents"] // 2
    assert all(0 < r["n_computed"] <= n_second + 2 for r in by_method["auto"])
    assert all(r["n_computed"] > n_second for r in by_method["chunk by likelihood"])
    assert {r["kl"] for r in rows if r["method"] == reuse.FULL} == {0}
    capsys.readouterr()
    reuse.main(["show", str(output), "--least", "2"])
    out = capsys.readouterr().out
    assert "keys: 4 questions, 2 sets" in out
    assert out.count("\n|") == 2 + 6


def test_time(capsys, tmp_path):
    reuse.main(["time", "-n", "128", "--n-question", "4", "-r", "1"])
    out = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in out.splitlines()[4:]] == [
        "cold", "none", "auto", "20 % computed",
    ]  # fmt: skip
