"""Draws that are the same everywhere, and templates that become sentences.

A template is text with four types of marks:

    (red|blue|green)   one of them, drawn; may be nested, and a part may be empty
    {hero} {He}        a slot; with a capital letter, the value begins with one
    [walk] [be+]       a verb in the story's tense, third person; + is plural
    a~                 a or an, by the word that follows
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

PAST, PRESENT = "past", "present"


def words(text: str) -> list[str]:
    """The words of a text; lists are easier to read in this form."""
    return text.split()


class Dice:
    """A source of draws that depends only on the seed.

    It uses only `random()`, because Python promises that its numbers never change.
    """

    def __init__(self, *seed: object) -> None:
        self._random = random.Random("/".join(map(str, seed))).random

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both possible."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]

    def several(self, choices: Sequence[T], n: int) -> list[T]:
        """`n` different ones, in random order."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(n)]


# lemma: past, third person present. Regular verbs are not listed.
_IRREGULAR = {
    "be": ("was", "is"), "have": ("had", "has"), "do": ("did", "does"), "go": ("went", "goes"),
    "can": ("could", "can"), "will": ("would", "will"), "must": ("had to", "must"),
    "beat": ("beat", "beats"), "begin": ("began", "begins"), "bend": ("bent", "bends"),
    "blow": ("blew", "blows"),
    "break": ("broke", "breaks"), "bring": ("brought", "brings"), "build": ("built", "builds"),
    "catch": ("caught", "catches"), "come": ("came", "comes"), "cut": ("cut", "cuts"),
    "dig": ("dug", "digs"), "draw": ("drew", "draws"), "drink": ("drank", "drinks"),
    "eat": ("ate", "eats"), "fall": ("fell", "falls"), "feel": ("felt", "feels"),
    "find": ("found", "finds"), "fly": ("flew", "flies"), "forget": ("forgot", "forgets"),
    "get": ("got", "gets"), "give": ("gave", "gives"), "grow": ("grew", "grows"),
    "hang": ("hung", "hangs"), "hear": ("heard", "hears"), "hide": ("hid", "hides"),
    "hit": ("hit", "hits"), "hold": ("held", "holds"), "hurt": ("hurt", "hurts"),
    "keep": ("kept", "keeps"), "know": ("knew", "knows"),
    "lead": ("led", "leads"), "leave": ("left", "leaves"), "let": ("let", "lets"),
    "lie": ("lay", "lies"), "light": ("lit", "lights"), "lose": ("lost", "loses"),
    "make": ("made", "makes"), "mean": ("meant", "means"), "meet": ("met", "meets"),
    "put": ("put", "puts"), "ride": ("rode", "rides"), "ring": ("rang", "rings"),
    "rise": ("rose", "rises"), "run": ("ran", "runs"), "say": ("said", "says"),
    "see": ("saw", "sees"), "send": ("sent", "sends"), "set": ("set", "sets"),
    "shake": ("shook", "shakes"), "shine": ("shone", "shines"), "shut": ("shut", "shuts"),
    "sing": ("sang", "sings"), "sink": ("sank", "sinks"), "sit": ("sat", "sits"),
    "sleep": ("slept", "sleeps"), "speak": ("spoke", "speaks"), "spread": ("spread", "spreads"),
    "stand": ("stood", "stands"), "sweep": ("swept", "sweeps"), "swim": ("swam", "swims"),
    "take": ("took", "takes"), "tear": ("tore", "tears"), "tell": ("told", "tells"),
    "think": ("thought", "thinks"), "throw": ("threw", "throws"),
    "understand": ("understood", "understands"), "wake": ("woke", "wakes"),
    "wear": ("wore", "wears"), "win": ("won", "wins"), "write": ("wrote", "writes"),
}  # fmt: skip
_DOUBLED = frozenset(
    words(
        """
        stop drop nod hug tap beg slip hop grab rub step wag hum clap spot wrap skip trip chat stir
        """
    )
)
_PLURAL = {("be", PAST): "were", ("be", PRESENT): "are"}


def inflect(verb: str, tense: str, plural: bool = False) -> str:
    """The verb's form for he, she and it, or for they."""
    if plural:
        if tense == PRESENT and verb in ("can", "will", "must"):
            return verb
        form = _PLURAL.get((verb, tense))
        return form or (verb if tense == PRESENT else inflect(verb, tense))
    if verb in _IRREGULAR:
        return _IRREGULAR[verb][tense == PRESENT]
    after_consonant = verb.endswith("y") and verb[-2] not in "aeiou"
    if tense == PRESENT:
        if after_consonant:
            return verb[:-1] + "ies"
        return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")
    if after_consonant:
        return verb[:-1] + "ied"
    if verb.endswith("e"):
        return verb + "d"
    return verb + (verb[-1] if verb in _DOUBLED else "") + "ed"


_CHOICE = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{(\w+)\}")
_VERB = re.compile(r"\[(\w+)(\+?)\]")
_ARTICLE = re.compile(r"\b([Aa])~ (?=(\w))")
_SENTENCE = re.compile(r'(^"?|(?<=[.!?] )"?)([a-z])')


def draw(template: str, dice: Dice) -> str:
    """The template with its choices made and its slots still open."""
    n_choices = 1
    while n_choices:
        template, n_choices = _CHOICE.subn(lambda m: dice.pick(m[1].split("|")), template)
    return template


def expand(template: str, slots: Mapping[str, str], dice: Dice, tense: str = PAST) -> str:
    """The text of a template. Slot values may hold marks themselves. KeyError: no such slot."""

    def slot(match: re.Match[str]) -> str:
        name = match[1]
        value = slots[name[0].lower() + name[1:]]
        return value[0].upper() + value[1:] if name[0].isupper() else value

    text = draw(template, dice)  # first: slots in parts that are not drawn are never looked up
    while "{" in text:
        text = draw(_SLOT.sub(slot, text), dice)
    text = _VERB.sub(lambda m: inflect(m[1], tense, bool(m[2])), text)
    text = _ARTICLE.sub(lambda m: m[1] + ("n " if m[2].lower() in "aeiou" else " "), text)
    text = re.sub(" +", " ", text).strip().replace("can not ", "cannot ")
    return _SENTENCE.sub(lambda m: m[1] + m[2].upper(), text)
