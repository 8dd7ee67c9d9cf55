"""The people and animals of the stories: names, homes, things, traits and friends."""

from __future__ import annotations

from dataclasses import dataclass

from models.language import words

GIRLS = words(
    """
    Mia Anna Rosa Lucy Nora Ella Ida Clara Lily Emma Ruby Tilda Hanna Julia Marta Olive Pippa
    Greta Zoe Alma Flora Wilma Iris Stella Nina Betty Daisy Freya Heidi Sofia
    """
)
BOYS = words(
    """
    Tom Ben Sam Leo Max Finn Oscar Paul Jack Hugo Emil Otto Peter Jonas Karl Felix Noah Simon
    Theo Victor Rufus Anton Milo Henry Arthur Oliver Bruno Casper Walter Edgar
    """
)

PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}

SIZES = words("little small young tiny quiet merry thin round tall sleepy")
ANIMALS = words(
    """
    fox rabbit bear mouse hedgehog badger squirrel otter frog cat dog goat mole owl duck goose
    beaver hare deer lamb
    """
)

HOMES = [
    "a (small|white|crooked|stone) house by the (sea|river|mill|lake)",
    "a (quiet|busy|little) village (at the foot of a mountain|between two hills|by the forest)",
    "a (green|narrow|sunny) valley (full of apple trees|with a cold stream|behind the hills)",
    "a (tall|narrow|crooked) house at the end of (the lane|a long road|the village)",
    "a cottage (under a great oak|at the edge of the woods|beside a windmill|near the bridge)",
    "a small town (with red roofs|near the harbour|with a high tower|on the river)",
]
BURROWS = [
    "a (warm|snug|deep|tidy) burrow (under a hill|below the roots of an oak|near the river)",
    "a hollow (tree|log) (in the forest|beside a pond|at the edge of a field)",
    "a (little|round) den (behind the waterfall|under the brambles|between mossy stones)",
]
PLACES = [
    "the old mill", "the pine forest", "the harbour", "the market", "the long bridge",
    "the apple orchard", "the lake", "the high meadow", "the windy hill", "the beach",
    "the village square", "the old tower", "the garden behind the school", "the river bank",
    "the cornfield", "the wild garden", "the lighthouse", "the stone circle", "the ferry landing",
    "the barley field", "the chestnut wood", "the rocky shore",
]  # fmt: skip
TIMES = ["morning", "afternoon", "day", "evening"]
SEASONS = ["spring", "summer", "autumn", "winter"]

COLOURS = words("red blue green yellow silver golden white black purple orange brown striped")


@dataclass(frozen=True)
class Thing:
    """A thing that a hero owns."""

    name: str
    line: str  # a sentence about it; "it" or {thing}
    is_light: bool = False  # the wind can take it
    is_fragile: bool = False  # it can break and be mended


THINGS = [
    Thing("kite", "It [dance] in the (wind|air) like a (bird|ribbon|leaf).", True, True),
    Thing("lantern", "At night it [glow] like a small (moon|star|sun).", False, True),
    Thing("drum", "{He} [play] it (at noon|after supper|when nobody [be] asleep).", False, True),
    Thing("whistle", "It [have] a (clear|sweet|high) sound that [carry] over the fields."),
    Thing("scarf", "{His} grandmother [have] made it from the softest wool.", True),
    Thing("boat", "It [can] sail across the (pond|stream) without tipping over.", False, True),
    Thing("bell", "It [ring] softly whenever {he} [move].", False, False),
    Thing("book", "It [be] full of (pictures of the sea|maps|old songs|stories about giants)."),
    Thing("ball", "It [bounce] higher than the garden (wall|gate|fence).", True),
    Thing("basket", "{He} [use] it for (berries|apples|eggs|flowers|nuts).", False, True),
    Thing("hat", "It [have] a (feather|button|ribbon) on one side.", True),
    Thing("music box", "It [play] a (slow|sad|merry|gentle) tune.", False, True),
    Thing("compass", "Its needle always [point] to the north.", False, True),
    Thing("umbrella", "It [be] big enough for (two|three|a whole family).", True, True),
    Thing("blanket", "It [smell] of (hay|lavender|soap|summer).", True),
    Thing("flute", "{He} [know] only (two|three) songs, but {he} [play] them well.", False, True),
    Thing("wagon", "One of its wheels always [squeak].", False, True),
    Thing("paintbrush", "With it {he} [can] paint (the sea|every leaf|clouds) better than anyone."),
    Thing("ribbon", "It [shine] in the sun like (water|silk|honey).", True),
    Thing("teapot", "It [be] so old that nobody [know] who [have] made it.", False, True),
    Thing("clock", "It [tick] all night long beside {his} bed.", False, True),
    Thing("mitten", "It [be] the only one left of (a|the) pair, and the warmest.", True),
    Thing("fishing rod", "It [be] (a little|much) longer than {he} [be]."),
    Thing("marble", "There [be] a (tiny star|swirl of light|drop of blue) inside it."),
]  # fmt: skip


