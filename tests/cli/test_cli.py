"""The command `lariat`: every type of bad input, and the output of good runs.

Most tests run `main` in this process. Those of signals, pipes and terminals run `python -m lariat`.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lariat import LLM, GGUFFile, SamplingParams, Tokenizer
from lariat.cli import prompt

from tests.support.command_line import ROOT, Run, check_refused, runner, start
from tests.support.model_files import vocabulary_metadata, write_gguf, write_llama

TEXT = "the man and the hat"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("model") / "model.gguf", n_ctx=96))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with a context that no test waits to fill."""
    path = tmp_path_factory.mktemp("model") / "endless.gguf"
    return str(write_llama(path, dim=128, n_heads=2, n_kv_heads=2, n_layers=4, n_ctx=1 << 16))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


# ---- bad flags ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("-t", "0"), "-t/--threads"),
        (("-t", "1000000"), "1 to 512"),
        (("-t", "two"), "-t/--threads"),
        (("-tb", "0"), "-tb/--threads-batch"),
        (("-n", "-5"), "-5"),
        (("-n", "1.5"), "1.5"),
        (("-c", "-1"), "-c/--ctx-size"),
        (("-b", "0"), "-b/--batch-size"),
        (("-ub", "0"), "-ub/--ubatch-size"),
        (("-s", "-2"), "seed"),
        (("--temp", "nan"), "--temp"),
        (("--temp", "-1"), "--temp"),
        (("--temp", "inf"), "--temp"),
        (("--top-k", "-1"), "--top-k"),
        (("--top-p", "1.5"), "--top-p"),
        (("--min-p", "nan"), "--min-p"),
        (("--typical", "2"), "--typical"),
        (("--repeat-penalty", "0"), "--repeat-penalty"),
        (("--repeat-last-n", "-2"), "--repeat-last-n"),
        (("--frequency-penalty", "nan"), "--frequency-penalty"),
        (("--presence-penalty", "inf"), "--presence-penalty"),
        (("--cache", "rope"), "roped, raw"),
        (("-ctk", "q8_1"), "f16, f32, q8_0"),
        (("-ctv", "F16"), "f16, f32"),
        (("-r", ""), "-r/--reverse-prompt"),
        (("-f", "story.txt"), "not allowed with"),
        (("--tem", "0"), "--tem"),
        (("--what\nis this",), r"\nis this"),
    ],
)
def test_bad_flag_is_refused(run: Run, flags: tuple[str, ...], expected: str) -> None:
    # The model is missing too, but the flags are checked first.
    check_refused(run("generate", "-m", "missing.gguf", "-p", TEXT, *flags), 2, expected)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "COMMAND"),
        (("chatter",), "chatter"),
        (("generate", "-m", "missing.gguf"), "-p/--prompt"),
        (("generate", "-m", "missing.gguf", "-p", ""), "empty"),
        (("generate", "-m", "missing.gguf", "-p", "a\udcff"), "byte 0xff at offset 1"),
        (("generate", "-m", "missing.gguf", "-e", "-p", r"caf\xe9"), "byte 0xe9 at offset 3"),
        (("info", "-m", "missing.gguf", "-c", "-1"), "-c/--ctx-size"),
        (("tokenize", "-m", "missing.gguf"), "-p/--prompt"),
    ],
)
def test_bad_command_line_is_refused(run: Run, argv: tuple[str, ...], expected: str) -> None:
    check_refused(run(*argv), 2, expected)


# ---- bad files ---------------------------------------------------------------------------


