"""A folder of chunks: documents whose keys and values were computed once, to be put together.

    index.json             names of the chunks, and what is known of each
    <content>.safetensors  a chunk, see `lariat.formats.chunk_file`; named by a hash of model, cache
                           types, RoPE and tokens, so that the same document is computed and
                           kept once
    .lock                  held while the two above are changed

Files appear whole, by renaming, so reading needs no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lariat.cache.blocks import SLOTS
from lariat.cache.kv_cache import FileBlocks
from lariat.checks import check_path
from lariat.errors import ContextError, quote
from lariat.formats.atomic import SUFFIX, written_beside
from lariat.formats.chunk_file import ONLY_RAW, StoredChunk, check_fits, save
from lariat.reuse.prompt_reuse import common_prefix
from lariat.reuse.recompute import recompute_of
from lariat.runtime.placed import Chooser, Placement
from lariat.runtime.runner import Runner
from lariat.tokenizers.tokenizer import Tokenizer

_INDEX, _LOCK, _SUFFIX = "index.json", ".lock", ".safetensors"
_BEGINNING = "beginning"  # key of a file's metadata, see `Beginning`
_BEHIND = "behind"  # another: what the document was computed behind, besides the sink


_LEAST_KEPT = 0.9  # of the answers of full prefill, where there are enough; else of its tokens
_FEW = 10  # answers that say nothing


@dataclass(frozen=True)
class Verified:
    """The result of `lariat chunk verify` for a chunk that stands behind others.

    recompute   the setting that it was measured with, as the command line writes it
    n_questions, n_answered, n_kept
                questions about it; those that full prefill answers; those of them that it answers
                with reused keys and values too
    kl          divergence from full prefill, nats a token
    top1        share of tokens whose likeliest token is full prefill's
    """

    recompute: str
    n_questions: int
    n_answered: int
    n_kept: int
    kl: float
    top1: float

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no library writes."""
        numbers = (self.n_questions, self.n_answered, self.n_kept)
        if not (
            isinstance(self.recompute, str)
            and self.recompute.isprintable()
            and all(type(number) is int and number >= 0 for number in numbers)
            and all(type(x) in (int, float) and math.isfinite(x) for x in (self.kl, self.top1))
        ):
            raise ValueError("a verification of another form than a library writes")

    @property
    def is_good(self) -> bool:
        """Whether nine tenths of the answers of full prefill are kept, or of its likeliest tokens
        where it answers few questions."""
        if self.n_answered < _FEW:
            return self.top1 >= _LEAST_KEPT
        return self.n_kept >= _LEAST_KEPT * self.n_answered


