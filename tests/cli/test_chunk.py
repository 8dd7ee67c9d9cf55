"""`lariat chunk`, and the flags of `lariat generate` that place chunks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lariat.cli.main import main

from tests.support.contexts import write_mapped


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mapped(tmp_path_factory.mktemp("model"))


def test_the_command(capfd, deep, tmp_path):
    folder = str(tmp_path / "shelf")

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        return code, *capfd.readouterr()

    add = ("chunk", "add", "--library", folder, "-m", str(deep))
    code, out, err = run(*add, "man", "-p", "the man and the hat")
    assert (code, err) == (0, "")
    n_man = int(out.split()[1])
    assert run(*add, "hen", "-p", "the hen and the pot in the hat and so on")[0] == 0
    code, out, _ = run(*add, "boat", "-p", "the boat", "--behind", "the man and")
    assert (code, out.split()[0]) == (0, "boat:")
    assert run("chunk", "remove", "boat", "--library", folder)[0] == 0
    code, out, _ = run("chunk", "list", "--library", folder)
    fields = [line.split("\t") for line in out.splitlines()]
    assert [(f[0], *f[3:5]) for f in fields] == [("hen", "f16", "f16"), ("man", "f16", "f16")]
    assert int(fields[1][1]) == n_man

    generate = ("generate", "-m", str(deep), "-p", " in the hat", "-n", "4", "--temp", "0")
    place = ("--library", folder, "--chunk", "man", "--chunk", "hen")
    code, out, err = run(*generate, *place, "--recompute", "0")
    assert (code, out.startswith(" in the hat")) == (0, True)
    n_chunks = n_man + int(fields[0][1])
    # With BOS, but without the token that has the blank: the second chunk continues the first.
    assert f"reused      {n_chunks + 1 - 1} tokens" in err
    _, _, err = run(*generate, *place, "--recompute", "3")
    assert f"reused      {n_chunks + 1 - 3} tokens" in err
    _, _, err = run(*generate, *place, "--recompute", "all")
    assert "reused" not in err

    def timings(*flags: str) -> dict[str, int]:
        return json.loads(run(*generate, *place, *flags, "-o", "json", "-q")[1])["timings"]

    for flags, n_again in ((("none",), 1), (("3",), 3)):
        found = timings("--recompute", *flags)
        assert found["n_recomputed"] == n_again
        assert found["n_exact"] == n_man + 1
        assert found["n_moved"] == n_chunks - n_man - n_again
        assert found["n_reused"] == found["n_exact"] + found["n_moved"]
    found = timings()  # so short a chunk is computed as a whole
    assert found["n_exact"] == found["n_reused"] == n_man + 1
    assert found["n_recomputed"] == n_chunks - n_man

    for argv, code, sentence in (
        ((*generate, *place, "--cache", "roped"), 2, "--chunk: needs --cache raw"),
        ((*generate, *place, "--prompt-cache", "x"), 2, "not allowed with argument --prompt-cache"),
        ((*generate, *place, "--recompute", "some"), 2, "'some' is neither a number nor 'auto'"),
        ((*generate, *place[:2]), 2, "one needs the other"),
        ((*generate, *place, "--chunk", "cat"), 1, "has no chunk named 'cat'"),
        ((*generate, *place, "-ctk", "f32"), 1, "another type of keys: 'f16', expected 'f32'"),
        ((*generate, *place, "-c", "16"), 1, "more than the context of 16"),
        ((*add, "x", "-p", "a man", "--cache", "roped"), 1, "chunks need the raw cache"),
        ((*add, "x", "-p", "a man", "-c", "2"), 1, "more than the context of 2"),
        (("chunk", "add", "x", "--library", str(deep), "-m", str(deep), "-p", "x"), 1, "written"),
        (("chunk", "remove", "cat", "--library", folder), 1, "has no chunk named 'cat'"),
        (("chunk", "list"), 2, "--library"),
        (("chunk",), 2, "ACTION"),
    ):
        got = run(*argv)
        assert got[:2] == (code, ""), argv
        assert sentence in got[2]
        assert got[2].count("\n") == 1
    assert run("chunk", "remove", "man", "--library", folder) == (0, "", "")
    assert [e["name"] for e in json.loads((tmp_path / "shelf/index.json").read_text())] == ["hen"]
