"""`lariat chat`: a conversation with a model, in a terminal or through pipes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat.cli import (
    console,
    engine_flags,
    model_file,
    prompt,
    report,
    rope_read,
    sampling_flags,
    template_flags,
)  # fmt: skip
from lariat.cli.terminal import Lines, Terminal
from lariat.cli.usage import Text, UsageError
from lariat.errors import ChatError, LariatError

if TYPE_CHECKING:
    from lariat.chat.chat import Chat
    from lariat.chat.thoughts import Marks
    from lariat.llm import LLM
    from lariat.runtime.timings import Timings

_LONG_PROMPT = 256  # tokens; shorter prompts get no progress bar

_DESCRIPTION = """\
Talk with a model that was trained for it. Answers stream to standard output. If standard input is
not a terminal, each of its lines is a message, and only the answers are printed; lines that begin
with a slash are messages, too, unless --commands is given."""

_EPILOG = """\
examples:
  lariat chat -m model.gguf
  lariat chat -m model.gguf -sys "You are a pirate." --temp 0.5 --cache raw
  lariat chat -m model.gguf -f report.txt -st
  echo "What is a lariat?" | lariat chat -m model.gguf

A message is a line. A line that ends in a backslash goes on in the next line, and lines between two
\"\"\" are one message. In a terminal, /help lists the commands. Ctrl-C stops an answer; Ctrl-D
leaves, and so does Ctrl-C pressed twice. Keys and values of the conversation stay in the cache, so
only new tokens are computed. When the context is full, the oldest turns are forgotten; --cache raw
does that without computing anything.
Exit code: 0, 1 error, 2 usage, 130 Ctrl-C, 141 closed pipe."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "chat", help="talk with a model", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=run)
    text = parser.add_argument_group("text")
    prompt.add_arguments(text, required=False)
    system = text.add_mutually_exclusive_group()
    system.add_argument(
        "-sys",
        "--system-prompt",
        action=Text,
        metavar="TEXT",
        help="instructions for the whole conversation",
    )
    system.add_argument(
        "-sysf", "--system-prompt-file", metavar="FILE", help="the same from a UTF-8 file"
    )
    template_flags.add(text)
    sampling_flags.add_length(text)
    text.add_argument(
        "--commands",
        action="store_true",
        help="lines that begin with a slash are commands in a pipe, too (in a terminal they always "
        "are); they read and write files",
    )
    text.add_argument(
        "-st", "--single-turn", action="store_true", help="leave after the answer to -p or -f"
    )
    text.add_argument(
        "--no-history", action="store_true", help="keep no file of the lines that were typed"
    )
    text.add_argument(
        "-q", "--quiet", action="store_true", help="no bars and no hints, only errors"
    )
    engine_flags.add(parser)
    rope_read.add(parser)
    sampling_flags.add(parser)


def run(args: argparse.Namespace) -> int:
    """Talk, and return the exit code."""
    params = sampling_flags.params(args)
    config = engine_flags.config(args)
    rope_asked = rope_read.asked(args)
    overrides = model_file.overrides(args)
    has_message = args.prompt is not None or args.file is not None
    if args.single_turn and not has_message:
        raise UsageError("argument -st/--single-turn: needs a message, -p or -f")
    message = prompt.read(args) if has_message else None
    system = args.system_prompt or ""
    if args.system_prompt_file is not None:
        system = template_flags.read(args.system_prompt_file).removesuffix("\n")
    variables = template_flags.variables(args)
    template = template_flags.template(args)

    from lariat.architectures.loading import read_config
    from lariat.chat import chat_template
    from lariat.chat.chat import Chat
    from lariat.formats.gguf_split import GGUFModel

    path = model_file.find(args)
    with GGUFModel(path, overrides, args.use_mmap) as gguf:  # before the model is loaded
        read_config(gguf)
        if template is None:
            chat_template.check_present(gguf)
    with engine_flags.load(args, config, overrides) as llm:
        params = sampling_flags.with_file(params, llm.sampling, args)
        chat = Chat(
            llm,
            template=template,
            system=system,
            chat_template_kwargs=variables,
            params=params,
            rope_read=rope_asked,
        )
        lines = Terminal(history=not args.no_history) if console.stdin_is_terminal() else Lines()
        with chat, lines:
            return _Session(chat, llm, lines, args).run(message)


