"""Documents by split and number, and the program that writes a corpus of them.

    python -m models.corpus --out build/corpus

Each document depends only on its split, type and number, so the same command writes the same bytes
anywhere. Splits share no seed: documents of HELD_OUT were never trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from models import recall
from models.language import Dice
from models.recall import Passage
from models.stories import story

TRAIN, HELD_OUT = "train", "held-out"


def story_number(split: str, number: int | str) -> str:
    """One story of a split."""
    return story(Dice(split, "story", number))


def stories(split: str, name: object) -> Iterator[str]:
    """An endless row of stories, a different one for each name."""
    number = 0
    while True:
        yield story_number(split, f"{name}/{number}")
        number += 1


def n_words(text: str) -> int:
    """The number of words and signs: close to the number of tokens, without a tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def held_out_passage(number: int, n_tokens: int, count: Callable[[str], int] = n_words) -> Passage:
    """The passages that recall is measured on, by number.

    One to four facts, then filler of any length so that the whole has at most about `n_tokens`
    tokens, then one question. Every third one has its facts in documents.
    """
    dice = Dice(HELD_OUT, "passage", number)
    filler = stories(HELD_OUT, f"passage/{number}")
    if number % 3 == 2:
        n_documents, each = dice.between(2, 4), dice.between(1, 2)
        room = n_tokens - 28 * n_documents * each - 60
        n_filler = dice.between(0, max(room, 0))
        return recall.documents(dice, n_documents, each, 1, n_filler, count, filler)
    n_facts = dice.between(1, 4)
    n_filler = dice.between(0, n_tokens - 22 * n_facts - 60)
    return recall.passage(dice, n_facts, 1, n_filler, count, filler)


def documents(split: str, n: int) -> Iterator[str]:
    """`n` documents as they are mixed for the tokenizer: stories, passages, documents, lists."""
    for i in range(n):
        dice = Dice(split, "mixed", i)
        filler = stories(split, f"mixed/{i}")
        kind = i % 8
        if kind < 5:
            yield next(filler)
        elif kind < 7:
            n_facts = dice.between(1, 6)
            yield recall.passage(dice, n_facts, n_facts, 60, n_words, filler).text
        else:
            yield recall.documents(dice, 2, 2, 2, 60, n_words, filler).text


def main(argv: list[str] | None = None) -> None:
    """Write documents, one after another, with a line of three stars between them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--n-documents", type=int, default=16000, help="of the training split")
    parser.add_argument("--n-held-out", type=int, default=1000)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for split, n in ((TRAIN, args.n_documents), (HELD_OUT, args.n_held_out)):
        path = args.out / f"{split}.txt"
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for text in tqdm(documents(split, n), split, n, unit="doc", disable=None):
                data = (text + "\n***\n").encode()
                digest.update(data)
                file.write(data)
        print(f"{digest.hexdigest()}  {path}", file=sys.stdout)


if __name__ == "__main__":
    main()
