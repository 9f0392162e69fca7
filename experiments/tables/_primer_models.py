"""Exact models of Gaussian mixtures sampled as ODE and as SDE: the primer's two modes, its showcase of four Gaussians, and likelihoods."""

from collections.abc import Iterator
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from experiments.tables._primer import distributed, drawn, number, verdict
from samplers import encode, grids, log_likelihood, sample, sample_adaptive, solvers, strengths
from sde_lib import EDM, SDE, GaussianMixture, Linear
from sde_lib.fokker_planck import fokker_planck

CENTRE, STD = 1.5, 0.4  # of the four Gaussians, at (+-1.5, +-1.5)
FOUR = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]) * CENTRE
NOISES = (0.0, 0.5, 1.0, 2.0)  # sigma of the showcase; the text's own is 0.5
LAST = 0.999  # alpha = 0 at t = 1, whence a reverse SDE would forget where it began


def four_gaussians() -> GaussianMixture:
    return GaussianMixture(FOUR, np.full(4, STD))


def standard(dim: int = 1) -> GaussianMixture:
    """N(0, 1)."""
    return GaussianMixture(np.zeros((1, dim)), np.ones(1))


def line(mean: float, std: float) -> GaussianMixture:
    """Two Gaussians in one dimension, at +-mean."""
    return GaussianMixture(np.array([[-mean], [mean]]), np.full(2, std))


def with_noise(sigma: float):
    """Euler-Maruyama of dx = (v - sigma^2/2 score) dt + sigma dw, run from T down: the marginals of the model at any sigma; Euler's method at 0."""
    return solvers.euler_maruyama(strengths.eta(Linear(), "constant", 0.5 * sigma**2))


def early(sigma: float, until: float = 0.5):
    """The same with that sigma only while t > until."""
    eta = strengths.eta(Linear(), "constant", 0.5 * sigma**2)
    return solvers.euler_maruyama(lambda t: eta(t) if t > until else 0.0)


def as_printed(sigma: float):
    """`sample_sde` of seed 001: x + h u + sigma sqrt(h) eps, the ODE's drift with the noise of an SDE."""

    def solver(sde: SDE, times: np.ndarray):
        return replace(solvers.euler()(sde, times), noise=sigma * np.sqrt(-np.diff(times)))

    return solver


def about_centre(mean: float, std: float) -> float:
    """E (|x| - mean)^2 of two Gaussians at +-mean: of a folded normal law."""
    folded = std * np.sqrt(2 / np.pi) * np.exp(-0.5 * (mean / std) ** 2) + mean * (1 - 2 * norm.cdf(-mean / std))
    return 2 * mean**2 + std**2 - 2 * mean * folded


def widened(std: float, sigma: float) -> float:
    """The variance to which `as_printed` brings data N(0, std^2) as h -> 0: std^2 + std^2 sigma^2 times the integral of 1/((1 - t)^2 std^2 + t^2)."""
    return std**2 + 0.5 * np.pi * std * sigma**2


def transported(u, mean: float, std: float, t: float = 0.0) -> np.ndarray:
    """Where the quantiles u [n] of the prior are at t on the line: the ODE keeps the order. By bisection."""
    centre, width = (1 - t) * mean, np.hypot((1 - t) * std, t)
    low = np.full_like(u, -centre - 9 * width, float)
    high = -low
    for _ in range(64):
        x = 0.5 * (low + high)
        below = norm.cdf((x - centre) / width) + norm.cdf((x + centre) / width) < 2 * u
        low, high = np.where(below, x, low), np.where(below, high, x)
    return 0.5 * (low + high)


def speed(x, t: float, mean: float, std: float) -> np.ndarray:
    """dx/dt [n] of those quantiles x [n] at t: less the derivative of their law in t, over the density."""
    centres, width = np.array([[-mean], [mean]]), np.hypot((1 - t) * std, t)
    z = (x - (1 - t) * centres) / width
    widens = (t - (1 - t) * std**2) / width
    return np.sum(norm.pdf(z) * (widens * z - centres), 0) / np.sum(norm.pdf(z), 0)


def carried(p, x, model: GaussianMixture, sigma: float, corrected: bool, start: float = 1.0, steps: int = 400) -> np.ndarray:
    """The density on cells x that p at t = start comes to at t = 0 by the SDE of `with_noise`, or of `as_printed`, on the linear path."""
    den = model.denoiser(Linear())

    def drift(x, s):
        drift = -den.velocity(x, start - s)
        return drift + 0.5 * sigma**2 * den.score(x, start - s) if corrected else drift

    return np.asarray(fokker_planck(p, [x], np.linspace(0, start, steps + 1), drift, lambda s: sigma))