def test_missing_file(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "missing.gguf")
    for command in ("generate", "tokenize"):
        check_refused(run(command, "-m", path, "-p", TEXT), 1, path, "No such file")
    check_refused(run("info", "-m", path), 1, path, "No such file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_unreadable_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch(mode=0)
    check_refused(run("generate", "-m", str(path), "-p", TEXT), 1, "Permission denied")


def test_what_is_not_a_regular_file(run: Run, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, found in ((tmp_path, "directory"), (fifo, "pipe"), (Path(os.devnull), "device")):
        check_refused(run("generate", "-m", str(path), "-p", TEXT), 1, str(path), found)
        check_refused(run("info", "-m", str(path)), 1, str(path), found)


def test_empty_file_and_not_gguf(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content, expected in ((b"", "empty"), (b"GIF89a" * 100, "GGUF")):
        path.write_bytes(content)
        check_refused(run("generate", "-m", str(path), "-p", TEXT), 1, str(path), expected)


@pytest.mark.parametrize("kept", [3, 20, 400, 5000, -1000, -1])
def test_truncated_file(run: Run, model: str, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "short\nmodel.gguf"  # a name that must not break the line
    path.write_bytes(Path(model).read_bytes()[:kept])
    check_refused(run("generate", "-m", str(path), "-p", TEXT), 1, r"short\nmodel.gguf")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"metadata": {"general.architecture": "gpt2"}}, "'gpt2'"),
        ({"metadata": {"llama.block_count": None}}, "llama.block_count"),
        ({"metadata": {"llama.block_count": "two"}}, "llama.block_count"),
        ({"metadata": {"tokenizer.ggml.model": "bert"}}, "'bert'"),
        ({"metadata": {"tokenizer.ggml.tokens": None}}, "tokenizer.ggml.tokens"),
        ({"metadata": {"tokenizer.ggml.bos_token_id": 9999}}, "9999"),
        ({"drop_tensors": ["blk.1.ffn_up.weight"]}, "blk.1.ffn_up.weight"),
        ({"metadata": {"llama.feed_forward_length": 80}}, "ffn_"),
        ({"dim": 256, "type_of": {"blk.0.attn_v": "NVFP4"}}, "NVFP4"),
    ],
)
def test_model_that_cannot_run(run: Run, tmp_path: Path, shape: dict, expected: str) -> None:
    path = str(write_llama(tmp_path / "model.gguf", **shape))
    check_refused(run("generate", "-m", path, "-p", TEXT), 1, path, expected)


def test_prompt_longer_than_the_context_says_both_numbers(run: Run, model: str) -> None:
    with GGUFFile(model) as gguf:
        n_tokens = len(Tokenizer.from_gguf(gguf).encode(TEXT))
    result = run("generate", "-m", model, "-p", TEXT, "-c", "4")
    check_refused(result, 1, f"{n_tokens} tokens", "context of 4")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty"), (b"\n", "empty"), (b"abc\xffdef", "byte 0xff at offset 3"), (None, "No such")],
)
def test_bad_prompt_file(
    run: Run, model: str, tmp_path: Path, content: bytes | None, expected: str
) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    for command in ("generate", "tokenize"):
        check_refused(run(command, "-m", model, "-f", str(path)), 1, str(path), expected)


def test_endless_prompt_file(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "_MAX_BYTES", 1000)
    check_refused(run("generate", "-m", model, "-f", "/dev/zero"), 1, "larger than 1000 bytes")


# ---- generate ----------------------------------------------------------------------------


def greedy_text(model: str, n: int, **options: str) -> str:
    with LLM(model, **options) as llm:  # type: ignore[arg-type]
        params = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)
        return llm.generate(TEXT, params).text


@pytest.mark.parametrize("cache", ["roped", "raw"])
def test_generate_prints_prompt_and_text(run: Run, model: str, cache: str) -> None:
    flags = ("-n", "12", "--temp", "0", "--ignore-eos", "--cache", cache)
    flags += ("-ctk", "f32", "-ctv", "f32")
    code, out, err = run("generate", "-m", model, "-p", TEXT, *flags)
    expected = greedy_text(model, 12, type_k="f32", type_v="f32")
    assert (code, out.rstrip("\n")) == (0, (TEXT + expected).rstrip("\n"))
    assert out.endswith("\n")
    assert f"{cache} cache (keys f32, values f32)" in err


def test_no_display_prompt_and_quiet(run: Run, model: str) -> None:
    flags = ("-n", "12", "--temp", "0", "--ignore-eos", "--no-display-prompt", "-q")
    code, out, err = run("generate", "-m", model, "-p", TEXT, *flags)
    assert (code, err) == (0, "")
    assert out.rstrip("\n") == greedy_text(model, 12).rstrip("\n")


