"""Guesses that become fewer where they are wrong."""

from lariat.speculative.auto import AutoDrafter

CIRCLE = [1, 2, 3, 4, 5, 6, 7, 8]


def test_guesses_grow_while_they_come_true():
    drafter, ids, lengths = AutoDrafter(), CIRCLE * 3, []
    for _ in range(4):
        draft = drafter.propose(ids, 16)
        lengths.append(len(draft))
        drafter.accepted(len(draft))
        ids = ids + draft
    assert lengths == [2, 4, 8, 16]
    assert ids == [*CIRCLE * 12][: len(ids)]


def test_guesses_pause_where_none_comes_true():
    """Two tries, and then one between pauses that become longer."""
    drafter, ids, tried = AutoDrafter(), list(CIRCLE * 3), []
    for step in range(600):
        if drafter.propose(ids, 8):
            tried.append(step)
            drafter.accepted(0)
    assert tried == [0, 1, 18, 51, 116, 245, 502]


def test_one_that_comes_true_ends_the_pauses():
    drafter, ids = AutoDrafter(), list(CIRCLE * 3)
    for _ in range(60):
        if drafter.propose(ids, 8):
            drafter.accepted(0)
    while not drafter.propose(ids, 8):
        pass
    drafter.accepted(2)
    assert len(drafter.propose(ids, 8)) == 4


def test_never_more_than_asked_for():
    drafter = AutoDrafter()
    for _ in range(5):
        draft = drafter.propose(CIRCLE * 3, 3)
        assert len(draft) <= 3
        drafter.accepted(len(draft))
