r"""DPM-Solver-v3 (Zheng et al. 2023, 2310.13268): an exponential integrator with coefficients l, s, b of each coordinate fitted to a model.

In lambda, with y = x/alpha and any l(lambda), the probability-flow ODE is dy/dlambda = -l y - f, f = (sigma eps - l x)/alpha. With f' ~ s f + b,

    g(lambda) = e^{-S} f - B,    S = \int s,   B = \int e^{-S} b     (from the start of the step)

changes slowly, is interpolated by a polynomial in lambda through the last evaluations, and the rest is integrated exactly (eq. 8 and 9):

    y' = e^{-L} [ y - \int e^{L + S} (g + B) dlambda ],    L = \int l.

l minimizes the part of f that is linear in x, E |sigma d eps/dx - l|^2 on the diagonal (eq. 5); s and b are the least-squares fit of f' along the
flow (eq. 11). l = 1, s = b = 0 is DPM-Solver++ with consistent differences, l = b = 0, s = -1 is DPM-Solver.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.checks import check_denoiser, checked
from samplers.solvers.steps import check, check_final, final_order, first_order, gauss_legendre, leave_prior
from samplers.table import Row, Solver
from sde_lib.brief import shape_of
from sde_lib.denoiser import Denoiser
from sde_lib.noise import normal


@dataclass(frozen=True)
class Statistics:
    """Empirical model statistics: log_snr [K] increasing; l, s, b [K, ...] of each coordinate, float64 on the host.

    Between the K values l, s and b are interpolated linearly; beyond the ends they are constant.
    """

    log_snr: Float[np.ndarray, " k"]
    l: Float[np.ndarray, "k ..."]  # noqa: E741 the paper's name
    s: Float[np.ndarray, "k ..."]
    b: Float[np.ndarray, "k ..."]

    def __repr__(self) -> str:
        return f"Statistics(log_snr {shape_of(self.log_snr)}, l, s, b {shape_of(self.l)})"

    @classmethod
    def constant(cls, log_snr: tuple[float, float], shape: tuple[int, ...], l: float = 1.0, s: float = 0.0) -> "Statistics":  # noqa: E741
        """The same l and s everywhere, b = 0: no statistics. The degenerate case against which fitted ones are measured."""
        zeros = np.zeros((2, *shape))
        return cls(np.array(log_snr), zeros + l, zeros + s, zeros)


def estimate(den: Denoiser, x0: Float[Array, "n ..."], key, log_snr: Float[np.ndarray, " k"], probes: int = 4) -> Statistics:
    """l, s, b of a model (2310.13268, eq. 5 and 11) from data x0 [n, ...] noised to each of the K increasing values of log-SNR.

    The diagonal of the Jacobian is E[z J z] over `probes` Rademacher vectors an example; derivatives along the flow are forward-mode.
    Cost: K n (probes + 1) forward derivatives of the network. The paper takes hundreds of values and thousands of examples.
    """
    check_denoiser(den, "estimate")
    sde, x0 = den.sde, checked(den, x0, "x0", key)
    log_snr = np.asarray(log_snr, np.float64)
    noise_key, probe_key = jax.random.split(key)
    eps0 = normal(noise_key, x0.shape, x0.dtype)

    def at(lam):
        """Coefficients and points at one log-SNR."""
        t = sde.time(lam)
        return t, sde.alpha(t), sde.sigma(t), sde.alpha(t) * x0 + sde.sigma(t) * eps0

    @jax.jit
    def slope_of_noise(lam):
        """E diag(sigma d eps / d x), [...]."""
        t, _, sigma, x = at(lam)
        _, jvp = jax.linearize(lambda x: den.noise(x, t), x)
        draw = lambda k: jax.random.rademacher(k, x.shape, x.dtype)
        diagonal = lambda z: (z * sigma * jvp(z)).mean(0)
        return jax.lax.map(lambda k: diagonal(draw(k)), jax.random.split(probe_key, probes)).mean(0)

    @jax.jit
    def change_of_f(lam, l, l_dot):  # noqa: E741
        """Least squares of df/dlambda on (f, 1) along the flow: s and b, [...]."""
        _, _, _, x = at(lam)

        def f(lam, x, l):  # noqa: E741
            t = sde.time(lam)
            alpha, sigma = sde.alpha(t), sde.sigma(t)
            return (sigma * den.noise(x, t) - l * x) / alpha

        t = sde.time(lam)
        flow = den.velocity(x, t) * jax.jvp(sde.time, (lam,), (jnp.ones_like(lam),))[1]  # dx/dlambda
        value, change = jax.jvp(f, (lam, x, l), (jnp.ones_like(lam), flow, l_dot))
        mean, mean_change = value.mean(0), change.mean(0)
        s = ((value - mean) * (change - mean_change)).mean(0) / jnp.maximum(((value - mean) ** 2).mean(0), 1e-12)
        return s, mean_change - s * mean

    traced = lambda value: jnp.asarray(value, x0.dtype)
    l = np.stack([np.asarray(slope_of_noise(traced(lam)), np.float64) for lam in log_snr])  # noqa: E741
    l_dot = np.gradient(l, log_snr, axis=0)
    fits = [change_of_f(*map(traced, row)) for row in zip(log_snr, l, l_dot)]
    s, b = (np.stack([np.asarray(fit[i], np.float64) for fit in fits]) for i in (0, 1))
    return Statistics(log_snr, l, s, b)


def cumulative(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The integral of y [K, ...] from x[0] to each x, by the trapezoid."""
    steps = 0.5 * (y[1:] + y[:-1]) * np.diff(x).reshape(-1, *[1] * (y.ndim - 1))
    return np.concatenate([np.zeros_like(y[:1]), np.cumsum(steps, 0)])


