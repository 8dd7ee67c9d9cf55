"""Questions of common knowledge with four choices each, for lm-evaluation-harness.

Each is a fact of a table in a plain sentence that ends before its answer. The wrong choices are
answers of other facts of the same table, so that they fit the sentence as well. Questions depend
on their number only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASK = "common_knowledge"
"""The name of the task that `write_task` writes."""
N_CHOICES = 4


@dataclass(frozen=True)
class Facts:
    """Facts of one kind.

    sentence  with {} for what is asked about; the answer comes behind it
    pairs     "asked: answer", with commas between
    """

    sentence: str
    pairs: str

    def answers(self) -> list[tuple[str, str]]:
        """What is asked about, and the answer."""
        found = []
        for pair in self.pairs.replace("\n", " ").split(","):
            asked, answer = pair.split(":")
            found.append((asked.strip(), answer.strip()))
        return found


TABLES = (
    Facts(
        "The capital of {} is",
        """France: Paris, Italy: Rome, Spain: Madrid, Germany: Berlin, Japan: Tokyo, China: Beijing,
        Russia: Moscow, Egypt: Cairo, Greece: Athens, Austria: Vienna, Poland: Warsaw, Ireland:
        Dublin, Portugal: Lisbon, Norway: Oslo, Sweden: Stockholm, Finland: Helsinki, Hungary:
        Budapest, Cuba: Havana, Peru: Lima, Canada: Ottawa, Turkey: Ankara, Kenya: Nairobi,
        Thailand: Bangkok, Chile: Santiago, Iraq: Baghdad, Iran: Tehran, Belgium: Brussels,
        Denmark: Copenhagen, Argentina: Buenos Aires, South Korea: Seoul""",
    ),
    Facts(
        "Most people in {} speak",
        """France: French, Italy: Italian, Spain: Spanish, Germany: German, Japan: Japanese, China:
        Chinese, Russia: Russian, Greece: Greek, Poland: Polish, Portugal: Portuguese, Norway:
        Norwegian, Sweden: Swedish, Finland: Finnish, Hungary: Hungarian, Denmark: Danish, England:
        English, Turkey: Turkish, Thailand: Thai, Vietnam: Vietnamese, South Korea: Korean""",
    ),
    Facts(
        "The opposite of {} is",
        """hot: cold, big: small, tall: short, fast: slow, up: down, happy: sad, light: dark, wet:
        dry, full: empty, old: young, rich: poor, hard: soft, early: late, strong: weak, open:
        closed, left: right, high: low, clean: dirty, loud: quiet, good: bad, first: last, heavy:
        light, thick: thin, wide: narrow, true: false, day: night, win: lose, love: hate,
        begin: end, push: pull""",
    ),
    Facts(
        "The past tense of the verb {} is",
        """go: went, see: saw, take: took, give: gave, run: ran, eat: ate, write: wrote, come: came,
        know: knew, think: thought, buy: bought, bring: brought, sing: sang, swim: swam, drive:
        drove, speak: spoke, break: broke, fly: flew, sleep: slept, teach: taught, find: found,
        make: made, begin: began, fall: fell, hold: held""",
    ),
    Facts(
        "A young {} is called a",
        """dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, duck: duckling, goose:
        gosling, pig: piglet, goat: kid, bear: cub, swan: cygnet, frog: tadpole, deer: fawn, hen:
        chick, kangaroo: joey""",
    ),
    Facts(
        "Of fruit, vegetables and other foods, the usual colour of a ripe {} is",
        """banana: yellow, tomato: red, carrot: orange, cucumber: green, blueberry: blue, aubergine:
        purple, coconut: brown, cauliflower: white""",
    ),
    Facts(
        "The month that comes after {} is",
        """January: February, February: March, March: April, April: May, May: June, June: July,
        July: August, August: September, September: October, October: November, November: December,
        December: January""",
    ),
    Facts(
        "A person whose work is to {} is called a",
        """bake bread: baker, teach children: teacher, heal the sick: doctor, fly planes: pilot, cut
        hair: barber, grow crops: farmer, write poems: poet, put out fires: firefighter, repair
        pipes: plumber, cook meals: chef, judge trials: judge, paint pictures: painter, catch fish:
        fisherman, sell meat: butcher, build with wood: carpenter, mend teeth: dentist""",
    ),
    Facts(
        "To {}, you need a",
        """cut paper: pair of scissors, drive a nail: hammer, tell the time: clock, eat soup: spoon,
        sweep the floor: broom, unlock a door: key, see distant stars: telescope, cross a river:
        bridge, dry your hair: towel, dig a hole: shovel, look at yourself: mirror, measure a
        fever: thermometer, take pictures: camera, keep off the rain: umbrella, climb onto a roof:
        ladder, weigh flour: scale""",
    ),
    Facts(
        "The chemical symbol {} stands for",
        """H: hydrogen, O: oxygen, C: carbon, N: nitrogen, Fe: iron, Au: gold, Ag: silver, Na:
        sodium, Cu: copper, Pb: lead, He: helium, Ca: calcium, Zn: zinc, Sn: tin""",
    ),
    Facts(
        "The author of {} was",
        """Hamlet: William Shakespeare, Oliver Twist: Charles Dickens, Pride and Prejudice: Jane
        Austen, War and Peace: Leo Tolstoy, Don Quixote: Miguel de Cervantes, The Odyssey: Homer,
        Moby Dick: Herman Melville, Faust: Johann Wolfgang von Goethe, Les Miserables: Victor Hugo,
        Frankenstein: Mary Shelley, The Time Machine: H. G. Wells, Dracula: Bram Stoker, The Raven:
        Edgar Allan Poe, Tom Sawyer: Mark Twain""",
    ),
)
"""200 facts in all."""

_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def questions() -> list[dict[str, Any]]:
    """All questions: `question`, `choices`, and `answer`, the number of the right choice."""
    found = []
    for facts in TABLES:
        pairs = facts.answers()
        for asked, answer in pairs:
            dice = random.Random(f"{len(found)}")
            others = sorted({one for _, one in pairs} - {answer})
            choices = [answer, *dice.sample(others, N_CHOICES - 1)]
            dice.shuffle(choices)
            question = facts.sentence.format(asked)
            found.append(
                {"question": question, "choices": choices, "answer": choices.index(answer)}
            )
    return found


def write_task(folder: Path, asked: Sequence[dict[str, Any]]) -> str:
    """Write questions and their task for lm-evaluation-harness. Returns the task's name."""
    data = folder / f"{TASK}.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in asked))
    (folder / f"{TASK}.yaml").write_text(_YAML.format(task=TASK, data=json.dumps(str(data))))
    return TASK