def test_nothing_to_write_still_shows_the_prompt(run: Run, model: str) -> None:
    assert run("generate", "-m", model, "-p", TEXT, "-n", "0", "-q") == (0, TEXT + "\n", "")


def test_statistics(run: Run, model: str) -> None:
    with GGUFFile(model) as gguf:
        n_prompt = len(Tokenizer.from_gguf(gguf).encode(TEXT))
    code, _, err = run("generate", "-m", model, "-p", TEXT, "-n", "9", "--ignore-eos")
    assert code == 0
    assert re.search(r"^lariat: load +[\d.]+ ms$", err, re.M)
    rate = r"tokens in [\d.]+ ms, [\d.]+ ms per token, [\d.]+ tokens per second"
    assert re.search(rf"^lariat: prompt +{n_prompt} {rate}$", err, re.M)
    # The step of the prompt gives the first of the nine.
    assert re.search(rf"^lariat: generation +8 {rate}$", err, re.M)
    assert re.search(r"^lariat: finished +-n tokens are written$", err, re.M)
    assert "\r" not in err  # no bars, because this is not a terminal


def test_an_object_of_json(run: Run, model: str) -> None:
    flags = ("-n", "12", "--temp", "0", "--ignore-eos", "-o", "json")
    code, out, err = run("generate", "-m", model, "-p", TEXT, *flags)
    assert code == 0
    assert out.count("\n") == 1
    done = json.loads(out)
    with LLM(model) as llm:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        expected = llm.generate(TEXT, params)
        n_prompt = len(llm.tokenize(TEXT))
    assert list(done) == ["text", "ids", "finish_reason", "timings"]
    assert (done["text"], done["ids"]) == (expected.text, expected.token_ids)
    assert done["finish_reason"] == "length"
    timings = done["timings"]
    assert (timings["n_prompt"], timings["n_decode"], timings["n_reused"]) == (n_prompt, 11, 0)
    assert timings["decode_per_s"] == pytest.approx(11 / timings["decode_s"])
    assert "lariat: finished" in err  # the statistics stay on standard error
    code, out, err = run("generate", "-m", model, "-p", TEXT, "-n", "0", "-o", "json", "-q")
    assert (code, err) == (0, "")
    assert json.loads(out)["text"] == ""
    read = run(
        "generate", "-m", model, "-p", TEXT, *flags, "--cache", "raw", "--rope-read", "plain"
    )
    assert json.loads(read[1])["rope"] == "plain"


def test_log_probabilities_in_json(run: Run, model: str) -> None:
    flags = ("-n", "5", "--temp", "0", "--ignore-eos", "-q")
    code, out, err = run(
        "generate", "-m", model, "-p", TEXT, *flags, "-o", "json", "--logprobs", "2"
    )
    assert (code, err) == (0, "")
    done = json.loads(out)
    with LLM(model) as llm:
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2)
        expected = llm.generate(TEXT, params)
        assert [one["id"] for one in done["logprobs"]] == done["ids"] == expected.token_ids
        for shown, one in zip(done["logprobs"], expected.logprobs, strict=True):
            assert shown["logprob"] == one.logprob
            assert shown["token"] == llm.detokenize([one.token_id])
            assert [(top["id"], top["logprob"]) for top in shown["top_logprobs"]] == [*one.top]
    refused = run("generate", "-m", model, "-p", TEXT, *flags, "--logprobs", "2")
    check_refused(refused, 2, "argument --logprobs: they are shown by -o json alone")


def test_min_tokens(run: Run, model: str) -> None:
    flags = ("-n", "9", "--temp", "0", "-q", "-o", "json", "-r", "a", "-r", "e", "-r", " ")
    n = [
        len(json.loads(run("generate", "-m", model, "-p", TEXT, *flags, *more)[1])["ids"])
        for more in ((), ("--min-tokens", "9"))
    ]
    assert n[0] <= n[1] == 9
    refused = run("generate", "-m", model, "-p", TEXT, *flags, "--min-tokens", "10")
    check_refused(refused, 2, "min_tokens is 10, more than max_tokens, which is 9")


