"""Documents, questions and answers that `bench.experiments.reuse` measures with.

The prose is that of Python's own documentation (pydoc's topics, the licence, docstrings), which
lies on any machine with Python, and of the demo model's stories. Facts are generated. Each task
depends on its name and number only, and on the version of Python.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models import corpus, recall, world
from models.language import Dice, words

_MODULES = words(
    """
    argparse abc ast asyncio base64 bisect calendar codecs collections concurrent.futures
    configparser contextlib copy csv ctypes dataclasses datetime decimal difflib dis doctest
    email.message enum fractions functools gettext graphlib gzip hashlib heapq http.client
    http.cookiejar http.server inspect io ipaddress itertools json locale logging mailbox
    multiprocessing.pool numbers operator optparse os pathlib pickle pickletools platform pprint
    profile random re sched secrets selectors shelve shlex shutil signal smtplib socket
    socketserver sqlite3 ssl statistics string struct subprocess tarfile tempfile textwrap
    threading timeit tokenize trace traceback types typing unittest unittest.mock urllib.parse
    urllib.request urllib.robotparser uuid warnings wave weakref xml.dom.minidom
    xml.etree.ElementTree zipfile
    """
)


@dataclass(frozen=True)
class Asked:
    """A question about documents.

    prompt  text behind the documents, up to where the answer begins
    answer  the text that continues it, with its first blank
    needed  numbers of the documents that hold what the answer needs
    """

    prompt: str
    answer: str
    needed: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Documents that are put one behind the other, and questions of which each is asked alone.

    behind  what the documents but the first one were computed behind; "": nothing
    """

    name: str
    documents: tuple[str, ...]
    asked: tuple[Asked, ...]
    behind: str = ""


Count = Callable[[str], int]


def task(name: str, number: int, count: Count, n_documents: int | None = None) -> Task:
    """A task by name and number; `count` counts tokens. `n_documents`: 4 to 12 unless given."""
    dice = Dice("reuse", name, number)
    n = dice.between(4, 12)
    return TASKS[name](dice, count, n_documents or n)


# ---- prose -------------------------------------------------------------------------------


@functools.cache
def paragraphs() -> tuple[str, ...]:
    """Paragraphs of plain prose in Python's own documentation, each once."""
    topics = importlib.import_module("pydoc_data.topics").topics
    texts = [text for _, text in sorted(topics.items())]
    for name in _MODULES:
        module = importlib.import_module(name)
        values = [value for _, value in sorted(vars(module).items())]
        members = [v for v in values if inspect.isroutine(v) or inspect.isclass(v)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some members are deprecated
            docs = [getattr(member, "__doc__", None) for member in (module, *members)]
        texts += [inspect.cleandoc(doc) for doc in docs if isinstance(doc, str)]
    found = [re.sub(r"\s+", " ", p).strip() for text in texts for p in re.split(r"\n\s*\n", text)]
    return tuple(dict.fromkeys(p for p in found if _is_prose(p)))


def _is_prose(text: str) -> bool:
    plain = sum(c.isalpha() or c in " ,.'\"()-" for c in text)
    return (
        100 < len(text) < 900 and text[0].isupper() and text[-1] == "." and plain > 0.96 * len(text)
    )


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)


def prose(dice: Dice, n_tokens: int, count: Count) -> list[str]:
    """Sentences of about `n_tokens` tokens together: of the documentation, or of a story."""
    is_story = dice.chance(0.25)
    source = corpus.stories("reuse", f"prose/{dice.below(10**6)}") if is_story else _any(dice)
    kept: list[str] = []
    n = 0
    while n < n_tokens:
        for sentence in _sentences(next(source).replace("\n", " ")):
            n += count(" " + sentence)
            if n > n_tokens and kept:
                return kept
            kept.append(sentence)
    return kept


def _any(dice: Dice) -> Iterator[str]:
    while True:
        yield paragraphs()[dice.below(len(paragraphs()))]