@dataclass(frozen=True)
class Trait:
    """A trait that shows in the words and acts of its owner, from the first line to the last."""

    word: str
    intro: str  # says so
    show: str  # in daily life
    said: str  # how he or she speaks
    deed: str  # in the hour of need
    praise: str  # what the others say in the end


TRAITS = [
    Trait("brave",
          "{He} [be] (brave|very brave), and even (thunder|the dark|the night) [do] not"
          " (frighten|worry) {him}.",
          "When (something rustled|a branch cracked|a door banged), {he} [be] always the first to"
          " go and look.",
          "(without fear|in a firm voice|with {his} chin up)",
          "({His} heart [beat] fast, but {he} [do] not turn back.|Others [will] run away now, but"
          " not {hero}. {He} [go] on.)",
          "(You are the bravest {kind} I know|I have never seen anyone so brave)"),
    Trait("curious",
          "{He} [be] so curious that {he} [ask] (a hundred|a thousand) questions a day.",
          "{He} [look] (into every hole|behind every door|under every stone), only to see what"
          " [be] there.",
          "(with wide eyes|full of wonder|at once)",
          "({He} [look] closer than anyone before, and {he} [notice] a small thing that the others"
          " missed.|\"Why?\" {he} [ask], and again, \"Why?\" And with every answer {he}"
          " [understand] a little more.)",
          "(It is good that you ask so many questions|Your curious eyes saved the day)"),
    Trait("kind",
          "{He} [have] a kind heart and [share] everything {he} [have].",
          "If somebody [be] sad, {he} [sit] down beside them and [listen].",
          "(kindly|in a soft voice|with a warm smile)",
          "({He} [think] of the others before {he} [think] of {himself}.|{He} [have] a kind word"
          " for everyone, and so everyone [help].)",
          "(Nobody has a kinder heart than you|The world needs more hearts like yours)"),
    Trait("patient",
          "{He} [be] very patient and never [hurry].",
          "{He} [can] sit for hours and watch (a snail cross the path|the clouds go by|the bread"
          " rise).",
          "(calmly|slowly|without hurry)",
          "({He} [try] once, and twice, and ten times more, and {he} never [grow] angry.|It [take]"
          " a long time, but {hero} [can] wait.)",
          "(You never gave up|Your patience is worth more than gold)"),
    Trait("clever",
          "{He} [be] clever and [like] (riddles|puzzles|hard questions) more than (cake|games).",
          "{He} [can] (count all the stars above the roof|mend a clock|find the way by the moss on"
          " the trees).",
          "(after a moment of thought|with a clever smile|thoughtfully)",
          "({He} [sit] down and [think] until a plan [come] to {him}.|{He} [draw] lines in the"
          " sand, [count] on {his} fingers and [nod]. Now {he} [know] how.)",
          "(What a clever head you have|Only you could have thought of that)"),
    Trait("cheerful",
          "{He} [be] cheerful, and {his} laugh [can] be heard (across the fields|from far away|"
          "through every wall).",
          "{He} [sing] (while {he} [work]|on the way to {place}|even when it [rain]).",
          "(cheerfully|with a big smile|with a laugh)",
          "({He} [hum] a merry song, and everything [feel] a little easier.|{He} [make] a joke, and"
          " they [laugh+] until the fear [be] gone.)",
          "(You make every day brighter|With you even trouble is fun)"),
    Trait("shy",
          "{He} [be] shy and [like] to (hide behind the curtain|look at {his} own feet) when"
          " strangers [come+].",
          "{He} [speak] so softly that people often [have] to ask twice.",
          "(in a small voice|very softly|almost in a whisper)",
          "({He} [be] shy, but this time {he} [take] a deep breath and [speak] up.|{His} face [be]"
          " hot and red, but {he} [do] not hide any more.)",
          "(You were shy, and yet you spoke|A small voice can do great things)"),
    Trait("stubborn",
          "{He} [be] stubborn, and once {he} [have] started something, {he} always [finish] it.",
          "When people [say+] that a thing [can] not be done, {he} [do] it twice.",
          "(very firmly|stubbornly|with a frown)",
          "The others [tell+] {him} to stop, but {he} [shake] {his} head and [go] on.",
          "(It is good that you are so stubborn|You never stop before the end)"),
    Trait("careful",
          "{He} [be] careful and [look] twice before every step.",
          "{He} always [carry] (a piece of string|a warm scarf|a slice of bread) in case somebody"
          " [need] it.",
          "(carefully|after looking around|in a low voice)",
          "({He} [test] every step, and so {he} [do] not slip once.|\"Slowly,\" {he} [say]. \"First"
          " we look, and then we go.\")",
          "(Your careful hands did it|It is wise to look twice, as you do)"),
    Trait("quick",
          "{He} [be] quick, quicker than (the wind|a swallow|anyone in the valley).",
          "{He} [run] everywhere, even (to bed|to breakfast|up the stairs).",
          "(quickly|out of breath|before anyone else [can] speak)",
          "({He} [run] as fast as {his} legs [can] carry {him}.|In the blink of an eye {he} [be]"
          " ready.)",
          "(Nobody is as quick as you|You came just in time)"),
    Trait("dreamy",
          "{He} [be] a dreamer and often [forget] (the time|{his} lunch|where {he} [be] going).",
          "{He} [lie] in the grass and [see] (castles|whales|ships) in the clouds.",
          "(dreamily|as if {he} [have] just woken up|with {his} eyes on the sky)",
          "(Then {he} [remember] a dream, and in the dream [be] the answer.|A cloud in the shape of"
          " a hand [seem] to show {him} the way.)",
          "(Your dreams are useful after all|It is good to have a dreamer among us)"),
    Trait("hungry",
          "{He} [be] always hungry, (in the morning, at noon and at night|even after dinner).",
          "{He} never [go] anywhere without (a piece of cheese|two apples|a honey cake).",
          "(between two bites|with {his} mouth full|with crumbs on {his} chin)",
          "{He} [share] {his} last (bit of cheese|apple|honey cake), although {he} [be] very"
          " hungry, and that [give] everyone new strength.",
          "(You gave away your last bite|Tonight you shall eat as much as you like)"),
    Trait("tidy",
          "{He} [be] tidy and [put] every (spoon|shoe|book) back in its place.",
          "{He} [sweep] the (floor|steps|path) every day and [sing] a song about it.",
          "(neatly|while {he} [brush] the dust from {his} sleeves|in a clear voice)",
          "({He} [put] everything in order, one thing after another, and then it [be] easy to see"
          " what to do.|First {he} [roll] up {his} sleeves and [clear] the ground. Then they"
          " [begin+].)",
          "(Your tidy ways helped us all|In a tidy house nothing is lost for long)"),
    Trait("proud",
          "{He} [be] proud and [do] not like to ask for help.",
          "{He} [like] to say that {he} [can] do everything alone.",
          "(proudly|with {his} nose in the air|in a loud voice)",
          "(It [be] hard for such a proud {kind}, but {he} [say] the words: please, help me.|{He}"
          " [forget] to be proud and [do] what {ally} [tell] {him}.)",
          "(It was brave of you to ask for help|Even the proudest need a friend)"),
]  # fmt: skip


