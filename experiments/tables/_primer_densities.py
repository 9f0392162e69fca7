"""Densities of the primer: two maps from N(0, 1) to N(0, 4), Fokker-Planck, and exact models of a mixture sampled as ODE and as SDE."""

from collections.abc import Iterator
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, optimize
from scipy.stats import norm

from experiments.tables._primer import drawn, number
from samplers import encode, grids, sample, sample_adaptive, solvers, strengths
from sde_lib import EDM, OU, SDE, Denoiser, GaussianMixture, Linear, normal
from sde_lib.fokker_planck import fokker_planck

CENTRE, STD = 1.5, 0.4  # of the four Gaussians, at (+-1.5, +-1.5)
FOUR = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]) * CENTRE
NOISES = (0.0, 0.5, 1.0, 2.0)  # sigma of the showcase; the text's own is 0.5
LAST = 0.999  # alpha = 0 at t = 1, whence a reverse SDE would forget where it began


def four_gaussians() -> GaussianMixture:
    return GaussianMixture(FOUR, np.full(4, STD))


def line(mean: float, std: float) -> GaussianMixture:
    """Two Gaussians in one dimension, at +-mean."""
    return GaussianMixture(np.array([[-mean], [mean]]), np.full(2, std))


def with_noise(sigma: float):
    """Euler-Maruyama of dx = (v - sigma^2/2 score) dt + sigma dw, run from T down: the marginals of the model at any sigma; Euler's method at 0."""
    return solvers.euler_maruyama(strengths.eta(Linear(), "constant", 0.5 * sigma**2))


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


def transported(u: float, mean: float, std: float) -> float:
    """Where the quantile u of the prior ends on the line: the ODE keeps the order."""
    cdf = lambda x: 0.5 * (norm.cdf((x - mean) / std) + norm.cdf((x + mean) / std))
    return optimize.brentq(lambda x: cdf(x) - u, -3 * mean, 3 * mean, xtol=1e-14)


def carried(p, x, model: GaussianMixture, sigma: float, corrected: bool, start: float = 1.0, steps: int = 400) -> np.ndarray:
    """The density on cells x that p at t = start comes to at t = 0 by the SDE of `with_noise`, or of `as_printed`, on the linear path."""
    den = model.denoiser(Linear())

    def drift(x, s):
        drift = -den.velocity(x, start - s)
        return drift + 0.5 * sigma**2 * den.score(x, start - s) if corrected else drift

    return np.asarray(fokker_planck(p, [x], np.linspace(0, start, steps + 1), drift, lambda s: sigma))


def two_maps(n: int) -> Iterator[dict]:
    """Adding a variable is the forward SDE of alpha = 1 to sigma^2 = 3; multiplying by a constant is its probability flow."""
    sde = EDM(sigma_max=np.sqrt(3.0))
    x0 = normal(jax.random.key(0), (n, 1))
    added = np.asarray(sde.perturb(jax.random.key(1), x0, sde.T)[0])[:, 0]
    den = GaussianMixture(np.zeros((1, 1)), np.ones(1)).denoiser(sde)
    few = x0[:100]
    times = np.asarray(encode(den, few, rtol=1e-9, atol=1e-9, eps=1e-6).x / few)
    x0, where = np.asarray(x0)[:, 0], "000, Option 1: Adding another random variable"
    yield drawn(f"x0 + N(0, 3), {n} draws: mean", where, added, 0, "0")
    yield drawn("x0 + N(0, 3): variance", where, added**2, 4, "4")
    says = {"text": "'a vague relation'", "agrees": "yes: a correlation of 1/2"}
    yield drawn("x0 + N(0, 3): E x0 x1 / 2, the correlation", where, x0 * added / 2, 0.5, **says)
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
    for eta, name in ((1.0, "the reverse SDE"), (0.5, "a process of half its noise")):
        drift = lambda x, s, eta=eta: -sde.reverse_drift(x, sde.T - s, den.score(x, sde.T - s), eta)
        diffusion = lambda s, eta=eta: eta * sde.diffusion(sde.T - s)
        back = fokker_planck(exact(sde.T), [x], np.linspace(0, sde.T, 501), drift, diffusion)
        yield number(f"back to t = 0 by {name}: L1 distance to p_0", "002, eq. (5) and (20); 004, ODEs", apart(back, 0.0), 0, digits=3)
    first = norm.pdf(x, 3.0, 0.2)
    last = np.asarray(fokker_planck(first, [x], np.linspace(0, 4, 501), sde=OU(theta=2.0, noise=1.0, T=4.0)))
    gap, where = np.abs(last - norm.pdf(x, 3 * np.exp(-8), np.sqrt(0.25 - 0.21 * np.exp(-16)))).sum() * h, "001, Convergence of the OU process"
    yield number("OU, theta = 2, from N(3, 0.04) to t = 4: L1 distance to its law", where, gap, 0, "N(0, 0.25)", "yes", digits=3)


