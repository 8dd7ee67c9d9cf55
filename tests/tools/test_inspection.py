"""Any GGUF file is described, and one reason says why it does not run."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import GGUFError, GGUFFile
from lariat.cli.main import main
from lariat.tools.inspection import inspect_file

from tests.support import gguf_bytes
from tests.support.model_files import vocabulary_metadata, write_gguf, write_llama

UNKNOWN = {"blk.0.ffn_up.weight": 99, "blk.1.attn_q.weight": 36}


def give_types(path: Path, numbers: dict[str, int]) -> Path:
    """Write other type numbers for some tensors into the table of a file."""
    data = bytearray(path.read_bytes())
    for name, number in numbers.items():
        text = gguf_bytes.text(name)
        place = data.index(text) + len(text)
        n_dims = int.from_bytes(data[place : place + 4], "little")
        place += 4 + 8 * n_dims
        data[place : place + 4] = gguf_bytes.u32(number)
    path.write_bytes(data)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model.gguf")


def test_a_model_that_runs(model: Path) -> None:
    with inspect_file(model) as found:
        assert (found.what, found.reason) == ("model", "")
        assert found.config is not None
        (total,) = found.types()
        assert (total.type, total.n_tensors) == ("F32", len(found.gguf.tensors))
        assert total.n_bytes == sum(t.n_bytes for t in found.gguf.tensors.values())


def test_unknown_types_are_described(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with GGUFFile(model) as gguf:
        infos = {name: gguf.tensors[name] for name in UNKNOWN}
    give_types(model, UNKNOWN)
    with pytest.raises(GGUFError, match="has type 99, expected a type of ggml"):
        GGUFFile(model)
    with inspect_file(model) as found:
        assert found.reason == "tensor 'blk.0.ffn_up.weight' is of type 99, which is not known"
        for name, info in infos.items():
            unknown = found.gguf.unknown[name]
            assert (unknown.shape, unknown.offset) == (info.shape, info.offset)
            assert info.n_bytes <= unknown.n_bytes < info.n_bytes + found.gguf.alignment
        totals = {total.type: total.n_tensors for total in found.types()}
        assert totals == {"F32": len(found.gguf.tensors), "type 99": 1, "IQ4_NL_4_4": 1}
    assert main(["info", "-m", str(model), "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "  runs     no: tensor 'blk.0.ffn_up.weight' is of type 99, which is not known\n" in out
    assert re.search(r"^  type 99 +1  ", out, re.M)
    shape = " x ".join(map(str, reversed(infos["blk.0.ffn_up.weight"].shape)))
    line = next(line for line in out.splitlines() if line.startswith("  blk.0.ffn_up.weight"))
    assert line.split("  type 99   ")[1].split("  ")[0].strip() == shape


def test_a_type_that_was_given_up(model: Path) -> None:
    give_types(model, {"output.weight": 4})
    with inspect_file(model) as found:
        assert found.reason == ("tensor 'output.weight' is of type Q4_2, which is no longer in use")


def test_the_architecture_is_the_reason_before_a_type(tmp_path: Path) -> None:
    path = give_types(write_llama(tmp_path / "m.gguf", arch="rwkv9"), {"output.weight": 99})
    with inspect_file(path) as found:
        assert found.reason.startswith("architecture 'rwkv9' is not supported, only ")
        assert found.config is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"drop_tensors": ["blk.1.ffn_up.weight"]}, "tensor 'blk.1.ffn_up.weight' is missing"),
        ({"extra_tensors": {"x": np.zeros(4, np.float32)}}, "tensor 'x' has no place in a 'llama'"),
        ({"type_of": {"attn_q": "NVFP4"}}, "tensor 'blk.0.attn_q.weight' is of type NVFP4, which"),
        ({"metadata": {"tokenizer.ggml.model": "bert"}}, "bert"),
        ({"metadata": {"llama.context_length": None}}, "metadata key llama.context_length is miss"),
    ],
)
def test_the_one_reason(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with inspect_file(write_llama(tmp_path / "m.gguf", **options)) as found:
        assert found.what == "model"
        assert reason in found.reason
        assert str(tmp_path) not in found.reason


F32 = (np.ones((4, 8), np.float32), "F32")


@pytest.mark.parametrize(
    ("keys", "tensors", "what", "reason"),
    [
        (
            {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
            {"blk.0.attn_q.weight.lora_a": F32},
            "adapter",
            "it changes another model (LoRA)",
        ),
        (
            {"general.architecture": "clip", "clip.has_vision_encoder": True},
            {"v.patch_embd.weight": F32},
            "projector (mmproj)",
            "it turns images or sound into embeddings",
        ),
        (
            {"general.architecture": "gemma3", "general.type": "mmproj"},
            {"mm.input_projection.weight": F32},
            "projector (mmproj)",
            "it turns images or sound into embeddings",
        ),
        (
            {"general.architecture": "controlvector", "controlvector.layer_count": 2},
            {"direction.1": F32},
            "control vector",
            "it steers another model",
        ),
        (
            {"general.architecture": None, "general.type": "imatrix", "imatrix.chunk_count": 3},
            {"blk.0.attn_q.weight.in_sum2": F32},
            "importance matrix",
            "it tells a quantizer which weights matter",
        ),
        (
            {"general.architecture": None, "imatrix.chunk_count": 3},
            {"blk.0.attn_q.weight.in_sum2": F32},
            "importance matrix",
            "it tells a quantizer",
        ),
        (vocabulary_metadata(300), {}, "vocabulary", "it has a vocabulary and no weights"),
        ({"general.architecture": None}, {}, "model", "metadata key general.architecture is miss"),
        ({"general.type": 7}, {}, "model", "metadata key llama."),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_files_that_are_no_models(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, Any],
    tensors: dict[str, Any],
    what: str,
    reason: str,
) -> None:
    keys, arch = dict(keys), keys.get("general.architecture", "llama")
    keys.pop("general.architecture", None)
    path = write_gguf(tmp_path / "other.gguf", keys, tensors, arch=arch)
    with inspect_file(path) as found:
        assert found.what == what
        assert reason in found.reason
        assert sum(t.n_tensors for t in found.types()) == len(tensors)
        assert sum(t.n_bytes for t in found.types()) == sum(
            4 * math.prod(values.shape) for values, _ in tensors.values()
        )
    assert main(["info", "-m", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"  what     {what}\n  runs     no: {found.reason}\n" in out


def test_splits_are_described_alone_or_together(tmp_path: Path) -> None:
    first = write_llama(tmp_path / "m.gguf", split=8)
    splits = sorted(tmp_path.glob("m-*.gguf"))
    first = splits[0]
    with inspect_file(first) as found:
        assert found.reason == ""
        n = len(found.gguf.tensors)
    with inspect_file(splits[1]) as found:
        assert found.what == f"split 2 of {len(splits)} of a model"
        assert found.reason == (
            f"is split 2 of {len(splits)} of a model; open the first split, {first.name!r}"
        )
        assert 0 < len(found.gguf.tensors) < n
    splits[1].unlink()
    with inspect_file(first) as found:
        assert found.what == f"split 1 of {len(splits)} of a model"
        assert found.reason == f"split 2 of {len(splits)}, {splits[1].name!r}, is missing"


def test_unknown_types_in_any_split(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", split=8)
    splits = sorted(tmp_path.glob("m-*.gguf"))
    name = "blk.1.ffn_up.weight"
    home = next(path for path in splits if name.encode() in path.read_bytes())
    assert home != splits[0]
    give_types(home, {name: 77})
    with inspect_file(splits[0]) as found:
        assert list(found.gguf.unknown) == [name]
        assert found.reason == f"tensor {name!r} is of type 77, which is not known"


def test_other_files_and_damaged_ones_are_errors(tmp_path: Path, model: Path) -> None:
    other = tmp_path / "x.gguf"
    other.write_text("hello, world")
    with pytest.raises(GGUFError, match="it is not a GGUF file"):
        inspect_file(other)
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(GGUFError, match="truncated or damaged"):
        inspect_file(model)
    with pytest.raises(FileNotFoundError):
        inspect_file(tmp_path / "missing.gguf")


def test_an_unknown_tensor_may_not_lie_outside_of_the_file(model: Path) -> None:
    with GGUFFile(model) as gguf:
        last = max(gguf.tensors.values(), key=lambda t: t.offset)
    give_types(model, {last.name: 99})
    model.write_bytes(model.read_bytes()[: last.offset - 32])
    with pytest.raises(GGUFError, match="truncated or damaged"):
        inspect_file(model)