@dataclass(frozen=True)
class Friend:
    """Somebody whom the hero can ask for help."""

    kind: str
    who: str  # how the story names this friend first
    manner: str  # a sentence about this friend; {ally} {ahe} {ahis}
    said: str


FRIENDS = [
    Friend("grandmother", "{his} grandmother {ally}",
           "{Ally} [have] white hair and [know] (all the old songs|a cure for everything).",
           "gently"),
    Friend("grandfather", "{his} grandfather {ally}",
           "{Ally} [have] a grey beard and [know] (every path|the names of all the winds).",
           "slowly"),
    Friend("neighbour", "{his} neighbour {ally}",
           "{Ally} always [have] (time for a talk|flour on {ahis} sleeves|a tool for every job).",
           "(kindly|with a nod)"),
    Friend("friend", "{his} best friend {ally}",
           "The two [be+] together (every day|in all weathers|from morning to night).",
           "(with a grin|at once)"),
    Friend("owl", "an old owl named {ally}",
           "{Ally} [see] everything that [happen] (at night|in the forest) and [forget] nothing.",
           "(wisely|with a blink)"),
    Friend("sailor", "an old sailor named {ally}",
           "{Ally} [have] (seen seven seas|sailed around the world) and [like] to talk about it.",
           "(in a deep voice|with a wink)"),
    Friend("crow", "a crow named {ally}",
           "{Ally} [be] (cheeky|noisy), but {ahe} [have] a good heart.",
           "(with a croak|from the fence)"),
    Friend("baker", "a baker named {ally}",
           "{Ally} [smell] of (warm bread|cinnamon) and [laugh] at every joke.",
           "(with a laugh|cheerfully)"),
    Friend("turtle", "a turtle named {ally}",
           "{Ally} [be] slow, but {ahe} [be] never late for {ahis} friends.",
           "(slowly|after a long pause)"),
    Friend("carpenter", "a carpenter named {ally}",
           "{Ally} [can] make (anything|a chair|a door) out of (wood and nails|an old plank).",
           "(with a nail between {ahis} teeth|thoughtfully)"),
]  # fmt: skip