def test_unlimited_length_ends_with_the_context(run: Run, model: str) -> None:
    flags = ("-n", "-1", "-c", "40", "--ignore-eos")
    code, _, err = run("generate", "-m", model, "-p", TEXT, *flags)
    assert code == 0
    assert "the context is full" in err


def test_context_shift_writes_on_where_the_context_is_full(run: Run, model: str) -> None:
    flags = ("-n", "90", "-c", "40", "--ignore-eos", "--context-shift", "--keep", "2")
    for cache in ("raw", "roped"):
        code, _, err = run("generate", "-m", model, "-p", TEXT, *flags, "--cache", cache)
        assert code == 0
        assert "-n tokens are written" in err
    code, out, err = run("generate", "-m", model, "-p", TEXT, *flags[:-1], "20")
    assert (code, out) == (1, "")
    assert "keeping the first 20 tokens of a context of 40" in err


def test_positions_by_flag(run: Run, model: str) -> None:
    def text(*flags: str) -> str:
        always = ("-n", "30", "--temp", "0", "--ignore-eos", "--cache", "raw", "-q")
        code, out, _ = run("generate", "-m", model, "-p", TEXT, *always, *flags)
        assert code == 0
        return out

    plain, linear = text(), text("--rope-scaling", "linear", "--rope-scale", "4")
    assert linear != plain
    assert text("--rope-scale", "4") == linear, "as in llama.cpp, linear is the default"
    assert text("--rope-freq-scale", "0.25") == linear
    assert text("--rope-scaling", "none", "--rope-scale", "4") == plain
    assert text("-gan", "2", "-gaw", "4") != plain
    assert text("-gan", "2", "-gaw", "4096") == plain


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rope-scaling", "ntk"), "argument --rope-scaling: .* 'ntk', expected one of none, li"),
        (("--rope-scale", "0"), "argument --rope-scale: scale is 0"),
        (("--rope-scale", "-1"), "argument --rope-scale: scale is -1"),
        (("--rope-freq-scale", "0"), "argument --rope-freq-scale: 0.0, expected above 0"),
        (("--rope-freq-scale", "0.5", "--rope-scale", "2"), "give one of them"),
        (("--yarn-ext-factor", "-2"), "yarn_ext_factor is -2"),
        (("-gan", "4", "-gaw", "510", "--cache", "raw"), "expected a multiple of grp_attn_n"),
        (("-gan", "4", "--cache", "roped"), "group attention .* needs the raw cache"),
        (("--rope-scaling", "dynamic"), "dynamic RoPE scaling .* needs the raw cache"),
        (("--keep", "-2"), "argument --keep: n_keep is -2"),
    ],
)
def test_positions_that_make_no_sense(run: Run, model: str, flags: tuple, words: str) -> None:
    code, out, err = run("generate", "-m", model, "-p", TEXT, *flags)
    assert (code, out) == (2, "")
    assert re.search(words, err)
    assert err.count("\n") == 1


def test_same_seed_same_text(run: Run, model: str) -> None:
    def text(seed: int) -> str:
        flags = ("-n", "24", "--temp", "1.5", "-s", str(seed), "-q", "--ignore-eos")
        return run("generate", "-m", model, "-p", TEXT, *flags)[1]

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_reverse_prompts_end_the_text(run: Run, model: str) -> None:
    whole = greedy_text(model, 40)
    stop = whole[8:11]
    at = whole.index(stop)
    flags = ("-n", "40", "--temp", "0", "--ignore-eos", "-q", "--no-display-prompt")
    flags += ("-r", "never written", "-r", stop)
    code, out, _ = run("generate", "-m", model, "-p", TEXT, *flags)
    assert code == 0
    assert out.rstrip("\n") == whole[:at].rstrip("\n")


