"""Names of models on the Hub, OWNER/REPO:TYPE, and the files of a repository that they mean.

As in llama.cpp, TYPE is looked for in the names of the files, behind it a dot or a hyphen. Without
a type it is Q4_K_M, then Q8_0, then the first model there is. A model in several files is all of
them. Files beside a model (projectors of images, importance matrices, drafts) are no models.

Source: https://github.com/ggml-org/llama.cpp (common/download.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from lariat.errors import HubError

_DEFAULT_TYPES = ("Q4_K_M", "Q8_0")
_BESIDE = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # in names of other files
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_TYPE = re.compile(r"[\w.-]{1,64}", re.ASCII)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_LABEL = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:BF16|F16|F32|MXFP4(?:_MOE)?|I?Q\d\w*|TQ\d_\d))[.-]", re.I | re.A
)
_N_SHOWN = 8  # files that an error lists


class ModelName(NamedTuple):
    """A repository, and the type of weights in it; "" for the default."""

    repo: str
    type: str

    def __str__(self) -> str:
        return f"{self.repo}:{self.type}" if self.type else self.repo


def parse(text: str) -> ModelName:
    """OWNER/REPO or OWNER/REPO:TYPE. ValueError for another form."""
    repo, colon, type_name = text.partition(":")
    if not _REPO.fullmatch(repo) or (colon and not _TYPE.fullmatch(type_name)):
        raise ValueError(f"{text!r} is not of the form OWNER/REPO or OWNER/REPO:TYPE")
    return ModelName(repo, type_name)


def choose(name: ModelName, files: Iterable[str], filename: str | None = None) -> list[str]:
    """The files of a model, the first split first.

    files: all paths in the repository, with `/`. `filename` is one of them, in any case, or a
    pattern such as `*q8_0.gguf` that fits one model. HubError says what there is instead.
    """
    paths = sorted(path for path in files if path.lower().endswith(".gguf"))
    models = [path for path in paths if is_model(path) and _number(path) == 1]
    if filename is not None:
        first = _named(name, paths, filename)
    else:
        first = _of_type(name, models)
    return _all_splits(name, paths, first)


def is_model(path: str) -> bool:
    """Whether a path is that of a model's file, by its name; each split counts."""
    file = path.rpartition("/")[2]
    return file.lower().endswith(".gguf") and not any(word in file for word in _BESIDE)


def is_first(path: str) -> bool:
    """Whether a file is the first of its model's splits, or the only one."""
    return _number(path) == 1


def type_label(path: str) -> str:
    """The type that the name of a file says, such as Q4_K_M; "" if it says none."""
    found = _LABEL.findall(path.rpartition("/")[2])
    return found[-1].upper() if found else ""


def _named(name: ModelName, paths: Sequence[str], filename: str) -> str:
    wanted = filename.lower()
    exact = [path for path in paths if path.lower() == wanted]
    # A pattern without a folder fits models in any folder.
    fits = exact or [
        path
        for path in filter(is_model, paths)
        if fnmatchcase(path.lower(), wanted)
        or ("/" not in wanted and fnmatchcase(path.lower().rpartition("/")[2], wanted))
    ]
    firsts = list(dict.fromkeys(_first_of(path) for path in fits))
    if not firsts:
        raise HubError(f"{name.repo} has no file {filename!r}{_listed(paths)}")
    if len(firsts) > 1:
        raise HubError(f"{filename!r} fits {len(firsts)} files of {name.repo}{_listed(firsts)}")
    return firsts[0]


def _of_type(name: ModelName, models: Sequence[str]) -> str:
    for type_name in (name.type,) if name.type else _DEFAULT_TYPES:
        # Nothing stands before it that would make it another type: F16 is not in BF16.
        pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(type_name)}[.-]", re.IGNORECASE)
        for path in models:
            if pattern.search(path):
                return path
    if name.type:
        raise HubError(f"{name.repo} has no model of type {name.type}{_listed(models)}")
    if not models:
        raise HubError(f"{name.repo} has no GGUF file of a model")
    return models[0]


def _all_splits(name: ModelName, paths: Sequence[str], first: str) -> list[str]:
    splits = split_paths(first)
    for path in splits:
        if path not in paths:
            raise HubError(f"{name.repo} lacks {path!r}, one of {len(splits)} splits of a model")
    return splits


def split_paths(first: str) -> list[str]:
    """The paths of all splits of a model, by the name of its first file."""
    found = _SPLIT.search(first)
    if found is None:
        return [first]
    n = max(1, int(found[2]))
    return [f"{first[: found.start()]}-{i + 1:05d}-of-{found[2]}{first[-5:]}" for i in range(n)]


def _first_of(path: str) -> str:
    """The first split of the model that a file belongs to."""
    return split_paths(path)[0]


def _number(path: str) -> int:
    found = _SPLIT.search(path)
    return int(found[1]) if found else 1


def _listed(paths: Sequence[str]) -> str:
    """ "; it has a, b" for an error, with `_N_SHOWN` at most."""
    firsts = [path for path in paths if _number(path) == 1]
    if not firsts:
        return ""
    more = f" and {len(firsts) - _N_SHOWN} more" if len(firsts) > _N_SHOWN else ""
    return f"; it has {', '.join(firsts[:_N_SHOWN])}{more}"
