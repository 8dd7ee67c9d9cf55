"""The block formats of ggml: names, sizes, and a NumPy reference of (de)quantization.

A row of weights is cut into blocks; each block holds its own scale (and perhaps minimum) and a few
bits a weight. The functions here are the plain statement of each format, to judge kernels by and
to prepare small tensors; the fast versions are in `engine/simd/`.

Source of the layouts and of the rounding: ggml, `src/ggml-common.h` and `src/ggml-quants.c`
(https://github.com/ggml-org/ggml). A layout comment lists the fields of one block in file order.
All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from lariat.formats import table_formats

U8: TypeAlias = npt.NDArray[np.uint8]
F32: TypeAlias = npt.NDArray[np.float32]
# decode: uint8 [n_blocks, bytes per block] -> float32 [n_blocks, weights per block]; encode is the
# other way round. Both expect C-contiguous input.
_Decode: TypeAlias = Callable[[U8], F32]
_Encode: TypeAlias = Callable[[F32], U8]
_T = TypeVar("_T")


class GGMLType(IntEnum):
    """Type numbers as they stand in GGUF files (`enum ggml_type` in ggml.h)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Numbers that ggml once used and gave up; known so that an error can name them."""

BLOCK: dict[GGMLType, tuple[int, int]] = {
    GGMLType.F32: (1, 4),
    GGMLType.F16: (1, 2),
    GGMLType.Q4_0: (32, 18),
    GGMLType.Q4_1: (32, 20),
    GGMLType.Q5_0: (32, 22),
    GGMLType.Q5_1: (32, 24),
    GGMLType.Q8_0: (32, 34),
    # ggml's block_q8_1 holds two f16 and is 36 bytes; 40 is its older form with two f32. No model
    # file holds either: the type exists for activations in memory.
    GGMLType.Q8_1: (32, 36),
    GGMLType.Q2_K: (256, 84),
    GGMLType.Q3_K: (256, 110),
    GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176),
    GGMLType.Q6_K: (256, 210),
    GGMLType.Q8_K: (256, 292),
    GGMLType.IQ2_XXS: (256, 66),
    GGMLType.IQ2_XS: (256, 74),
    GGMLType.IQ3_XXS: (256, 98),
    GGMLType.IQ1_S: (256, 50),
    GGMLType.IQ4_NL: (32, 18),
    GGMLType.IQ3_S: (256, 110),
    GGMLType.IQ2_S: (256, 82),
    GGMLType.IQ4_XS: (256, 136),
    GGMLType.I8: (1, 1),
    GGMLType.I16: (1, 2),
    GGMLType.I32: (1, 4),
    GGMLType.I64: (1, 8),
    GGMLType.F64: (1, 8),
    GGMLType.IQ1_M: (256, 56),
    GGMLType.BF16: (1, 2),
    GGMLType.TQ1_0: (256, 54),
    GGMLType.TQ2_0: (256, 66),
    GGMLType.MXFP4: (32, 17),
    GGMLType.NVFP4: (64, 36),
    GGMLType.Q1_0: (128, 18),
}
"""Type -> (weights per block, bytes per block)."""

# Weights that are converted at a time: the temporaries stay in the cache and stay small.
_CHUNK_WEIGHTS = 1 << 16


def row_bytes(type: GGMLType, n_cols: int) -> int:
    """Bytes of one row of `n_cols` weights. ValueError if the row is not whole blocks."""
    n_weights, n_bytes = BLOCK[type]
    if n_cols < 0 or n_cols % n_weights:
        raise ValueError(
            f"a row of {n_cols} weights does not divide into {type.name} blocks of {n_weights}"
        )
    return n_cols // n_weights * n_bytes


def dequantize(data: U8, type: GGMLType) -> F32:
    """Weights of rows of blocks.

    data: uint8 [n_rows, row_bytes]; returns float32 [n_rows, n_cols], a new array.
    ValueError if the type is not in `SUPPORTED` or the rows are not whole blocks. Scales that are
    NaN or Inf in the file come out as such.
    """
    decode = _known(type, _DECODERS)
    n_weights, n_bytes = BLOCK[type]
    if data.ndim != 2 or data.dtype != np.uint8:
        raise ValueError(f"expected bytes [n_rows, row_bytes], found {data.dtype} {data.shape}")
    n_rows, n_row_bytes = data.shape
    if n_row_bytes % n_bytes:
        raise ValueError(
            f"a row of {n_row_bytes} bytes does not divide into {type.name} blocks of {n_bytes}"
        )
    n_blocks = n_row_bytes // n_bytes
    out = np.empty((n_rows, n_blocks * n_weights), np.float32)
    if not out.size:
        return out
    step = max(1, _CHUNK_WEIGHTS // out.shape[1])
    with np.errstate(all="ignore"):
        for row in range(0, n_rows, step):
            blocks = np.ascontiguousarray(data[row : row + step]).reshape(-1, n_bytes)
            out[row : row + step] = decode(blocks).reshape(-1, out.shape[1])
    return out


def quantize(x: npt.ArrayLike, type: GGMLType) -> U8:
    """Rows of blocks from weights, rounded as ggml's reference does.

    x: float32 [n_rows, n_cols]; returns uint8 [n_rows, row_bytes].
    ValueError if the type is not in `QUANTIZABLE`, the rows are not whole blocks, or a block format
    is asked to hold NaN or Inf, which it cannot.
    """
    encode = _known(type, _ENCODERS)
    n_weights = BLOCK[type][0]
    weights = np.asarray(x, np.float32)
    if weights.ndim != 2:
        raise ValueError(f"expected weights [n_rows, n_cols], found shape {weights.shape}")
    n_rows, n_cols = weights.shape
    out = np.empty((n_rows, row_bytes(type, n_cols)), np.uint8)
    if not out.size:
        return out
    step = max(1, _CHUNK_WEIGHTS // n_cols)
    with np.errstate(all="ignore"):
        for row in range(0, n_rows, step):
            blocks = np.ascontiguousarray(weights[row : row + step]).reshape(-1, n_weights)
            if n_weights > 1 and not np.isfinite(blocks).all():
                raise ValueError(f"{type.name} cannot hold NaN or infinite weights")
            out[row : row + step] = encode(blocks).reshape(-1, out.shape[1])
    return out


def _known(type: GGMLType, table: dict[GGMLType, _T]) -> _T:
    try:
        return table[type]
    except KeyError:
        names = ", ".join(sorted(t.name for t in table))
        name = getattr(type, "name", repr(type))
        raise ValueError(f"type {name} is not supported here, only {names} are") from None


def _f16(fields: U8) -> F32:
    """The f16 in two bytes of every block: uint8 [n_blocks, 2] -> float32 [n_blocks, 1]."""
    return np.ascontiguousarray(fields).view("<f2").astype(np.float32)


def _bytes(values: npt.NDArray[Any], dtype: str) -> U8:
    """float32 [n_blocks, n] -> the same numbers as `dtype`, as bytes [n_blocks, n * itemsize]."""
    return np.ascontiguousarray(values.astype(dtype)).view(np.uint8)


def _inverse(scale: F32) -> F32:
    """1 / scale, and 0 where scale is 0: a block of zeros then encodes as zeros."""
    return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _unpack_nibbles(packed: U8) -> U8:
    """16 bytes -> 32 numbers: the low nibbles are weights 0..15, the high ones 16..31."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _pack_nibbles(values: U8) -> U8:
    half = values.shape[1] // 2
    return values[:, :half] | (values[:, half:] << np.uint8(4))