def _document(dice: Dice, facts: list[str], count: Count, longest: int = 400) -> str:
    """A text of 100 to `longest` tokens in which the facts stand at random places."""
    n = dice.between(100, longest) - sum(count(" " + fact) for fact in facts)
    sentences = prose(dice, max(n, 30), count)
    for fact in facts:
        sentences.insert(dice.between(0, len(sentences)), fact)
    return " ".join(sentences) + "\n\n"


# ---- tasks -------------------------------------------------------------------------------


def _entities(dice: Dice, n: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < n:
        found[f"{dice.pick(recall.ADJECTIVES)} {dice.pick(recall.NOUNS)}"] = None
    return list(found)


def _code(dice: Dice) -> str:
    return "".join(map(str, dice.several(range(10), 4)))


def _asked(subject: str, value: str, *needed: int) -> Asked:
    prompt = f"Question: What is {subject}?\nAnswer: {subject[0].upper()}{subject[1:]} is"
    return Asked(prompt, f" {value}.", needed)


def _needle(dice: Dice, count: Count, n_documents: int) -> Task:
    """Three facts of different forms in as many documents; most documents have none."""
    entities = _entities(dice, 2)
    person = dice.pick(world.GIRLS + world.BOYS)
    known = [
        (f"the access code of the {entities[0]}", _code(dice)),
        (f"the password of the {entities[1]}", dice.pick(recall.WORDS)),
        (f"the room number of {person}", str(dice.between(101, 999))),
    ]
    places = dice.several(range(n_documents), len(known))
    facts: list[list[str]] = [[] for _ in range(n_documents)]
    for at, (subject, value) in zip(places, known, strict=True):
        facts[at].append(f"{subject[0].upper()}{subject[1:]} is {value}.")
    documents = [_document(dice, each, count) for each in facts]
    asked = [_asked(*fact, at) for at, fact in zip(places, known, strict=True)]
    return Task("needle", tuple(documents), tuple(asked))


def _keys(dice: Dice, count: Count, n_documents: int, longest: int = 400) -> Task:
    """A fact of the same form in every document, of which one is asked for."""
    entities = _entities(dice, n_documents)
    subjects = [f"the access code of the {entity}" for entity in entities]
    codes = [_code(dice) for _ in entities]
    documents = [
        _document(dice, [f"T{subject[1:]} is {code}."], count, longest)
        for subject, code in zip(subjects, codes, strict=True)
    ]
    places = dice.several(range(n_documents), 4)
    asked = [_asked(subjects[at], codes[at], at) for at in places]
    return Task("keys", tuple(documents), tuple(asked))


def _both(dice: Dice, count: Count, n_documents: int) -> Task:
    """Two facts of two documents in one answer."""
    entities = _entities(dice, n_documents)
    codes = [_code(dice) for _ in entities]
    documents = [
        _document(dice, [f"The access code of the {entity} is {code}."], count)
        for entity, code in zip(entities, codes, strict=True)
    ]
    places = dice.several(range(n_documents), 4)
    asked = []
    for a, b in (places[:2], places[2:]):
        subject = f"access codes of the {entities[a]} and of the {entities[b]}"
        prompt = f"Question: What are the {subject}?\nAnswer: The {subject} are"
        asked.append(Asked(prompt, f" {codes[a]} and {codes[b]}.", (a, b)))
    return Task("both", tuple(documents), tuple(asked))


def _hop(dice: Dice, count: Count, n_documents: int) -> Task:
    """A fact of one document says which fact of another one answers the question."""
    entities = _entities(dice, n_documents)
    names = dice.several(world.GIRLS + world.BOYS, 2)
    places = dice.several(range(n_documents), 4)
    codes = [_code(dice) for _ in entities]
    facts = [[f"The access code of the {e} is {c}."] for e, c in zip(entities, codes, strict=True)]
    asked = []
    for name, (a, b) in zip(names, (places[:2], places[2:]), strict=True):
        facts[a].insert(0, f"{name} works behind the {entities[b]}.")
        prompt = (
            f"Question: Where does {name} work, and what is the access code there?\n"
            f"Answer: {name} works behind the"
        )
        answer = f" {entities[b]}. The access code of the {entities[b]} is {codes[b]}."
        asked.append(Asked(prompt, answer, (a, b)))
    documents = [_document(dice, each, count) for each in facts]
    return Task("hop", tuple(documents), tuple(asked))


_JOBS = words(
    """
    baker carpenter doctor farmer gardener lawyer nurse painter pilot sailor teacher
    """
)
_TOWNS = words(
    """
    Aldbury Brenford Castleton Dunmore Eastham Fairview Glenhaven Harwick Kingsbridge Lindale
    Marston Northwood Oakham Penrith Redhill Stanton
    """
)


def _biography(dice: Dice, count: Count, n_documents: int) -> Task:
    """Lives of different people in the same form; sentences say "she" and "there"."""
    names = dice.several(world.GIRLS + world.BOYS, n_documents)
    documents, questions = [], []
    for i, first in enumerate(names):
        name = f"{first} {dice.pick(_TOWNS)[:-2]}son"
        she, her = ("She", "her") if first in world.GIRLS else ("He", "his")
        town, job, later = dice.pick(_TOWNS), dice.pick(_JOBS), dice.pick(_TOWNS)
        year, thing = dice.between(1900, 1980), dice.pick(sorted(recall.FAVOURITES))
        text: list[str] = []
        for fact in (
            f"{name} was born in {town} in {year}.",
            f"{she} went to school there and became a {job}.",
            f"Later {she.lower()} moved to {later} with {her} family.",
            f"{she} said that {her} favourite {thing} was {dice.pick(recall.FAVOURITES[thing])}.",
        ):
            text += [fact, *prose(dice, dice.between(20, 80), count)]
        documents.append(" ".join(text) + "\n\n")
        where, what = f"Where was {name} born?", f"What did {name} become?"
        questions.append(
            Asked(f"Question: {where}\nAnswer: {name} was born in", f" {town}", (i,))
            if dice.chance(0.5)
            else Asked(f"Question: {what}\nAnswer: {name} became a", f" {job}", (i,))
        )
    return Task("biography", tuple(documents), tuple(dice.several(questions, 4)))


_HOSTS = ("alpha", "bravo", "delta", "gamma", "kilo", "lima", "omega", "sierra", "tango", "zulu")
_EVENTS = (
    "backup finished", "certificate renewed", "disk check passed", "job {} started", "job {} ended",
    "login of user {}", "restart after an update", "sensor reads {} degrees", "queue has {} items",
)  # fmt: skip


def _log(dice: Dice, count: Count, n_documents: int) -> Task:
    """A log whose first line changes each turn. All behind it was computed behind an older one."""

    def status() -> str:
        return f"Status: {dice.between(2, 99)} jobs are open, {dice.pick(_HOSTS)} is the leader.\n"

    before, now = status(), status()
    lines, minute = [], 0
    for _ in range(20 * n_documents // 2):
        minute += dice.between(1, 9)
        event = dice.pick(_EVENTS).format(dice.between(10, 99))
        lines.append(f"{minute // 60:02}:{minute % 60:02} {dice.pick(_HOSTS)}: {event}\n")
    asked = [Asked("\nQuestion: What is the status?\nAnswer: Status:", now[7:-2], (0,))]
    for line in dice.several(lines, 3):
        at, what = line[:-1].split(": ", 1)
        prompt = f"\nQuestion: What does the log say at {at[:5]}?\nAnswer: At {at}:"
        asked.append(Asked(prompt, f" {what}", (1,)))
    return Task("log", (now, "".join(lines)), tuple(asked), before)


TASKS: dict[str, Callable[[Dice, Count, int], Task]] = {
    "needle": _needle,
    "keys": _keys,
    "both": _both,
    "hop": _hop,
    "biography": _biography,
    "log": _log,
}
