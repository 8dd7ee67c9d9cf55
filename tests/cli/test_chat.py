"""`lariat chat`: through pipes, in this process, and in a terminal, as a program of its own."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lariat import LLM, Chat, SamplingParams
from lariat.chat.thoughts import MARKS
from lariat.cli import console
from lariat.cli.chat import Screen
from lariat.cli.main import main
from lariat.cli.terminal import Lines

from tests.support.model_files import chat_metadata, write_llama

N_VOCAB = 320
GREEDY = ("--temp", "0", "-n", "6", "-t", "1")
CHATML = (*GREEDY, "--chat-template", "chatml")

Talk = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "chat.gguf"
    return str(write_llama(path, n_vocab=N_VOCAB, n_ctx=256, metadata=chat_metadata(N_VOCAB)))


@pytest.fixture
def talk(model: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Run `lariat chat` in this process with a pipe for stdin: exit code, stdout, stderr."""

    def talk(said: str | bytes, *flags: str, model: str = model) -> tuple[int, str, str]:
        data = said if isinstance(said, bytes) else said.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capfd.readouterr()
        code = main(["chat", "-m", model, *flags])
        out, err = capfd.readouterr()
        return code, out, err

    return talk


def answers(model: str, *said: str, system: str = "", template: str | None = "chatml") -> str:
    """The output that is expected of the command."""
    params = SamplingParams(temperature=0, max_tokens=6)
    with (
        LLM(model, n_threads=1) as llm,
        Chat(llm, template=template, system=system, params=params) as chat,
    ):
        shown = ["".join(chat.say(text)).lstrip() for text in said]
    return "".join(text + "\n" * (not text.endswith("\n")) for text in shown)


# ---- pipes ---------------------------------------------------------------------------------


def test_each_line_is_a_message_and_only_answers_are_printed(talk: Talk, model: str) -> None:
    expected = answers(model, "the hat", "the man", template=None)
    assert talk("the hat\n\n  \nthe man\n", *GREEDY) == (0, expected, "")
    assert talk("the hat\nthe man", *CHATML) == (0, expected, "")


def test_the_first_message_from_a_flag(talk: Talk, model: str, tmp_path: Path) -> None:
    assert talk("b\n", *CHATML, "-p", "a") == (0, answers(model, "a", "b"), "")
    assert talk("b\n", *CHATML, "-p", "a", "-st") == (0, answers(model, "a"), "")
    (tmp_path / "a").write_text("a\nb\n")
    assert talk("", *CHATML, "-f", str(tmp_path / "a")) == (0, answers(model, "a\nb"), "")
    assert talk("", *CHATML, "-e", "-p", "a\\nb") == (0, answers(model, "a\nb"), "")


def test_the_system_prompt(talk: Talk, model: str, tmp_path: Path) -> None:
    expected = answers(model, "a", system="be brief")
    assert talk("a", *CHATML, "-sys", "be brief") == (0, expected, "")
    (tmp_path / "system").write_text("be brief\n")
    assert talk("a", *CHATML, "-sysf", str(tmp_path / "system")) == (0, expected, "")
    said = "/system be brief\na\n/system\n"
    assert talk(said, *CHATML, "--commands") == (0, expected, "be brief\n")
    assert expected != answers(model, "a")


def test_a_template_from_a_file(talk: Talk, model: str, tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "template").write_text(source)
    expected = (0, answers(model, "a", template=source), "")
    assert talk("a", *GREEDY, "--chat-template-file", str(tmp_path / "template")) == expected
    assert talk("a", *GREEDY, "--chat-template", source) == expected


def test_variables_of_the_template(talk: Talk, model: str) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{{ more }}"
    flags = (*GREEDY, "--chat-template", source, "--chat-template-kwargs", '{"more": " x"}')
    expected = answers(model, "a", template=source.replace("{{ more }}", " x"))
    assert talk("a", *flags) == (0, expected, "")


def test_a_system_prompt_for_a_template_that_refuses_it(talk: Talk, model: str) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ 1 / 0 }}{% endif %}"
    source = refuses + "{% for m in messages %}{{ m.content }}{% endfor %}"
    expected = answers(model, "be brief\n\na", template=source)
    assert talk("a", *GREEDY, "--chat-template", source, "-sys", "be brief") == (0, expected, "")


def test_input_that_is_not_ready_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a shell's coprocess, or of a program that made its pipe non-blocking."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    monkeypatch.setattr(sys, "stdin", os.fdopen(ours))
    pieces = [b"one\nt", b"wo", b"\n", b'"""a\n', b'b"""\nlast ', b"line"]

    def write() -> None:
        for piece in pieces:
            time.sleep(0.02)
            os.write(theirs, piece)
        os.close(theirs)

    writer = threading.Thread(target=write)
    writer.start()
    assert list(iter(Lines().read, None)) == ["one", "two", "a\nb", "last line"]
    writer.join()
    sys.stdin.close()


