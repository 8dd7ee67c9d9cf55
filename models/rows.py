"""The rows of token ids of each training step, with the weight of each token in the loss.

A batch depends only on the seed and the step, so training can stop and continue, and several
processes can make batches ahead of time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models import corpus, recall, world
from models.language import Dice, words
from models.recall import Passage
from models.vocabulary import BOS_ID, EOS_ID, Encoder

# The weight of a token in the loss. The value of a fact is noise when it is said first, and the
# purpose when it is said again.
_WORTH = {"text": 1.0, "value": 0.1, "subject": 2.0, "answer": 5.0}
_WORTH_COPIED = 1.0
# Names of people and things in a story must stay the same. The first repetition is the hardest.
_WORTH_SECOND, _WORTH_LATER = 8.0, 4.0
_WORD = re.compile(r" ?[A-Za-z]+")
_CAST = frozenset(
    [
        *(*world.GIRLS, *world.BOYS, *world.COLOURS, *(thing.name for thing in world.THINGS)),
        *words("Mina Toby Lena Robin Elsa Nils Amir Suri Ivo Kenji Lola Aya"),
        *words("Aunt Uncle Polly Berta Ned Fritz bread cake cheese"),
    ]
)


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum. Looking back is learned on short rows first: they are cheap."""

    share: float  # of all steps
    length: int  # tokens of a row
    tokens: int  # of a batch
    copying: float  # shares of the rows; the rest are stories
    recall: float
    documents: float
    n_facts: int  # at most, in a passage

    @property
    def n_rows(self) -> int:
        """Rows of a batch."""
        return self.tokens // self.length


CURRICULUM = (
    Stage(0.15, 128, 4096, copying=0.25, recall=0.60, documents=0.0, n_facts=2),
    Stage(0.25, 256, 4096, copying=0.05, recall=0.50, documents=0.10, n_facts=4),
    Stage(0.30, 512, 8192, copying=0.0, recall=0.35, documents=0.20, n_facts=5),
    Stage(0.30, 1024, 8192, copying=0.0, recall=0.25, documents=0.15, n_facts=6),
)


def stage_of(step: int, n_steps: int) -> Stage:
    """The stage that a step belongs to."""
    end = 0.0
    for stage in CURRICULUM:
        end += stage.share
        if step < round(end * n_steps):
            return stage
    return CURRICULUM[-1]


def n_tokens(n_steps: int) -> int:
    """Tokens of a whole training."""
    return sum(stage_of(step, n_steps).tokens for step in range(n_steps))


def batch(
    encoder: Encoder, seed: int, step: int, n_steps: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids [n_rows, length + 1] and their worth [n_rows, length + 1], for one step."""
    stage = stage_of(step, n_steps)
    ids = np.empty((stage.n_rows, stage.length + 1), np.int64)
    worth = np.empty(ids.shape, np.float32)
    dice = Dice(corpus.TRAIN, seed, "kinds", step)
    for row in range(stage.n_rows):
        # Every batch has exactly these shares of passages, documents and lists.
        at = (row + dice.below(1000) / 1000) / stage.n_rows
        if at < stage.copying:
            kind = "copying"
        elif at < stage.copying + stage.recall:
            kind = "recall"
        elif at < stage.copying + stage.recall + stage.documents:
            kind = "documents"
        else:
            kind = "stories"
        ids[row], worth[row] = make_row(
            encoder, Dice(corpus.TRAIN, seed, step, row), kind, stage, f"{seed}/{step}/{row}"
        )
    return ids, worth


def make_row(
    encoder: Encoder, dice: Dice, kind: str, stage: Stage, name: str, split: str = corpus.TRAIN
) -> tuple[list[int], list[float]]:
    """One row: documents one after another, each between begin and end tokens, the last cut."""
    size = stage.length + 1
    filler = corpus.stories(split, name)
    ids: list[int] = []
    worth: list[float] = []
    while len(ids) < size:
        left = size - len(ids)
        if kind == "copying":
            n_words = dice.between(4, 16)
            passage = recall.copying(dice, n_words, max(1, min(6, left // (4 * n_words + 8))))
        elif kind == "recall" and left >= 60:
            passage = _passage(encoder, dice, stage, left - 4, filler)
        elif kind == "documents" and left >= 160:
            n_documents, each = dice.between(2, 4), dice.between(1, 2)
            n_questions = dice.between(1, 3) if n_documents * each > 2 else 1
            room = left - n_documents * (each * 20 + 6) - n_questions * 34 - 8
            passage = recall.documents(
                dice, n_documents, each, n_questions, dice.between(0, max(room, 0)),
                encoder.count, filler,
            )  # fmt: skip
        else:
            passage = Passage((recall.Part(next(filler)),), ())
        more_ids, more_worth = encode(encoder, passage, kind == "copying")
        ids += more_ids
        worth += more_worth
    return ids[:size], worth[:size]


def _passage(
    encoder: Encoder, dice: Dice, stage: Stage, left: int, filler: Iterator[str]
) -> Passage:
    """A passage that fits into `left` tokens, up to long names: facts, filler, questions."""
    n_facts = min(dice.between(1, stage.n_facts), max(1, left // 55))
    n_questions = min(n_facts, max(1, (left - 20 * n_facts) // 34))
    room = left - 20 * n_facts - 34 * n_questions
    # In short rows most passages have no filler, so that there are more of them.
    if room < 20 or (stage.length <= 256 and dice.chance(0.5)):
        room = 0
    return recall.passage(dice, n_facts, n_questions, dice.between(0, room), encoder.count, filler)


def encode(
    encoder: Encoder, passage: Passage, is_copying: bool = False
) -> tuple[list[int], list[float]]:
    """Ids and worth of a document, begin and end tokens included."""
    ids, worth = [BOS_ID], [0.0]
    for i, part in enumerate(passage.parts):
        each = _WORTH_COPIED if is_copying and part.role == "answer" else _WORTH[part.role]
        pieces = [(part.text, each)]
        if part.role == "text" and not is_copying:
            pieces = _said_again(part.text, each)
        for j, (text, value) in enumerate(pieces):
            some = encoder.part(text, is_first=not i and not j)
            ids += some
            worth += [value] * len(some)
    return [*ids, EOS_ID], [*worth, 1.0]


def _said_again(text: str, worth: float) -> list[tuple[str, float]]:
    """The text in pieces. A word of the cast that was said before is a piece with more weight."""
    pieces, done = [], 0
    times = dict.fromkeys(_CAST, 0)
    for match in _WORD.finditer(text):
        word = match.group().strip()
        if word not in times:
            continue
        times[word] += 1
        if times[word] > 1:
            pieces.append((text[done : match.start()], worth))
            pieces.append((match.group(), _WORTH_SECOND if times[word] == 2 else _WORTH_LATER))
            done = match.end()
    pieces.append((text[done:], worth))
    return [piece for piece in pieces if piece[0]]