def fields_of_models() -> Iterator[dict]:
    """The exact velocity of the four Gaussians on the linear path; the text's time runs the other way, so that its u = -v."""
    where, den, variance = "001, Mathematical properties of vector fields", four_gaussians().denoiser(Linear()), CENTRE**2 + STD**2
    divergence = np.trace(jax.jacfwd(lambda x: -den.velocity(x[None], 1.0)[0])(jnp.array([0.3, -0.8])))
    says = {"text": "'pushes apart'", "agrees": verdict(divergence > 0, "u = E x_0 - x there, which draws together")}
    yield number("divergence of u in 2-D where all is noise", where, divergence, -2, **says)
    where, at = "001, What neural architecture is used?", jnp.array([[CENTRE, -CENTRE], [1.1, 1.9]])
    gap = np.abs(-den.velocity(at, 1e-6) - at).max()
    small = verdict(2 * variance < 1, f"u = x; its mean square is {2 * variance:.2f}, where all is noise {2.0:.2f}")
    says = {"text": "'small'", "agrees": small}
    yield number("largest difference of u and x where all is data", where, gap, 0, digits=3, **says)
    one, start = GaussianMixture(FOUR[:1], np.zeros(1)), Linear().prior_sample(jax.random.key(6), (8, 2))
    once = lambda den: np.asarray(sample(den, start, np.array([1.0, 0.0]), solvers.euler()))
    where = "000, Flow Matching in Practice; 002, 4.3.2"
    yield number("one step of Euler to a single point: largest error", where, np.abs(once(one.denoiser(Linear())) - FOUR[0]).max(), 0, "0")
    largest = np.abs(once(den)).max()
    says = {"text": "'not necessarily'", "agrees": verdict(largest < CENTRE - 3 * STD, "at the data", "all end at the mean, 0")}
    yield number("one step of Euler to four Gaussians: largest |x|", where, largest, 0, **says)


def two_modes(n: int) -> Iterator[dict]:
    """Modes at +-5, sharp: of standard deviation 0.5. Where x_T = 0.1 goes."""
    where, model, x_T = "001, comparing ODE and SDE sampling", line(5.0, 0.5), 0.1
    den = model.denoiser(Linear())
    end = sample_adaptive(den, np.array([[x_T]]), rtol=1e-9, atol=1e-9, eps=1e-7).x[0, 0]
    exact = transported(norm.cdf([x_T]), 5.0, 0.5)[0]
    yield number("modes +-5 of 0.5, ODE from 0.1: x", where, end, exact, "+5", verdict(abs(exact - 5) < 3 * 0.5, "at -5"), digits=5)
    start, x = np.full((n, 1), x_T), np.linspace(-8, 8, 1001)
    below = lambda solver, times, key: np.asarray(sample(den, start, times, solver, jax.random.key(key)))[:, 0] < 0
    found = below(solvers.euler_maruyama(), grids.uniform(Linear(), 200), 7)
    says = {"text": "'either'", "agrees": verdict(0 < np.mean(found) < 1, "one", "with the reverse SDE of this path, which forgets x_T, evenly")}
    yield drawn("reverse SDE from 0.1, 200 steps: share in the mode at -5", where, found, 0.5, **says)
    for sigma in (0.5, 1.0):
        density = carried(norm.pdf(x, x_T, 0.04), x, model, sigma, True, LAST)
        share = density[x < 0].sum() / density.sum()
        found = below(with_noise(sigma), np.linspace(LAST, 0, 501), 8)
        what = f"SDE of sigma = {sigma:g} from 0.1, 500 steps: share in the mode at -5, against Fokker-Planck"
        yield drawn(what, where, found, share, "'either'", verdict(0 < np.mean(found) < 1, "one"))
    yield from twice()


def twice() -> Iterator[dict]:
    """One x_T sampled by the ODE and by an SDE, each with two keys, of data N(0, 1), whose steps of Euler-Maruyama are linear."""
    where, sigma, times = "001, Same X0 -> same output?", 0.5, np.linspace(LAST, 0, 101)
    den, start = standard().denoiser(Linear()), np.full((2000, 1), 0.7)
    apart = lambda solver: np.subtract(*(np.asarray(sample(den, start, times, solver, jax.random.key(key)))[:, 0] for key in (15, 16)))
    exact = 0.0  # the variance of x given x_T
    for t, h in zip(times, -np.diff(times)):
        slope = (2 * t - 1 + 0.5 * sigma**2) / (t**2 + (1 - t) ** 2)  # of v - sigma^2/2 score
        exact = (1 - h * slope) ** 2 * exact + sigma**2 * h
    gap = np.abs(apart(with_noise(0.0))).max()
    yield number("ODE from 0.7, twice: largest difference", where, gap, 0, "'Yes'", verdict(gap == 0, "another"))
    says = {"text": "'No'", "agrees": verdict(exact > 0, "the same")}
    yield drawn(
        "SDE of sigma = 0.5 from 0.7, twice: half the mean square of the difference", where, 0.5 * apart(with_noise(sigma)) ** 2, exact, **says
    )