def test_nothing_is_written_to_files(model: str, tmp_path: Path) -> None:
    """Where no folder is writable, a template of a file still is rendered."""
    code = (
        "import resource, sys, tempfile; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));"
        "tempfile.tempdir = '/nowhere'; from lariat.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "chat", "-m", model, *GREEDY],
        input=b"the hat",
        capture_output=True,
        env=os.environ | {"HOME": "/nowhere", "TMPDIR": "/nowhere"},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == answers(model, "the hat", template=None)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("a\\\nb\\\nc\nd", ["a\nb\nc", "d"]),
        ("a\\", ["a"]),
        ('"""\na\n\n  b\n"""\nc\n', ["a\n\n  b", "c"]),
        ('"""a\nb"""\nc', ["a\nb", "c"]),
        ('"""a"""', ["a"]),
        ('"""a\nb', ["a\nb"]),
        ('a """ b\n', ['a """ b']),
        ("a\r\nb\r\n", ["a", "b"]),
        ("", []),
        (b"a\xffb\n", ["a\ufffdb"]),
        ("\u2028 é\n", ["\u2028 é"]),
    ],
)
def test_what_is_one_message(
    said: str | bytes, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = said if isinstance(said, bytes) else said.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with Lines() as lines:
        assert list(iter(lines.read, None)) == expected


def test_a_closed_stdin_is_an_empty_one(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert Lines().read() is None
    assert not console.stdin_is_terminal()


# ---- commands ------------------------------------------------------------------------------


def test_commands(talk: Talk, model: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    said = f"a\n/undo\n/undo\na\n/save {saved}\nb\n/reset\na\n/load {saved}\nb\n/quit\nnever\n"
    a, ab = answers(model, "a"), answers(model, "a", "b")
    b = ab.removeprefix(a)
    assert talk(said, *CHATML, "--commands") == (0, a + a + b + a + b, "")
    assert json.loads(saved.read_text())["messages"][0] == {"role": "user", "content": "a"}


def test_statistics_and_help(talk: Talk) -> None:
    code, out, err = talk("/stats\na\n/stats\n/help\n", *CHATML, "--commands")
    assert (code, out.count("\n")) == (0, 1)
    assert re.search(r"context +0 of 256 tokens.*\nmessages +0\ncontext +\d\d of 256 tokens", err)
    assert re.search(r"messages +2\nreused +0 tokens.*\nprompt +\d+ tokens in .*\ngeneration", err)
    for name in ("reset", "undo", "system", "save", "load", "stats", "help", "quit"):
        assert f"\n/{name} " in err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/unknown a", "there is no command /unknown"),
        ("/\x1b[2J", "no command /\\x1b[2J"),
        ("/save", "/save needs the name of a file"),
        ("/load", "/load needs the name of a file"),
        ("/load /nowhere/a", "/nowhere/a: No such file"),
        ("/save /nowhere/a", "cannot be written"),
        ("/load /dev/null", "not a regular file"),
    ],
)
def test_a_command_that_fails_is_a_sentence(talk: Talk, command: str, expected: str) -> None:
    code, out, err = talk(command + "\nnever", *CHATML, "--commands")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("lariat: error: ")
    assert expected in err


def test_what_only_looks_like_a_command_is_a_message(talk: Talk, model: str) -> None:
    assert talk(" /help\n", *CHATML, "--commands") == (0, answers(model, " /help"), "")
    assert talk('"""\n/help\nme\n"""\n', *CHATML, "--commands") == (
        0,
        answers(model, "/help\nme"),
        "",
    )


def test_in_a_pipe_lines_with_a_slash_are_messages(talk: Talk, model: str, tmp_path: Path) -> None:
    for line in (f"/save {tmp_path / 'a.json'}", "/quit", "/load /nowhere", "/unknown", "/"):
        assert talk(f"{line}\na\n", *CHATML) == (0, answers(model, line, "a"), "")
    assert list(tmp_path.iterdir()) == []


# ---- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (("-st",), 2, "-st/--single-turn: needs a message"),
        (("-p", ""), 2, "empty"),
        (("-sys", "a", "-sysf", "b"), 2, "not allowed with"),
        (("--chat-template", "a", "--chat-template-file", "b"), 2, "not allowed with"),
        (("--temp", "-1"), 2, "--temp"),
        (("-c", "-1"), 2, "-c/--ctx-size"),
        (("-sysf", "/nowhere"), 1, "/nowhere: No such file"),
        (("-sysf", "/dev/zero"), 1, "larger than"),
        (("--chat-template-file", sys.executable), 1, sys.executable),
        (("--chat-template", "chatmk"), 1, "no chat template 'chatmk'; those with a name are ch"),
        (("--chat-template", "{{ 1 / 0 }}"), 1, "fails: ZeroDivisionError"),
        (("--chat-template", "{{ ''.__class__.__mro__ }}"), 1, "does what is forbidden"),
        (("--chat-template", "{{ 'a' * 10**10 }}"), 1, "needs more than 128 MiB"),
        (("--chat-template", "{% if"), 1, "syntax error in line 1"),
        (("--chat-template-kwargs", "{"), 2, "--chat-template-kwargs: is not JSON"),
        (("--chat-template-kwargs", "[1]"), 2, "--chat-template-kwargs: expected an object"),
        (("--chat-template-kwargs", '{"tools": []}'), 1, "variable tools of a chat template"),
        (
            ("--chat-template-kwargs", '{"a": 1}', "--chat-template", "phi3"),
            1,
            "takes no variables",
        ),
        (("--chat-template", "{{ messages[0].role }}"), 1, "leaves out what is said"),
        (("--override-kv", "tokenizer.chat_template=int:3"), 1, "tokenizer.chat_template"),
    ],
)
def test_flags_that_cannot_be(talk: Talk, flags: tuple[str, ...], code: int, expected: str) -> None:
    result, out, err = talk("a\n", *flags)
    assert (result, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("lariat: error: ")
    assert expected in err


def test_a_model_without_a_template(talk: Talk, tmp_path: Path) -> None:
    plain = write_llama(tmp_path / "plain.gguf")
    code, out, err = talk("a\n", model=str(plain))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "has no chat template (tokenizer.chat_template); name one (--chat-template" in err


def test_a_message_that_does_not_fit_ends_a_pipe(talk: Talk, model: str) -> None:
    code, out, err = talk("a\n" + "long " * 400 + "\nb\n", *CHATML)
    assert (code, out) == (1, answers(model, "a"))
    assert re.fullmatch(r"lariat: error: that makes \d+ tokens .*256\n", err)


# ---- a terminal ----------------------------------------------------------------------------


class Person:
    """A user at a terminal in which `lariat chat` runs."""

    def __init__(self, state: Path, *argv: str, **env: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lariat", "chat", *argv],
            cwd=Path(__file__).parents[2],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ
            | {"XDG_STATE_HOME": str(state), "TERM": "xterm", "LC_ALL": "C.UTF-8", "NO_COLOR": ""}
            | env,
            start_new_session=True,
            # The process gets a terminal of its own, so that Ctrl-C reaches it.
            preexec_fn=lambda: _own_terminal(),
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, pattern: str) -> str:
        """The output up to the pattern, which is removed."""
        deadline = time.monotonic() + 60
        while True:
            match = re.search(pattern, self.seen)
            if match:
                shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
                return shown
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.ours], [], [], left)[0], f"{pattern} not in {self.seen!r}"
            try:
                self.seen += os.read(self.ours, 1 << 16).decode("utf-8", "replace")
            except OSError:  # the terminal is closed
                raise AssertionError(f"left, with {self.seen!r}") from None

    def interrupt(self, text: str = "") -> None:
        """Type `text` and Ctrl-C when the program waits for a key.

        Readline notices a Ctrl-C between the prompt and the waiting only with the next key.
        """
        deadline = time.monotonic() + 60
        while not (self._sleeps() and self._sleeps()):
            assert time.monotonic() < deadline
        self.type(text + "\x03")

    def _sleeps(self) -> bool:
        time.sleep(0.03)
        status = Path(f"/proc/{self.process.pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "S"

    def leave(self) -> int:
        code = self.process.wait(timeout=60)
        os.close(self.ours)
        return code


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Callable[..., Person]]:
    people = []

    def person(*argv: str, **env: str) -> Person:
        people.append(Person(tmp_path, *argv, **env))
        return people[-1]

    yield person
    for one in people:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


