"""--check-tensors finds a single NaN or Inf anywhere, and nothing that only looks like one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, GGUFError, GGUFFile
from lariat.cli.main import main
from lariat.formats import block_formats, finite
from lariat.formats.block_formats import BLOCK, GGMLType

from tests.support.model_files import set_scales, write_gguf, write_llama

NAME = "blk.0.ffn_down.weight"
WEIGHTS = np.random.default_rng(0).standard_normal((24, 1024), dtype=np.float32)


def write(folder: Path, type_name: str) -> Path:
    tensors = {"first": (WEIGHTS, "F32"), NAME: (WEIGHTS, type_name), "last": (WEIGHTS, "F32")}
    return write_gguf(folder / "m.gguf", {}, tensors)


def check(path: Path, n_threads: int = 2) -> list[float]:
    shares: list[float] = []
    with GGUFFile(path) as gguf:
        finite.check_tensors(gguf, n_threads, shares.append)
    return shares


def test_every_type_that_runs_is_looked_at():
    assert finite.NUMBERS.keys() == set(block_formats.SUPPORTED)


@pytest.mark.parametrize("type_name", sorted(t.name for t in block_formats.SUPPORTED))
def test_one_bad_number_in_a_tensor(tmp_path, monkeypatch, type_name):
    """Sign and exponent are in the last bytes of a number."""
    monkeypatch.setattr(finite, "_PIECE", 5000)
    monkeypatch.setattr(finite, "_STEP", 700)
    path = write(tmp_path, type_name)
    whole = path.read_bytes()
    with GGUFFile(path) as gguf:
        start = gguf.tensors[NAME].offset
        n_blocks = gguf.tensors[NAME].n_bytes // BLOCK[GGMLType[type_name]][1]
    assert check(path)[-1] == 1
    (bits, _, infinity), offsets = finite.NUMBERS[GGMLType[type_name]]
    for block in (0, 1, n_blocks // 2, n_blocks - 1):
        for offset in offsets:
            at = start + block * BLOCK[GGMLType[type_name]][1] + offset
            for number, found in ((infinity, "Inf"), (infinity + 1, "NaN")):
                for sign in (0, 1):
                    value = number | sign << (8 * np.dtype(bits).itemsize - 1)
                    raw = np.array([value], bits).tobytes()
                    path.write_bytes(whole[:at] + raw + whole[at + len(raw) :])
                    with GGUFFile(path) as gguf:  # the reference reads these bytes as such a number
                        row = block_formats.dequantize(gguf.data(NAME), GGMLType[type_name])
                    assert not np.isfinite(row).all()
                    with pytest.raises(GGUFError, match=f"'{NAME}' holds {found}, expected fin"):
                        check(path)


def test_the_scale_of_iq1_m_in_pieces(tmp_path):
    path = write(tmp_path, "IQ1_M")
    with GGUFFile(path) as gguf:
        info = gguf.tensors[NAME]
        rows = gguf.data(NAME).copy()
    check(path)
    for number, found in ((np.inf, "Inf"), (-np.inf, "Inf"), (np.nan, "NaN")):
        blocks = rows.reshape(-1, 56).copy()
        set_scales(blocks[17:18], "IQ1_M", slice(48, 56), np.array([number]))
        with path.open("r+b") as file:
            file.seek(info.offset)
            file.write(blocks.tobytes())
        with pytest.raises(GGUFError, match=f"'{NAME}' holds {found}, expected fin"):
            check(path)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ2_0", "MXFP4"])
def test_integers_may_be_anything(tmp_path, type_name):
    path = write(tmp_path, type_name)
    with GGUFFile(path) as gguf:
        info = gguf.tensors[NAME]
        blocks = np.full((info.n_bytes // BLOCK[info.type][1], BLOCK[info.type][1]), 0xFF, np.uint8)
        for at in finite.NUMBERS[info.type][1]:
            blocks[:, at : at + 2] = np.array([np.finfo(np.float16).max]).view(np.uint8)
    with path.open("r+b") as file:
        file.seek(info.offset)
        file.write(blocks.tobytes())
    check(path)


def test_the_largest_and_smallest_numbers_are_numbers(tmp_path):
    for type_name in ("F32", "F16"):
        dtype = np.dtype(f"float{type_name[1:]}")
        some = np.array([np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal, 0, -0.0], dtype)
        check(
            write_gguf(tmp_path / "m.gguf", {}, {"a": (np.concatenate([some, -some]), type_name)})
        )


def test_the_first_in_the_file_is_named_whatever_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "_PIECE", 4096)
    bad = WEIGHTS.copy()
    bad[-1, -1] = np.inf
    worse = np.full_like(WEIGHTS, np.nan)
    tensors = {"good": (WEIGHTS, "F32"), "a": (bad, "F32"), "b": (worse, "F32")}
    path = write_gguf(tmp_path / "m.gguf", {}, tensors)
    for n_threads in (1, 2, 7):
        with pytest.raises(GGUFError, match="'a' holds Inf"):
            check(path, n_threads)


def test_types_that_cannot_run_are_left_to_loading(tmp_path):
    tensors = {"a": (np.full((4, 256), 255), "I8"), "b": (WEIGHTS, "F32")}
    assert check(write_gguf(tmp_path / "m.gguf", {}, tensors)) == [1.0]


def test_the_command_line(tmp_path, capsys):
    scale = np.ones(64, np.float32)
    scale[7] = np.nan
    good = write_llama(tmp_path / "good.gguf")
    bad = write_llama(tmp_path / "bad.gguf", extra_tensors={"blk.1.ffn_norm.weight": scale})
    flags = ("-p", "the", "-n", "1", "-q", "--temp", "0")
    assert main(["generate", "-m", str(good), *flags]) == 0
    expected = capsys.readouterr()
    assert main(["generate", "-m", str(good), *flags, "--check-tensors"]) == 0
    assert capsys.readouterr() == expected
    assert main(["generate", "-m", str(bad), *flags, "--check-tensors"]) == 1
    assert capsys.readouterr().err == (
        f"lariat: error: {bad}: tensor 'blk.1.ffn_norm.weight' holds NaN, "
        "expected finite numbers; the file is damaged\n"
    )
    with pytest.raises(GGUFError, match=r"blk\.1\.ffn_norm\.weight"):
        LLM(bad, check_tensors=True)
