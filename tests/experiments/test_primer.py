"""The closed forms of the primer against independent quadrature, recursions and scipy.integrate.solve_ivp; its gate against numbers that are off, and
its verdicts against texts that are."""

import json

import jax
import numpy as np
import pytest
from scipy import integrate, special, stats

from experiments.tables import _primer_densities as densities
from experiments.tables import _primer_models as models
from experiments.tables import _primer_ordinary as ordinary
from experiments.tables import _primer_solvers as solvers
from experiments.tables import _primer_stochastic as stochastic
from experiments.tables import primer
from experiments.tables._primer import KOLMOGOROV, distributed, drawn, holds, number
from samplers import sample
from sde_lib import Linear


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


def test_models():
    """Where quantiles are and how fast they move, by the posterior's velocity; moments of mixtures; a field's change along its paths."""
    pdf = lambda x: np.exp(-0.5 * ((x - 1.5) / 0.4) ** 2) / 0.4 / np.sqrt(2 * np.pi)
    folded = lambda x: (abs(x) - 1.5) ** 2 * pdf(x)
    want = sum(integrate.quad(folded, *ends, epsabs=1e-13)[0] for ends in ((-3.0, 0.0), (0.0, 6.0)))
    assert abs(models.about_centre(1.5, 0.4) - want) <= 1e-10
    start = np.array([0.1, -0.8])
    for x_T, t in ((0.1, 0.0), (-0.8, 0.0), (-0.8, 0.3)):
        end = solved(lambda t, x: posterior_velocity(t, x[0], 5.0, 0.5), x_T, t, t0=1.0).y[0, -1]
        assert abs(models.transported(special.ndtr(start), 5.0, 0.5, t)[start == x_T] - end) <= 1e-10
        assert abs(models.speed(start, 0.3, 5.0, 0.5)[start == x_T] - posterior_velocity(0.3, x_T, 5.0, 0.5)) <= 1e-12
    for std, sigma in ((1.0, 0.5), (0.4, 1.0)):

        def growth(s, v, std=std, sigma=sigma):  # the field of N(0, std^2) is linear; s = 1 - t
            return 2 * (s * std**2 - (1 - s)) / ((s * std) ** 2 + (1 - s) ** 2) * v + sigma**2

        assert abs(models.widened(std, sigma) - solved(growth, 1.0, 1.0).y[0, -1]) <= 1e-10
    # of one Gaussian, in closed form: x is x_T times r = ((1 - t)^2 std^2 + t^2)^0.5, and u = -x_T r'
    rate = lambda t: (t - (1 - t) * 0.16) / np.hypot((1 - t) * 0.4, t)
    want = integrate.quad(lambda t: rate(t) ** 2, 0, 1, epsabs=1e-12)[0] / 0.6**2 - 1
    assert abs(solvers.unsteadiness(0.0, 0.4) - want) <= 1e-8


def test_constants():
    """What losses differ by, and Kolmogorov's law."""
    variance = lambda t: t**2 + (1 - t) ** 2
    assert abs(integrate.quad(lambda t: 1 / variance(t), 0, 1, epsabs=1e-13)[0] - np.pi / 2) <= 1e-10
    want = integrate.quad(lambda t: 1 / variance(t) - 1 / t**2, 0.1, 1, epsabs=1e-13)[0] / 0.9
    assert abs(densities.score_constant(0.1) - want) <= 1e-10
    np.testing.assert_allclose(KOLMOGOROV, (stats.kstwobign.mean(), stats.kstwobign.std()), atol=1e-6)


def test_gate():
    """Every row fails where its number is off, by a unit of its last digit or eight standard errors; the text is told by its own decimals."""
    with jax.enable_x64(True):
        rows = [*solvers.schedules(), *stochastic.noise_levels(), *stochastic.chains()]
    rows += [drawn("a mean", "", np.random.default_rng(0).standard_normal(400), 0.0)]
    assert all(primer.gates(rows).values())
    for row in rows:
        off = 10.0 ** -row["digits"] if row["±"] is None else 8 * row["±"]
        wrong = primer.gates([other | {"ours": other["ours"] + off * (other is row)} for other in rows])
        assert [name for name, held in wrong.items() if not held][1:] == [row["what"]]
    assert not any(primer.gates([number("not a number", "", np.nan, 1.0)]).values())
    says = lambda text, exact: number("", "", exact, exact, text)["agrees"]
    assert says("-4.853", -4.8522) == "no: -4.852" and says("-4.852", -4.8522) == "yes" and says("0.0", -0.5) == "no: -0.5"
    assert says("(0.5)", 0.5) == "yes"


def test_another_law_fails():
    """Normal draws against their law and against one of another width, or mean."""
    x = np.random.default_rng(0).standard_normal(2000)
    row = lambda *law: distributed("", "", x, stats.norm(*law).cdf, "N(0, 1)")
    assert holds(row()) and row()["agrees"] == "yes"
    assert not holds(row(0, 1.2)) and not holds(row(0.1, 1)) and row(0, 1.2)["agrees"] == "no: another law"


@pytest.mark.slow
def test_quick_table(tmp_path):
    """It passes with few samples, and has a figure for each subject."""
    rows, gates = primer.run(tmp_path, True, "")
    assert all(gates.values()), gates
    assert json.dumps(rows) and len({*tmp_path.glob("*.png")}) == 6
    off = {row["what"]: row["agrees"] for row in rows if (row["agrees"] or "").startswith("no")}
    assert off["Euler, n = 100: x(1)"] == "no: 0.530" and off["dx/dt = -2 x from 4: velocity at t = 0.25"] == "no: -4.852"
    assert (
        off["DPM-Solver++(3M, as released): order"] == "no: 2"
        and "1.35" in off[next(name for name in off if name.startswith("four Gaussians, along"))]
    )


@pytest.mark.slow
def test_wrong_sampler_fails():
    """The law of a coordinate of the showcase tells what seed 001 prints from the SDE with the model's marginals."""
    x_T = Linear().prior_sample(jax.random.key(0), (1000, 2))
    den, times = models.four_gaussians().denoiser(Linear()), np.linspace(models.LAST, 0, 201)
    law = lambda x: 0.5 * (special.ndtr((x - 1.5) / 0.4) + special.ndtr((x + 1.5) / 0.4))
    for solver, right in ((models.early(2.0), True), (models.with_noise(1.0), True), (models.as_printed(1.0), False)):
        assert holds(distributed("", "", np.asarray(sample(den, x_T, times, solver, jax.random.key(1)))[:, 0], law)) == right