PROMPT = r"> (\x1b\[\?2004h)?$"


def test_a_conversation_in_a_terminal(
    person: Callable[..., Person], model: str, tmp_path: Path
) -> None:
    expected = answers(model, "the hat", "one\n  two\nthree").splitlines()
    one = person("-m", model, *CHATML)
    start = one.wait_for(PROMPT)
    assert "context 256, roped cache" in start
    assert "/help lists the commands" in start
    one.type("the hat\n")
    assert console.safe(expected[0]) in one.wait_for(PROMPT)
    # A paste of several lines is one message; terminals mark its ends.
    one.type("\x1b[200~one\n  two\nthree\x1b[201~\n")
    one.wait_for(PROMPT)
    one.type("/undo\n")
    assert r"took back: one\n  two\nthree" in one.wait_for(PROMPT)
    one.type("/unknown\n")
    assert "lariat: error: there is no command /unknown" in one.wait_for(PROMPT)
    one.type("\x1b[A\x1b[A\x1b[A\x1b[A")  # up, to the first line
    one.wait_for("the hat")
    one.type("\n")
    one.wait_for(PROMPT)
    one.type("\x04")
    assert one.leave() == 0
    history = tmp_path / "lariat" / "chat_history"
    assert history.read_text().splitlines() == [
        "the hat", "one", "  two", "three", "/undo", "/unknown", "the hat"
    ]  # fmt: skip
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_control_c(person: Callable[..., Person], model: str, tmp_path: Path) -> None:
    one = person("-m", model, "--chat-template", "chatml", "-s", "1", "-c", "65536", "--ignore-eos",
                 "--no-history", "-p", "the hat")  # fmt: skip
    start = one.wait_for(r"(?s)> the hat\r\n.{30}")
    assert "lariat: error" not in start
    one.type("\x03")
    one.wait_for(r"lariat: stopped\r\n")
    one.wait_for(PROMPT)
    one.type("/stats\n")
    assert re.search(r"messages +2\r\n", one.wait_for(PROMPT))
    one.interrupt("half a line")
    one.wait_for(r"Ctrl-C again leaves")
    one.wait_for(PROMPT)
    one.interrupt()
    assert one.leave() == 130
    assert not (tmp_path / "lariat").exists()


