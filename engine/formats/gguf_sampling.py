"""The sampling that a model's file asks for: the keys general.sampling.*.

Names and meaning are those of llama.cpp (common/common.cpp, src/llama-arch.cpp). Lariat has no
mirostat, no XTC and no other order of the stages. Wishes for these are ignored, and listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lariat.config import SamplingParams
from lariat.errors import GGUFError
from lariat.formats.gguf import GGUFFile

_PREFIX = "general.sampling."
_WHOLE = {"top_k": "top_k", "penalty_last_n": "repeat_last_n"}  # key: field of SamplingParams
_REAL = {
    "top_p": "top_p",
    "min_p": "min_p",
    "temp": "temperature",
    "penalty_repeat": "repeat_penalty",
}
_MISSING = ("mirostat", "xtc_probability")  # stages that do not exist here; 0: off

# The stages of the sampler in their order, each with the values that switch it off.
_STAGES: dict[str, dict[str, float]] = {
    "penalties": {"repeat_penalty": 1.0},
    "top_k": {"top_k": 0},
    "typ_p": {"typical_p": 1.0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "temperature": {"temperature": 1.0},
}
_IDLE = ("dry", "top_n_sigma", "xtc")  # stages that do nothing unless other settings ask for them


@dataclass(frozen=True)
class FileSampling:
    """The sampling that a file asks for."""

    params: SamplingParams  # llama.cpp's defaults, and the file's values over them
    asked: Mapping[str, Any]  # field of SamplingParams to the file's value
    ignored: tuple[str, ...]  # keys that are not supported, without their prefix

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> FileSampling:
        """Read and check the keys. Raises `GGUFError`."""
        asked: dict[str, Any] = {}
        for names, get in ((_WHOLE, gguf.get_int), (_REAL, gguf.get_float)):
            for key, field in names.items():
                if _PREFIX + key in gguf.metadata:
                    asked[field] = get(_PREFIX + key)
        # Numbers below 0 mean the same as 0: all tokens, and the likeliest token.
        asked |= {f: max(asked[f], 0) for f in ("top_k", "temperature") if f in asked}
        ignored = [key for key in _MISSING if gguf.get_float(_PREFIX + key, default=0.0) > 0]
        left_out = _left_out(gguf.get_str(_PREFIX + "sequence", default=""))
        if left_out is None:
            ignored.append("sequence")
        asked |= left_out or {}
        try:
            return cls(SamplingParams(**asked), asked, tuple(ignored))
        except ValueError as error:
            raise GGUFError(f"{gguf.path}: {_PREFIX[:-1]}: {error}") from None


def _left_out(sequence: str) -> dict[str, float] | None:
    """The values that switch off the stages that `sequence` does not name.

    None if it names them in another order, or names others. An empty `sequence` switches off none.
    """
    names = [name for name in sequence.split(";") if name not in _IDLE]
    if not sequence:
        return {}
    if names != [stage for stage in _STAGES if stage in names]:
        return None
    return {
        field: value
        for stage, off in _STAGES.items()
        if stage not in names
        for field, value in off.items()
    }
