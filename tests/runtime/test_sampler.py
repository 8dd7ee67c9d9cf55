"""Each stage against its definition in plain Python, the chain against all of them together."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat.config import SamplingParams
from lariat.errors import LariatError
from lariat.runtime.sampler import (
    add_bias,
    check_finite,
    draw,
    min_p,
    penalize,
    sample,
    top_k,
    top_p,
    typical,
)

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
GREEDY = SamplingParams(temperature=0)


class _Fixed:
    """A generator that returns the same number in [0, 1) and counts how often."""

    def __init__(self, number: float) -> None:
        self.number = number
        self.n_drawn = 0

    def random(self) -> float:
        self.n_drawn += 1
        return self.number


# ---- The definitions, in plain Python: candidates are [(id, logit)], largest first. ----


def _naive_probabilities(logits):
    e = [math.exp(x - max(logits)) for x in logits]
    return [a / math.fsum(e) for a in e]


def _naive_penalize(logits, params, previous):
    out = [float(x) for x in logits]
    n_last = len(previous) if params.repeat_last_n < 0 else params.repeat_last_n
    for token, count in Counter(previous[len(previous) - min(n_last, len(previous)) :]).items():
        if out[token] > 0:
            out[token] /= params.repeat_penalty
        else:
            out[token] *= params.repeat_penalty
        out[token] -= count * params.frequency_penalty + params.presence_penalty
    return out


def _naive_typical(candidates, p):
    probabilities = _naive_probabilities([x for _, x in candidates])
    entropy = -math.fsum(q * math.log(q) for q in probabilities if q > 0)
    distance = [abs(-math.log(q) - entropy) if q > 0 else math.inf for q in probabilities]
    kept, total = [], 0.0
    for i in sorted(range(len(candidates)), key=lambda i: distance[i]):
        kept.append(i)
        total += probabilities[i]
        if total > p:
            break
    return [candidates[i] for i in sorted(kept)]


def _naive_top_p(candidates, p):
    total = 0.0
    for n_kept, q in enumerate(_naive_probabilities([x for _, x in candidates]), 1):
        total += q
        if total >= p:
            return candidates[:n_kept]
    return candidates


def _naive_min_p(candidates, p):
    probabilities = _naive_probabilities([x for _, x in candidates])
    enough = (q >= p * probabilities[0] for q in probabilities)
    kept = [c for c, ok in zip(candidates, enough, strict=True) if ok]
    return kept or candidates[:1]


def _naive_chain(logits, params, previous=()):
    """{id: probability} of all tokens that can come next."""
    out = [float(x) + params.logit_bias.get(i, 0.0) for i, x in enumerate(logits)]
    out = _naive_penalize(out, params, list(previous))
    candidates = sorted(enumerate(out), key=lambda c: (-c[1], c[0]))
    candidates = [c for c in candidates if c[1] > -math.inf]
    if params.top_k:
        candidates = candidates[: params.top_k]
    if params.typical_p < 1:
        candidates = _naive_typical(candidates, params.typical_p)
    if params.top_p < 1:
        candidates = _naive_top_p(candidates, params.top_p)
    if params.min_p > 0:
        candidates = _naive_min_p(candidates, params.min_p)
    tempered = _naive_probabilities([x / params.temperature for _, x in candidates])
    return {token: q for (token, _), q in zip(candidates, tempered, strict=True)}


# ---- Stages ----

_LOGIT = st.floats(-30, 30, width=32)
_FALLING = st.lists(_LOGIT, min_size=1, max_size=40).map(lambda x: np.array(sorted(x)[::-1]))
_P = st.floats(0, 1)


def _near(values, p, borders):
    """Whether rounding alone may decide: `p` within 1e-9 of a sum or ratio at which sets change."""
    return any(abs(p - border) < 1e-9 for border in borders)


@given(
    st.lists(st.one_of(_LOGIT, st.integers(-2, 2), st.just(-math.inf)), min_size=1, max_size=300),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_top_k_is_the_head_of_the_sorted_list(values, k):
    logits = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-logits[i], i))
    expected = [i for i in expected if logits[i] > -math.inf][:k]
    assert top_k(logits, k).tolist() == expected


@pytest.mark.parametrize("n", [1000, 32000, 128256])
@pytest.mark.parametrize("k", [1, 40, 999, 10**9])
@pytest.mark.parametrize("levels", [1, 20, None])
def test_top_k_of_a_whole_vocabulary(n, k, levels):
    """With `levels` different logits nearly all are ties; also all at the start or the end."""
    rng = np.random.default_rng(n + k)
    logits = rng.standard_normal(n, np.float32)
    if levels is not None:
        logits = rng.integers(0, levels, n).astype(np.float32)
    for case in (logits, np.sort(logits), np.sort(logits)[::-1]):
        assert np.array_equal(top_k(case, k), np.argsort(-case, kind="stable")[:k])


def test_top_k_leaves_out_what_is_less_than_asked():
    logits = np.array([1, 5, 3, 4, -math.inf], np.float32)
    assert top_k(logits, 5).tolist() == [1, 3, 2, 0]
    assert top_k(logits, 5, least=3.0).tolist() == [1, 3, 2]
    assert top_k(logits, 1, least=3.0).tolist() == [1]


@given(_FALLING, _P)
@settings(deadline=None)
def test_top_p_is_the_smallest_set_that_reaches_p(values, p):
    sums = np.cumsum(_naive_probabilities(values.tolist()))
    if not _near(values, p, sums):
        expected = len(_naive_top_p(list(enumerate(values)), p))
        assert top_p(values, p) == expected


def test_top_p_by_hand():
    values = np.log([0.5, 0.25, 0.125, 0.125])
    for p, n_kept in ((0.0, 1), (0.4, 1), (0.5 - 1e-9, 1), (0.51, 2), (0.75 - 1e-9, 2), (0.76, 3)):
        assert top_p(values, p) == n_kept
    # The rest of the vocabulary has as much weight again: half of it is all four.
    assert top_p(values, 0.5 - 1e-9, total=4.0) == 4
    assert top_p(values, 0.24, total=4.0) == 1


@given(_FALLING, _P)
@settings(deadline=None)
def test_min_p_is_relative_to_the_largest(values, p):
    ratios = np.exp(values - values[0])
    if p > 0 and not _near(values, p, ratios):
        assert min_p(values, p) == len(_naive_min_p(list(enumerate(values)), p))


def test_min_p_keeps_equals_of_the_largest():
    assert min_p(np.array([2.0, 2.0, 1.0]), 1.0) == 2
    assert min_p(np.array([2.0]), 1.0) == 1


@given(_FALLING, _P)
@settings(deadline=None)
def test_typical_against_its_definition(values, p):
    got = typical(values, p).tolist()
    probabilities = np.array(_naive_probabilities(values.tolist()))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(np.where(probabilities > 0, probabilities * np.log(probabilities), 0))
        distance = np.abs(-np.log(probabilities) - entropy)
    assert got
    assert got == sorted(set(got))
    kept = np.zeros(len(values), bool)
    kept[got] = True
    # All that are kept are at least as typical as any that are not; their sum passes p; and
    # without the least typical of them it would not.
    if not kept.all():
        assert distance[kept].max() <= distance[~kept].min() + 1e-9
        assert probabilities[kept].sum() > p - 1e-9
    least = probabilities[kept][distance[kept] >= distance[kept].max() - 1e-9].max()
    assert probabilities[kept].sum() - least <= p + 1e-9


def test_typical_may_drop_the_most_probable():
    """Entropy 2.2 nats: a token of probability 0.2 (1.6 nats) is less typical than one of 0.1."""
    values = np.log([0.2] + [0.1] * 8)
    assert typical(values, 0.45).tolist() == [1, 2, 3, 4, 5]
    assert typical(values, 0.99).tolist() == list(range(9))


@given(
    st.lists(_LOGIT, min_size=8, max_size=8),
    st.lists(st.integers(0, 7), max_size=20),
    st.sampled_from([1.0, 1.3, 0.8]),
    st.sampled_from([0.0, 0.4, -0.5]),
    st.sampled_from([0.0, 0.7, -0.3]),
    st.sampled_from([-1, 0, 1, 5, 64]),
)
@settings(deadline=None)
def test_penalties_against_their_definition(logits, previous, repeat, frequency, presence, n_last):
    params = SamplingParams(
        repeat_penalty=repeat,
        frequency_penalty=frequency,
        presence_penalty=presence,
        repeat_last_n=n_last,
    )
    before = np.array(logits, np.float32)
    given_logits = before.copy()
    got = penalize(given_logits, params, previous)
    np.testing.assert_allclose(got, _naive_penalize(logits, params, previous), rtol=1e-6, atol=1e-6)
    assert np.array_equal(given_logits, before)


def test_penalties_by_hand():
    logits = np.array([2.0, -2.0, 3.0, 1.0], np.float32)
    params = SamplingParams(repeat_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    got = penalize(logits, params, [0, 1, 1])
    assert got.tolist() == [1.0 - 0.75, -4.0 - 1.25, 3.0, 1.0]
    last = SamplingParams(repeat_penalty=2.0, repeat_last_n=2)
    assert penalize(logits, last, [0, 2, 1]).tolist() == [2.0, -4.0, 1.5, 1.0]
    none = SamplingParams(repeat_penalty=2.0, repeat_last_n=0)
    assert penalize(logits, none, [0, 1]) is logits


def test_bias():
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    assert add_bias(logits, {0: 0.5, 2: -math.inf}).tolist() == [1.5, 2.0, -math.inf]
    assert logits.tolist() == [1.0, 2.0, 3.0]
    assert add_bias(logits, {}) is logits


def test_typical_needs_more_than_p():
    values = np.zeros(2)  # probabilities of exactly 1/2
    assert typical(values, 0.49).tolist() == [0]
    assert typical(values, 0.5).tolist() == [0, 1]


# ---- Drawing ----


@given(st.lists(_LOGIT, min_size=1, max_size=20), st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_draw_inverts_the_cumulative_distribution(values, number):
    cumulative = np.cumsum(_naive_probabilities(values))
    if not _near(values, number, cumulative):
        expected = next(i for i, c in enumerate(cumulative) if c > number)
        assert draw(np.array(values), 1.0, _Fixed(number)) == expected


def test_draw_at_the_ends_of_the_interval():
    """No token of probability 0 is drawn, whatever the number is."""
    values = np.array([-math.inf, -1e5, 0.0, 0.0, -1e5, -math.inf])
    assert draw(values, 1.0, _Fixed(0.0)) == 2
    assert draw(values, 1.0, _Fixed(1 - 2**-53)) == 3
    assert draw(values, 1e-320, _Fixed(0.7)) == 3  # overflows but for the largest
    for n in range(1, 400):
        assert draw(np.linspace(0, 0.3, n), 1.0, _Fixed(1 - 2**-53)) == n - 1


@given(
    logits=st.lists(
        st.one_of(_LOGIT, st.integers(-2, 2), st.just(-math.inf)), min_size=1, max_size=60
    ).filter(lambda values: max(values) > -math.inf),
    previous=st.lists(st.integers(0, 59), max_size=8),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1e-6, 0.5, 1.0, 1e6]),
        top_k=st.integers(0, 70),
        top_p=_P,
        min_p=_P,
        typical_p=_P,
        repeat_penalty=st.sampled_from([0.5, 1.0, 1.3]),
        repeat_last_n=st.integers(-1, 8),
        frequency_penalty=st.floats(-3, 3),
        presence_penalty=st.floats(-3, 3),
    ),
    number=st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None, max_examples=300)
def test_whatever_is_asked_for_one_likely_token_is_drawn(logits, previous, params, number):
    """It is never a forbidden one, is among the top k, and nothing else is touched."""
    previous = [i for i in previous if i < len(logits)]
    values = np.array(logits, np.float32)
    before, rng = values.copy(), _Fixed(number)
    token = sample(values, params, previous, rng)
    assert np.array_equal(values, before)
    assert rng.n_drawn == (params.temperature > 0)
    lowered = penalize(values, params, previous)
    assert lowered[token] > -math.inf
    k = 1 if params.temperature == 0 else params.top_k or len(logits)
    assert (lowered > lowered[token]).sum() < k


def test_logits_that_are_not_finite_are_named():
    rows = np.zeros((3, 40), np.float32)
    check_finite(rows)
    check_finite(np.full(7, np.finfo(np.float32).max))
    for bad in (math.nan, math.inf, -math.inf):
        rows[1, 39] = bad
        for some in (rows, rows[1]):
            with pytest.raises(LariatError, match=rf"^the logits hold {bad}: the model or its"):
                check_finite(some)
        check_finite(rows[2])


_CHAINS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 0},
    OFF,
    OFF | {"top_p": 0.7},
    OFF | {"top_p": 0.7, "min_p": 0.02},
    OFF | {"min_p": 0.1},
    OFF | {"typical_p": 0.6},
    OFF | {"top_p": 0.0},
    OFF | {"min_p": 1.0},
    {"top_k": 1},
    {"top_k": 7, "typical_p": 0.8, "top_p": 0.9, "min_p": 0.01},
    {"repeat_penalty": 1.5, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    {"logit_bias": {3: 4.0, 50: 6.0, 7: -math.inf}, "repeat_penalty": 1.2, "repeat_last_n": 5},
]


@pytest.mark.parametrize("kwargs", _CHAINS, ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_chain_has_the_probabilities_of_its_stages(kwargs, scale):
    """Numbers spread evenly over [0, 1) hit every token as often as its probability says."""
    params = SamplingParams(**kwargs)
    n_numbers = 1000
    for seed in range(2):
        rng = np.random.default_rng(seed)
        logits = (scale * rng.standard_normal(120)).astype(np.float32)
        logits[rng.integers(0, 120, 5)] = -math.inf
        previous = rng.integers(0, 120, 80).tolist()
        expected = _naive_chain(logits, params, previous)
        numbers = (np.arange(n_numbers) + 0.5) / n_numbers
        counts = Counter(sample(logits, params, previous, _Fixed(u)) for u in numbers)
        assert set(counts) <= set(expected)
        for token, probability in expected.items():
            assert abs(counts[token] - n_numbers * probability) <= 1.001, token


@pytest.mark.parametrize("kwargs", [{}, OFF, {"typical_p": 0.7}, OFF | {"top_p": 0.9}], ids=str)
def test_draws_follow_the_distribution(kwargs):
    """Chi-square of 4,000 seeded draws; the bound is that of one false alarm in 10,000."""
    params = SamplingParams(**kwargs)
    rng = np.random.default_rng(5)
    logits = rng.standard_normal(60).astype(np.float32)
    expected = _naive_chain(logits, params)
    n_draws = 4000
    counts = Counter(sample(logits, params, [], rng) for _ in range(n_draws))
    assert set(counts) <= set(expected)
    chi_square = sum((counts[t] - n_draws * q) ** 2 / (n_draws * q) for t, q in expected.items())
    freedom = len(expected) - 1
    assert freedom > 20
    # Wilson and Hilferty: the cube root of chi-square over freedom is close to normal.
    z = ((chi_square / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
    assert abs(z) < 3.9


def test_a_seed_repeats_and_another_differs():
    logits = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    params = SamplingParams(temperature=1.0)

    def tokens(seed):
        rng = np.random.default_rng(seed)
        return [sample(logits, params, [], rng) for _ in range(50)]

    assert tokens(1) == tokens(1) != tokens(2)


def test_one_number_a_token_and_none_when_greedy():
    """So that a seed's later tokens do not hang on how many candidates the earlier ones had."""
    logits = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    for kwargs in _CHAINS:
        rng = _Fixed(0.5)
        sample(logits, SamplingParams(**kwargs), [1, 2], rng)
        assert rng.n_drawn == 1
    rng = _Fixed(0.5)
    sample(logits, GREEDY, [], rng)
    assert rng.n_drawn == 0


