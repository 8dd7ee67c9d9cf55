"""`lariat info`: the contents of a GGUF file, and the memory it needs on this machine."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lariat.cli import console, model_file
from lariat.cli.usage import Flag, add_flags, checked
from lariat.config import CACHE_TYPES, EngineConfig, ModelConfig

if TYPE_CHECKING:
    from lariat.formats.gguf_split import GGUFModel

_FLAGS = (
    Flag(("-c", "--ctx-size"), "n_ctx", int, "N", "context whose memory is counted; 0: as trained"),
)
_MAX_TEXT = 64  # characters shown of a string
_MAX_ITEMS = 6  # elements shown of an array

_DESCRIPTION = """\
Print the metadata of a GGUF file, the types of its tensors, the memory of a context with each type
of cache, and the instruction set and threads that would be used."""

_EPILOG = """\
example:
  lariat info -m model.gguf -c 8192"""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "info",
        help="contents of a file, and the memory it needs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    model_file.add_arguments(parser)
    add_flags(parser, _FLAGS, EngineConfig)


def run(args: argparse.Namespace) -> int:
    """Print it and return the exit code."""
    config = checked(EngineConfig, _FLAGS, args)
    overrides = model_file.overrides(args)

    from lariat import _kernels
    from lariat.architectures.loading import read_config
    from lariat.formats.gguf_split import GGUFModel
    from lariat.runtime import threads

    with GGUFModel(args.model, overrides, args.use_mmap) as gguf:
        lines = [*_file(gguf), "", *_metadata(gguf), "", *_tensors(gguf)]
        lines += [
            "",
            "machine",
            f"  instruction set  {_kernels.isa()} (of {', '.join(_kernels.supported_isas())})",
            f"  threads          {threads.available()} (physical cores that it may use)",
        ]
        console.write("\n".join(lines) + "\n")
        if gguf.tensors:  # without tensors it is only a vocabulary
            # For a model that cannot run, the error comes after the lines above.
            model = read_config(gguf)
            n_ctx = config.n_ctx or model.n_ctx_train
            console.write("\n".join(["", *_memory(gguf, model, n_ctx)]) + "\n")
    return 0


def _file(gguf: GGUFModel) -> Iterator[str]:
    yield "file"
    yield f"  path     {console.printable(str(gguf.path))}"
    yield f"  size     {_size(gguf.n_bytes)}"
    yield f"  version  {gguf.version}"
    if len(gguf.splits) > 1:
        yield f"  splits   {len(gguf.splits)}, to {console.printable(gguf.splits[-1].name)}"


def _metadata(gguf: GGUFModel) -> Iterator[str]:
    yield f"metadata ({len(gguf.metadata)} entries)"
    width = max(map(len, gguf.metadata), default=0)
    for key, value in gguf.metadata.items():
        yield f"  {_value(key):{min(width, 48)}}  {_value(value)}"


def _value(value: Any) -> str:
    """A metadata value on one line; long texts and arrays are cut."""
    if isinstance(value, str):
        cut = value[:_MAX_TEXT]
        return console.printable(cut) + ("..." if len(value) > _MAX_TEXT else "")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.7g}" if isinstance(value, float) else str(value)
    first = value[:_MAX_ITEMS]
    items = ", ".join(map(_value, first.tolist() if hasattr(first, "tolist") else first))
    more = ", ..." if len(value) > _MAX_ITEMS else ""
    return f"[{items}{more}] ({len(value)} elements)"


def _tensors(gguf: GGUFModel) -> Iterator[str]:
    n_tensors: Counter[str] = Counter()
    n_bytes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        n_tensors[tensor.type.name] += 1
        n_bytes[tensor.type.name] += tensor.n_bytes
    total = sum(n_bytes.values())
    yield f"tensors ({len(gguf.tensors)}, {_size(total)})"
    for name, n in n_tensors.most_common():
        yield f"  {name:8} {n:5}  {_size(n_bytes[name])}"


def _memory(gguf: GGUFModel, model: ModelConfig, n_ctx: int) -> Iterator[str]:
    """Weights and cache. Buffers for the computation are added to that, but they are small."""
    from lariat.cache.kv_cache import cache_bytes

    yield f"memory for a context of {n_ctx} (the model was trained for {model.n_ctx_train})"
    weights = sum(tensor.n_bytes for tensor in gguf.tensors.values())
    yield f"  weights                  {_size(weights)}"
    for name in CACHE_TYPES:
        try:
            n_bytes = cache_bytes(model, n_ctx, name, name)
        except ValueError:  # the model's heads do not divide by 32
            continue
        yield f"  cache -ctk {name:5} -ctv {name:5}  {_size(n_bytes)}"


def _size(n_bytes: int) -> str:
    """A number of bytes, for people and for scripts."""
    value, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{n_bytes} bytes" if unit == "B" else f"{value:.2f} {unit} ({n_bytes} bytes)"
