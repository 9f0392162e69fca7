"""Checks of arguments, each of which ends in one line that names the mend.

They read types and shapes only, so that they hold for traced arrays and cost nothing in compiled
code.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

MEND = "write it with xp = namespace(t) (sde_lib.numerics) and xp.exp, as the paths of sde_lib/paths.py"


def check_key(key) -> None:
    """Raise ValueError for anything but a JAX key, typed or raw, or an array of them."""
    dtype = getattr(key, "dtype", None)
    raw = dtype == np.uint32 and np.ndim(key) > 0
    if dtype is None or not (raw or jnp.issubdtype(dtype, jax.dtypes.prng_key)):
        given = f"{key!r}" if dtype is None else f"an array of {dtype}"
        seed = key if isinstance(key, int) else "seed"
        raise ValueError(f"key = {given:.60}: expected a JAX key; pass key=jax.random.key({seed})")


def check_batch(x, name: str = "x") -> None:
    """Raise ValueError for an array without a batch axis."""
    shape = np.shape(x)
    if len(shape) < 2:
        one = f"{name}[None] for one example" + (f", {name}[:, None] for a batch of numbers" if shape else "")
        raise ValueError(f"{name} of shape {shape}: expected a batch of examples, [B, ...]; pass {one}")


def check_time(t, n: int) -> None:
    """Raise ValueError unless t is one time, or one for each of n examples."""
    if np.shape(t) not in ((), (1,), (n,)):
        raise ValueError(f"times t of shape {np.shape(t)} for {n} examples: expected one time, or one for each example")


def check_cond(cond, n: int, name: str = "cond") -> None:
    """Raise ValueError unless all arrays of the pytree `cond` have a row for each of n examples."""
    for leaf in jax.tree.leaves(cond):
        if np.shape(leaf)[:1] != (n,):
            raise ValueError(
                f"{name} of shape {np.shape(leaf)} for {n} examples: expected a row (a label, an embedding, a measurement) for each, [{n}, ...]; "
                f"jnp.broadcast_to({name}, ({n}, ...)) gives all the same"
            )


def check_path(sde) -> None:
    """Raise ValueError for a path that cannot be used on the host and on the device.

    It lacks alpha, sigma or time, computes with jax.numpy or with NumPy alone, has a `time` that does
    not invert `log_snr`, or is a class."""
    if isinstance(sde, type):
        raise ValueError(f"sde = {sde.__name__}, a class: expected a path; pass {sde.__name__}()")
    if not callable(getattr(sde, "log_snr", None)):
        raise ValueError(f"sde = {sde!r:.60}: expected a path of sde_lib, e.g. VP() or Linear()")
    if type(sde).__hash__ is None:
        raise ValueError(f"{type(sde).__name__} has no hash: make it a frozen dataclass, with the decorator sde_lib.paths.path")
    _check_path(sde)


@lru_cache(maxsize=256)
def _check_path(sde) -> None:
    of, t = type(sde).__name__, np.array([0.3, 0.6]) * sde.T
    for name in ("alpha", "sigma", "time"):
        try:
            at = t if name != "time" else np.log(sde.alpha(t)) - np.log(sde.sigma(t))
            value = getattr(sde, name)(at)
            jax.eval_shape(getattr(sde, name), jax.ShapeDtypeStruct(t.shape, jnp.float32))
        except TypeError as error:  # of math.exp for arrays, and of NumPy for traced ones
            raise ValueError(f"{of}.{name} is not of NumPy and JAX both ({str(error).splitlines()[0]:.60}): {MEND}") from None
        if isinstance(value, jax.Array):
            raise ValueError(f"{of}.{name} computes with jax.numpy on the host, where tables and grids are made in float64: {MEND}")
    if not np.allclose(value, t, rtol=1e-3, atol=1e-3 * sde.T):
        raise ValueError(f"{of}.time(log_snr) gives {value} at the log-SNR of t = {t}: expected the inverse of log_snr(t) = log(alpha(t)/sigma(t))")
