"""Rows for batches, and `lariat batch` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FLAGS = ("-q", "-t", "1", "-c", "1024", "-np", "8")


def mixed_rows(n: int, n_tokens: int = 8) -> list[dict[str, Any]]:
    """Rows of all kinds, some of which begin alike; a seventh of them are refused."""
    rows: list[dict[str, Any]] = []
    for i in range(n):
        text = f"{'Once upon a time there was a ' if i % 2 else 'The '}{['cat', 'dog'][i % 2]} {i}"
        if i % 7 == 6:
            body: dict[str, Any] = {"prompt": text, "temperature": -1}
            rows.append(line(f"bad-{i}", "/v1/completions", body))
        elif i % 3 == 0:
            rows.append({"custom_id": f"plain-{i}", "prompt": text, "max_tokens": n_tokens})
        elif i % 3 == 1:
            body = {"prompt": text, "max_tokens": n_tokens, "logprobs": 2, "n": 1 + i % 2}
            rows.append(line(f"text-{i}", "/v1/completions", body))
        else:
            rows.append(line(f"vector-{i}", "/v1/embeddings", {"input": text}))
    return rows


def line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """A line of OpenAI's batches."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(source: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """Begin `lariat batch` on the bundled model."""
    return subprocess.Popen(
        [sys.executable, "-m", "lariat", "batch", str(source), "-o", str(output), *FLAGS, *more],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(source: Path, output: Path, *more: str) -> bytes:
    """Run it to its end; returns the output."""
    process = start(source, output, *more)
    out, err = process.communicate(timeout=1800)
    assert (process.returncode, out, err) == (0, "", "")
    return output.read_bytes()
