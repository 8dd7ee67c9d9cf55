"""Changes GGUF files: one value, length, count, offset or type at a time, the rest kept whole.

A file is taken apart into its metadata, its tensor table and its data, one of them is changed, and
it is put together again. So most results pass the checks before the one of the changed thing.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES

# Formats of the metadata value types, by number; the others are bool, string and array.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_FORMATS |= {12: "d"}
_STRING, _ARRAY = 8, 9
_WHOLE = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 11, 16, 24, 31, 32, 33, 64, 127, 128, 255, 256, 512, 513, 4096),
    *(0x7FFF, 0xFFFF, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1),
)
_FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 1e-5, 1e-45, 1e4, 1e15, 3.4e38, 1e300),
    *(float("inf"), float("-inf"), float("nan")),
)
_TEXTS = (
    *(b"", b"\0", b"A", b"llama", b"gpt2", b"qwen2", b"default", b"llama-bpe", b"yarn", b"none"),
    *(b"\x1b[31m", b"line\nline", b"\xff\xfe", b"\xed\xa0\x80", b"<0x-1>", b"<0x41>", b"<0x0G>"),
    *(
        b"\xe2\x96\x81",
        b" ",
        b"a b",
        b"A" * 4096,
        b"top_k;temperature",
        b"%s%n{0}",
        "\u202egnp".encode(),
        b"</s>",
    ),
)
_KEYS = (
    *(b"general.alignment", b"general.architecture", b"general.name", b"llama.block_count"),
    *(b"llama.context_length", b"llama.embedding_length", b"llama.feed_forward_length"),
    *(b"llama.attention.head_count", b"llama.attention.head_count_kv", b"llama.expert_count"),
    *(b"llama.attention.key_length", b"llama.attention.value_length", b"llama.vocab_size"),
    *(b"llama.attention.layer_norm_rms_epsilon", b"llama.rope.dimension_count"),
    *(b"llama.rope.freq_base", b"llama.rope.scale_linear", b"llama.rope.scaling.type"),
    *(b"llama.rope.scaling.factor", b"llama.rope.scaling.original_context_length"),
    *(b"llama.rope.scaling.attn_factor", b"tokenizer.ggml.model", b"tokenizer.ggml.pre"),
    *(b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores", b"tokenizer.ggml.token_type"),
    *(b"tokenizer.ggml.merges", b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id"),
    *(b"tokenizer.ggml.unknown_token_id", b"tokenizer.ggml.eot_token_id"),
    *(b"tokenizer.ggml.add_bos_token", b"tokenizer.ggml.add_eos_token"),
    *(b"tokenizer.ggml.add_space_prefix", b"tokenizer.ggml.fim_pre_token_id"),
    *(b"tokenizer.chat_template", b"general.sampling.temp", b"general.sampling.top_k"),
    *(b"general.sampling.sequence", b"general.sampling.top_p", b"general.sampling.mirostat"),
    *(b"split.no", b"split.count", b"split.tensors.count", b"general.sampling.penalty_repeat"),
)
_NAMES = (
    *(b"token_embd.weight", b"output.weight", b"output_norm.weight", b"rope_freqs.weight"),
    *(b"blk.0.attn_q.weight", b"blk.0.attn_q.bias", b"blk.1.attn_norm.weight", b"", b"x" * 64),
    *(b"blk.0.attn_q_norm.weight", b"blk.0.ffn_down.weight", b"blk.00.attn_k.weight", b"x" * 65),
)
_TYPES = {int(number): sizes for number, sizes in GGML_QUANT_SIZES.items()}
# New values of scales and weights: f16 and f32 of NaN, infinities and the largest numbers.
_PATTERNS = (b"\x00\x7e", b"\x00\x7c", b"\x00\xfc", b"\xff\x7b", b"\0\0")
_PATTERNS += (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\xff\x7f")


@dataclass
class _Entry:
    key: bytes
    type: int
    value: bytes  # as in the file


@dataclass
class _Tensor:
    name: bytes
    dims: list[int]
    type: int
    offset: int


@dataclass
class _File:
    version: int
    entries: list[_Entry]
    tensors: list[_Tensor]
    data: bytes

    @property
    def alignment(self) -> int:
        for entry in self.entries:
            if entry.key == b"general.alignment" and len(entry.value) == 4:
                found = int.from_bytes(entry.value, "little")
                return found if 0 < found <= 4096 else 32
        return 32


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change one thing."""
    try:
        file = _read(data)
    except (struct.error, ValueError):
        return _damage(data, rng)
    change = rng.choices(_CHANGES, _WEIGHTS)[0]
    change(file, rng)
    out = bytearray(_write(file))
    if rng.random() < 0.05:
        out = bytearray(_damage(bytes(out), rng))
    elif rng.random() < 0.05:  # the counts of tensors and entries
        at = rng.choice((8, 16))
        out[at : at + 8] = struct.pack("<Q", rng.choice(_WHOLE))
    return bytes(out)