def test_prompt_file_is_like_the_prompt(run: Run, model: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text(TEXT + "\n")
    flags = ("-n", "8", "--temp", "0", "-q")
    from_file = run("generate", "-m", model, "-f", str(path), *flags)
    assert from_file == run("generate", "-m", model, "-p", TEXT, *flags)
    assert from_file[0] == 0


def test_escapes(run: Run, model: str) -> None:
    flags = ("-n", "0", "-q", "-p", r"a\tb\\n\xc3\xa9")
    assert run("generate", "-m", model, *flags, "-e") == (0, "a\tb\\n\u00e9\n", "")
    assert run("generate", "-m", model, *flags) == (0, r"a\tb\\n\xc3\xa9" + "\n", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb"\n\t\r", b"\n\t\r"),
        (rb"\"\'", b"\"'"),
        (rb"\\n", rb"\n"),
        (rb"\x41\x0a", b"A\n"),
        (rb"\q \x4 \xzz", rb"\q \x4 \xzz"),
        (b"end\\", b"end\\"),
    ],
)
def test_unescape(text: bytes, expected: bytes) -> None:
    assert prompt.unescape(text) == expected


# ---- info and tokenize -------------------------------------------------------------------


def test_info(run: Run, model: str) -> None:
    code, out, err = run("info", "-m", model, "-c", "50")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["general.architecture", "llama"] in lines
    assert ["llama.context_length", "96"] in lines
    assert any(line[:1] == ["tokenizer.ggml.tokens"] and "288" in line[-2] for line in lines)
    with GGUFFile(model) as gguf:
        n_bytes = sum(tensor.n_bytes for tensor in gguf.tensors.values())
        assert any(line[:2] == ["F32", str(len(gguf.tensors))] for line in lines)
    assert out.count(f"({n_bytes} bytes)") == 3  # all tensors, those of F32, the weights in memory
    # 64 slots, 2 layers, 2 KV heads of 16: keys and values.
    assert f"-ctk f16   -ctv f16    16.00 KiB ({64 * 2 * 2 * (16 + 16) * 2} bytes)" in out
    assert f"-ctk f32   -ctv f32    32.00 KiB ({64 * 2 * 2 * (16 + 16) * 4} bytes)" in out
    assert "q8_0" not in out  # needs heads that divide by 32
    assert "instruction set" in out
    assert "threads" in out


def test_info_describes_a_model_that_cannot_run(run: Run, tmp_path: Path) -> None:
    name = "evil\x1b[31m\nname"
    keys = {"general.architecture": "gpt2", "general.name": name, "general.x": [[1, 2], [3]]}
    path = str(write_llama(tmp_path / "model.gguf", metadata=keys))
    code, out, err = run("info", "-m", path)
    assert (code, err) == (0, "")
    assert r"evil\x1b[31m\nname" in out
    assert "[[1, 2] (2 elements), [3] (1 elements)] (2 elements)" in out
    assert "  what     model\n  runs     no: architecture 'gpt2' is not supported, only" in out
    assert "memory for a context" not in out


def test_info_counts_the_experts_of_a_token_alone(run: Run, tmp_path: Path) -> None:
    shape = {"arch": "qwen3moe", "n_experts": 16, "n_used": 4}
    path = str(write_llama(tmp_path / "model.gguf", **shape))
    with GGUFFile(path) as gguf:
        sizes = {name: tensor.n_bytes for name, tensor in gguf.tensors.items()}
    experts = sum(n for name, n in sizes.items() if "_exps" in name)
    read = sum(sizes.values()) - sizes["token_embd.weight"] + 64 * 4 - experts * 3 // 4
    out = run("info", "-m", path)[1]
    assert re.search(rf"  read for a token +[0-9.]+ KiB \({read} bytes\)\n", out)
    assert "  experts of a token       4 of 16 in each layer\n" in out


def test_vocabulary_alone_is_enough_to_tokenize(run: Run, tmp_path: Path) -> None:
    path = str(write_gguf(tmp_path / "vocabulary.gguf", vocabulary_metadata(400)))
    with GGUFFile(path) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
        ids = tokenizer.encode(TEXT)
    code, out, err = run("tokenize", "-m", path, "-p", TEXT)
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{i:7d}  {tokenizer.piece(i)}" for i in ids]
    assert run("tokenize", "-m", path, "-p", TEXT, "--ids") == (0, f"{ids}\n", "")
    assert run("tokenize", "-m", path, "-p", TEXT, "--ids", "--no-bos")[1] == f"{ids[1:]}\n"
    assert run("tokenize", "-m", path, "-p", "</s>", "--ids", "--parse-special")[1] == "[1, 2]\n"
    assert run("info", "-m", path)[0] == 0


