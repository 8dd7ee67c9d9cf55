"""Lariat runs GGUF models on CPUs.

A token's way goes down this page, and so do imports:

    cli                          one file a command: flags, streams, exit codes
    server                       HTTP: routes, rights, limits
    jobs                         batches of many rows, which may be interrupted
    protocol                     bodies of OpenAI's and Anthropic's APIs
    tools, measure               quantize, perplexity; what `lariat bench` is made of
    chat                         conversations
    async_llm                    AsyncLLM: streams for asyncio
    llm                          LLM: load a model, stream, generate
    reuse                        documents and prompts that were computed before
    runtime                      EngineThread: steps for all; Runner: schedule, run, sample;
                                 Context: tokens to edit
    architectures                a model family each: tensors, layers, forward pass
    cache                        keys and values in blocks, roped or raw
    _attention, _attention_plan, _cache, _experts, _routing, _rows, _tiles, _kernels
                                 Cython: cut operations into tasks
    _program                     all threads take tasks of a recorded program
    simd/                        C: the innermost tiles, an instruction set each

Beside them stand formats (GGUF and other files), tokenizers, structured (texts that follow a
grammar), speculative (guesses at next tokens), hub (models that are fetched), config, checks and
errors; below them _lock, _machine, _masks, _quantize, _strings (compiled helpers), os_memory,
processor and demo. docs/design.md follows a token from `LLM.stream` to the multiply-add, and tests
hold the directions.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for True; importing it would take 5 ms
if TYPE_CHECKING:
    from lariat.async_llm import AsyncLLM
    from lariat.chat.chat import Chat
    from lariat.config import RopeConfig, SamplingParams
    from lariat.demo import DEMO_MODEL
    from lariat.errors import (
        ChatError,
        ContextError,
        GGUFError,
        HubError,
        LariatError,
        ModelError,
    )
    from lariat.formats.gguf import GGUFFile
    from lariat.jobs.worker import BatchWorker
    from lariat.llm import LLM
    from lariat.reuse.library import ChunkLibrary
    from lariat.reuse.recompute import Recompute
    from lariat.runtime.context import Context
    from lariat.runtime.logprobs import TokenLogprob
    from lariat.runtime.request import Completion, Delta
    from lariat.runtime.scoring import Score
    from lariat.structured.grammar import Grammar
    from lariat.tokenizers.tokenizer import Tokenizer

# Public names are loaded when asked for, so that `lariat --help` is quick and a bad LARIAT_ISA
# reaches the command line as an error that it can report.
_HOMES = {
    "DEMO_MODEL": "demo",
    "AsyncLLM": "async_llm",
    "BatchWorker": "jobs.worker",
    "LLM": "llm",
    "Chat": "chat.chat",
    "ChatError": "errors",
    "ChunkLibrary": "reuse.library",
    "Completion": "runtime.request",
    "Context": "runtime.context",
    "ContextError": "errors",
    "Delta": "runtime.request",
    "GGUFError": "errors",
    "GGUFFile": "formats.gguf",
    "Grammar": "structured.grammar",
    "HubError": "errors",
    "LariatError": "errors",
    "ModelError": "errors",
    "Recompute": "reuse.recompute",
    "RopeConfig": "config",
    "SamplingParams": "config",
    "Score": "runtime.scoring",
    "TokenLogprob": "runtime.logprobs",
    "Tokenizer": "tokenizers.tokenizer",
}
__all__ = [
    "DEMO_MODEL",
    "LLM",
    "AsyncLLM",
    "BatchWorker",
    "Chat",
    "ChatError",
    "ChunkLibrary",
    "Completion",
    "Context",
    "ContextError",
    "Delta",
    "GGUFError",
    "GGUFFile",
    "Grammar",
    "HubError",
    "LariatError",
    "ModelError",
    "Recompute",
    "RopeConfig",
    "SamplingParams",
    "Score",
    "TokenLogprob",
    "Tokenizer",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lariat.{_HOMES[name]}"), name)