def _decode_f32(blocks: U8) -> F32:
    return blocks.view("<f4").astype(np.float32, copy=False)


def _encode_f32(weights: F32) -> U8:
    return _bytes(weights, "<f4")


def _decode_f16(blocks: U8) -> F32:
    return _f16(blocks)


def _encode_f16(weights: F32) -> U8:
    return _bytes(weights, "<f2")


def _decode_bf16(blocks: U8) -> F32:
    """bf16 is the upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _encode_bf16(weights: F32) -> U8:
    """Round to nearest, ties to even. NaN is made quiet and kept from rounding up to Inf."""
    bits = weights.view(np.uint32)
    upper = bits >> 16
    # Adding just under half, plus the lowest bit that stays, carries into the upper half exactly
    # when rounding goes up. Only bit patterns of NaN could wrap around.
    rounded = (bits + (np.uint32(0x7FFF) + (upper & 1))) >> 16
    return _bytes(np.where(np.isnan(weights), upper | 64, rounded), "<u2")


def _decode_q4_0(blocks: U8) -> F32:
    """f16 d, 16 bytes of nibbles q: weight = d (q - 8)."""
    q = _unpack_nibbles(blocks[:, 2:]).astype(np.float32)
    return _f16(blocks[:, :2]) * (q - 8)


def _encode_q4_0(weights: F32) -> U8:
    """The weight of largest magnitude becomes exactly -8 d, so d takes its sign, negated."""
    largest = np.abs(weights).argmax(axis=1)[:, None]
    d = np.take_along_axis(weights, largest, axis=1) / np.float32(-8)
    q = np.trunc(weights * _inverse(d) + np.float32(8.5)).astype(np.uint8)
    return np.concatenate([_bytes(d, "<f2"), _pack_nibbles(np.minimum(q, 15))], axis=1)


def _decode_q4_1(blocks: U8) -> F32:
    """f16 d, f16 m, 16 bytes of nibbles q: weight = d q + m."""
    q = _unpack_nibbles(blocks[:, 4:]).astype(np.float32)
    return _f16(blocks[:, :2]) * q + _f16(blocks[:, 2:4])


def _encode_q4_1(weights: F32) -> U8:
    """The 16 steps run from the smallest weight to the largest."""
    low = weights.min(axis=1, keepdims=True)
    d = (weights.max(axis=1, keepdims=True) - low) / np.float32(15)
    q = np.trunc((weights - low) * _inverse(d) + np.float32(0.5)).astype(np.uint8)
    packed = _pack_nibbles(np.minimum(q, 15))
    return np.concatenate([_bytes(d, "<f2"), _bytes(low, "<f2"), packed], axis=1)


def _unpack_bit_4(packed: U8) -> U8:
    """4 bytes -> 32 numbers 0 or 16: bit i of the 32-bit number belongs to weight i."""
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    return np.left_shift(bits, 4, dtype=np.uint8)


def _pack_bit_4(values: U8) -> U8:
    return np.packbits(values >> 4, axis=1, bitorder="little")


def _decode_q5_0(blocks: U8) -> F32:
    """f16 d, 4 bytes with bit 4 of every q, 16 bytes of nibbles: weight = d (q - 16)."""
    q = (_unpack_nibbles(blocks[:, 6:]) | _unpack_bit_4(blocks[:, 2:6])).astype(np.float32)
    return _f16(blocks[:, :2]) * (q - 16)


def _encode_q5_0(weights: F32) -> U8:
    """As Q4_0: the weight of largest magnitude becomes exactly -16 d."""
    largest = np.abs(weights).argmax(axis=1)[:, None]
    d = np.take_along_axis(weights, largest, axis=1) / np.float32(-16)
    q = np.trunc(weights * _inverse(d) + np.float32(16.5)).astype(np.uint8)
    q = np.minimum(q, 31)
    return np.concatenate([_bytes(d, "<f2"), _pack_bit_4(q), _pack_nibbles(q & 15)], axis=1)


def _decode_q5_1(blocks: U8) -> F32:
    """f16 d, f16 m, 4 bytes with bit 4 of every q, 16 bytes of nibbles: weight = d q + m."""
    q = (_unpack_nibbles(blocks[:, 8:]) | _unpack_bit_4(blocks[:, 4:8])).astype(np.float32)
    return _f16(blocks[:, :2]) * q + _f16(blocks[:, 2:4])


def _encode_q5_1(weights: F32) -> U8:
    """The 32 steps run from the smallest weight to the largest."""
    low = weights.min(axis=1, keepdims=True)
    d = (weights.max(axis=1, keepdims=True) - low) / np.float32(31)
    q = np.trunc((weights - low) * _inverse(d) + np.float32(0.5)).astype(np.uint8)
    packed = [_pack_bit_4(q), _pack_nibbles(q & 15)]
    return np.concatenate([_bytes(d, "<f2"), _bytes(low, "<f2"), *packed], axis=1)


# ggml's kvalues_iq4nl: denser around zero, where most weights are.
_IQ4_NL_STEPS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def _decode_iq4_nl(blocks: U8) -> F32:
    """f16 d, 16 bytes of nibbles q as in Q4_0: weight = d steps[q]."""
    return _f16(blocks[:, :2]) * _IQ4_NL_STEPS[_unpack_nibbles(blocks[:, 2:])]


def _decode_q8_0(blocks: U8) -> F32:
    """f16 d, 32 int8 q: weight = d q."""
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _f16(blocks[:, :2])


def _encode_q8_0(weights: F32) -> U8:
    """Halves round away from zero, as C's roundf does and NumPy's rint does not."""
    d = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    scaled = weights * _inverse(d)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    # The fraction is exact, so comparing it with a half cannot round, unlike floor(x + 0.5).
    whole += magnitude - whole >= np.float32(0.5)
    return np.concatenate([_bytes(d, "<f2"), _bytes(np.copysign(whole, scaled), "i1")], axis=1)


# The K types: blocks of 256 weights in parts of 16 or 32 with scales of their own, small integers
# that are multiples of one f16.


def _two_bits(packed: U8) -> U8:
    """64 bytes -> [n_blocks, 8, 32]: bits 2p of the 32 bytes of half h belong to part 4h + p."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 8, 32)