def matching(n: int) -> Iterator[dict]:
    """The constants of the losses, and the formulas of the fields."""
    sde, one = Linear(), GaussianMixture(np.zeros((1, 1)), np.ones(1))
    x0, t = normal(jax.random.key(2), (n, 1)), jax.random.uniform(jax.random.key(3), (n,), float)
    x_t, noise = sde.perturb(jax.random.key(4), x0, t)
    loss = np.asarray(one.denoiser(sde).velocity(x_t, t) - (noise - x0))[:, 0] ** 2
    yield drawn("L_CFM of the exact field on data N(0, 1): pi/2, where L_FM = 0", "003, 3.3", loss, np.pi / 2, "C", "yes")
    edm = EDM()
    x_1, noise = edm.perturb(jax.random.key(5), x0, 1.0)
    floor = np.asarray(one.denoiser(edm).score(x_1, 1.0) + noise)[:, 0] ** 2
    yield drawn("lambda = sigma^2: loss (8) of the exact score, data N(0, 1), sigma = 1", "002, eq. (8)", floor, 0.5)
    where, t, z, eps = "003, Conditional Gaussian vector field", 0.3, 2.0, -1.0  # t of the text, 1 - t here
    known, x = Denoiser(lambda x, t: jnp.full_like(x, z), sde, "data"), jnp.full((1, 1), t * z + (1 - t) * eps)
    yield number("field at x = t z + (1 - t) eps given z = 2, eps = -1: z - eps", where, -known.velocity(x, 1 - t)[0, 0], z - eps, "3")
    yield number("score there: -eps/beta", "003, Score function", known.score(x, 1 - t)[0, 0], -eps / (1 - t))
    t, x, pair = 0.4, 0.7, line(CENTRE, STD)
    p = lambda z: 0.5 * (norm.pdf(z, -CENTRE, STD) + norm.pdf(z, CENTRE, STD)) * norm.pdf(x, (1 - t) * z, t)
    mean = integrate.quad(lambda z: (x - z) / t * p(z), -5, 5)[0] / integrate.quad(p, -5, 5)[0]
    velocity = pair.denoiser(sde).velocity(jnp.full((1, 1), x), t)[0, 0]
    yield number("field of two Gaussians at x = 0.7, t = 0.4 as the mean of (x - x_0)/t given x", "002, eq. (25); 003, 3.2", velocity, mean, digits=7)
    where, x, t, sigma = "003, SDE for Gaussian probability path", jnp.ones((1, 1)), 0.5, 0.5
    den = one.denoiser(sde)
    drift = float((-den.velocity(x, t) + 0.5 * sigma**2 * den.score(x, t))[0, 0])
    a, b, score = (1 - t) ** 2 / t + (1 - t), 1 / t, -1 / (t**2 + (1 - t) ** 2)
    says = {"text": f"{a + 0.5 * sigma**2 * score + b:.2f}", "agrees": "no: its bracket should close before the score, (a + sigma^2/2) s + b x"}
    yield number("drift at x = 1, t = 0.5, sigma = 0.5, data N(0, 1)", where, drift, (a + 0.5 * sigma**2) * score + b, **says)


def fields_of_models() -> Iterator[dict]:
    """The exact velocity of the four Gaussians on the linear path; the text's time runs the other way, so that its u = -v."""
    where, den, variance = "001, Mathematical properties of vector fields", four_gaussians().denoiser(Linear()), CENTRE**2 + STD**2
    divergence = np.trace(jax.jacfwd(lambda x: -den.velocity(x[None], 1.0)[0])(jnp.array([0.3, -0.8])))
    says = {"text": "'pushes apart'", "agrees": "no: u = E x_0 - x there, which draws together"}
    yield number("divergence of u in 2-D where all is noise", where, divergence, -2, **says)
    where, at = "001, What neural architecture is used?", jnp.array([[CENTRE, -CENTRE], [1.1, 1.9]])
    gap = np.abs(-den.velocity(at, 1e-6) - at).max()
    says = {"text": "'small'", "agrees": f"no: u = x; its mean square is {2 * variance:.2f}, where all is noise {2.0:.2f}"}
    yield number("largest difference of u and x where all is data", where, gap, 0, digits=3, **says)
    one, start = GaussianMixture(FOUR[:1], np.zeros(1)), Linear().prior_sample(jax.random.key(6), (8, 2))
    once = lambda den: np.asarray(sample(den, start, np.array([1.0, 0.0]), solvers.euler()))
    where = "000, Flow Matching in Practice; 002, 4.3.2"
    yield number("one step of Euler to a single point: largest error", where, np.abs(once(one.denoiser(Linear())) - FOUR[0]).max(), 0, "0")
    says = {"text": "'not necessarily'", "agrees": "yes: all end at the mean, 0"}
    yield number("one step of Euler to four Gaussians: largest |x|", where, np.abs(once(den)).max(), 0, **says)


