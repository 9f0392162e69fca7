"""Predictor-corrector sampling against exact recursions on Gaussians, and its promises: the paper's steps, no batch-mates, evaluations as made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from samplers import annealed_langevin, grids, langevin, predictor_corrector, sample, solvers
from samplers.predictor_corrector import evaluations
from sde_lib import DDPM, NCSN, OU, VE, VP, Cosine, Denoiser, GaussianMixture, Linear, SubVP, normal

PREDICTORS = {
    "euler_maruyama": solvers.euler_maruyama(),
    "reverse_diffusion": solvers.reverse_diffusion(),
    "ancestral": solvers.ancestral(),
    "probability_flow": solvers.probability_flow(),
    "none": None,
}
CORRECTORS = {"none": None, "langevin": langevin(), "annealed_langevin": annealed_langevin(), "two of langevin": langevin(0.3, 2)}
PAIRS = [(p, c) for p in PREDICTORS for c in ("none", "langevin", "annealed_langevin") if (p, c) != ("none", "none")]
LANGEVIN = ("langevin", "two of langevin")
PAIRS.append(("reverse_diffusion", "two of langevin"))
DIM = 128
MEAN, STD = np.linspace(-0.5, 0.5, DIM), np.repeat([0.3, 0.6], DIM // 2)
AXES = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0]
GAUSSIAN = GaussianMixture((AXES @ MEAN)[None], STD[None], None, AXES[None])


def recursion(sde, times, predictor, corrector):
    """Mean and variance [DIM] along the axes after the last step, of x_T from the prior: every move is affine in x, given e. Langevin's e is that of
    the mean |score|^2, as it is in many dimensions."""
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    shrink = (alpha / sde.alpha(np.append(times[1:], 0.0))) ** 2  # of the step down from each time
    mean, variance = np.zeros(DIM), np.full(DIM, sigma[0] ** 2)
    table = None if predictor is None else predictor(sde, times)
    for i in range(len(times) - 1):
        if table is not None:
            gain = alpha[i] * STD**2 / ((alpha[i] * STD) ** 2 + sigma[i] ** 2)  # D = MEAN + gain (x - alpha MEAN)
            factor = table.x[i, 0] + table.p[i, 0] * gain
            mean = factor * mean + table.p[i, 0] * (MEAN - gain * alpha[i] * MEAN)
            variance = factor**2 * variance + (0.0 if table.noise is None else table.noise[i] ** 2)
        total = (alpha[i + 1] * STD) ** 2 + sigma[i + 1] ** 2
        for _ in range(corrector.steps if corrector else 0):
            off = mean - alpha[i + 1] * MEAN
            of_score = np.mean((off**2 + variance) / total**2)
            e = 2 * shrink[i + 1] * corrector.snr**2 * (1 / of_score if corrector.scale is langevin().scale else sigma[i + 1] ** 2)
            mean, variance = mean - e * off / total, (1 - e / total) ** 2 * variance + 2 * e
    return mean, variance


@pytest.mark.slow
@pytest.mark.parametrize("sde", [pytest.param(cls(), id=cls.__name__) for cls in (VP, VE, SubVP, DDPM, NCSN, OU, Cosine, Linear)])
def test_every_pair_on_a_gaussian(sde):
    """Mean and covariance of 400 samples (seeds 0 and 1) of a turned 128-D Gaussian after 50 steps, against the recursion.

    In the axes of the Gaussian, standardised: the mean of each half has the standard error 1/sqrt(25600) = 0.0063, its variance 0.0088, the sum of
    the squared correlations (times n - 1) 8128 +- 128. Bounds of 4.5 of each; with Langevin 2/128 more of the mean and 8/128 of the variance, as its
    |z|/|score| varies by so much about its mean.
    """
    times, n = grids.uniform(sde, 50), 400
    den, x_T = GAUSSIAN.denoiser(sde), sde.prior_sample(jax.random.key(0), (n, DIM))
    for name, corrector in PAIRS:
        x = predictor_corrector(den, x_T, times, PREDICTORS[name], CORRECTORS[corrector], jax.random.key(1))
        mean, variance = recursion(sde, times, PREDICTORS[name], CORRECTORS[corrector])
        z = (np.asarray(x, np.float64) @ AXES - mean) / np.sqrt(variance)
        slack = 1 / DIM if corrector in LANGEVIN else 0.0
        halves = z.reshape(n, 2, DIM // 2)
        off = (n - 1) * np.sum(np.corrcoef(z.T)[np.triu_indices(DIM, 1)] ** 2)
        found = (name, corrector, halves.mean((0, 2)), halves.var((0, 2)), off)
        assert np.abs(halves.mean((0, 2))).max() < 4.5 * 0.0063 + 2 * slack, found
        assert np.abs(halves.var((0, 2)) - 1).max() < 4.5 * 0.0088 + 8 * slack, found
        assert abs(off - 8128) < 4.5 * 128, found


@pytest.mark.parametrize("sde", [VE(), VP(), SubVP()], ids=lambda sde: type(sde).__name__)
def test_recursions_tend_to_the_data(sde):
    """At 2000 steps the variance of every pair with a predictor is that of the marginal at the end, times 1 + r^2 with Langevin, within 3 %."""
    times = grids.uniform(sde, 2000)
    truth = (sde.alpha(times[-1]) * STD) ** 2 + sde.sigma(times[-1]) ** 2
    for name, corrector in PAIRS[:-1]:
        if name != "none":
            variance = recursion(sde, times, PREDICTORS[name], CORRECTORS[corrector])[1]
            # e is one for all coordinates: 1 + r^2 is the mean over them of variance/truth, weighted by 1/truth
            excess = np.average(variance / truth, weights=1 / truth) - 1
            assert excess == pytest.approx(0.16**2 if corrector == "langevin" else 0.0, abs=0.03), (name, corrector, excess)


@pytest.mark.slow
@pytest.mark.parametrize("r, want", [pytest.param(0.16, 1.0256, marks=pytest.mark.slow), (0.3, 1.09)])
def test_stationary_variance_of_langevin(r, want):
    """v (1 + r^2) on N(0, v I) in high dimension where alpha = 1 (score_sde.md, check 8): 2000 moves of 8 examples in 2048-D.

    Standard error sqrt(2/16384) = 0.011 of one state; of the mean of 36 states 50 moves apart 0.0019; seed 0. Bound 5 of them.
    """
    v, sde = 0.25, VE()
    den = Denoiser(lambda x, t: -x / v, sde, "score")
    x = jnp.sqrt(v) * normal(jax.random.key(1), (8, 2048))
    path = predictor_corrector(den, x, np.linspace(0.5, 0.4, 41), None, langevin(r, 50), jax.random.key(0), path=True)
    assert float(np.mean(np.asarray(path[5:]) ** 2)) / v == pytest.approx(want, abs=0.0095)


def constant(score, x, t):
    return score * jnp.ones_like(x)


def steps_of(corrector, score, times, sde):
    """e and z [B] of the move at times[1], read off two constant scores of opposite sign: x' = x +- e score + sqrt(2 e) z."""
    x = jnp.zeros((4, 8))
    of = lambda score: Denoiser(Partial(constant, jnp.asarray(score)), sde, "score")
    move = lambda sign: predictor_corrector(of(sign * score), x, times, None, corrector, jax.random.key(0), path=True)[1]
    plus, minus = move(1.0), move(-1.0)
    e = np.mean(plus - minus, 1) / (2 * score)
    return e, (plus + minus) / (2 * np.sqrt(2 * e))[:, None]


