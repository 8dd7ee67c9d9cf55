"""Each kernel at each instruction-set level against NumPy in float64."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from lariat import _kernels
from lariat._program import run
from lariat.formats import block_formats
from lariat.formats.block_formats import GGMLType

from tests.reference import relative_error
from tests.support.cache_blocks import hadamard
from tests.support.kernel_cases import (
    FLOAT_TYPES,
    QUANT_TYPES,
    SCALES,
    SMALL_SCALES,
    expected_product,
    multiply,
    pack,
    raw_weights,
)
from tests.support.model_files import set_scales

ISAS = _kernels.supported_isas()
BOUND = 1e-6


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# ---- instruction sets ------------------------------------------------------------------------


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", ISAS)
def test_environment_forces_a_level(name):
    done = run_python("from lariat import _kernels; print(_kernels.isa())", LARIAT_ISA=name)
    assert done.stdout.strip() == name


def test_unknown_level_is_an_error():
    done = run_python("import lariat._kernels", LARIAT_ISA="avx1024")
    assert done.returncode == 1
    assert "LARIAT_ISA: instruction set 'avx1024' is unknown" in done.stderr
    with pytest.raises(ValueError, match="unknown"):
        _kernels.use_isa("sse9")


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="kinds of cores are told apart on x86"
)
def test_kind_of_core():
    code = "from lariat import _kernels; print(_kernels.core())"
    assert run_python(code, LARIAT_CORE="intel").stdout.strip() == "intel"
    found = run_python(code, LARIAT_CORE="").stdout.strip()
    assert found in ("other", "intel")
    if (info := Path("/proc/cpuinfo")).exists():
        assert found == ("intel" if "GenuineIntel" in info.read_text() else "other")
    done = run_python(code, LARIAT_CORE="z80")
    assert done.returncode == 1
    assert "LARIAT_CORE: kind of core 'z80' is unknown, expected one of other, intel" in done.stderr
    with pytest.raises(ValueError, match="unknown"):
        _kernels.use_core("z80")
    pairs = [("scalar", "other"), *((isa, core) for isa in ISAS[1:] for core in ("other", "intel"))]
    assert list(_kernels.variants()) == pairs


def test_best_level_is_the_default():
    done = run_python("from lariat import _kernels; print(_kernels.isa())", LARIAT_ISA="")
    assert done.stdout.strip() == ISAS[-1]


# ---- weight types ----------------------------------------------------------------------------


def test_the_rows_of_types_are_what_files_and_the_reference_say():
    """simd/types.def, the names and sizes of ggml, and the types that can be loaded."""
    types = _kernels.weight_types()
    assert set(types) == {*FLOAT_TYPES, *QUANT_TYPES} == {t.name for t in block_formats.SUPPORTED}
    for name, (number, *block) in types.items():
        assert GGMLType[name] == number
        assert block_formats.BLOCK[GGMLType[name]] == tuple(block)


# ---- matrix multiplication -------------------------------------------------------------------


@pytest.mark.parametrize("type_name", [*FLOAT_TYPES, *QUANT_TYPES])
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 5, 8, 13, 16, 31, 54])
def test_matmul(isa, rng, type_name, n_tokens):
    for n_rows, n_cols in ((1, 256), (15, 512), (16, 256), (53, 768)):
        data = raw_weights(type_name, n_rows, n_cols, rng)
        x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
        got = multiply(pack(data, type_name, n_cols), x)
        assert relative_error(got, expected_product(data, type_name, x)) < BOUND


needs_amx = pytest.mark.skipif("amx" not in ISAS, reason="no AMX here")


@pytest.fixture
def level_restored():
    level, core = _kernels.isa(), _kernels.core()
    yield
    _kernels.use_isa(level)
    _kernels.use_core(core)


@needs_amx
@pytest.mark.parametrize("core", ["other", "intel"])
@pytest.mark.parametrize("type_name", QUANT_TYPES)
def test_amx_has_the_bits_of_avx512(level_restored, rng, type_name, core):
    """Tiles of many columns differ in nothing, so a result does not depend on the batch."""
    _kernels.use_core(core)
    per_block = block_formats.BLOCK[GGMLType[type_name]][0]
    for n_rows, n_cols in ((53, 1024), (16, 1056 if per_block == 32 else 1280)):
        matrix = pack(raw_weights(type_name, n_rows, n_cols, rng), type_name, n_cols)
        x = rng.standard_normal((150, n_cols)).astype(np.float32)
        x[40:48] *= np.float32(1e-37)
        start = rng.standard_normal((len(x), n_rows)).astype(np.float32)
        for n in (*range(1, 41), 128, 150):
            found = []
            for level in ("avx512", "amx"):
                _kernels.use_isa(level)
                found.append(multiply(matrix, x[:n], n % 3 + 1, start[:n] if n % 2 else None))
            assert np.array_equal(found[0].view(np.int32), found[1].view(np.int32)), (n_cols, n)


@needs_amx
@pytest.mark.parametrize("type_name", QUANT_TYPES)
def test_amx_agrees_with_the_reference(level_restored, rng, type_name):
    _kernels.use_isa("amx")
    data = raw_weights(type_name, 19, 1024, rng)
    x = rng.standard_normal((45, 1024)).astype(np.float32)
    got = multiply(pack(data, type_name, 1024), x)
    assert relative_error(got, expected_product(data, type_name, x)) < BOUND


@needs_amx
def test_where_the_system_refuses_tiles_the_level_below_is_used():
    """Linux refuses them if a thread has a stack for signals that is too small for them."""
    code = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.addressof(memory), 0, len(memory))
if ctypes.CDLL(None, use_errno=True).sigaltstack(ctypes.byref(stack), None):
    raise SystemExit("skip")
from lariat import _kernels
print(_kernels.isa(), *_kernels.supported_isas())
"""
    env = {"LARIAT_ISA": "", "PYTHONFAULTHANDLER": ""}
    done = run_python(code, **env)
    if done.stderr.strip() == "skip":
        pytest.skip("the system wants larger stacks for signals always")
    assert done.stdout.split() == ["avx512", *(isa for isa in ISAS if isa != "amx")]
    done = run_python(code, **env | {"LARIAT_ISA": "amx"})
    assert "LARIAT_ISA: instruction set 'amx' is not supported here" in done.stderr


