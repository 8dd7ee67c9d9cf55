"""Whether all weights of a file are finite numbers.

A file may have been damaged on its way, or its training or quantization may have gone wrong. Then
weights, or the scales of their blocks, are NaN or Inf. The integers of a block can be anything.
Only reading everything finds it. NumPy compares bits with those of infinity, in pieces that stay
in the cache, with several threads: 9 GB/s for a file that the system has in its cache, most of
which is the time to map its pages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from lariat.errors import GGUFError, quote
from lariat.formats import table_formats
from lariat.formats.block_formats import BLOCK, GGMLType
from lariat.formats.gguf import GGUFFile

_PIECE = 1 << 24  # bytes of a task
_STEP = 1 << 20  # bytes at a time, so that NumPy's intermediate results stay in the cache

# For each format of numbers: the unsigned integer of its bits, all bits but the sign, infinity.
_F16, _BF16 = ("<u2", 0x7FFF, 0x7C00), ("<u2", 0x7FFF, 0x7F80)
_F32 = ("<u4", 0x7FFF_FFFF, 0x7F80_0000)
NUMBERS: dict[GGMLType, tuple[tuple[str, int, int], tuple[int, ...]]] = {
    GGMLType.F32: (_F32, (0,)),
    GGMLType.F16: (_F16, (0,)),
    GGMLType.BF16: (_BF16, (0,)),
    GGMLType.Q4_0: (_F16, (0,)),
    GGMLType.Q4_1: (_F16, (0, 2)),
    GGMLType.Q5_0: (_F16, (0,)),
    GGMLType.Q5_1: (_F16, (0, 2)),
    GGMLType.Q8_0: (_F16, (0,)),
    GGMLType.Q2_K: (_F16, (80, 82)),
    GGMLType.Q3_K: (_F16, (108,)),
    GGMLType.Q4_K: (_F16, (0, 2)),
    GGMLType.Q5_K: (_F16, (0, 2)),
    GGMLType.Q6_K: (_F16, (208,)),
    GGMLType.IQ4_NL: (_F16, (0,)),
    GGMLType.IQ4_XS: (_F16, (0,)),
    GGMLType.IQ3_S: (_F16, (0,)),
    GGMLType.IQ3_XXS: (_F16, (0,)),
    GGMLType.IQ2_S: (_F16, (0,)),
    GGMLType.IQ2_XS: (_F16, (0,)),
    GGMLType.IQ2_XXS: (_F16, (0,)),
    GGMLType.IQ1_S: (_F16, (0,)),
    GGMLType.IQ1_M: (_F16, ()),  # its scale lies in four pieces
    GGMLType.TQ1_0: (_F16, (52,)),
    GGMLType.TQ2_0: (_F16, (64,)),
    GGMLType.MXFP4: (_F16, ()),  # any byte is a finite exponent
}
"""Format and offsets of the numbers in a block of each type; `block_formats` has the layouts."""


def check_tensors(
    gguf: GGUFFile, n_threads: int, progress: Callable[[float], None] | None = None
) -> None:
    """Raise a `GGUFError` that names the first tensor in the file with NaN or Inf in it.

    Types that the engine does not run are left out, because loading refuses them. `progress` is
    called with the share that is done, 0 to 1.
    """
    from concurrent.futures import ThreadPoolExecutor  # takes 5 ms, and few processes need it

    todo = [info for info in gguf.tensors.values() if info.type in NUMBERS]
    total, done = max(1, sum(info.n_bytes for info in todo)), 0
    with ThreadPoolExecutor(n_threads) as pool:
        for info in todo:
            data, block = gguf.data(info.name).reshape(-1), BLOCK[info.type][1]
            size = _PIECE // block * block
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            for piece, found in zip(
                pieces, pool.map(lambda piece, t=info.type: _fault(piece, t), pieces), strict=True
            ):
                if found:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise GGUFError(
                        f"{gguf.path}: tensor {quote(info.name)} holds {found}, "
                        f"expected finite numbers; the file is damaged"
                    )
                done += len(piece)
                if progress:
                    progress(done / total)
            gguf.release(info.name)


def _fault(blocks: npt.NDArray[np.uint8], type: GGMLType) -> str:
    """The first number in whole blocks that is not finite: "NaN", "Inf", or "" for none."""
    if type == GGMLType.IQ1_M:
        blocks = table_formats.scales_of_iq1_m(blocks.reshape(-1, BLOCK[type][1])).reshape(-1)
        type = GGMLType.F16
    (bits, magnitude, infinity), offsets = NUMBERS[type]
    n_bytes = BLOCK[type][1]
    if not offsets:
        return ""
    fields = [str(at) for at in offsets]
    dtype = np.dtype(
        {"names": fields, "formats": [bits] * len(fields), "offsets": offsets, "itemsize": n_bytes}
    )
    step = _STEP // n_bytes
    for values in (blocks.view(dtype)[field] for field in fields):
        for at in range(0, len(values), step):
            largest = (values[at : at + step] & values.dtype.type(magnitude)).max()
            if largest >= infinity:
                return "NaN" if largest > infinity else "Inf"
    return ""
