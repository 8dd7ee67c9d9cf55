"""Hostile values for each number and each tensor of every architecture that is registered.

A random model of `bench.proofs.MODELS` is the sound one, so that a new architecture is tested as
soon as it has its row there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from lariat import LLM, GGUFError, GGUFFile, LariatError, ModelError
from lariat.architectures import ARCHITECTURES

from tests.support.model_files import write_gguf, write_llama

MODELS = dict(pytest.importorskip("bench.proofs", reason="runs from the source tree only").MODELS)
MODELS = {name: write for name, write in MODELS.items() if name in ARCHITECTURES}
MODELS["llama with experts"] = partial(write_llama, n_experts=6, n_used=2)
NAMES = sorted(MODELS)
NAN, INF = float("nan"), float("inf")
WHOLE = (0, 1, -1, 3, 2**16, 2**31, 2**63, 2**64 - 1, True, 1.5, "2")
REAL = (0.0, -1.0, 1e-45, 3e38, NAN, INF, True, "2")
# Numbers that no sound file has. "more" stands for one more than there are.
REFUSED: dict[str, tuple[Any, ...]] = {
    "expert_count": (0, -1, "more", 2**31),
    "expert_used_count": (0, -1, "more", 2**31),
    "expert_feed_forward_length": (0, -1, "more", 2**31),
    "expert_shared_feed_forward_length": (-1, "more", 2**31),
    "expert_weights_scale": (NAN, INF),
    "expert_gating_func": (-1, 77, 2**31),
    "attention.sliding_window": (-1, 2**63),
    "attn_logit_softcapping": (-1.0, NAN, INF),
    "final_logit_softcapping": (-1.0, NAN, INF),
    "attention.scale": (NAN, INF),
    "attention.temperature_scale": (NAN, INF),
    "embedding_scale": (NAN, INF),
    "residual_scale": (NAN, INF),
    "logit_scale": (0.0, NAN, INF),
    "rope.freq_base": (0.0, -1.0, NAN, INF),
    "block_count": (0, -1, "more", 2**31),
    "attention.head_count": (0, -1, 2**31),
}


@pytest.fixture(scope="module", params=NAMES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each architecture."""
    folder = tmp_path_factory.mktemp("model")
    small = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_ff": 96, "n_vocab": 288}
    path: Path = MODELS[request.param](folder / "sound.gguf", **small)
    assert outcome(path, {}) == "runs"
    return path


def outcome(path: Path, overrides: Mapping[str, Any]) -> str:
    """ "runs" with finite logits, or the one sentence of the refusal. Anything else fails."""
    try:
        with LLM(path, n_ctx=64, n_threads=1, overrides=overrides) as llm:
            assert np.isfinite(llm.logits(list(range(3, 40)))).all()
        return "runs"
    except LariatError as error:
        sentence = str(error)
        assert sentence.isprintable()
        assert len(sentence) < 500 + len(str(path))
        return sentence


def numbers(path: Path) -> tuple[str, dict[str, int | float]]:
    """The architecture, and its keys whose value is a number, without its name."""
    with GGUFFile(path) as gguf:
        arch = gguf.get_str("general.architecture")
        own = {key.removeprefix(f"{arch}."): v for key, v in gguf.metadata.items() if arch in key}
    return arch, {key: v for key, v in own.items() if type(v) in (int, float)}


def test_any_number_runs_or_is_refused(sound: Path) -> None:
    arch, keys = numbers(sound)
    assert len(keys) > 6
    refused = 0
    for key, value in keys.items():
        for other in REAL if isinstance(value, float) else WHOLE:
            refused += outcome(sound, {f"{arch}.{key}": other}) != "runs"
    assert refused > 3 * len(keys)


def logits(path: Path, overrides: Mapping[str, Any]) -> np.ndarray | None:
    """Of some tokens; None where the file is refused."""
    try:
        with LLM(path, n_ctx=64, n_threads=1, overrides=overrides) as llm:
            return llm.logits(list(range(3, 40)))
    except LariatError:
        return None


