"""Which files a name means."""

from __future__ import annotations

import pytest
from lariat import HubError
from lariat.hub.names import ModelName, choose, is_model, parse, split_paths, type_label

FILES = [
    "README.md",
    "imatrix.gguf",
    "mmproj-model-Q4_K_M.gguf",
    "model-BF16.gguf",
    "model-F16.gguf",
    "model-IQ4_XS.gguf",
    "model-Q4_K_M.gguf",
    "model-Q8_0-00001-of-00002.gguf",
    "model-Q8_0-00002-of-00002.gguf",
    "UD/model-UD-Q4_K_XL.gguf",
]


def chosen(text: str, files: list[str] = FILES, filename: str | None = None) -> list[str]:
    return choose(parse(text), files, filename)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", ["model-Q4_K_M.gguf"]),
        ("a/b:q4_k_m", ["model-Q4_K_M.gguf"]),
        ("a/b:F16", ["model-F16.gguf"]),  # not BF16
        ("a/b:Q8_0", ["model-Q8_0-00001-of-00002.gguf", "model-Q8_0-00002-of-00002.gguf"]),
        ("a/b:Q4_K_XL", ["UD/model-UD-Q4_K_XL.gguf"]),
        ("a/b:UD-Q4_K_XL", ["UD/model-UD-Q4_K_XL.gguf"]),
    ],
)
def test_a_type_is_looked_for_in_the_names(text: str, expected: list[str]) -> None:
    assert chosen(text) == expected


def test_without_a_type_it_is_q4_k_m_then_q8_0_then_any() -> None:
    files = list(FILES)
    for expected in ("model-Q4_K_M.gguf", "model-Q8_0-00001-of-00002.gguf"):
        assert chosen("a/b", files)[0] == expected
        files.remove(expected)
    assert chosen("a/b", files) == ["UD/model-UD-Q4_K_XL.gguf"]
    assert chosen("a/b", ["b.GGUF", "c.gguf"]) == ["b.GGUF"]


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("model-f16.gguf", "model-F16.gguf"),
        ("*iq4*", "model-IQ4_XS.gguf"),
        ("*-q8_0-*", "model-Q8_0-00001-of-00002.gguf"),  # both splits are one model
        ("model-Q8_0-00002-of-00002.gguf", "model-Q8_0-00001-of-00002.gguf"),
        ("*-q4_k_m.gguf", "model-Q4_K_M.gguf"),  # not the projector
        ("model-UD-*", "UD/model-UD-Q4_K_XL.gguf"),  # in a folder
        ("mmproj-model-Q4_K_M.gguf", "mmproj-model-Q4_K_M.gguf"),  # asked for by its name
    ],
)
def test_a_file_is_named_or_fits_a_pattern(filename: str, expected: str) -> None:
    assert chosen("a/b", filename=filename)[0] == expected


@pytest.mark.parametrize(
    ("text", "files", "filename", "words"),
    [
        ("a/b:Q5_0", FILES, None, r"a/b has no model of type Q5_0; it has UD/.*model-Q8_0-00001"),
        ("a/b", ["x.txt", "mmproj-a.gguf"], None, "a/b has no GGUF file of a model$"),
        ("a/b", FILES, "model-f32.gguf", "a/b has no file 'model-f32.gguf'; it has"),
        ("a/b", FILES, "model-*", "'model-\\*' fits 6 files of a/b; it has UD/model-UD"),
        ("a/b:Q8_0", FILES[:-2], None, "a/b lacks 'model-Q8_0-00002-of-00002.gguf', one of 2 spl"),
        ("a/b:Q2_K", [f"{i}-Q4_0.gguf" for i in range(20)], None, "7-Q4_0.gguf and 12 more|more$"),
    ],
)
def test_what_is_not_there_is_named(
    text: str, files: list[str], filename: str | None, words: str
) -> None:
    with pytest.raises(HubError, match=words):
        chosen(text, files, filename)


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/", "/b", "a/b/c", "a/b:", "a/b:c:d", "a b/c", "../b", "a/..", "a/b:x/y", "ä/b"],
)
def test_names_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form OWNER/REPO or OWNER/REPO:TYPE"):
        parse(text)


def test_a_name_is_shown_as_it_is_written() -> None:
    assert [str(parse(text)) for text in ("a/b", "a/b:Q4_0")] == ["a/b", "a/b:Q4_0"]
    assert parse("a/b") == ModelName("a/b", "")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M"),
        ("UD/model-UD-IQ1_S.gguf", "UD-IQ1_S"),
        ("Q2_K/model-f16-00001-of-00002.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model-TQ2_0.gguf", "TQ2_0"),
        ("Qwen2.5-7B.gguf", ""),
    ],
)
def test_the_type_that_a_name_says(path: str, label: str) -> None:
    assert type_label(path) == label


def test_splits_are_named_as_gguf_split_does() -> None:
    assert split_paths("d/m-00001-of-00003.gguf")[2] == "d/m-00003-of-00003.gguf"
    assert split_paths("m-00001-of-00000.gguf") == ["m-00001-of-00000.gguf"]
    assert split_paths("m.gguf") == ["m.gguf"]
    assert not is_model("imatrix-x.gguf")
    assert is_model("mmproj/model.gguf")
