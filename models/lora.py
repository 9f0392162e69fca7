r"""Low-rank adapters of any network (LoRA, Hu et al. 2021, 2106.09685): W + (alpha/r) a b, eq. 3, with b = 0 at the start.

An adapter is a tree as that of the parameters, with {"a", "b"} in the place of each adapted array. A dense kernel or a table of embeddings [in, out]
has a [in, r] and b [r, out]; a convolution's kernel [h, w, in, out] has a [h, w, in, r] and b [1, 1, r, out], a convolution to r channels followed by
one of 1x1. Applying it is merging it: x (W + s a b) = x W + s (x a) b, exactly, and the network need not know.
"""

import math
import re
import zlib

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree


def init(key, params: PyTree, pattern: str, rank: int) -> PyTree:
    """A new adapter of every array of at least two axes whose path, such as DiTBlock_0/Dense_1/kernel, the regular expression `pattern` is found in.

    params: arrays or their shapes. a is Gaussian of variance 1/fan_in, b is zero. An array's a depends on `key` and its own path alone.
    Raises ValueError for a rank below 1, and for a pattern that is not valid, or that nothing matches.
    """
    if rank < 1:
        raise ValueError(f"LoRA of rank {rank}: expected at least 1")
    kernels = {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if leaf.ndim >= 2}
    try:
        matched = [path for path in kernels if re.search(pattern, path)]
    except re.error as error:
        raise ValueError(f"LoRA pattern '{pattern}' is no regular expression ({error})") from None
    if not matched:
        raise ValueError(f"LoRA pattern '{pattern}' matches no kernel: there are {', '.join(list(kernels)[:5])}, ... ({len(kernels)} in all)")
    adapter = {}
    for path in matched:
        *window, fan_in, out = kernels[path].shape
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        adapter[f"{path}/a"] = jax.random.normal(own, (*window, fan_in, rank)) * (math.prod(window) * fan_in) ** -0.5
        adapter[f"{path}/b"] = jnp.zeros((*(1 for _ in window), rank, out))
    return unflatten_dict(adapter, sep="/")


def merge(params: PyTree, adapter: PyTree, scale: float) -> PyTree:
    """params with W + scale a b for each W that `adapter` has; scale: alpha/r times the weight of this adapter.

    Several are merged one after another, as theta + l_1 tau_1 + l_2 tau_2 (LCM-LoRA, Luo et al. 2023, 2311.05556, eq. 9).
    Raises ValueError, by name, for an adapter of another network.
    """
    merged, factors = flatten_dict(params, sep="/"), flatten_dict(adapter, sep="/")
    for path in sorted({name.rpartition("/")[0] for name in factors}):
        a, b = (factors.get(f"{path}/{part}") for part in "ab")
        if path not in merged:
            raise ValueError(f"the LoRA adapts {path}, which this network has not: it was made for another")
        shape = merged[path].shape
        fits = a is not None and b is not None and a.ndim == b.ndim == len(shape) >= 2 and a.shape[-1] == b.shape[-2]
        if not fits or (*a.shape[:-1], b.shape[-1]) != shape or any(n != 1 for n in b.shape[:-2]):
            found = " and ".join("nothing" if part is None else str(part.shape) for part in (a, b))
            raise ValueError(f"the LoRA's factors of {path} are {found}: expected their product to have the shape {shape}")
        merged[path] = merged[path] + scale * jnp.matmul(a, b, precision="highest")
    return unflatten_dict(merged, sep="/")
