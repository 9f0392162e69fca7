"""Guidance on mixtures whose conditional and unconditional scores are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from samplers import (
    autoguidance,
    classifier_free,
    classifier_guidance,
    grids,
    log_likelihood,
    rectified_cfg,
    sample,
    sample_adaptive,
    solvers,
    variational_bound,
)
from sde_lib import EDM, PLANE, VP, Denoiser, GaussianMixture, Linear

MEANS, STDS = np.array([[-1.0, 0.3], [0.8, -0.2]]), np.array([0.3, 0.4])
BOTH = GaussianMixture(MEANS, STDS)
EACH = [GaussianMixture(m[None], s[None]) for m, s in zip(MEANS, STDS)]


def conditional(sde, kind):
    """An exact model of one component, or of the mixture for label 2."""
    dens = [gm.denoiser(sde) for gm in (*EACH, BOTH)]

    def fn(x, t, label):
        return jnp.stack([den.predict(kind, x, t) for den in dens])[label, jnp.arange(len(x))]

    return Denoiser(fn, sde, kind, cond=jnp.array([0, 1, 1, 0]))


@pytest.mark.parametrize("kind", ["noise", *(pytest.param(kind, marks=pytest.mark.slow) for kind in PLANE if kind != "noise")])
@pytest.mark.slow
def test_every_prediction_is_extrapolated(kind, x64):
    """P_none + omega (P_cond - P_none) for each prediction of a model of each kind; omega = 1 is the conditional model."""
    sde, omega = VP(), 2.5
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.1, 0.3, 0.6, 0.9])
    den = conditional(sde, kind)
    guided = classifier_free(den, 2, omega)
    for target in PLANE:
        none = BOTH.denoiser(sde).predict(target, x, t)
        wanted = none + omega * (den.predict(target, x, t) - none)
        np.testing.assert_allclose(guided.predict(target, x, t), wanted, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(classifier_free(den, 2, 1.0).predict(target, x, t), den.predict(target, x, t), rtol=1e-8, atol=1e-10)


def test_one_compilation_serves_every_omega():
    den, traces = conditional(VP(), "noise"), []

    @jax.jit
    def data(den, x):
        traces.append(1)
        return den.data(x, 0.5)

    x = jnp.ones((4, 2))
    results = [data(classifier_free(den, 2, omega), x) for omega in (1.0, 2.0, 3.0)]
    assert len(traces) == 1 and not np.allclose(results[0], results[2])
    counted = replace(den, fn=Partial(lambda x, t, c, den=den: traces.append(2) or den.fn(x, t, c)))  # by diffrax too
    for omega in (1.5, 2.5):
        once = len(traces)
        sample_adaptive(classifier_free(counted, 2, omega), x, 1e-2, 1e-2)
    assert len(traces) == once


def test_guided_samples_move_away_from_the_other_class():
    """Of two classes, guidance pushes samples of each beyond its mean, away from the other's; the conditional model does not."""
    sde = VP()
    labels = jnp.arange(4000) % 2
    den = Denoiser(conditional(sde, "noise").fn, sde, "noise", cond=labels)
    times = grids.log_snr(sde, 20)
    x_T = sde.prior_sample(jax.random.key(1), (4000, 2))
    along = lambda x: np.array([((x[labels == k] - MEANS[k]) @ (MEANS[k] - MEANS[1 - k])).mean() for k in (0, 1)])
    plain, strong = (along(np.asarray(sample(classifier_free(den, 2, omega), x_T, times, solvers.heun()))) for omega in (1.0, 3.0))
    error = 0.4 * np.linalg.norm(MEANS[0] - MEANS[1]) / np.sqrt(2000)
    assert np.all(np.abs(plain) < 5 * error) and np.all(strong > 10 * error), (plain, strong, error)


LABELS, TIMES = np.array([0, 1, 1, 0]), np.array([0.1, 0.3, 0.6, 0.9])


def points(sde):
    """x [4, 2] and times [4] along the path."""
    return jax.random.normal(jax.random.key(0), (4, 2)), jnp.asarray(TIMES * sde.T)


