"""Lariat: runs LLaMA-family GGUF models on CPUs.

The way of a token, top to bottom; imports point downwards too:

    cli                     flags, streams, exit codes
     |
    llm                     LLM: schedule, run, sample, show
     |         \\
    scheduler   sampler     what to run next; which token comes next
     |
    batch <- sequence       flat arrays of what one forward pass computes
     |
    model                   the forward pass, in the order of the paper
     |         \\
    kv_cache    weights     roped or raw keys in blocks; matrices interleaved at load
     |           |
    context     gguf, quants, tokenizer      what the file holds
     |
    rope                    cos/sin tables
     |
    _kernels                Cython: cutting, walking, merging; OpenMP
     |
    simd/*.h                tiles: scalar, AVX2, AVX-512
"""

from __future__ import annotations

from engine.config import SamplingParams
from engine.errors import ContextError, GGUFError, LariatError, ModelError
from engine.gguf import GGUFFile
from engine.llm import LLM
from engine.sequence import Completion
from engine.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "Completion",
    "ContextError",
    "GGUFError",
    "GGUFFile",
    "LariatError",
    "ModelError",
    "SamplingParams",
    "Tokenizer",
]