def showcase(n: int, steps: int) -> Iterator[dict]:
    where, den = "001, showcase of 4 Gaussians", four_gaussians().denoiser(Linear())
    x_T, times = Linear().prior_sample(jax.random.key(9), (n, 2)), np.linspace(LAST, 0, steps + 1)
    draw = lambda solver: np.asarray(sample(den, x_T, times, solver, jax.random.key(10)))
    spread = lambda x: ((np.abs(x) - CENTRE) ** 2).ravel()
    law = lambda x: 0.5 * (norm.cdf((x - CENTRE) / STD) + norm.cdf((x + CENTRE) / STD))  # of a coordinate
    kept = about_centre(CENTRE, STD)
    ways = {f"SDE of sigma = {sigma:g}" if sigma else "ODE": with_noise(sigma) for sigma in NOISES}
    ways["SDE of sigma = 2 to t = 0.5, then ODE"] = early(2.0)
    for name, solver in ways.items():  # the last of "Interpolation between ODE and SDE"
        x = draw(solver)
        yield distributed(f"{name}, {n} samples in {steps} steps: x1", where, x[:, 0], law)
        yield drawn(f"{name}: variance about the nearest centre", where, spread(x), kept)
    where, x = "001, sample_sde", np.linspace(-5, 5, 801)
    keeps = lambda wide, kept: (f"({kept:.4g})", verdict(abs(wide - kept) < 1e-3, "that takes the drift u + sigma^2/2 score (003, 4.1)"))
    for sigma in (0.5, 1.0):
        density = carried(norm.pdf(x), x, line(CENTRE, STD), sigma, False)
        wide = (spread(x) * density).sum() / density.sum()
        what = f"as printed, sigma = {sigma:g}: variance about the nearest centre, against Fokker-Planck"
        yield drawn(what, where, spread(draw(as_printed(sigma))), wide, *keeps(wide, kept))
    one = standard(2).denoiser(Linear())
    x = np.asarray(sample(one, x_T, np.linspace(1, 0, steps + 1), as_printed(0.5), jax.random.key(11)))
    exact = widened(1.0, 0.5)
    yield drawn("as printed, sigma = 0.5, data N(0, 1): variance, 1 + pi/8", where, (x**2).ravel(), exact, *keeps(exact, 1.0))


def round_trip() -> Iterator[dict]:
    """The ODE of the four Gaussians there and back, and what it costs."""
    den, data = four_gaussians().denoiser(Linear()), four_gaussians().sample(jax.random.key(12), 64)
    there = encode(den, data, rtol=1e-8, atol=1e-8)
    back = sample_adaptive(den, there.x, rtol=1e-8, atol=1e-8)
    gap = jnp.abs(back.x - data).max()
    yield number("four Gaussians, encoded and decoded: largest difference", "000, ODEs for Generative Modeling", gap, 0, "0", digits=5)
    nfe = sample_adaptive(den, there.x, rtol=1e-5, atol=1e-5, solver=diffrax.Dopri5()).nfe.mean()
    says = {"text": "15 to 40", "agrees": verdict(15 <= nfe <= 40, f"{nfe:.0f} here")}
    yield number("evaluations of Dopri5 at 1e-5, mean of 64 samples", "001, Implementation in practice", nfe, None, **says)
    where, tight, end = "001, Practical considerations: exact log p(x)", {"rtol": 1e-8, "atol": 1e-8}, 1e-5
    gap = np.abs(log_likelihood(den, data, eps=end, **tight).log_prob - four_gaussians().marginal_log_prob(Linear(), data, end)).max()
    says = {"text": "'can'", "agrees": verdict(gap < 1e-4, f"off by {gap:.1g}")}
    yield number("four Gaussians, log p of 64 samples by the flow: largest difference", where, gap, 0, digits=5, **says)
    one = standard().denoiser(EDM(sigma_max=np.sqrt(3.0)))
    ours = log_likelihood(one, np.ones((1, 1)), eps=end, prior_std=2.0, **tight).log_prob[0]
    yield number("log p(1) of N(0, 1) by the flow to N(0, 4)", where, ours, norm.logpdf(1.0), digits=7)
