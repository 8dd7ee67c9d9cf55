"""A layer of experts against NumPy in float64, at each instruction-set level."""

from __future__ import annotations

import numpy as np
import pytest
from lariat import _experts, _kernels
from lariat._program import Program, run
from lariat._routing import Routing, route
from lariat.os_memory import allocate

from tests.reference import relative_error
from tests.support.expert_cases import ExpertCase, pack_experts
from tests.support.kernel_cases import FLOAT_TYPES, QUANT_TYPES, raw_weights

BOUND = 3e-6  # that of a kernel (test_kernels.py), for three in a row
# An activation that float32 rounding pushes to the neighbouring integer of 8 bits.
STEP_BOUND = 1e-2


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize("type_name", [*FLOAT_TYPES, *QUANT_TYPES])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_each_type_of_weights(isa, rng, type_name, n):
    shape = {"dim": 256, "n_ff": 256, "n_experts": 5, "n_used": 2}
    case = ExpertCase(rng, n=n, types=(type_name,) * 3, **shape)
    error = relative_error(case.run(), case.expected())
    assert error < (BOUND if type_name in FLOAT_TYPES else STEP_BOUND)


@pytest.mark.parametrize(
    "types", [("F32", "Q4_0", "F16"), ("Q8_0", "F32", "Q4_1"), ("Q4_0", "Q8_0", "F32")]
)
@pytest.mark.parametrize("n", [1, 3, 30])
def test_types_may_be_mixed(isa, rng, types, n):
    case = ExpertCase(rng, n=n, dim=64, n_ff=96, n_experts=4, n_used=3, types=types)
    assert relative_error(case.run(), case.expected()) < STEP_BOUND


SHAPES = {
    "one expert": {"n": 5, "dim": 40, "n_ff": 33, "n_experts": 1, "n_used": 1},
    "all of them": {"n": 5, "dim": 17, "n_ff": 50, "n_experts": 3, "n_used": 3},
    "odd": {"n": 7, "dim": 61, "n_ff": 77, "n_experts": 16, "n_used": 4},
    "one token": {"n": 1, "dim": 61, "n_ff": 77, "n_experts": 16, "n_used": 4},
    "many experts": {"n": 3, "dim": 32, "n_ff": 32, "n_experts": 300, "n_used": 8},
    "several tasks of a matrix": {"n": 2, "dim": 512, "n_ff": 700, "n_experts": 3, "n_used": 2},
    "several pieces of a row": {"n": 2, "dim": 3000, "n_ff": 32, "n_experts": 9, "n_used": 8},
    "tokens in several runs": {"n": 333, "dim": 20, "n_ff": 40, "n_experts": 2, "n_used": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(isa, rng, shape):
    case = ExpertCase(rng, **SHAPES[shape])
    assert relative_error(case.run(), case.expected()) < BOUND


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "softmax of the chosen"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("n", [1, 70])
def test_weights_of_experts(rng, gating, normalized, n):
    case = ExpertCase(rng, n=n, dim=24, n_ff=40, n_experts=16, n_used=4)
    how = {"gating": gating, "normalized": normalized, "scale": 2.5}
    assert relative_error(case.run(**how), case.expected(**how)) < BOUND


@pytest.mark.parametrize("n", [1, 12])
@pytest.mark.parametrize("types", [("F32",) * 3, ("Q8_0",) * 3])
def test_biases_and_clamped_swiglu(isa, rng, n, types):
    shape = {"n": n, "dim": 64, "n_ff": 96, "n_experts": 4, "n_used": 2, "types": types}
    case = ExpertCase(rng, **shape, biases=True, clamp=(1.702, 7.0))
    gate = case.data[0].view(np.float32) @ case.h.T if types[0] == "F32" else np.array([9.0])
    assert gate.max() > 7, "something is clamped"
    assert relative_error(case.run(), case.expected()) < (
        BOUND if types[0] == "F32" else STEP_BOUND
    )


@pytest.mark.parametrize("n", [1, 50, 600])
@pytest.mark.parametrize("type_name", ["F32", "Q4_0"])
def test_n_threads_agnosticism(isa, rng, n, type_name):
    shape = {"dim": 96, "n_ff": 320, "n_experts": 7, "n_used": 2}
    case = ExpertCase(rng, n=n, types=(type_name,) * 3, **shape)
    first = case.run(1)
    for n_threads in (2, 3, 8):
        assert np.array_equal(case.run(n_threads), first)


@pytest.mark.parametrize("type_name", ["F32", "Q4_0"])
@pytest.mark.parametrize("n", [1, 300])
def test_working_memory_is_written_before_it_is_read_and_not_overrun(isa, rng, n, type_name):
    shape = {"dim": 96, "n_ff": 160, "n_experts": 3, "n_used": 2}
    case = ExpertCase(rng, n=n, types=(type_name,) * 3, **shape)
    expected = case.run(1)
    program, out = case.program()
    areas = program.work_areas(2)
    areas[:] = np.nan
    program.run(2)
    assert np.array_equal(out, expected)
    assert np.isnan(areas[:, program.n_work :]).all()


def test_a_program_runs_again_with_other_tokens(rng):
    """The number of tasks is counted anew each time, whatever it was before."""
    case = ExpertCase(rng, n=20, dim=64, n_ff=64, n_experts=16, n_used=2)
    program, out = case.program()
    for i in range(30):
        case.logits[:] = 3 * rng.standard_normal(case.logits.shape)
        if i % 3 == 0:
            case.logits[:, 4:6] = 99  # all tokens to two experts
        out[:] = case.x
        program.run(1 + i % 3)
        assert relative_error(out, case.expected()) < BOUND


def test_layers_that_share_a_routing(rng):
    """A thread that comes late to a phase must not count the tasks of a later layer."""
    cases = [ExpertCase(rng, n=8, dim=32, n_ff=32, n_experts=16, n_used=2) for _ in range(40)]
    routing = Routing(8, 16, 2)
    whole, outs = Program(), []
    for case in cases:
        _, out = case.program(routing=routing, program=whole)
        outs.append(out)
    starts = [case.x.copy() for case in cases]
    whole.run(1)
    expected = [out.copy() for out in outs]
    for _ in range(50):
        for out, start in zip(outs, starts, strict=True):
            out[:] = start
        whole.run(4)
        assert all(np.array_equal(a, b) for a, b in zip(outs, expected, strict=True))


@pytest.mark.parametrize("type_name", ["F32", "Q8_0", "Q4_1"])
def test_a_token_gets_the_same_alone_and_among_others(isa, rng, type_name):
    """To the bit, whoever else goes to its experts."""
    shape = {"dim": 96, "n_ff": 64, "n_experts": 8, "n_used": 2}
    case = ExpertCase(rng, n=64, types=(type_name,) * 3, **shape)
    together = case.run()
    h, logits, x = case.h, case.logits, case.x
    for i in (0, 17, 63):
        case.h, case.logits, case.x = h[i : i + 1], logits[i : i + 1], x[i : i + 1]
        assert np.array_equal(case.run()[0], together[i])


# ---- routing ----


def routed(logits: np.ndarray, n_used: int, **how) -> tuple[np.ndarray, np.ndarray]:
    routing = Routing(len(logits), logits.shape[1], n_used)
    how = {"gating": "softmax", "normalized": False, "scale": 1.0} | how
    for phase in route(logits.astype(np.float32), routing, **how):
        run(phase)
    return routing.chosen(len(logits))


def test_the_largest_logits_are_chosen_and_of_equal_ones_the_first(rng):
    logits = rng.integers(0, 6, (200, 20)).astype(np.float32)
    chosen, _ = routed(logits, 5)
    assert np.array_equal(chosen, np.argsort(-logits, axis=1, kind="stable")[:, :5])


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "softmax of the chosen"])
@pytest.mark.parametrize("at", [0, 2, 7])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_poisons_its_token_alone(gating, at, value):
    logits = np.arange(24, dtype=np.float32).reshape(3, 8) % 5
    logits[1, at] = value
    chosen, weights = routed(logits, 3, gating=gating, normalized=True)
    assert np.isnan(weights[1]).all()
    assert np.isfinite(weights[[0, 2]]).all()
    assert ((chosen >= 0) & (chosen < 8)).all()