# ---- help --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("generate",), ("info",), ("tokenize",)])
def test_help(run: Run, command: tuple[str, ...]) -> None:
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert "example" in out
    assert max(map(len, out.splitlines())) <= 100


def test_every_flag_of_generate_is_explained(run: Run) -> None:
    out = run("generate", "--help")[1]
    flags = "-m -p -f -n -c -t -tb -b -ub -s --seed --temp --top-k --top-p --min-p --typical "
    flags += "--repeat-penalty --repeat-last-n --frequency-penalty --presence-penalty --ignore-eos "
    flags += "-r --reverse-prompt -e --escape --cache -ctk -ctv --no-display-prompt -q"
    for flag in flags.split():
        assert re.search(rf"(^  |, ){flag}\b", out, re.M), flag


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("lariat")


# ---- the process: pipes, signals, terminals ----------------------------------------------


def test_module_is_the_command(model: str) -> None:
    process = start("generate", "-m", model, "-p", TEXT, "-n", "3", "--temp", "0")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.decode().startswith(TEXT)
    assert b"tokens per second" in err


def test_unknown_instruction_set_is_an_error(model: str) -> None:
    environment = os.environ | {"LARIAT_ISA": "neon"}
    process = start("generate", "-m", model, "-p", TEXT, env=environment)
    out, err = process.communicate(timeout=60)
    check_refused((process.returncode, out.decode(), err.decode()), 1, "'neon'")


def test_interrupt_prints_the_statistics_so_far(endless: str) -> None:
    process = start("generate", "-m", endless, "-p", TEXT, "--ignore-eos")
    assert process.stdout is not None
    process.stdout.read(len(TEXT) + 20)  # it is writing
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(rb"generation +\d+ tokens in", err)
    assert b"finished    interrupted" in err
    assert b"Traceback" not in err


def test_an_interrupt_still_prints_the_object(endless: str) -> None:
    process = start("generate", "-m", endless, "-p", TEXT, "--ignore-eos", "-o", "json")
    assert process.stderr is not None
    process.stderr.readline()  # the model is loaded
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["finish_reason"] is None


def test_closed_pipe_ends_quietly(endless: str) -> None:
    process = start("generate", "-m", endless, "-p", TEXT, "--ignore-eos", "-q")
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["generate", "tokenize", "help"])
def test_full_disk_is_an_error(model: str, command: str) -> None:
    argv = ["--help"] if command == "help" else [command, "-m", model, "-p", TEXT]
    with open("/dev/full", "wb") as full:
        process = start(*argv, *(["-q", "-n", "3"] if command == "generate" else []), stdout=full)
        _, err = process.communicate(timeout=60)
    check_refused((process.returncode, "", err.decode()), 1, "No space left on device")


def test_closed_streams(model: str) -> None:
    command = f"'{sys.executable}' -m lariat generate -m '{model}' -p '{TEXT}' -n 3 -q"
    closed = subprocess.run(
        ["sh", "-c", command + " >&-"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    check_refused((closed.returncode, closed.stdout, closed.stderr), 1, "closed")
    # Without -q: lines for stderr must not appear on stdout.
    command = command.removesuffix(" -q") + " --temp 0 2>&-"
    closed = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert closed.returncode == 0
    assert "lariat:" not in closed.stdout


def test_bars_show_on_a_terminal_only(model: str) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    # Long enough for a progress bar with many steps.
    flags = ("-p", "the " * 300, "-c", "2000", "-ub", "8", "-n", "2")
    process = start("generate", "-m", model, *flags, stderr=theirs)
    os.close(theirs)
    seen = b""
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        seen += data
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"\rloading" in seen
    assert b"\rreading the prompt" in seen
    assert b"tokens per second" in seen
