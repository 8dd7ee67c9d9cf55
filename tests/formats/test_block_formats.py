"""Block formats, judged by the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Judge
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from lariat.formats.block_formats import (
    BLOCK,
    QUANTIZABLE,
    REMOVED_TYPES,
    SUPPORTED,
    GGMLType,
    dequantize,
    quantize,
    row_bytes,
)

TYPES = sorted(SUPPORTED)
ENCODED = sorted(QUANTIZABLE)
BLOCK_TYPES = [t for t in ENCODED if BLOCK[t][0] > 1]
# gguf has no encoder for Q6_K.
ENCODED_ALIKE = [t for t in ENCODED if t != GGMLType.Q6_K]


def judge_quantize(x: np.ndarray, type: GGMLType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(x, Judge(int(type))).view(np.uint8)


def judge_dequantize(data: np.ndarray, type: GGMLType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, Judge(int(type)))


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the bit, signs of zeros included; NaN counts as NaN whatever its payload."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


def weights(type: GGMLType, n_rows: int = 7, n_blocks: int = 12, seed: int = 0) -> np.ndarray:
    """float32 [n_rows, n_cols] with zeros, ties, outliers, and scales from tiny to huge."""
    rng = np.random.default_rng(seed)
    n_cols = n_blocks * max(BLOCK[type][0], 32)
    x = rng.normal(size=(n_rows, n_cols)).astype(np.float32)
    x[0, :32] = 0
    x[1] = np.round(x[1] * 4) / 4  # many halves and equal magnitudes
    x[2, ::2] = -x[2, 1::2]  # largest magnitude with both signs
    x[3] *= np.exp(rng.normal(size=n_cols) * 4).astype(np.float32)
    x[4] = np.arange(n_cols) % 255 - 127
    x[5] *= 1e-6
    x[6] *= 1e5
    return x


def test_assert_same_bits_can_fail() -> None:
    x = np.array([0.0, 1.0, np.nan], np.float32)
    assert_same_bits(x, x.copy())
    for other in ([-0.0, 1.0, np.nan], [0.0, 1.0000001, np.nan], [0.0, 1.0, 2.0]):
        with pytest.raises(AssertionError):
            assert_same_bits(np.array(other, np.float32), x)


def test_types_and_sizes_are_those_of_ggml() -> None:
    for judge in Judge:
        assert GGMLType(int(judge)).name == judge.name
        # gguf 0.19 keeps the size that Q8_1 had before its sums became f16.
        if judge != Judge.Q8_1:
            assert BLOCK[GGMLType(int(judge))] == gguf.GGML_QUANT_SIZES[judge], judge.name
    assert set(BLOCK) == set(GGMLType)
    assert not set(REMOVED_TYPES) & {int(t) for t in GGMLType}
    # Every number up to the last is either in use or known to be given up.
    assert set(REMOVED_TYPES) | set(map(int, GGMLType)) == set(range(max(GGMLType) + 1))


def test_supported_types() -> None:
    read = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 "
    read += "IQ3_S IQ3_XXS IQ2_S IQ2_XS IQ2_XXS IQ1_S IQ1_M TQ1_0 TQ2_0"
    assert {t.name for t in SUPPORTED} == set(read.split())
    encoded = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q6_K"
    assert {t.name for t in QUANTIZABLE} == set(encoded.split())


def test_row_bytes() -> None:
    assert row_bytes(GGMLType.F32, 3) == 12
    assert row_bytes(GGMLType.Q4_0, 64) == 36
    assert row_bytes(GGMLType.Q6_K, 512) == 420
    assert row_bytes(GGMLType.Q4_0, 0) == 0
    with pytest.raises(ValueError, match="172 weights does not divide into Q4_0 blocks of 32"):
        row_bytes(GGMLType.Q4_0, 172)
    with pytest.raises(ValueError, match="-32"):
        row_bytes(GGMLType.Q4_0, -32)


@pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
def test_dequantize_random_bytes(type: GGMLType) -> None:
    """Random bytes reach every scale, NaN and infinite ones too."""
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (50, 20 * BLOCK[type][1]), np.uint8)
    assert_same_bits(dequantize(data, type), judge_dequantize(data, type))


@pytest.mark.parametrize("type", [GGMLType.F16, GGMLType.BF16], ids=lambda t: t.name)
def test_dequantize_every_16_bit_pattern(type: GGMLType) -> None:
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(16, -1)
    found = dequantize(data, type)
    assert_same_bits(found, judge_dequantize(data, type))
    number = ~np.isnan(found)
    again = quantize(found, type).view("<u2")
    np.testing.assert_array_equal(again[number], data.view("<u2")[number])
    assert np.isnan(dequantize(again.view(np.uint8), type)[~number]).all()


@pytest.mark.parametrize("type", ENCODED_ALIKE, ids=lambda t: t.name)
def test_quantize_is_the_reference(type: GGMLType) -> None:
    x = weights(type)
    np.testing.assert_array_equal(quantize(x, type), judge_quantize(x, type))


@pytest.mark.parametrize("type", ENCODED_ALIKE, ids=lambda t: t.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_quantize_is_the_reference_anywhere(type: GGMLType, data: st.DataObject) -> None:
    # Below 1e-30 the inverse of a scale can be infinite; there the bits of a nibble mean nothing.
    number = st.one_of(
        st.just(0.0),
        st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30),
        st.sampled_from([0.5, -0.5, 1.0, -1.0, 8.0, -8.0, 127.0, -127.0]),
    )
    x = data.draw(st_np.arrays(np.float32, (2, 64), elements=number))
    np.testing.assert_array_equal(quantize(x, type), judge_quantize(x, type))


@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.F16, GGMLType.BF16], ids=lambda t: t.name)
def test_quantize_float_specials(type: GGMLType) -> None:
    patterns = [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x80000000, 1]
    patterns += [0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x3F808001, 0x477FEFFF, 0x477FF000]
    x = np.array(patterns, np.uint32).view(np.float32)[None, :]
    found = dequantize(quantize(x, type), type)
    assert_same_bits(found, judge_dequantize(judge_quantize(x, type), type))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))


@pytest.mark.parametrize("type", BLOCK_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_refuses_what_blocks_cannot_hold(type: GGMLType, bad: float) -> None:
    x = np.ones((2, 256), np.float32)
    x[1, 200] = bad
    with pytest.raises(ValueError, match=f"{type.name} cannot hold NaN or infinite"):
        quantize(x, type)


# Largest error of one weight, in units of the largest weight of its block: half a step, where a
# step is 1/8, 1/15 of the range (at most 2), 1/127 of it and so on, plus the rounding of the scale
# to f16.
# The top step of Q4_0, Q5_0 and Q6_K is cut off (+8 becomes +7): a whole step.
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("Q4_0", 1 / 8),
        ("Q4_1", 1 / 15),
        ("Q5_0", 1 / 16),
        ("Q5_1", 1 / 31),
        ("Q8_0", 0.5 / 127),
        ("Q6_K", 1.3 / 32),
    ],
)
def test_round_trip_error(name: str, bound: float) -> None:
    type = GGMLType[name]
    x = weights(type, n_blocks=40)[[0, 1, 2, 4]]
    found = dequantize(quantize(x, type), type)
    blocks = x.reshape(-1, BLOCK[type][0])
    error = np.abs(found - x).reshape(blocks.shape)
    assert (error <= (bound + 1e-3) * np.abs(blocks).max(axis=1, keepdims=True)).all()


def test_q6_k_is_a_good_encoding() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(64, 1024)).astype(np.float32)
    found = dequantize(quantize(x, GGMLType.Q6_K), GGMLType.Q6_K)
    assert np.sqrt(np.mean((found - x) ** 2)) < 0.02  # measured: 0.0186
    # What Q6_K can hold exactly comes back exactly: d 1/4, scales and steps of full range.
    q = rng.integers(-32, 32, (8, 16, 16))
    scales = rng.integers(-128, 128, (8, 16))
    q[:, :, 3] = -32
    scales[:, 5] = -128
    exact = (q * scales[:, :, None] * np.float32(0.25)).astype(np.float32).reshape(8, 256)
    np.testing.assert_array_equal(dequantize(quantize(exact, GGMLType.Q6_K), GGMLType.Q6_K), exact)


def test_q6_k_extremes() -> None:
    x = np.zeros((4, 256), np.float32)
    assert not dequantize(quantize(x, GGMLType.Q6_K), GGMLType.Q6_K).any()
    x[1, 7] = 1e-7  # the scale rounds to 0 in f16
    x[2, 7] = 1e30  # the scale overflows f16
    x[3, 7] = 1e-40  # its inverse overflows
    found = dequantize(quantize(x, GGMLType.Q6_K), GGMLType.Q6_K)
    assert not found[[0, 1, 3]].any()
    assert not np.isfinite(found[2]).all()


@pytest.mark.parametrize("type", ENCODED, ids=lambda t: t.name)
def test_rows_are_independent_and_any_layout_is_read(type: GGMLType) -> None:
    """Enough rows for several chunks, a last chunk that is short, and strided input."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(301, 512)).astype(np.float32)
    data = quantize(x, type)
    whole = dequantize(data, type)
    assert whole.shape == x.shape
    assert whole.flags.c_contiguous
    assert whole.flags.writeable
    for row in (0, 127, 128, 300):
        np.testing.assert_array_equal(quantize(x[row : row + 1], type), data[row : row + 1])
        np.testing.assert_array_equal(dequantize(data[row : row + 1], type)[0], whole[row])
    np.testing.assert_array_equal(dequantize(data[::-3], type), whole[::-3])
    np.testing.assert_array_equal(quantize(np.asfortranarray(x), type), data)
    read_only = np.frombuffer(data.tobytes(), np.uint8).reshape(data.shape)
    result = dequantize(read_only, type)
    result[:] = 0  # a new array, never a view of the file


@pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
def test_empty(type: GGMLType) -> None:
    for n_rows, n_cols in ((0, 256), (3, 0)):
        data = np.zeros((n_rows, row_bytes(type, n_cols)), np.uint8)
        assert dequantize(data, type).shape == (n_rows, n_cols)
        if type in QUANTIZABLE:
            assert quantize(np.zeros((n_rows, n_cols), np.float32), type).shape == data.shape


def test_errors() -> None:
    with pytest.raises(ValueError, match="type NVFP4 is not supported here, only BF16, F16, F32,"):
        dequantize(np.zeros((1, 36), np.uint8), GGMLType.NVFP4)
    with pytest.raises(ValueError, match=r"type Q4_K is not supported here, only .*Q5_1, Q6_K, Q8"):
        quantize(np.zeros((1, 256), np.float32), GGMLType.Q4_K)
    with pytest.raises(ValueError, match="17 bytes does not divide into Q4_0 blocks of 18"):
        dequantize(np.zeros((1, 17), np.uint8), GGMLType.Q4_0)
    with pytest.raises(ValueError, match="33 weights does not divide"):
        quantize(np.zeros((1, 33), np.float32), GGMLType.Q8_0)
    with pytest.raises(ValueError, match=r"found uint8 \(18,\)"):
        dequantize(np.zeros(18, np.uint8), GGMLType.Q4_0)
    with pytest.raises(ValueError, match="found int8"):
        dequantize(np.zeros((1, 18), np.int8), GGMLType.Q4_0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"found shape \(32,\)"):
        quantize(np.zeros(32, np.float32), GGMLType.Q4_0)
