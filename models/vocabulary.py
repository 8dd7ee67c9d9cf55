"""Trains the tokenizer: sentencepiece BPE with byte fallback and LLaMA's settings.

    python -m models.vocabulary --out build/train/tokenizer.model

Digits are split, so a code of four digits is always four digits to the model. One thread and no
shuffling, so the same command makes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2

from models import corpus

N_PIECES = 2048
N_DOCUMENTS = 16000
UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2


def train(n_documents: int = N_DOCUMENTS, n_pieces: int = N_PIECES) -> bytes:
    """A sentencepiece model, serialized."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=_lines(n_documents),
        model_writer=model,
        model_type="bpe",
        vocab_size=n_pieces,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        split_by_unicode_script=True,
        split_by_whitespace=True,
        allow_whitespace_only_pieces=True,
        max_sentencepiece_length=16,
        unk_id=UNKNOWN_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return model.getvalue()


def _lines(n_documents: int) -> Iterator[str]:
    # A word behind a line break has no space before it. sentencepiece cannot learn this from lines,
    # but it can from a quotation mark in place of the break.
    for text in corpus.documents(corpus.TRAIN, n_documents):
        yield text.replace("\n", '"')


class Encoder:
    """Token ids of text that comes in parts."""

    def __init__(self, model: bytes) -> None:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        proto.normalizer_spec.add_dummy_prefix = False  # only a document's first part gets it
        self._processor = SentencePieceProcessor(model_proto=proto.SerializeToString())

    @property
    def n_vocab(self) -> int:
        """Pieces of the vocabulary."""
        return int(self._processor.vocab_size())

    def part(self, text: str, is_first: bool = False) -> list[int]:
        """Ids of a part. They are cut where no piece can span: at blanks, breaks, digits, signs."""
        return list(self._processor.encode((" " if is_first else "") + text))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.part(text))


def main(argv: list[str] | None = None) -> None:
    """Train the tokenizer and write its model file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    model = train()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(model)
    print(f"{hashlib.sha256(model).hexdigest()}  {args.out}")


if __name__ == "__main__":
    main()
