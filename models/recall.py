"""Passages with facts to remember: stated early, then filler, then a question and its answer.

    The key of the red door is 4 8 2 1. The password of the iron gate is maple. Once upon ...
    Question: What is the key of the red door?
    Answer: The key of the red door is 4 8 2 1.

The facts of one passage are about different things. A code is four different digits. The answer
repeats the words of the fact. In passages with documents, each document has a label, facts and
filler, and can be computed apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models import world
from models.language import Dice, words

ADJECTIVES = words(
    """
    red blue green black white yellow old new small round tall wooden iron silver golden narrow
    heavy hidden broken painted
    """
)
NOUNS = words(
    """
    door gate chest box tower cellar cabinet cupboard vault drawer shed barn attic trunk safe
    locker room garage
    """
)
CODES = ["key", "code", "number"]
WORDS = words(
    """
    maple lantern copper window thunder pepper ladder feather hammer marble willow anchor candle
    dragon pocket rabbit saddle turtle velvet winter meadow button cherry garden island kettle
    mirror needle orange pencil ribbon silver spider tunnel walnut yellow basket bottle cactus
    falcon ginger harbour jacket lemon monkey nutmeg oyster parrot pumpkin rocket
    """
)
FAVOURITES = {
    "fruit": words("apple pear plum cherry lemon orange grape melon peach banana"),
    "colour": words("red blue green black white yellow purple orange brown silver"),
    "animal": words("fox rabbit bear mouse otter frog cat dog owl goat"),
    "season": words("spring summer autumn winter"),
    "tree": words("oak pine maple willow birch ash elm poplar chestnut lime"),
    "drink": words("tea milk water juice cocoa coffee lemonade"),
}
LABELS = "ABCDEFGH"

_STATEMENTS = ["", "", "", "Remember this: ", "Note: ", "Please do not forget: "]
_REMINDERS = ["", "", "", " Now a story.", " Here is a story.", " Keep it in mind."]


@dataclass(frozen=True)
class Fact:
    """Something to remember: `subject` is `value`."""

    subject: str  # "the key of the red door"
    value: str  # "4 8 2 1"

    @property
    def statement(self) -> str:
        """The fact as a sentence, which is also the answer to its question."""
        return f"{self.subject[0].upper()}{self.subject[1:]} is {self.value}."

    @property
    def question(self) -> str:
        """The question about the fact."""
        return f"What is {self.subject}?"


@dataclass(frozen=True)
class Part:
    """A run of text and its role.

    "text"; the "value" of a fact; in an answer, the "subject" that the question named, and the
    value again, which is the "answer".
    """

    text: str
    role: str = "text"


@dataclass(frozen=True)
class Passage:
    """Facts, filler and questions, in this order."""

    parts: tuple[Part, ...]
    facts: tuple[Fact, ...]  # the facts asked for, in the order of the questions
    documents: tuple[str, ...] = ()  # the text of each document, if there are documents

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(part.text for part in self.parts)

    @property
    def prompt(self) -> str:
        """The text up to the first answer, which begins right behind "Answer:"."""
        text = self.text
        return text[: text.index("\nAnswer:") + len("\nAnswer:")]

    def is_right(self, completion: str) -> bool:
        """Whether a completion of the prompt begins with the first fact, word for word."""
        lines = completion.strip().split("\n")
        return lines[0].strip() == self.facts[0].statement


def facts(dice: Dice, n: int, only_codes: bool = False) -> list[Fact]:
    """`n` facts about different subjects, never the same adjective and noun twice."""
    found: dict[str, Fact] = {}
    while len(found) < n:
        kind = 0.0 if only_codes else dice.below(10)
        entity = f"the {dice.pick(ADJECTIVES)} {dice.pick(NOUNS)}"
        if kind < 6:
            value = " ".join(map(str, dice.several(range(10), 4)))
            fact = Fact(f"the {dice.pick(CODES)} of {entity}", value)
        elif kind < 8:
            fact = Fact(f"the password of {entity}", dice.pick(WORDS))
        else:
            thing = dice.pick(sorted(FAVOURITES))
            entity = dice.pick(world.GIRLS + world.BOYS)
            fact = Fact(f"the favourite {thing} of {entity}", dice.pick(FAVOURITES[thing]))
        found.setdefault(entity, fact)
    return list(found.values())


def passage(
    dice: Dice,
    n_facts: int,
    n_questions: int,
    n_filler: int,
    count: Callable[[str], int],
    filler: Iterator[str],
    only_codes: bool = False,
) -> Passage:
    """A passage with its facts at the beginning.

    At most `n_filler` tokens, as `count` counts them, stand between the facts and the questions.
    `filler` gives as many stories as are needed.
    """
    known = facts(dice, n_facts, only_codes)
    parts = list(_stated(dice, known, dice.pick(_REMINDERS) if n_filler else ""))
    text = _cut(filler, n_filler, count)
    if text:
        parts.append(Part(" " + text))
    asked = dice.several(known, n_questions)
    return Passage((*parts, *_questions(asked)), tuple(asked))


def documents(
    dice: Dice,
    n_documents: int,
    n_facts_each: int,
    n_questions: int,
    n_filler: int,
    count: Callable[[str], int],
    filler: Iterator[str],
) -> Passage:
    """A passage with its facts in labelled documents; `n_filler` counts for all together."""
    known = facts(dice, n_documents * n_facts_each)
    parts: list[Part] = []
    texts: list[str] = []
    for i in range(n_documents):
        own = known[i * n_facts_each : (i + 1) * n_facts_each]
        here = [Part(f"Document {LABELS[i]}\n"), *_stated(dice, own, "")]
        text = _cut(filler, n_filler // n_documents, count)
        here.append(Part(f" {text}\n" if text else "\n"))
        parts += here
        texts.append("".join(part.text for part in here))
    last = parts.pop()
    parts.append(Part(last.text[:-1]))  # the line break belongs to what follows
    asked = dice.several(known, n_questions)
    return Passage((*parts, *_questions(asked)), tuple(asked), tuple(texts))


def copying(dice: Dice, n_words: int, n_lists: int) -> Passage:
    """Lists of random words, each said twice: the simplest exercise in looking back.

    Only for training.
    """
    parts: list[Part] = []
    for i in range(n_lists):
        some = [
            str(dice.below(10)) if dice.chance(0.5) else dice.pick(WORDS) for _ in range(n_words)
        ]
        line = " " + " ".join(some)
        parts += [Part("\nSay:" if i else "Say:"), Part(line, "value"), Part("\nAgain:")]
        parts.append(Part(line, "answer"))
    return Passage(tuple(parts), ())


def _stated(dice: Dice, known: list[Fact], end: str) -> Iterator[Part]:
    """The facts one after another; each value is a part of its own."""
    lead = dice.pick(_STATEMENTS)
    for i, fact in enumerate(known):
        subject = fact.statement[: -len(fact.value) - 2]
        if not i and lead:
            subject = lead + subject[0].lower() + subject[1:]
        yield Part(("" if not i else " ") + subject)
        yield Part(f" {fact.value}", "value")
        yield Part("." + (end if i == len(known) - 1 else ""))


def _questions(asked: list[Fact]) -> Iterator[Part]:
    for fact in asked:
        yield Part(f"\nQuestion: {fact.question}\nAnswer:")
        yield Part(" " + fact.statement[: -len(fact.value) - 2], "subject")
        yield Part(f" {fact.value}", "answer")
        yield Part(".")


def _cut(filler: Iterator[str], n_tokens: int, count: Callable[[str], int]) -> str:
    """Whole sentences of stories, as many as `n_tokens` allow."""
    kept: list[str] = []
    left = n_tokens
    while left > 8:
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])|\n", next(filler)):
            left -= count(" " + sentence)
            if left < 0:
                break
            kept.append(sentence)
    return " ".join(kept)