# ---- changes ----


def _change_scalar(file: _File, rng: random.Random) -> None:
    """Another value for a number, a bool or a text; sometimes of another type."""
    scalars = [e for e in file.entries if e.type != _ARRAY]
    if scalars:
        entry = rng.choice(scalars)
        if rng.random() < 0.2:
            entry.type = rng.choice((*_FORMATS, _STRING))
        entry.value = _scalar(entry.type, rng)


def _change_array(file: _File, rng: random.Random) -> None:
    """One element, the count, the type of the elements, or the end."""
    arrays = [e for e in file.entries if e.type == _ARRAY and len(e.value) > 12]
    if not arrays:
        return
    entry = rng.choice(arrays)
    value_type, n = struct.unpack_from("<IQ", entry.value)
    items = entry.value[12:]
    what = rng.randrange(5)
    if what == 0:
        n = rng.choice((n - 1, n + 1, 2 * n, *_WHOLE)) & ((1 << 64) - 1)
    elif what == 1:
        value_type = rng.choice((*_FORMATS, _STRING, _ARRAY, 13, 1 << 31))
    elif value_type == _STRING:
        texts = _strings(items, n)
        if texts:
            i = rng.randrange(len(texts))
            if what == 2:
                texts[i] = rng.choice((*_TEXTS, rng.choice(texts), texts[i] + b" ", texts[i][:-1]))
            elif what == 3:
                del texts[i]
            else:
                texts.insert(i, rng.choice(_TEXTS))
        n = len(texts)
        items = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    elif value_type in _FORMATS and n:
        size = struct.calcsize("<" + _FORMATS[value_type])
        if what == 2 or what == 3:
            at = size * rng.randrange(n)
            items = items[:at] + _scalar(value_type, rng) + items[at + size :]
        else:
            n = rng.randrange(n)
            items = items[: n * size]
    entry.value = struct.pack("<IQ", value_type, n) + items


def _change_entries(file: _File, rng: random.Random) -> None:
    """Remove, repeat, add or move an entry, or give it another key."""
    entries = file.entries
    i = rng.randrange(len(entries)) if entries else -1
    what = rng.randrange(5)
    if what == 0 and entries:
        del entries[i]
    elif what == 1 and entries:
        entries.insert(rng.randrange(len(entries)), entries[i])
    elif what == 2 and entries:
        entries[i] = _Entry(
            rng.choice((*_KEYS, *_TEXTS, entries[i].key + b"\0")), entries[i].type, entries[i].value
        )
    elif what == 3 and entries:
        entries.append(entries.pop(i))
    else:
        value_type = rng.choice((*_FORMATS, _STRING, _ARRAY, _ARRAY))
        value = _scalar(value_type, rng)
        if value_type == _ARRAY:
            value = _nested(rng)
        entries.append(_Entry(rng.choice(_KEYS), value_type, value))