def test_what_a_model_writes_commands_no_terminal() -> None:
    assert (
        console.safe("a\tb\nc é\x1b[2J\x9b1m\r\x7f日") == "a\tb\nc é\ufffd[2J\ufffd1m\ufffd\ufffd日"
    )


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_without_escape_sequences_gets_none(
    person: Callable[..., Person], model: str, term: str
) -> None:
    one = person("-m", model, *CHATML, "--no-history", TERM=term)
    seen = one.wait_for(PROMPT)
    one.type("the hat\n")
    seen += one.wait_for(PROMPT)
    one.type("/stats\n")
    seen += one.wait_for(PROMPT)
    one.type("\x04")
    assert one.leave() == 0
    assert "messages    2" in seen
    assert "\x1b" not in seen


@pytest.mark.parametrize(
    "env", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_letters_are_typed_in_any_locale(
    person: Callable[..., Person], model: str, tmp_path: Path, env: dict[str, str]
) -> None:
    said, saved = "žluťoučký 馬 ½ é", tmp_path / "saved.json"
    one = person("-m", model, *CHATML, "--no-history", **env)
    one.wait_for(PROMPT)
    one.type(said + "\n")
    one.wait_for(PROMPT)
    one.type(f"/save {saved}\n")
    one.wait_for(PROMPT)
    one.type("\x04")
    assert one.leave() == 0
    assert json.loads(saved.read_text("utf-8"))["messages"][0]["content"] == said


THOUGHT = ["<think>", "a b</th", "ink>\n\nc", " d"]


@pytest.mark.parametrize("begun", [False, True])
def test_thoughts_are_dim(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], begun: bool
) -> None:
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for term, dim, normal in (("xterm", "\x1b[2m", "\x1b[0m"), ("dumb", "", "")):
        monkeypatch.setenv("TERM", term)
        pieces = THOUGHT[1:] if begun else THOUGHT
        screen = Screen(MARKS[0] if begun else None)
        for piece in pieces:
            screen.show(piece)
        screen.end()
        shown = capfdbinary.readouterr().out.decode()
        thought, _, answer = "".join(pieces).partition("</think>")
        assert shown.count("\x1b") == 2 * bool(dim)
        assert shown.replace(dim, "", 1).replace(normal, "", 1) == f"{thought}</think>{answer}\n"
        if dim:
            assert shown == f"{dim}{thought}</think>{normal}{answer}\n"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not console.has_styles()


def test_an_answer_that_is_stopped_in_a_thought_leaves_the_terminal_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(console, "has_styles", lambda: True)
    screen = Screen(None)
    screen.show("  <think>hm </")
    screen.end()
    assert capfdbinary.readouterr().out == b"\x1b[2m<think>hm </\x1b[0m\n"


def test_an_architecture_that_does_not_run_is_named_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is said of its template, which would be of no use."""
    path = write_llama(tmp_path / "m.gguf", metadata={"general.architecture": "mamba"})
    assert main(["chat", "-m", str(path), "-p", "hello", "-st"]) == 1
    assert "architecture 'mamba' is not supported" in capsys.readouterr().err