class Integrals:
    """L, S and the integrand of B of a `Statistics`, at any log-SNR."""

    def __init__(self, statistics: Statistics):
        self.statistics = statistics
        lam = statistics.log_snr
        self.tables = {"l": cumulative(lam, statistics.l), "s": cumulative(lam, statistics.s)}
        # S grows over the whole range: e^-S is taken relative to the start of a step, not of the range

    def between(self, name: str, start: float, ends: np.ndarray) -> np.ndarray:
        """The integral of l or s from `start` to `ends` [N]: [N, ...], exact for their linear interpolants."""
        return self._to(name, np.asarray(ends)) - self._to(name, np.array([start]))

    def value(self, name: str, lam: np.ndarray) -> np.ndarray:
        """The statistic at `lam` [N], interpolated linearly."""
        left, weight = self._place(np.clip(lam, self.statistics.log_snr[0], self.statistics.log_snr[-1]))
        table = getattr(self.statistics, name)
        weight = weight.reshape(-1, *[1] * (table.ndim - 1))
        return table[left] * (1 - weight) + table[left + 1] * weight

    def _place(self, lam):
        grid = self.statistics.log_snr
        left = np.clip(np.searchsorted(grid, lam) - 1, 0, len(grid) - 2)
        return left, (lam - grid[left]) / (grid[left + 1] - grid[left])

    def _to(self, name, lam):
        grid, table = self.statistics.log_snr, getattr(self.statistics, name)
        inside = np.clip(lam, grid[0], grid[-1])
        left, _ = self._place(inside)
        shaped = lambda c: c.reshape(-1, *[1] * (table.ndim - 1))
        within = 0.5 * (table[left] + self.value(name, inside)) * shaped(inside - grid[left])
        return self.tables[name][left] + within + self.value(name, lam) * shaped(lam - inside)

    def b_integral(self, start: float, end: float) -> np.ndarray:
        """B from `start` to `end`: the integral of e^-S b."""
        theta, weight = gauss_legendre(16)
        lam = start + theta * (end - start)
        integrand = np.exp(-self.between("s", start, lam)) * self.value("b", lam)
        return (end - start) * np.tensordot(weight, integrand, 1)


def interpolation(lam: np.ndarray, nodes: list[int], at: np.ndarray, pseudo: bool) -> dict[int, np.ndarray]:
    """What multiplies each node's value in the interpolant at `at`: node -> [N].

    The polynomial through all nodes, by Newton's divided differences about the first one; or, `pseudo`, with (lambda - lambda_0)^i in the place of
    Newton's products, which takes the i-th divided difference for the i-th derivative over i! (2310.13268, appendix: "pseudo-order").
    """
    basis, product = {j: np.zeros_like(at) for j in nodes}, np.ones_like(at)
    for i, node in enumerate(nodes):
        for j in nodes[: i + 1]:
            basis[j] = basis[j] + product / np.prod([lam[j] - lam[k] for k in nodes[: i + 1] if k != j])
        product = product * (at - lam[nodes[0] if pseudo else node])
    return basis


