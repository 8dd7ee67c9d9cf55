"""general.sampling.*: wishes of a file, wishes that are not supported, and flags before both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lariat import LLM, GGUFError, GGUFFile, SamplingParams
from lariat.cli.main import main
from lariat.formats.gguf_sampling import FileSampling

from tests.support.model_files import write_llama

TEXT = "the"


def keys(**values: Any) -> dict[str, Any]:
    return {f"general.sampling.{key}": value for key, value in values.items()}


@pytest.fixture
def read(tmp_path: Path):
    def read(**values: Any) -> FileSampling:
        path = write_llama(tmp_path / "m.gguf", metadata=keys(**values))
        with GGUFFile(path) as gguf:
            return FileSampling.from_gguf(gguf)

    return read


def test_a_file_that_says_nothing(read):
    assert read() == FileSampling(SamplingParams(), {}, ())


def test_each_key(read):
    found = read(top_k=20, top_p=0.5, min_p=0.25, temp=0.75, penalty_repeat=1.5, penalty_last_n=-1)
    assert found.params == SamplingParams(
        top_k=20, top_p=0.5, min_p=0.25, temperature=0.75, repeat_penalty=1.5, repeat_last_n=-1
    )
    assert found.asked.keys() == {
        *("top_k", "top_p", "min_p", "temperature", "repeat_penalty", "repeat_last_n"),
    }
    assert found.ignored == ()


def test_numbers_that_mean_off_and_a_whole_number_for_a_real_one(read):
    assert read(top_k=-1, temp=-0.5).params == SamplingParams(top_k=0, temperature=0)
    assert read(temp=1).params == SamplingParams(temperature=1)


def test_what_is_not_here_is_named(read):
    asks = {"mirostat": 2, "mirostat_tau": 5.0, "mirostat_eta": 0.1}
    found = read(**asks, xtc_probability=0.5, xtc_threshold=0.1, top_k=7)
    assert found.params == SamplingParams(top_k=7)
    assert found.ignored == ("mirostat", "xtc_probability")
    assert read(mirostat=0, mirostat_tau=5.0, xtc_probability=0.0).ignored == ()


@pytest.mark.parametrize(
    ("sequence", "off"),
    [
        ("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature", {}),
        ("penalties;top_k;typ_p;top_p;min_p;temperature", {}),
        ("", {}),
        (
            "top_k;temperature",
            {"repeat_penalty": 1, "typical_p": 1, "top_p": 1, "min_p": 0},
        ),
        ("penalties;typ_p;top_p;min_p", {"top_k": 0, "temperature": 1}),
    ],
)
def test_stages_that_a_sequence_leaves_out_are_off(read, sequence, off):
    given = {"top_k": 5, "top_p": 0.5, "temp": 0.5, "penalty_repeat": 2.0}
    found = read(sequence=sequence, **given)
    plain = {"top_k": 5, "top_p": 0.5, "temperature": 0.5, "repeat_penalty": 2.0}
    assert found.params == SamplingParams(**plain | off)
    assert found.asked == plain | off
    assert found.ignored == ()


@pytest.mark.parametrize("sequence", ["temperature;top_k", "top_k;top_k", "infill", "top_k;", ";"])
def test_another_order_of_stages_is_named(read, sequence):
    found = read(sequence=sequence, top_k=5)
    assert found == FileSampling(SamplingParams(top_k=5), {"top_k": 5}, ("sequence",))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"top_k": 1.5}, "general.sampling.top_k is 1.5, expected a whole number"),
        ({"temp": "hot"}, "general.sampling.temp is 'hot', expected a number"),
        ({"temp": float("nan")}, "general.sampling.temp is nan, expected a finite number"),
        ({"top_p": 1.5}, "general.sampling: top_p is 1.5, expected 0 to 1"),
        ({"penalty_repeat": 0.0}, "general.sampling: repeat_penalty is 0"),
        ({"penalty_last_n": -2}, "general.sampling: repeat_last_n is -2"),
        ({"mirostat": "yes"}, "general.sampling.mirostat is 'yes', expected a number"),
        ({"sequence": 3}, "general.sampling.sequence is 3, expected a string"),
    ],
)
def test_values_that_make_no_sense(read, values, words):
    with pytest.raises(GGUFError, match=words):
        read(**values)


def test_the_python_api_takes_them_where_nothing_is_given(tmp_path):
    path = write_llama(tmp_path / "m.gguf", metadata=keys(temp=0.0))
    with LLM(path, n_threads=1, overrides={"general.sampling.top_k": 3}) as llm:
        assert llm.sampling.params == SamplingParams(temperature=0, top_k=3)
        ids, n = llm.tokenize(TEXT), 20
        greedy = llm.generate(ids, SamplingParams(temperature=0, max_tokens=n)).token_ids
        assert llm.generate(ids).token_ids[:n] == greedy
        with llm.stream(ids) as stream:
            for _ in zip(stream, range(n), strict=False):
                pass
        assert stream.completion.token_ids[:n] == greedy


def test_flags_go_before_the_file_and_the_file_before_the_defaults(tmp_path, capsys):
    values = keys(temp=0.0, top_k=2, mirostat=1)
    asks = str(write_llama(tmp_path / "asks.gguf", metadata=values))
    silent = str(write_llama(tmp_path / "silent.gguf"))

    def run(model: str, *flags: str) -> tuple[str, str]:
        always = ("-p", TEXT, "-n", "20", "--ignore-eos", "-s", "3", "-t", "1")
        assert main(["generate", "-m", model, *always, *flags]) == 0
        out, err = capsys.readouterr()
        return out, "".join(line for line in err.splitlines() if "sampling" in line)

    hot = ("--temp", "5")
    greedy, note = run(asks)
    assert note == (
        "lariat: sampling of the model's file: top-k 2, temp 0; not supported and ignored: mirostat"
    )
    assert (greedy, "") == run(silent, "--temp", "0")
    text, note = run(asks, *hot)
    assert text == run(silent, *hot, "--top-k", "2")[0] != greedy
    assert "top-k 2;" in note
    assert "temp" not in note
    text, note = run(asks, *hot, "--top-k", "40")
    assert text == run(silent, *hot)[0]
    assert note.endswith("file: not supported and ignored: mirostat")
    override = ("--override-kv", "general.sampling.temp=float:5")
    assert run(asks, *override)[0] == run(silent, *hot, "--top-k", "2")[0]
    assert main(["generate", "-m", asks, "-p", TEXT, "--temp", "-1"]) == 2
    assert "argument --temp: temperature is -1" in capsys.readouterr().err
