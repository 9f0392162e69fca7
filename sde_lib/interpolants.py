r"""Stochastic interpolants: a third coefficient beside a path's two, for ends that are joined in any way (Albergo et al. 2023, 2303.08797).

    x_t = alpha(t) x_0 + sigma(t) x_1 + gamma(t) z,   z ~ N(0, I) independent of (x_0, x_1),       gamma^2 = constant^2 + bridge^2 (t/T)(1 - t/T).

| constant | bridge | partners                          | what it is                                                                       |
|----------|--------|-----------------------------------|----------------------------------------------------------------------------------|
| 0        | 0      | any                               | the path itself; rectified flow on Linear                                        |
| s        | 0      | any                               | I-CFM and OT-CFM (Tong et al. 2023, 2302.00482, eq. 14-16: s = 0.1)               |
| 0        | s      | entropic, regularization 2 s^2    | [SF]2M, the Schroedinger bridge of Brownian motion of scale s (2307.03672, eq. 10) |
| 0        | 2^0.5  | any                               | Albergo et al., section 3: gamma = sqrt(2 t (1 - t))                              |

The velocity is E[alpha' x_0 + sigma' x_1 + gamma' z | x_t], the score -E[z | x_t] / gamma, whatever the coupling: with both, for any D(t) >= 0,

    dx = (v - D score) dt + sqrt(2 D) dw,      from T to 0, has the marginals of x_t;       D = bridge^2/2 is the Schroedinger bridge's (T = 1).
"""

from jaxtyping import Array, Float

from sde_lib.numerics import as_time, derivative, expand, namespace
from sde_lib.paths import Linear, path, require
from sde_lib.sde import SDE, Time

Points = Float[Array, "b ..."]
NEAR = 1e-3  # share of the time at both ends that a bridge leaves out, where gamma' is infinite


@path
class Interpolant:
    """sde: of alpha and sigma. constant, bridge: of gamma. Raises ValueError if one of them is negative."""

    sde: SDE = Linear()
    constant: float = 0.0
    bridge: float = 0.0

    def __post_init__(self):
        require(self.constant >= 0 and self.bridge >= 0, self, "constant >= 0 and bridge >= 0")

    def variance(self, t: Time):
        """gamma(t)^2."""
        u = as_time(t) / self.sde.T
        return self.constant**2 + self.bridge**2 * u * (1 - u)

    def gamma(self, t: Time):
        """gamma(t), shaped as t."""
        variance = self.variance(t)
        return namespace(variance).sqrt(variance)

    def gamma_dot(self, t: Time):
        """d gamma / dt; infinite at both ends of a bridge without a constant part."""
        return derivative(self.variance, t) / (2 * self.gamma(t)) if self.bridge else 0.0 * as_time(t)

    def point(self, x0: Points, x1: Points, z: Points, t: Float[Array, " b"]) -> Points:
        """x_t."""
        return expand(self.sde.alpha(t), x0) * x0 + expand(self.sde.sigma(t), x0) * x1 + expand(self.gamma(t), x0) * z

    def velocity(self, x0: Points, x1: Points, z: Points, t: Float[Array, " b"]) -> Points:
        """dx_t/dt along one interpolant: what the velocity is regressed on."""
        return expand(self.sde.alpha_dot(t), x0) * x0 + expand(self.sde.sigma_dot(t), x0) * x1 + expand(self.gamma_dot(t), x0) * z

    def score(self, z: Points, t: Float[Array, " b"]) -> Points:
        """The score of x_t, of E[z | x_t]. [SF]2M's is regressed on -z/gamma, in the weighting gamma^2 (2307.03672, eq. 12 up to a constant)."""
        return -z / expand(self.gamma(t), z)
