"""Block formats whose integers point into a table: a NumPy reference, as in `block_formats`.

Source of the layouts: ggml, `src/ggml-common.h` and `src/ggml-quants.c`
(https://github.com/ggml-org/ggml). All numbers are little-endian. Each function takes uint8
[n_blocks, bytes per block], C-contiguous, and returns float32 [n_blocks, weights per block].
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from lariat import _quantize

U8: TypeAlias = npt.NDArray[np.uint8]
F32: TypeAlias = npt.NDArray[np.float32]

# The numbers of four bits of the Open Compute Project's Microscaling Formats v1.0, E2M1, doubled.
_MXFP4_STEPS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def decode_mxfp4(blocks: U8) -> F32:
    """A byte e, 16 bytes of nibbles q as in Q4_0: weight = 2^(e - 128) steps[q].

    The steps are twice the format's numbers, so that they are whole.
    """
    scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    q = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    return scale * _MXFP4_STEPS[q]


# Types of 256 weights in a block. The integers of IQ types are indices of points of a grid: 8 or 4
# digits, which stand for magnitudes.

_MAGNITUDES = {
    "IQ2": np.array([8, 25, 43], np.float32),
    "IQ3_XXS": np.array([4, 12, 20, 28, 36, 44, 52, 62], np.float32),
    "IQ3_S": np.array([1, 3, 5, 7, 9, 11, 13, 15], np.float32),
    "IQ1": np.array([-1, 0, 1], np.float32),
}
_EIGHT = np.arange(8, dtype=np.uint8)


def _f16(fields: U8) -> F32:
    """uint8 [n_blocks, 2] -> float32 [n_blocks, 1]"""
    return np.ascontiguousarray(fields).view("<f2").astype(np.float32)


def _words(fields: U8, dtype: str) -> npt.NDArray[np.uint32]:
    """Bytes of every block as whole numbers of 2 or 4 bytes: uint32 [n_blocks, n]."""
    return np.ascontiguousarray(fields).view(dtype).astype(np.uint32)


def _nibbles(fields: U8) -> U8:
    """The low nibble of each byte, then the high one: uint8 [n_blocks, 2 n]."""
    return np.stack([fields & 15, fields >> 4], axis=2).reshape(len(fields), -1)


def _bits_of(fields: npt.NDArray[Any], n_bits: int, n_fields: int) -> npt.NDArray[np.uint32]:
    """n_fields numbers of n_bits of each word, the lowest first: [n_blocks, n_words * n_fields]."""
    shifts = np.arange(n_fields, dtype=np.uint32) * np.uint32(n_bits)
    wide = fields.astype(np.uint32)[:, :, None] >> shifts
    return (wide & np.uint32((1 << n_bits) - 1)).reshape(len(fields), -1)


def _points(grid: str, magnitudes: str, index: npt.NDArray[Any]) -> F32:
    """Magnitudes of 256 weights of each block."""
    values: F32 = _MAGNITUDES[magnitudes][_quantize.grid(grid)[index]]
    return values.reshape(len(index), 256)


def _signs(bits: npt.NDArray[Any]) -> F32:
    """32 numbers of 8 bits of each block -> 1 or -1 for 256 weights."""
    minus = bits.astype(np.uint8)[:, :, None] >> _EIGHT & 1
    return np.where(minus, np.float32(-1), np.float32(1)).reshape(len(bits), 256)


def _even_signs(seven: npt.NDArray[Any]) -> F32:
    """As before, of 7 bits; the eighth makes the number of minus signs even."""
    low = seven.astype(np.uint8)
    parity = np.bitwise_xor.reduce(low[:, :, None] >> _EIGHT & 1, axis=2)
    return _signs(low | parity << 7)


def _scaled(d: F32, factors: npt.NDArray[Any], weights: F32) -> F32:
    """d [n_blocks, 1] times the factors of equal runs of the weights, times these."""
    scales = (d * factors.astype(np.float32))[:, :, None]
    product: F32 = scales * weights.reshape(len(d), factors.shape[1], -1)
    return product.reshape(len(d), 256)


def decode_iq2_xxs(blocks: U8) -> F32:
    """f16 d, and for each 32 weights 4 indices, 4 times 7 bits of signs and 4 bits of a scale.

    weight = d (scale + 1/2) / 4 point sign.
    """
    parts = _words(blocks[:, 2:], "<u4")
    index = np.ascontiguousarray(parts[:, ::2].astype("<u4")).view(np.uint8)
    signs = _even_signs(_bits_of(parts[:, 1::2], 7, 4))
    scales = (parts[:, 1::2] >> 28) + np.float32(0.5)
    return _scaled(_f16(blocks[:, :2]), scales / 4, _points("IQ2_XXS", "IQ2", index) * signs)


def decode_iq2_xs(blocks: U8) -> F32:
    """f16 d, 32 words of a 9-bit index and 7 bits of signs, 16 nibbles of scales; as IQ2_XXS."""
    words = _words(blocks[:, 2:66], "<u2")
    points = _points("IQ2_XS", "IQ2", words & 511)
    scales = _nibbles(blocks[:, 66:]) + np.float32(0.5)
    return _scaled(_f16(blocks[:, :2]), scales / 4, points * _even_signs(words >> 9))


def decode_iq2_s(blocks: U8) -> F32:
    """f16 d, 32 bytes of indices, 32 of signs, 8 of 2 bits more for each index, 8 of scales.

    A nibble is a scale; otherwise as IQ2_XXS.
    """
    index = blocks[:, 2:34] | _bits_of(blocks[:, 66:74], 2, 4) << 8
    points = _points("IQ2_S", "IQ2", index) * _signs(blocks[:, 34:66])
    scales = _nibbles(blocks[:, 74:]) + np.float32(0.5)
    return _scaled(_f16(blocks[:, :2]), scales / 4, points)


def decode_iq3_xxs(blocks: U8) -> F32:
    """f16 d, 64 indices, and for each 32 weights 4 times 7 bits of signs and 4 bits of a scale.

    weight = d (scale + 1/2) / 2 point sign.
    """
    rest = _words(blocks[:, 66:], "<u4")
    points = _points("IQ3_XXS", "IQ3_XXS", blocks[:, 2:66]) * _even_signs(_bits_of(rest, 7, 4))
    return _scaled(_f16(blocks[:, :2]), ((rest >> 28) + np.float32(0.5)) / 2, points)


def decode_iq3_s(blocks: U8) -> F32:
    """f16 d, 64 bytes of indices, 8 of a bit more for each, 32 of signs, 8 nibbles of scales.

    weight = d (2 scale + 1) point sign; a scale serves 32 weights.
    """
    index = blocks[:, 2:66] | _bits_of(blocks[:, 66:74], 1, 8) << 8
    points = _points("IQ3_S", "IQ3_S", index) * _signs(blocks[:, 74:106])
    return _scaled(_f16(blocks[:, :2]), 2 * _nibbles(blocks[:, 106:]) + 1, points)


def decode_iq1_s(blocks: U8) -> F32:
    """f16 d, 32 bytes of indices, and for each 32 weights a word.

    The word has 3 bits more for each index, 3 of a scale and one that makes delta negative.
    weight = d (2 scale + 1) (point + delta), delta = 1/8.
    """
    words = _words(blocks[:, 34:], "<u2")
    points = _points("IQ1_S", "IQ1", blocks[:, 2:34] | _bits_of(words, 3, 4) << 8)
    delta = np.where(words >> 15, np.float32(-0.125), np.float32(0.125))
    shifted = points.reshape(-1, 8, 32) + delta[:, :, None]
    return _scaled(_f16(blocks[:, :2]), 2 * (words >> 12 & 7) + 1, shifted)


def decode_iq1_m(blocks: U8) -> F32:
    """32 bytes of indices, a nibble for each, 4 words.

    A nibble has 3 bits more for the index and one that makes the delta of 8 weights negative. A
    word has four scales of 3 bits, of 16 weights each, and the next 4 bits of the f16 d. Otherwise
    as IQ1_S.
    """
    nibbles, words = _nibbles(blocks[:, 32:48]), _words(blocks[:, 48:], "<u2")
    points = _points("IQ1_S", "IQ1", blocks[:, :32] | (nibbles & 7).astype(np.uint32) << 8)
    delta = np.where(nibbles >> 3, np.float32(-0.125), np.float32(0.125))
    shifted = points.reshape(-1, 32, 8) + delta[:, :, None]
    return _scaled(_f16(scales_of_iq1_m(blocks)), 2 * _bits_of(words, 3, 4) + 1, shifted)


def scales_of_iq1_m(blocks: U8) -> U8:
    """The f16 d of each block, uint8 [n_blocks, 2]: the upper 4 bits of its four words."""
    quarters = _words(blocks[:, 48:56], "<u2") >> 12
    whole = np.bitwise_or.reduce(quarters << np.array([0, 4, 8, 12], np.uint32), axis=1)
    return whole.astype("<u2")[:, None].view(np.uint8)


def decode_tq1_0(blocks: U8) -> F32:
    """48 and 4 bytes of digits of base 3, f16 d: weight = d (digit - 1).

    Digit n of a byte q is the whole part of 3 f, f being the fraction of 3^n q / 256. Digits stand
    in the order of n for 32 bytes, 16 bytes and (four digits only) 4 bytes.
    """
    powers = np.array([1, 3, 9, 27, 81], np.uint8)
    parts = []
    for start, end, n_digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        fractions = blocks[:, None, start:end] * powers[:n_digits, None]  # modulo 256
        parts.append((fractions.astype(np.uint16) * 3 >> 8).reshape(len(blocks), -1))
    return _f16(blocks[:, 52:]) * (np.concatenate(parts, axis=1).astype(np.float32) - 1)


def decode_tq2_0(blocks: U8) -> F32:
    """64 bytes of 2 bits q, f16 d: weight = d (q - 1). Bits 2p of 32 bytes are 32 weights."""
    q = blocks[:, :64].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return _f16(blocks[:, 64:]) * (q.reshape(len(blocks), 256).astype(np.float32) - 1)
