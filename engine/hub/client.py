"""Questions to the Hub through `huggingface_hub`, errors as one sentence, files that are checked.

A file is received under another name in the cache, so that a download that broke off goes on where
it was, in this process or in a later one; `huggingface_hub` alone begins anew. It gets its place in
the cache when its size and its checksum are those that the Hub announced. The token goes to the
Hub alone: not to another host that it redirects to.

Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn
from urllib.parse import urlsplit

from lariat.errors import HubError, quote

_MAX_PLAIN_BYTES = 50 * 10**9  # larger files come through huggingface_hub's own protocol only
_PIECE = 1 << 22  # bytes that are hashed at a time
_TIMEOUT = 10  # seconds until the Hub must have begun to answer
_AGENT = "lariat"  # how requests name this program


class Unreachable(HubError):
    """The Hub does not answer, or refuses; a model in the cache can be used all the same."""


class Listing(NamedTuple):
    """A repository as the Hub describes it."""

    commit: str
    sizes: dict[str, int]  # of each file in bytes, by its path; 0 where it is not told


class Hub:
    """The Hub that HF_ENDPOINT names, asked with one token.

    token      None: HF_TOKEN, or the one that `hf auth login` has kept
    cache_dir  None: that of `huggingface_hub` (HF_HUB_CACHE, HF_HOME)
    """

    def __init__(self, token: str | None = None, cache_dir: Path | None = None) -> None:
        from huggingface_hub import constants

        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise HubError("the token of the Hub is empty, or has characters that no token has")
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        if not re.fullmatch(r"https?://[\w.-]+(:\d{1,5})?(/[\w./-]*)?", self.endpoint, re.ASCII):
            raise HubError(
                f"HF_ENDPOINT is {quote(self.endpoint)}, expected http:// or https:// and a host"
            )
        self.cache_dir = default_cache_dir() if cache_dir is None else cache_dir
        self._token = token

    def list_files(self, repo: str) -> Listing:
        """The files of a repository at the newest commit of its main branch. Raises HubError."""
        from huggingface_hub import HfApi

        with self._explained(repo):
            api = HfApi(self.endpoint, token=self._token, library_name=_AGENT)
            info = api.model_info(repo, files_metadata=True, timeout=_TIMEOUT)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if not info.sha:
            raise Unreachable(f"{self.endpoint} does not answer as a Hub does")
        return Listing(info.sha, sizes)

    def fetch(
        self, repo: str, commit: str, path: str, on_bytes: Callable[[int], None] | None = None
    ) -> Path:
        """One file, from the cache or from the Hub; `on_bytes` is called with the bytes so far.

        Raises HubError, and OSError where the cache cannot be written.
        """
        from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache

        found = try_to_load_from_cache(repo, path, cache_dir=self.cache_dir, revision=commit)
        if isinstance(found, str):
            return Path(found)
        url = hf_hub_url(repo, path, revision=commit, endpoint=self.endpoint)
        folder = repo_folder(self.cache_dir, repo) / "blobs"
        with self._explained(repo, path):
            about = self._ask(url)
        # A slash would lead out of the folder.
        if not about.etag or not re.fullmatch(r"[\w.+-]+", about.etag, re.ASCII):
            raise HubError(f"{self.endpoint} names no checksum of {path}")
        is_plain = (about.size or 0) <= _MAX_PLAIN_BYTES
        if is_plain and not (folder / about.etag).exists():
            self._receive(_Target(repo, path, url, folder, about.etag, about.size), on_bytes)
        with self._explained(repo, path), _bars(shown=not is_plain):
            linked = hf_hub_download(
                repo, path, revision=commit, cache_dir=self.cache_dir, endpoint=self.endpoint,
                token=self._token, library_name=_AGENT,
            )  # fmt: skip
        if not is_plain:
            _check_sum(Path(linked).resolve(), about.etag, path)
        return Path(linked)

    def keep_branch(self, repo: str, commit: str) -> None:
        """Note in the cache that `commit` is the newest of the main branch."""
        ref = repo_folder(self.cache_dir, repo) / "refs" / "main"
        ref.parent.mkdir(parents=True, exist_ok=True)
        if not ref.exists() or ref.read_text() != commit:
            part = ref.with_name(f"main.{os.getpid()}.{threading.get_ident()}")
            part.write_text(commit)
            part.replace(ref)

    def _ask(self, url: str) -> Any:
        from huggingface_hub import get_hf_file_metadata

        return get_hf_file_metadata(url, token=self._token, library_name=_AGENT, timeout=_TIMEOUT)

    def _receive(self, target: _Target, on_bytes: Callable[[int], None] | None) -> None:
        """Bring a file into the cache. Another process that does so at the same time is waited for,
        and then has done the work."""
        target.folder.mkdir(parents=True, exist_ok=True)
        with _locked(target.partial) as file:
            if target.blob.exists():
                target.partial.unlink(missing_ok=True)
                return
            self._receive_rest(target, file, on_bytes)
            try:
                _check_sum(target.partial, target.etag, target.path)
            except HubError:
                target.partial.unlink(missing_ok=True)
                raise
            os.chmod(target.partial, 0o666 & ~_umask())
            os.replace(target.partial, target.blob)

    def _receive_rest(
        self, target: _Target, file: BinaryIO, on_bytes: Callable[[int], None] | None
    ) -> None:
        """Append what is missing. As long as something comes, a connection that broke is made
        again."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        while True:
            n_had = file.seek(0, os.SEEK_END)
            if target.n_bytes is not None and n_had > target.n_bytes:
                n_had = file.truncate(file.seek(0))
            target.check_space(n_had)
            sink = _Sink(file, on_bytes)
            try:
                about = self._ask(target.url)  # the address of another host may hold for minutes
                token = self._token if _origin(about.location) == _origin(target.url) else False
                headers = build_hf_headers(token=token, library_name=_AGENT)
                with _bars(shown=False):
                    http_get(
                        about.location,
                        sink,  # type: ignore[arg-type]
                        resume_size=n_had,
                        headers=headers,
                        expected_size=target.n_bytes,
                        displayed_filename=target.path,
                    )
                file.flush()
                return
            except _network_errors() as error:
                if sink.error is not None:
                    raise sink.error from None
                file.flush()
                n_has = file.seek(0, os.SEEK_END)
                if n_has == n_had or _status(error):
                    if n_has == 0 or _status(error):
                        self._fail(error, target.repo, target.path)
                    raise HubError(
                        f"the download of {target.path} broke off after {n_has} of "
                        f"{target.n_bytes} bytes ({_brief(error)}); the next try goes on from there"
                    ) from error

    @contextlib.contextmanager
    def _explained(self, repo: str, path: str = "") -> Iterator[None]:
        """Turn errors of `huggingface_hub` and of its HTTP library into a `HubError`."""
        try:
            yield
        except HubError:
            raise
        except _network_errors() as error:
            self._fail(error, repo, path)

    def _fail(self, error: Exception, repo: str, path: str) -> NoReturn:
        from huggingface_hub import errors

        status = _status(error)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS and not status:
            raise error
        if isinstance(error, errors.GatedRepoError):
            raise Unreachable(
                f"{repo} is gated: accept its terms at {self.endpoint}/{repo}, and give a token of "
                "that account (HF_TOKEN)"
            ) from error
        if status in (401, 403):
            raise Unreachable(
                f"{self.endpoint} refuses {repo} (HTTP {status}): it does not exist, or it is "
                "private and needs a token that may read it (HF_TOKEN)"
            ) from error
        if status == 404:
            raise HubError(f"{self.endpoint} has no {path and f'{path} in '}{repo}") from error
        if status:
            raise Unreachable(f"{self.endpoint} answers with HTTP status {status}") from error
        raise Unreachable(f"cannot reach {self.endpoint} ({_brief(error)})") from error