def dpm_solver_v3(
    statistics: Statistics, order: int = 3, corrector: str = "pseudo", lower_order_final: bool | float = False, predictor: str = "polynomial"
) -> Solver:
    """DPM-Solver-v3 of `order` 1 to 3 with the statistics of a model (2310.13268, algorithms 1 and 2).

    One evaluation a step; consumes the noise; deterministic; coefficients of the shape of an example. Started by lower orders.
    predictor: "polynomial" (the authors' default) through the last `order` evaluations, or "pseudo": `interpolation` with
    pseudo, the authors' p_pseudo, of order 2 at most.
    corrector: "pseudo" (the authors' default) interpolates the next evaluation besides the last `order`, by `interpolation`
    with pseudo; it is of order 2 whatever `order` is, and smaller errors in few steps are its purpose. "same" interpolates
    the next evaluation in the place of the oldest, by a polynomial, and "none" does not correct: the order is `order`. The
    last step is not corrected, nor with "same" one of order 1.
    lower_order_final: see `final_order`. The integrals are exact for linearly interpolated statistics, the
    authors' are trapezoids between their values of lambda. A step from alpha = 0 or to sigma = 0 is DDIM's. Raises ValueError for another order or
    corrector.
    """
    check("dpm_solver_v3", order=(order, (1, 2, 3)), predictor=(predictor, ("polynomial", "pseudo")))
    check("dpm_solver_v3", corrector=(corrector, ("pseudo", "same", "none")))
    check_final("dpm_solver_v3", lower_order_final)
    integrals = Integrals(statistics)

    def step(lam, i, nodes, pseudo):
        """Step i with g interpolated at `nodes` (indices into lam): what multiplies y, the g's, and the constant, in y' = ..."""
        start, end = lam[i], lam[i + 1]
        theta, weight = gauss_legendre(16)
        at = start + theta * (end - start)
        shaped = lambda c: np.reshape(c, (-1, *[1] * (statistics.l.ndim - 1)))
        decay = np.exp(-integrals.between("l", start, np.array([end]))[0])
        growth = np.exp(integrals.between("l", start, at) + integrals.between("s", start, at)) * shaped(weight * (end - start))
        bias = np.stack([integrals.b_integral(start, u) for u in at])
        basis = interpolation(lam, nodes, at, pseudo)
        return decay, {j: -decay * (growth * shaped(basis[j])).sum(0) for j in nodes}, -decay * (growth * bias).sum(0)

    def build(sde, times):
        lam, n = sde.log_snr(times), len(times) - 1
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        rows, correction = [], None

        def of_g(e, base, weights):
            """sum of weights[j] g_j with g relative to step `base`, as x lags, P lags and a constant seen from row e."""
            x, p, constant = {}, {}, 0.0
            for j, w in weights.items():
                w = w * np.exp(-integrals.between("s", lam[base], lam[j : j + 1])[0])
                slope = integrals.value("l", lam[j : j + 1])[0]
                x[e - j], p[e - j] = -w * slope / alpha[j], w * sigma[j] / alpha[j]
                constant = constant - weights[j] * integrals.b_integral(lam[base], lam[j])
            return x, p, constant

        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            if sigma[i + 1] == 0:
                linear, w1 = first_order(sde, t, s, "noise")
                parts = ({0: linear}, {0: w1}, 0.0)
                decay = linear
            else:
                count = min(final_order(order, lower_order_final, n, i), i + 1)
                decay, weights, constant = step(lam, i, [i - k for k in range(count)], predictor == "pseudo")
                x, p, from_g = of_g(i, i, {j: alpha[i + 1] * w for j, w in weights.items()})
                decay = decay * alpha[i + 1] / alpha[i]
                x[0] = x.get(0, 0.0) + decay
                parts = (x, p, from_g + alpha[i + 1] * constant)
            if correction is not None:  # x_i as predicted becomes x_i as corrected
                add = lambda a, b: {k: a.get(k, 0.0) + decay * b.get(k, 0.0) for k in a.keys() | b.keys()}  # noqa: B023
                parts = (add(parts[0], correction[0]), add(parts[1], correction[1]), parts[2] + decay * correction[2])
            rows.append(Row(t, parts[0], parts[1], constant=parts[2]))
            correction = None
            older = count if corrector == "pseudo" else count - 1
            if corrector != "none" and older > 0 and i < n - 1 and sigma[i + 1] > 0:
                _, better, _ = step(lam, i, [i, i + 1, *(i - k for k in range(1, older))], corrector == "pseudo")
                change = {j: alpha[i + 1] * (better.get(j, 0.0) - weights.get(j, 0.0)) for j in better.keys() | weights.keys()}
                correction = of_g(i + 1, i, change)
        return rows

    return lambda sde, times: leave_prior(sde, times, build, "noise")
