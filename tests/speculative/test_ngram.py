"""Guesses by the text's own past."""

import random

from lariat.speculative.ngram import NgramDrafter


def by_search(ids: list[int], k: int) -> list[int]:
    for n in (4, 3, 2):
        for stop in range(len(ids) - 1, n - 1, -1):
            if ids[stop - n : stop] == ids[-n:]:
                long = list(ids)
                for i in range(k):
                    long.append(long[stop + i])
                return long[len(ids) :]
    return []


def test_the_longest_and_newest_match_wins():
    rng = random.Random(1)
    drafter, ids, n_found = NgramDrafter(), [], 0
    for _ in range(600):
        ids += [rng.randrange(6) for _ in range(rng.randint(1, 3))]
        draft = drafter.propose(ids, 5)
        assert draft == by_search(ids, 5)
        n_found += bool(draft)
    assert n_found > 100


def test_nothing_repeats_nothing_is_guessed():
    assert NgramDrafter().propose(list(range(100)), 8) == []
    assert NgramDrafter().propose([], 8) == []


def test_a_shorter_text_is_indexed_anew():
    drafter = NgramDrafter()
    drafter.propose([1, 2, 3, 1, 2], 1)
    assert drafter.propose([7, 8, 7], 1) == []
    assert drafter.propose([7, 8, 9, 7, 8], 1) == [9]
