"""Random draws keyed by example: what example i gets does not depend on how many others are drawn, nor on devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sde_lib.checks import check_key
from sde_lib.numerics import at_least_float32


def example_keys(key, n: int):
    """One key per example, [n].

    key: a single JAX key (typed or raw), folded with 0..n-1; or n typed keys, returned as they are, by which a large job
    split into batches keys each example by its global index.
    Raises ValueError for what is no key, and if an array of keys has another length than n.
    """
    check_key(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
    if key.shape != (n,):
        raise ValueError(f"got {key.shape} keys for {n} examples: pass a single key, or one key per example")
    return key


def normal(key, shape: tuple[int, ...], dtype=None) -> Float[Array, "b ..."]:
    """Standard normal noise of shape [B, ...], example i from its own key (see `example_keys`).

    Noise of a 16-bit dtype is drawn in float32 and then rounded: drawn in bfloat16 its mean would be -0.012.
    """
    if not isinstance(shape, tuple | list) or not shape:
        raise ValueError(f"shape = {shape}: expected that of a batch of examples, (B, ...)")
    dtype = jnp.zeros((), dtype).dtype
    wide = at_least_float32(dtype)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], wide))(example_keys(key, shape[0])).astype(dtype)
