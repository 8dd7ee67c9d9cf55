"""llama.cpp's own quantizer, for `bench.experiments.weight_types`."""

from __future__ import annotations

import ctypes

import llama_cpp
import protocol


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    pass


class Quantizer:
    """Writes a model's file again in another type."""

    def __init__(self) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))

    def about(self) -> dict[str, object]:
        """Its version."""
        return {"version": f"llama-cpp-python {llama_cpp.__version__}"}

    def quantize(self, source: str, target: str, file_type: int) -> None:
        """`file_type` as in the metadata (`enum llama_ftype`)."""
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = file_type
        if llama_cpp.llama_model_quantize(source.encode(), target.encode(), params):
            raise RuntimeError(f"llama.cpp does not make {target}")


if __name__ == "__main__":
    protocol.serve(Quantizer)
