"""The digests of what the engine computes: they repeat, and what deviates is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from lariat.architectures import ARCHITECTURES

from bench import digests

SMALL = ["--levels", "scalar", "--archs", "llama,qwen2", "--types", "BF16"]
NOTHING = {"digests": {}, "threads_differ": []}


def test_a_run_agrees_with_itself_and_a_changed_digest_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digests.json"
    models = ["--models", str(tmp_path / "models")]
    assert digests.main([*SMALL, *models, "-o", str(path)]) == 0
    found = json.loads(path.read_text())
    one, other = "scalar/llama/BF16/roped/f16", "scalar/qwen2/BF16/roped/f16"
    assert list(found["digests"]) == [one, other]
    assert found["digests"][one] != found["digests"][other]
    assert found["models"].keys() == {"llama/BF16", "qwen2/BF16"}
    assert found["threads_differ"] == []

    found["digests"][other] = "0" * 32
    path.write_text(json.dumps(found))
    capsys.readouterr()
    assert digests.main([*SMALL, *models, "--check", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{other}: {'0' * 32} became ")
    assert lines[1].startswith("1 equal, 1 changed, 0 gone, 0 new, 0 left out; 1 deviations")


def test_every_architecture_has_digests_with_its_own_types(tmp_path: Path) -> None:
    assert ARCHITECTURES.keys() <= set(digests.ARCHS) == digests.WRITERS.keys()
    path = tmp_path / "digests.json"
    asked = ["--archs", "gemma2,mixtral", "--types", "F32,BF16"]
    assert digests.main(["--levels", "scalar", *asked, "-o", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["models"].keys() == {"gemma2/F32", "mixtral/F32"}
    caches = ("roped", "raw")
    assert list(found["digests"]) == [
        f"scalar/{arch}/F32/{cache}/f16" for arch in ("gemma2", "mixtral") for cache in caches
    ]
    assert len(set(found["digests"].values())) == 4


def test_what_is_compared() -> None:
    before = {
        "models": {"llama/F16": "m", "qwen2/F16": "n"},
        "digests": {"scalar/llama/F16/raw/f16": "a", "avx2-other/qwen2/F16/raw/f16": "b"},
    }
    now = copy.deepcopy(before) | {"threads_differ": []}
    both = ["scalar", "avx2-other"]
    assert digests.compare(before, now, both) == (
        [], "2 equal, 0 changed, 0 gone, 0 new, 0 left out; 0 deviations",
    )  # fmt: skip
    assert "1 equal, 0 changed, 0 gone, 0 new, 1 left out" in str(
        digests.compare(before, now, ["scalar"])
    )
    now["digests"]["scalar/llama/Q1_0/raw/f16"] = "c"  # a new type is no deviation
    assert digests.compare(before, now, both)[0] == []

    now["models"]["llama/F16"] = "other"
    del now["digests"]["avx2-other/qwen2/F16/raw/f16"]
    now["threads_differ"] = ["scalar/llama/F16/raw/f16/batch"]
    assert digests.compare(before, now, both)[0] == [
        "scalar/llama/F16/raw/f16/batch: one thread and two differ",
        "llama/F16: the model file is another one",
        "avx2-other/qwen2/F16/raw/f16: gone",
    ]
    # Nothing may pass because nothing was looked at.
    lines, _ = digests.compare(before, now | {"threads_differ": []}, both, ["qwen3"])
    assert lines == ["nothing was compared: the file has no such digests"]


def test_levels_are_chosen_by_instruction_set_or_with_the_kind_of_core(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(digests, "supported_isas", lambda: ("scalar", "avx2"))
    asked = []
    monkeypatch.setattr(digests, "compute", lambda levels, *_: asked.append(levels) or NOTHING)
    for names in ("avx2", "avx2-intel,scalar"):
        digests.main(["--levels", names, "-o", "/dev/null"])
    digests.main(["-o", "/dev/null"])
    assert asked == [
        ["avx2-other", "avx2-intel"],
        ["avx2-intel", "scalar"],
        ["scalar", "avx2-other", "avx2-intel"],
    ]
    with pytest.raises(SystemExit) as end:
        digests.main(["--levels", "avx512", "-o", "/dev/null"])
    assert end.value.code == 2
    assert "'avx512' is not one of" in capsys.readouterr().err