def two_modes(n: int) -> Iterator[dict]:
    """Modes at +-5, sharp: of standard deviation 0.5. Where x_T = 0.1 goes."""
    where, model, x_T = "001, comparing ODE and SDE sampling", line(5.0, 0.5), 0.1
    den = model.denoiser(Linear())
    end = sample_adaptive(den, np.array([[x_T]]), rtol=1e-9, atol=1e-9, eps=1e-7).x[0, 0]
    says = {"text": "+5", "agrees": "yes: always in the mode at +5"}
    yield number("modes +-5 of 0.5, ODE from 0.1: x", where, end, transported(norm.cdf(x_T), 5.0, 0.5), digits=5, **says)
    start, x = np.full((n, 1), x_T), np.linspace(-8, 8, 1001)
    below = lambda solver, times, key: np.asarray(sample(den, start, times, solver, jax.random.key(key)))[:, 0] < 0
    says = {"text": "either", "agrees": "yes: with the reverse SDE of this path, which forgets x_T, evenly"}
    found = below(solvers.euler_maruyama(), grids.uniform(Linear(), 200), 7)
    yield drawn("reverse SDE from 0.1, 200 steps: share in the mode at -5", where, found, 0.5, **says)
    for sigma in (0.5, 1.0):
        density = carried(norm.pdf(x, x_T, 0.04), x, model, sigma, True, LAST)
        share = density[x < 0].sum() / density.sum()
        found = below(with_noise(sigma), np.linspace(LAST, 0, 501), 8)
        what = f"SDE of sigma = {sigma:g} from 0.1, 500 steps: share in the mode at -5, against Fokker-Planck"
        yield drawn(what, where, found, share, text="either", agrees="yes")


def showcase(n: int, steps: int) -> Iterator[dict]:
    where, den = "001, showcase of 4 Gaussians", four_gaussians().denoiser(Linear())
    x_T, times = Linear().prior_sample(jax.random.key(9), (n, 2)), np.linspace(LAST, 0, steps + 1)
    draw = lambda solver: np.asarray(sample(den, x_T, times, solver, jax.random.key(10)))
    spread = lambda x: ((np.abs(x) - CENTRE) ** 2).ravel()
    for sigma in NOISES:
        x, name = draw(with_noise(sigma)), f"SDE of sigma = {sigma:g}" if sigma else "ODE"
        yield drawn(f"{name}, {n} samples in {steps} steps: share in the first quadrant", where, (x > 0).all(1), 0.25)
        yield drawn(f"{name}: variance about the nearest centre", where, spread(x), about_centre(CENTRE, STD))
    where, x = "001, sample_sde", np.linspace(-5, 5, 801)
    kept = about_centre(CENTRE, STD)
    says = {"text": f"{kept:.4f}", "agrees": "no: that takes the drift u + sigma^2/2 score (003, 4.1)"}
    for sigma in (0.5, 1.0):
        density = carried(norm.pdf(x), x, line(CENTRE, STD), sigma, False)
        wide = (spread(x) * density).sum() / density.sum()
        what = f"as printed, sigma = {sigma:g}: variance about the nearest centre, against Fokker-Planck"
        yield drawn(what, where, spread(draw(as_printed(sigma))), wide, **says)
    one = GaussianMixture(np.zeros((1, 2)), np.ones(1)).denoiser(Linear())
    x = np.asarray(sample(one, x_T, np.linspace(1, 0, steps + 1), as_printed(0.5), jax.random.key(11)))
    yield drawn("as printed, sigma = 0.5, data N(0, 1): variance, 1 + pi/8", where, (x**2).ravel(), widened(1.0, 0.5), **says | {"text": "1"})


def round_trip() -> Iterator[dict]:
    """The ODE of the four Gaussians there and back, and what it costs."""
    den, data = four_gaussians().denoiser(Linear()), four_gaussians().sample(jax.random.key(12), 64)
    there = encode(den, data, rtol=1e-8, atol=1e-8)
    back = sample_adaptive(den, there.x, rtol=1e-8, atol=1e-8)
    gap = jnp.abs(back.x - data).max()
    yield number("four Gaussians, encoded and decoded: largest difference", "000, ODEs for Generative Modeling", gap, 0, "0", digits=5)
    nfe = sample_adaptive(den, there.x, rtol=1e-5, atol=1e-5, solver=diffrax.Dopri5()).nfe.mean()
    yield number("evaluations of Dopri5 at 1e-5, mean of 64 samples", "001, Implementation in practice", nfe, None, "15 to 40", f"no: {nfe:.0f} here")
