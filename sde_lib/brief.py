"""Texts of a line or two for values that hold arrays."""

import math

import jax
import numpy as np


def shape_of(a) -> str:
    """Type and shape of an array, traced or not, as float32[64, 2]."""
    return f"{getattr(a, 'dtype', type(a).__name__)}[{', '.join(map(str, np.shape(a)))}]"


def known(a) -> np.ndarray | None:
    """The array on the host, or None if its values cannot be read here.

    That is so where it is traced, deleted, on another host, or no array of numbers."""
    try:
        values = np.asarray(a)
    except Exception:  # a text must never fail: arrays of JAX have many ways to be unreadable
        return None
    return values if values.dtype.kind in "bifuV" and values.dtype.names is None else None


def count(tree) -> int:
    """Numbers in the arrays of a pytree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def text(a) -> str:
    """A scalar as it is; of values [B] their mean and its standard error, or how many are True; of
    other arrays type and shape."""
    values = known(a)
    if values is None or values.ndim > 1 or values.size == 0:
        return shape_of(a)
    if values.dtype == bool:
        return f"{values.sum()} of {values.size}" if values.ndim else str(values)
    values = values.astype(np.float64)
    if values.ndim == 0:
        return f"{values:.5g}"
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "not finite"
    error = f" ± {finite.std(ddof=1) / np.sqrt(len(finite)):.2g}" if len(finite) > 1 and np.ptp(finite) > 0 else ""
    return f"{finite.mean():.5g}{error}" + (f" of the {len(finite)} of {len(values)} that are finite" if len(finite) < len(values) else "")


def results(self) -> str:
    """`__repr__` of a named tuple of results: a text for each field that is not None."""
    fields = [f"{name}={text(value)}" for name, value in zip(self._fields, self) if value is not None]
    return f"{type(self).__name__}({', '.join(fields)})"