@dataclass(frozen=True)
class Entry:
    """A chunk as the index describes it."""

    name: str
    content: str  # hash, and the name of its file
    n_tokens: int
    n_bytes: int  # of keys and values
    model: str  # fingerprint
    type_k: str
    type_v: str
    verified: tuple[Verified, ...] = ()  # one of each setting

    @classmethod
    def parsed(cls, entry: dict[str, Any]) -> Entry:
        """Read an element of the index. ValueError or TypeError for another form."""
        verified = tuple(Verified(**one) for one in entry.get("verified", ()))
        return cls(**{**entry, "verified": verified})

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no library writes: an index may come from anywhere."""
        texts = (self.name, self.content, self.model, self.type_k, self.type_v)
        numbers = (self.n_tokens, self.n_bytes)
        if not (
            all(isinstance(text, str) and text.isprintable() for text in texts)
            and re.fullmatch("[0-9a-f]{32}", self.content)
            and all(type(number) is int and number >= 0 for number in numbers)
        ):
            raise ValueError("an entry of another form than a library writes")


class ReuseWarning(UserWarning):
    """A chunk is placed although nobody measured what it loses there, or although it loses much."""


class Engine(Protocol):
    """The side of an `LLM` that computes a document."""

    runner: Runner
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Beginning:
    """How a document begins behind other text: `ids` stand for its first `n_replaced` tokens.

    They differ where SentencePiece puts a blank in front of a text.
    """

    n_replaced: int = 0
    ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, first: list[int], continued: list[int]) -> Beginning:
        """Compare the ids of a text that begins with those of the same text behind another."""
        n_equal = common_prefix(first[::-1], continued[::-1])
        return cls(len(first) - n_equal, tuple(continued[: len(continued) - n_equal]))

    @classmethod
    def parsed(cls, text: str, n_tokens: int) -> Beginning:
        """Read the metadata of a file, "" for none. ValueError if it does not fit a document of
        `n_tokens` tokens."""
        try:
            n_replaced, *ids = map(int, text.split()) if text else (0,)
        except ValueError:
            n_replaced, ids = -1, []
        if not 0 <= n_replaced <= n_tokens:
            raise ValueError("its beginning behind other text does not fit")
        return cls(n_replaced, tuple(ids))

    def metadata(self) -> dict[str, str]:
        """Metadata for `parsed`; none if the document begins alike wherever it stands."""
        numbers = " ".join(map(str, (self.n_replaced, *self.ids)))
        return {_BEGINNING: numbers} if self.n_replaced else {}


class Chunk(StoredChunk):
    """A document of a library, for `Context.append` and `Context.insert`.

    `on_reuse` is called with `recompute` when it is placed where it is not exact.
    """

    on_reuse: Callable[[str | int | Chooser], None] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether it is, at the beginning of a context, what computing it there would give."""
        return _BEHIND not in self.metadata

    def plan(
        self,
        runner: Runner,
        before: list[int],
        *,
        is_empty: bool,
        continues: bool,
        recompute: str | int | Chooser,
    ) -> Placement:
        """Plan to put the document behind the tokens `before` of a context.

        An empty context gets the sink too. Behind the sink alone the document stands where it was
        computed; elsewhere tokens of it are recomputed, see `recompute_of`. A document that
        continues ordinary text loses the blank in front of it, and the tokens that this changes
        are computed. ValueError for another `recompute`, ContextError for a cache of another
        signature and for a damaged file.
        """
        n_first, chooser = recompute_of(recompute)
        is_there = before in ([], self.sink) and self.is_exact
        if n_first is not None and not is_there and self.on_reuse is not None:
            self.on_reuse(recompute)
        self.check_signature(runner.signature(len(self.sink) + len(self)))
        check_fits(self, *runner.cache.block_shape)
        try:
            whole = runner.check_ids([*self.sink, *self.tokens])
            other = Beginning.parsed(self.metadata.get(_BEGINNING, ""), len(self))
            beginning = runner.token_ids(other.ids)
        except ContextError:
            raise
        except ValueError as error:
            raise ContextError(f"{self.path}: is damaged: {error}") from None
        ids = whole if is_empty else whole[len(self.sink) :]
        n_recompute = len(ids) if n_first is None else 0 if is_there else min(n_first, len(ids))
        if continues and other.n_replaced:
            ids = [*beginning, *ids[other.n_replaced :]]
            n_recompute = min(max(n_recompute, len(beginning)), len(ids))
        blocks = FileBlocks(
            self.segments, self.keys, self.values, self.file.fileno(),
            self.offsets["keys"], self.offsets["values"], self.checksum,
        )  # fmt: skip
        n_sink = len(self.sink) if is_empty else 0
        exact_behind = tuple(self.sink) if self.is_exact else None
        return Placement(ids, blocks, n_recompute, n_sink, chooser, exact_behind)


