"""A model by its name: its files from the Hub, or from the cache where there is no network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from lariat.errors import HubError
from lariat.hub import cached
from lariat.hub.client import Hub, Unreachable, default_cache_dir, is_offline
from lariat.hub.names import ModelName, choose


def find_model(
    name: ModelName,
    filename: str | None = None,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Callable[[float, str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Path:
    """The file of a model, or the first of its splits; files that are not in the cache are fetched.

    The Hub is asked which files it has now. If it cannot be reached, or refuses, the files in the
    cache are taken, with a warning. With `offline`, or HF_HUB_OFFLINE=1, it is never asked.

    filename  a file of the repository, or a pattern that fits one model: instead of the type
    token     for repositories that are private or gated; None: HF_TOKEN, or that of `hf auth login`
    progress  is called with the share of the download, 0 to 1, and the file's name
    warn      is called with a sentence; None: `warnings.warn`

    Raises HubError, and OSError where the cache cannot be written.
    """
    folder = default_cache_dir() if cache_dir is None else cache_dir
    if offline or is_offline():
        found = cached.find_model(folder, name, filename)
        if found is None:
            raise HubError(f"{name} is not in the cache ({folder}), and the Hub may not be asked")
        return found
    hub = Hub(token, folder)
    try:
        return _from_hub(hub, name, filename, progress)
    except Unreachable as error:
        try:
            found = cached.find_model(folder, name, filename)
        except HubError as refusal:
            raise HubError(f"{error}; {refusal}") from None
        if found is None:
            raise
        message = f"{error}; the copy in the cache is used"
        if warn is None:
            warnings.warn(message, stacklevel=3)
        else:
            warn(message)
        return found


def _from_hub(
    hub: Hub,
    name: ModelName,
    filename: str | None,
    progress: Callable[[float, str], None] | None,
) -> Path:
    commit, sizes = hub.list_files(name.repo)
    files = choose(name, sizes, filename)
    n_all, n_done = max(1, sum(sizes[path] for path in files)), 0
    found = []
    for path in files:

        def on_bytes(n: int, n_before: int = n_done, path: str = path) -> None:
            if progress is not None:
                progress(min(1.0, (n_before + n) / n_all), path)

        found.append(hub.fetch(name.repo, commit, path, on_bytes))
        n_done += sizes[path]
    hub.keep_branch(name.repo, commit)
    return found[0]
