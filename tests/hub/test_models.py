"""Models from a Hub on loopback: the real code of `huggingface_hub`, over HTTP."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir
from lariat import HubError
from lariat.hub import client
from lariat.hub.models import find_model
from lariat.hub.names import parse

from tests.hub.conftest import REPO
from tests.support.hub_server import COMMIT, HubServer, serving

Q4 = "tiny-Q4_K_M.gguf"


def find(name: str = REPO, filename: str | None = None, **options: object) -> Path:
    return find_model(parse(name), filename, **options)  # type: ignore[arg-type]


def partials(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.rglob("*.incomplete"))


def test_the_right_file_comes_and_stays_in_the_cache(hub: HubServer, tmp_path: Path) -> None:
    path = find()
    assert path.read_bytes() == hub.files[REPO][Q4]
    assert path == tmp_path / "cache" / "models--someone--tiny-GGUF" / "snapshots" / COMMIT / Q4
    assert not partials(tmp_path)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    hub.asked.clear()
    assert find() == path
    assert [one.method for one in hub.asked if "/api/models/" not in one.path] == []


def test_other_programs_find_it_in_the_cache(hub: HubServer, tmp_path: Path) -> None:
    find()
    cache = scan_cache_dir(tmp_path / "cache")
    assert not cache.warnings
    (repo,) = cache.repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash, set(revision.refs)) == (REPO, COMMIT, {"main"})
    assert [file.file_name for file in revision.files] == [Q4]


def test_all_splits_come_and_the_first_is_the_model(hub: HubServer) -> None:
    seen: list[tuple[float, str]] = []
    path = find(f"{REPO}:Q8_0", progress=lambda share, file: seen.append((share, file)))
    assert path.name == "tiny-q8_0-00001-of-00002.gguf"
    assert path.with_name("tiny-q8_0-00002-of-00002.gguf").read_bytes() == b"2" * 500
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert seen[0][0] < 0.5
    assert seen[-1] == (1.0, "tiny-q8_0-00002-of-00002.gguf")


def test_a_connection_that_breaks_is_made_again(hub: HubServer, tmp_path: Path) -> None:
    hub.break_after = [1000, 2000]
    assert find().read_bytes() == hub.files[REPO][Q4]
    ranges = [one.range for one in hub.of("GET", Q4)]
    # Whole pieces of 256 bytes are kept.
    assert ranges == [None, "bytes=768-", "bytes=2560-"]
    assert not partials(tmp_path)


def test_another_run_goes_on_where_one_broke_off(hub: HubServer, tmp_path: Path) -> None:
    hub.break_after = [1000, *[0] * 20]
    with pytest.raises(HubError, match=r"broke off after 768 of 4096 bytes \(.*the next try goes"):
        find()
    assert [path.stat().st_size for path in partials(tmp_path)] == [768]
    hub.break_after, hub.asked = [], []
    assert find().read_bytes() == hub.files[REPO][Q4]
    assert [one.range for one in hub.of("GET", Q4)] == ["bytes=768-"]
    assert not partials(tmp_path)


def test_an_interrupt_leaves_what_has_come(hub: HubServer, tmp_path: Path) -> None:
    def interrupt(share: float, path: str) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(progress=interrupt)
    assert 2048 < partials(tmp_path)[0].stat().st_size < 4096
    hub.asked.clear()
    assert find().read_bytes() == hub.files[REPO][Q4]
    assert hub.of("GET", Q4)[0].range


def test_a_server_that_knows_no_ranges(hub: HubServer) -> None:
    hub.break_after, hub.ignores_ranges = [1000], True
    assert find().read_bytes() == hub.files[REPO][Q4]


def test_a_wrong_checksum_is_found_and_nothing_is_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.damaged = True
    with pytest.raises(HubError, match=f"^{Q4} arrived damaged: its checksum is not the one"):
        find()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 64]
    hub.damaged = False
    assert find().read_bytes() == hub.files[REPO][Q4]


def test_what_came_before_is_checked_too(hub: HubServer, tmp_path: Path) -> None:
    hub.break_after = [1000, *[0] * 20]
    with pytest.raises(HubError, match="broke off"):
        find()
    partials(tmp_path)[0].write_bytes(b"?" * 768)
    hub.break_after = []
    with pytest.raises(HubError, match="arrived damaged"):
        find()
    assert find().read_bytes() == hub.files[REPO][Q4]


def test_the_token_goes_to_the_hub_and_not_to_another_host(hub: HubServer) -> None:
    """Files of a Hub lie on another host; 127.0.0.1 and localhost are two."""
    hub.token = "hf_secret"
    with serving("localhost", hub) as store:
        hub.store = store.url
        store.break_after = [1000]
        assert find(token="hf_secret").read_bytes() == hub.files[REPO][Q4]
        gets = store.of("GET")
        assert [one.range for one in gets] == [None, "bytes=768-"]
        assert {one.token for one in store.asked} == {None}
        assert {one.token for one in hub.asked if REPO in one.path} == {"Bearer hf_secret"}


def test_a_redirect_on_the_way_does_not_take_the_token_along(hub: HubServer) -> None:
    """The Hub gives the file itself when asked about it, and sends elsewhere when it is fetched."""
    hub.token = "hf_secret"
    with serving("localhost", hub) as store:
        hub.store_for_get = store.url
        assert find(token="hf_secret").read_bytes() == hub.files[REPO][Q4]
        assert [one.token for one in store.asked] == [None]


def test_a_token_of_the_environment_is_used(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_of_the_environment"
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert find().name == Q4


def test_without_a_token_a_private_repository_is_refused(hub: HubServer) -> None:
    hub.token = "hf_secret"
    with pytest.raises(HubError, match=rf"refuses {REPO} \(HTTP 401\): .*private.*HF_TOKEN"):
        find()
    with pytest.raises(HubError, match="the token of the Hub is empty, or has characters"):
        find(token="hf\nsecret")


def test_a_gated_repository_says_where_its_terms_are(hub: HubServer) -> None:
    hub.gated = True
    with pytest.raises(HubError, match=f"{REPO} is gated: accept its terms at {hub.url}/{REPO},"):
        find()


@pytest.mark.parametrize(
    ("name", "filename", "words"),
    [
        ("someone/other", None, "has no someone/other$"),
        (f"{REPO}:Q2_K", None, "has no model of type Q2_K; it has tiny-BF16.gguf, tiny-Q4_K_M"),
        (REPO, "x.gguf", "has no file 'x.gguf'"),
    ],
)
def test_what_the_hub_does_not_have(
    hub: HubServer, name: str, filename: str | None, words: str
) -> None:
    with pytest.raises(HubError, match=words):
        find(name, filename)


def test_a_server_that_is_no_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, words in ((500, "answers with HTTP status 500"), (418, "HTTP status 418")):
        hub.status = status
        with pytest.raises(HubError, match=words):
            find()
    for value in ("ftp://x", "http://", "a b"):
        monkeypatch.setenv("HF_ENDPOINT", value)
        with pytest.raises(HubError, match=r"HF_ENDPOINT is .*, expected http"):
            find()


def unreachable(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def refusing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "a token that is not given"


def failing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 503


@pytest.mark.parametrize("fault", [unreachable, refusing, failing])
def test_the_cache_serves_where_the_hub_does_not(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    path = find()
    fault(hub, monkeypatch)
    said: list[str] = []
    assert find(warn=said.append) == path
    assert len(said) == 1
    assert said[0].endswith("; the copy in the cache is used")
    with pytest.warns(UserWarning, match="the copy in the cache is used"):
        assert find() == path
    reasons = "(cannot reach http|.* refuses |.* answers with)"
    with pytest.raises(HubError, match=f"{reasons}.*; in the cache, {REPO} has no model of"):
        find(f"{REPO}:Q8_0")
    with pytest.raises(HubError, match=reasons):
        find("someone/else")


@pytest.mark.parametrize("way", ["flag", "environment", "constant"])
def test_offline_nobody_is_asked(hub: HubServer, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    path = find()
    hub.asked.clear()
    if way == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if way == "constant":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    options = {"offline": True} if way == "flag" else {}
    assert find(**options) == path
    with pytest.raises(HubError, match=r"^someone/else is not in the cache \(.*cache\), and the"):
        find("someone/else", **options)
    assert hub.asked == []


def test_a_newer_commit_is_noticed_and_shares_what_is_the_same(
    hub: HubServer, tmp_path: Path
) -> None:
    old = find()
    hub.commit = "f" * 40
    hub.asked.clear()
    same = find()
    assert same != old
    assert same.resolve() == old.resolve()
    assert not hub.of("GET", Q4)
    hub.commit, hub.files[REPO][Q4] = "e" * 40, b"new"
    assert find().read_bytes() == b"new"
    assert find(offline=True).read_bytes() == b"new"


def test_a_disk_that_is_too_small_is_found_before(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4000))
    with pytest.raises(HubError, match=rf"^{Q4} needs 4096 bytes more in .*, where 4000 are free"):
        find()


def test_an_error_of_the_disk_is_told_as_one(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: bytes) -> int:
        self.error = OSError(28, "No space left on device")  # type: ignore[attr-defined]
        raise self.error  # type: ignore[attr-defined]

    monkeypatch.setattr(client._Sink, "write", full)
    with pytest.raises(OSError, match="No space left"):
        find()


def test_files_beyond_plain_http_come_through_the_library_and_are_checked(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_MAX_PLAIN_BYTES", 4000)
    assert find().read_bytes() == hub.files[REPO][Q4]
    hub.files[REPO][Q4], hub.damaged, hub.commit = b"x" * 5000, True, "f" * 40
    with pytest.raises(HubError, match="arrived damaged"):
        find()


def test_two_at_once_fetch_a_file_once(hub: HubServer, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: find(), range(4)))
    assert len(set(paths)) == 1
    assert len(hub.of("GET", Q4)) == 1
    assert not partials(tmp_path)
