"""Stochastic equations of the primer: Brownian motion, Ornstein-Uhlenbeck, the car in turbulence, the noise of VE, VP and DDPM, by diffrax."""

from collections.abc import Iterator
from itertools import accumulate

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate
from scipy.stats import norm

from experiments.tables._primer import deviation, distributed, drawn, holds, number, verdict
from experiments.tables._primer_ordinary import THETA, car, car_position, decay, of_line
from samplers import solvers
from sde_lib import DDPM, NCSN, OU, VE, VP, SubVP, linear_betas, normal

SIGMA, START = 1.0, 3.0  # of the Ornstein-Uhlenbeck process, whose drift is -THETA x
still = of_line(0, 0, 0, 0)
drag = of_line(0, 0, -0.1, 0)  # of the car, without its rocket


@eqx.filter_jit
def _walk(drift, noise, x0, ts, dt, source, times):
    def one(source):
        unseen = lambda: diffrax.UnsafeBrownianPath(jax.ShapeDtypeStruct((), x0.dtype), source)
        brownian = unseen() if times is None else diffrax.LinearInterpolation(times, source)
        return diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(lambda t, x, args: drift(t, x)), diffrax.ControlTerm(lambda t, x, args: noise, brownian)),
            diffrax.Euler(),
            ts[0],
            ts[-1],
            dt0=dt,
            y0=x0,
            saveat=diffrax.SaveAt(ts=ts),
            adjoint=diffrax.ForwardMode(),
            max_steps=100_000,
        ).ys

    return jax.vmap(one)(source)


def walk(drift, noise: float, x0: float, ts, dt: float, source, times=None) -> np.ndarray:
    """Euler-Maruyama's paths [n, len(ts)] of dx = drift(t, x) dt + noise dw from x0 at ts[0], in steps of dt.

    source: n keys; or the Brownian motions themselves, [n, k] at `times` [k].
    """
    arrays = (jnp.asarray(a, float) for a in (noise, x0, ts, dt))
    source, times = (source, None) if times is None else (jnp.asarray(source, float), jnp.asarray(times, float))
    return np.asarray(_walk(drift, *arrays, source, times))


def ou_moments(t: float) -> tuple[float, float]:
    """Mean and variance of the Ornstein-Uhlenbeck process at t."""
    return START * np.exp(-THETA * t), -(SIGMA**2) / (2 * THETA) * np.expm1(-2 * THETA * t)


def ou_moments_by_steps(t: float, h: float) -> tuple[float, float]:
    """The same of Euler-Maruyama's steps of h."""
    a, n = 1 - THETA * h, round(t / h)
    return START * a**n, SIGMA**2 * h * (1 - a ** (2 * n)) / (1 - a**2)


def car_variance(t: float) -> float:
    """Of the car in turbulence of sigma = 1: the integral of e^(-(t - s)/5) over s."""
    return -5 * np.expm1(-t / 5)


