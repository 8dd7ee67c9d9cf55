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
    from engine.chat import Chat
    from engine.config import RopeConfig, SamplingParams
    from engine.context import Context
    from engine.demo import DEMO_MODEL
    from engine.errors import ChatError, ContextError, GGUFError, LariatError, ModelError
    from engine.gguf import GGUFFile
    from engine.library import ChunkLibrary
    from engine.llm import LLM
    from engine.sequence import Completion
    from engine.tokenizer import Tokenizer

# Public names are loaded when asked for, so that `lariat --help` is quick and a bad LARIAT_ISA
# reaches the command line as an error that it can report.
_HOMES = {
    "DEMO_MODEL": "demo",
    "LLM": "llm",
    "Chat": "chat",
    "ChatError": "errors",
    "ChunkLibrary": "library",
    "Completion": "sequence",
    "Context": "context",
    "ContextError": "errors",
    "GGUFError": "errors",
    "GGUFFile": "gguf",
    "LariatError": "errors",
    "ModelError": "errors",
    "RopeConfig": "config",
    "SamplingParams": "config",
    "Tokenizer": "tokenizer",
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
    return getattr(import_module(f"engine.{_HOMES[name]}"), name)
