r"""Linear measurements y = A x + noise of examples x [B, *shape], in the values of x that samplers see (images within [-1, 1], not levels).

What inverse problems need of A: A x, A^T y and (A A^T + c I)^+ y. All of them here have A A^T in closed form, so that nothing is iterated:

    inpainting          A picks entries of x                          A A^T = I
    separable           A = K_1 x K_2 x ... , a matrix for each axis  A A^T = U S^2 U^T, from the singular values of each K
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from sde_lib.brief import count
from sde_lib.numerics import as_float

# Directions in which A A^T is less than this part of its largest eigenvalue are taken as not measured: float32 knows nothing of them.
RANK = 1e-6


@partial(jax.tree_util.register_dataclass, data_fields=("apply", "invert"), meta_fields=("shape",))
@dataclass(frozen=True)
class LinearOperator:
    """y = A x. shape: of an example x. apply: x [B, *shape] -> A x [B, ...], linear. invert: (y [B, ...], c) -> (A A^T + c I)^+ y.

    A pytree: apply and invert are `jax.tree_util.Partial`s of arrays.
    """

    shape: tuple[int, ...]
    apply: Callable
    invert: Callable

    def __repr__(self) -> str:
        return f"LinearOperator(shape={self.shape}, {count((self.apply, self.invert)):,} numbers)"

    def forward(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """A x. Raises ValueError for examples of another shape."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x of shape {x.shape}: this operator measures examples of shape {self.shape}, expected [B, *{self.shape}]")
        return self.apply(as_float(x))

    def transpose(self, y: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """A^T y, [B, *shape]."""
        y = as_float(y)
        return jax.linear_transpose(self.apply, jax.ShapeDtypeStruct((len(y), *self.shape), y.dtype))(y)[0]

    def solve(self, y: Float[Array, "b ..."], c=0.0) -> Float[Array, "b ..."]:
        """(A A^T + c I)^+ y; c >= 0: [] or [B]."""
        y = as_float(y)
        c = jnp.asarray(c, y.dtype)
        return self.invert(y, c.reshape(c.shape + (1,) * (y.ndim - 1)) if c.ndim else c)

    def pseudo_inverse(self, y: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """A^+ y = A^T (A A^T)^+ y: the least x that y is the measurement of."""
        return self.transpose(self.solve(y))

    def project(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """A^+ A x: the part of x that is measured."""
        return self.pseudo_inverse(self.forward(x))

    def check(self, y: Float[Array, "b ..."]) -> None:
        """Raise ValueError if y is not of the shape of measurements."""
        x = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        measured = jax.eval_shape(self.apply, x).shape[1:]
        if y.shape[1:] != measured:
            raise ValueError(f"y of shape {y.shape}: expected measurements [B, *{measured}] of examples {self.shape}, e.g. operator.forward(x)")


def _pick(index, x):
    return x.reshape(len(x), -1)[:, index]


def _scaled(y, c):
    return y / (1 + c)


def inpainting(mask: Bool[np.ndarray, "..."]) -> LinearOperator:
    """The entries of x at which mask, of the shape of an example, is True: y [B, m]. Raises ValueError if there is none."""
    mask = np.asarray(mask)
    if mask.dtype != bool or not mask.any():
        raise ValueError(f"inpainting: mask of {mask.dtype} with {np.count_nonzero(mask)} entries that are not 0: expected bool, at least one True")
    return LinearOperator(mask.shape, Partial(_pick, np.flatnonzero(mask)), Partial(_scaled))


def _axes(matrices, x, transpose: bool = False):
    """Each matrix times its axis of x [B, n_1, ..., n_k]."""
    axes = string.ascii_lowercase[: len(matrices)]
    terms = [f"{a}{a.upper()}" if transpose else f"{a.upper()}{a}" for a in axes]
    return jnp.einsum(f"Z{axes},{','.join(terms)}->Z{axes.upper()}", x, *(jnp.asarray(m, x.dtype) for m in matrices), precision="highest")


def _spectral(turns, eigenvalues, y, c):
    eigenvalues = jnp.asarray(eigenvalues, y.dtype)
    known = eigenvalues > 0
    return _axes(turns, _axes(turns, y, transpose=True) * jnp.where(known, 1 / jnp.where(known, eigenvalues + c, 1.0), 0.0))


def separable(matrices: Sequence[Float[np.ndarray, "m n"]]) -> LinearOperator:
    """A matrix [m_i, n_i] for each axis of an example [n_1, ..., n_k]: y [B, m_1, ..., m_k]. Its SVD is that of the matrices, in float64 on the host.

    Raises ValueError for what is no matrix.
    """
    matrices = tuple(np.asarray(m, np.float64) for m in matrices)
    for m in matrices:
        if m.ndim != 2 or not np.all(np.isfinite(m)):
            raise ValueError(f"a matrix of shape {m.shape}: expected [measured, of x], finite")
    svds = [np.linalg.svd(m, full_matrices=len(m) > m.shape[1]) for m in matrices]
    eigenvalues = np.ones(())
    for m, (_, s, _) in zip(matrices, svds):
        eigenvalues = np.multiply.outer(eigenvalues, np.pad(s, (0, len(m) - len(s))) ** 2)
    eigenvalues = np.where(eigenvalues > RANK * eigenvalues.max(), eigenvalues, 0.0)
    shape = tuple(m.shape[1] for m in matrices)
    return LinearOperator(shape, Partial(_axes, matrices), Partial(_spectral, tuple(u for u, _, _ in svds), eigenvalues))


def matrix(a: Float[np.ndarray, "m n"]) -> LinearOperator:
    """Any A [m, n] of examples x [B, n]: y [B, m]."""
    return separable((a,))


def super_resolution(shape: tuple[int, ...], factor: int) -> LinearOperator:
    """Means of factor x factor pixels of images [H, W, C]: y [B, H/factor, W/factor, C]. Raises ValueError if factor does not divide H and W."""
    if len(shape) != 3:
        raise ValueError(f"super_resolution: shape {shape}: expected that of an image, (H, W, C)")
    height, width, channels = shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"super_resolution: factor = {factor}: expected a common divisor of {height} and {width}")
    box = lambda n: np.kron(np.eye(n // factor), np.full((1, factor), 1 / factor))
    return separable((box(height), box(width), np.eye(channels)))


def blur(shape: tuple[int, ...], std: float) -> LinearOperator:
    """Gaussian blur of images [H, W, C], std in pixels, renormalized at the borders: y [B, H, W, C]. Raises ValueError for std not above 0.

    Nearly singular: see `RANK`."""
    if len(shape) != 3:
        raise ValueError(f"blur: shape {shape}: expected that of an image, (H, W, C)")
    if not std > 0:
        raise ValueError(f"blur: std = {std}: expected a number of pixels above 0")

    def kernel(n):
        weights = np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(n)) / std) ** 2)
        return weights / weights.sum(1, keepdims=True)

    height, width, channels = shape
    return separable((kernel(height), kernel(width), np.eye(channels)))


def colorization(shape: tuple[int, ...]) -> LinearOperator:
    """The gray value of images [H, W, 3], the mean of the channels (2011.13456, appendix I.3): y [B, H, W, 1]. Raises ValueError without colour."""
    if len(shape) != 3 or shape[-1] != 3:
        raise ValueError(f"colorization: examples of shape {shape}: expected images [H, W, 3], with colour")
    return separable((np.eye(shape[0]), np.eye(shape[1]), np.full((1, 3), 1 / 3)))
