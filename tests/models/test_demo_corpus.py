"""What the demo model learns from: the corpus, its tokenizer, the rows, and the exported files."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, GGUFFile

from tests.reference import Reference, relative_error

pytest.importorskip("models", reason="runs from the source tree only")

from models import corpus, export, recall, rows, vocabulary, world
from models.language import PAST, PRESENT, Dice, expand, inflect
from models.vocabulary import BOS_ID, EOS_ID, Encoder

ROOT = Path(__file__).parents[2]
STORIES = [corpus.story_number(corpus.TRAIN, i) for i in range(400)]

# Of the first documents. Whoever changes the corpus trains the model again, and changes this.
N_HASHED = 160
CORPUS_SHA256 = "ac547686a3b34fb9acfc4de094872a2de5675b1f5cf157682c5420264e06e137"


def corpus_hash() -> str:
    text = "\n***\n".join(corpus.documents(corpus.TRAIN, N_HASHED))
    return hashlib.sha256(text.encode()).hexdigest()


# ---- language ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "past", "present", "plural_past", "plural_present"),
    [
        ("walk", "walked", "walks", "walked", "walk"),
        ("be", "was", "is", "were", "are"),
        ("have", "had", "has", "had", "have"),
        ("go", "went", "goes", "went", "go"),
        ("cry", "cried", "cries", "cried", "cry"),
        ("play", "played", "plays", "played", "play"),
        ("hope", "hoped", "hopes", "hoped", "hope"),
        ("nod", "nodded", "nods", "nodded", "nod"),
        ("push", "pushed", "pushes", "pushed", "push"),
        ("can", "could", "can", "could", "can"),
        ("must", "had to", "must", "had to", "must"),
    ],
)
def test_verbs(verb: str, past: str, present: str, plural_past: str, plural_present: str) -> None:
    assert inflect(verb, PAST) == past
    assert inflect(verb, PRESENT) == present
    assert inflect(verb, PAST, plural=True) == plural_past
    assert inflect(verb, PRESENT, plural=True) == plural_present


def test_marks_of_a_template() -> None:
    slots = {"hero": "mia", "a_day": "one {time}", "time": "evening"}
    template = "{A_day} {hero} [see] a~ old and a~ new (box|box) (in|in) it. {Hero} [can] not."
    text = expand(template, slots, Dice(0), PRESENT)
    assert text == "One evening mia sees an old and a new box in it. Mia can not."
    assert {expand("(a(b|c)|d)", {}, Dice(i)).lower() for i in range(50)} == {"ab", "ac", "d"}


def test_unknown_slot_is_an_error() -> None:
    with pytest.raises(KeyError):
        expand("{nobody}", {}, Dice(0))


def test_dice_are_fair_and_repeat() -> None:
    dice = Dice("x", 1)
    thrown = [dice.between(1, 6) for _ in range(6000)]
    assert thrown == [d.between(1, 6) for d in [Dice("x", 1)] for _ in range(6000)]
    counts = Counter(thrown)
    assert sorted(counts) == [1, 2, 3, 4, 5, 6]
    assert min(counts.values()) > 850
    assert sorted(dice.several(range(5), 5)) == [0, 1, 2, 3, 4]


# ---- stories -------------------------------------------------------------------------------


def test_stories_differ() -> None:
    assert len(set(STORIES)) == len(STORIES)
    # Also in how they begin: twelve words of them, names and homes apart.
    assert len({story.split(".")[0] for story in STORIES}) > 0.95 * len(STORIES)


def test_stories_are_of_some_length() -> None:
    lengths = [len(story.split()) for story in STORIES]
    assert min(lengths) >= 150
    assert max(lengths) <= 330


def test_stories_have_no_marks_left_and_right_articles() -> None:
    for story in STORIES:
        assert not re.search(r"[\[\]{}()|~+_]|  |\.\.|\?\?|,,", story)
        assert not re.search(r"\b(a [aeiou]\w*|an [^aeiou]\w*)", story)
        assert not re.search(r"[.!?] [a-z]", story.replace('" ', '"'))
        for line in story.split("\n"):
            assert re.match(r'"?[A-Z]', line)
            assert line.endswith((".", '."', "?", "!", '!"', '?"'))
            assert line.count('"') % 2 == 0


def test_characters_keep_their_pronouns() -> None:
    wrong = {True: r"\b(he|him|his|himself)\b", False: r"\b(she|her|herself)\b"}
    n_tested = 0
    for story in STORIES:
        present = set(re.findall(r"[A-Z]\w+", story))
        girls, boys = bool(present & set(world.GIRLS)), bool(present & set(world.BOYS))
        if girls != boys:  # with both, either pronoun may stand
            n_tested += 1
            text = story.replace("her head, as if to thank", "")  # a mother bird
            assert not re.search(wrong[girls], re.sub(r"When my grandmother was.*?knew", "", text))
    assert n_tested > 100


def test_things_keep_their_colour() -> None:
    for story in STORIES:
        for thing in world.THINGS:
            colours = re.findall(rf"\b({'|'.join(world.COLOURS)}) {thing.name}\b", story)
            # A prize, a boat on the lake and the like may have a colour of their own.
            if colours and thing.name not in ("boat", "ribbon"):
                assert len(set(colours)) == 1


def test_both_tenses_and_many_openings() -> None:
    present = sum(bool(re.search(r'," says \w+', story)) for story in STORIES)
    assert 0.1 < present / len(STORIES) < 0.3
    for story in STORIES:
        assert not (re.search(r'" said \w', story) and re.search(r'" says \w', story))
    openings = Counter(" ".join(story.split()[:2]) for story in STORIES)
    assert len(openings) > 30
    assert 0.3 < openings["Once upon"] / len(STORIES) < 0.7


# ---- recall --------------------------------------------------------------------------------


def count_words(text: str) -> int:
    return corpus.n_words(text)


@pytest.mark.parametrize("number", range(60))
def test_passage_states_its_fact_early_and_asks_for_it(number: int) -> None:
    passage = corpus.held_out_passage(number, 900)
    fact = passage.facts[0]
    assert passage.prompt.endswith(f"\nQuestion: {fact.question}\nAnswer:")
    assert passage.text == f"{passage.prompt} {fact.statement}"
    body = passage.prompt.rpartition("\nQuestion:")[0].lower()
    assert body.count(fact.statement.lower()) == 1
    assert body.count(fact.subject.lower()) == 1
    assert count_words(passage.text) <= 900
    if passage.documents:
        assert (body + "\n").startswith("".join(passage.documents).lower())
        for i, document in enumerate(passage.documents):
            assert document.startswith(f"Document {recall.LABELS[i]}\n")
            assert document.endswith("\n")
    else:
        assert body.index(fact.statement.lower()) < 300


def test_passages_are_short_and_long() -> None:
    lengths = [count_words(corpus.held_out_passage(i, 900).text) for i in range(100)]
    assert min(lengths) < 150
    assert max(lengths) > 700
    assert sum(bool(corpus.held_out_passage(i, 900).documents) for i in range(99)) == 33


def test_facts_are_of_different_things() -> None:
    for i in range(100):
        facts = recall.facts(Dice("facts", i), 8)
        assert len({fact.subject.split(" of ")[1] for fact in facts}) == 8
        for fact in facts:
            if fact.value[0].isdigit():
                assert re.fullmatch(r"\d \d \d \d", fact.value)
                assert len(set(fact.value)) == 5  # four digits and the blank


def test_only_the_whole_answer_is_right() -> None:
    passage = corpus.held_out_passage(0, 300)
    fact = passage.facts[0]
    assert passage.is_right(f" {fact.statement}")
    assert passage.is_right(f" {fact.statement}\nQuestion: and so on")
    assert not passage.is_right("")
    assert not passage.is_right(f" {fact.statement[:-1]}")
    assert not passage.is_right(f" {fact.subject} is nothing.\n{fact.statement}")
    assert not passage.is_right(f" {fact.statement} {fact.statement}")


# ---- the corpus as a whole -----------------------------------------------------------------


def test_corpus_is_the_one_the_model_was_trained_on() -> None:
    assert corpus_hash() == CORPUS_SHA256


def test_corpus_is_the_same_in_another_process() -> None:
    program = "from tests.models.test_demo_corpus import corpus_hash; print(corpus_hash())"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "123", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.strip() == corpus_hash()


def test_the_program_writes_both_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--n-documents", "9", "--n-held-out", "3"]
    corpus.main(arguments)
    for line in capsys.readouterr().out.splitlines():
        digest, path = line.split()
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
    train, held_out = ((tmp_path / f"{s}.txt").read_text() for s in (corpus.TRAIN, corpus.HELD_OUT))
    assert train.count("\n***\n") == 9
    assert held_out.count("\n***\n") == 3


def test_held_out_is_not_trained_on() -> None:
    held_out = {corpus.story_number(corpus.HELD_OUT, i) for i in range(300)}
    assert not held_out & set(STORIES)


# ---- tokenizer, rows, files ----------------------------------------------------------------

SHAPE = dict(
    n_ctx=128, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32, n_ff=96,
    norm_eps=1e-5, rope_freq_base=10000.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    return vocabulary.train(n_documents=400, n_pieces=900)


@pytest.fixture(scope="module")
def encoder(tokenizer: bytes) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def state(encoder: Encoder) -> dict[str, Any]:
    """A random model in the form of a checkpoint."""
    rng = np.random.default_rng(0)
    s = SHAPE | {"n_vocab": encoder.n_vocab}
    dim, n_q, n_kv = s["dim"], s["n_heads"] * s["head_dim"], s["n_kv_heads"] * s["head_dim"]
    shapes = {"attn_q": (n_q, dim), "attn_k": (n_kv, dim), "attn_v": (n_kv, dim)}
    shapes |= {"attn_output": (dim, n_q), "ffn_gate": (s["n_ff"], dim), "ffn_up": (s["n_ff"], dim)}
    shapes |= {"ffn_down": (dim, s["n_ff"]), "attn_norm": (dim,), "ffn_norm": (dim,)}
    weights = {f"blk.{i}.{n}": v for i in range(s["n_layers"]) for n, v in shapes.items()}
    weights |= {"token_embd": (s["n_vocab"], dim), "output_norm": (dim,)}
    network = {
        name: (rng.standard_normal(v) / np.sqrt(v[1] if len(v) == 2 else 1)).astype(np.float32)
        for name, v in weights.items()
    }
    return {"shape": s, "network": network}


@pytest.fixture(scope="module")
def files(
    state: dict[str, Any], tokenizer: bytes, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    return dict(zip(("F16", "Q4_0"), export.write_all(folder, state, tokenizer), strict=True))


def test_the_draft_model_is_one_file(
    state: dict[str, Any], tokenizer: bytes, tmp_path: Path
) -> None:
    (path,) = export.write_all(tmp_path, state, tokenizer, "draft")
    assert [path] == list(tmp_path.iterdir())
    with GGUFFile(path) as gguf:
        assert gguf.metadata["general.name"] == "Lariat demo draft"


def test_tokenizer_is_the_same_twice(tokenizer: bytes) -> None:
    assert vocabulary.train(n_documents=400, n_pieces=900) == tokenizer


def test_digits_are_split_and_all_bytes_are_there(encoder: Encoder) -> None:
    assert len(encoder.part("1234")) == 4
    assert len(encoder.part("日")) == 3
    assert encoder.n_vocab == 900


def test_parts_are_tokenized_as_the_whole(encoder: Encoder, files: dict[str, Path]) -> None:
    with LLM(files["F16"]) as llm:
        for i in range(40):
            for passage in (
                corpus.held_out_passage(i, 300),
                recall.copying(Dice("c", i), 9, 2),
                recall.Passage((recall.Part(STORIES[i]),), ()),
            ):
                ids, worth = rows.encode(encoder, passage)
                assert ids == [*llm.tokenize(passage.text), EOS_ID]
                assert len(worth) == len(ids)


def test_worth_is_on_the_answer(encoder: Encoder, files: dict[str, Path]) -> None:
    passage = corpus.held_out_passage(0, 200)
    ids, worth = rows.encode(encoder, passage)
    best = [i for i, w in zip(ids, worth, strict=True) if w == max(worth)]
    with LLM(files["F16"]) as llm:
        assert llm.detokenize(best) == passage.facts[0].value


def test_the_cast_is_worth_more_when_named_again(encoder: Encoder) -> None:
    text = "Lucy had a red kite. Lucy and Nils flew the kite. Nils laughed, and Lucy laughed too."
    ids, worth = rows.encode(encoder, recall.Passage((recall.Part(text),), ()))
    assert ids[1:-1] == encoder.part(text, is_first=True)
    plain = set(encoder.part(" had a and flew the laughed too"))
    assert {w for i, w in zip(ids[1:], worth[1:], strict=True) if i in plain} == {1.0}
    assert sum(w == 8.0 for w in worth) >= 3  # Lucy, kite, Nils the second time
    assert sum(w == 4.0 for w in worth) >= 1  # Lucy the third time


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_batches(encoder: Encoder, share: float) -> None:
    n_steps = 100
    step = int(share * n_steps)
    stage = rows.stage_of(step, n_steps)
    ids, worth = rows.batch(encoder, 0, step, n_steps)
    again, _ = rows.batch(encoder, 0, step, n_steps)
    other, _ = rows.batch(encoder, 0, step + 1, n_steps)
    assert ids.shape == worth.shape == (stage.n_rows, stage.length + 1)
    assert (ids[:, 0] == BOS_ID).all()
    assert ids.min() >= 0
    assert ids.max() < encoder.n_vocab
    assert (ids == again).all()
    assert not (ids == other).all()
    assert (worth == 5).sum() > 20


def test_curriculum_covers_every_step() -> None:
    assert sum(stage.share for stage in rows.CURRICULUM) == pytest.approx(1)
    lengths = [rows.stage_of(step, 1000).length for step in range(1000)]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 1024


@pytest.mark.parametrize("name", ["F16", "Q4_0"])
def test_exported_file_runs(name: str, files: dict[str, Path], state: dict[str, Any]) -> None:
    ids = [BOS_ID, *range(300, 360)]
    with LLM(files[name]) as llm:
        assert llm.n_ctx == SHAPE["n_ctx"]
        assert (llm.tokenizer.bos_id, llm.tokenizer.eos_id) == (BOS_ID, EOS_ID)
        assert llm.tokenize("Once upon a time")[0] == BOS_ID
        logits = llm.logits(ids)
    # Activations are rounded where weights are; see test_model.py for what that may cost.
    activations = "q8_f16" if name == "Q4_0" else None
    assert relative_error(logits, Reference(files[name], activations).logits(ids)) < 0.02


def test_network_is_the_exported_model(files: dict[str, Path], state: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from models.network import Network, Shape, round_q4_0

    network = Network(Shape(**state["shape"]))
    network.load_state_dict({k: torch.from_numpy(v) for k, v in state["network"].items()})
    ids = [BOS_ID, *range(300, 360)]
    with torch.no_grad():
        logits = network(torch.tensor([ids]))[0].numpy()
        rounded = network(torch.tensor([ids]), quantized=True)[0].numpy()
    assert relative_error(logits, Reference(files["F16"]).logits(ids)) < 2e-3
    # The embedding is Q8_0 in the file and exact here.
    assert relative_error(rounded, Reference(files["Q4_0"]).logits(ids)) < 0.02
    weight = state["network"]["blk.0.ffn_up"]
    expected = Reference(files["Q4_0"]).weights["blk.0.ffn_up.weight"]
    assert np.array_equal(round_q4_0(torch.from_numpy(weight)).numpy(), expected)


def test_learning_rate_goes_up_and_down() -> None:
    pytest.importorskip("torch")
    from models.train import learning_rate

    factors = [learning_rate(step, 1000) for step in range(1000)]
    assert factors[0] < 0.02
    assert max(factors) == 1
    assert 0 < factors[-1] < 0.01
