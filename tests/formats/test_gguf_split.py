"""A split model is the same as one file; splits that do not fit each other are refused."""

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


def write_splits(folder: Path, split: int = 5, **shape: Any) -> list[Path]:
    """A model in splits of `split` tensors, in order."""
    first = write_llama(folder / "m.gguf", split=split, **SHAPE, **shape)
    return sorted(first.parent.glob("m-*-of-*.gguf"))


def rewrite(split: Path, tensors: dict[str, np.ndarray] | None = None, **keys: Any) -> None:
    """A split that is not the first, with other values of split.* and more tensors."""
    reader = GGUFReader(split)
    held = {t.name: (np.array(t.data), t.tensor_type.name) for t in reader.tensors}
    values = {name: reader.fields[name].contents() for name in ("split.no", "split.count")}
    values |= {f"split.{name}": value for name, value in keys.items()}
    extra = {name: (values, "F32") for name, values in (tensors or {}).items()}
    for name, (data, type_name) in held.items():
        if type_name == "Q8_0":  # the bytes as they are
            held[name] = (np.zeros((len(data), data.shape[1] // 34 * 32), np.float32), "Q8_0")
    write_gguf(split, {"general.architecture": None, **values}, {**held, **extra})


def test_splits_are_one_model(tmp_path):
    whole = write_llama(tmp_path / "whole.gguf", **SHAPE)
    splits = write_splits(tmp_path)
    assert [p.name for p in splits] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with GGUFModel(whole) as one, GGUFModel(splits[0]) as several:
        assert list(several.tensors) == list(one.tensors)
        assert several.splits == tuple(splits)
        assert one.splits == (whole,)
        assert several.n_bytes == sum(p.stat().st_size for p in splits)
        assert len(GGUFFile(splits[0]).tensors) == 5
        added = several.metadata.keys() - one.metadata.keys()
        assert added == {"split.no", "split.count", "split.tensors.count"}
        for name in one.tensors:
            assert np.array_equal(several.data(name), one.data(name))
            several.release(name)
        data = several.data("output.weight")
    assert data.any(), "a view outlives the file"
    with pytest.raises(ValueError, match="closed"):
        several.data("output.weight")
    with LLM(whole, n_threads=1) as one, LLM(splits[0], n_threads=1) as several:
        assert np.array_equal(one.logits([5, 6, 7]), several.logits([5, 6, 7]))


def test_the_first_split_may_have_no_tensors(tmp_path):
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
    with pytest.raises(GGUFError, match=f"{len(reader.tensors)}, but the 2 splits hold"):
        GGUFModel(tmp_path / "w-00001-of-00002.gguf")
    split["split.tensors.count"] = len(tensors)
    write_gguf(tmp_path / "w-00001-of-00002.gguf", {**metadata, **split, "split.no": 0})
    with GGUFModel(tmp_path / "w-00001-of-00002.gguf") as model:
        assert list(model.tensors) == list(tensors)


def test_a_model_put_together_again_says_so_with_a_count_of_0(tmp_path):
    path = write_llama(tmp_path / "m.gguf", metadata={"split.count": 0, "split.no": 0})
    with GGUFModel(path) as model:
        assert len(model.splits) == 1


def test_a_missing_split_is_named(tmp_path):
    splits = write_splits(tmp_path)
    splits[1].unlink()
    expected = r"00001-of-00003.gguf: split 2 of 3, 'm-00002-of-00003.gguf', is missing"
    with pytest.raises(GGUFError, match=expected):
        GGUFModel(splits[0])


def test_another_split_than_the_first_names_the_first(tmp_path):
    splits = write_splits(tmp_path)
    expected = r"is split 3 of 3 .* first split, 'm-00001-of-00003.gguf'$"
    with pytest.raises(GGUFError, match=expected):
        GGUFModel(splits[2])
    renamed = splits[2].rename(tmp_path / "other.gguf")
    with pytest.raises(GGUFError, match=r"is split 3 of 3 of a model; open the first split$"):
        GGUFModel(renamed)


def test_a_first_split_of_another_name(tmp_path):
    renamed = write_splits(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GGUFError, match=r"must end as gguf-split .* -00001-of-00003.gguf"):
        GGUFModel(renamed)


def test_splits_in_the_wrong_order(tmp_path):
    splits = write_splits(tmp_path)
    shutil.move(splits[1], tmp_path / "aside")
    shutil.move(splits[2], splits[1])
    shutil.move(tmp_path / "aside", splits[2])
    with pytest.raises(GGUFError, match=r"00002-of-00003.gguf: split.no is 2, expected 1"):
        GGUFModel(splits[0])


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
def test_a_split_of_something_else(tmp_path, keys, words):
    splits = write_splits(tmp_path)
    rewrite(splits[1], **keys)
    with pytest.raises(GGUFError, match=rf"m-00002-of-00003.gguf: .*{words}"):
        GGUFModel(splits[0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"split.count": -1}, "split.count is -1, expected 0 to 1024"),
        ({"split.count": 65535}, "split.count is 65535, expected 0 to 1024"),
        ({"split.no": 3}, "split.no is 3, expected 0 to 2"),
        ({"split.tensors.count": 11}, "is 11, but the 3 splits hold 12 tensors"),
        ({"split.tensors.count": "12"}, "split.tensors.count is '12', expected a whole number"),
    ],
)
def test_a_first_split_that_makes_no_sense(tmp_path, overrides, words):
    splits = write_splits(tmp_path)
    with pytest.raises(GGUFError, match=words):
        GGUFModel(splits[0], overrides)


@pytest.mark.parametrize(("name", "where"), [("token_embd.weight", 1), ("blk.0.attn_q.weight", 1)])
def test_a_tensor_in_two_splits(tmp_path, name, where):
    splits = write_splits(tmp_path)
    rewrite(splits[2], {name: np.ones(32, np.float32)})
    found = rf"00003.gguf: tensor '{name}' is in .*m-0000{where}-of-00003.gguf too"
    with pytest.raises(GGUFError, match=found):
        GGUFModel(splits[0])


def test_more_tensors_than_a_model_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr("lariat.formats.gguf_split._MAX_TENSORS", 11)
    splits = write_splits(tmp_path)
    with pytest.raises(GGUFError, match="more than 11 tensors in all splits"):
        GGUFModel(splits[0])


def test_headers_of_all_splits_are_bounded_together(tmp_path, monkeypatch):
    splits = write_splits(tmp_path)
    with GGUFModel(splits[0]) as whole, GGUFFile(splits[0]) as first:
        assert whole.n_header_bytes > first.n_header_bytes
        monkeypatch.setattr("lariat.formats.gguf_split.MAX_HEADER_BYTES", whole.n_header_bytes - 1)
    with pytest.raises(GGUFError, match=r"up to 'm-00003.*expected at most"):
        GGUFModel(splits[0])


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_damaged_split_is_named(tmp_path, kept):
    splits = write_splits(tmp_path)
    splits[1].write_bytes(splits[1].read_bytes()[:kept])
    with pytest.raises(GGUFError, match=r"m-00002-of-00003.gguf: "):
        GGUFModel(splits[0])
    splits[1].unlink()
    os.mkfifo(splits[1])
    with pytest.raises(GGUFError, match=r"m-00002-of-00003.gguf: is a named pipe"):
        GGUFModel(splits[0])


def test_the_command_line(tmp_path, capsys):
    whole = write_llama(tmp_path / "whole.gguf", **SHAPE)
    splits = write_splits(tmp_path)
    assert main(["info", "-m", str(splits[0])]) == 0
    out = capsys.readouterr().out
    assert "  splits   3, to m-00003-of-00003.gguf\n" in out
    assert "tensors (12, " in out
    texts = []
    for path in (whole, splits[0]):
        flags = ["-p", "the", "-n", "10", "--temp", "0", "--ignore-eos", "-q", "-t", "1"]
        assert main(["generate", "-m", str(path), *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert main(["tokenize", "-m", str(splits[1]), "-p", "the"]) == 1
    assert capsys.readouterr().err.count("open the first split, 'm-00001-of-00003.gguf'\n") == 1
