"""diffrax on the probability-flow ODE and the reverse SDE, against oracles."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from samplers import encode, grids, sample_adaptive, sample_sde
from sde_lib import VP, Denoiser, GaussianMixture, Linear


@pytest.mark.few_paths
def test_probability_flow_of_a_gaussian(sde, x64):
    """x(eps) - alpha m = (x(T) - alpha m) sqrt(v(eps)/v(T)) (score_sde.md, check 4), to 1e-6 at tolerance 1e-8."""
    gm = GaussianMixture(np.array([[0.3, -0.2]]), np.array([0.5]))
    x_T = sde.prior_sample(jax.random.key(0), (4, 2))
    spread = lambda t: np.hypot(0.5 * sde.alpha(t), sde.sigma(t))
    mean = np.array([0.3, -0.2])
    want = sde.alpha(sde.eps) * mean + spread(sde.eps) / spread(sde.T) * (x_T - sde.alpha(sde.T) * mean)
    result = sample_adaptive(gm.denoiser(sde), x_T, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(result.x, want, rtol=1e-6, atol=1e-6)
    assert result.nfe.shape == (4,) and np.all(result.success)


@pytest.mark.few_paths
def test_encode_inverts_sampling(sde, x64, mixture):
    x_T = sde.prior_sample(jax.random.key(0), (4, 2))
    x = sample_adaptive(mixture.denoiser(sde), x_T, rtol=1e-9, atol=1e-9).x
    back = encode(mixture.denoiser(sde), x, rtol=1e-9, atol=1e-9).x
    np.testing.assert_allclose(back, x_T, atol=1e-5 * float(sde.sigma(sde.T)))


def test_own_steps_for_every_example(mixture):
    """An example's result and evaluations stay to the last bit when its batch-mates change, and but for rounding when it is alone."""
    sde, den = VP(), mixture.denoiser(VP())
    x = sde.prior_sample(jax.random.key(0), (16, 2))
    every = sample_adaptive(den, x)
    others = sample_adaptive(den, x.at[4:].set(3.0 * x[4:]))
    np.testing.assert_array_equal(others.x[:4], every.x[:4])
    np.testing.assert_array_equal(others.nfe[:4], every.nfe[:4])
    np.testing.assert_allclose(sample_adaptive(den, x[3:4]).x, every.x[3:4], atol=1e-4)
    assert len(set(every.nfe.tolist())) > 1


def test_evaluations_are_counted_as_made():
    """nfe equals the calls of the network counted by a host callback, rejected steps included."""
    for solver in (diffrax.Tsit5(), diffrax.Heun(), diffrax.Dopri8()):
        calls = []

        def fn(x, t, calls=calls):
            jax.debug.callback(lambda t: calls.append(t), t)
            return jnp.sin(9 * x + 20 * t[:, None])

        result = sample_adaptive(Denoiser(fn, Linear(), "velocity"), jnp.ones((1, 2)), solver=solver, rtol=1e-3, atol=1e-3)
        jax.effects_barrier()
        assert int(result.nfe[0]) == len(calls), solver


MIXTURE = GaussianMixture([[-0.8], [0.5]], [0.3, 0.2], [1.0, 2.0])


def ks(sde, x, t):
    """Kolmogorov-Smirnov distance of x [B, 1] to the marginal of MIXTURE at t."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    cdf = lambda x: sum(w * stats.norm(alpha * m, np.hypot(alpha * s, sigma)).cdf(x) for m, s, w in ((-0.8, 0.3, 1 / 3), (0.5, 0.2, 2 / 3)))
    return stats.kstest(np.asarray(x)[:, 0], cdf).statistic


@pytest.mark.few_paths
def test_reverse_sde_on_every_path(sde):
    """Euler of diffrax on the reverse SDE, 400 steps, n = 4000, seed 0: KS within 0.035 (exceeded by chance with probability 1e-4)."""
    times = grids.log_snr(sde, 400)
    result = sample_sde(MIXTURE.denoiser(sde), sde.prior_sample(jax.random.key(0), (4000, 1)), times, jax.random.key(1))
    assert np.all(result.success) and np.all(result.nfe == 400)
    assert ks(sde, result.x, times[-1]) <= 0.035


SDE_SOLVERS = [diffrax.Heun(), diffrax.ShARK(), diffrax.ItoMilstein()]
SDE_SOLVERS += [pytest.param(solver, marks=pytest.mark.slow) for solver in (diffrax.SRA1(), diffrax.SlowRK(), diffrax.SEA())]


@pytest.mark.parametrize("solver", SDE_SOLVERS, ids=str)
def test_reverse_sde_with_every_family_of_solvers(solver):
    """60 steps are enough for methods of higher order, and enough for the others to pass the same test."""
    sde = VP()
    times = grids.log_snr(sde, 60 if not isinstance(solver, diffrax.ItoMilstein) else 400)
    result = sample_sde(MIXTURE.denoiser(sde), sde.prior_sample(jax.random.key(0), (4000, 1)), times, jax.random.key(1), solver=solver)
    assert ks(sde, result.x, times[-1]) <= 0.035


@pytest.mark.slow
def test_reverse_sde_with_adaptive_steps():
    sde = Linear()
    controller = diffrax.PIDController(rtol=1e-2, atol=1e-2, pcoeff=0.1, icoeff=0.3)
    times = grids.log_snr(sde, 50, eps=0.02)
    x_T = sde.prior_sample(jax.random.key(0), (1000, 1))
    result = sample_sde(MIXTURE.denoiser(sde), x_T, times, jax.random.key(1), solver=diffrax.ShARK(), controller=controller)
    assert np.all(result.success) and ks(sde, result.x, times[-1]) <= 0.07  # n = 1000: the same level


def test_wrong_noise_would_be_seen():
    """Control: the reverse SDE with its noise scaled by 1.2 fails the test that the right one passes."""
    from samplers import Table, sample, solvers

    sde, times = VP(), grids.log_snr(VP(), 300)
    table = solvers.euler_maruyama()(sde, times)
    loud = Table(**{**table.__dict__, "noise": 1.2 * table.noise})
    x = sample(MIXTURE.denoiser(sde), sde.prior_sample(jax.random.key(0), (4000, 1)), times, lambda sde, times: loud, jax.random.key(1))
    assert ks(sde, x, times[-1]) > 0.035


def test_mistakes_are_named(mixture):
    den, x = mixture.denoiser(VP()), jnp.ones((1, 2))
    for bad, words in (
        (lambda: sample_adaptive(den, x, rtol=-1.0), "rtol = -1.0: expected"),
        (lambda: sample_adaptive(den, x, eps=2.0), "expected 0 < eps < T"),
        (lambda: sample_adaptive(den, x, solver=diffrax.Kvaerno5()), "explicit Runge-Kutta"),
        (lambda: sample_sde(den, x, [0.1, 0.9], jax.random.key(0)), "must decrease"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()


def test_too_many_steps_is_reported_not_silent():
    """A velocity that no step size satisfies: success is False and x is NaN, for that example only."""
    den = Denoiser(lambda x, t: jnp.where(x > 0, jnp.nan, 0.0), Linear(), "velocity")
    result = sample_adaptive(den, jnp.array([[1.0], [-1.0]]))
    assert result.success.tolist() == [False, True] and np.isnan(result.x[0, 0]) and result.x[1, 0] == -1.0