# ---- Greedy ----


def test_greedy_takes_the_first_of_the_largest():
    rng = np.random.default_rng(0)
    assert sample(np.array([1, 5, 3, 5], np.float32), GREEDY, [], rng) == 1
    assert sample(np.array([-math.inf, -7, -7], np.float32), GREEDY, [], rng) == 1
    assert sample(np.zeros(1, np.float32), GREEDY, [], rng) == 0


def test_greedy_sees_bias_and_penalties_and_no_other_stage():
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.2] + [0.1] * 8)).astype(np.float32)
    assert sample(logits, SamplingParams(temperature=0, typical_p=0.5), [], rng) == 0
    biased = SamplingParams(temperature=0, logit_bias={0: -math.inf, 4: 0.1})
    assert sample(logits, biased, [], rng) == 4
    # Logits are negative: a penalty of 2 doubles them.
    penalised = SamplingParams(temperature=0, repeat_penalty=2.0)
    assert sample(logits, penalised, [0, 1, 2], rng) == 3


# ---- Bad input ----


@pytest.mark.parametrize("kwargs", [{}, {"temperature": 0}, OFF, {"repeat_penalty": 1.1}], ids=str)
def test_damaged_logits_are_an_error(kwargs):
    params = SamplingParams(**kwargs)
    rng = np.random.default_rng(0)
    for bad, found in ((math.nan, "nan"), (math.inf, "inf")):
        for where in (0, 57, 99):
            logits = np.random.default_rng(1).standard_normal(100).astype(np.float32)
            logits[where] = bad
            with pytest.raises(LariatError, match=f"logits hold {found}"):
                sample(logits, params, [57], rng)
    with pytest.raises(LariatError, match="every token is forbidden"):
        sample(np.full(100, -math.inf, np.float32), params, [], rng)


