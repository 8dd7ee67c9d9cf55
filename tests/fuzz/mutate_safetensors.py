"""Changes safetensors files of the engine: saved contexts, chunks, predictions to compare with.

One thing in the header or the data is changed. Then the checksum is corrected, because a hostile
writer would do the same.
"""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import numpy as np
from lariat.formats import chunk_file, context_file, safetensors_io

_DTYPES = {"U8": "u1", "I8": "i1", "U16": "<u2", "F16": "<f2", "I32": "<i4", "F32": "<f4"}
_DTYPES |= {"I64": "<i8", "F64": "<f8", "BOOL": "?", "U32": "<u4"}
_WHOLE = (
    *(-1, 0, 1, 2, 3, 31, 32, 33, 255, 256, 319, 320, 1 << 15, 1 << 16, (1 << 31) - 1, -(1 << 31)),
    *(1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
_METADATA = ("format", "version", "model", "cache", "type_k", "type_v", "rope", "checksum")
_NUMBERS = tuple(
    bytes.fromhex(text)
    for text in ("00000000", "ffffffff", "ffffff7f", "00000080", "20000000", "1f000000", "01000000")
)


def mutate(data: bytes, type: str, rng: random.Random) -> bytes:
    """Change one thing of a file of this type ("context", "chunk", "base")."""
    parts = _read(data)
    what = rng.random()
    if parts is None or what < 0.05:
        at = rng.randrange(len(data) + 1)
        return data[:at] if rng.random() < 0.5 else data[:at] + rng.randbytes(4) + data[at + 4 :]
    header, blob = parts
    if what < 0.5:
        _change_header(header, rng)
    else:
        blob = _change_data(header, blob, rng)
    if rng.random() < 0.9:
        _make_right(header, blob, type)
    text = json.dumps(header).encode()
    if rng.random() < 0.02:  # two readers may understand this differently
        text = text.replace(b'"shape"', b'"shape": [1], "shape"', 1)
    text += b" " * (-(len(text) + 8) % (4096 if rng.random() < 0.5 else 8))
    return struct.pack("<Q", len(text)) + text + blob


def _change_header(header: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice([*header])
    value = header[name]
    what = rng.randrange(7)
    if name == "__metadata__" and isinstance(value, dict):
        key = rng.choice((*_METADATA, "x"))
        value[key] = rng.choice(("", "1", "raw", "roped", "f16", "q8_ch", "\x1b[2J\n", "A" * 5000))
        if what == 0:
            del value[key]
    elif not isinstance(value, dict) or not {"shape", "dtype", "data_offsets"} <= set(value):
        del header[name]
    elif what == 0:
        value["dtype"] = rng.choice((*_DTYPES, "F8_E5M2", "x"))
    elif what == 1 and value["shape"]:
        value["shape"][rng.randrange(len(value["shape"]))] = rng.choice(_WHOLE)
    elif what == 2:
        shape = value["shape"]
        value["shape"] = rng.choice(
            ([*shape, 1], shape[:-1], shape[::-1], [1, *shape], [0, *shape])
        )
    elif what == 3:
        value["data_offsets"][rng.randrange(2)] = rng.choice(_WHOLE)
    elif what == 4:
        del header[name]
    elif what == 5:
        other = rng.choice([*header])
        header[name], header[other] = header[other], header[name]
    else:
        header[rng.choice(("x", "tokens", "open", "sink", "\x1b"))] = value


def _change_data(header: dict[str, Any], blob: bytes, rng: random.Random) -> bytes:
    """Change numbers, most often those of the small tensors, which are places of other things."""
    spans = [v["data_offsets"] for k, v in header.items() if k != "__metadata__" and _is_tensor(v)]
    spans = [(a, b) for a, b in spans if 0 <= a < b <= len(blob)]
    if not spans:
        return blob
    start, end = min(rng.sample(spans, min(2, len(spans))), key=lambda span: span[1] - span[0])
    out = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = start + (rng.randrange(end - start) & ~3)
        number = rng.choice(
            (*_NUMBERS, struct.pack("<i", rng.randrange(-4, 400)), rng.randbytes(4))
        )
        out[at : min(at + 4, end)] = number[: max(0, min(4, end - at))]
    return bytes(out)


def _make_right(header: dict[str, Any], blob: bytes, type: str) -> None:
    """Correct the checksum, if the engine's own function can compute it."""
    metadata = header.get("__metadata__")
    if type == "base" or not isinstance(metadata, dict):
        return
    try:
        arrays = {}
        for name, value in header.items():
            if name != "__metadata__":
                start, end = value["data_offsets"]
                data = np.frombuffer(blob[start:end], _DTYPES[value["dtype"]])
                arrays[name] = data.reshape(value["shape"])
        names = context_file.TENSORS if type == "context" else chunk_file.TENSORS
        metadata["checksum"] = safetensors_io.checksum({name: arrays[name] for name in names})
    except (KeyError, ValueError, TypeError):
        pass  # it is refused before its checksum is checked


def _is_tensor(value: Any) -> bool:
    offsets = value.get("data_offsets") if isinstance(value, dict) else None
    return (
        isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int for at in offsets)
    )


def _read(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    try:
        n = struct.unpack_from("<Q", data)[0]
        header = json.loads(data[8 : 8 + n])
    except (struct.error, ValueError, OverflowError, RecursionError):
        return None
    return (header, data[8 + n :]) if isinstance(header, dict) and header else None