@pytest.mark.parametrize("sde, i", [(DDPM(), 999), (DDPM(), 1), (NCSN(), 500)], ids=["DDPM-999", "DDPM-1", "NCSN-500"])
def test_steps_are_the_papers(sde, i, x64):
    """Algorithm 5 on DDPM's chain: e_i = 2 (1 - beta_i) (r |z|/|score|)^2, annealed (r sigma_i)^2; algorithm 4 on NCSN's, without beta."""
    r, score, a = 0.17, 3.0, 1 - sde.betas[i - 1] if isinstance(sde, DDPM) else 1.0
    grid = np.array([sde.time_of_step(k) for k in (i + 1, i, i - 1) if k > 0])
    e, z = steps_of(langevin(r), score, grid, sde)
    size = np.linalg.norm(z, axis=1) / (score * np.sqrt(8))
    np.testing.assert_allclose(e, 2 * a * (r * size) ** 2, rtol=1e-9)
    assert np.ptp(e) > 0.01 * e.mean()  # each example has its own
    e, z = steps_of(annealed_langevin(r), score, grid, sde)
    np.testing.assert_allclose(e, 2 * a * (r * sde.sigma(grid[1])) ** 2, rtol=1e-9)
    assert abs(z.mean()) < 5 / np.sqrt(32) and 0.4 < z.std() < 1.6


