"""`lariat batch`: files, resuming, shards, and every type of bad input."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lariat import DEMO_MODEL

from tests.support.batches import FLAGS, mixed_rows, run, start, write_rows
from tests.support.command_line import Run, check_refused, runner
from tests.support.model_files import write_llama

ROWS = mixed_rows(60)
N_KILLS = int(os.environ.get("LARIAT_KILLS", "3"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("batch") / "in.jsonl", ROWS)


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> bytes:
    return run(source, source.with_name("out.jsonl"))


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "batch", *FLAGS)


def ids(output: bytes) -> list[str]:
    return [json.loads(line)["custom_id"] for line in output.splitlines()]


def test_each_row_has_a_line_in_its_order(source: Path, undisturbed: bytes) -> None:
    assert ids(undisturbed) == [row["custom_id"] for row in ROWS]
    assert not source.with_name("out.jsonl.part").exists()


def test_shards_are_rows_of_the_whole(source: Path, undisturbed: bytes, tmp_path: Path) -> None:
    shards = [run(source, tmp_path / f"{k}", "--shard", f"{k}/3").splitlines() for k in (1, 2, 3)]
    assert [shards[i % 3][i // 3] for i in range(60)] == undisturbed.splitlines()


def test_unordered(source: Path, undisturbed: bytes, tmp_path: Path) -> None:
    found = run(source, tmp_path / "out", "--unordered")
    assert found != undisturbed
    assert sorted(found.splitlines()) == sorted(undisturbed.splitlines())


def test_killed_at_random_and_resumed(source: Path, undisturbed: bytes, tmp_path: Path) -> None:
    chance = random.Random(5)
    n_kills = n_with_rows = n_files = 0
    while n_kills < N_KILLS:
        output = tmp_path / f"out-{n_files}"
        n_files += 1
        journal = Path(f"{output}.part")
        while n_kills < N_KILLS and not output.exists():
            n_before = n_lines(journal)
            process = start(source, output, *(["--resume"] if journal.exists() else []))
            while process.poll() is None and n_lines(journal) <= n_before + n_kills % 3:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
            process.kill()
            process.communicate()
            n_kills += 1
            n_with_rows += n_lines(journal) > 1
        if journal.exists():
            with open(journal, "ab") as file:
                file.write(b'{"row":5,"custom_id":"pl')  # cut off, as by a power failure
            run(source, output, "--resume")
        assert output.read_bytes() == undisturbed
        assert not journal.exists()
    assert n_with_rows


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def interrupted(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """A run that ends in its midst, at the same place every time: its journal cannot grow."""
    flags = " ".join([str(source), "-o", str(output), *FLAGS])
    return subprocess.run(
        ["sh", "-c", f"ulimit -f 8; {sys.executable} -m lariat batch {flags}"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def test_rows_that_are_done_are_not_computed_again(
    command: Run, source: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    """An answer in the journal stays as it is, so that it can be told from a new one."""
    output = tmp_path / "out"
    interrupted(source, output)
    journal = Path(f"{output}.part")
    lines = journal.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[1])
    record["output"] = {"custom_id": record["custom_id"], "mark": 1}
    lines[1] = json.dumps(record).encode() + b"\n"
    journal.write_bytes(b"".join(lines))
    assert command(str(source), "-o", str(output), "--resume") == (0, "", "")
    found = output.read_bytes().splitlines()
    changed = [
        i for i, (a, b) in enumerate(zip(found, undisturbed.splitlines(), strict=True)) if a != b
    ]
    assert changed == [record["row"] - 1]
    assert b'"mark"' in found[changed[0]]


def test_a_file_that_cannot_grow_loses_nothing(
    source: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = interrupted(source, output)
    said = f"lariat: error: {output}.part: File too large\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert n_lines(Path(f"{output}.part")) > 2
    assert run(source, output, "--resume") == undisturbed


def test_guesses_change_no_line(source: Path, undisturbed: bytes, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", "-md", DEMO_MODEL) == undisturbed


def test_bad_input_is_a_line_of_the_output(command: Run, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    good = b'{"custom_id": "a", "prompt": "The", "max_tokens": 2}\n'
    unknown = b'{"custom_id": "u", "method": "POST", "url": "/v1/audio", "body": {}}\n'
    long = b'{"prompt": "' + b"a" * (10 << 20) + b'"}\n'
    source.write_bytes(good + good + b"\n" + b'{"prompt": "\xff"}\n' + long + unknown + good[:20])
    assert command(str(source), "-o", str(output)) == (0, "", "")
    found = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert found[0]["error"] is None
    messages = [one["error"]["message"] for one in found[1:]]
    assert messages == [
        "row 2 has the custom_id of row 1",
        "line 4 is not valid UTF-8 at byte 12",
        "line 5 has more than 10 MiB",
        "row 6: the url '/v1/audio' is not one of /v1/chat/completions, /v1/completions, "
        "/v1/embeddings",
        "line 7 is cut off: it ends within its JSON",
    ]


def test_an_empty_input_has_an_empty_output(command: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")
    assert command(str(tmp_path / "in"), "-o", str(tmp_path / "out")) == (0, "", "")
    assert (tmp_path / "out").read_bytes() == b""


def test_refusals(command: Run, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    there = [str(source), "-o", str(output)]
    check_refused(command(*there, "--shard", "3/2"), 2, "--shard", "expected K/N")
    check_refused(command(*there, "-np", "0"), 2, "--parallel", "expected at least 1")
    check_refused(command(*there, "--date", "today"), 2, "--date", "a day such as")
    check_refused(command(str(tmp_path / "no"), "-o", str(output)), 1, "No such file")
    check_refused(command(str(source), "-o", str(tmp_path / "no" / "out")), 1, "No such file")
    output.write_text("rows\n")
    check_refused(command(*there), 1, "is there already")
    check_refused(command(*there, "--resume"), 1, "is there already")
    assert output.read_text() == "rows\n"
    output.unlink()
    Path(f"{output}.part").write_text("")
    check_refused(command(*there), 1, "--resume goes on with them")
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["sh", "-c", f"echo > {tmp_path / 'pipe'}"])
    check_refused(command(str(tmp_path / "pipe"), "-o", str(tmp_path / "o")), 1, "is a pipe")
    writer.wait()


def test_a_journal_of_others_is_kept(
    command: Run, source: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    """Of another model, of other parameters, of another input."""
    output = tmp_path / "out"
    interrupted(source, output)
    journal = Path(f"{output}.part")
    resumed = [str(source), "-o", str(output), "--resume"]
    before = journal.read_bytes()
    other = tmp_path / "other.gguf"
    write_llama(other)
    check_refused(command(*resumed, "-m", str(other)), 1, "belongs to another model")
    check_refused(command(*resumed, "--cache", "raw"), 1, "cache was 'roped' and is 'raw'")
    check_refused(command(*resumed, "-s", "4"), 1, "seed was 0 and is 4")
    check_refused(command(*resumed, "--shard", "1/2"), 1, "shard was None and is [1, 2]")
    check_refused(command(*resumed, "--temp", "0.5"), 1, "belongs to other parameters: defaults")
    changed = write_rows(tmp_path / "changed", [{**row, "custom_id": "x"} for row in ROWS])
    check_refused(command(str(changed), *resumed[1:]), 1, "belongs to another input")
    assert journal.read_bytes() == before
    assert not output.exists()
    assert run(source, output, "--resume") == undisturbed
