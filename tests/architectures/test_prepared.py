"""Prepared weights give the bits of weights that are built, and are used only where they fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, _kernels
from lariat.architectures import packed, prepared
from lariat.architectures.loading import read_config
from lariat.errors import PreparedError
from lariat.formats.gguf_split import GGUFModel

from tests.support.family_files import FAMILIES, write_family
from tests.support.model_files import write_llama

IDS = [1, 5, 9, 260, 44, 7]
# Rows of 256, so that every type has whole blocks; 40 rows make a group that is not full.
WIDE = {"dim": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "n_ff": 512, "n_vocab": 300}


def prepare(model: Path, path: Path | None = None, **options) -> Path:
    path = prepared.beside(model) if path is None else path
    with GGUFModel(model) as gguf:
        prepared.prepare(gguf, read_config(gguf), path, 2, **options)
    return path


def check(model: Path, path: Path) -> None:
    with GGUFModel(model) as gguf:
        prepared.check(gguf, read_config(gguf), path, 2)


def logits(model: Path, use: bool, **options) -> np.ndarray:
    """Logits with prepared weights, which must be in use, or without."""
    with LLM(model, n_ctx=64, n_threads=2, prepared=use, **options) as llm:
        assert (llm.prepared is not None) == use
        assert not llm.prepared_refused
        return llm.logits(IDS)


def check_equal_bits(model: Path) -> None:
    built = logits(model, False)
    path = prepare(model)
    assert np.array_equal(built, logits(model, True))
    check(model, path)


def refusal(model: Path, **options) -> str:
    """Why prepared weights are refused. The model runs all the same."""
    with LLM(model, n_ctx=64, n_threads=2, prepared=False, **options) as llm:
        built = llm.logits(IDS)
    with LLM(model, n_ctx=64, n_threads=2, **options) as llm:
        assert llm.prepared is None
        assert np.array_equal(built, llm.logits(IDS))
        (reason,) = llm.prepared_refused
        return reason


# ---- equal bits ----


@pytest.mark.parametrize("weight_type", sorted(_kernels.weight_types()))
def test_every_type_of_weights(tmp_path, weight_type):
    check_equal_bits(write_llama(tmp_path / "m.gguf", weight_type=weight_type, **WIDE))


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family(tmp_path, arch):
    """phi3 has matrices of several parts in one tensor."""
    check_equal_bits(write_family(tmp_path / "m.gguf", arch))


@pytest.mark.parametrize(
    "shape",
    [
        {"tied": True, "weight_type": "Q8_0"},
        {"biases": True, "type_of": {"attn_v": "Q6_K", "ffn_down": "F16", "attn_k": "BF16"}},
        {"arch": "qwen3"},
        {"arch": "qwen2moe", "n_experts": 6, "weight_type": "Q4_0"},
        {"n_experts": 5, "weight_type": "Q5_K"},
        {"arch": "gpt-oss", "biases": True, "n_experts": 4, "weight_type": "MXFP4"},
        {"split": 5, "weight_type": "Q4_K"},
    ],
    ids=["tied", "mixed", "qwen3", "shared expert", "experts", "gpt-oss", "split"],
)
def test_other_forms_of_models(tmp_path, shape):
    check_equal_bits(write_llama(tmp_path / "m.gguf", **(WIDE | shape)))


def test_every_instruction_set_reads_the_file_of_any(tmp_path, isa):
    model = write_llama(tmp_path / "m.gguf", weight_type="Q4_K", output_type="Q6_K", **WIDE)
    level = _kernels.isa()
    _kernels.use_isa("scalar")
    prepare(model)
    _kernels.use_isa(level)
    assert np.array_equal(logits(model, False), logits(model, True))
    check(model, prepared.beside(model))


def test_another_process_with_another_instruction_set_uses_the_file(tmp_path):
    model = write_llama(tmp_path / "m.gguf", weight_type="Q4_0", **WIDE)
    path = prepare(model)
    code = "import sys; from lariat import LLM; print(LLM(sys.argv[1], n_ctx=32).prepared)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        env=os.environ | {"LARIAT_ISA": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(path)


def test_the_same_model_gives_the_same_file(tmp_path):
    """Bytes between the matrices of experts too, which nobody reads."""
    model = write_llama(tmp_path / "m.gguf", n_experts=3, n_ff=80)
    files = [prepare(model, tmp_path / name).read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_a_name_with_odd_characters(tmp_path):
    model = write_llama(tmp_path / "odd \udce9\n name.gguf")
    check_equal_bits(model)
    folder = tmp_path / "cache"
    folder.mkdir()
    prepare(model, prepared.in_folder(model, folder))


def test_the_progress_ends_at_1(tmp_path):
    model, seen = write_llama(tmp_path / "m.gguf"), []
    prepare(model, progress=seen.append)
    assert seen == sorted(seen)
    assert 0.5 < seen[-1] <= 1


# ---- where it is used ----


def test_it_is_not_used_where_the_user_says_so(tmp_path):
    model = write_llama(tmp_path / "m.gguf")
    prepare(model)
    logits(model, False)
    with LLM(model, n_ctx=64, use_mmap=False) as llm:
        assert llm.prepared is None
    with pytest.raises(ValueError, match="prepared is 'yes', expected True or False"):
        LLM(model, prepared="yes")


def test_the_cache_folder_is_looked_into_behind_the_models_own(tmp_path, monkeypatch):
    model = write_llama(tmp_path / "m.gguf")
    monkeypatch.setenv("LARIAT_CACHE", str(tmp_path / "cache"))
    path = prepared.in_folder(model, prepared.cache_folder())
    path.parent.mkdir()
    prepare(model, path)
    with LLM(model, n_ctx=64) as llm:
        assert llm.prepared == path
    beside = prepare(model)
    with LLM(model, n_ctx=64) as llm:
        assert llm.prepared == beside
    beside.write_bytes(b"nothing")
    with LLM(model, n_ctx=64) as llm:
        assert llm.prepared == path
        assert len(llm.prepared_refused) == 1


def test_the_cache_folder(monkeypatch):
    monkeypatch.delenv("LARIAT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert prepared.cache_folder() == Path("/x/lariat")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert prepared.cache_folder() == Path("/home/me/.cache/lariat")
    monkeypatch.setenv("LARIAT_CACHE", "/y")
    assert prepared.cache_folder() == Path("/y")


def test_models_of_one_name_have_different_files_in_a_cache_folder(tmp_path):
    (tmp_path / "a").mkdir()
    one, other = (prepared.in_folder(tmp_path / d / "m.gguf", Path("/c")) for d in ("a", "b"))
    assert one != other
    (tmp_path / "b").symlink_to("a")
    assert prepared.in_folder(tmp_path / "b" / "m.gguf", Path("/c")) == one


def test_remove(tmp_path, monkeypatch):
    monkeypatch.setenv("LARIAT_CACHE", str(tmp_path))
    model = write_llama(tmp_path / "m.gguf")
    paths = {prepare(model), prepare(model, prepared.in_folder(model, tmp_path))}
    with LLM(model, n_ctx=64) as llm:
        before = llm.logits(IDS)
        assert set(prepared.remove(model)) == paths
        assert np.array_equal(before, llm.logits(IDS)), "those who use it keep it"
    assert not prepared.remove(model)
    logits(model, False)


# ---- refused ----


def test_a_model_that_was_changed(tmp_path):
    model = write_llama(tmp_path / "m.gguf")
    prepare(model)
    write_llama(model, seed=1)
    assert "of another model" in refusal(model)


def test_a_model_that_was_touched(tmp_path):
    model = write_llama(tmp_path / "m.gguf")
    path = prepare(model)
    os.utime(model, ns=(1, 1))
    assert "before the model's file was changed" in refusal(model)
    with pytest.raises(PreparedError):
        check(model, path)


def test_the_file_of_another_model(tmp_path):
    models = [write_llama(tmp_path / f"{seed}.gguf", seed=seed) for seed in range(2)]
    shutil.copy2(prepare(models[0]), prepared.beside(models[1]))
    assert "of another model" in refusal(models[1])


def test_another_order_of_rows(tmp_path):
    """Other numbers of heads in the metadata: the same bytes in the file, other rows together."""
    model = write_llama(tmp_path / "m.gguf", n_heads=4, n_kv_heads=2, head_dim=16)
    prepare(model)
    heads = {"llama.attention.head_count": 8, "llama.attention.head_count_kv": 4}
    lengths = {f"llama.{key}": 8 for key in ("attention.key_length", "attention.value_length")}
    overrides = heads | lengths | {"llama.rope.dimension_count": 8}
    assert "in the layout that is due" in refusal(model, overrides=overrides)


def test_another_layout(tmp_path, monkeypatch):
    model = write_llama(tmp_path / "m.gguf", weight_type="Q8_0")
    prepare(model)
    monkeypatch.setattr(packed, "layout", lambda type: "new")
    assert "in the layout that is due" in refusal(model)


def test_layouts_of_types_differ():
    names = {type: packed.layout(type) for type in _kernels.weight_types()}
    alike = {"F16", "BF16"}, {"Q4_0", "IQ4_NL"}  # whose integers stand alike
    assert len(set(names.values())) == len(names) - len(alike)
    for one, other in map(sorted, alike):
        assert names[one] == names[other]


def test_layouts_do_not_depend_on_the_instruction_set(isa):
    del isa
    packed.layout.cache_clear()
    here = {type: packed.layout(type) for type in _kernels.weight_types()}
    level = _kernels.isa()
    _kernels.use_isa("scalar")
    packed.layout.cache_clear()
    assert {type: packed.layout(type) for type in _kernels.weight_types()} == here
    _kernels.use_isa(level)


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.9999])
def test_a_file_that_is_cut_short(tmp_path, share):
    model = write_llama(tmp_path / "m.gguf")
    path = prepare(model)
    os.truncate(path, int(share * path.stat().st_size))
    assert "cut short" in refusal(model) or "is damaged" in refusal(model)


def test_the_check_compares_with_the_model(tmp_path):
    """A file whose checksums are right, of weights that are not those of the model."""
    model = write_llama(tmp_path / "m.gguf")
    path = prepare(model)
    check(model, path)
    written = model.stat().st_mtime_ns
    with GGUFModel(model) as gguf:
        offset = gguf.tensors["blk.1.ffn_up.weight"].offset + 64 * 64 * 4
    with open(model, "r+b") as file:
        file.seek(offset)
        file.write(b"\0\0\0\0")
    os.utime(model, ns=(written, written))
    with pytest.raises(PreparedError, match=r"blk\.1\.ffn_up\.weight' differs"):
        check(model, path)


# ---- processes ----

PSS = """
import sys
from lariat import LLM
llm = LLM(sys.argv[1], n_ctx=32, n_threads=1)
assert llm.prepared
llm.logits([1, 2, 3])
print("ready", flush=True)
sys.stdin.readline()
with open("/proc/self/smaps_rollup") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("Pss:")), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc here")
def test_processes_share_the_weights(tmp_path):
    """The proportional memory (Pss) of two processes is that of one and of another Python."""
    wide = {**WIDE, "dim": 1024, "n_ff": 4096, "n_layers": 4}
    model = write_llama(tmp_path / "m.gguf", weight_type="F32", **wide)
    n_bytes = prepare(model).stat().st_size
    assert n_bytes > 200e6

    def pss(n: int) -> int:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PSS, str(model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(n)
        ]
        found = []
        try:
            for ask in ("ready", "number", "end"):
                for process in started:
                    assert process.stdin
                    assert process.stdout
                    if ask == "ready":
                        assert process.stdout.readline() == "ready\n"
                        continue
                    process.stdin.write("\n")
                    process.stdin.flush()
                    if ask == "number":
                        found.append(1024 * int(process.stdout.readline()))
        finally:
            for process in started:
                process.communicate(timeout=30)
        return sum(found)

    one, two = pss(1), pss(2)
    model.unlink()  # pytest would keep it
    prepared.beside(model).unlink()
    assert one > n_bytes, "the weights are in memory at all"
    assert two < one + 100e6
