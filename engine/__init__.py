"""Lariat: runs LLaMA-family GGUF models on CPUs.

The way of a token, top to bottom; imports point downwards too:

    cli                     flags, streams, exit codes
     |
    llm <- context          LLM: schedule, run, sample, show; tokens in the cache, to be edited
     |                      (library: documents in files; prompt_cache: what prompts share;
     |                      chat: conversations, by chat_template and template_worker)
     |         \\
    scheduler   sampler     what to run next (prefixes: what is there already); which token is next
     |
    batch <- sequence       flat arrays of what one forward pass computes
     |
    model                   the forward pass, in the order of the paper
     |         \\
    kv_cache    weights     roped or raw keys in blocks (cache_memory); matrices interleaved at load
     |           |
    segments    gguf, quants, tokenizer      what the file holds (storage, vocabulary, tokenizer_*,
     |                                       config, architecture, gguf_parts, file_sampling,
     |                                       check_tensors; quantize writes one anew)
     |
    rope                    cos/sin tables
     |
    _attention, _cache, _kernels    Cython: cutting, walking, merging
     |         \\
    simd/*.h    _program    tiles: scalar, AVX2, AVX-512; steps, run by all threads
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lariat.chat.chat import Chat
    from lariat.config import RopeConfig, SamplingParams
    from lariat.demo import DEMO_MODEL
    from lariat.errors import ChatError, ContextError, GGUFError, LariatError, ModelError
    from lariat.formats.gguf import GGUFFile
    from lariat.llm import LLM
    from lariat.reuse.library import ChunkLibrary
    from lariat.runtime.context import Context
    from lariat.runtime.request import Completion
    from lariat.tokenizers.tokenizer import Tokenizer

# Public names are loaded when asked for, so that `lariat --help` is quick and a bad LARIAT_ISA
# reaches the command line as an error that it can report.
_HOMES = {
    "DEMO_MODEL": "demo",
    "LLM": "llm",
    "Chat": "chat.chat",
    "ChatError": "errors",
    "ChunkLibrary": "reuse.library",
    "Completion": "runtime.request",
    "Context": "runtime.context",
    "ContextError": "errors",
    "GGUFError": "errors",
    "GGUFFile": "formats.gguf",
    "LariatError": "errors",
    "ModelError": "errors",
    "RopeConfig": "config",
    "SamplingParams": "config",
    "Tokenizer": "tokenizers.tokenizer",
}
__all__ = [
    "DEMO_MODEL",
    "LLM",
    "Chat",
    "ChatError",
    "ChunkLibrary",
    "Completion",
    "Context",
    "ContextError",
    "GGUFError",
    "GGUFFile",
    "LariatError",
    "ModelError",
    "RopeConfig",
    "SamplingParams",
    "Tokenizer",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lariat.{_HOMES[name]}"), name)