def _change_tensors(file: _File, rng: random.Random) -> None:
    """Change name, shape, type or offset of a tensor; or remove or repeat it."""
    if not file.tensors:
        file.tensors.append(_Tensor(b"token_embd.weight", [32, 40], 0, 0))
        return
    i = rng.randrange(len(file.tensors))
    tensor = file.tensors[i]
    what = rng.randrange(7)
    if what == 0:
        tensor.name = rng.choice((*_NAMES, *_TEXTS, file.tensors[0].name))
    elif what == 1:
        tensor.dims = list(tensor.dims)
        d = rng.randrange(len(tensor.dims) or 1)
        tensor.dims[d : d + 1] = [rng.choice((*_WHOLE, tensor.dims[d] + 1 if tensor.dims else 1))]
    elif what == 2:
        tensor.dims = rng.choice(
            (tensor.dims[::-1], [*tensor.dims, 1], tensor.dims[:-1], [1] * 5, [1 << 32] * 2)
        )
    elif what == 3:
        tensor.type = rng.choice((*_TYPES, 4, 5, 99, (1 << 32) - 1))
    elif what == 4:
        tensor.offset = rng.choice((*_WHOLE, tensor.offset + 32, max(tensor.offset - 32, 0)))
    elif what == 5:
        del file.tensors[i]
    else:
        file.tensors.insert(rng.randrange(i + 1), tensor)


def _change_shape(file: _File, rng: random.Random) -> None:
    """Another type or another size of one tensor, or of every one, with data laid out for it."""
    every = rng.random() < 0.3
    weight_type = rng.choice(tuple(_TYPES))
    size = rng.choice((1, 2, 3, 16, 31, 32, 33, 64, 256, 288))
    resize = rng.random() < 0.5
    place = rng.randrange(2)
    chosen = file.tensors if every else [rng.choice(file.tensors)] if file.tensors else []
    for tensor in chosen:
        if resize and len(tensor.dims) > place and max(tensor.dims) < 1 << 12:
            tensor.dims = [*tensor.dims[:place], size, *tensor.dims[place + 1 :]]
        elif not resize and (len(tensor.dims) == 2 or not every):
            tensor.type = weight_type
    data = bytearray()
    align = file.alignment
    for tensor in file.tensors:
        data += b"\0" * (-len(data) % align)
        n_bytes = _n_bytes(tensor)
        if n_bytes is None or n_bytes > 1 << 16:
            continue
        old = file.data[tensor.offset : tensor.offset + n_bytes] or b"\x3c"
        tensor.offset = len(data)
        data += (old * (n_bytes // len(old) + 1))[:n_bytes]
    file.data = bytes(data)


def _change_data(file: _File, rng: random.Random) -> None:
    """Weights: a NaN, an infinity, a huge number, or noise; or the end of the file."""
    data = bytearray(file.data)
    if not data:
        return
    for _ in range(rng.choice((1, 1, 8, 64))):
        at = rng.randrange(len(data)) & ~1
        pattern = rng.choice((*_PATTERNS, rng.randbytes(16)))
        data[at : at + len(pattern)] = pattern
    file.data = bytes(data) if rng.random() < 0.9 else bytes(data[: rng.randrange(len(data))])


def _change_version(file: _File, rng: random.Random) -> None:
    file.version = rng.choice((0, 1, 2, 3, 4, 0x03000000, (1 << 32) - 1))


_CHANGES = (
    *(_change_scalar, _change_array, _change_entries, _change_tensors, _change_shape),
    *(_change_data, _change_version),
)
_WEIGHTS = (30, 20, 12, 12, 12, 12, 1)


def _damage(data: bytes, rng: random.Random) -> bytes:
    """Cut it short, or overwrite a number anywhere."""
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data) + 1)]
    form = rng.choice(("<I", "<Q", "<H"))
    size = struct.calcsize(form)
    at = rng.randrange(max(1, min(len(data), 8192)))
    number = rng.choice(_WHOLE) & ((1 << (8 * size)) - 1)
    return data[:at] + struct.pack(form, number) + data[at + size :]


# ---- parts of a file ----