def halving_error(n: int) -> float:
    """Root mean square difference at t = 1 of Euler-Maruyama in n and in 2 n steps on one Brownian motion, of the OU process from 0."""
    k = np.arange(2 * n)
    of_steps = lambda n, k: (1 - THETA / n) ** (n - 1 - k)
    return SIGMA * np.sqrt(np.sum((of_steps(n, k // 2) - of_steps(2 * n, k)) ** 2) / (2 * n))


def traces() -> Iterator[dict]:
    """The walks on given draws of noise."""
    for what, where, h, args, eps, said in (
        ("Brownian motion", "001, Numerical trace", 0.01, (still, 1.0, 0.0), (0.83, -1.21, 0.47), ("0.083", "-0.038", "0.009")),
        ("OU", "001, Ornstein-Uhlenbeck process", 0.1, (decay, SIGMA, START), (0.52, -1.31, 0.88), ("2.564", "1.637", "1.588")),
    ):
        times, steps = h * np.arange(4), np.sqrt(h) * np.array(eps)
        found = walk(*args, times, h, [np.cumsum(np.append(0.0, steps))], times)[0]
        exact = args[2]
        for k, text in enumerate(said):
            if args[0] is decay:
                drift, noise = (("-0.600", "0.164"), ("-0.513", "-0.414"), ("-0.327", "0.278"))[k]
                yield number(f"OU trace, h = 0.1: drift of step {k + 1}", where, h * decay(0.0, found[k]), -THETA * h * exact, drift)
                yield number(f"OU trace, h = 0.1: noise of step {k + 1}", where, found[k + 1] - found[k] * (1 - THETA * h), steps[k], noise)
                exact *= 1 - THETA * h
            exact += steps[k]
            yield number(f"{what} trace, h = {h:g}: after step {k + 1}", where, found[k + 1], exact, text)


def brownian(n: int) -> Iterator[dict]:
    where = "001, Statistics of Brownian motion"
    ts = np.array([0.0, 0.25, 0.75, 1.0, 4.0])
    _, a, b, one, four = walk(still, 1.0, 0.0, ts, 0.01, jax.random.split(jax.random.key(0), n)).T
    yield drawn(f"Brownian motion, {n} paths, h = 0.01: mean at t = 1", "001, Numerical check", one, 0, "0")
    yield distributed("Brownian motion at t = 1 against N(0, 1)", "001, Numerical check", one, norm.cdf, "N(0, 1)")
    for t, w, said in ((1, one, "1"), (4, four, "2")):
        yield drawn(f"Brownian motion: variance at t = {t}", where, w**2, t, str(t))
        yield deviation(f"Brownian motion: standard deviation at t = {t}", where, w**2, np.sqrt(t), said)
    yield drawn("Brownian motion: covariance of t = 0.25 and 0.75", where, a * b, 0.25, "0.25")
    where, h = "001, The sqrt(h) scaling", 0.01
    ones = lambda noise, key: walk(still, noise, 0.0, [0.0, 1.0], h, jax.random.split(jax.random.key(key), n))[:, -1]
    yield drawn("noise sigma h in the place of sigma sqrt(h), h = 0.01: variance at t = 1", where, ones(np.sqrt(h), 1) ** 2, h, "(0.01)")


def ornstein_uhlenbeck(n: int) -> Iterator[dict]:
    where, sde = "001, Ornstein-Uhlenbeck process", OU(THETA, SIGMA, T=4.0)
    for t in (0.5, 1.0):
        mean, std = sde.marginal(jnp.array([[START]]), t)
        for what, ours, exact in zip(("mean", "variance"), (mean[0, 0], std[0] ** 2), ou_moments(t)):
            yield number(f"OU from 3, sde_lib: {what} at t = {t:g}", where, ours, exact)
    mean, std = (float(c.squeeze()) for c in sde.marginal(jnp.array([[START]]), 0.5))
    ends = walk(decay, SIGMA, START, [0.0, 0.5], 0.001, jax.random.split(jax.random.key(2), n))[:, -1]
    row = distributed("OU from 3, h = 0.001, at t = 0.5 against the marginal of sde_lib", "002, 4.3.2", ends, norm(mean, std).cdf)
    yield row | {"text": "'not without simulating'", "agrees": verdict(not holds(row), "this linear SDE has it: the same law")}
    where = "001, Convergence of the OU process"
    yield number("OU, sde_lib: variance at t = 4", where, sde.variance(4.0), SIGMA**2 / (2 * THETA), "0.25", digits=6)
    for h in (0.1, 0.01):
        x = walk(decay, SIGMA, START, [0.0, 0.5, 4.0], h, jax.random.split(jax.random.key(2), n))
        for k, t in ((1, 0.5), (2, 4.0)):
            mean, variance = ou_moments_by_steps(t, h)
            yield drawn(f"OU, Euler-Maruyama, h = {h:g}, {n} paths: mean at t = {t:g}", where, x[:, k], mean)
            says = {"text": "0.25", "agrees": f"in the limit; its own is 1/(4 - 4 h) = {1 / (4 - 4 * h):.4f}"} if t == 4 else {}
            yield drawn(f"OU, Euler-Maruyama, h = {h:g}: variance at t = {t:g}", where, (x[:, k] - mean) ** 2, variance, **says)
    where, fine = "001, Summary of solvers", 64
    w = np.random.default_rng(0).standard_normal((n, fine)).cumsum(1) / np.sqrt(fine)
    w, times = np.pad(w, ((0, 0), (1, 0))), np.arange(fine + 1) / fine
    ends = {steps: walk(decay, SIGMA, 0.0, [0.0, 1.0], 1 / steps, w, times)[:, -1] for steps in (16, 32, 64)}
    squares = [(ends[steps] - ends[2 * steps]) ** 2 for steps in (16, 32)]
    for steps, square in zip((16, 32), squares):
        what = f"OU, Euler-Maruyama, one w: 1e4 times the mean square of x(1) in {steps} steps less in {2 * steps}"
        yield drawn(what, where, 1e4 * square, 1e4 * halving_error(steps) ** 2)
    # of the logarithm of a ratio of means, to first order
    ours = 0.5 * np.log2(squares[0].mean() / squares[1].mean())
    error = np.std(squares[0] / squares[0].mean() - squares[1] / squares[1].mean(), ddof=1) / np.sqrt(n) / (2 * np.log(2))
    exact = np.log2(halving_error(16) / halving_error(32))
    says = {"text": "0.5", "agrees": verdict(exact < 0.6, "1 where the noise does not depend on x, as here; 0.5 where it does")}
    yield number("OU, Euler-Maruyama: strong order, 16 to 32 steps", where, ours, exact, error=error, **says)


def turbulence(n: int) -> Iterator[dict]:
    """Sigma = 1; the law of any other is as much wider."""
    where = "000, Stochastic Differential Equations"
    _, one, ten = walk(car, 1.0, 0.0, [0.0, 1.0, 10.0], 0.01, jax.random.split(jax.random.key(3), n)).T
    yield from (drawn(f"turbulence, sigma = 1, dt = 0.01, {n} paths: mean at t = {t}", where, x, car_position(t)) for t, x in ((1, one), (10, ten)))
    later = verdict(car_variance(10) > car_variance(1), "less")
    for t, x, says in ((1, one, ()), (10, ten, ("'worse later'", later))):
        yield drawn(f"turbulence: variance at t = {t}", where, (x - car_position(t)) ** 2, car_variance(t), *says)
    boostless = walk(drag, 1.0, 0.0, [0.0, 10.0], 0.01, jax.random.split(jax.random.key(14), n))[:, -1]
    row = drawn("turbulence without the rocket: variance at t = 10", where, boostless**2, car_variance(10))
    yield row | {"text": "'as the drift becomes weaker'", "agrees": verdict(not holds(row), "the same without the rocket")}
    exact = np.sqrt(car_variance(10))
    differs = verdict(abs(exact - np.sqrt(10)) > 0.1, "by the noise alone", f"they are pulled back; by the noise alone sqrt(10) = {np.sqrt(10):.3f}")
    yield deviation("turbulence: standard deviation at t = 10", where, (ten - car_position(10)) ** 2, exact, "'different drift values'", differs)


def noise_levels() -> Iterator[dict]:
    """What the seeds say of VE, VP and their chains."""
    where, sde, t = "000, From Score Matching to SDEs", VE(0.01, 50.0), 0.1
    level = 0.01 * 5000**t
    yield number("VE, 0.01 to 50: g(0.1)", where, sde.diffusion(t), level * np.sqrt(2 * np.log(5000)))
    gained = integrate.quad(lambda s: sde.diffusion(s) ** 2, 0, t, epsabs=1e-14)[0]
    of_text = f"({1e4 * level**2:.3f})"
    yield number("VE: 1e4 times the variance of x(0.1) given x(0)", where + "; 002, eq. (15)", 1e4 * gained, 1e4 * (level**2 - 1e-4), of_text)
    b = 0.1 * 0.1 + 0.5 * 19.9 * 0.1**2
    exact = np.sqrt(-np.expm1(-b))
    says = {"text": "'less slowly'", "agrees": verdict(exact > 1, "more slowly, by the factor sqrt(1 - e^-B)")}
    yield number("sub-VP's sigma(0.1) over VP's", "000, New Model Types", SubVP().sigma(0.1) / VP().sigma(0.1), exact, **says)
    b = 0.1 * 0.5 + 0.5 * 19.9 * 0.5**2
    right = verdict(np.isclose(np.expm1(b), -np.expm1(-b)), "in their notation it is s^2 sigma^2 (2206.00364, eq. 11)")
    says, where = {"text": f"({np.expm1(b):.2f})", "agrees": right}, "000, Modern Diffusion Models"
    yield number("VP in Karras' s and sigma: variance of x(0.5) given x(0)", where, VP().variance(0.5), -np.expm1(-b), **says)
    ours = float(VP(1.0, 1.0).drift(jnp.ones((1, 1)), 1.0)[0, 0])
    yield number("drift at x = 1 that keeps N(0, 1) where g = 1", "002, 4.2.3: 'remains fixed at unity'", ours, -0.5)


def affine(step, n: int) -> tuple[np.ndarray, np.ndarray]:
    """a and b [n] of x' = a x + b noise in the steps 1..n of a chain, from what it makes of 0 and of 1 by one draw."""
    key, i, zeros = jax.random.key(13), jnp.arange(1, n + 1), jnp.zeros((n, 1))
    shift = step(key, zeros, i)
    return np.asarray(step(key, zeros + 1, i) - shift)[:, 0], np.asarray(shift / normal(key, (n, 1)))[:, 0]


def chains() -> Iterator[dict]:
    """Table 1 of seed 002: the steps of NCSN and DDPM one after another, in one, and in the limit."""
    where, ends = "002, Table 1", {}
    for chain in (NCSN(), DDPM()):
        name, (a, b) = type(chain).__name__, affine(chain.iterate, chain.N)
        alpha, sigma = affine(lambda *args, chain=chain: chain.single_step(*args)[0], chain.N)
        signal, variances = np.cumprod(a), list(accumulate(zip(a, b), lambda v, step: step[0] ** 2 * v + step[1] ** 2, initial=0.0))[1:]
        ends[name] = signal[-1], variances[-1], b[-1]
        for what, gap in (("factor of x_0", signal / alpha - 1), ("variance", variances / sigma**2 - 1)):
            gap = np.abs(gap).max()
            says = {"text": "'='", "agrees": verdict(gap < 1e-9, f"off by {gap:.1g}")}
            yield number(f"{name}, 1000 steps: largest relative difference of iterated and single steps, {what}", where, gap, 0, **says)
    betas = lambda n: np.linspace(0.1 / n, 20 / n, n)
    yield number("DDPM: 1e5 abar_N, iterated", where, 1e5 * ends["DDPM"][0] ** 2, 1e5 * np.prod(1 - betas(1000)))
    yield number("DDPM: variance after 1000 steps of data of variance 1", "002, eq. (16)", ends["DDPM"][0] ** 2 + ends["DDPM"][1], 1, "1")
    yield number("NCSN: variance after 1000 steps of a point", "002, eq. (12)", ends["NCSN"][1], 50.0**2, digits=6)
    growth = np.log(5000) / 999  # of log sigma, a step
    ours, exact = ends["NCSN"][2] ** 2 / (VE(0.01, 50.0).diffusion(1.0) ** 2 / 999), -np.expm1(-2 * growth) / (2 * growth)
    says = {"text": "'approximately'", "agrees": verdict(abs(exact - 1) < 0.01, f"{exact:.2f}")}
    yield number("NCSN: variance of step 1000 over (sigma^2)' dt", "002, eq. (13)", ours, exact, **says)
    # sum beta_i = B(1), so that what is left is of second order in beta
    left = lambda n: 2 * np.log(DDPM(linear_betas(n=n)).alpha(1.0) / VP().alpha(1.0))
    exact = np.log2(np.divide(*(np.sum(np.log1p(-betas(n)) + betas(n)) for n in (1000, 2000))))
    says = {"text": "'limit'", "agrees": verdict(exact > 0.9, "not reached", "of order 1 in 1/N")}
    yield number("DDPM to VP: order of log abar_N, 1000 to 2000 steps", "002, eq. (18)", np.log2(left(1000) / left(2000)), exact, digits=6, **says)
    yield from last_step()


def last_step() -> Iterator[dict]:
    """The first step down, of beta = 0.02: Euler-Maruyama's of VP beside DDPM's, in x, the score and the noise."""
    beta, times, coefficients = 0.02, np.array([1.0, 0.999]), []
    for sde, solver in ((DDPM(), solvers.ancestral("forward")), (VP(), solvers.euler_maruyama())):
        row = solver(sde, times).rows()[0]
        alpha, sigma = sde.alpha(1.0), sde.sigma(1.0)  # their D is (x + sigma^2 score)/alpha
        coefficients.append((row.x[0] + row.p[0] / alpha, row.p[0] * sigma**2 / alpha, row.noise))
    scale = (1 - beta) ** -0.5
    for what, ddpm, euler, exact in zip(("x", "the score", "the noise"), *coefficients, (scale - 1 - beta / 2, beta * (scale - 1), 0.0)):
        says = {"text": "'identical'", "agrees": verdict(abs(exact) < 1e-9, f"to first order; {exact / beta**2:.2f} beta^2 are left")}
        what = f"1e4 times DDPM's factor of {what} less Euler-Maruyama's, beta = 0.02"
        yield number(what, "002, footnote 4", 1e4 * (ddpm - euler), 1e4 * exact, **says)
