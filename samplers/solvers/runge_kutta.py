r"""Runge-Kutta methods on the probability-flow ODE, in the variable t, sigma or lambda.

With y = x/alpha and s = sigma/alpha the ODE is any of (eps the noise prediction, lambda = -log s)

    dx/dt = velocity(x, t)        dy/ds = eps        dy/dlambda = -s eps,

the second being the one of EDM (2206.00364, eq. 1) and of DEIS' rho-RK (2204.13902, section 3.4), on any path.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from samplers.solvers.steps import check, first_order, leave_prior, ratio
from samplers.table import Row, Solver, stack

Variable = Literal["t", "sigma", "log_snr"]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: a, the rows below the diagonal; b, the weights. The nodes c are the sums of the rows of a."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


EULER = Tableau(((),), (1.0,))
MIDPOINT = Tableau(((), (0.5,)), (0.0, 1.0))
HEUN = Tableau(((), (1.0,)), (0.5, 0.5))
KUTTA3 = Tableau(((), (0.5,), (-1.0, 2.0)), (1 / 6, 4 / 6, 1 / 6))
RK4 = Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 2 / 6, 2 / 6, 1 / 6))


def runge_kutta(tableau: Tableau, variable: Variable = "t") -> Solver:
    """Any explicit Runge-Kutta method in `variable`. As many evaluations a step as it has stages; order of the method; deterministic.

    Consumes the velocity (variable "t") or the noise. A last step to sigma = 0, where these are undefined, is Euler's if a stage lies there or the
    variable is infinite there. In "sigma" and "log_snr" a step from alpha = 0 is DDIM's. Raises ValueError for another variable.
    """
    check("runge_kutta", variable=(variable, ("t", "sigma", "log_snr")))
    nodes = [float(np.sum(row)) for row in tableau.a]

    def rows_of_step(sde, t, s):
        """In z' = w P for z = x/scale: the stage at node c has scale(c), weight w(c) of P and time(c)."""
        if variable == "t":
            length, time = s - t, lambda c: t + c * (s - t)
            scale = weight = lambda c: 1.0
        else:
            to = (lambda r: r) if variable == "sigma" else (lambda r: -np.log(r))
            r_t, r_s = ratio(sde, t), ratio(sde, s)
            if variable == "log_snr" and r_s == 0:
                return euler_step(sde, t, s)
            length, value = to(r_s) - to(r_t), lambda c: to(r_t) + c * (to(r_s) - to(r_t))
            log_snr = lambda c: -np.log(value(c)) if variable == "sigma" else value(c)
            time = lambda c: t if c == 0 else s if c == 1 else float(sde.time(log_snr(c)))
            scale = lambda c: sde.alpha(time(c))
            weight = lambda c: 1.0 if variable == "sigma" else -np.exp(-value(c))
        if sde.sigma(s) == 0 and 1.0 in nodes:
            return euler_step(sde, t, s)
        rows, targets = [], [*zip(nodes, tableau.a)][1:] + [(1.0, tableau.b)]
        for j, (node, coefficients) in enumerate(targets):
            p = {j - k: scale(node) * length * a * weight(nodes[k]) for k, a in enumerate(coefficients) if a}
            rows.append(Row(time(nodes[j]), {j: scale(node) / scale(0.0)}, p))
        return rows

    def euler_step(sde, t, s):
        if variable == "t":
            return [Row(t, {0: 1.0}, {0: s - t})]
        x, p = first_order(sde, t, s, "noise")
        return [Row(t, {0: x}, {0: p})]

    def build(sde, times):
        return [row for t, s in zip(times[:-1], times[1:]) for row in rows_of_step(sde, t, s)]

    def solver(sde, times):
        return stack(build(sde, times), "velocity") if variable == "t" else leave_prior(sde, times, build, "noise")

    return solver


def euler(variable: Variable = "t") -> Solver:
    """Euler's method: x' = x + (t' - t) velocity; in sigma it is DDIM. Order 1, one evaluation a step; see `runge_kutta`."""
    return runge_kutta(EULER, variable)


def heun(variable: Variable = "t") -> Solver:
    """Heun's method, the explicit trapezoid (EDM, 2206.00364, algorithm 1; in "sigma" on any path, DEIS' rho-Heun).

    Order 2, two evaluations a step, one in a last step to sigma = 0: 2N - 1 in all. See `runge_kutta`.
    """
    return runge_kutta(HEUN, variable)


def midpoint(variable: Variable = "t") -> Solver:
    """The explicit midpoint method. Order 2, two evaluations a step; see `runge_kutta`. DPM-2's midpoint, geometric in sigma with the step
    taken in sigma, is `dpm_solver(order=2)`."""
    return runge_kutta(MIDPOINT, variable)


def rk4(variable: Variable = "t") -> Solver:
    """The classical Runge-Kutta method. Order 4, four evaluations a step; see `runge_kutta`."""
    return runge_kutta(RK4, variable)
