"""--spec and -md: the same text, what was guessed, and flags that contradict each other."""

import json

import pytest

from tests.support.command_line import Run, check_refused, runner
from tests.support.model_files import write_llama

FLAGS = ("-p", "Once upon a time", "-n", "30", "--temp", "0", "--ignore-eos")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return str(write_llama(folder / "m.gguf")), str(write_llama(folder / "d.gguf", n_layers=1))


@pytest.mark.parametrize("flags", [(), ("--spec", "draft", "--draft-max", "3")])
def test_a_draft_model(run, models, flags, monkeypatch):
    monkeypatch.setattr("lariat.runtime.draft_model._MIN_PROBABILITY", 0.0)
    model, draft = models
    plain = run("generate", "-m", model, *FLAGS, "-o", "json", "-q")
    code, out, err = run("generate", "-m", model, "-md", draft, *flags, *FLAGS, "-o", "json")
    assert code == 0
    told, timings = json.loads(plain[1]), json.loads(out)["timings"]
    assert json.loads(out)["ids"] == told["ids"]
    assert told["timings"]["decode_per_pass"] == 1
    assert timings["n_drafted"] > timings["n_accepted"] >= 0
    assert timings["decode_per_pass"] == timings["n_decode"] / timings["n_passes"]
    assert (
        f"guessed     {timings['n_drafted']} tokens, of which {timings['n_accepted']} came" in err
    )
    assert "tokens per pass" in err


def test_a_text_without_guesses_has_no_line_about_them(run, models):
    assert "guessed" not in run("generate", "-m", models[0], *FLAGS)[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--spec", "draft"), "argument --spec: draft needs a model that guesses: -md FILE"),
        (("--spec", "ngram", "-md", "x"), "-md/--model-draft: not allowed with --spec ngram"),
        (("--spec", "off", "--model-draft", "x"), "not allowed with --spec off"),
    ],
)
def test_flags_that_contradict_each_other(run, models, flags, message):
    check_refused(run("generate", "-m", models[0], *FLAGS, *flags), 2, message)


def test_another_vocabulary_is_refused(run, models, tmp_path):
    other = str(write_llama(tmp_path / "other.gguf", n_vocab=640))
    result = run("generate", "-m", models[0], "-md", other, *FLAGS)
    check_refused(result, 1, "other.gguf: cannot guess for this model: its vocabulary has 640")


def test_a_missing_file_is_named(run, models, tmp_path):
    result = run("generate", "-m", models[0], "-md", str(tmp_path / "none.gguf"), *FLAGS)
    check_refused(result, 1, "none.gguf: ")
