"""Puts a story together: one hero, one trait, one thing, one problem, told in one tense."""

from __future__ import annotations

import re

from models import world
from models.language import PAST, PRESENT, Dice, draw, expand, words
from models.plots import PLOTS, Plot

_SHARE_PRESENT = 0.2
_SHARE_ANIMALS = 0.4

_OPENINGS = [
    "Once upon a time there [be] a~ {size} {kind} named {hero}, who [live] in {home}.",
    "Once upon a time a~ {size} {kind} [live] in {home}. {His} name [be] {hero}.",
    "Once upon a time, in {home}, there [live] a~ {size} {kind} called {hero}.",
    "There [be] once a~ {size} {kind} called {hero}. {His} home [be] {home}.",
    "{Hero} [be] a~ {size} {kind} and [live] in {home}.",
    "In {home} [live] a~ {size} {kind}. {His} name [be] {hero}.",
    "This is the story of {hero}, a~ {size} {kind}, and a~ {obj}. It [begin] in {home}.",
    "Everybody at {place} [know] {hero}, the {size} {kind} who [live] in {home}.",
    '"(Wait for me|Look at this|Come quickly|Good morning)!" [call] {hero}. {Hero} [be] a~ {size}'
    " {kind} from {home}, and nobody [can] overlook {him}.",
    "{A_day} in {season}, a~ {size} {kind} named {hero} [wake] up in {home}.",
    "If you had gone to {home}, you would have met {hero}, a~ {size} {kind}.",
]
_PAST_OPENINGS = [
    "Long ago, in {home}, there [live] a~ {size} {kind} called {hero}.",
    "Many years ago a~ {size} {kind} named {hero} [live] in {home}.",
    "When my grandmother was young, she knew a~ {size} {kind} named {hero}, who [live] in {home}.",
]
_OWNS = [
    "{He} [have] a~ {obj}. {line}",
    "What {he} [love] most [be] {his} {obj}. {line}",
    "For {his} birthday {he} [have] got a~ {obj}. {line}",
    "Wherever {he} [go], {he} [take] {his} {obj} along. {line}",
]
_AGES = ["", "", "{He} [be] (six|seven|eight|nine) years old."]
_DAYS = ["{a_day}", "one {weather} {time} in {season}", "one {time}", "one day"]
_FEELINGS = [
    "{Hero} [be] (sad|worried|unhappy).",
    "{Hero} [sit] down on a stone and [sigh].",
    "A tear [run] down {his} cheek.",
    "What now?",
    "The sky [look] darker than before.",
    "For a while {hero} just [stand] there.",
    '"Oh no!" [say] {hero}.',
    "{Hero} [do] not know what to do.",
    "",
    "",
]
_MEETINGS = [
    "Then {he} [meet] {who}. {manner}",
    "Just then {who} [come] along. {manner}",
    "So {he} [run] to {who}. {manner}",
    "At last {he} [go] to see {who}. {manner}",
    "Somebody [have] seen it all: {who}. {manner}",
    "On a bench by the road [sit] {who}. {manner}",
]
_GREETINGS = [
    "",
    '"Why do you look so (sad|worried|lost), {hero}?" [ask] {ally}.',
    '"What has happened, {hero}?" [ask] {ally} {asaid}.',
    '"Good (day|evening), {hero}," [say] {ally}. "You look as if you need a friend."',
]
_AGREED = [
    "",
    "",
    '"(Yes, let us try|That is a good plan|Thank you|Let us go)!" [call] {hero}.',
    "{Hero} [nod] and [begin] to hope again.",
    '"Do you think it will work?" [ask] {hero}. "We shall see," [say] {ally} {asaid}.',
]
_PRAISED = [
    '"{praise}, {hero}," [say] {ally} {asaid}.',
    '"{praise}," [say] {ally}, and {hero} [turn] red.',
    '{Ally} [smile]. "{praise}, {hero}."',
]
_ENDINGS = [
    "That night {hero} [fall] asleep with the {obj} beside {him}.",
    "And that [be] the end of the story of {hero} and the {obj}.",
    "When {he} [come] home, {he} [put] the {obj} on the window sill and [smile] at the moon.",
    "{Hero} [be] tired and happy, and the {obj} [be] safe.",
    "{Hero} and {ally} [stay+] friends for a very long time.",
    "And so {hero} [learn] that (a friend is worth more than gold|two see more than one|no trouble"
    " is too big for friends|help is never far away).",
    "After that day {hero} often [visit] {ally}, and they [laugh+] about it all.",
    "If you go to {place} today, you may still meet {hero} and the {obj} there.",
]
_WEATHERS = {
    "spring": words("windy sunny bright rainy misty mild"),
    "summer": words("sunny warm clear hot windy bright"),
    "autumn": words("golden misty windy grey rainy cool"),
    "winter": words("frosty cold grey clear snowy still"),
}
_QUESTIONS = tuple(words("How What Where Can Have Is Do Did Must Who Will"))