def _scalar(value_type: int, rng: random.Random) -> bytes:
    if value_type == _STRING:
        text = rng.choice(_TEXTS)
        return struct.pack("<Q", len(text)) + text
    if value_type not in _FORMATS:
        return b""
    form = _FORMATS[value_type]
    if form in "fd":
        value = rng.choice(_FLOATS)
        return struct.pack("<d", value) if form == "d" else _f32(value)
    size = struct.calcsize("<" + form)
    return struct.pack("<Q", rng.choice(_WHOLE))[:size]


def _f32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf"))


def _nested(rng: random.Random) -> bytes:
    """Arrays in arrays, empty arrays, arrays of everything."""
    value = struct.pack("<IQ", rng.choice((*_FORMATS, _STRING)), 0)
    for _ in range(rng.choice((0, 1, 2, 3, 4, 5, 40))):
        n = rng.choice((1, 1, 2))
        value = struct.pack("<IQ", _ARRAY, n) + value * n
        if len(value) > 4096:
            break
    return value


def _strings(items: bytes, n: int) -> list[bytes]:
    texts, at = [], 0
    while at + 8 <= len(items) and len(texts) < n:
        size = int.from_bytes(items[at : at + 8], "little")
        texts.append(items[at + 8 : at + 8 + size])
        at += 8 + size
    return texts


def _n_bytes(tensor: _Tensor) -> int | None:
    """Bytes of the data of a tensor; None where type and shape do not fit each other."""
    if tensor.type not in _TYPES or not tensor.dims:
        return None
    block, n_bytes = _TYPES[tensor.type]
    if tensor.dims[0] % block:
        return None
    for n in tensor.dims[1:]:
        n_bytes *= n
    return tensor.dims[0] // block * n_bytes


def _read(data: bytes) -> _File:
    """Take a file apart. Raises struct.error or ValueError if its header is damaged."""
    at = 0

    def number(form: str) -> int:
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize("<" + form)
        return int(value)

    def take(n: int) -> bytes:
        nonlocal at
        if n > len(data) - at:
            raise ValueError("cut")
        at += n
        return data[at - n : at]

    def skip(value_type: int, depth: int = 0) -> None:
        if value_type in _FORMATS:
            take(struct.calcsize("<" + _FORMATS[value_type]))
        elif value_type == _STRING:
            take(number("Q"))
        elif value_type == _ARRAY and depth < 8:
            inner, n = number("I"), number("Q")
            if inner in _FORMATS:
                take(n * struct.calcsize("<" + _FORMATS[inner]))
            else:
                for _ in range(n):
                    skip(inner, depth + 1)
        else:
            raise ValueError("unknown")

    if take(4) != b"GGUF":
        raise ValueError("magic")
    version, n_tensors, n_entries = number("I"), number("Q"), number("Q")
    entries, tensors = [], []
    for _ in range(n_entries):
        key, value_type = take(number("Q")), number("I")
        start = at
        skip(value_type)
        entries.append(_Entry(key, value_type, data[start:at]))
    for _ in range(n_tensors):
        name = take(number("Q"))
        n_dims = number("I")
        if n_dims > 8:
            raise ValueError("dims")
        dims = [number("Q") for _ in range(n_dims)]
        tensors.append(_Tensor(name, dims, number("I"), number("Q")))
    file = _File(version, entries, tensors, b"")
    file.data = data[at + -at % file.alignment :]
    return file


def _write(file: _File) -> bytes:
    mask = (1 << 64) - 1
    out = bytearray(b"GGUF")
    out += struct.pack("<IQQ", file.version, len(file.tensors), len(file.entries))
    for entry in file.entries:
        out += struct.pack("<Q", len(entry.key)) + entry.key
        out += struct.pack("<I", entry.type) + entry.value
    for tensor in file.tensors:
        out += struct.pack("<Q", len(tensor.name)) + tensor.name
        out += struct.pack("<I", len(tensor.dims))
        out += b"".join(struct.pack("<Q", n & mask) for n in tensor.dims)
        out += struct.pack("<IQ", tensor.type, tensor.offset & mask)
    out += b"\0" * (-len(out) % file.alignment)
    return bytes(out) + file.data
