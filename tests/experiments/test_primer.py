"""The closed forms of the primer against independent quadrature, recursions and scipy.integrate.solve_ivp; its gate against numbers that are off."""

import json

import jax
import numpy as np
import pytest
from scipy import integrate, special

from experiments.tables import _primer_densities as densities
from experiments.tables import _primer_ordinary as ordinary
from experiments.tables import _primer_stochastic as stochastic
from experiments.tables import primer
from experiments.tables._primer import drawn, number


def solved(field, y0, t1, t0=0.0, **options):
    return integrate.solve_ivp(field, (t0, t1), np.atleast_1d(y0), "DOP853", rtol=1e-13, atol=1e-14, **options)


def test_car():
    """Its position, the time at which it stands still, and the sums of Euler's and Heun's steps, the latter against the steps themselves."""
    stands = lambda t, x: 1 / (t + 1) - x[0] / 10 if t > 0 else 1.0
    solution = solved(lambda t, x: 1 / (t + 1) - x / 10, 0.0, 10.0, t_eval=[1.0, 10.0], events=stands)
    np.testing.assert_allclose(ordinary.car_position([1.0, 10.0]), solution.y[0], rtol=0, atol=1e-10)
    assert abs(ordinary.car_turns() - solution.t_events[0][0]) <= 1e-9
    field = lambda t, x, drag: 1 / (t + 1) - drag * x
    for drag, h in ((0.1, 0.25), (0.0, 1.0)):
        euler = heun = 0.0
        for t in np.arange(0, 3, h):
            slope = field(t, heun, drag)
            heun += 0.5 * h * (slope + field(t + h, heun + h * slope, drag))
            euler += h * field(t, euler, drag)
        assert abs(ordinary.car_by_steps(3.0, h, False, drag) - euler) <= 1e-12
        assert abs(ordinary.car_by_steps(3.0, h, True, drag) - heun) <= 1e-12


def test_moments():
    """Of the Ornstein-Uhlenbeck process and of the car in turbulence, by their equations; of Euler-Maruyama, by its recursion."""
    for t in (0.5, 4.0):
        moments = solved(lambda t, y: [-2 * y[0], -4 * y[1] + 1], [3.0, 0.0], t).y[:, -1]
        np.testing.assert_allclose(stochastic.ou_moments(t), moments, rtol=0, atol=1e-10)
        assert abs(stochastic.car_variance(t) - solved(lambda t, v: 1 - v / 5, 0.0, t).y[0, -1]) <= 1e-10
        mean, variance = 3.0, 0.0
        for _ in range(round(t / 0.1)):
            mean, variance = 0.8 * mean, 0.64 * variance + 0.1
        np.testing.assert_allclose(stochastic.ou_moments_by_steps(t, 0.1), (mean, variance), rtol=0, atol=1e-12)


def test_halving_error():
    """By the recursion of the covariance of both walks, which take the same increments."""
    n, cov = 16, np.zeros((2, 2))
    coarse, fine = 1 - 2 / n, 1 - 1 / n  # of a step of 1/n and of 1/(2 n)
    for _ in range(n):
        # of the two increments, each of variance 1/(2 n)
        gain = np.array([[1.0, 1.0], [fine, 1.0]])
        turn = np.diag([coarse, fine**2])
        cov = turn @ cov @ turn.T + gain @ gain.T / (2 * n)
    assert abs(stochastic.halving_error(n) - np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])) <= 1e-12


def posterior_velocity(t, x, mean, std):
    """E[eps - x_0 | x_t = x] of two Gaussians at +-mean on the linear path."""
    variance = ((1 - t) * std) ** 2 + t**2
    centres = (1 - t) * np.array([-mean, mean])
    weights = np.exp(-0.5 * (x - centres) ** 2 / variance + 0.5 * np.min((x - centres) ** 2) / variance)
    residual = (x - centres) / variance
    return np.sum(weights * (t * residual - np.array([-mean, mean]) - (1 - t) * std**2 * residual)) / np.sum(weights)


def test_densities():
    pdf = lambda x: np.exp(-0.5 * ((x - 1.5) / 0.4) ** 2) / 0.4 / np.sqrt(2 * np.pi)
    folded = lambda x: (abs(x) - 1.5) ** 2 * pdf(x)
    want = sum(integrate.quad(folded, *ends, epsabs=1e-13)[0] for ends in ((-3.0, 0.0), (0.0, 6.0)))
    assert abs(densities.about_centre(1.5, 0.4) - want) <= 1e-10
    end = solved(lambda t, x: posterior_velocity(t, x[0], 5.0, 0.5), 0.1, 0.0, t0=1.0).y[0, -1]
    assert abs(densities.transported(special.ndtr(0.1), 5.0, 0.5) - end) <= 1e-10
    for std, sigma in ((1.0, 0.5), (0.4, 1.0)):

        def growth(s, v, std=std, sigma=sigma):  # the field of N(0, std^2) is linear; s = 1 - t
            return 2 * (s * std**2 - (1 - s)) / ((s * std) ** 2 + (1 - s) ** 2) * v + sigma**2

        assert abs(densities.widened(std, sigma) - solved(growth, 1.0, 1.0).y[0, -1]) <= 1e-10
    assert abs(integrate.quad(lambda t: 1 / (t**2 + (1 - t) ** 2), 0, 1, epsabs=1e-13)[0] - np.pi / 2) <= 1e-10


def test_gate():
    """A wrong closed form fails, of a number to its digits and of an estimate by its standard error; the text is told by its own decimals."""
    with jax.enable_x64(True):
        rows = [*ordinary.schedules(), *stochastic.noise_levels()]
    rows += [drawn("a mean", "", np.random.default_rng(0).standard_normal(400), 0.0)]
    assert all(primer.gates(rows).values())
    for i, off in ((0, 1e-8), (-1, 0.25)):
        wrong = [dict(row) for row in rows]
        wrong[i]["closed form"] += off
        assert [name for name, held in primer.gates(wrong).items() if not held][1:] == [wrong[i]["what"]]
    assert not any(primer.gates([number("not a number", "", np.nan, 1.0)]).values())
    says = lambda text, exact: number("", "", exact, exact, text)["agrees"]
    assert says("-4.853", -4.8522) == "no: -4.852" and says("-4.852", -4.8522) == "yes" and says("0.0", -0.5) == "no: -0.5"


@pytest.mark.slow
def test_quick_table(tmp_path):
    """It passes with few samples, and has a figure for each subject."""
    rows, gates = primer.run(tmp_path, True, "")
    assert all(gates.values()), gates
    assert json.dumps(rows) and len({*tmp_path.glob("*.png")}) == 6
    off = {row["what"]: row["agrees"] for row in rows if (row["agrees"] or "").startswith("no")}
    assert off["Euler, n = 100: x(1)"] == "no: 0.530" and off["dx/dt = -2 x from 4: velocity at t = 0.25"] == "no: -4.852"
