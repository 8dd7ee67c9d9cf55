"""A model in several files: the same as in one, and every way in which parts do not fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from lariat import LLM, GGUFError
from lariat.cli.main import main
from lariat.formats.gguf import GGUFFile
from lariat.formats.gguf_split import GGUFModel

from tests.support.model_files import write_gguf, write_llama

SHAPE = {"weight_type": "Q8_0", "n_layers": 1}  # 12 tensors


def write_parts(folder: Path, split: int = 5, **shape: Any) -> list[Path]:
    """A model in parts of `split` tensors, in order."""
    first = write_llama(folder / "m.gguf", split=split, **SHAPE, **shape)
    return sorted(first.parent.glob("m-*-of-*.gguf"))


def rewrite(part: Path, tensors: dict[str, np.ndarray] | None = None, **keys: Any) -> None:
    """A part that is not the first, with other values of split.* and more tensors."""
    reader = GGUFReader(part)
    held = {t.name: (np.array(t.data), t.tensor_type.name) for t in reader.tensors}
    values = {name: reader.fields[name].contents() for name in ("split.no", "split.count")}
    values |= {f"split.{name}": value for name, value in keys.items()}
    extra = {name: (values, "F32") for name, values in (tensors or {}).items()}
    for name, (data, kind) in held.items():
        if kind == "Q8_0":  # the bytes as they are
            held[name] = (np.zeros((len(data), data.shape[1] // 34 * 32), np.float32), "Q8_0")
    write_gguf(part, {"general.architecture": None, **values}, {**held, **extra})


def test_parts_are_one_model(tmp_path):
    whole = write_llama(tmp_path / "whole.gguf", **SHAPE)
    parts = write_parts(tmp_path)
    assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with GGUFModel(whole) as one, GGUFModel(parts[0]) as several:
        assert list(several.tensors) == list(one.tensors)
        assert several.parts == tuple(parts)
        assert one.parts == (whole,)
        assert several.n_bytes == sum(p.stat().st_size for p in parts)
        assert len(GGUFFile(parts[0]).tensors) == 5
        added = several.metadata.keys() - one.metadata.keys()
        assert added == {"split.no", "split.count", "split.tensors.count"}
        for name in one.tensors:
            assert np.array_equal(several.data(name), one.data(name))
            several.release(name)
        data = several.data("output.weight")
    assert data.any(), "a view outlives the file"
    with pytest.raises(ValueError, match="closed"):
        several.data("output.weight")
    with LLM(whole, n_threads=1) as one, LLM(parts[0], n_threads=1) as several:
        assert np.array_equal(one.logits([5, 6, 7]), several.logits([5, 6, 7]))


def test_the_first_part_may_have_no_tensors(tmp_path):
    """gguf-split --no-tensor-first-split"""
    whole = write_llama(tmp_path / "w.gguf", **SHAPE)
    reader = GGUFReader(whole)
    metadata = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    split = {"split.count": 2, "split.tensors.count": len(reader.tensors)}
    write_gguf(tmp_path / "w-00001-of-00002.gguf", {**metadata, **split, "split.no": 0})
    tensors = {t.name: (np.array(t.data), "F32") for t in reader.tensors if t.data.ndim == 1}
    second = tmp_path / "w-00002-of-00002.gguf"
    write_gguf(second, {"split.no": 1, "split.count": 2}, tensors)
    with pytest.raises(GGUFError, match=f"{len(reader.tensors)}, but the 2 parts hold"):
        GGUFModel(tmp_path / "w-00001-of-00002.gguf")
    split["split.tensors.count"] = len(tensors)
    write_gguf(tmp_path / "w-00001-of-00002.gguf", {**metadata, **split, "split.no": 0})
    with GGUFModel(tmp_path / "w-00001-of-00002.gguf") as model:
        assert list(model.tensors) == list(tensors)


def test_a_model_put_together_again_says_so_with_a_count_of_0(tmp_path):
    path = write_llama(tmp_path / "m.gguf", metadata={"split.count": 0, "split.no": 0})
    with GGUFModel(path) as model:
        assert len(model.parts) == 1


def test_a_missing_part_is_named(tmp_path):
    parts = write_parts(tmp_path)
    parts[1].unlink()
    expected = r"00001-of-00003.gguf: part 2 of 3, 'm-00002-of-00003.gguf', is missing"
    with pytest.raises(GGUFError, match=expected):
        GGUFModel(parts[0])


def test_another_part_than_the_first_names_the_first(tmp_path):
    parts = write_parts(tmp_path)
    with pytest.raises(GGUFError, match=r"is part 3 of 3 .* first part, 'm-00001-of-00003.gguf'$"):
        GGUFModel(parts[2])
    renamed = parts[2].rename(tmp_path / "other.gguf")
    with pytest.raises(GGUFError, match=r"is part 3 of 3 of a model; open the first part$"):
        GGUFModel(renamed)


def test_a_first_part_of_another_name(tmp_path):
    renamed = write_parts(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GGUFError, match=r"must end as gguf-split .* -00001-of-00003.gguf"):
        GGUFModel(renamed)


def test_parts_in_the_wrong_order(tmp_path):
    parts = write_parts(tmp_path)
    shutil.move(parts[1], tmp_path / "aside")
    shutil.move(parts[2], parts[1])
    shutil.move(tmp_path / "aside", parts[2])
    with pytest.raises(GGUFError, match=r"00002-of-00003.gguf: split.no is 2, expected 1"):
        GGUFModel(parts[0])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"no": 2}, "split.no is 2, expected 1"),
        ({"no": None}, "split.no is missing"),
        ({"no": "one"}, "split.no is 'one', expected a whole number"),
        ({"count": 4}, "split.count is 4, expected 3"),
        ({"count": None}, "split.count is missing"),
    ],
)
def test_a_part_of_something_else(tmp_path, keys, words):
    parts = write_parts(tmp_path)
    rewrite(parts[1], **keys)
    with pytest.raises(GGUFError, match=rf"m-00002-of-00003.gguf: .*{words}"):
        GGUFModel(parts[0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"split.count": -1}, "split.count is -1, expected 0 to 1024"),
        ({"split.count": 65535}, "split.count is 65535, expected 0 to 1024"),
        ({"split.no": 3}, "split.no is 3, expected 0 to 2"),
        ({"split.tensors.count": 11}, "is 11, but the 3 parts hold 12 tensors"),
        ({"split.tensors.count": "12"}, "split.tensors.count is '12', expected a whole number"),
    ],
)
def test_a_first_part_that_makes_no_sense(tmp_path, overrides, words):
    parts = write_parts(tmp_path)
    with pytest.raises(GGUFError, match=words):
        GGUFModel(parts[0], overrides)


@pytest.mark.parametrize(("name", "where"), [("token_embd.weight", 1), ("blk.0.attn_q.weight", 1)])
def test_a_tensor_in_two_parts(tmp_path, name, where):
    parts = write_parts(tmp_path)
    rewrite(parts[2], {name: np.ones(32, np.float32)})
    found = rf"00003.gguf: tensor '{name}' is in .*m-0000{where}-of-00003.gguf too"
    with pytest.raises(GGUFError, match=found):
        GGUFModel(parts[0])


def test_more_tensors_than_a_model_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr("lariat.formats.gguf_split._MAX_TENSORS", 11)
    parts = write_parts(tmp_path)
    with pytest.raises(GGUFError, match="more than 11 tensors in all parts"):
        GGUFModel(parts[0])


def test_headers_of_all_parts_are_bounded_together(tmp_path, monkeypatch):
    parts = write_parts(tmp_path)
    with GGUFModel(parts[0]) as whole, GGUFFile(parts[0]) as first:
        assert whole.n_header_bytes > first.n_header_bytes
        monkeypatch.setattr("lariat.formats.gguf_split.MAX_HEADER_BYTES", whole.n_header_bytes - 1)
    with pytest.raises(GGUFError, match=r"up to 'm-00003.*expected at most"):
        GGUFModel(parts[0])


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_damaged_part_is_named(tmp_path, kept):
    parts = write_parts(tmp_path)
    parts[1].write_bytes(parts[1].read_bytes()[:kept])
    with pytest.raises(GGUFError, match=r"m-00002-of-00003.gguf: "):
        GGUFModel(parts[0])
    parts[1].unlink()
    os.mkfifo(parts[1])
    with pytest.raises(GGUFError, match=r"m-00002-of-00003.gguf: is a named pipe"):
        GGUFModel(parts[0])


def test_the_command_line(tmp_path, capsys):
    whole = write_llama(tmp_path / "whole.gguf", **SHAPE)
    parts = write_parts(tmp_path)
    assert main(["info", "-m", str(parts[0])]) == 0
    out = capsys.readouterr().out
    assert "  parts    3, to m-00003-of-00003.gguf\n" in out
    assert "tensors (12, " in out
    texts = []
    for path in (whole, parts[0]):
        flags = ["-p", "the", "-n", "10", "--temp", "0", "--ignore-eos", "-q", "-t", "1"]
        assert main(["generate", "-m", str(path), *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert main(["tokenize", "-m", str(parts[1]), "-p", "the"]) == 1
    assert capsys.readouterr().err.count("open the first part, 'm-00001-of-00003.gguf'\n") == 1