class _Target(NamedTuple):
    """A file that is being received."""

    repo: str
    path: str
    url: str
    folder: Path  # of the cache's blobs
    etag: str
    n_bytes: int | None

    @property
    def blob(self) -> Path:
        return self.folder / self.etag

    @property
    def partial(self) -> Path:
        return self.folder / f"{self.etag}.lariat.incomplete"

    def check_space(self, n_had: int) -> None:
        n_free = shutil.disk_usage(self.folder).free
        if self.n_bytes is not None and self.n_bytes - n_had > n_free:
            raise HubError(
                f"{self.path} needs {self.n_bytes - n_had} bytes more in {self.folder}, where "
                f"{n_free} are free"
            )


class _Sink:
    """A file for `http_get`: counts its bytes, and keeps an error of the disk apart from those of
    the network."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None] | None) -> None:
        self.error: OSError | None = None
        self._file = file
        self._on_bytes = on_bytes

    def write(self, data: bytes) -> int:
        try:
            n = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        if self._on_bytes is not None:
            self._on_bytes(self._file.tell())
        return n

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def default_cache_dir() -> Path:
    """The folder where `huggingface_hub` keeps files."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser()


def repo_folder(cache_dir: Path, repo: str) -> Path:
    """The folder of a repository in the cache."""
    return cache_dir / f"models--{repo.replace('/', '--')}"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the Hub."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    return said or bool(constants.HF_HUB_OFFLINE)


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def _network_errors() -> tuple[type[Exception], ...]:
    """The errors of `huggingface_hub`, whichever HTTP library its version has."""
    from huggingface_hub import errors

    return (OSError, errors.HTTPError, ValueError, TypeError, KeyError)


def _status(error: Exception) -> int:
    """The HTTP status behind an error, or 0."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    return status if isinstance(status, int) and status >= 400 else 0


def _brief(error: BaseException) -> str:
    """The first cause of an error, in its first line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _check_sum(path: Path, etag: str, name: str) -> None:
    """HubError unless the bytes have the checksum that is their name in the cache.

    Large files have their SHA-256, files that git keeps itself their git object id. Other servers
    may name neither; then there is nothing to compare.
    """
    if re.fullmatch("[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    if digest.hexdigest() != etag:
        raise HubError(f"{name} arrived damaged: its checksum is not the one that the Hub names")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The file, for one process at a time; it is made if it is missing."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            with contextlib.suppress(OSError):  # some file systems cannot lock
                fcntl.flock(file, fcntl.LOCK_EX)
            # The one before may have finished and renamed it, even between two lines of ours.
            try:
                is_current = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                is_current = False
            if is_current:
                yield file
                return


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Progress bars of `huggingface_hub`; Lariat has its own."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
