"""Densities and fields of the primer: two maps from N(0, 1) to N(0, 4), Fokker-Planck, the constants of the losses, conditional fields."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate
from scipy.stats import norm

from experiments.tables._primer import drawn, holds, number, verdict
from experiments.tables._primer_models import CENTRE, STD, line, standard
from samplers import encode
from sde_lib import EDM, OU, Denoiser, GaussianMixture, Linear, Trig, fokker_planck, normal, reverse_process


def score_constant(low: float) -> float:
    """L_SM - L_DSM on data N(0, 1) and the linear path, t even on (low, 1): the mean of 1/(t^2 + (1 - t)^2) - 1/t^2, -1/low as low -> 0."""
    return (np.pi / 4 + np.arctan(1 - 2 * low) + 1 - 1 / low) / (1 - low)


def two_maps(n: int) -> Iterator[dict]:
    """Adding a variable is the forward SDE of alpha = 1 to sigma^2 = 3; multiplying by a constant is its probability flow."""
    sde = EDM(sigma_max=np.sqrt(3.0))
    x0 = normal(jax.random.key(0), (n, 1))
    added = np.asarray(sde.perturb(jax.random.key(1), x0, sde.T)[0])[:, 0]
    den = standard().denoiser(sde)
    few = x0[:100]
    times = np.asarray(encode(den, few, rtol=1e-9, atol=1e-9, eps=1e-6).x / few)
    x0, where = np.asarray(x0)[:, 0], "000, Option 1: Adding another random variable"
    yield drawn(f"x0 + N(0, 3), {n} draws: mean", where, added, 0, "0")
    yield drawn("x0 + N(0, 3): variance", where, added**2, 4, "4")
    row = drawn("x0 + N(0, 3): E x0 x1 / 2, the correlation", where, x0 * added / 2, 0.5)
    yield row | {"text": "'a vague relation'", "agrees": verdict(0 < row["ours"] < 0.9, "none, or an exact one", "a correlation of 1/2")}
    where = "000, Option 2: Multiply by a constant"
    yield number("2 x0 by the probability flow: least x1/x0", where, times.min(), 2, "2", digits=6)
    yield number("2 x0 by the probability flow: largest x1/x0", where, times.max(), 2, "2", digits=6)
    yield drawn("2 x0: variance", where, (times.mean() * x0) ** 2, 4, "4")


def fokker_planck_residual(model: GaussianMixture, den: Denoiser, x, t):
    """dp/dt + d(f p)/dx - (g^2/2) d^2p/dx^2 of the exact marginals at one point."""
    sde, p = den.sde, lambda x, t: jnp.exp(model.marginal_log_prob(den.sde, x[None, None], t)[0])
    x, t = jnp.asarray(x, float), jnp.asarray(t, float)
    advected = jax.grad(lambda x: sde.drift_coefficient(t) * x * p(x, t))(x)
    return jax.grad(p, 1)(x, t) + advected - 0.5 * sde.diffusion(t) ** 2 * jax.grad(jax.grad(p))(x, t)


def continuity_residual(model: GaussianMixture, den: Denoiser, x, t):
    """dp/dt + d(v p)/dx, v the velocity of the probability flow."""
    p = lambda x, t: jnp.exp(model.marginal_log_prob(den.sde, x[None, None], t)[0])
    x, t = jnp.asarray(x, float), jnp.asarray(t, float)
    return jax.grad(p, 1)(x, t) + jax.grad(lambda x: den.velocity(x[None, None], t)[0, 0] * p(x, t))(x)


def densities() -> Iterator[dict]:
    """The Fokker-Planck equation of SDEs and of their reversals, against the exact marginals."""
    where, x = "002, appendix C; 004, PDEs", np.linspace(-5, 5, 801)
    h, sde, model = x[1] - x[0], OU(theta=1.0, noise=np.sqrt(2.0), T=2.0), line(CENTRE, STD)
    exact = lambda t: np.exp(np.asarray(model.marginal_log_prob(sde, x[:, None], t)))
    apart = lambda p, t: np.abs(np.asarray(p) - exact(t)).sum() * h
    den = model.denoiser(sde)
    for name, residual in (("Fokker-Planck (27)", fokker_planck_residual), ("continuity (30)", continuity_residual)):
        found = jax.vmap(lambda x, residual=residual: residual(model, den, x, 0.3))(jnp.linspace(-3, 3, 61))
        yield number(f"two Gaussians on OU at t = 0.3, equation of {name}: largest residual", where, jnp.abs(found).max(), 0)
    forward = fokker_planck(exact(0.0), [x], np.linspace(0, sde.T, 251), sde=sde)
    yield number("two Gaussians on OU, forward to T = 2: L1 distance of Fokker-Planck to p_T", where, apart(forward, sde.T), 0, digits=3)
    yield number("its mass", where, np.asarray(forward).sum() * h, exact(0.0).sum() * h, "1")
    ways = ((1.0, "the reverse SDE", "002, eq. (5); 004, SDE (The Sequel)"), (0.5, "a process of half its noise", "003, 4.1: 'for any diffusion'"))
    for eta, name, of in ways:
        back = fokker_planck(exact(sde.T), [x], np.linspace(0, sde.T, 501), *reverse_process(den, eta))
        yield number(f"back to t = 0 by {name}: L1 distance to p_0", of, apart(back, 0.0), 0, digits=3)
    first = norm.pdf(x, 3.0, 0.2)
    last = np.asarray(fokker_planck(first, [x], np.linspace(0, 4, 501), sde=OU(theta=2.0, noise=1.0, T=4.0)))
    gap, where = np.abs(last - norm.pdf(x, 3 * np.exp(-8), np.sqrt(0.25 - 0.21 * np.exp(-16)))).sum() * h, "001, Convergence of the OU process"
    stationary = np.abs(last - norm.pdf(x, 0, 0.5)).sum() * h
    says = {"text": "N(0, 0.25)", "agrees": verdict(stationary < 0.01, f"an L1 distance of {stationary:.2f}")}
    yield number("OU, theta = 2, from N(3, 0.04), for 3, to t = 4: L1 distance to its law", where, gap, 0, digits=3, **says)


def losses(n: int) -> Iterator[dict]:
    """What the losses of seed 003 differ by from those with conditional targets, of three fields each, on data N(0, 1)."""
    sde, den, low = Linear(), standard().denoiser(Linear()), 0.1
    x0, even = normal(jax.random.key(2), (n, 1)), jax.random.uniform(jax.random.key(3), (n,), float)
    field = "L_FM - L_CFM", "003, 3.3", 0.0, lambda x, t: -den.velocity(x, t), lambda noise, t: x0 - noise, -np.pi / 2
    score = f"L_SM - L_DSM, t > {low}", "003, 4.2", low, den.score, lambda noise, t: -noise / t[:, None], score_constant(low)
    for name, where, first, marginal, conditional, exact in (field, score):
        t = first + (1 - first) * even
        x, noise = sde.perturb(jax.random.key(4), x0, t)
        mean, target = marginal(x, t), conditional(noise, t)
        for what, guess in (("the exact field", mean), ("0", 0 * x), ("x", x)):
            row = drawn(f"{name} of {what}", where, np.asarray((mean - guess) ** 2 - (target - guess) ** 2)[:, 0], exact)
            yield row | {
                "text": "'C'",
                "agrees": verdict(holds(row), "another constant", "as t > 0.1 alone, and -1/t there: infinite on (0, 1)" if first else ""),
            }
    edm, sigma = EDM(), 2.0
    x, noise = edm.perturb(jax.random.key(5), x0, sigma)
    floor = sigma**2 * np.asarray(standard().denoiser(edm).score(x, sigma) + noise / sigma)[:, 0] ** 2
    yield drawn("lambda = sigma^2, sigma = 2: loss (8) of the exact score, data N(0, 1)", "002, eq. (8)", floor, 1 / (1 + sigma**2))


def formulas() -> Iterator[dict]:
    """Conditional fields and scores of seed 003, in its time, where all is noise at t = 0: sde_lib's is 1 - t."""
    t, z, eps = 0.3, 2.0, -1.0
    angle = 0.5 * np.pi * t
    linear = "alpha = t, beta = 1 - t", Linear(), t, 1 - t, 1.0, -1.0
    trig = "alpha = sin(pi t/2), beta = cos(pi t/2)", Trig(T=1.0), np.sin(angle), np.cos(angle), np.pi / 2 * np.cos(angle), -np.pi / 2 * np.sin(angle)
    for name, sde, alpha, beta, alpha_dot, beta_dot in (linear, trig):
        x, given = alpha * z + beta * eps, f"{name}, at t = 0.3 of z = 2, eps = -1"
        known, exact = Denoiser(lambda x, t: jnp.full_like(x, z), sde, "data"), (alpha_dot - beta_dot / beta * alpha) * z + beta_dot / beta * x
        says = {"text": "3"} if sde == Linear() else {}
        yield number(f"{given}: field", "003, Conditional Gaussian vector field", -known.velocity(jnp.full((1, 1), x), 1 - t)[0, 0], exact, **says)
        score = known.score(jnp.full((1, 1), x), 1 - t)[0, 0]
        yield number(f"{given}: score", "003, Score function", score, -(x - alpha * z) / beta**2)
    t, x = 0.4, 0.7
    p = lambda z: 0.5 * (norm.pdf(z, -CENTRE, STD) + norm.pdf(z, CENTRE, STD)) * norm.pdf(x, (1 - t) * z, t)
    mean = integrate.quad(lambda z: (x - z) / t * p(z), -5, 5)[0] / integrate.quad(p, -5, 5)[0]
    velocity = line(CENTRE, STD).denoiser(Linear()).velocity(jnp.full((1, 1), x), t)[0, 0]
    yield number("field of two Gaussians at x = 0.7, t = 0.4 as the mean of (x - x_0)/t given x", "002, eq. (25); 003, 3.2", velocity, mean, digits=7)
    where, x, t, sigma, den = "003, SDE for Gaussian probability path", jnp.ones((1, 1)), 0.5, 0.5, standard().denoiser(Linear())
    drift = float((-den.velocity(x, t) + 0.5 * sigma**2 * den.score(x, t))[0, 0])
    a, b, score = (1 - t) ** 2 / t + (1 - t), 1 / t, -1 / (t**2 + (1 - t) ** 2)
    exact, theirs = (a + 0.5 * sigma**2) * score + b, a + 0.5 * sigma**2 * score + b
    right = verdict(np.isclose(exact, theirs), "its bracket should close before the score, (a + sigma^2/2) s + b x")
    yield number("drift at x = 1, t = 0.5, sigma = 0.5, data N(0, 1)", where, drift, exact, f"({theirs:.2f})", right)
    with np.errstate(divide="ignore"):
        a = np.divide(1.0, 0.0) + 1
    says = {"text": "(inf - inf)", "agrees": verdict(np.isfinite(a), "a_t and b_t are infinite there, a_t s + b_t x is not")}
    yield number("field at x = 1, t = 0, data N(0, 1)", where, -den.velocity(x, 1.0)[0, 0], -1, **says)