def test_all_logits_nan():
    chosen, weights = routed(np.full((2, 4), np.nan), 3)
    assert np.isnan(weights).all()
    assert ((chosen >= 0) & (chosen < 4)).all()


@pytest.mark.parametrize("n", [1, 20])
def test_nan_and_infinity_stay(isa, rng, n):
    for clamp in ((), (1.702, 7.0)):
        case = ExpertCase(rng, n=n, dim=32, n_ff=32, n_experts=2, n_used=2, clamp=clamp)
        sound = case.run()
        case.h[0, 3] = np.nan
        got = case.run()
        assert np.isnan(got[0]).all()
        assert np.array_equal(got[1:], sound[1:])


def test_small_sums_of_weights_are_raised_as_in_llama_cpp():
    logits = np.full((1, 3), -30, np.float32)
    _, weights = routed(logits, 2, gating="sigmoid", normalized=True)
    assert np.allclose(weights, np.exp(-30) / 6.103515625e-5, rtol=1e-4)


# ---- refusals ----


@pytest.mark.parametrize(("n_experts", "n_used"), [(0, 0), (4, 0), (4, 5), (0, 1)])
def test_a_routing_needs_as_many_experts_as_it_chooses(n_experts, n_used):
    with pytest.raises(ValueError, match=f"{n_used} of {n_experts} experts"):
        Routing(3, n_experts, n_used)


def test_wrong_shapes_are_refused(rng):
    data = np.stack([raw_weights("F32", 32, 16, rng) for _ in range(3)])
    w, routing = pack_experts(data, "F32", 16), Routing(4, 3, 2)
    q8 = _kernels.Activations(8, 32)
    x, out = np.zeros((8, 16), np.float32), np.zeros((8, 32), np.float32)
    with pytest.raises(ValueError, match="no experts"):
        _experts.ExpertMatrix([], "F32", 16, allocate(0))
    with pytest.raises(ValueError, match="expert 2 has 31 rows, expected 32"):
        _experts.ExpertMatrix([*data[:2], data[2][:31]], "F32", 16, allocate(3 * 32 * 64))
    with pytest.raises(ValueError, match="bytes for the interleaved matrices"):
        _experts.ExpertMatrix(list(data), "F32", 16, allocate(64))
    with pytest.raises(ValueError, match="columns of"):
        _experts.gate_up(routing, w, w, x[:7], q8, out)
    with pytest.raises(ValueError, match="a bias of"):
        _experts.gate_up(routing, w, w, x, q8, out, None, np.zeros((3, 31), np.float32))
    with pytest.raises(ValueError, match="matrices of 3 experts, expected 4"):
        _experts.down(Routing(4, 4, 2), w, x, q8, out)
    with pytest.raises(ValueError, match="out is"):
        _experts.down(routing, w, x, q8, out[:, :31].copy())
    with pytest.raises(ValueError, match="logits"):
        route(np.zeros((5, 3), np.float32), routing, "softmax", True, 1.0)
    with pytest.raises(ValueError, match="'hard'"):
        route(np.zeros((4, 3), np.float32), routing, "hard", True, 1.0)