def test_ids_outside_the_vocabulary_are_an_error():
    logits = np.zeros(10, np.float32)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="token 10, but the vocabulary has 10"):
        sample(logits, SamplingParams(logit_bias={10: 1.0}), [], rng)
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside"):
            sample(logits, SamplingParams(repeat_penalty=1.1), [3, wrong], rng)
    for shape in ((2, 5), (0,)):
        with pytest.raises(ValueError, match="shape"):
            sample(np.zeros(shape, np.float32), SamplingParams(), [], rng)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kwargs", _CHAINS, ids=str)
def test_extreme_logits_give_a_token_without_warnings(kwargs):
    """The largest float32, the smallest temperature: still the largest logit, and no nonsense."""
    params = SamplingParams(**(kwargs | {"temperature": 1e-300, "typical_p": 1.0}))
    huge = np.finfo(np.float32).max
    logits = np.full(100, -huge, np.float32)
    logits[20] = huge
    logits[90] = -math.inf
    assert sample(logits, params, [5, 5], np.random.default_rng(0)) == 20


def test_logits_are_not_changed():
    for kwargs in _CHAINS:
        logits = np.random.default_rng(0).standard_normal(100).astype(np.float32)
        before = logits.copy()
        logits.flags.writeable = False
        sample(logits, SamplingParams(**kwargs), [1, 2, 3], np.random.default_rng(0))
        assert np.array_equal(logits, before)
