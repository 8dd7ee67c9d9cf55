"""`lariat quantize`: rounding of the simple types, the file, and everything that can go wrong.

The judges are the `gguf` package and the NumPy reference for blocks, and llama.cpp's files for the
whole. Other types, mixes and importance matrices: `test_quantize_types.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Judge
from lariat import LLM, GGUFFile, _kernels
from lariat._quantize import quantize_into
from lariat.cli.main import main
from lariat.errors import GGUFError, LariatError, ModelError
from lariat.formats import block_formats
from lariat.formats.block_formats import BLOCK, GGMLType
from lariat.tools import quantize as module
from lariat.tools.quantize import QuantizeConfig, quantize_file

from tests.formats.test_block_formats import weights
from tests.support.model_files import write_llama

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo-f16.gguf"
ISAS = _kernels.supported_isas()
FLOATS = ("F32", "F16", "BF16")
TYPES = ("F16", "Q4_0", "Q6_K", "Q8_0")
Write = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path) -> Write:
    """Writes a small F32 model to m.gguf and returns its path."""
    return lambda **options: write_llama(tmp_path / "m.gguf", **options)


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- blocks ----


def judged(x: np.ndarray, target: str) -> np.ndarray:
    """Bytes of blocks by the `gguf` package, or for Q6_K, which it does not have, by NumPy."""
    if target == "Q6_K":
        return block_formats.quantize(x, GGMLType.Q6_K).reshape(-1)
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(x, Judge[target]).view(np.uint8).reshape(-1)


def rounded(x: np.ndarray, source: str, target: str, isa: str, n_threads: int = 1) -> np.ndarray:
    data = block_formats.quantize(x, GGMLType[source]).reshape(-1)
    n_block, n_bytes = BLOCK[GGMLType[target]]
    out = np.full(x.size // n_block * n_bytes, 0xA5, np.uint8)
    assert quantize_into(data, source, out, target, isa, n_threads) is None
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", FLOATS)
def test_blocks_are_those_of_the_reference(source: str, target: str, isa: str) -> None:
    x = weights(GGMLType.Q6_K)
    x[6] *= 1e-4  # f16 ends at 65504
    x[3] = np.clip(x[3], -6e4, 6e4)
    x = block_formats.dequantize(block_formats.quantize(x, GGMLType[source]), GGMLType[source])
    np.testing.assert_array_equal(rounded(x, source, target, isa), judged(x, target))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_are_ggmls(zero: float, isa: str) -> None:
    """Their scale of Q4_0 is -0 with either sign; in the `gguf` package it has their sign."""
    x = np.full((1, 256), zero, np.float32)
    assert rounded(x, "F32", "Q4_0", isa)[:18].tobytes() == b"\0\x80" + b"\x88" * 16
    assert not rounded(x, "F32", "Q8_0", isa).any()
    assert not rounded(x, "F32", "Q6_K", isa).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("target", ["Q4_0", "Q8_0", "Q6_K"])
def test_numbers_of_any_size_in_one_block(target: str, isa: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((40, 1024)) * np.exp(5 * rng.standard_normal((40, 1024)))
    x[::3, ::5] = 0
    for scale in (1e-3, 1e-9):  # scales of the second are subnormal f16 or zero
        y = np.clip(x * scale, -1e5, 1e5).astype(np.float32)
        np.testing.assert_array_equal(rounded(y, "F32", target, isa), judged(y, target))


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
@pytest.mark.parametrize("target", TYPES)
def test_n_threads_agnosticism(target: str, n_threads: int) -> None:
    """Several tasks, a short one last, and fewer than 256 weights at the end for blocks of 32."""
    n = 5 * 16384 + (256 if target == "Q6_K" else 32)
    x = np.random.default_rng(1).standard_normal((1, n)).astype(np.float32)
    found = rounded(x, "F32", target, _kernels.isa(), n_threads)
    np.testing.assert_array_equal(found, judged(x, target))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_anywhere(source: str, isa: str, bad: float) -> None:
    for at in (0, 31, 255, 16384, 20000, 32767):
        x = np.ones((1, 32768), np.float32)
        x[0, at] = bad
        data = block_formats.quantize(x, GGMLType[source]).reshape(-1)
        out = np.empty(32768 // 32 * 18, np.uint8)
        found = quantize_into(data, source, out, "Q4_0", isa, 2)
        assert found == "NaN or infinite weights"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("target", "most"), [("F16", 65519), ("Q4_0", 524000), ("Q8_0", 8.3e6), ("Q6_K", 2.6e8)]
)
def test_what_f16_scales_cannot_hold_is_found(target: str, most: float, isa: str) -> None:
    n_block, n_bytes = BLOCK[GGMLType[target]]
    x, out = np.zeros(512, np.float32), np.empty(512 // n_block * n_bytes, np.uint8)
    for value, sentence in ((most, None), (2 * most, "weights too large for the 16-bit floats")):
        x[77] = value
        found = quantize_into(x.view(np.uint8), "F32", out, target, isa)
        assert found == sentence or (found or "").startswith(str(sentence))


def test_sizes_and_threads_are_checked() -> None:
    ok = np.zeros(4 * 256, np.uint8)
    for n_in, n_out, target in ((4 * 256, 209, "Q6_K"), (4 * 32, 17, "Q4_0"), (4 * 33, 18, "Q4_0")):
        with pytest.raises(ValueError, match=rf"{n_in} bytes of F32 into {n_out} .*expected \d+ "):
            quantize_into(ok[:n_in], "F32", np.empty(n_out, np.uint8), target, "scalar")
    with pytest.raises(ValueError, match="0 threads"):
        quantize_into(ok, "F32", np.empty(210, np.uint8), "Q6_K", "scalar", 0)
    assert quantize_into(ok[:0], "F32", np.empty(0, np.uint8), "Q6_K", "scalar") is None


# ---- the file ----

# sha256 of what llama.cpp (llama-cpp-python 0.3.36, llama_model_quantize) makes of demo-f16.gguf
LLAMA_CPP = {
    "Q4_0": "ebda1202a598f23ce62943589263eab765a4c46a4447f550bef371a180b473dc",
    "Q8_0": "dfeb07f9c7da9e3904a8cb068d46dc70eb2f10160c2d07e50c2f2aa3c0227598",
    "Q6_K": "79ac633c82501ce085088521ba936f181cf7df8a35061e29d65b78390249b612",
    "F16": "0781dc8cadb598b878830e24f9b427cd6225a6e87dd452f6516e2851ae616704",
    "Q2_K": "3f7e8aebd3487b5fcee493327bd35189767352a8a6490a9b97f9e35b88e1b6b2",
    "Q3_K_M": "41be7fa529d51ac7c0bddba2397022b0e4c6cd30341bfb97c9d3e6a10189c92f",
    "Q4_K_M": "952fa916fc7883d18fcc40aa222eec08d15a30097cf11005163df1bdcf12ded2",
    "Q5_K_M": "9a512d4cedce4b2284db2c5f5b36ccfe3290e0b6d03eba52d7410d66cedb2696",
    "IQ4_XS": "cde27fcc321be1e053f8e10b32772c199ee278df69ecf239c3f8a170146042c4",
    # --pure --token-embedding-type Q8_0
    "Q4_0 pure": "02ad8f01e08b8b0c4254b3fa866871c465db42069c5fd969a21518a4c5952ea8",
}


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_the_file_is_llama_cpps(name: str, tmp_path: Path) -> None:
    type_name, _, pure = name.partition(" ")
    more = {"pure": True, "token_embedding_type": "Q8_0"} if pure else {}
    quantize_file(DEMO, tmp_path / "q.gguf", QuantizeConfig(type_name, **more))
    assert hashlib.sha256((tmp_path / "q.gguf").read_bytes()).hexdigest() == LLAMA_CPP[name]


def test_piece_size_agnosticism(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 3000)
    shares: list[float] = []
    quantize_file(DEMO, tmp_path / "q.gguf", QuantizeConfig("Q4_0"), 1, progress=shares.append)
    assert hashlib.sha256((tmp_path / "q.gguf").read_bytes()).hexdigest() == LLAMA_CPP["Q4_0"]
    assert len(shares) > 2000
    assert shares == sorted(shares)
    assert shares[-1] == 1


def types_of(path: Path) -> dict[str, str]:
    with GGUFFile(path) as file:
        return {name: info.type.name for name, info in file.tensors.items()}


def test_which_tensor_gets_which_type(model: Write, tmp_path: Path) -> None:
    source = model(dim=256, n_ff=288, biases=True, n_layers=1, rope_freqs=[1.0] * 32)
    before = types_of(source)

    def after(*args: object, **options: object) -> dict[str, str]:
        quantize_file(source, tmp_path / "q", QuantizeConfig(*args, **options), force=True)  # type: ignore[arg-type]
        found = types_of(tmp_path / "q")
        assert found.keys() == before.keys()
        for name in found:  # vectors, norms, biases and RoPE factors stay
            if not name.endswith("weight") or "norm" in name or "rope" in name:
                assert found[name] == "F32"
        return {n: t for n, t in found.items() if t != "F32" or n == "output.weight"}

    plain = after("Q4_0")
    assert plain.pop("output.weight") == "Q6_K"
    assert set(plain.values()) == {"Q4_0"}
    assert len(plain) == 1 + 7
    assert set(after("Q8_0").values()) == {"Q8_0"}
    assert set(after("Q4_0", pure=True).values()) == {"Q4_0"}
    assert set(after("F16").values()) == {"F16"}
    assert after("Q4_0", leave_output_tensor=True)["output.weight"] == "F32"
    assert after("Q4_0", output_tensor_type="Q8_0")["output.weight"] == "Q8_0"
    assert after("Q4_0", token_embedding_type="F16")["token_embd.weight"] == "F16"
    fallen = after("Q6_K")  # rows of 288 do not divide by 256
    assert fallen.pop("blk.0.ffn_down.weight") == "Q8_0"
    assert set(fallen.values()) == {"Q6_K"}


def test_an_embedding_that_is_the_output_too(model: Write, tmp_path: Path) -> None:
    source = model(dim=256, n_ff=256, n_layers=1, tied=True)
    quantize_file(source, tmp_path / "q", QuantizeConfig("Q4_0"))
    assert types_of(tmp_path / "q")["token_embd.weight"] == "Q6_K"
    quantize_file(source, tmp_path / "q8", QuantizeConfig("Q4_0", output_tensor_type="Q8_0"))
    assert types_of(tmp_path / "q8")["token_embd.weight"] == "Q8_0"


@pytest.mark.parametrize("source_type", FLOATS)
def test_what_is_written_can_be_read_by_others_and_run(
    model: Write, tmp_path: Path, source_type: str
) -> None:
    options = {"metadata": {"general.file_type": 0, "general.alignment": 64, "a.note": "grüße"}}
    source = model(dim=256, n_ff=288, weight_type=source_type, version=2, **options)
    quantize_file(source, tmp_path / "q.gguf", QuantizeConfig("Q4_0"))
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "q.gguf")
    for key, field in old.fields.items():
        if key not in ("GGUF.version", "GGUF.kv_count", "general.file_type"):
            assert field.types == new.fields[key].types
            assert field.contents() == new.fields[key].contents(), key
    assert new.fields["general.file_type"].contents() == 2
    assert new.fields["general.quantization_version"].contents() == 2
    assert new.alignment == 64
    found = {t.name: t for t in new.tensors}
    for t in old.tensors:
        x = gguf.quants.dequantize(t.data, t.tensor_type)
        expected = judged(x, found[t.name].tensor_type.name)
        np.testing.assert_array_equal(found[t.name].data.view(np.uint8).reshape(-1), expected)
    with LLM(tmp_path / "q.gguf") as llm:
        assert np.isfinite(llm.logits([1, 5, 9])).all()


def test_splits_become_one_file(tmp_path: Path) -> None:
    whole = write_llama(tmp_path / "whole.gguf", weight_type="F16")
    first = write_llama(tmp_path / "m.gguf", weight_type="F16", split=5)
    assert first.name.endswith("-00001-of-00005.gguf")
    second = first.with_name(first.name.replace("00001", "00002"))
    with pytest.raises(LariatError, match="the input itself"):
        quantize_file(first, second, QuantizeConfig("Q8_0"), force=True)
    for source, target in ((whole, "a"), (first, "b")):
        quantize_file(source, tmp_path / target, QuantizeConfig("Q8_0"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("split", [0, 3])
def test_a_file_that_is_read_becomes_the_same_as_one_that_is_mapped(
    tmp_path: Path, split: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 3000)  # several pieces, a short one last
    source = write_llama(tmp_path / "m.gguf", weight_type="F16", split=split)
    for target, flags in (("a", ()), ("b", ("--no-mmap",))):
        assert run(capfd, source, tmp_path / target, "Q8_0", "-q", *flags) == (0, "", "")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_is_read_is_not_in_memory(
    model: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, preadv, n_read = model(), os.preadv, []
    monkeypatch.setattr(module, "_AT_ONCE", 3000)

    def counted(file: int, into: list[memoryview], at: int) -> int:
        n_read.append(into[0].nbytes)
        return preadv(file, into, at)

    def begin(_: float) -> None:  # the header is read when the file is opened
        monkeypatch.setattr(os, "preadv", counted)

    quantize_file(source, tmp_path / "q", QuantizeConfig("Q8_0"), progress=begin, use_mmap=False)
    assert sum(n_read) > 0.5 * source.stat().st_size
    assert max(n_read) <= 3000


def test_a_source_that_is_cut_short_while_it_is_read(model: Write, tmp_path: Path) -> None:
    """If it were mapped, it would end the process."""
    source = model()

    def cut(done: float) -> None:
        os.truncate(source, 100)

    with pytest.raises(GGUFError, match="cut short meanwhile") as caught:
        quantize_file(source, tmp_path / "q", QuantizeConfig("Q8_0"), progress=cut, use_mmap=False)
    assert str(source) in str(caught.value)
    assert left(tmp_path) == ["m.gguf"]


def test_a_second_rounding_has_to_be_asked_for(model: Write, tmp_path: Path) -> None:
    source = model(dim=256, n_ff=256, weight_type="Q8_0")
    with pytest.raises(ModelError, match=r"'output.weight' is Q8_0, .*--allow-requantize"):
        quantize_file(source, tmp_path / "q", QuantizeConfig("Q4_0"))
    assert left(tmp_path) == ["m.gguf"]
    quantize_file(source, tmp_path / "same", QuantizeConfig("Q8_0"))  # nothing is rounded
    quantize_file(source, tmp_path / "q", QuantizeConfig("Q4_0", allow_requantize=True))
    with GGUFFile(source) as old, GGUFFile(tmp_path / "same") as same:
        for name in old.tensors:
            np.testing.assert_array_equal(same.data(name), old.data(name))
    with GGUFFile(source) as old, GGUFFile(tmp_path / "q") as new:
        x = block_formats.dequantize(old.data("blk.1.attn_q.weight"), GGMLType.Q8_0)
        found = new.data("blk.1.attn_q.weight").reshape(-1)
        np.testing.assert_array_equal(found, judged(x, "Q4_0"))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dim": 72}, r"rows of 72 weights, which do not divide into the blocks of 32 of Q8_0"),
        ({"metadata": {"general.architecture": "falcon"}}, "falcon"),
        ({"type_of": {"ffn_up": "NVFP4"}, "dim": 256}, "ffn_up.* is of type NVFP4"),
        ({"extra_tensors": {"blk.0.attn_q.weight": np.full((64, 64), np.nan, np.float32)}}, "NaN"),
        ({"extra_tensors": {"output.weight": np.full((288, 64), 1e9, np.float32)}}, "too large"),
    ],
)
def test_models_that_cannot_be_quantized(
    model: Write, tmp_path: Path, options: dict, sentence: str
) -> None:
    source = model(**options)
    config = QuantizeConfig("Q4_0", allow_requantize=True)
    with pytest.raises(LariatError, match=sentence) as caught:
        quantize_file(source, tmp_path / "q", config)
    assert str(source) in str(caught.value)
    assert left(tmp_path) == ["m.gguf"]


def run(capfd: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    capfd.readouterr()
    code = main(["quantize", *map(str, argv)])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("a", "b", "Q9_0"), "'Q9_0' is unknown, expected one of F16, Q4_0, Q4_1,"),
        (("a", "b", "Q4_0", "--output-tensor-type", "Q4_K_M"), "'Q4_K_M' of a tensor is unknown"),
        (("a", "b", "Q4_0", "-t", "0"), "-t/--threads"),
        (("a", "b"), "TYPE"),
    ],
)
def test_bad_command_lines(
    argv: tuple[str, ...], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capfd, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_targets_that_are_refused(
    model: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = model()
    content = source.read_bytes()
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = left(tmp_path)
    for target, flags, expected in (
        ("old", (), "exists already; --force replaces it"),
        ("m.gguf", ("-f",), "the input itself"),
        ("link", ("-f",), "the input itself"),
        ("hard", ("-f",), "the input itself"),
        ("dir", ("-f",), "not a regular file"),
        ("fifo", ("-f",), "not a regular file"),
        ("none/q.gguf", (), "none"),
        ("old/q.gguf", (), "Not a directory"),
    ):
        code, out, err = run(capfd, source, tmp_path / target, "Q8_0", *flags)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert expected in err
    assert left(tmp_path) == before
    assert source.read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(
    model: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, folder = model(), tmp_path / "dir"
    folder.mkdir(mode=0o555)
    code, _, err = run(capfd, source, folder / "q.gguf", "Q8_0")
    assert (code, err) == (1, f"lariat: error: {folder / 'q.gguf'}: Permission denied\n")


def test_no_room_is_known_before_the_work(
    model: Write,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = model()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    code, _, err = run(capfd, source, tmp_path / "q.gguf", "Q8_0")
    assert code == 1
    assert re.search(r"needs \d+,\d+ bytes, and there are 1,000 free on the disk$", err, re.M)
    assert left(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("named", [False, True])
def test_a_write_that_fails_leaves_nothing(
    model: Write, tmp_path: Path, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named:  # a system without anonymous files
        monkeypatch.delattr(os, "O_TMPFILE")
    source = model()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, old[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            quantize_file(source, tmp_path / "q.gguf", QuantizeConfig("Q8_0"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.filename == str(tmp_path / "q.gguf")
    assert left(tmp_path) == ["m.gguf"]
    quantize_file(source, tmp_path / "q.gguf", QuantizeConfig("Q8_0"))
    assert left(tmp_path) == ["m.gguf", "q.gguf"]


@pytest.mark.parametrize("named", [False, True])
def test_ctrl_c_leaves_what_was_there(
    model: Write, tmp_path: Path, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named:
        monkeypatch.delattr(os, "O_TMPFILE")
    source = model()
    (tmp_path / "q.gguf").write_bytes(b"old")

    def interrupt(done: float) -> None:
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_file(
            source, tmp_path / "q.gguf", QuantizeConfig("Q8_0"), force=True, progress=interrupt
        )
    assert left(tmp_path) == ["m.gguf", "q.gguf"]
    assert (tmp_path / "q.gguf").read_bytes() == b"old"


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="such files have names here")
def test_a_process_that_is_killed_leaves_nothing(model: Write, tmp_path: Path) -> None:
    source = model()
    code = (
        "import os, signal, sys; from lariat.tools.quantize import *\n"
        "kill = lambda done: done > 0.5 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "quantize_file(*sys.argv[1:], QuantizeConfig('Q8_0'), progress=kill)"
    )
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "q"], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert left(tmp_path) == ["m.gguf"]


# ---- what is printed ----


def test_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "demo\nq4_0.gguf"
    code, out, err = run(capfd, DEMO, target, "q4_0", "-t", "1")
    assert (code, err) == (0, "")  # no bar, because this is not a terminal
    lines = out.splitlines()
    assert lines[1].split() == ["demo-f16.gguf", "8.51", "MiB", "16.01"]
    assert lines[2].split() == [r"demo\nq4_0.gguf", "2.53", "MiB", "4.76"]
    assert lines[3].startswith("11 F32, 35 Q4_0, 1 Q6_K; ")
    assert run(capfd, DEMO, target, "Q4_0", "--force", "--quiet") == (0, "", "")


def test_a_bar_on_a_terminal_only(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "lariat", "quantize", DEMO, tmp_path / "q.gguf", "Q6_K"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
        assert process.stdout
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert b"quantizing" in shown
    assert b"quantizing" not in out
    assert out.count(b"\n") == 4
