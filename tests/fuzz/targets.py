"""Does with an input everything that a user would do with such a file or text.

The run ends with an error for every exception that is not documented, for an input that takes too
long or keeps blocks of the cache, for a text that comes back changed, and for a message that a
terminal should not print.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lariat.chat.chat_template import Jinja
from lariat.cli.main import main as cli
from lariat.config import SamplingParams
from lariat.errors import ContextError, LariatError
from lariat.formats.gguf import GGUFFile
from lariat.llm import LLM
from lariat.reuse.library import ChunkLibrary
from lariat.tokenizers.pre_tokenizers import SCHEMES
from lariat.tokenizers.tokenizer import Tokenizer
from lariat.tools.perplexity import Base, compare
from lariat.tools.quantize import TYPES, QuantizeConfig, quantize_file

from tests.fuzz.requests import Requests
from tests.support.model_files import vocabulary_metadata, write_gguf, write_llama

INPUTS = ("model", "text", "context", "chunk", "index", "base", "splits", "template", "request")
CACHES: tuple[dict[str, Any], ...] = (
    {"cache": "roped"},
    {"cache": "raw"},
    {"cache": "raw", "type_k": "q8_ch", "type_v": "q4_ch"},
    {"cache": "roped", "type_k": "q8_0", "type_v": "q4_0"},
)
_MARK = "<|im_start|>"  # a special token that is always found in text
N_TOKENIZERS = 2 + len(SCHEMES)
MAX_SECONDS = 2.0  # of the processor, for one input
_MAX_MESSAGE = 700  # characters; a sentence, a path and what is cut out of a file
_MAX_TEXT = 1 << 14  # characters of a template's text that are tokenized
_MAX_BYTES = 1 << 15  # of a text: the checks themselves take almost two seconds for 64 KB
_MESSAGES = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello {{ 1 }} <s>"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "é\n"},
)
_GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
_DRAWN = SamplingParams(
    max_tokens=4, seed=1, typical_p=0.9, repeat_penalty=1.1, frequency_penalty=0.1, stop=("the",)
)


class Targets:
    """Takes one input after the other."""

    def __init__(self, folder: Path, max_seconds: float | None = None) -> None:
        """`folder` is for files; it must be empty, or that of earlier targets.

        An input that takes more than `max_seconds` of processor time counts as a crash; None: no
        limit.
        """
        self._folder = folder
        self._max_seconds = max_seconds
        self.refused: list[str] = []  # messages of the engine for the last input
        judge = write_judge(folder)
        self._llms = [LLM(judge, n_ctx=128, n_threads=1, **options) for options in CACHES]
        self._tokenizers = list(_tokenizers(folder))
        self._run: dict[str, Callable[[bytes], object]] = {
            "model": self._model,
            "text": self._text,
            "context": self._context,
            "chunk": self._chunk,
            "index": self._index,
            "base": self._base,
            "splits": self._splits,
            "template": self._template,
            "request": Requests(judge, folder / "server"),
        }

    def __call__(self, data: bytes) -> None:
        """Try an input. Returns if all is well."""
        if not data or data[0] >= len(INPUTS):
            return
        self.refused.clear()
        start = time.process_time()
        self._run[INPUTS[data[0]]](data[1:])
        seconds = time.process_time() - start
        if self._max_seconds is not None and seconds > self._max_seconds:
            raise AssertionError(f"took {seconds:.1f} seconds of the processor")

    @contextmanager
    def _documented(self) -> Iterator[None]:
        """Allow only the engine's own errors, each a sentence that can be printed."""
        try:
            yield
        except LariatError as error:
            text = str(error)
            self.refused.append(text)
            assert text.isprintable(), ascii(text)
            assert len(text) <= _MAX_MESSAGE, f"a message of {len(text)} characters: {text[:200]}"

    def _file(self, data: bytes, name: str) -> Path:
        """Write a new file: an earlier one may still be mapped, and must not change."""
        path = self._folder / name
        beside = path.with_suffix(".part")
        beside.write_bytes(data)
        os.replace(beside, path)
        return path

    def _model(self, data: bytes) -> None:
        self._open(self._file(data, "input.gguf"), len(data))

    def _splits(self, data: bytes) -> None:
        """A model in two files; the length of the first stands before it."""
        n = 4 + int.from_bytes(data[:4], "little")
        self._file(data[n:], "input-00002-of-00002.gguf")
        self._open(self._file(data[4:n], "input-00001-of-00002.gguf"), len(data))

    def _open(self, path: Path, seed: int) -> None:
        """Describe it, run it with several caches, quantize it; the seed varies the rest."""
        _info(path)
        smaller = self._folder / "smaller.gguf"
        config = QuantizeConfig(TYPES[seed % len(TYPES)], allow_requantize=True)
        smaller.unlink(missing_ok=True)
        with self._documented():
            quantize_file(path, smaller, config, n_threads=1, use_mmap=seed % 3 > 0)
        if smaller.exists():
            GGUFFile(smaller).close()  # must be a file that can be read
        for options in CACHES[:3]:
            checks = {"check_tensors": seed % 2 == 0, "use_mmap": seed % 3 > 0}
            with self._documented(), LLM(path, n_ctx=64, n_threads=1, **checks, **options) as llm:
                prompt = "Once <s> upon é"
                ids = llm.tokenize(prompt, parse_special=True)[:40] or [0]
                llm.detokenize(llm.tokenize(prompt))
                llm.logits(ids)
                asked_for = replace(llm.sampling.params, max_tokens=4, seed=seed)
                for params in (_GREEDY, _DRAWN, asked_for):
                    with self._documented():
                        done = llm.generate(ids, params)
                        assert all(0 <= i < llm.n_vocab for i in done.token_ids)

    def _text(self, data: bytes) -> None:
        if not data:
            return
        data = data[:_MAX_BYTES]
        tokenizer = self._tokenizers[data[0] % N_TOKENIZERS]
        text = data[1:].decode("utf-8", "replace")
        damaged = data[1:].decode("utf-8", "surrogateescape")
        if damaged != text:
            with contextlib.suppress(ValueError):
                tokenizer.encode(damaged)
                raise AssertionError("a lone surrogate was taken for text")
        ids = tokenizer.encode(text, add_bos=False)
        assert tokenizer.decode(ids) == _as_decoded(tokenizer, text)
        _check_stream(tokenizer, ids)
        tokenizer.decode(tokenizer.encode(text, parse_special=True))
        first = tokenizer.encode_part(text[: len(text) // 2])
        n_kept, rest = tokenizer.encode_behind(first, text[len(text) // 2 :])
        tokenizer.decode([*first[:n_kept], *rest])
        _check_stream(tokenizer, [byte % tokenizer.n_vocab for byte in data])

    def _context(self, data: bytes) -> None:
        with self._llm(data) as llm, llm.context() as context:
            context.load(self._file(data[1:], "input.context"))
            kept = context.tokens
            context.append([3, 4])
            context.logits([5])
            again = self._folder / "again.context"
            context.save(again)
            with llm.context() as other:
                other.load(again)
                assert other.tokens == [*kept, 3, 4]
            context.compact()
            with contextlib.suppress(ContextError):  # a roped cache by channel refuses
                context.delete(0, len(context) // 2)
            llm.generate([6], _GREEDY, context=context)

    def _chunk(self, data: bytes) -> None:
        with self._llm(data) as llm, llm.context() as context:
            folder = self._folder / "library"
            folder.mkdir(exist_ok=True)
            entry = {"name": "doc", "content": "0" * 32, "n_tokens": 1, "n_bytes": 1}
            entry |= {"model": "", "type_k": "", "type_v": ""}
            self._file(json.dumps([entry]).encode(), "library/index.json")
            self._file(data[1:], f"library/{entry['content']}.safetensors")
            chunk = ChunkLibrary(folder)["doc"]
            context.append([1, 5, 6])
            context.append(chunk, recompute=2)
            context.append(chunk)
            context.logits([5])

    def _index(self, data: bytes) -> None:
        folder = self._folder / "index"
        folder.mkdir(exist_ok=True)
        self._file(data, "index/index.json")
        with self._documented():
            for entry in ChunkLibrary(folder).entries():
                with self._documented():
                    ChunkLibrary(folder)[entry.name]

    def _base(self, data: bytes) -> None:
        llm = self._llms[0]
        with self._documented():
            base = Base(self._file(data, "input.base"))
            base.check(llm, None)
            if base.windows.shape[1] <= 64 and base.windows.size <= 256:
                compare(llm, base)

    def _template(self, data: bytes) -> None:
        """Templates run in a process of their own; its limits replace the limit of time here."""
        tokenizer = self._tokenizers[0]
        with self._documented():
            text = Jinja(data.decode("utf-8", "replace"), tokenizer).render(_MESSAGES)
            tokenizer.encode(text[:_MAX_TEXT], parse_special=True)

    @contextmanager
    def _llm(self, data: bytes) -> Iterator[LLM]:
        """The LLM for the first byte; all its blocks must be free afterwards."""
        llm = self._llms[data[0] % len(CACHES) if data else 0]
        with self._documented():
            yield llm
        pool = llm.runner.cache.pool
        assert pool.n_free == pool.n_blocks, f"{pool.n_blocks - pool.n_free} blocks are lost"


def write_judge(folder: Path) -> Path:
    """A small model for files that need one; always the same bytes, so the same fingerprint."""
    path = folder / "judge.gguf"
    if not path.exists():
        write_llama(path, dim=64, n_layers=2, n_heads=2, n_kv_heads=1, n_ff=32, n_vocab=320)
    return path


def _tokenizers(folder: Path) -> Iterator[Tokenizer]:
    """One of sentencepiece, one of lines, one for every way to cut words; all have every byte."""
    path = folder / "vocabulary.gguf"
    metadata = vocabulary_metadata(320)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], _MARK]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"][:-1], 4]
    with GGUFFile(write_gguf(path, metadata)) as gguf:
        yield Tokenizer.from_gguf(gguf)
    pairs = ["t h", "th e", "▁ the", "1 2", "▁ ▁", "a t"]
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁the12a\n", "\n\n"]
    tokens += [*(pair.replace(" ", "") for pair in pairs), "<s>", "</s>", _MARK]
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [6] * 256 + [1] * (len(tokens) - 259) + [3, 3, 4],
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }
    with GGUFFile(write_gguf(path, metadata)) as gguf:
        yield Tokenizer.from_gguf(gguf)
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    pairs = ["t h", "th e", "Ġ the", "1 2", "Ġ Ġ", "Ċ Ċ", "a t"]
    tokens = [*letters, *(pair.replace(" ", "") for pair in pairs), "<s>", "</s>", _MARK]
    for pre in SCHEMES:
        metadata = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * (len(tokens) - 3) + [3, 3, 4],
            "tokenizer.ggml.merges": pairs,
            "tokenizer.ggml.bos_token_id": len(tokens) - 3,
            "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        }
        with GGUFFile(write_gguf(path, metadata)) as gguf:
            yield Tokenizer.from_gguf(gguf)


def _as_decoded(tokenizer: Tokenizer, text: str) -> str:
    """The text after encoding and decoding: unchanged, except that sentencepiece writes spaces as
    "▁" and adds one behind a special token."""
    if not tokenizer.add_space_prefix:
        return text.replace("▁", " ") if tokenizer.piece(0) == "<0x00>" else text
    first, *others = text.replace("▁", " ").split(_MARK)
    return first + "".join(_MARK + (" " + other if other else "") for other in others)


def _check_stream(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Ids that come one at a time give the bytes of all of them."""
    decoder = tokenizer.decoder()
    pieces = [decoder.feed(i) for i in ids]
    data = b"".join(tokenizer.decode_token(i) for i in ids)
    assert "".join(pieces) + decoder.flush() == data.decode("utf-8", "replace")


def _info(path: Path) -> None:
    """`lariat info` prints only lines about a file, and nothing that moves a cursor."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli(["info", "-m", str(path)])
    shown = out.buffer.getvalue().decode() + err.getvalue()
    assert code in (0, 1), f"exit code {code}"
    assert all(c.isprintable() or c == "\n" for c in shown), ascii(shown)
    assert code == 0 or err.getvalue().count("\n") == 1, err.getvalue()
