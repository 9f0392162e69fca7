r"""Flow maps: a network of two times that jumps along the probability-flow ODE from t to s in one evaluation.

A prediction F(x, t, s) on the plane at t (`sde_lib.denoiser`) is a pair x' and eps' with x = alpha(t) x' + sigma(t) eps', and the jump keeps both:

    X_{s<-t}(x) = alpha(s) x' + sigma(s) eps' = (sigma_s/sigma_t) x + (alpha_s - alpha_t sigma_s/sigma_t) D(x, t, s),    D = x',

the first-order exponential integrator (DDIM, 2010.02502) with a network that sees where it goes. X_{t<-t} = x whatever the network, and D(x, t, t) is
the ordinary denoiser. Consistency models (2303.01469) are s = 0, CTM (2310.02279) and TCD (2402.19159) any s. The mean velocity of MeanFlow
(2505.13447, eq. 3) is (x - X)/(t - s): the same pair with the mean slopes of alpha and sigma between s and t, on the linear path eps' - x', which is
F itself of kind "velocity". Kind "edm" is the preconditioning of EDM on VE and of sCM (2410.11081) on the trigonometric path.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from sde_lib.brief import count, shape_of
from sde_lib.denoiser import MIN_ALPHA, Denoiser, combination
from sde_lib.numerics import as_float, derivative, expand
from sde_lib.sde import SDE, Time

NEAR = 1e-2  # share of t within which s is near


def mean_slope(fn: Callable, t: Float[Array, " b"], s: Float[Array, " b"]) -> Float[Array, " b"]:
    """(fn(t) - fn(s))/(t - s); its derivative midway where t and s are so near that the difference has no digits, off by about 1e-5 of it."""
    near = jnp.abs(t - s) <= NEAR * t
    return jnp.where(near, derivative(fn, (t + s) / 2), (fn(t) - fn(s)) / jnp.where(near, 1.0, t - s))


@partial(jax.tree_util.register_dataclass, data_fields=("fn", "cond"), meta_fields=("sde", "kind", "sigma_data", "final"))
@dataclass(frozen=True)
class FlowMap:
    """A function of two times that predicts a point of the plane at the first, and thereby the jump to the second.

    fn: (x [B, ...], t [B], s [B]) -> F [B, ...], or (x, t, s, cond) -> F if cond is given. sde, kind, sigma_data, cond: as of `Denoiser`.
    final: fn does not look at s: it jumps to the data alone, a consistency function.

    A FlowMap is a pytree. x is [B, ...], t and s, from T to 0, are [] or [B] in all methods; all results are [B, ...].
    Raises ValueError for an unknown kind, and for `noise` and `score` on a path that reaches alpha = 0, where they say nothing of x_0.
    """

    fn: Callable
    sde: SDE
    kind: str = "velocity"
    sigma_data: float = 0.5
    cond: Any = None
    final: bool = False

    def __post_init__(self):
        if self.kind in ("noise", "score") and self.sde.alpha(self.sde.T) < MIN_ALPHA:
            raise ValueError(f"FlowMap of kind '{self.kind}' on {self.sde}: no news of x_0 where alpha = 0; expected data, velocity, v or edm")
        self.towards(0.0)  # its checks
        if callable(self.fn) and not isinstance(self.fn, Partial):
            object.__setattr__(self, "fn", Partial(self.fn))

    def __repr__(self) -> str:
        cond = "" if self.cond is None else f", cond {jax.tree.map(shape_of, self.cond)}"
        final = ", a consistency function" if self.final else ""
        return f"FlowMap(kind={self.kind!r}, sde={self.sde!r:.200}, {count(self.fn):,} numbers in fn{cond}{final})"

    def denoiser(self) -> Denoiser:
        """The Denoiser of fn(x, t, t): no other s gives one. Raises ValueError for a consistency function, which has none."""
        if self.final:
            raise ValueError("a consistency function has no denoiser: expected a function of two times")
        return Denoiser(Partial(_here, self.fn), self.sde, self.kind, self.sigma_data, self.cond)

    def towards(self, s: Time) -> Denoiser:
        """The pair x', eps' of the jump to s, as predictions: its `data` is D(x, t, s). No model of any density unless s is t."""
        return Denoiser(Partial(_towards, self.fn, s), self.sde, self.kind, self.sigma_data, self.cond)

    def raw(self, x: Float[Array, "b ..."], t: Time, s: Time) -> Float[Array, "b ..."]:
        """F, what `fn` returns, in the precision of x."""
        return self.towards(s).raw(as_float(x), t)

    def data(self, x: Float[Array, "b ..."], t: Time, s: Time) -> Float[Array, "b ..."]:
        """D(x, t, s)."""
        return self.towards(s).data(x, t)

    def __call__(self, x: Float[Array, "b ..."], t: Time, s: Time) -> Float[Array, "b ..."]:
        """X_{s<-t}(x)."""
        x, t, s = _at(x, t, s)
        a, b = self.combination(t, (self.sde.alpha(s), self.sde.sigma(s)))
        return expand(a, x) * x + expand(b, x) * self.raw(x, t, s)

    def mean_velocity(self, x: Float[Array, "b ..."], t: Time, s: Time) -> Float[Array, "b ..."]:
        """(x - X_{s<-t}(x))/(t - s), and the velocity at s = t."""
        x, t, s = _at(x, t, s)
        a, b = self.combination(t, self.mean_slopes(t, s))
        return expand(a, x) * x + expand(b, x) * self.raw(x, t, s)

    def combination(self, t: Time, point: tuple):
        """(a, b) in c x' + d eps' = a x + b F; point: (c, d). See `sde_lib.denoiser.combination`."""
        return combination(self.sde, self.kind, t, point, self.sigma_data)

    def mean_slopes(self, t: Float[Array, " b"], s: Float[Array, " b"]):
        """Of alpha and sigma, between s and t: the mean velocity's point of the plane."""
        return mean_slope(self.sde.alpha, t, s), mean_slope(self.sde.sigma, t, s)


def _at(x, t, s):
    x = as_float(x)
    return x, *(jnp.broadcast_to(jnp.asarray(time, x.dtype), x.shape[:1]) for time in (t, s))


def _here(fn, x, t, *cond):
    return fn(x, t, t, *cond)


def _towards(fn, s, x, t, *cond):
    return fn(x, t, jnp.broadcast_to(jnp.asarray(s, t.dtype), t.shape), *cond)
