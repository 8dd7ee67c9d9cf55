"""`lariat prepare`: writes a model's interleaved weights, so that later starts map them."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat.cli import console, interrupts, model_file
from lariat.cli.usage import UsageError
from lariat.demo import DEMO_MODEL

if TYPE_CHECKING:
    from lariat.config import ModelConfig
    from lariat.formats.gguf_split import GGUFModel

_DESCRIPTION = """\
Write the weights of a model as the kernels want them: into a file beside the model, or in a cache
folder where that cannot be written. All commands then map the file instead of building the weights
anew, and processes share it. It is as large as the model. A file that does not belong to the model
as it is now is never used."""

_EPILOG = """\
examples:
  lariat prepare model.gguf
  lariat prepare -hf unsloth/Qwen3-0.6B-GGUF:Q8_0
  lariat prepare model.gguf --check
  lariat prepare model.gguf --remove

The cache folder is that of --cache-dir, or LARIAT_CACHE, or lariat in XDG_CACHE_HOME, or
~/.cache/lariat. Other commands look beside the model, and in the folder that LARIAT_CACHE or its
defaults name. The path of the file is printed. The exit code of --check is 1 if there is no file,
or one that is damaged or does not belong to the model."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "prepare",
        help="write a model's weights so that starts are quick and memory is shared",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("file", metavar="MODEL", nargs="?", help="the GGUF file, as with -m")
    model_file.add_arguments(parser)
    parser.add_argument(
        "--cache-dir", metavar="DIR", help="write the file into this folder, not beside the model"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="compare the whole file with the model"
    )
    action.add_argument("--remove", action="store_true", help="remove the model's file")
    action.add_argument(
        "-f", "--force", action="store_true", help="write the file even if it is there and fits"
    )
    parser.add_argument(
        "-t", "--threads", type=int, metavar="N", help="threads (default: the physical cores)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no bar, only errors")


def run(args: argparse.Namespace) -> int:
    """Do it, print the file's path, and return the exit code."""
    from lariat.architectures import prepared
    from lariat.architectures.loading import read_config
    from lariat.checks import check_path
    from lariat.formats.gguf_split import GGUFModel
    from lariat.runtime import threads

    if args.file is not None:
        if args.model != DEMO_MODEL or args.hf_repo is not None:
            raise UsageError("argument MODEL: not allowed with -m or -hf")
        args.model = args.file
    try:
        n_threads = threads.resolve(args.threads)
    except ValueError as error:
        raise UsageError(f"argument -t/--threads: {error}") from None
    overrides = model_file.overrides(args)
    path = check_path("the model", model_file.find(args))
    folder = None if args.cache_dir is None else Path(args.cache_dir)
    if args.remove:
        for gone in prepared.remove(path, folder):
            console.write(f"{gone}\n")
        return 0
    interrupts.begin_work()
    with GGUFModel(path, overrides, args.use_mmap) as gguf:
        config = read_config(gguf)
        if args.check:
            return _check(gguf, config, folder, n_threads, args.quiet)
        return _write(gguf, config, folder, n_threads, args)


def _check(
    gguf: GGUFModel, config: ModelConfig, folder: Path | None, n_threads: int, quiet: bool
) -> int:
    """Check the first file that commands would use, or that is there and is refused."""
    from lariat.architectures import prepared
    from lariat.errors import PreparedError

    there = [path for path in prepared.candidates(gguf.path, folder) if path.exists()]
    if not there:
        raise PreparedError(f"{gguf.path}: is not prepared")
    for path in there:
        with console.Bar("checking", enabled=not quiet) as bar:
            prepared.check(gguf, config, path, n_threads, bar)
        console.write(f"{path}\n")
    return 0


def _write(
    gguf: GGUFModel,
    config: ModelConfig,
    folder: Path | None,
    n_threads: int,
    args: argparse.Namespace,
) -> int:
    from lariat.architectures import prepared
    from lariat.runtime import threads

    path = _place(gguf.path, folder)
    if not args.force and prepared.fits(gguf, config, path):
        console.write(f"{path}\n")
        return 0
    start = time.perf_counter()
    with console.Bar("preparing", enabled=not args.quiet) as bar, threads.forward_pass():
        prepared.prepare(gguf, config, path, n_threads, bar)
    if not args.quiet:
        n_bytes, seconds = path.stat().st_size, time.perf_counter() - start
        console.note(f"lariat: {n_bytes / 1e9:.3f} GB written in {seconds:.1f} s")
    console.write(f"{path}\n")
    return 0


def _place(model: Path, folder: Path | None) -> Path:
    """Where to write: beside the model, unless that cannot be, or it is a part of this package."""
    from lariat.architectures import prepared

    if folder is None:
        if os.fspath(model) != DEMO_MODEL and os.access(model.parent, os.W_OK):
            return prepared.beside(model)
        folder = prepared.cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return prepared.in_folder(model, folder)