def test_batch_mates_do_not_matter():
    """Three of eight examples, with their own keys, come out the same; norms over the batch (score_sde's) would move them by more than 1e-2."""
    sde, times = VP(), grids.uniform(VP(), 20)
    den, keys = Denoiser(lambda x, t: jnp.tanh(x), sde, "noise"), jax.random.split(jax.random.key(0), 8)
    x_T = sde.prior_sample(jax.random.key(1), (8, DIM)) * jnp.linspace(0.2, 3.0, 8)[:, None]

    def batch_norms(score, z, sigma):
        return jnp.linalg.norm(z) / jnp.linalg.norm(score)

    run = lambda rows, corrector: predictor_corrector(den, x_T[rows], times, solvers.reverse_diffusion(), corrector, keys[rows])
    of, whole = np.array([1, 4, 6]), np.arange(8)
    np.testing.assert_allclose(run(of, langevin()), run(whole, langevin())[of], rtol=1e-4, atol=1e-5)
    jointly = type(langevin())(0.16, 1, batch_norms)
    assert np.abs(run(of, jointly) - run(whole, jointly)[of]).max() > 1e-2


@pytest.mark.parametrize("name, corrector, made", [("ancestral", "two of langevin", 15), ("none", "langevin", 5), ("ancestral", "none", 5)])
def test_evaluations_are_those_made(name, corrector, made):
    """`evaluations` counts the calls of the network."""
    calls, sde = [], VP()

    def fn(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return x

    times = grids.uniform(sde, 5)
    predictor_corrector(Denoiser(fn, sde, "noise"), jnp.ones((2, 3)), times, PREDICTORS[name], CORRECTORS[corrector], jax.random.key(0))
    jax.effects_barrier()
    assert len(calls) == evaluations(times, PREDICTORS[name], CORRECTORS[corrector]) == made


def test_constraints_follow_every_move():
    """With no score and hardly any noise, a constraint that adds 1 has added one for each move; its keys are fresh, and the time is that reached."""
    sde, times = VE(), np.array([1.0, 0.7, 0.4])
    den = Denoiser(lambda x, t: jnp.zeros_like(x), sde, "score")
    run = lambda constrain: predictor_corrector(
        den, jnp.zeros((2, 1)), times, solvers.probability_flow(), annealed_langevin(1e-9, 2), jax.random.key(0), constrain, path=True
    )
    np.testing.assert_allclose(run(lambda keys, x, t: x + 1)[1:], [[[3.0]] * 2, [[6.0]] * 2], atol=1e-4)
    np.testing.assert_allclose(run(lambda keys, x, t: jnp.full_like(x, t))[1:, :, 0], [[0.7] * 2, [0.4] * 2], rtol=1e-6)
    drawn = run(lambda keys, x, t: x + normal(keys, x.shape))
    assert len(np.unique(np.diff(drawn, axis=0))) == 4


def test_without_corrector_it_is_sample():
    sde, times = SubVP(), grids.uniform(SubVP(), 10)
    den, x_T = GAUSSIAN.denoiser(sde), sde.prior_sample(jax.random.key(0), (4, DIM))
    one = predictor_corrector(den, x_T, times, solvers.probability_flow(), path=True)
    np.testing.assert_allclose(one, sample(den, x_T, times, solvers.probability_flow(), path=True), rtol=1e-5, atol=1e-5)


def test_one_compilation_serves_every_grid_and_snr():
    traces, sde = [], VP()

    def fn(x, t):
        traces.append(1)
        return x

    den, x = Denoiser(fn, sde, "noise"), jnp.ones((2, 3))
    run = lambda grid, r: predictor_corrector(den, x, grid(sde, 5), solvers.ancestral(), langevin(r), jax.random.key(0))
    run(grids.uniform, 0.1)
    first = len(traces)
    run(grids.karras, 0.2)
    assert len(traces) == first > 0


def test_mistakes_are_refused():
    sde = VP()
    den, x, times = GAUSSIAN.denoiser(sde), jnp.ones((2, DIM)), grids.uniform(sde, 4)
    for bad, words in (
        (lambda: predictor_corrector(den, x, times, None), "neither a predictor nor a corrector"),
        (lambda: predictor_corrector(den, x, times, solvers.heun(), langevin(), jax.random.key(0)), "one evaluation a step"),
        (lambda: predictor_corrector(den, x, times, solvers.ipndm(), langevin(), jax.random.key(0)), "one evaluation a step"),
        (lambda: predictor_corrector(den, x, times, solvers.ancestral()), "pass key"),
        (lambda: predictor_corrector(den, x, times, None, langevin()), "pass key"),
        (lambda: predictor_corrector(den, x, times[::-1], None, langevin(), jax.random.key(0)), "must decrease"),
        (lambda: predictor_corrector(den, x, grids.with_zero(times), None, langevin(), jax.random.key(0)), "sigma = 0"),
        (lambda: langevin(0.0), "snr above 0"),
        (lambda: langevin(np.inf), "finite snr"),
        (lambda: langevin(steps=1.5), "whole number of steps"),
        (lambda: annealed_langevin(steps=0), "at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()


def test_no_score_no_step():
    """Where the score vanishes the Langevin step, of the noise to the score in norm, is 0 and not infinite."""
    den = Denoiser(lambda x, t: jnp.zeros_like(x), VE(), "score")
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(predictor_corrector(den, x, grids.uniform(VE(), 2), None, langevin(), jax.random.key(0)), x)


@pytest.mark.slow
def test_modes_of_a_mixture_keep_their_weights():
    """Reverse diffusion with either corrector, 100 steps of VP: 1000 samples of two modes in 128-D, seed 0, of weights 1/3 and 2/3.

    The standard error of a weight is 0.015, bound 4 of them; the spread of each mode is within 4 % of its own and, with Langevin, sqrt(1 + r^2).
    """
    sde, times, d = VP(), grids.log_snr(VP(), 100), 128
    gm = GaussianMixture(np.stack([-0.2 * np.ones(d), 0.2 * np.ones(d)]), np.array([0.25, 0.15]), [1.0, 2.0])
    x_T = sde.prior_sample(jax.random.key(0), (1000, d))
    for corrector, widen in ((langevin(), np.sqrt(1 + 0.16**2)), (annealed_langevin(), 1.0)):
        x = np.asarray(predictor_corrector(gm.denoiser(sde), x_T, times, solvers.reverse_diffusion(), corrector, jax.random.key(1)))
        right = x.mean(1) > 0
        assert abs(right.mean() - 2 / 3) < 4 * 0.015
        for of, std in ((right, 0.15), (~right, 0.25)):
            spread = np.sqrt(((x[of] - x[of].mean(0)) ** 2).mean())
            assert spread == pytest.approx(widen * np.hypot(std, sde.sigma(times[-1])), rel=0.04), (corrector, spread)
