"""Contexts in files: tokens, positions, keys and values.

A safetensors file with the tensors
    tokens        int32 [n_tokens]
    segments      int32 [n_segments, 3], see `lariat.formats.segments`. Attention sums segment by
                  segment, so the same segments give the same bits again
    keys, values  [n_layers, n_tokens, n_kv_heads, head_dim], f16 or f32 as in the cache; RoPE
                  rotates dims i and i + head_dim / 2 together. Quantized types are stored as
                  bytes. Types by channel are stored in whole blocks, which may still hold tokens
                  that were deleted
    open          uint8 [n_blocks], for types by channel only: 1 for blocks that are still f16
and, as metadata, the signature of the cache that wrote them, a checksum and a note.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lariat.errors import ContextError, quote
from lariat.formats import safetensors_io
from lariat.formats.gguf import GGUFFile, StringArray
from lariat.formats.segments import within_blocks

_FORMAT = "lariat-context"
_WHAT = "a saved context"
_SAMPLE = 4096  # bytes of each tensor that go into a model's fingerprint
_STORED = ("F16", "F32", "U8")
TENSORS: Mapping[str, tuple[str, ...]] = {
    "tokens": ("I32",),
    "segments": ("I32",),
    "keys": _STORED,
    "values": _STORED,
    "open": ("U8",),
}
"""The tensors of a file, in order, each with the types that it may have."""


class Saved(NamedTuple):
    """The tensors of a file; the module's docstring has their shapes."""

    tokens: np.ndarray
    segments: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    open: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors by name."""
        return dict(zip(TENSORS, self, strict=True))


def fingerprint(gguf: GGUFFile) -> str:
    """A hash of the metadata, and of the shape, type and first 4 KiB of every tensor.

    Models that were trained or quantized differently have different fingerprints, and no model has
    to be read whole.
    """
    import hashlib  # brings OpenSSL, and few processes need it

    h = hashlib.blake2b(digest_size=16)
    for key, value in sorted(gguf.metadata.items()):
        h.update(key.encode() + b"\0")
        for piece in _bytes_of(value):
            h.update(piece)
    for name, info in sorted(gguf.tensors.items()):
        h.update(f"{name} {info.shape} {info.type}".encode())
        rows = gguf.data(name, 0, -(-_SAMPLE // info.row_bytes))
        h.update(rows.reshape(-1)[:_SAMPLE].tobytes())
    return h.hexdigest()


def save(
    path: str | os.PathLike[str], signature: Mapping[str, str], saved: Saved, note: str = ""
) -> None:
    """Write a context; the file appears whole or not at all.

    `signature` is that of the cache, see `lariat.formats.safetensors_io`. Raises `ContextError`.
    """
    metadata = {**signature, "note": note} if note else signature
    safetensors_io.save(Path(path), _FORMAT, metadata, saved.arrays())


def load(path: str | os.PathLike[str], signature: Mapping[str, str]) -> Saved:
    """Read and check a context. Raises `ContextError`, and OSError if there is no such file."""
    with safetensors_io.opened(path, _WHAT) as (file, header):
        safetensors_io.check_signature(path, header, _FORMAT, signature)
        safetensors_io.check_tensors(path, header, _WHAT, TENSORS)
        try:
            saved = Saved(*(safetensors_io.read(file, header.tensors[name]) for name in TENSORS))
        except ValueError as error:
            reason = quote(str(error), 200)
            raise ContextError(f"{path}: is damaged, or not {_WHAT}: {reason}") from error
    if header.metadata.get("checksum") != safetensors_io.checksum(saved.arrays()):
        raise ContextError(f"{path}: is damaged: its contents do not give its checksum")
    _check_shapes(path, saved)
    return saved


def note(path: str | os.PathLike[str]) -> str:
    """The note that was saved with a context, or "". Errors as for `load`."""
    with safetensors_io.opened(path, _WHAT) as (_, header):
        return header.metadata.get("note", "")


def _check_shapes(path: str | os.PathLike[str], saved: Saved) -> None:
    """Refuse forged files: a checksum says that nothing changed, not that it was ever right."""
    tokens, segments = saved.tokens, saved.segments
    fits = (
        tokens.ndim == 1
        and segments.ndim == 2
        and segments.shape[1] == 3
        and int(segments[:, 2].sum()) == len(tokens)
        and within_blocks(segments, len(segments))
        and len(np.unique(segments[:, 0])) == int(segments[:, 0].max(initial=-1)) + 1
    )
    if not fits:
        raise ContextError(f"{path}: is damaged: its parts do not fit each other")


def _bytes_of(value: Any) -> Iterator[bytes]:
    """A metadata value as bytes."""
    if isinstance(value, StringArray):
        yield value.stored
    elif isinstance(value, np.ndarray):
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _bytes_of(item)
    else:
        yield repr(value).encode()