class ChunkLibrary:
    """A folder of chunks; several processes may read and write it at once.

    Every method raises `ContextError`, with a sentence, for a folder that cannot be read or
    written, and for files that were cut or altered.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Use `folder`; it is made when the first chunk is added."""
        self.folder = check_path("folder", folder)
        self._open: dict[str, Chunk] = {}  # by content
        self._has_warned = False

    def entries(self) -> list[Entry]:
        """All chunks, by name."""
        return [entry for _, entry in sorted(self._read_index().items())]

    def entry(self, name: str) -> Entry:
        """A chunk as the index describes it, without a look at its file."""
        entry = self._read_index().get(name) if isinstance(name, str) else None
        if entry is None:
            raise ContextError(f"{self.folder}: has no chunk named {quote(str(name))}")
        return entry

    def __getitem__(self, name: str) -> Chunk:
        """Open a chunk, for `Context.append` and `Context.insert`."""
        entry = self.entry(name)
        if entry.content not in self._open:
            try:
                self._open[entry.content] = Chunk(self._path(entry.content))
            except OSError as error:
                if self._read_index().get(name) not in (None, entry):
                    return self[name]  # replaced just now
                path = self._path(entry.content)
                raise ContextError(
                    f"{path}: chunk {quote(name)} cannot be read: {error.strerror}"
                ) from error
        chunk = self._open[entry.content]
        chunk.on_reuse = partial(self._warn, entry)
        return chunk

    def add(
        self,
        llm: Engine,
        name: str,
        document: str | list[int],
        *,
        behind: str | list[int] = "",
        parse_special: bool = False,
    ) -> Chunk:
        """Compute a document (text or token ids), behind BOS if the model has one, and keep it.

        A chunk that has this name is replaced; a document that is there already is not computed
        again. With `parse_special` control tokens that are written in a text become those tokens.
        `ContextError` if it does not fit the context of `llm`, whose cache must be raw.

        behind: text or ids that the document is computed behind, and that are cut off again. Behind
        a few line breaks its own first tokens are no sinks of attention; or it is the beginning
        that the prompts have.
        """
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ContextError(
                f"{name!r} is no name for a chunk: expected a printable text that is not empty"
            )
        runner, sink, other = llm.runner, llm.tokenizer.encode_part(""), Beginning()
        if isinstance(document, str):
            ids, other = _encoded(llm.tokenizer, document, parse_special)
        else:
            ids = runner.token_ids(document)
        if not ids:
            raise ContextError(f"chunk {name!r}: the document is empty")
        if isinstance(behind, str):
            front = llm.tokenizer.encode_behind(sink, behind, parse_special=parse_special)[1]
        else:
            front = runner.token_ids(behind)
        n_all = len(sink) + len(front) + len(ids)
        signature = runner.signature(n_all)
        if signature["cache"] != "raw":
            raise ContextError(ONLY_RAW)
        if n_all > runner.n_ctx:
            raise ContextError(
                f"chunk {name!r} has {n_all} tokens with those before it, "
                f"more than the context of {runner.n_ctx}"
            )
        metadata = other.metadata() | ({_BEHIND: " ".join(map(str, front))} if front else {})
        described = repr((sorted(signature.items()), sink, ids, *metadata.values())).encode()
        content = hashlib.blake2b(described, digest_size=16).hexdigest()
        path = self._path(content)
        chunk, computed = None, None
        while chunk is None:  # twice where there is something to compute
            with self._changing() as index:
                if computed:
                    save(path, signature | metadata, computed)
                chunk = Chunk(path) if computed else _whole(path)
                if chunk is not None:
                    types = {key: signature[key] for key in ("model", "type_k", "type_v")}
                    old = index.get(name)
                    known = old.verified if old is not None and old.content == content else ()
                    index[name] = Entry(
                        name, content, len(chunk), chunk.nbytes, **types, verified=known
                    )
            if chunk is None:
                computed = _compute(runner, sink, front, ids)
        self._open[content] = chunk
        return chunk

    def keep_verified(self, found: Mapping[str, Verified]) -> None:
        """Note in the index what was found of chunks, by name. Names that are gone are left out."""
        with self._changing() as index:
            for name, new in found.items():
                if name in index:
                    old = index[name].verified
                    others = [one for one in old if one.recompute != new.recompute]
                    index[name] = replace(index[name], verified=(*others, new))

    def _warn(self, entry: Entry, recompute: str | int | Chooser) -> None:
        """Say once that nobody knows what reuse costs here, or that it costs much."""
        of_setting = [one for one in entry.verified if one.recompute == str(recompute)]
        if self._has_warned or any(one.is_good for one in of_setting):
            return
        self._has_warned = True
        text = f"{self.folder}: chunk {quote(entry.name)} "
        for one in of_setting:
            text += (
                f"loses answers where it is reused: when it was verified, {one.n_kept} of "
                f"{one.n_answered} were kept, and {one.top1:.0%} of the likeliest tokens"
            )
        if not of_setting:
            text += "was not verified"
            text += f" with recompute={recompute}" if entry.verified else ""
            text += ": `lariat chunk verify` measures what reuse costs"
        warnings.warn(text, ReuseWarning, stacklevel=6)

    def remove(self, name: str) -> None:
        """Forget a chunk. Contexts that hold it keep it."""
        with self._changing() as index:
            if not isinstance(name, str) or name not in index:
                raise ContextError(f"{self.folder}: has no chunk named {quote(str(name))}")
            del index[name]

    # ---- below: the folder -------------------------------------------------------------------

    def _path(self, content: str) -> Path:
        return self.folder / (content + _SUFFIX)

    def _read_index(self) -> dict[str, Entry]:
        path = self.folder / _INDEX
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise ContextError(f"{path}: cannot be read: {_reason(error)}") from error
        try:
            return {entry["name"]: Entry.parsed(entry) for entry in json.loads(text)}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ContextError(f"{path}: is damaged, expected a list of chunks") from error

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Entry]]:
        """The index, to be changed by one process at a time.

        All writing is done here, so other files than those of the index are what a crash, or an
        earlier content of the index, has left: they are removed.
        """
        with self._locked():
            index = self._read_index()
            before = dict(index)
            yield index
            if index == before:
                return
            entries = [asdict(entry) for entry in index.values()]
            with written_beside(self.folder / _INDEX, ContextError) as beside:
                beside.write_text(json.dumps(entries, indent=1), "utf-8")
            used = {self._path(entry.content) for entry in index.values()}
            for path in {*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob(f".*{SUFFIX}")} - used:
                with contextlib.suppress(OSError):
                    path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / _LOCK, "ab")  # noqa: SIM115
        except OSError as error:
            raise ContextError(
                f"{self.folder}: the library cannot be written: {_reason(error)}"
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            yield


def _encoded(tokenizer: Tokenizer, text: str, parse_special: bool) -> tuple[list[int], Beginning]:
    """Ids of a document that begins a context, and its other beginning behind ordinary text."""
    ids = tokenizer.encode_part(text, add_bos=False, parse_special=parse_special)
    if not tokenizer.add_space_prefix:
        return ids, Beginning()
    ordinary = (i for i in range(tokenizer.n_vocab) if tokenizer.is_continued([i]))
    before = list(islice(ordinary, 1))
    _, behind = tokenizer.encode_behind(before, text, add_bos=False, parse_special=parse_special)
    return ids, Beginning.of(ids, behind)


def _compute(
    runner: Runner, sink: list[int], front: list[int], ids: list[int]
) -> dict[str, np.ndarray]:
    """Compute a document behind `sink` and `front`, of which only `sink` stays: the arrays that
    `lariat.formats.chunk_file` writes."""
    with runner.exclusive:
        runner.sweep()  # others may have given blocks up
        table = runner.new_table()
        try:
            runner.compute(table, [*sink, *front])
            runner.compute(table, ids)
            if front:
                table.delete(len(sink), len(sink) + len(front))
            segments = table.cut(0, table.n_tokens)[:, :3]
            # The last block is filled, so that none of its earlier contents get into the file.
            blocks = list(dict.fromkeys(segments[:, 0].tolist()))
            last = segments[-1]
            runner.compute(table, [ids[-1]] * int(SLOTS - last[1] - last[2]))
            segments[:, 0] = [blocks.index(block) for block in segments[:, 0].tolist()]
            keys, values = runner.cache.read_blocks(np.array(blocks))
        finally:
            table.clear()
    tokens, before = np.array(ids, np.int32), np.array(sink, np.int32)
    return {"keys": keys, "values": values, "tokens": tokens, "sink": before, "segments": segments}


def _whole(path: Path) -> Chunk | None:
    """The chunk in a file, if it is there and not damaged."""
    try:
        return Chunk(path)
    except (OSError, ContextError):
        return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
