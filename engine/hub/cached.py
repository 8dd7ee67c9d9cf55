"""Models in the cache of `huggingface_hub`: folders of repositories, commits and files.

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lariat.errors import HubError
from lariat.hub.names import ModelName, choose, is_first, is_model, split_paths, type_label

_FOLDER = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)


class CachedModel(NamedTuple):
    """A model in the cache."""

    repo: str
    file: str  # path in the repository; of the first split
    type: str  # with which `-hf REPO:TYPE` finds it; "" if its name does not say one
    path: Path
    n_bytes: int  # of all splits that are there
    n_missing: int  # splits that are not there


def find_model(cache_dir: Path, name: ModelName, filename: str | None = None) -> Path | None:
    """The file of a model, or the first of its splits; None unless the cache has all of them.

    Of the newest commit that has it. HubError where the repository is in the cache without such a
    model.
    """
    error: HubError | None = None
    for snapshot in _snapshots(cache_dir / f"models--{name.repo.replace('/', '--')}"):
        try:
            return snapshot / choose(name, _files(snapshot), filename)[0]
        except HubError as refusal:
            error = error or refusal
    if error is not None:
        raise HubError(f"in the cache, {error}")
    return None


def list_models(cache_dir: Path) -> list[CachedModel]:
    """All models, by repository and file; of several commits of a repository the newest."""
    models: dict[tuple[str, str], CachedModel] = {}
    for folder in sorted(cache_dir.glob("models--*--*")):
        named = _FOLDER.fullmatch(folder.name)
        if named is None:
            continue
        repo = f"{named[1]}/{named[2]}"
        for snapshot in _snapshots(folder):
            files = _files(snapshot)
            for file in files:
                if is_model(file) and is_first(file):
                    models.setdefault((repo, file), _model(repo, snapshot, file, files))
    return [models[key] for key in sorted(models)]


def _model(repo: str, snapshot: Path, file: str, files: list[str]) -> CachedModel:
    splits = split_paths(file)
    there = [split for split in splits if split in files]
    n_bytes = sum((snapshot / split).stat().st_size for split in there)
    label, n_missing = type_label(file), len(splits) - len(there)
    if not (label and _means(repo, label, files) == file):
        label = ""
    return CachedModel(repo, file, label, snapshot / file, n_bytes, n_missing)


def _means(repo: str, label: str, files: list[str]) -> str:
    """The file that a type means among others, "" for none that is whole."""
    try:
        return choose(ModelName(repo, label), files)[0]
    except HubError:
        return ""


def _snapshots(folder: Path) -> Iterator[Path]:
    """The folders of all commits, that of the main branch first, then the newest."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return
    ref = folder / "refs" / "main"
    main = ref.read_text().strip() if ref.is_file() else ""
    commits = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    yield from sorted(commits, key=lambda path: path.name != main)


def _files(snapshot: Path) -> list[str]:
    """The GGUF files of a commit; a link whose file is gone is none."""
    return [
        path.relative_to(snapshot).as_posix()
        for path in sorted(snapshot.rglob("*"))
        if path.suffix.lower() == ".gguf" and path.is_file()
    ]
