"""Packages of any Debian suite and architecture, unpacked into a folder.

apt runs with lists, caches and a status of its own, so it needs no root and changes nothing of the
system. The status is empty: apt finds and gets all that a package needs, whatever is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_MIRROR = "http://deb.debian.org/debian"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Suite:
    """A suite such as "bookworm", for one architecture such as "arm64"."""

    def __init__(self, name: str, architecture: str, folder: Path) -> None:
        """`folder` keeps the lists; exit with a sentence where there is no apt."""
        if not shutil.which("apt-get") or not Path(_KEYS).exists():
            sys.exit("error: Debian's packages need apt and debian-archive-keyring")
        self.name, self.architecture = name, architecture
        self._folder = folder.resolve() / f"apt-{name}-{architecture}"

    def source(self, package: str, target: Path) -> None:
        """Get the archives of a source package into `target`; their signatures are checked."""
        target.mkdir(parents=True, exist_ok=True)
        self._apt("source", "--download-only", "--only-source", package, cwd=target)

    def unpack(self, packages: list[str], root: Path) -> None:
        """Unpack packages and all that they need into `root`. No script of theirs runs."""
        self._apt("install", "-y", "--no-install-recommends", "--download-only", *packages)
        root.mkdir(parents=True, exist_ok=True)
        for package in sorted((self._folder / "cache" / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        for name in ("lib", "lib64"):  # as base-files does, which few packages ask for
            link, folder = root / name, root / "usr" / name
            if folder.is_dir() and not link.exists():
                link.symlink_to(Path("usr", name), target_is_directory=True)

    def _apt(self, *arguments: str, cwd: Path | None = None) -> None:
        settings = {
            "Dir::Etc::SourceList": self._folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::Lists": self._folder / "lists",
            "Dir::State::Status": self._folder / "status",
            "Dir::Cache": self._folder / "cache",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
        }
        command = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items())]
        if not (self._folder / "status").exists():
            for folder in ("lists/partial", "cache/archives/partial"):
                (self._folder / folder).mkdir(parents=True, exist_ok=True)
            lines = [f"{kind} [signed-by={_KEYS}] {_MIRROR} {self.name} main\n"
                     for kind in ("deb", "deb-src")]  # fmt: skip
            (self._folder / "sources.list").write_text("".join(lines))
            (self._folder / "status").touch()
            try:
                subprocess.run([*command, "update"], check=True, stdout=sys.stderr)
            except subprocess.CalledProcessError:
                (self._folder / "status").unlink()
                raise
        subprocess.run([*command, *arguments], check=True, stdout=sys.stderr, cwd=cwd)
