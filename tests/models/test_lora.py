"""Low-rank adapters: merged is unmerged, of dense layers and convolutions; only what is meant is adapted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import models
from models import lora


class Layers(nn.Module):
    """A convolution, a table and a dense layer."""

    @nn.compact
    def __call__(self, x, label):
        h = nn.Conv(5, (3, 3), strides=2)(x).mean((1, 2))
        return nn.Dense(4)(h + nn.Embed(3, 5)(label))


def trained(key, params, pattern, rank):
    """An adapter whose b is not zero any more."""
    leaves, tree = jax.tree.flatten(lora.init(key, params, pattern, rank))
    return jax.tree.unflatten(tree, [leaf + jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, jax.random.split(key, len(leaves)))])


def test_merged_is_the_layers_plus_their_low_rank_paths():
    """x W + s (x a) b, with the second path written out: two convolutions, two products, a narrow table and a product."""
    x, label = jax.random.normal(jax.random.key(0), (2, 6, 6, 3)), jnp.array([0, 2])
    params = jax.jit(Layers().init)(jax.random.key(1), x, label)["params"]
    adapter, s = trained(jax.random.key(2), params, "kernel|embedding", 2), 0.7
    of = lambda path: (flatten_dict(adapter, sep="/")[f"{path}/a"], flatten_dict(adapter, sep="/")[f"{path}/b"])
    conv = lambda x, kernel, strides: jax.lax.conv_general_dilated(x, kernel, (strides,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    a, b = of("Conv_0/kernel")
    assert a.shape == (3, 3, 3, 2) and b.shape == (1, 1, 2, 5)
    p = params["Conv_0"]
    h = (conv(x, p["kernel"], 2) + p["bias"] + s * conv(conv(x, a, 2), b, 1)).mean((1, 2))
    a, b = of("Embed_0/embedding")
    h = h + params["Embed_0"]["embedding"][label] + s * a[label] @ b
    a, b = of("Dense_0/kernel")
    expected = h @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"] + s * (h @ a) @ b
    found = Layers().apply({"params": lora.merge(params, adapter, s)}, x, label)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - Layers().apply({"params": params}, x, label)).max() > 0.1


def test_a_new_adapter_changes_nothing_and_adapts_what_matches():
    net = models.DiT(width=16, depth=2, num_heads=2)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))["params"]
    adapter = lora.init(jax.random.key(1), params, "DiTBlock_1/Dense", 3)
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, adapter, 5.0), params)
    assert {name.rpartition("/")[0] for name in flatten_dict(adapter, sep="/")} == {f"DiTBlock_1/Dense_{i}/kernel" for i in range(5)}
    more = lora.init(jax.random.key(1), params, "Block_", 3)  # the same places begin the same, whatever else is adapted
    jax.tree.map(np.testing.assert_array_equal, more["DiTBlock_1"], adapter["DiTBlock_1"])


def test_adapters_add_up():
    """theta + l1 tau1 + l2 tau2, in any order; other places stay as they are."""
    params = Layers().init(jax.random.key(1), jnp.zeros((1, 6, 6, 3)), jnp.zeros(1, int))["params"]
    one, two = (trained(jax.random.key(i), params, pattern, i) for i, pattern in ((2, "kernel"), (3, "Dense")))
    both = lora.merge(lora.merge(params, one, 0.5), two, -0.25)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both, lora.merge(lora.merge(params, two, -0.25), one, 0.5))
    product = lambda adapter: np.asarray(adapter["Dense_0"]["kernel"]["a"]) @ np.asarray(adapter["Dense_0"]["kernel"]["b"])
    expected = params["Dense_0"]["kernel"] + 0.5 * product(one) - 0.25 * product(two)
    np.testing.assert_allclose(both["Dense_0"]["kernel"], expected, atol=1e-5)
    np.testing.assert_array_equal(both["Dense_0"]["bias"], params["Dense_0"]["bias"])


def test_what_does_not_fit_is_refused():
    params = {"Dense_0": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}
    for pattern, words in (("bias", r"matches no kernel: there are Dense_0/kernel, ... \(1 in all\)"), ("(", "is no regular expression")):
        with pytest.raises(ValueError, match=words):
            lora.init(jax.random.key(0), params, pattern, 2)
    with pytest.raises(ValueError, match="rank 0: expected at least 1"):
        lora.init(jax.random.key(0), params, "kernel", 0)
    adapter = lora.init(jax.random.key(0), params, "kernel", 2)
    for other, words in (
        ({"Dense_1": params["Dense_0"]}, "adapts Dense_0/kernel, which this network has not"),
        ({"Dense_0": {"kernel": jnp.zeros((4, 2))}}, r"factors of Dense_0/kernel are \(4, 2\) and \(2, 3\): .* shape \(4, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            lora.merge(other, adapter, 1.0)
    del adapter["Dense_0"]["kernel"]["b"]
    with pytest.raises(ValueError, match="and nothing: expected"):
        lora.merge(params, adapter, 1.0)
