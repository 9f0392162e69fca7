r"""The prediction plane: what a network predicts is a point F = c(t) x_0 + d(t) eps, and any such point gives every other.

| kind       | c(t)                | d(t)                  | source                                              |
|------------|---------------------|-----------------------|-----------------------------------------------------|
| noise      | 0                   | 1                     | Ho et al. 2020 (2006.11239)                         |
| data       | 1                   | 0                     |                                                     |
| velocity   | alpha'              | sigma'                | flow matching: dx/dt of the probability-flow ODE    |
| score      | 0                   | -1/sigma              | Song et al. 2021 (2011.13456)                       |
| v          | -sigma              | alpha                 | Salimans & Ho 2022 (2202.00512)                     |
| edm        | sigma/(sigma_data S)| -alpha sigma_data / S | Karras et al. 2022, S^2 = alpha^2 sigma_data^2 + sigma^2 |

With x = alpha x_0 + sigma eps known, [x; F] is a 2x2 linear map of [x_0; eps], and any target G = c' x_0 + d' eps is

    G = a x + b F,   a = (c' d - d' c)/det,   b = (alpha d' - sigma c')/det,   det = alpha d - sigma c.

`edm` on the EDM path is the F of 2206.00364, D = c_skip x + c_out F; on any path D = (alpha sigma_data^2/S^2) x + (sigma sigma_data/S) F.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from sde_lib.brief import count, shape_of
from sde_lib.checks import check_batch, check_cond, check_path, check_time
from sde_lib.numerics import as_float, as_time, expand, namespace
from sde_lib.sde import SDE, Time


def _noise(sde, t, sigma_data):
    return 0.0, 1.0


def _data(sde, t, sigma_data):
    return 1.0, 0.0


def _velocity(sde, t, sigma_data):
    return sde.alpha_dot(t), sde.sigma_dot(t)


def _score(sde, t, sigma_data):
    return 0.0, -1.0 / sde.sigma(t)


def _v(sde, t, sigma_data):
    return -sde.sigma(t), sde.alpha(t)


def _edm(sde, t, sigma_data):
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    scale = namespace(sigma).sqrt((alpha * sigma_data) ** 2 + sigma**2)
    return sigma / (sigma_data * scale), -alpha * sigma_data / scale


PLANE = {"noise": _noise, "data": _data, "velocity": _velocity, "score": _score, "v": _v, "edm": _edm}

# The least alpha at which a prediction of the noise (or score) alone is asked for: it says nothing of x_0 where alpha = 0.
MIN_ALPHA = 1e-3


def informed(sde: SDE, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """t, or the last time at which alpha is at least `MIN_ALPHA` if earlier: beyond it x_t tells too little of x_0 for dividing by alpha."""
    if sde.alpha(sde.T) >= MIN_ALPHA:
        return t
    last = sde.time(np.log(MIN_ALPHA) - np.log(sde.sigma(sde.T)))
    return jnp.minimum(t, last.astype(t.dtype))


def plane_point(sde: SDE, kind: str, t: Time, sigma_data: float = 0.5):
    """The coefficients (c, d) of prediction `kind` at times t: F = c x_0 + d eps. Raises ValueError for an unknown kind."""
    if kind not in PLANE:
        raise ValueError(f"unknown kind of prediction '{kind}': expected one of {', '.join(PLANE)}")
    return PLANE[kind](sde, as_time(t), sigma_data)


def combination(sde: SDE, kind: str, t: Time, point: tuple, sigma_data: float = 0.5):
    """The coefficients (a, b) in c' x_0 + d' eps = a x_t + b F, of a prediction F of `kind` at times t; point: (c', d')."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    c, d = plane_point(sde, kind, t, sigma_data)
    c_target, d_target = point
    det = alpha * d - sigma * c
    return (c_target * d - d_target * c) / det, (alpha * d_target - sigma * c_target) / det