def test_numbers_that_no_sound_file_has_are_refused_by_name(sound: Path) -> None:
    """Also where the file leaves the key out, if the architecture reads it: then another value
    changes the logits."""
    arch, keys = numbers(sound)
    before = logits(sound, {})
    for key, values in REFUSED.items():
        if key not in keys:
            after = logits(sound, {f"{arch}.{key}": 0.625})
            if "more" in values or (after is not None and np.array_equal(before, after)):
                continue
        for value in values:
            n = {"expert_used_count": "expert_count"}.get(key, key)
            wrong = keys[n] + 1 if value == "more" else value
            said = outcome(sound, {f"{arch}.{key}": wrong})
            assert said != "runs", (key, wrong)
            # A count that is merely another one is found by the shapes of the tensors.
            names = (f"{arch}.{key}", "tensor '", key.replace("_", " "))
            assert value == "more" or any(name in said for name in names), (key, said)


def tensors_of(path: Path) -> dict[str, tuple[np.ndarray, str]]:
    return {t.name: (np.array(t.data), t.tensor_type.name) for t in GGUFReader(path).tensors}


def of_one_layer(names: Mapping[str, Any]) -> list[str]:
    """All names outside of layers, and those of the first layer that has them."""
    found: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        found.setdefault(".".join(parts[2:]) if parts[0] == "blk" else name, name)
    return list(found.values())


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(sound: Path, tmp_path: Path) -> None:
    """Experts, sinks, norms of heads, factors of RoPE: whatever the architecture has."""
    path, tensors = tmp_path / "bad.gguf", tensors_of(sound)
    with GGUFFile(sound) as gguf:
        arch = gguf.get_str("general.architecture")
        keys = {key: _plain(value) for key, value in gguf.metadata.items()}
    del keys["general.architecture"]
    for name in of_one_layer(tensors):
        values, type_name = tensors[name]
        others = {"one row more": np.concatenate([values, values[:1]])}
        if values.ndim > 1 and len(values) > 1:
            others["one row less"] = values[:-1]
        for what, other in others.items():
            write_gguf(path, keys, tensors | {name: (other, type_name)}, arch=arch)
            said = outcome(path, {})
            assert name in said or "token" in said, (name, what, said)
        write_gguf(path, keys, {n: t for n, t in tensors.items() if n != name}, arch=arch)
        said = outcome(path, {})
        # Some may be left out: biases, an output that is the embedding, factors of RoPE.
        optional = name.endswith(".bias") or "rope_f" in name or name == "output.weight"
        assert (said == "runs" and optional) or name in said, (name, said)


def test_weights_that_are_no_numbers_end_in_a_sentence(sound: Path, tmp_path: Path) -> None:
    """NaN in one value of each tensor reaches the logits, or is found before."""
    path = tmp_path / "nan.gguf"
    with GGUFFile(sound) as gguf:
        infos = {name: gguf.tensors[name] for name in of_one_layer(gguf.tensors)}
    content = sound.read_bytes()
    for name, info in infos.items():
        assert info.type.name == "F32", name
        data = bytearray(content)
        row = min(5, math.prod(info.shape) - 1) * 4
        data[info.offset + row : info.offset + row + 4] = np.float32(NAN).tobytes()
        path.write_bytes(data)
        with pytest.raises(GGUFError, match=name), LLM(path, n_ctx=64, check_tensors=True):
            pass
        if name != "token_embd.weight":  # only the tokens of its row
            assert outcome(path, {}) != "runs" or "exps" in name, name


def test_a_tensor_that_does_not_belong_is_named(sound: Path, tmp_path: Path) -> None:
    with GGUFFile(sound) as gguf:
        arch = gguf.get_str("general.architecture")
        keys = {key: _plain(value) for key, value in gguf.metadata.items()}
    del keys["general.architecture"]
    extra = {"blk.0.attn_extra.weight": (np.ones(4, np.float32), "F32")}
    path = write_gguf(tmp_path / "m.gguf", keys, tensors_of(sound) | extra, arch=arch)
    with pytest.raises(ModelError, match=r"'blk.0.attn_extra.weight' has no place in a"), LLM(path):
        pass


def _plain(value: Any) -> Any:
    """Metadata as `write_gguf` takes it."""
    if isinstance(value, (str, bool, int, float)):
        return value
    return value.tolist() if isinstance(value, np.ndarray) else list(value)
