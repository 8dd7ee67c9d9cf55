"""`lariat info`: what a GGUF file is and holds, whether it runs, and the memory that it needs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lariat.cli import console, model_file
from lariat.cli.usage import Flag, add_flags, checked
from lariat.config import CACHE_TYPES, EngineConfig, ExpertConfig, ModelConfig

if TYPE_CHECKING:
    from lariat.formats.gguf import GGUFFile
    from lariat.tools.inspection import Inspection

_FLAGS = (
    Flag(("-c", "--ctx-size"), "n_ctx", int, "N", "context whose memory is counted; 0: as trained"),
)
_EXPERTS = re.compile(r"_exps\.|\.ffn_(gate|up|down)\.\d+\.")  # in a tensor's name
_MAX_TEXT = 64  # characters shown of a string
_MAX_ITEMS = 6  # elements shown of an array

_DESCRIPTION = """\
Print what a GGUF file is, whether it runs here or the reason why not, its metadata, the types of
its tensors, the memory of a context with each type of cache, and the instruction set and threads
that would be used."""

_EPILOG = """\
examples:
  lariat info -m model.gguf -c 8192
  lariat info -m mmproj-model-f16.gguf --tensors

The exit code is 1 only for a file that cannot be read as GGUF."""


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
    parser.add_argument(
        "--tensors", action="store_true", help="list each tensor with its type, shape and bytes"
    )


def run(args: argparse.Namespace) -> int:
    """Print it and return the exit code."""
    config = checked(EngineConfig, _FLAGS, args)
    overrides = model_file.overrides(args)

    from lariat import _kernels
    from lariat.runtime import threads
    from lariat.tools.inspection import inspect_file

    with inspect_file(model_file.find(args), overrides, args.use_mmap) as found:
        lines = [*_file(found), "", *_metadata(found), "", *_types(found)]
        if args.tensors:
            lines += ["", *_tensors(found)]
        lines += [
            "",
            "machine",
            f"  instruction set  {_kernels.isa()} (of {', '.join(_kernels.supported_isas())})",
            f"  threads          {threads.available()} (physical cores that it may use)",
        ]
        if found.config is not None:
            n_ctx = config.n_ctx or found.config.n_ctx_train
            lines += ["", *_memory(found, found.config, n_ctx)]
        console.write("\n".join(lines) + "\n")
    return 0


def _file(found: Inspection) -> Iterator[str]:
    from lariat.formats.gguf_split import GGUFModel

    gguf = found.gguf
    splits = gguf.splits if isinstance(gguf, GGUFModel) else ()
    yield "file"
    yield f"  path     {console.brief(str(gguf.path))}"
    yield f"  size     {_size(gguf.n_bytes)}"
    yield f"  version  {gguf.version}"
    if len(splits) > 1:
        yield f"  splits   {len(splits)}, to {console.printable(splits[-1].name)}"
    yield f"  what     {found.what}"
    yield f"  runs     {console.brief(f'no: {found.reason}') if found.reason else 'yes'}"
    if found.config is not None and not found.reason:
        yield f"  prepared {console.brief(_prepared(gguf, found.config))}"


def _prepared(gguf: GGUFFile, config: ModelConfig) -> str:
    """Where the prepared weights are, or why there are none."""
    from lariat.architectures.prepared import find

    prepared = find(gguf, config)
    if prepared.path is not None:
        return str(prepared.path)
    return f"no: {'; '.join(prepared.refused)}" if prepared.refused else "no"


def _metadata(found: Inspection) -> Iterator[str]:
    gguf = found.gguf
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


def _types(found: Inspection) -> Iterator[str]:
    types = found.types()
    total = sum(one.n_bytes for one in types)
    yield f"tensors ({sum(one.n_tensors for one in types)}, {_size(total)})"
    width = max((len(one.type) for one in types), default=0)
    for one in types:
        yield f"  {one.type:{max(8, width)}} {one.n_tensors:5}  {_size(one.n_bytes)}"


def _tensors(found: Inspection) -> Iterator[str]:
    """A line for each tensor, those of unknown types last. Shapes begin with a row's length."""
    rows = [(t.name, t.type.name, t.shape, t.n_bytes) for t in found.gguf.tensors.values()]
    rows += [(t.name, t.type_name, t.shape, t.n_bytes) for t in found.gguf.unknown.values()]
    width = max((len(row[0]) for row in rows), default=0)
    for name, type_name, shape, n_bytes in rows:
        dims = " x ".join(map(str, reversed(shape)))
        yield f"  {console.printable(name):{width}}  {type_name:8}  {dims:20}  {n_bytes}"


def _memory(found: Inspection, model: ModelConfig, n_ctx: int) -> Iterator[str]:
    """Weights and cache. Buffers for the computation are added to that, but they are small."""
    from lariat.cache.kv_cache import cache_bytes

    yield f"memory for a context of {n_ctx} (the model was trained for {model.n_ctx_train})"
    weights = sum(one.n_bytes for one in found.types())
    yield f"  weights                  {_size(weights)}"
    if model.experts is not None:
        n_used, n_experts = model.experts.n_used, model.experts.n_experts
        yield f"  read for a token         {_size(_bytes_of_a_token(found.gguf, model.experts))}"
        yield f"  experts of a token       {n_used} of {n_experts} in each layer"
    for name in CACHE_TYPES:
        try:
            n_bytes = cache_bytes(model, n_ctx, name, name)
        except ValueError:  # the model's heads do not divide by 32
            continue
        yield f"  cache -ctk {name:5} -ctv {name:5}  {_size(n_bytes)}"


def _bytes_of_a_token(gguf: GGUFFile, experts: ExpertConfig) -> int:
    """Of the weights, without the experts that are not chosen, and but a row of the embedding."""
    tied = "output.weight" not in gguf.tensors
    n_bytes = 0
    for name, tensor in gguf.tensors.items():
        if name == "token_embd.weight" and not tied:
            n_bytes += tensor.row_bytes
        elif _EXPERTS.search(name):
            n_bytes += tensor.n_bytes * experts.n_used // experts.n_experts
        else:
            n_bytes += tensor.n_bytes
    return n_bytes


def _size(n_bytes: int) -> str:
    """A number of bytes, for people and for scripts."""
    value, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{n_bytes} bytes" if unit == "B" else f"{value:.2f} {unit} ({n_bytes} bytes)"