@partial(jax.tree_util.register_dataclass, data_fields=("fn", "cond"), meta_fields=("sde", "kind", "sigma_data", "guided", "coupled"))
@dataclass(frozen=True)
class Denoiser:
    """A function that predicts one point of the plane, and thereby all of them.

    fn: (x [B, ...], t [B]) -> F [B, ...], or (x, t, cond) -> F if cond is given. A `jax.tree_util.Partial(apply, params)` keeps
        the parameters an argument of compiled code: no recompilation when they change.
    sde: the path. kind: a name in `PLANE`. sigma_data: used by kind "edm" only.
    cond: what each example is conditioned on, a pytree of arrays [B, ...], or None.
    guided: its field is no model's any more (`samplers.guidance`), so that no likelihood is computed with it.
    coupled: eps was not independent of x_0 in training (`experiments.couplings`), or not all of the noise (`sde_lib.interpolants`): the plane and the
        flow stand, but -eps/sigma is no score.

    A Denoiser is a pytree. x is [B, ...] and t [] or [B] in all methods; all results are [B, ...], float32, or float64
    where x is. A network that computes in 16 bits casts its input itself; what is computed of its output is not rounded.
    A `noise` or `score` prediction holds no information on x_0 where alpha = 0, so these are evaluated at the last time at which
    alpha is at least 1e-3 (of paths that reach alpha = 0). An exact prediction is off by that much there; the error of a learned one counts
    1/alpha times in the data, so that `data`, `velocity`, `v` or `edm` are the kinds to train on such paths.
    Raises ValueError for an unknown kind, and for a time outside [0, T] that is not a JAX array.
    """

    fn: Callable
    sde: SDE
    kind: str = "noise"
    sigma_data: float = 0.5
    cond: Any = None
    guided: bool = False
    coupled: bool = False

    def __post_init__(self):
        check_path(self.sde)
        if self.kind not in PLANE:
            raise ValueError(f"unknown kind of prediction '{self.kind}': expected one of {', '.join(PLANE)}")
        if callable(self.fn) and not isinstance(self.fn, Partial):
            object.__setattr__(self, "fn", Partial(self.fn))  # a function is static, the leaves of a Partial are not

    def __repr__(self) -> str:
        cond = "" if self.cond is None else f", cond {jax.tree.map(shape_of, self.cond)}"
        said = "".join(f", {name}" for name in ("guided", "coupled") if getattr(self, name))
        return f"Denoiser(kind={self.kind!r}, sde={self.sde!r:.200}, {count(self.fn):,} numbers in fn{cond}{said})"

    def _time(self, x, t):
        check_batch(x)
        check_time(t, len(x))
        if not isinstance(t, jax.Array) and (np.min(t) < 0 or np.max(t) > self.sde.T):  # a JAX array may be traced: not looked at
            raise ValueError(f"t = {t}: expected 0 <= t <= T = {self.sde.T}")
        t = jnp.asarray(t, x.dtype)
        return informed(self.sde, t) if self.kind in ("noise", "score") else t

    def check_uncoupled(self, what: str) -> None:
        """Raises ValueError, naming `what` needs a score, if there is none."""
        if self.coupled:
            raise ValueError(
                f"{what} of a coupled model: noise that was paired with the data, or lies beside both ends, gives no score; expected an ODE (ddim, "
                "heun, adaptive), or of an interpolant --solver=bridge with a --score"
            )

    def raw(self, x: Float[Array, "b ..."], t: Time) -> Float[Array, "b ..."]:
        """F, what `fn` returns, in the precision of x (at least float32, whatever the network computes in)."""
        x = as_float(x)
        t = jnp.broadcast_to(self._time(x, t), x.shape[:1])
        check_cond(self.cond, len(x))
        prediction = self.fn(x, t) if self.cond is None else self.fn(x, t, self.cond)
        return prediction.astype(x.dtype)

    def linear(self, target: str, x: Float[Array, "b ..."], t: Time):
        """The coefficients (a, b), shaped to multiply x, in target = a x + b F."""
        x = as_float(x)
        t = self._time(x, t)
        a, b = combination(self.sde, self.kind, t, plane_point(self.sde, target, t, self.sigma_data), self.sigma_data)
        return expand(a, x), expand(b, x)

    def predict(self, target: str, x: Float[Array, "b ..."], t: Time) -> Float[Array, "b ..."]:
        """The prediction named `target` (a name in `PLANE`). Raises ValueError for the score of a coupled denoiser."""
        if target == "score":
            self.check_uncoupled("score")
        x = as_float(x)
        if target == self.kind:
            return self.raw(x, t)
        a, b = self.linear(target, x, t)
        return a * x + b * self.raw(x, t)

    def data(self, x: Float[Array, "b ..."], t: Time) -> Float[Array, "b ..."]:
        """E[x_0 | x_t], the denoised data."""
        return self.predict("data", x, t)

    def noise(self, x: Float[Array, "b ..."], t: Time) -> Float[Array, "b ..."]:
        """E[eps | x_t]."""
        return self.predict("noise", x, t)

    def score(self, x: Float[Array, "b ..."], t: Time) -> Float[Array, "b ..."]:
        """grad_x log p_t(x) = -E[eps | x_t] / sigma."""
        return self.predict("score", x, t)

    def velocity(self, x: Float[Array, "b ..."], t: Time) -> Float[Array, "b ..."]:
        """dx/dt of the probability-flow ODE, E[alpha' x_0 + sigma' eps | x_t]."""
        return self.predict("velocity", x, t)

    def v(self, x: Float[Array, "b ..."], t: Time) -> Float[Array, "b ..."]:
        """E[alpha eps - sigma x_0 | x_t]."""
        return self.predict("v", x, t)
