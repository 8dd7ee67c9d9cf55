"""The first inputs of a corpus: small files of every type that the engine accepts."""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lariat.llm import LLM
from lariat.reuse.library import ChunkLibrary
from lariat.tools.perplexity import BaseWriter, cut, measure

from tests.fuzz import requests
from tests.fuzz.targets import CACHES, INPUTS, N_TOKENIZERS, write_judge
from tests.support.model_files import write_llama

_SMALL = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "n_ff": 32, "n_vocab": 40}
# The types like Q4_K have blocks of 256, the length of most rows here.
_WIDE = {"dim": 256, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 32, "n_ff": 32}
_WIDE |= {"n_vocab": 16, "type_of": {"attn_output": "Q4_0", "ffn_down": "Q4_0"}}
_HALF = {"rope_scale": 2.0, "weight_type": "Q8_0"}
_BYTES = {**_SMALL, "n_vocab": 288, "weight_type": "Q8_0"}  # a vocabulary with all bytes
_MODELS: dict[str, dict[str, Any]] = {
    "f32": {**_SMALL, "biases": True},
    "f16-tied": {**_SMALL, "weight_type": "F16", "tied": True, "version": 2},
    "q4_0": {**_BYTES, "weight_type": "Q4_0", "rope_freqs": [1.0, 2.0, 4.0, 8.0, 8, 8, 8, 8]},
    "q8_0": _BYTES,
    "yarn": {
        **_SMALL,
        "rope_dim": 8,
        "metadata": {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 64,
            "general.alignment": 64,
        },
    },
    "heads": {**_SMALL, "n_heads": 6, "n_kv_heads": 2, "head_dim": 32, **_HALF},
    "qwen2": {**_SMALL, "arch": "qwen2", "weight_type": "Q8_0"},
    "qwen3": {**_SMALL, "arch": "qwen3", "weight_type": "Q8_0", "tied": True},
    "values": {**_SMALL, "head_dim": 16, "head_dim_v": 32},
}
_MODELS |= {
    type_name: {**_SMALL, "weight_type": type_name}
    for type_name in ("BF16", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4")
}
_UNPACKED = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0")
_MODELS |= {
    type_name: {**_WIDE, "weight_type": type_name}
    for type_name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", *_UNPACKED)
}
_TEXTS = (
    "Once upon a time, there was a 1234 year old tree. It's <s> here</s>!\n\n  日本→é\t\x00",
    "▁▁ a\u0301 👩\u200d🚀 ﷽ <0x0A> I'll  we'VE \r\n\r\n 1e10 ½ <|im_start|>user\u2028",
)
_TEMPLATES = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{%- set ns = namespace(n=0) -%}{%- for m in messages if m.role != 'system' -%}"
    "{%- set ns.n = ns.n + 1 -%}{{ ns.n ~ ': ' + m.content[:40] | upper }}{% if loop.last %}"
    "{{ eos_token }}{% endif %}{%- else -%}{{ raise_exception('empty') }}{%- endfor -%}",
    "{% macro turn(m) %}[{{ m | tojson }}]{% endmacro %}{{ strftime_now('%Y') | length }}"
    "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ turn(messages[i]) }}"
    "{% endfor %}{% generation %}{{ messages | map(attribute='role') | join }}{% endgeneration %}",
)


def write_all(corpus: Path, scratch: Path, types: Collection[str] = INPUTS) -> None:
    """Write the seeds of these types into a corpus; other inputs in it stay."""

    def write(type: str, name: str, data: bytes) -> None:
        if type not in types:
            return
        (corpus / f"seed-{type}-{name}").write_bytes(bytes([INPUTS.index(type)]) + data)

    for name, shape in _MODELS.items():
        write("model", name, write_llama(scratch / "seed.gguf", **shape).read_bytes())
    write("model", "bpe", _bpe_model(scratch / "seed.gguf"))
    first = write_llama(scratch / "seed.gguf", **_SMALL, weight_type="Q8_0", split=6)
    head = first.read_bytes()
    second = first.with_name("seed-00002-of-00002.gguf").read_bytes()
    write("splits", "2", struct.pack("<I", len(head)) + head + second)
    for i in range(N_TOKENIZERS):
        for j, text in enumerate(_TEXTS):
            write("text", f"{i}-{j}", bytes([i]) + text.encode())
    for i, template in enumerate(_TEMPLATES):
        write("template", str(i), template.encode())
    for name, body in requests.seeds().items():
        write("request", name, body)
    judge = write_judge(scratch)
    for i, options in enumerate(CACHES):
        with LLM(judge, n_ctx=128, n_threads=1, **options) as llm, llm.context() as context:
            context.append(list(range(3, 39)))
            context.append(list(range(3, 39)))
            context.delete(20, 50)
            context.save(scratch / "seed.context")
            write("context", str(i), bytes([i]) + (scratch / "seed.context").read_bytes())
            if options["cache"] == "raw":
                folder = scratch / f"seed-{i}"
                path = ChunkLibrary(folder).add(llm, "doc", list(range(3, 39))).path
                write("chunk", str(i), bytes([i]) + path.read_bytes())
                write("index", str(i), (folder / "index.json").read_bytes())
            if i == 0:
                ids = cut(llm, "the rain in the sea and on a tree " * 3, 16, 2)
                with BaseWriter(scratch / "seed.base", ids, llm.n_vocab) as base:
                    measure(llm, ids, base=base)
                write("base", "0", (scratch / "seed.base").read_bytes())


def _bpe_model(path: Path) -> bytes:
    """A model with a byte-level vocabulary, the second type of tokenizer."""
    tokens = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ", "Ġt", "he", "Ġthe", "<|end|>", "<0x41>"]
    shape = {**_SMALL, "n_vocab": len(tokens)}
    scores = dict.fromkeys(("tokenizer.ggml.scores", "tokenizer.ggml.unknown_token_id"))
    types = [1] * (len(tokens) - 2) + [3, 6]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["Ġ t", "h e", "Ġt he", "i n"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }
    return write_llama(path, **shape, metadata=scores | metadata).read_bytes()
