"""Changes inputs along their structure; the first byte of an input says whether it is a file."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from tests.fuzz import mutate_gguf, mutate_json, mutate_safetensors
from tests.fuzz.targets import INPUTS

Raw = Callable[[bytes, int], bytes]  # changes bytes to at most so many, without a plan

_FRAGMENTS = (
    *("▁", "\ufffe", "\ufffd", "\0", "<s>", "</s>", "<|im_start|>", "<0x0A>", "<unk>", "\u2028"),
    *(" ", "\n", "\r\n", "\t", "'s", "'LL", "é", "e\u0301", "日本", "ſ", "ß", "½", "１", "\u3000"),
    *("the", " The", "123", "١٢٣", "👩\u200d🚀", "﷽", "\u200b", "\U0010ffff", "[]{}", "a" * 400),
)
_WORDS = (
    *('"doc"', '"\\ud800"', "null", "true", "1e400", "-1", "[]", "{}", '"../../x"', '"\\u0000"'),
    *('"name"', '"content"', "[" * 2000, "9" * 5000, '"/dev/zero"', ",", "NaN"),
)
_JINJA = (
    *("{% for x in messages %}", "{% endfor %}", "{% if x %}", "{% endif %}", "{{ x }}", "{{"),
    *("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ f(2) }}", "{% set x = 1 %}", "{#"),
    *("{{ 'a' * 10 ** 10 }}", "{{ [0] * 10 ** 9 }}", "{{ range(10 ** 9) | list }}", "{%- raw %}"),
    *("{{ ''.__class__.__mro__ }}", "{{ x.__init__.__globals__ }}", "| attr('__class__')", "-%}"),
    *("{{ cycler.__init__ }}", "{{ lipsum(n=9999) }}", "{{ '%s' % x }}", "{{ '{0.x}'.format(x) }}"),
    *("{% include 'x' %}", "{% import '/etc/passwd' as p %}", "{{ messages.append(1) }}"),
    *("{{ raise_exception('\x1b[2J') }}", "{{ strftime_now('%' * 99) }}", "{{ 2 ** 2 ** 30 }}"),
    *("{% for a in range(99999) %}{% for b in range(99999) %}", "| map('upper')", "{{ 1 / 0 }}"),
    *("(" * 300, "{{ 'x' | indent(10 ** 9) }}", "{{ dict(a=1) }}", "| tojson", "}}"),
)


def mutate(data: bytes, max_size: int, seed: int, raw: Raw, types: Sequence[str] = INPUTS) -> bytes:
    """Return another input of the same type, of at most `max_size` bytes, and one of `types` for an
    empty one; the seed decides all but what `raw` does."""
    rng = random.Random(seed)
    if not data:
        return bytes([INPUTS.index(rng.choice(types))])
    type = INPUTS[data[0] % len(INPUTS)]
    head, body = data[:1], data[1:]
    size = max_size - 1
    if type in ("context", "chunk"):
        # The byte for the cache of the file; it seldom changes.
        which = body[:1] if body and rng.random() < 0.95 else bytes([rng.randrange(4)])
        head, body = head + which, body[1:]
        size -= 1
    for _ in range(rng.choice((1, 1, 2, 4))):
        if type == "splits" and rng.random() < 0.9:
            body = _one_of_two(body, rng)
        elif type == "model" and rng.random() < 0.9:
            body = mutate_gguf.mutate(body, rng)
        elif type == "request" and rng.random() < 0.9:
            body = body[:1] + mutate_json.mutate(body[1:], rng)
        elif type in ("context", "chunk", "base") and rng.random() < 0.9:
            body = mutate_safetensors.mutate(body, type, rng)
        elif type in ("text", "index", "template") and rng.random() < 0.6:
            words = {"text": _FRAGMENTS, "index": _WORDS, "template": _JINJA}[type]
            at = rng.randrange(len(body) + 1)
            end = at if rng.random() < 0.5 else min(len(body), at + rng.randrange(8))
            body = body[:at] + rng.choice(words).encode() + body[end:]
        else:
            body = raw(body, max(size, 1))
    return (head + body)[:max_size]


def _one_of_two(data: bytes, rng: random.Random) -> bytes:
    """Change one of two files; the length of the first stands before it."""
    n = 4 + int.from_bytes(data[:4], "little")
    parts = [data[4:n], data[n:]]
    which = rng.randrange(2)
    parts[which] = mutate_gguf.mutate(parts[which], rng)
    return struct.pack("<I", len(parts[0])) + b"".join(parts)