def _one_bit(packed: U8) -> U8:
    """32 bytes -> [n_blocks, 8, 32]: bit p belongs to part p."""
    return (packed[:, None] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)


def _nibble_pairs(packed: U8) -> U8:
    """128 bytes -> [n_blocks, 8, 32]: of each 32, low nibbles are a part, high ones the next."""
    pairs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)


def _scaled(blocks: U8, at: int, factors: npt.NDArray[Any]) -> F32:
    """The f16 at byte `at` of each block times its factors -> [n_blocks, n_factors, 1]."""
    product: F32 = _f16(blocks[:, at : at + 2]) * factors.astype(np.float32)
    return product[:, :, None]


def _six_bit_pairs(packed: U8) -> tuple[U8, U8]:
    """12 bytes of Q4_K and Q5_K -> 8 scales, 8 minimums.

    Bytes 0..3 are scales 0..3 and bytes 4..7 minimums 0..3, each with 2 bits of number i + 4 on
    top; bytes 8..11 have the low nibbles of scales 4..7 and, above, of minimums 4..7.
    """
    d, m, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([d & 63, (low & 15) | (d >> 6 << 4)], axis=1)
    minimums = np.concatenate([m & 63, (low >> 4) | (m >> 6 << 4)], axis=1)
    return scales, minimums