class _Leave(Exception):
    """The user wants to leave."""


class _Session:
    """One run of the command: reads messages, prints answers."""

    def __init__(self, chat: Chat, llm: LLM, lines: Lines, args: argparse.Namespace) -> None:
        self._chat = chat
        self._llm = llm
        self._lines = lines
        self._args = args
        self._timings: Timings | None = None  # of the last answer
        self._rope = ""
        self._is_quiet = args.quiet or not lines.is_terminal
        self._has_commands = args.commands or lines.is_terminal

    def run(self, message: str | None) -> int:
        """Talk until the user leaves; `message` is the first message."""
        self._hint(report.headline(self._llm, self._args))
        self._hint("lariat: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        try:
            if message is not None:
                self._lines.show(message)
                self._attempt(self._answer, message)
                if self._args.single_turn:
                    return 0
            while (text := self._lines.read()) is not None:
                if self._has_commands and text.startswith("/") and "\n" not in text:
                    self._attempt(self._obey, text)
                elif text.strip():
                    self._attempt(self._answer, text)
        except _Leave:
            pass
        return 0

    def _attempt(self, act: Callable[[str], None], text: str) -> None:
        """Act. At a terminal, errors and Ctrl-C end only this; elsewhere the whole run."""
        try:
            act(text)
        except (LariatError, ValueError) as error:
            if not self._lines.is_terminal:
                raise LariatError(str(error)) from None
            console.note(f"lariat: error: {console.printable(str(error))}")
        except KeyboardInterrupt:
            if not self._lines.is_terminal:
                raise
            console.note("lariat: stopped")

    def _answer(self, text: str) -> None:
        """Say something and print the answer."""
        bar = console.Bar("reading", enabled=not self._is_quiet)

        def progress(n_done: int, n_prompt: int) -> None:
            if n_prompt >= _LONG_PROMPT:
                bar(n_done / n_prompt)

        n_forgotten = self._chat.n_forgotten
        with bar:
            reply = self._chat.say(text, prompt_progress=progress)
            screen = Screen(reply.prompt.begun)
            try:
                for piece in reply:
                    bar.close()
                    screen.show(piece)
            finally:
                reply.close()
                self._timings = reply.timings
                self._rope = rope_read.statistics(reply, self._llm.config.rope)
                screen.end()
                if self._lines.is_terminal:
                    console.write("\n")
        if reply.finish_reason == "context":
            self._hint("lariat: the context is full, so the answer ends here")
        elif reply.finish_reason == "length":
            self._hint("lariat: the answer ends here, because of -n")
        if self._chat.n_forgotten > n_forgotten:
            self._hint(
                f"lariat: the context is full: it has lost the oldest {self._chat.n_forgotten} "
                f"messages"
            )

    # ---- commands ----

    def _obey(self, line: str) -> None:
        """Run the command in a line that begins with a slash."""
        name, _, rest = line.strip().partition(" ")
        if name not in _COMMANDS:
            raise ChatError(
                f"there is no command {name}; /help lists them (a message may begin with a blank)"
            )
        try:
            _COMMANDS[name][0](self, rest.strip())
        except OSError as error:
            raise ChatError(f"{rest.strip()}: {error.strerror}") from error

    def reset(self, _: str) -> None:
        self._chat.reset()
        self._hint("lariat: a new conversation begins")

    def undo(self, _: str) -> None:
        text = self._chat.undo()
        what = "there is nothing to take back" if text is None else f"took back: {_cut(text)}"
        self._hint(f"lariat: {what}")

    def system(self, text: str) -> None:
        if text:
            self._chat.system = text
            self._hint("lariat: the conversation continues with this system prompt")
        else:
            console.note(console.printable(self._chat.system) or "there is no system prompt")

    def save(self, path: str) -> None:
        self._chat.save(_path(path, "/save"))
        self._hint(f"lariat: {len(self._chat.messages)} messages saved")

    def load(self, path: str) -> None:
        has_cache = self._chat.load(_path(path, "/load"))
        how = "" if has_cache else "; the next answer has to read them again"
        self._hint(f"lariat: {len(self._chat.messages)} messages loaded{how}")

    def show_stats(self, _: str) -> None:
        chat, timings = self._chat, self._timings
        lost = f", {chat.n_forgotten} of them lost to the context" if chat.n_forgotten else ""
        lines = [
            f"context     {len(chat.context)} of {self._llm.n_ctx} tokens, "
            f"{chat.context.nbytes / (1 << 20):.1f} MiB of the cache",
            f"messages    {len(chat.messages)}{lost}",
        ]
        if timings is not None:
            lines += [
                f"reused      {report.reused(timings)}",
                f"prompt      {report.rate(timings.n_prompt, timings.prompt_s)}",
                f"generation  {report.rate(timings.n_decode, timings.decode_s)}",
            ]
            if timings.n_drafted:
                lines.append(f"guessed     {report.guessed(timings)}")
        if self._rope:
            lines.append(f"rope        {self._rope}")
        console.note("\n".join(lines))

    def help(self, _: str) -> None:
        lines = [f"{name + argument:16}{what}" for name, (_, argument, what) in _COMMANDS.items()]
        console.note("\n".join(lines))

    def quit(self, _: str) -> None:
        raise _Leave

    def _hint(self, text: str) -> None:
        """Print a line for a person at a terminal."""
        if not self._is_quiet:
            console.note(text)


class Screen:
    """Shows one answer, without the blanks in front; thoughts are dim on a terminal that can."""

    def __init__(self, begun: Marks | None) -> None:
        """`begun`: the marks of a thought that the prompt has begun."""
        from lariat.chat.thoughts import Splitter

        self._splitter = Splitter(begun) if console.has_styles() else None
        self._is_dim = False
        self._last = ""

    def show(self, piece: str) -> None:
        """Show a piece of the answer."""
        parts = self._splitter.feed(piece) if self._splitter is not None else [(piece, False)]
        self._write(parts)

    def end(self) -> None:
        """Show what is left, and end the line."""
        if self._splitter is not None:
            self._write(self._splitter.flush())
        self._set_dim(False)
        if self._last != "\n":
            console.write("\n")

    def _write(self, parts: list[tuple[str, bool]]) -> None:
        for text, is_thought in parts:
            shown = text if self._last else text.lstrip()
            if shown:
                self._set_dim(is_thought)
                console.show(shown)
                self._last = shown[-1]

    def _set_dim(self, is_dim: bool) -> None:
        if is_dim != self._is_dim:
            self._is_dim = is_dim
            console.write(console.DIM if is_dim else console.NORMAL)


_COMMANDS: dict[str, tuple[Callable[[_Session, str], None], str, str]] = {
    "/reset": (_Session.reset, "", "forget the conversation, but not the system prompt"),
    "/undo": (_Session.undo, "", "take back the last message and its answer"),
    "/system": (_Session.system, " TEXT", "change the system prompt; without TEXT, show it"),
    "/save": (_Session.save, " FILE", "save the conversation with its cache, or as .json without"),
    "/load": (_Session.load, " FILE", "continue a saved conversation"),
    "/stats": (_Session.show_stats, "", "tokens, memory and speed"),
    "/help": (_Session.help, "", "this list"),
    "/quit": (_Session.quit, "", "leave, as Ctrl-D does"),
}


def _path(text: str, command: str) -> Path:
    if not text:
        raise ChatError(f"{command} needs the name of a file")
    return Path(text).expanduser()


def _cut(text: str) -> str:
    line = console.printable(text)
    return line if len(line) <= 60 else line[:59] + "…"
