"""The judge is judged: by loops over plain floats, by properties of LLaMA's definition, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from tests.reference import Reference, relative_error, rotate, round_q8
from tests.support.model_files import encode, vocabulary, write_llama

IDS = [1, 260, 275, 261, 262, 275, 287, 30, 260]


def _logits_by_loops(path, ids):
    """Two heads, one KV head, one layer, no biases: LLaMA with `math` and lists alone."""
    reader = GGUFReader(path)
    w = {t.name.removesuffix(".weight"): t.data.astype(float).tolist() for t in reader.tensors}
    head_dim, n_heads = 4, 2
    eps = float(np.float32(1e-5))  # as the file holds it

    def norm(x, gain):
        rms = math.sqrt(sum(a * a for a in x) / len(x) + eps)
        return [a / rms * g for a, g in zip(x, gain, strict=True)]

    def matvec(matrix, x):
        return [sum(a * b for a, b in zip(row, x, strict=True)) for row in matrix]

    def rotated(head, position):
        out = []
        for i in range(head_dim // 2):
            angle = position * 10000.0 ** (-2 * i / head_dim)
            z = complex(head[2 * i], head[2 * i + 1]) * complex(math.cos(angle), math.sin(angle))
            out += [z.real, z.imag]
        return out

    keys, values, rows = [], [], []
    for position, token in enumerate(ids):
        x = w["token_embd"][token]
        h = norm(x, w["blk.0.attn_norm"])
        q = matvec(w["blk.0.attn_q"], h)
        keys.append(rotated(matvec(w["blk.0.attn_k"], h), position))
        values.append(matvec(w["blk.0.attn_v"], h))
        heads = []
        for head in range(n_heads):
            query = rotated(q[head * head_dim : (head + 1) * head_dim], position)
            scores = [sum(a * b for a, b in zip(query, k, strict=True)) / 2 for k in keys]
            e = [math.exp(s) for s in scores]
            heads += [
                sum(p * v[i] for p, v in zip(e, values, strict=True)) / sum(e)
                for i in range(head_dim)
            ]
        x = [a + b for a, b in zip(x, matvec(w["blk.0.attn_output"], heads), strict=True)]
        h = norm(x, w["blk.0.ffn_norm"])
        gate, up = matvec(w["blk.0.ffn_gate"], h), matvec(w["blk.0.ffn_up"], h)
        h = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)]
        x = [a + b for a, b in zip(x, matvec(w["blk.0.ffn_down"], h), strict=True)]
        rows.append(matvec(w["output"], norm(x, w["output_norm"])))
    return np.array(rows)


def test_agrees_with_plain_loops(tmp_path):
    path = write_llama(
        tmp_path / "m.gguf", dim=8, n_layers=1, n_heads=2, n_kv_heads=1, n_ff=6, n_vocab=40
    )
    ids = [1, 20, 33, 7, 20]
    assert relative_error(Reference(path).logits(ids), _logits_by_loops(path, ids)) < 1e-13


def test_models_are_fit_to_show_errors(tmp_path):
    """Logits of order 1 to 5; an error of one position, or of 1 % in all, is far above 1e-5."""
    for kwargs in ({}, {"tied": True}, {"biases": True, "head_dim": 24, "head_dim_v": 40}):
        reference = Reference(write_llama(tmp_path / "m.gguf", **kwargs))
        logits = reference.logits(IDS)
        assert np.isfinite(logits).all()
        assert 1 < logits.std() < 5
        late = np.arange(len(IDS))
        late[4:] += 1
        assert relative_error(reference.logits(IDS, late), logits) > 0.03
        assert relative_error(reference.logits(IDS, 1.01 * np.arange(len(IDS))), logits) > 1e-4


def test_a_token_sees_only_the_past(tmp_path):
    reference = Reference(write_llama(tmp_path / "m.gguf"))
    whole = reference.logits(IDS)
    assert relative_error(reference.logits(IDS[:5]), whole[:5]) < 1e-13
    changed = reference.logits([259, *IDS[1:]])
    assert all(relative_error(a, b) > 1e-3 for a, b in zip(changed, whole, strict=True))


def test_only_distances_matter_to_rope(tmp_path):
    reference = Reference(write_llama(tmp_path / "m.gguf"))
    there = reference.logits(IDS, np.arange(len(IDS)) + 1000)
    assert relative_error(there, reference.logits(IDS)) < 1e-9


def test_tokens_go_on_behind_keys_and_values_of_others(tmp_path):
    reference = Reference(write_llama(tmp_path / "m.gguf", head_dim_v=6))
    past = reference.cached(IDS[:5])
    whole = reference.logits(IDS)
    assert relative_error(reference.logits(IDS[5:], past=past), whole[5:]) < 1e-13
    order = [0, 2, 1, 3, 4]
    swapped = [(k[order], v[order]) for k, v in past]
    assert relative_error(reference.logits(IDS[5:], past=swapped), whole[5:]) > 1e-3


def test_a_layer_without_rope_sees_all_tokens_at_one_position(tmp_path):
    path = write_llama(tmp_path / "m.gguf")
    at_one = Reference(path).logits(IDS, np.full(len(IDS), 3))
    assert relative_error(Reference(path, layers=[None, None]).logits(IDS), at_one) < 1e-13
    for layers in ([None, {}], [{}, None]):
        assert relative_error(Reference(path, layers=layers).logits(IDS), at_one) > 1e-3


def test_settings_of_layers_replace_those_of_the_model(tmp_path):
    path = write_llama(tmp_path / "m.gguf", rope_freqs=[2.0] * 8)
    own = {"freq_base": 100.0}
    expected = Reference(path, rope=own).logits(IDS)
    assert np.array_equal(Reference(path, layers=[own, own]).logits(IDS), expected)
    assert relative_error(Reference(path, layers=[own, {}]).logits(IDS), expected) > 1e-3
    plain = Reference(write_llama(tmp_path / "plain.gguf")).logits(IDS)
    no_factors = [{"use_factors": False}] * 2
    assert np.array_equal(Reference(path, layers=no_factors).logits(IDS), plain)


def test_grouped_heads_equal_repeated_heads(tmp_path):
    """Four query heads on two KV heads are four on four in which each KV head stands twice."""
    shape = {"dim": 64, "n_heads": 4, "biases": True}
    grouped = write_llama(tmp_path / "gqa.gguf", n_kv_heads=2, **shape)
    copies = {}
    for tensor in GGUFReader(grouped).tensors:
        values = tensor.data
        if "attn_k." in tensor.name or "attn_v." in tensor.name:
            heads = values.reshape(2, 16, -1)
            values = np.repeat(heads, 2, axis=0).reshape(64, *values.shape[1:])
        copies[tensor.name] = np.array(values)
    repeated = write_llama(tmp_path / "mha.gguf", n_kv_heads=4, extra_tensors=copies, **shape)
    a, b = Reference(repeated).logits(IDS), Reference(grouped).logits(IDS)
    assert relative_error(a, b) < 1e-13


def test_tied_output_is_the_embedding(tmp_path):
    tied = Reference(write_llama(tmp_path / "tied.gguf", tied=True))
    embedding = tied.weights["token_embd.weight"].astype(np.float32)
    path = write_llama(
        tmp_path / "m.gguf", tied=True, extra_tensors={"output.weight": embedding.copy()}
    )
    assert np.array_equal(Reference(path).logits(IDS), tied.logits(IDS))


def test_scaling_and_factors_act_on_the_angle(tmp_path):
    """Linear scaling by 4, and factors that are all 4, both mean a quarter of the position."""
    plain = Reference(write_llama(tmp_path / "a.gguf")).logits(IDS, np.arange(len(IDS)) / 4)
    linear = Reference(write_llama(tmp_path / "b.gguf", rope_scale=4.0)).logits(IDS)
    factors = Reference(write_llama(tmp_path / "c.gguf", rope_freqs=[4.0] * 8)).logits(IDS)
    assert relative_error(linear, plain) < 1e-13
    assert relative_error(factors, plain) < 1e-13


def test_factors_go_pair_by_pair(tmp_path):
    """A huge factor stops a pair: with all pairs but the first stopped, rope_dim might be 2."""
    factors = [1.0] + [1e30] * 7
    stopped = Reference(write_llama(tmp_path / "a.gguf", rope_freqs=factors)).logits(IDS)
    short = Reference(write_llama(tmp_path / "b.gguf", rope_dim=2)).logits(IDS)
    assert relative_error(stopped, short) < 1e-13


def test_biases_are_added_to_every_matrix(tmp_path):
    base = Reference(write_llama(tmp_path / "m.gguf", biases=True)).logits(IDS)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        path = write_llama(tmp_path / "less.gguf", biases=True, drop_tensors=[f"blk.1.{name}.bias"])
        assert relative_error(Reference(path).logits(IDS), base) > 1e-3, name


def test_key_and_value_lengths_of_their_own(tmp_path):
    path = write_llama(tmp_path / "m.gguf", head_dim=10, head_dim_v=6, rope_dim=4)
    reference = Reference(path)
    assert (reference.head_dim, reference.head_dim_v, reference.rope_dim) == (10, 6, 4)
    assert reference.weights["blk.0.attn_output.weight"].shape == (64, 4 * 6)
    assert reference.logits(IDS).shape == (len(IDS), 288)


def test_qwen2_is_llama_with_its_pairs_elsewhere(tmp_path):
    """Rows of q and k in another order, and biases with them, make a `llama` of a `qwen2`."""
    qwen2 = write_llama(tmp_path / "a.gguf", arch="qwen2")
    tensors = {t.name: np.array(t.data) for t in GGUFReader(qwen2).tensors}
    order = np.arange(16).reshape(2, 8).T.reshape(-1)  # of a head: 0, 8, 1, 9, ...
    for name in tensors:
        if "attn_q." in name or "attn_k." in name:
            heads = tensors[name].reshape(-1, 16, *tensors[name].shape[1:])
            tensors[name] = heads[:, order].reshape(tensors[name].shape)
    llama = write_llama(tmp_path / "b.gguf", extra_tensors=tensors)
    expected = Reference(llama).logits(IDS)
    assert relative_error(Reference(qwen2).logits(IDS), expected) < 1e-13
    no_bias = write_llama(tmp_path / "c.gguf", arch="qwen2", drop_tensors=["blk.1.attn_k.bias"])
    assert relative_error(Reference(no_bias).logits(IDS), expected) > 1e-3


def test_pairs_half_the_rotated_dims_apart_rotate_like_complex_numbers():
    x = np.random.default_rng(0).standard_normal((5, 3, 10))
    angle = np.arange(5)[:, None] * np.array([1.0, 0.3, 0.01])
    got = rotate(x, np.cos(angle), np.sin(angle), neox=True)
    z = (x[..., :3] + 1j * x[..., 3:6]) * np.exp(1j * angle)[:, None]
    expected = np.concatenate([z.real, z.imag, x[..., 6:]], axis=-1)
    assert relative_error(got, expected) < 1e-15


def test_qwen3_norms_each_head_of_q_and_k(tmp_path):
    """So the size of a head of Wq or Wk is lost, and the weight of the norm takes its place."""
    shape = {"arch": "qwen3", "head_dim": 10, "norm_eps": 0.0}
    path = write_llama(tmp_path / "a.gguf", **shape)
    tensors = {t.name: np.array(t.data) for t in GGUFReader(path).tensors}
    expected = Reference(path).logits(IDS)
    q, k = (f"blk.0.attn_{name}.weight" for name in "qk")
    scale = np.repeat([2, 0.25, 8, 1], 10)[:, None]  # one number a head of q
    larger = {q: np.float32(scale * tensors[q]), k: 4 * tensors[k]}
    path = write_llama(tmp_path / "b.gguf", **shape, extra_tensors=larger)
    assert relative_error(Reference(path).logits(IDS), expected) < 1e-13
    for name in ("q_norm", "k_norm"):
        twice = {f"blk.0.attn_{name}.weight": 2 * tensors[f"blk.0.attn_{name}.weight"]}
        path = write_llama(tmp_path / "c.gguf", **shape, extra_tensors=twice)
        assert relative_error(Reference(path).logits(IDS), expected) > 1e-3


# Bounds on the relative error of quantized weights that are normally distributed.
@pytest.mark.parametrize(
    ("type_name", "low", "high"),
    [
        ("F32", 0.0, 0.0),
        ("F16", 1e-5, 5e-4),
        ("BF16", 1e-4, 4e-3),
        ("Q8_0", 1e-3, 1e-2),
        ("Q6_K", 1e-2, 3e-2),
        ("Q4_1", 0.05, 0.12),
        ("Q4_0", 0.05, 0.12),
        ("Q5_0", 0.02, 0.06),
        ("Q5_1", 0.02, 0.06),
        ("MXFP4", 0.08, 0.2),
        ("TQ2_0", 0.3, 0.85),
        ("TQ1_0", 0.3, 0.85),
    ],
)
def test_weights_survive_their_type(type_name, low, high):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 512)) * np.geomspace(1e-3, 10, 6)[:, None]
    values = values.astype(np.float32)
    values[2, :256] = 0  # a block of zeros must not divide by its scale
    raw = encode(values, type_name)
    back = dequantize(raw, GGMLQuantizationType[type_name])
    assert low <= relative_error(back, values) <= high
    assert not back[2, :256].any()


IQ = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M")


@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS", *IQ])
def test_types_that_cannot_be_written_get_weights_of_the_same_size(type_name):
    values = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32) / 16
    back = dequantize(encode(values, type_name), GGMLQuantizationType[type_name])
    assert back.shape == values.shape
    assert np.sqrt(np.mean(back**2)) == pytest.approx(1 / 16, rel=0.02)
    assert abs(back.mean()) < 0.2 / 16
    other = dequantize(encode(-values, type_name), GGMLQuantizationType[type_name])
    assert not np.array_equal(back, other)


def test_types_are_where_they_were_asked_for(tmp_path):
    path = write_llama(
        tmp_path / "m.gguf",
        dim=256,
        n_ff=172,
        weight_type="Q4_0",
        output_type="Q6_K",
        type_of={"blk.0.ffn_up": "Q4_1", "attn_v": "Q4_K"},
        biases=True,
        version=2,
    )
    reader = GGUFReader(path)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert reader.fields["GGUF.version"].contents() == 2
    assert types["token_embd.weight"] == types["blk.1.ffn_up.weight"] == "Q4_0"
    assert types["output.weight"] == "Q6_K"
    assert types["blk.0.ffn_up.weight"] == "Q4_1"
    assert types["blk.0.attn_v.weight"] == "Q4_K"
    # 172 is not a multiple of 32.
    assert types["blk.0.ffn_down.weight"] == types["blk.0.attn_q.bias"] == "F32"


def test_metadata_and_tensors_can_be_spoiled(tmp_path):
    path = write_llama(
        tmp_path / "m.gguf",
        metadata={
            "general.architecture": "gpt2",
            "llama.block_count": None,
            "general.alignment": 64,
            "some.list": [1.5, 2.5],
            "some.text": "",
        },
        drop_tensors=["output.weight"],
        extra_tensors={"odd": np.zeros(3, np.float32), "odd2": (np.ones((2, 32)), "Q8_0")},
    )
    reader = GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "gpt2"
    assert "llama.block_count" not in reader.fields
    assert reader.fields["some.list"].contents() == [1.5, 2.5]
    assert reader.fields["some.text"].contents() == ""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert "output.weight" not in tensors
    assert tensors["odd2"].tensor_type.name == "Q8_0"
    assert all(tensor.data_offset % 64 == 0 for tensor in reader.tensors)


@pytest.mark.parametrize("n_vocab", [40, 288, 1000, 5000])
def test_vocabulary(n_vocab):
    tokens, scores, types = vocabulary(n_vocab)
    assert len(tokens) == len(scores) == len(types) == len(set(tokens)) == n_vocab
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert types[:4] == [2, 3, 3, 6]
    pieces = scores[259:]
    assert len(set(pieces)) == len(pieces)
    assert n_vocab < 288 or {"▁", "e", "z"} <= set(tokens)


def test_round_q8_by_hand():
    x = np.zeros((1, 64))
    # The scale of the first block is exactly 1: 0.5 and 2.5 go to the even neighbour.
    x[0, :5] = [-127.0, 0.5, 1.5, 2.5, 0.2]
    rounded = round_q8(x)
    assert rounded[0, :5].tolist() == [-127.0, 0.0, 2.0, 2.0, 0.0]
    assert not rounded[0, 5:].any()  # the second block is zero: its scale is 0, not NaN


@pytest.mark.parametrize("short_scale", [False, True])
def test_round_q8_error(short_scale):
    x = np.random.default_rng(0).standard_normal((5, 96)) * np.geomspace(1e-30, 1e30, 5)[:, None]
    rounded = round_q8(x, short_scale)
    largest = np.abs(x.reshape(5, 3, 32)).max(axis=2, keepdims=True)
    step = largest / 127 * (0.5 + 1e-4) + (largest * 2**-11 if short_scale else 0)
    assert (np.abs(rounded - x).reshape(5, 3, 32) <= step).all()
    if short_scale:
        # In f16's own range the scale is what a cast to f16 gives.
        scale = np.float32(np.abs(x[2, :32]).max()) / np.float32(127)
        assert np.abs(rounded[2, :32]).max() == float(np.float16(scale)) * 127


def test_rounding_is_for_quantized_matrices_alone(tmp_path):
    f16 = write_llama(tmp_path / "f16.gguf", weight_type="F16")
    q8 = write_llama(tmp_path / "q8.gguf", weight_type="Q8_0")
    assert np.array_equal(Reference(f16, "q8").logits(IDS), Reference(f16).logits(IDS))
    exact, rounded = Reference(q8).logits(IDS), Reference(q8, "q8").logits(IDS)
    assert 1e-3 < relative_error(rounded, exact) < 0.05
    assert 1e-5 < relative_error(Reference(q8, "q8_f16").logits(IDS), rounded) < 0.05
    with pytest.raises(ValueError, match="q7"):
        Reference(q8, "q7")


def test_relative_error_is_relative_to_the_second():
    b = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert relative_error(b, b) == 0.0
    assert relative_error(b * 1.01, b) == pytest.approx(0.01)
    assert relative_error(b + np.array([[0, 0], [0, 0.5]]), b) == pytest.approx(0.1)
    assert relative_error(2 * b, b) == 1.0
    assert relative_error(b, 2 * b) == 0.5


def test_relative_error_lets_no_nonsense_pass():
    b = np.ones(3)
    for bad in (np.nan, np.inf, -np.inf):
        spoiled = np.array([1.0, bad, 1.0])
        assert relative_error(spoiled, b) == np.inf
        assert relative_error(b, spoiled) == np.inf
        assert relative_error(spoiled, spoiled) == np.inf
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(b, np.zeros(3)) == np.inf
    with pytest.raises(ValueError, match="shapes"):
        relative_error(np.ones((3, 1)), b)