def story(dice: Dice) -> str:
    """A story of some 180 to 300 words, in paragraphs of one line each."""
    tense = PRESENT if dice.chance(_SHARE_PRESENT) else PAST
    plot = dice.pick(PLOTS)
    slots = _cast(dice, plot)
    openings = _OPENINGS + (_PAST_OPENINGS if tense == PAST else [])
    # The prompt that everyone types first is the most frequent opening.
    opening = dice.pick(_OPENINGS[:3] if dice.chance(0.3) else openings)
    trait_first = dice.chance(0.5)
    owns = dice.pick(_OWNS)
    about = [opening, dice.pick(_AGES) if slots["is_child"] else ""]
    about += ["{intro}", owns] if trait_first else [owns, "{intro}"]
    about += ["{show}"] if dice.chance(0.7) else []

    setup = dice.pick(plot.setup)
    if setup.startswith("{hero}"):
        setup = "{Day} " + setup
    ask, advice = dice.pick(plot.ask), dice.pick(plot.advice)
    last = re.split(r"(?<=[.!?]) ", ask)[-1]
    if last.startswith(_QUESTIONS) or ", but where" in last:
        speech = f'"{ask}?" [ask] {{hero}} {{said}}.'
    else:
        speech = f'"{ask}," [say] {{hero}} {{said}}.'
    paragraphs = [
        about,
        [setup, dice.pick(plot.trouble)],
        [dice.pick(plot.attempt), dice.pick(_FEELINGS)],
        [plot.meet or dice.pick(_MEETINGS), dice.pick(_GREETINGS), speech,
         f'"{advice}," [say] {{ally}} {{asaid}}.', dice.pick(_AGREED)],
        ["{deed}", dice.pick(plot.solve), dice.pick(plot.after)],
        [dice.pick(_PRAISED), dice.pick(_ENDINGS)],
    ]  # fmt: skip
    if dice.chance(0.5):  # trouble and the vain attempt in one paragraph
        paragraphs[1:3] = [paragraphs[1] + paragraphs[2]]
    return "\n".join(
        " ".join(text for part in paragraph if (text := expand(part, slots, dice, tense)))
        for paragraph in paragraphs
    )


def _cast(dice: Dice, plot: Plot) -> dict[str, str]:
    """The slots of one story: everything in it that must stay the same."""
    she = dice.chance(0.5)
    hero = dice.pick(world.GIRLS if she else world.BOYS)
    is_animal = dice.chance(_SHARE_ANIMALS)
    kind = dice.pick(world.ANIMALS) if is_animal else ("girl" if she else "boy")
    things = [
        t for t in world.THINGS
        if not (plot.needs == "light" and not t.is_light)
        and not (plot.needs == "fragile" and not t.is_fragile)
    ]  # fmt: skip
    thing, trait = dice.pick(things), dice.pick(world.TRAITS)
    helper = dice.pick([f for f in world.FRIENDS if f.kind != kind])
    ally_is_she = {"grandmother": True, "grandfather": False}.get(helper.kind, dice.chance(0.5))
    ally = dice.pick([n for n in (world.GIRLS if ally_is_she else world.BOYS) if n != hero])
    colour = dice.pick(world.COLOURS)
    season = plot.facts.get("season") or dice.pick(world.SEASONS)
    a = world.PRONOUNS["she" if ally_is_she else "he"]
    slots = {
        **world.PRONOUNS["she" if she else "he"],
        "hero": hero,
        "kind": kind,
        "is_child": "" if is_animal else "yes",
        "size": draw(dice.pick(world.SIZES), dice),
        "home": draw(dice.pick(world.BURROWS if is_animal else world.HOMES), dice),
        "place": dice.pick(world.PLACES),
        "season": season,
        "weather": dice.pick(_WEATHERS[season]),
        "time": dice.pick(world.TIMES),
        "a_day": "one {weather} {time}",
        "day": dice.pick(_DAYS),
        "colour": colour,
        "thing": thing.name,
        "obj": f"{colour} {thing.name}",
        "line": thing.line,
        "intro": trait.intro,
        "show": trait.show,
        "said": draw(trait.said, dice),
        "deed": trait.deed,
        "praise": draw(trait.praise, dice),
        "who": helper.who,
        "manner": helper.manner,
        "asaid": draw(helper.said, dice),
        "ally": ally,
        "ahe": a["he"],
        "ahim": a["him"],
        "ahis": a["his"],
    }
    for name, template in plot.facts.items():
        slots[name] = draw(template, dice)
    return slots
