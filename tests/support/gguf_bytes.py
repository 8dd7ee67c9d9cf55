"""GGUF files put together byte by byte, because the `gguf` package does not write wrong ones."""

from __future__ import annotations

import struct
from typing import Any

from lariat.formats.block_formats import GGMLType

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALARS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
SCALARS |= {U64: "Q", I64: "q", F64: "d"}


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def text(s: str | bytes) -> bytes:
    raw = s.encode() if isinstance(s, str) else s
    return u64(len(raw)) + raw


def payload(value_type: int, value: Any) -> bytes:
    """A value without its type; arrays are (type of the elements, list)."""
    if value_type == STRING:
        return text(value)
    if value_type == ARRAY:
        inner, items = value
        return u32(inner) + u64(len(items)) + b"".join(payload(inner, item) for item in items)
    return struct.pack("<" + SCALARS[value_type], value)


def entry(key: str | bytes, value_type: int, value: Any) -> bytes:
    return text(key) + u32(value_type) + payload(value_type, value)


def tensor(
    name: str | bytes = "t",
    dims: tuple[int, ...] = (8,),
    type: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """A line of the tensor table. dims: as in the file, the length of a row first."""
    count = len(dims) if n_dims is None else n_dims
    return text(name) + u32(count) + b"".join(map(u64, dims)) + u32(type) + u64(offset)


def build(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    version: int = 3,
    n_entries: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    entries, tensors = entries or [], tensors or []
    head = b"GGUF" + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(entries) if n_entries is None else n_entries)
    head += b"".join(entries) + b"".join(tensors)
    if data:
        head += bytes(-len(head) % alignment)
    return head + data


# fmt: off
EXPECTED = {
    "a.u8": (U8, 255), "a.i8": (I8, -128), "a.u16": (U16, 65535), "a.i16": (I16, -32768),
    "a.u32": (U32, 2**32 - 1), "a.i32": (I32, -(2**31)), "a.u64": (U64, 2**64 - 1),
    "a.i64": (I64, -(2**63)), "a.f32": (F32, 0.5), "a.f64": (F64, 1e300),
    "a.yes": (BOOL, True), "a.no": (BOOL, False), "a.string": (STRING, "grüße"),
}
# fmt: on
ONE_OF_EACH = [entry(key, value_type, value) for key, (value_type, value) in EXPECTED.items()] + [
    entry("b.numbers", ARRAY, (I32, [1, -2, 3])),
    entry("b.bools", ARRAY, (BOOL, [1, 0, 1])),
    entry("b.strings", ARRAY, (STRING, ["", "a", "日本", "x\0y"])),
    entry("b.nested", ARRAY, (ARRAY, [(I32, [1, 2]), (STRING, ["z"]), (F64, [])])),
    entry("b.none", ARRAY, (STRING, [])),
]
SMALL = build(
    ONE_OF_EACH,
    [tensor("one", (8,), 0, 0), tensor("two", (32, 2, 3), GGMLType.Q4_0, 32)],
    bytes(range(32)) + bytes(range(108)),
)
