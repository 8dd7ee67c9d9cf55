"""The problems of the stories: what is wanted, what goes wrong, and how it ends well.

A plot has several ways to tell each part of a story, in the template language of `language.py`. Its
`facts` are drawn once for each story, so that an oak stays an oak. The hero's trait and the helper
are not in the plot; `stories.py` adds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plot:
    """One sort of story."""

    name: str
    setup: list[str]  # the wish of the day
    trouble: list[str]  # the problem
    attempt: list[str]  # the hero tries alone, in vain
    ask: list[str]  # the hero's words to the helper, without quotation marks
    advice: list[str]  # the helper's answer, likewise
    solve: list[str]  # the solution
    after: list[str]  # the end
    facts: dict[str, str] = field(default_factory=dict)  # slot -> template
    needs: str = ""  # "light" or "fragile": a property that the hero's thing must have
    meet: str = ""  # how the helper appears, if not every way fits


PLOTS = [
    Plot(
        "lost",
        ["{hero} [take] the {obj} to {place} and [stay] there (all day|for hours).",
         "{hero} [go] to {place}, and of course the {obj} [come] along."],
        ["But on the way home {he} [notice] that the {thing} [be] gone.",
         "When {he} [want] to go home, the {thing} [be] nowhere to be seen."],
        ["{He} [look] (under the bushes|behind the wall), and {he} [look] (in the ditch|between the"
         " stones), but there [be] no {thing}.",
         "{He} [search] until {his} feet [be+] sore, and {he} [find] (a button|an old shoe|two"
         " feathers), but not the {thing}."],
        ["I have lost my {obj}, and I do not know where to look",
         "My {thing} is gone! Have you seen it"],
        ["Let us walk back the way you came, step by step",
         "Where did you see it last? Let us begin there"],
        ["Together they [follow+] {his} footprints back, and there, {spot}, [lie] the {obj}.",
         "They [walk+] slowly back to {place}. Something {colour} [shine] {spot}. It [be] the"
         " {thing}!"],
        ["{hero} [hold] the {thing} tight all the way home.",
         "From then on {hero} always [look] twice before {he} [leave] a place."],
        {"spot": "(under a pile of leaves|behind the old well|in the long grass|between two grey"
                 " stones|beside a fallen tree|under a wooden bench)"},
    ),
    Plot(
        "treetop",
        ["{hero} [want] to show the {obj} to everyone at {place}.",
         "{hero} [run] about near {place} with the {obj} in {his} (hand|arms)."],
        ["But a sudden wind [take] the {thing} and [carry] it to the top of {tree}.",
         "Then the wind [blow] hard, and the {thing} [fly] up and [hang] in the highest branches of"
         " {tree}."],
        ["{He} [jump] and [jump], but {he} [can] not reach it.",
         "{He} [throw] (a stick|a pine cone), but it [fall] back on {his} own head.",
         "{He} [shake] the trunk, but only (leaves|two acorns) [come+] down."],
        ["My {obj} is up there, and I am too small to reach it",
         "The wind has stolen my {thing}. How can I get it down"],
        ["There is a long ladder in the barn. You climb, and I will hold it",
         "Stand on my shoulders, and then take the lowest branch"],
        ["{hero} [climb] up, branch by branch, and [pull] the {thing} free. It [have] only a small"
         " (tear|scratch).",
         "Up and up {hero} [go], while {ally} [wait] below. Then {he} [wave] from the top with the"
         " {thing} in {his} hand."],
        ["From up there {he} [have] seen (the whole valley|the sea, blue and wide), and {he} [talk]"
         " about it for days.",
         "After that {he} [tie] a string to the {thing} on windy days."],
        {"tree": "(the old oak|a tall pine|the great chestnut|the highest poplar)"},
        "light",
    ),
    Plot(
        "broken",
        ["{hero} [want] to bring the {obj} to the feast at {place}.",
         "There [be] a feast at {place}, and {hero} [polish] the {obj} until it [shine]."],
        ["But {he} [slip] on (the wet steps|a stone|the ice), and the {thing} [break] in two.",
         "Then it [fall] from the (table|wall|shelf), and with a crack the {thing} [be] broken."],
        ["{He} [try] to mend it with (glue|honey|string), but it [fall] apart again.",
         "{He} [hide] the pieces (under the bed|in a drawer), but that [do] not make {him} feel"
         " better."],
        ["I have broken my {obj}, and the feast is tonight",
         "Look, it is in pieces. Can anything be done"],
        ["A broken thing can be mended. Hold the pieces, and I will show you",
         "Do not cry. Bring me (thread|wire|warm wax), and we will mend it together"],
        ["They [work+] all afternoon. {hero} [hold] the pieces, {ally} [tie] the knots, and in the"
         " end the {thing} [be] whole again.",
         "Piece by piece they [put+] the {thing} together, and where the crack [have] been, {hero}"
         " [paint] a thin golden line."],
        ["At the feast everyone [say] that the {thing} [be] more beautiful than before.",
         "It [be] not quite the same as before, but {hero} [like] it even more."],
        {},
        "fragile",
    ),
    Plot(
        "storm",
        ["{hero} [set] out for {place} with the {obj}, because {aunt} [have] asked {him} to come.",
         "{hero} [want] to reach {place} before night, where {aunt} [be] waiting."],
        ["But black clouds [come+] over the hills, and soon the rain [fall] so hard that {he} [can]"
         " not see the path.",
         "Half way there a storm [begin]. The thunder [roll], and the wind [tear] at {his} coat."],
        ["{He} [hide] under (a bush|a rock), but the water [run] down {his} neck.",
         "{He} [walk] on with closed eyes and soon [do] not know where {he} [be]."],
        ["I cannot find the path in this rain", "The storm is too strong. I am lost"],
        ["Come, I know a dry cave not far from here", "Take my hand. We will wait in {shelter}"],
        ["In {shelter} they [light+] a small fire and [tell+] each other stories until the storm"
         " [be] over.",
         "They [run+] to {shelter} and [count+] the seconds between lightning and thunder, and"
         " slowly the storm [move] away."],
        ["In the morning a rainbow [stand] over {place}, and {aunt} [come] to meet them.",
         "When the sun [come] out, they [walk+] the last part of the way together, and {aunt}"
         " [make] hot soup for both."],
        {"aunt": "(Aunt Berta|Uncle Fritz|Aunt Polly|Uncle Ned)",
         "shelter": "(a dry cave|an empty barn|the hollow of an old tree|a shepherd's hut)"},
    ),
    Plot(
        "river",
        ["On the other side of the river [live] {aunt}, and {hero} [want] to bring {gift}.",
         "{hero} [carry] {gift} for {aunt}, who [live] across the river and [be] ill."],
        ["But when {he} [come] to the river, the bridge [be] gone. The flood [have] taken it.",
         "But the bridge [have] fallen into the water, and the river [be] deep and fast."],
        ["{He} [put] one foot into the water, but it [be] too cold and too strong.",
         "{He} [call] for the ferry, but nobody [answer]."],
        ["How can I cross the river without a bridge", "I must get to the other side before dark"],
        ["We can build a raft from these logs", "Further up there are big stones. We can make a"
         " path of them"],
        ["They [roll+] (logs|stones) to the water until their arms [be+] tired, and when the sun"
         " [be] low, {hero} [stand] on the other side.",
         "It [take] the whole afternoon, and twice {he} almost [fall] in, but then {hero} [step]"
         " on the far bank with dry {gift_short}."],
        ["{aunt} [laugh] with joy and [share] everything with them.",
         "{aunt} [kiss] {him} on both cheeks, and {gift_short} [taste] better than ever."],
        {"aunt": "(Aunt Berta|Uncle Fritz|Aunt Polly|Uncle Ned)",
         "gift": "a basket of fresh {gift_short}", "gift_short": "(bread|cake|cheese)"},
    ),
    Plot(
        "chick",
        ["{hero} [walk] to {place} with the {obj} and [think] of nothing special.",
         "{hero} [be] on the way to {place} when {he} [hear] a soft cry."],
        ["In the (grass|snow|moss) [sit] {young}, all alone and trembling.",
         "There [be] {young} under a hedge. It [have] lost its mother."],
        ["{He} [give] it some (water|bread), but it [do] not stop crying.",
         "{He} [look] up into the trees and [call], but no mother [come]."],
        ["It is so small. What does it need", "We must find its mother, but where"],
        ["Keep it warm first. Then we will listen for its mother",
         "Put it into something soft, and we will carry it to the edge of the wood"],
        ["{hero} [wrap] {young_short} in {his} scarf, and they [wait+] without a sound. At last"
         " there [be] an answer from (the bushes|the trees): the mother [have] come.",
         "They [carry+] {young_short} from tree to tree until a worried voice [call], and"
         " {young_short} [call] back."],
        ["Every (spring|morning) after that, {young_short} [come] to {his} window to say hello.",
         "The mother [bow] her head, as if to thank them, and {hero} [wave] for a long time."],
        {"young": "a young {bird}", "young_short": "the {bird}",
         "bird": "(robin|sparrow|duckling|hare|hedgehog|kitten|fawn)"},
    ),
    Plot(
        "dark",
        ["{hero} [stay] at {place} longer than {he} [have] planned.",
         "{hero} [want] to be home from {place} before supper, but the day [be] too beautiful."],
        ["Suddenly it [be] night, and there [be] no moon. {He} [can] not see {his} own hand.",
         "Then {his} lamp [go] out, and the path [be] gone in the dark."],
        ["{He} [walk] (into a tree|into a ditch|in a circle) and [have] to stop.",
         "{He} [hold] the {obj} tight and [count] to a hundred, but the dark [do] not go away."],
        ["It is so dark. I do not know the way home", "Is somebody there? I cannot see the path"],
        ["Look up. The bright star there stands right above your house",
         "Follow the {lights}. They always fly along the stream, and the stream goes home"],
        ["They [walk+] slowly, hand in hand, and {count} little {lights} [show+] the way.",
         "Step by step they [follow+] the {lights} down the hill, until a window [shine] in front"
         " of them."],
        ["{His} mother [stand] at the door, and the soup [be] still warm.",
         "Since that night {hero} [be] not afraid of the dark. {He} [know] that it [be] full of"
         " {lights}."],
        {"lights": "(fireflies|glow-worms)", "count": "(seven|a dozen|a hundred|twenty)"},
    ),
    Plot(
        "quarrel",
        ["{hero} and {other} [want+] to play with the {obj} at {place}.",
         "{other} [come] to {place} and [ask] for the {obj}."],
        ["But both [want+] to be first. They [pull+] and they [shout+], and then {other} [run]"
         " away in tears.",
         "{hero} [say] no, and {other} [call] {him} a bad name. After that they [do+] not speak any"
         " more."],
        ["{hero} [play] alone, but the {thing} [be] only half as much fun.",
         "{He} [tell] {himself} that {he} [do] not care, but {his} stomach [hurt]."],
        ["{other} and I had a quarrel, and now nobody is happy",
         "I was not nice to {other}. What can I do"],
        ["A quarrel is like a stone in a shoe. Take it out before you walk on",
         "Say that you are sorry. It is a short word and a long bridge"],
        ["{hero} [knock] at the door of {other} and [say], \"I am sorry.\" And {other} [say], \"So"
         " am I.\"",
         "{hero} [put] the {obj} into the hands of {other} and [say], \"You may be first.\""],
        ["They [take+] turns until the sun [go] down, and nobody [count] who [have] more.",
         "From then on the {thing} [belong] to both of them, one day here and one day there."],
        {"other": "(Mina|Toby|Lena|Robin|Elsa|Nils)"},
    ),
    Plot(
        "wood",
        ["It [be] the coldest week of the year, and {hero} [carry] the {obj} under {his} coat to"
         " {place}.",
         "Snow [lie] on every roof, and {hero} [walk] to {place} to look at the ice."],
        ["On the way {he} [see] that no smoke [come] from the house of {old}.",
         "There {he} [hear] that {old} [have] no more wood for the stove."],
        ["{He} [try] to pull a big log home, but it [be] too heavy for {him}.",
         "{He} [gather] a handful of twigs, but they [be+] wet and [do+] not burn."],
        ["{old} is freezing, and I cannot carry enough wood alone",
         "We need wood for {old} before night"],
        ["Take my sledge, and let us ask at every door for one log",
         "Many small hands carry a big tree. I will call the others"],
        ["From every house somebody [bring] a log, and {hero} [pull] the sledge. When it [be]"
         " dark, the fire in the stove of {old} [crackle].",
         "They [load+] the sledge three times, and then warm light [fall] from the window of"
         " {old}."],
        ["{old} [make] tea for everyone, and they [stay+] until the stars [come+] out.",
         "{old} [be] so glad that {hero} [have] to eat three pancakes."],
        {"season": "winter", "old": "(old Mr Bell|old Mrs Finch|old Mrs Wood|old Mr Hill)"},
    ),
    Plot(
        "cake",
        ["{hero} [want] to bake {dish} for the feast at {place}.",
         "Everybody [bring] something to the feast at {place}, and {hero} [have] promised {dish}."],
        ["But {he} [look] out of the window for too long, and {dish_short} [burn] until it [be]"
         " black.",
         "But there [be] no (flour|sugar|butter) left, not even a spoonful."],
        ["{He} [scrape] and [stir], but nobody [can] eat that.",
         "{He} [open] every cupboard and [find] nothing but (an onion|a jar of salt|dry peas)."],
        ["I promised {dish}, and now I have nothing",
         "Everyone will laugh at me. What can I bring to the feast"],
        ["If everyone gives a little, we can cook a soup for all",
         "I have (apples|carrots), and you have a pot. Let us begin"],
        ["They [put+] the big pot in the middle of the square. One [bring] carrots, one [bring]"
         " beans, and {hero} [stir] and [taste].",
         "{ally} [cut], {hero} [stir], and soon such a good smell [go] through the streets that"
         " everyone [come] with a spoon."],
        ["Nobody [ask] for {dish}, and the pot [be] empty before the moon [rise].",
         "Since then they [cook+] that soup every year and [call+] it the soup of {hero}."],
        {"dish": "a {dish_name}", "dish_short": "the {dish_name}",
         "dish_name": "(plum cake|cherry pie|honey cake|pear tart)"},
    ),
    Plot(
        "well",
        ["{hero} [be] to bring the key of {door} to {place}.",
         "It [be] an important day: {hero} [carry] the key of {door}, and at {place} everyone"
         " [wait]."],
        ["{He} [bend] over the well to (drink|look at the frogs), and the key [slip] out of {his}"
         " pocket and [fall] into the water.",
         "But the pocket [have] a hole, and with a splash the key [sink] in the well."],
        ["{He} [let] down the bucket, again and again, but it [bring] up only water.",
         "{He} [reach] down with {his} arm as far as {he} [can], but the well [be] too deep."],
        ["The key of {door} is in the well", "I have dropped the key, and without it nobody can"
         " open {door}"],
        ["Iron loves a magnet. Tie this one to a long string",
         "Bend this wire to a hook. We will fish for it"],
        ["{hero} [let] the string down, slowly, slowly. Something [click]. Up [come] the key,"
         " wet and shining.",
         "Three times they [pull+] up nothing but weeds. The fourth time the key [hang] on the"
         " string."],
        ["When {door} [open], everyone [clap], and {hero} [clap] loudest.",
         "After that the key [hang] on a ribbon around {his} neck, and {door} [be] never locked"
         " for long."],
        {"door": "(the old library|the bell tower|the boat house|the village hall)"},
    ),
    Plot(
        "race",
        ["There [be] a great race at {place}, and {hero} [want] to win {prize}.",
         "Every {season} there [be] a race around {place}, and this year {prize} [wait] for the"
         " winner."],
        ["{hero} [be] in front when {he} [hear] a cry: {other} [have] fallen and [can] not get up.",
         "Just before the last hill {other} [stumble] over a root and [stay] on the ground."],
        ["{hero} [look] at the finish and [look] back, and {he} [do] not know what to do.",
         "The others [run+] past them both, and nobody [stop]."],
        ["{other} is hurt. If I stop, I will lose", "I want to win, but I cannot leave {other}"
         " here"],
        ["There will be another race. There is only one {other}",
         "You know the answer already. Your feet have stopped"],
        ["{hero} [give] {other} an arm, and together they [go+] on, step by step. They [be+] the"
         " very last, and everyone [cheer].",
         "{hero} [tie] a cloth around the foot of {other} and [do] not think of {prize} any more."
         " Slowly the two [come+] to the finish."],
        ["The winner [cut] {prize} in two and [say], \"This half is yours.\"",
         "{hero} [have] no {prize_name}, but {he} [have] a new friend, and that [be] more."],
        {"other": "(Mina|Toby|Lena|Robin|Elsa|Nils)", "prize": "(the|a) {prize_name}",
         "prize_name": "(golden ribbon|big honey cake|silver ribbon)"},
    ),
    Plot(
        "garden",
        ["{hero} [have] planted {plants} near {place} and [water] them every day.",
         "Near {place} {hero} [have] a small garden, and in it [grow+] {plants}."],
        ["But that year it [do] not rain for weeks, and the leaves [turn+] brown.",
         "Then the stream [run] dry, and the {plants} [hang+] their heads."],
        ["{He} [carry] water in the {pail} from morning to night, but it [be] never enough.",
         "{He} [dance] a rain dance, and the neighbours [laugh+], but no cloud [come]."],
        ["My {plants} are dying, and I am so tired", "Where has all the water gone"],
        ["Let us walk up the hill and see what holds the water",
         "There is a spring behind the rocks. We can dig a ditch"],
        ["On the hill they [find+] that (a fallen tree|a pile of stones) [block] the stream. They"
         " [pull+] and [push+], and the water [jump] down the valley.",
         "They [dig+] for two days, and then the water [run] along the ditch, straight to the"
         " {plants}."],
        ["In autumn {hero} [give] everyone a basket of {plants}.",
         "The {plants} [stand+] up again, greener than before, and the birds [come+] back."],
        {"season": "summer", "plants": "(beans|pumpkins|sunflowers|strawberries|tomatoes)",
         "pail": "(bucket|can|old pot)"},
    ),
    Plot(
        "noise",
        ["{hero} [go] to bed early with the {obj} beside {him}.",
         "After a long day at {place} {hero} [be] so tired that {he} [fall] asleep at once."],
        ["But in the middle of the night there [be] a strange noise: {sound}!",
         "Then something [wake] {him}. {sound_big}, it [go], {sound}, up in the attic."],
        ["{He} [pull] the blanket over {his} head, but the noise [do] not stop.",
         "{He} [light] a candle, but it [go] out again at the door."],
        ["There is something in the attic, and it goes {sound}", "Do you hear it too? It goes"
         " {sound}"],
        ["Let us go up together and see. Most ghosts are quite small",
         "I will take the lamp, and you take my hand"],
        ["They [climb+] the stairs, one after another, and [open+] the door. There [sit] {guest}"
         " and [look] more frightened than they [do+].",
         "Behind the old chest they [find+] {guest}. It [want] to get out and [can] not find the"
         " window."],
        ["{hero} [open] the window, and {guest_short} [go] out into the night. Then all [be]"
         " quiet.",
         "{guest_short} [stay] in the attic, and when {hero} [hear] the noise, {he} only [smile]"
         " and [sleep] on."],
        {"sound": "{noise}, {noise}", "sound_big": "{noise}, {noise}",
         "noise": "(tap|bump|scratch|clack)", "guest": "a (little|lost|young) {guest_kind}",
         "guest_short": "the {guest_kind}", "guest_kind": "(squirrel|bat|starling|marten)"},
        meet="{He} [run] (down the stairs|across the yard) and [wake] {who}. {manner}",
    ),
    Plot(
        "leak",
        ["{hero} and {other} [sail+] across the lake in {boat}.",
         "On the lake by {place} {hero} [have] {boat}, and that day {other} [come] along."],
        ["In the middle of the lake {other} [cry], \"My feet are wet!\" There [be] a hole in the"
         " boat.",
         "But suddenly the boat [hit] a rock, and water [come] in."],
        ["{He} [put] {his} foot on the hole, but the water [find] another way.",
         "{He} [empty] the boat with {his} hat, but the lake [be] faster."],
        ["Help! We are sinking", "Our boat has a hole. What shall we do"],
        ["Push your scarf into the hole and row to me", "Take wax from the candle and press it in"
         " hard"],
        ["{hero} [press] with both hands, and {other} [row]. The water [stop], and slowly they"
         " [come+] to the shore, where {ally} [throw] them a rope.",
         "It [work]! Only a few drops [come+] through now, and {ally} [pull] the boat to the land"
         " with a long rope."],
        ["They [dry+] their socks by the fire and [laugh+] about the fish that [have] looked in.",
         "The next day they [mend+] the boat with a new plank and [give+] it a new name:"
         " {boatname}."],
        {"other": "(Mina|Toby|Lena|Robin|Elsa|Nils)",
         "boat": "a (small|little|green|blue) boat", "boatname": "(Brave Duck|Dry Foot|Good Luck)"},
        meet="On the shore [stand] {who}. {manner}",
    ),
    Plot(
        "newcomer",
        ["A new family [have] come to the village, and their child [be] called {other}.",
         "{other} [be] new at {place} and always [sit] alone on the wall."],
        ["Nobody [play] with {other}, because {other} [speak] another language.",
         "The others [whisper+] and [point+], and {other} [look] at the ground."],
        ["{hero} [say] hello, but {other} only [turn] red and [run] away.",
         "{hero} [wave] from far away, but {other} [do] not wave back."],
        ["I would like to be friends with {other}, but I do not know how",
         "{other} does not talk to me. Did I do something wrong"],
        ["A gift needs no words. Show what you love most",
         "Sit down beside {other} and play. Then wait"],
        ["{hero} [sit] down on the wall with the {obj} and [hold] it out. {other} [look] at it for"
         " a long time, and then {other} [smile].",
         "The next day {hero} [bring] the {obj}. {other} [take] it, very carefully, and [laugh] for"
         " the first time."],
        ["Soon {other} [know] all their words, and {hero} [know] ten of the new ones.",
         "After a week nobody [remember] that {other} [have] ever been new."],
        {"other": "(Amir|Suri|Ivo|Kenji|Lola|Aya)"},
    ),
    Plot(
        "bell",
        ["Every day at noon the bell of {place_bell} [ring], and {hero} [love] the sound.",
         "{hero} [set] the time by the bell of {place_bell}, like everyone else."],
        ["But that day the bell [be] silent, and everybody [come] too late for everything.",
         "One noon there [be] no sound. The bell [have] stopped, and nobody [know] why."],
        ["{hero} [pull] the rope with all {his} strength, but nothing [happen].",
         "{hero} [shout] \"ding dong\" from the roof, but that [be] not the same."],
        ["The bell does not ring any more", "Something is wrong with the bell of {place_bell}"],
        ["Then somebody has to climb up and look", "A bell is never silent without a reason. Let us"
         " go and see"],
        ["They [climb+] a hundred steps. In the bell [sit] {birds} with four small eggs, and [do]"
         " not move.",
         "Up in the tower they [find+] a nest right beside the bell, and {birds} [look] at them"
         " with round eyes."],
        ["They [leave+] the bell alone until the young birds [can+] fly. On that day it [ring]"
         " louder than ever.",
         "For three weeks {hero} [go] through the streets with the {obj} and [call] the hours."
         " Then the birds [fly+], and the bell [ring]."],
        {"place_bell": "(the old tower|the church|the town hall)",
         "birds": "a (dove|stork|jackdaw|swallow)"},
    ),
    Plot(
        "map",
        ["In an old book {hero} [find] a map with a red cross near {place}.",
         "{hero} [open] a drawer, and there [lie] a yellow map. A cross [mark] a spot near"
         " {place}."],
        ["But half of the map [be] torn off, and nobody [know] where the path [begin].",
         "But the words on it [be+] written in signs that {he} [can] not read."],
        ["{He} [dig] (three|five|seven) holes and [find] only (worms|an old spoon|roots).",
         "{He} [turn] the map this way and that, but it [make] no sense."],
        ["I have a map, but I cannot find the cross", "Somebody has hidden something near {place},"
         " but where"],
        ["Hold it against the light. Old maps have secrets", "Read it in a mirror, and then count"
         " the steps from {mark}"],
        ["They [count+] (forty|sixty|ninety) steps from {mark} and [dig+] until the spade [hit]"
         " wood. It [be] a box.",
         "Suddenly {he} [understand]: the line on the map [be] the shadow of {mark} at noon. There"
         " they [dig+], and there [be] a box."],
        ["In the box [be] no gold, but (seeds of flowers that nobody [know]|a letter from a child"
         " who [have] lived there long ago|a hundred glass marbles).",
         "They [put+] something of their own into the box, a~ {colour} button, and [hide+] it again"
         " for the next child."],
        {"mark": "(the crooked pine|the well|the white stone|the old gate)"},
    ),
]  # fmt: skip