def weak(sde, kind):
    """A worse model: the components twice as wide."""
    dens = [GaussianMixture(m[None], 2 * s[None]).denoiser(sde) for m, s in zip(MEANS, STDS)]
    return Denoiser(lambda x, t, y: jnp.stack([d.predict(kind, x, t) for d in dens])[y, jnp.arange(len(x))], sde, kind, cond=jnp.array(LABELS))


def log_posterior(sde):
    """log p(component | x_t) of the mixture."""

    def log_prob(x, t, label):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return jax.nn.log_softmax(BOTH._components(x, alpha, sigma)[0], 0)[label, jnp.arange(len(x))]

    return log_prob


@pytest.mark.parametrize("kind", ["velocity", *(pytest.param(kind, marks=pytest.mark.slow) for kind in PLANE if kind != "velocity")])
def test_no_guidance_is_the_model_bitwise(kind):
    """omega = 1, strength = 0 and scale = 0, whatever the other options. Of those of 3 and 2 no two are the same,
    but that an exact classifier on top of a conditional model is classifier-free guidance (Ho & Salimans 2022, eq. 6)."""
    sde = Linear()
    den, times = conditional(sde, kind), grids.uniform(sde, 10)
    x, t = points(sde)
    made = [
        lambda s: classifier_free(den, 2, 1 + s),
        lambda s: classifier_free(den, 2, 1 + s, rescale=0.7),
        lambda s: autoguidance(den, weak(sde, kind), 1 + s),
        lambda s: rectified_cfg(den, 2, s, times),
        lambda s: rectified_cfg(den, 2, s, times, power=1.0),
        lambda s: classifier_guidance(den, log_posterior(sde), jnp.array(LABELS), s),
    ]
    strong = []
    for make in made:
        np.testing.assert_array_equal(make(0.0).raw(x, t), den.raw(x, t))
        strong.append(np.asarray(make(2.0).raw(x, t)))
    for i, a in enumerate(strong[:-1]):
        assert all(not np.allclose(a, b, atol=1e-4) for b in strong[:i]), i
    np.testing.assert_allclose(strong[-1], strong[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_guides_within_the_interval_alone(x64):
    """Examples whose sigma/alpha is in (low, high] are guided as without an interval, and the others, in the same batch, not at all."""
    sde = VP()
    den = conditional(sde, "noise")
    x, t = points(sde)
    level = np.exp(-np.asarray(sde.log_snr(t)))
    for low, high, inside in (
        (level[0], level[2], [False, True, True, False]),  # the lower end is without, the upper within
        (0.0, np.inf, [True] * 4),
        (1e3, 1e4, [False] * 4),
    ):
        for guide in (lambda **of: classifier_free(den, 2, 3.0, **of), lambda **of: autoguidance(den, weak(sde, "noise"), 3.0, **of)):  # fmt: skip
            found, plain, guided = (np.asarray(d.raw(x, t)) for d in (guide(interval=(low, high)), den, guide()))
            np.testing.assert_allclose(found, np.where(np.array(inside)[:, None], guided, plain), rtol=1e-13, atol=1e-13)


def test_outside_the_interval_the_network_sees_the_batch_once():
    """One call on the batch, not on twice the batch."""
    batches = []

    def fn(x, t, label):
        jax.debug.callback(lambda x: batches.append(len(x)), x)
        return x

    sde = Linear()
    guided = classifier_free(Denoiser(fn, sde, "velocity", cond=jnp.array(LABELS)), 2, 3.0, (0.5, 2.0))
    for t in (0.1, 0.5, 0.9):
        jax.block_until_ready(guided.raw(jnp.ones((4, 2)), t))
        jax.effects_barrier()
    assert batches == [4, 8, 4]


def test_rescaled_predictions_have_the_conditional_standard_deviation():
    """Of each example at rescale = 1, by eq. 15 of 2305.08891, and between at 0.7, eq. 16; no division by zero where all values are the same."""
    sde, omega = VP(), 4.0
    den = conditional(sde, "v")
    x, t = points(sde)
    deviation = lambda d: np.std(np.asarray(d.raw(x, t)), -1)
    full, plain, guided = (classifier_free(den, 2, omega, rescale=1.0), den, classifier_free(den, 2, omega))
    np.testing.assert_allclose(deviation(full), deviation(plain), rtol=1e-5)
    assert np.all(np.abs(deviation(guided) / deviation(plain) - 1) > 0.05)  # or there would be nothing to bring back
    mixed = 0.7 * full.raw(x, t) + 0.3 * guided.raw(x, t)
    np.testing.assert_allclose(classifier_free(den, 2, omega, rescale=0.7).raw(x, t), mixed, rtol=1e-5, atol=1e-6)
    flat = Denoiser(lambda x, t, y: jnp.ones_like(x) * y[:, None], sde, "v", cond=jnp.array(LABELS))
    np.testing.assert_array_equal(classifier_free(flat, 0, 3.0, rescale=1.0).raw(x, t), 3.0 * flat.raw(x, t))


@pytest.mark.slow
def test_autoguidance_extrapolates_from_the_worse_model(x64):
    """D_weak + omega (D - D_weak) in every prediction, from a worse model of another kind and without a condition as well."""
    sde, omega = VP(), 2.5
    den, worse, all_of_it = conditional(sde, "noise"), weak(sde, "v"), BOTH.denoiser(sde)
    x, t = points(sde)
    for other in (worse, all_of_it):
        for target in PLANE:
            low, high = other.predict(target, x, t), den.predict(target, x, t)
            np.testing.assert_allclose(autoguidance(den, other, omega).predict(target, x, t), low + omega * (high - low), rtol=1e-8, atol=1e-9)
    with pytest.raises(ValueError, match="sde = .*expected the same"):
        autoguidance(den, weak(Linear(), "v"), omega)


@pytest.mark.few_paths
def test_the_exact_posterior_makes_the_mixture_conditional(sde, x64):
    """score(x) + grad log p(k | x_t) = the score of component k, in all predictions, on every path and at both ends of it."""
    den = BOTH.denoiser(sde)
    for t in (0.0, sde.eps, *(TIMES * sde.T).tolist(), sde.T):
        x = sde.alpha(t) * np.array([[0.3, -0.5], [1.0, 0.2], [-0.4, 0.1], [0.0, 0.9]]) + sde.sigma(t) * np.array(
            [[0.5, -1.0], [1, 0], [0, 1], [-2, 1]]
        )
        guided = classifier_guidance(den, log_posterior(sde), jnp.array(LABELS))
        for target in ("data", "v"):
            each = jnp.stack([gm.denoiser(sde).predict(target, x, t) for gm in EACH])[LABELS, jnp.arange(4)]
            near = 5e-3 if sde.alpha(t) < 1e-3 else 1e-6  # asked at alpha = 1e-3
            np.testing.assert_allclose(guided.predict(target, x, t), each, rtol=1e-6, atol=near)


def test_scale_tilts_by_the_classifier(x64):
    """A Gaussian N(0, s^2) and the "classifier" log p = c . x_t: the score becomes -x/(alpha^2 s^2 + sigma^2) + scale c."""
    sde, s, c = VP(), 0.5, jnp.array([0.7, -0.3])
    x, t = points(sde)
    guided = classifier_guidance(GaussianMixture(np.zeros((1, 2)), np.array([s])).denoiser(sde), lambda x, t, y: x @ c, jnp.zeros(4), 2.5)
    variance = (sde.alpha(t) ** 2 * s**2 + sde.sigma(t) ** 2)[:, None]
    np.testing.assert_allclose(guided.score(x, t), -x / variance + 2.5 * c, rtol=1e-9)


@pytest.mark.parametrize("sde", [Linear(), *(pytest.param(sde, marks=pytest.mark.slow) for sde in (VP(), EDM()))], ids=lambda sde: type(sde).__name__)
def test_rectified_cfg_tends_to_classifier_free(sde, x64):
    """Check 11 of reference/flows.md: with power = 0 the distance between Euler samples of strength 3 and of omega = 4 halves as the steps double."""
    labels = jnp.arange(64) % 2
    den = Denoiser(conditional(sde, "v").fn, sde, "v", cond=labels)
    x_T = sde.prior_sample(jax.random.key(2), (64, 2), jnp.float64)

    def gap(n, omega=4.0):
        times = (grids.karras if isinstance(sde, EDM) else grids.uniform)(sde, n)
        draw = lambda guided: sample(guided, x_T, times, solvers.euler())
        return float(jnp.sqrt(jnp.mean((draw(rectified_cfg(den, 2, 3.0, times)) - draw(classifier_free(den, 2, omega))) ** 2)))

    gaps = [gap(n) for n in (64, 128, 256)]
    assert all(1.8 < a / b < 2.2 for a, b in zip(gaps, gaps[1:])), gaps
    assert gap(64, 3.0) / gap(128, 3.0) < 1.5  # control: the strength taken for omega


def test_rectified_cfg_is_the_paper_step(x64):
    """One Euler step on the linear path against the equation, with its weight: all at the data, none at the prior."""
    sde, times = Linear(), np.array([0.8, 0.6, 0.2, 0.0])
    den, none = conditional(sde, "velocity"), BOTH.denoiser(sde)
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), 0.6
    ahead = x - 0.2 * den.velocity(x, t)
    guided = den.velocity(x, t) + 3 * 0.4**1.5 * (den.velocity(ahead, 0.4) - none.velocity(ahead, 0.4))
    np.testing.assert_allclose(rectified_cfg(den, 2, 3.0, times, 1.5).velocity(x, t), guided, rtol=1e-10)
    np.testing.assert_array_equal(rectified_cfg(den, 2, 3.0, times, 1.5).velocity(x, 1.0), den.velocity(x, 1.0))


@pytest.mark.parametrize("solver", ["dpm_solver_pp", "ancestral", pytest.param("adaptive", marks=pytest.mark.slow)])
def test_guidances_compose_with_each_other_and_with_solvers(solver):
    """All at once, with a multistep and a stochastic solver and with adaptive steps; no example depends on its batch-mates."""
    sde = VP()

    def draw(rows):
        labels = jnp.array(LABELS)[rows]
        den, worse = (Denoiser(model(sde, "v").fn, sde, "v", cond=labels) for model in (conditional, weak))
        guided = autoguidance(classifier_free(den, 2, 2.0, (0.1, 5.0), 0.5), worse, 1.5)
        guided = classifier_guidance(guided, log_posterior(sde), labels)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), rows)
        x_T = sde.prior_sample(keys, (len(rows), 2))
        if solver == "adaptive":
            return sample_adaptive(guided, x_T).x
        return sample(guided, x_T, grids.log_snr(sde, 8), solvers.SOLVERS[solver](), keys)

    every, some = draw(jnp.arange(4)), draw(jnp.array([2, 1]))
    assert np.all(np.isfinite(every))
    np.testing.assert_allclose(some, every[jnp.array([2, 1])], rtol=1e-4, atol=1e-5)


def test_likelihoods_of_guided_fields_are_refused():
    x = jnp.zeros((4, 2))
    for guided in (classifier_free(conditional(VP(), "v"), 2, 2.0), autoguidance(BOTH.denoiser(VP()), EACH[0].denoiser(VP()), 2.0)):
        for likelihood in (log_likelihood, lambda den, x: variational_bound(den, x, jax.random.key(0))):
            with pytest.raises(ValueError, match="of a guided denoiser"):
                likelihood(guided, x)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda den: classifier_free(BOTH.denoiser(VP()), 2, 2.0), "no cond"),
        (lambda den: rectified_cfg(BOTH.denoiser(VP()), 2, 2.0, np.array([1.0, 0.5])), "no cond"),
        (lambda den: rectified_cfg(den, 2, 2.0, np.array([0.5, 1.0])), "must decrease"),
        (lambda den: classifier_free(den, 2, 2.0, (2.0, 1.0)), "low < high"),
        (lambda den: autoguidance(den, den, 2.0, (-1.0, 1.0)), "low < high"),
        (lambda den: classifier_free(den, 2, 2.0, rescale=1.5), r"rescale = 1.5 .*expected 0"),
    ],
)
def test_impossible_options_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(conditional(VP(), "noise"))