def _decode_q2_k(blocks: U8) -> F32:
    """16 bytes (scale, minimum in nibbles), 64 bytes of 2 bits q, f16 d, f16 dmin.

    weight = d scale q - dmin minimum; a scale serves 16 weights.
    """
    q = _two_bits(blocks[:, 16:80]).reshape(-1, 16, 16)
    scales, minimums = blocks[:, :16] & 15, blocks[:, :16] >> 4
    weights: F32 = _scaled(blocks, 80, scales) * q - _scaled(blocks, 82, minimums)
    return weights.reshape(-1, 256)


def _decode_q3_k(blocks: U8) -> F32:
    """32 bytes of bit 2 of q, 64 bytes of its bits 0 and 1, 12 bytes of scales, f16 d.

    weight = d (scale - 32) (q - 4); a scale of 6 bits serves 16 weights. Scale i has 4 bits in
    nibble i / 8 of byte i % 8, and 2 at bit 2 (i / 4) of byte 8 + i % 4.
    """
    q = _two_bits(blocks[:, 32:96]) | (_one_bit(blocks[:, :32]) << 2)
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = (packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scales = (low | (high.reshape(-1, 16) << 4)).view(np.int8) - np.int8(32)
    steps = q.reshape(-1, 16, 16).view(np.int8) - np.int8(4)
    weights: F32 = _scaled(blocks, 108, scales) * steps
    return weights.reshape(-1, 256)


def _decode_q4_k(blocks: U8) -> F32:
    """f16 d, f16 dmin, 12 bytes of scales and minimums, 128 bytes of nibbles q.

    weight = d scale q - dmin minimum; a scale serves 32 weights.
    """
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    q = _nibble_pairs(blocks[:, 16:])
    weights: F32 = _scaled(blocks, 0, scales) * q - _scaled(blocks, 2, minimums)
    return weights.reshape(-1, 256)


def _decode_q5_k(blocks: U8) -> F32:
    """As Q4_K, with 32 bytes of bit 4 of q before the nibbles."""
    scales, minimums = _six_bit_pairs(blocks[:, 4:16])
    q = _nibble_pairs(blocks[:, 48:]) | (_one_bit(blocks[:, 16:48]) << 4)
    weights: F32 = _scaled(blocks, 0, scales) * q - _scaled(blocks, 2, minimums)
    return weights.reshape(-1, 256)


def _decode_q6_k(blocks: U8) -> F32:
    """128 bytes ql, 64 bytes qh, 16 int8 scales, f16 d: weight = d scale (q - 32).

    q has 4 low bits in ql and 2 high bits in qh. A block is two halves of 4 groups of 32 weights:
    in a half, the low nibbles of its 64 bytes of ql are groups 0 and 1, the high ones groups 2
    and 3; bits 2g and 2g + 1 of its 32 bytes of qh belong to group g. A scale serves 16 weights.
    """
    n_blocks = blocks.shape[0]
    ql = blocks[:, :128].reshape(n_blocks, 2, 1, 64)
    qh = blocks[:, 128:192].reshape(n_blocks, 2, 1, 32)
    low = np.concatenate([ql & 15, ql >> 4], axis=2).reshape(n_blocks, 2, 4, 32)
    high = (qh >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    q = (low | (high << 4)).reshape(n_blocks, 16, 16).astype(np.float32) - 32
    scales = _f16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    weights: F32 = scales[:, :, None] * q
    return weights.reshape(n_blocks, 256)


def _decode_iq4_xs(blocks: U8) -> F32:
    """f16 d, 2 and 4 bytes of scales, 128 bytes of nibbles q: weight = d (scale - 32) steps[q].

    A scale of 6 bits serves 32 weights. Scale i has 4 bits in nibble i % 2 of byte i / 2 of the
    four, and 2 at bit 2 i of the two. Each 16 bytes of q are 32 weights, as in IQ4_NL.
    """
    n_blocks = blocks.shape[0]
    packed = blocks[:, 4:8]
    low = np.stack([packed & 15, packed >> 4], axis=2).reshape(n_blocks, 8)
    high = (blocks[:, 2:4, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    scales = (low | (high.reshape(n_blocks, 8) << 4)).view(np.int8) - np.int8(32)
    q = _unpack_nibbles(blocks[:, 8:].reshape(-1, 16)).reshape(n_blocks, 8, 32)
    weights: F32 = _scaled(blocks, 0, scales) * _IQ4_NL_STEPS[q]
    return weights.reshape(n_blocks, 256)


def _nearest(x: F32) -> npt.NDArray[np.int32]:
    """Whole numbers, halves to even, as ggml makes them: the sum has no bits for a fraction."""
    return ((x + np.float32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000


def _search_q6_k(groups: F32) -> tuple[npt.NDArray[np.int32], F32]:
    """[n_blocks, 16, 16] weights -> steps -32 to 31 of each, and scale of each group.

    Of 19 scales around -32 steps for the largest weight, the one of least squared error, each error
    multiplied by its weight squared. Sums are made weight by weight in float32, as ggml makes them.
    """
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)

    def steps(factor: F32) -> npt.NDArray[np.int32]:
        return np.clip(_nearest(factor * groups), -32, 31)

    best_factor = scale = best = np.zeros_like(largest[:, :, 0])
    for i in (0, *range(-9, 0), *range(1, 10)):
        factor = -(np.float32(32) + np.float32(0.1) * np.float32(i)) / largest
        q = steps(factor).astype(np.float32)
        sum_xq, sum_qq = np.zeros_like(scale), np.zeros_like(scale)
        for k in range(16):
            x = groups[:, :, k]
            sum_xq += x * x * x * q[:, :, k]
            sum_qq += x * x * q[:, :, k] * q[:, :, k]
        better = (sum_qq > 0) & (sum_xq * sum_xq > best * sum_qq) | (i == 0)
        fit = np.where(sum_qq != 0, sum_xq / sum_qq, np.float32(0))
        best_factor = np.where(better, factor[:, :, 0], best_factor)
        scale = np.where(better, fit, scale)
        best = np.where(better, fit * sum_xq, best)
    empty = np.abs(largest) < np.float32(1e-15)
    q_best = np.where(empty, -32, steps(best_factor[:, :, None]))
    return q_best, np.where(empty[:, :, 0], np.float32(0), scale)


def _encode_q6_k(weights: F32) -> U8:
    """The largest scale of a block becomes -128 d; steps are then chosen for the stored scales."""
    n_blocks = weights.shape[0]
    groups = weights.reshape(n_blocks, 16, 16)
    steps, scale = _search_q6_k(groups)
    widest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
    inverse = np.float32(-128) / widest
    stored_d = _bytes(1 / inverse, "<f2")
    scales = np.minimum(_nearest(inverse * scale), 127).astype(np.int8)
    d = (_f16(stored_d) * scales.astype(np.float32))[:, :, None]
    # A group whose scale was rounded to zero keeps the steps of the search.
    q = np.where(d != 0, np.clip(_nearest(groups / d), -32, 31), steps)
    q = (q + 32).astype(np.uint8).reshape(n_blocks, 2, 4, 32)
    ql = (q[:, :, :2] & 15) | (q[:, :, 2:] << 4)
    high = (q >> 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    qh = np.bitwise_or.reduce(high, axis=2)
    fields = (ql.reshape(n_blocks, 128), qh.reshape(n_blocks, 64), scales.view(np.uint8), stored_d)
    blocks = np.concatenate(fields, axis=1)
    blocks[np.abs(widest[:, 0]) < 1e-15] = 0
    return blocks


_DECODERS: dict[GGMLType, _Decode] = {
    GGMLType.F32: _decode_f32,
    GGMLType.F16: _decode_f16,
    GGMLType.BF16: _decode_bf16,
    GGMLType.Q4_0: _decode_q4_0,
    GGMLType.Q4_1: _decode_q4_1,
    GGMLType.Q5_0: _decode_q5_0,
    GGMLType.Q5_1: _decode_q5_1,
    GGMLType.Q8_0: _decode_q8_0,
    GGMLType.Q2_K: _decode_q2_k,
    GGMLType.Q3_K: _decode_q3_k,
    GGMLType.Q4_K: _decode_q4_k,
    GGMLType.Q5_K: _decode_q5_k,
    GGMLType.Q6_K: _decode_q6_k,
    GGMLType.IQ4_NL: _decode_iq4_nl,
    GGMLType.IQ4_XS: _decode_iq4_xs,
    GGMLType.MXFP4: table_formats.decode_mxfp4,
    GGMLType.IQ1_M: table_formats.decode_iq1_m,
    GGMLType.IQ1_S: table_formats.decode_iq1_s,
    GGMLType.IQ2_S: table_formats.decode_iq2_s,
    GGMLType.IQ2_XS: table_formats.decode_iq2_xs,
    GGMLType.IQ2_XXS: table_formats.decode_iq2_xxs,
    GGMLType.IQ3_S: table_formats.decode_iq3_s,
    GGMLType.IQ3_XXS: table_formats.decode_iq3_xxs,
    GGMLType.TQ1_0: table_formats.decode_tq1_0,
    GGMLType.TQ2_0: table_formats.decode_tq2_0,
}
_ENCODERS: dict[GGMLType, _Encode] = {
    GGMLType.F32: _encode_f32,
    GGMLType.F16: _encode_f16,
    GGMLType.BF16: _encode_bf16,
    GGMLType.Q4_0: _encode_q4_0,
    GGMLType.Q4_1: _encode_q4_1,
    GGMLType.Q5_0: _encode_q5_0,
    GGMLType.Q5_1: _encode_q5_1,
    GGMLType.Q8_0: _encode_q8_0,
    GGMLType.Q6_K: _encode_q6_k,
}

SUPPORTED: frozenset[GGMLType] = frozenset(_DECODERS)
"""The types that `dequantize` knows, and that a model's matrices may have."""

QUANTIZABLE: frozenset[GGMLType] = frozenset(_ENCODERS)
"""The types that `quantize` knows."""