@pytest.mark.parametrize("type_name", FLOAT_TYPES)
@pytest.mark.parametrize("n_cols", [1, 2, 31, 33, 172])
def test_matmul_of_lengths_that_do_not_divide(isa, rng, type_name, n_cols):
    data = raw_weights(type_name, 19, n_cols, rng)
    for n_tokens in (1, 2, 7, 9):
        x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
        got = multiply(pack(data, type_name, n_cols), x)
        assert relative_error(got, expected_product(data, type_name, x)) < BOUND


@pytest.mark.parametrize("type_name", QUANT_TYPES)
@pytest.mark.parametrize("weight_byte", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("sign", [-1, 1])
def test_matmul_does_not_saturate(isa, rng, type_name, weight_byte, sign):
    """All weights and activations at their extremes: 8-bit and 16-bit sums must not clip."""
    data = raw_weights(type_name, 16, 256, rng)
    blocks = data.reshape(16, -1, block_formats.BLOCK[GGMLType[type_name]][1])
    scales = [*SCALES[type_name], SMALL_SCALES.get(type_name, slice(0))]
    integers = np.ones(blocks.shape[2], bool)
    for at in scales:
        integers[at] = False
    blocks[:, :, integers] = weight_byte
    x = np.full((5, 256), sign * 3.0, np.float32)
    got = multiply(pack(data, type_name, 256), x)
    assert relative_error(got, expected_product(data, type_name, x)) < BOUND


@pytest.mark.parametrize("type_name", QUANT_TYPES)
def test_weights_are_decoded_to_the_bit(isa, rng, type_name):
    """Scales of four bits, and columns of one activation: no sum or product has to be rounded."""
    data = raw_weights(type_name, 19, 512, rng)
    blocks = data.reshape(-1, block_formats.BLOCK[GGMLType[type_name]][1])
    for at in SCALES[type_name]:
        set_scales(blocks, type_name, at, rng.integers(-15, 16, len(blocks)) / 64)
    matrix, expected = pack(data, type_name, 512), dequantize(data, GGMLQuantizationType[type_name])
    x = np.eye(512, dtype=np.float32) * 127
    assert np.array_equal(multiply(matrix, x), 127 * expected.T)
    assert np.array_equal(multiply(matrix, x[300:301]), 127 * expected.T[300:301])


def test_blocks_of_llama_cpp_are_read_as_it_means_them(isa, rng):
    """The `gguf` package decodes IQ4_XS, but does not encode it: llama.cpp wrote these blocks."""
    made = json.loads((Path(__file__).parent / "data" / "iq4_xs_llama_quantize.json").read_text())
    weights = np.frombuffer(bytes.fromhex(made["weights"]), np.float32).reshape(4, 256)
    data = np.frombuffer(bytes.fromhex(made["blocks"]), np.uint8).reshape(4, -1).copy()
    decoded = block_formats.dequantize(data, GGMLType.IQ4_XS)
    assert np.array_equal(decoded, dequantize(data, GGMLQuantizationType.IQ4_XS))
    assert relative_error(decoded, weights) < 0.15
    x = rng.standard_normal((3, 256)).astype(np.float32)
    got = multiply(pack(data, "IQ4_XS", 256), x)
    assert relative_error(got, expected_product(data, "IQ4_XS", x)) < BOUND


def test_every_exponent_of_mxfp4(isa):
    """From 2^-128, which is subnormal, to 2^127, with one activation of 1 and weights of a half."""
    data = np.full((256, 17), 0x11, np.uint8)
    data[:, 0] = np.arange(256)
    x = np.zeros((1, 32), np.float32)
    x[0, 9] = 127
    got = multiply(pack(data, "MXFP4", 32), x)[0]
    expected = 127 * np.ldexp(1.0, np.arange(256) - 128)
    with np.errstate(over="ignore"):
        assert np.array_equal(got, expected.astype(np.float32))


@pytest.mark.parametrize("type_name", [*FLOAT_TYPES, *QUANT_TYPES])
def test_matmul_adds(isa, rng, type_name):
    data = raw_weights(type_name, 35, 256, rng)
    x = rng.standard_normal((6, 256)).astype(np.float32)
    start = rng.standard_normal((6, 35)).astype(np.float32)
    got = multiply(pack(data, type_name, 256), x, start=start)
    assert relative_error(got, start + expected_product(data, type_name, x)) < BOUND


@pytest.mark.parametrize("type_name", [*FLOAT_TYPES, *QUANT_TYPES])
def test_matmul_neither_threads_nor_neighbours_matter(isa, rng, type_name):
    data = raw_weights(type_name, 530, 512, rng)
    matrix = pack(data, type_name, 512)
    x = rng.standard_normal((31, 512)).astype(np.float32)
    together = multiply(matrix, x, 1)
    for n_threads in (2, 3, 7):
        assert np.array_equal(multiply(matrix, x, n_threads), together)
    alone = np.concatenate([multiply(matrix, x[i : i + 1]) for i in range(len(x))])
    assert np.array_equal(alone, together)
    for n in range(2, 17):  # tiles of every width
        assert np.array_equal(multiply(matrix, x[-n:]), together[-n:]), n


@pytest.mark.parametrize("type_name", [*FLOAT_TYPES, *QUANT_TYPES])
def test_rows_in_order(rng, type_name):
    data = raw_weights(type_name, 37, 256, rng)
    order = rng.permutation(37).astype(np.int64)
    x = rng.standard_normal((3, 256)).astype(np.float32)
    got = multiply(pack(data, type_name, 256, order), x)
    assert np.array_equal(got, multiply(pack(data[order], type_name, 256), x))


def test_matmul_refuses_what_does_not_fit(rng):
    matrix = pack(raw_weights("Q4_0", 16, 64, rng), "Q4_0", 64)
    x = np.zeros((2, 64), np.float32)
    q8 = _kernels.Activations(2, 64)
    with pytest.raises(ValueError, match="quantized activations"):
        _kernels.matmul(matrix, x, q8, np.zeros((2, 16), np.float32))
    with pytest.raises(ValueError, match="matmul of"):
        _kernels.matmul(matrix, x, q8, np.zeros((2, 17), np.float32))
    with pytest.raises(ValueError, match="order"):
        pack(raw_weights("Q4_0", 2, 64, rng), "Q4_0", 64, np.array([0, 2]))
    with pytest.raises(ValueError, match="bytes"):
        pack(raw_weights("Q4_0", 2, 64, rng), "Q4_0", 96)


def test_zero_and_tiny_activations(isa, rng):
    data = raw_weights("Q4_0", 16, 64, rng)
    x = np.zeros((3, 64), np.float32)
    x[1, :32] = 1e-30
    x[2, 5] = 1e30
    got = multiply(pack(data, "Q4_0", 64), x)
    assert np.array_equal(got[0], np.zeros(16))
    assert relative_error(got[1:], expected_product(data, "Q4_0", x[1:])) < BOUND


# ---- rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 7, 16, 33, 288, 4096])
@pytest.mark.parametrize("n", [1, 5])
def test_rms_norm(isa, rng, dim, n):
    x = rng.standard_normal((n, dim)).astype(np.float32) * 3
    weight = rng.standard_normal(dim).astype(np.float32)
    out = np.empty_like(x)
    run(_kernels.rms_norm(x, weight, 1e-5, out), n_threads=2)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * weight
    assert relative_error(out, expected) < BOUND


@pytest.mark.parametrize("head_dim", [2, 6, 8, 48, 80, 128, 130])
def test_rope(isa, rng, head_dim):
    half = head_dim // 2
    angles = rng.uniform(0, 6, (50, half))
    rows = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    for n in (1, 9):
        x = rng.standard_normal((n, 3, head_dim)).astype(np.float32)
        positions = rng.integers(0, 50, n).astype(np.int32)
        a = angles[positions][:, None]
        lo, hi = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
        expected = np.concatenate(
            [lo * np.cos(a) - hi * np.sin(a), lo * np.sin(a) + hi * np.cos(a)], -1
        )
        table = _kernels.Rope(rows, np.zeros((2, half), np.float32))
        run(_kernels.rope(x, table, positions, 0.25), n_threads=2)
        assert relative_error(x, expected * 0.25) < BOUND


@pytest.mark.parametrize("head_dim", [2, 4, 24, 32, 64, 80, 96, 128, 160, 256])
def test_hadamard_transform_behind_rope(isa, rng, head_dim):
    angles = rng.uniform(0, 6, (50, head_dim // 2))
    rows = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    table = _kernels.Rope(rows, np.zeros((2, head_dim // 2), np.float32))
    positions = rng.integers(0, 50, 7).astype(np.int32)
    x = rng.standard_normal((7, 3, head_dim)).astype(np.float32)
    x[..., 1] *= 100
    plain = x.copy()
    run(_kernels.rope(plain, table, positions, 0.25), n_threads=1)
    run(_kernels.rope(x, table, positions, 0.25, True), n_threads=2)
    assert relative_error(x, hadamard(plain)) < BOUND
    assert relative_error(hadamard(x), plain) < BOUND


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (3, 5000), (2, 8192)])
def test_silu_mul(isa, rng, shape):
    gate = rng.uniform(-30, 30, shape).astype(np.float32)
    if gate.size > 4:
        gate.reshape(-1)[:4] = [-200.0, 200.0, 0.0, -88.5]
    up = rng.standard_normal(shape).astype(np.float32)
    wide = gate.astype(np.float64)
    expected = wide / (1 + np.exp(-wide)) * up
    run(_kernels.silu_mul(gate, up), n_threads=2)
    assert relative_error(gate, expected) < BOUND
    assert np.allclose(gate, expected, rtol=2e-6, atol=1e-34)
