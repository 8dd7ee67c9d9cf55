"""`lariat list`: the models in the cache of the Hugging Face Hub, and which of them run here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lariat.cli import console
from lariat.errors import LariatError

if TYPE_CHECKING:
    from lariat.hub.cached import CachedModel

_DESCRIPTION = """\
Print the models in the cache of the Hugging Face Hub, which `-hf` fills: the name that -hf takes
(or the file, where the type does not say which), bytes, whether the model runs here or the reason
why not, and whether it is prepared. Nothing is fetched."""

_EPILOG = """\
HF_HUB_CACHE or HF_HOME name another place of the cache. `hf cache` of huggingface_hub removes
models."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "list",
        help="models in the cache of the Hub",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for each model, its fields separated by tabs, and return the exit code."""
    from lariat.hub.cached import list_models
    from lariat.hub.client import default_cache_dir

    folder = default_cache_dir()
    models = list_models(folder)
    for model in models:
        fields = (_name(model), str(model.n_bytes), _verdict(model))
        console.write("\t".join(map(console.brief, fields)) + "\n")
    if not models:
        console.note(f"lariat: there is no model in {console.brief(str(folder))}")
    return 0


def _name(model: CachedModel) -> str:
    return f"{model.repo}:{model.type}" if model.type else f"{model.repo} -hff {model.file}"


def _verdict(model: CachedModel) -> str:
    from lariat.architectures.prepared import find
    from lariat.tools.inspection import inspect_file

    if model.n_missing:
        return f"no: {model.n_missing} of its splits are not in the cache"
    try:
        with inspect_file(model.path) as found:
            if found.reason or found.config is None:
                return f"no: {found.reason}"
            return "runs, prepared" if find(found.gguf, found.config).path else "runs"
    except (LariatError, OSError) as error:
        return f"no: {str(error).removeprefix(f'{model.path}: ')}"
