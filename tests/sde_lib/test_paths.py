import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from sde_lib import DDPM, EDM, NCSN, OU, VE, VP, Cosine, Linear, SubVP, Trig


def test_moments_follow_from_drift_and_diffusion(sde):
    """V' = 2 f V + g^2, m' = f m, integrated from 0.01 T to 0.9 T, reproduce sigma^2 and alpha (score_sde.md, check 1)."""

    def rhs(t, y):
        f = sde.drift_coefficient(t)
        return [f * y[0], 2 * f * y[1] + sde.diffusion(t) ** 2]

    start, end = 0.01 * sde.T, 0.9 * sde.T
    y = np.array([sde.alpha(start), sde.sigma(start) ** 2])
    y = integrate.solve_ivp(rhs, (start, end), y, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    np.testing.assert_allclose(y, [sde.alpha(end), sde.sigma(end) ** 2], rtol=1e-8 if isinstance(sde, DDPM) else 1e-10)  # C^1 at its steps


def test_golden_values():
    np.testing.assert_allclose(VP().sigma(np.array([1e-3, 1e-5])), [0.01048542, 1.000497e-3], rtol=1e-6)
    np.testing.assert_allclose(SubVP().sigma(np.array([1e-3, 1e-5])), [1.099440e-4, 1.000994e-6], rtol=1e-6)
    assert VE().sigma(0.0) == pytest.approx(0.01) and VE().sigma(1.0) == pytest.approx(50.0)
    assert EDM().T == 80.0 and Linear().alpha(0.25) == 0.75 and Trig().alpha(np.pi / 3) == pytest.approx(0.5)
    assert Cosine().alpha(1.0) == 0.0 and Cosine().sigma(1.0) == 1.0


T = np.array([0.03, 0.4, 0.9])
BETA, B = 0.1 + 19.9 * T, 0.1 * T + 9.95 * T**2


@pytest.mark.parametrize(
    "path, f, g2",
    [
        (VP(), -BETA / 2, BETA),
        (SubVP(), -BETA / 2, BETA * -np.expm1(-2 * B)),
        (VE(), 0 * T, (0.01 * 5000**T) ** 2 * 2 * np.log(5000)),
        (EDM(), 0 * T, 2 * T),
        (OU(theta=0.7, noise=0.3), 0 * T - 0.7, 0 * T + 0.09),
        (Linear(), -1 / (1 - T), 2 * T / (1 - T)),
        (Trig(), -np.tan(T), 2 * np.tan(T)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_drift_and_diffusion_are_the_textbook_ones(path, f, g2):
    np.testing.assert_allclose(path.drift_coefficient(T), f, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(path.diffusion(T) ** 2, g2, rtol=1e-12)


def test_forward_sde_starts_at_time_zero(sde):
    """f and g are finite at t = 0, on host and device, for a forward simulation to begin there."""
    for t in (0.0, jnp.zeros(())):
        assert np.isfinite(sde.drift_coefficient(t)) and np.isfinite(sde.diffusion(t))


def test_time_inverts_log_snr(sde):
    t = np.geomspace(1e-5, 0.999, 50) * sde.T
    np.testing.assert_allclose(sde.time(sde.log_snr(t)), t, rtol=1e-8)
    t32 = jnp.asarray(t, jnp.float32)
    np.testing.assert_allclose(jax.jit(lambda t: sde.time(sde.log_snr(t)))(t32), t32, rtol=2e-4, atol=1e-6 * sde.T)
    assert np.all(np.diff(sde.log_snr(t)) < 0)


def test_float32_is_accurate_near_the_data(sde):
    """Relative error of alpha and sigma at t = 1e-5 (of the float32 time) at most 1e-6; 1 - exp is off by 2 % there."""
    for t in np.array([1e-5, 1e-4, 1e-2, 0.3], np.float32):
        for fn in (sde.alpha, sde.sigma):
            assert abs(float(jax.jit(fn)(jnp.asarray(t))) / fn(np.float64(t)) - 1) <= 1e-6


def test_host_and_device_agree(sde, interior, x64):
    """The complex step and forward-mode differentiation give the same derivatives, the same formulas the same values."""
    t = interior + 1e-7
    for fn in (sde.alpha, sde.sigma, sde.alpha_dot, sde.sigma_dot, sde.drift_coefficient, sde.diffusion, sde.log_snr):
        np.testing.assert_allclose(jax.jit(fn)(jnp.asarray(t)), fn(t), rtol=1e-9, atol=1e-12)


def test_marginal_and_perturb(sde):
    x0 = jax.random.normal(jax.random.key(1), (6, 3, 2))
    t = jnp.linspace(0.1, 0.9, 6) * sde.T
    mean, std = sde.marginal(x0, t)
    x_t, noise = sde.perturb(jax.random.key(0), x0, t)
    np.testing.assert_allclose(mean, sde.alpha(t)[:, None, None] * x0, rtol=1e-6)
    np.testing.assert_allclose(x_t, mean + std[:, None, None] * noise, rtol=1e-5, atol=1e-6)
    assert std.shape == (6,) and x_t.dtype == x0.dtype
    # noise belongs to the example, not to the batch
    np.testing.assert_allclose(sde.perturb(jax.random.key(0), x0[:2], t[:2])[0], x_t[:2], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(sde.marginal(x0, 0.5 * sde.T)[1], jnp.broadcast_to(sde.sigma(jnp.float32(0.5 * sde.T)), 6))


def test_prior(sde):
    """Scale of samples within 4 standard errors (n = 40,000, seed 0), density equal to SciPy's."""
    x = sde.prior_sample(jax.random.key(0), (10_000, 4))
    scale = float(sde.sigma(sde.T))
    assert abs(float(x.std()) / scale - 1) < 4 / np.sqrt(2 * x.size)
    np.testing.assert_allclose(sde.prior_log_prob(x[:5]), stats.norm(0, scale).logpdf(x[:5]).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(sde.prior_sample(jax.random.key(0), (7, 4)), x[:7])


@pytest.mark.few_paths
def test_probability_flow_satisfies_the_continuity_equation(sde, x64, mixture):
    """|d_t log p + div v + v . score| <= 1e-10 on a mixture (flows.md, check 2), relative to the size of its terms."""
    x = mixture.sample(jax.random.key(2), 5)
    score = lambda x, t: jax.grad(lambda x: mixture.marginal_log_prob(sde, x, t).sum())(x)

    @jax.jit
    def terms(t, eta=0.0):
        flow = lambda x: sde.reverse_drift(x, t, score(x, t), eta)
        dt_log_p = jax.jvp(lambda t: mixture.marginal_log_prob(sde, x, t), (t,), (jnp.ones(()),))[1]
        divergence = jax.vmap(lambda x: jnp.trace(jax.jacfwd(lambda x: flow(x[None])[0])(x)))(x)
        return (dt_log_p, divergence, jnp.sum(flow(x) * score(x, t), -1)), flow(x), mixture.denoiser(sde).velocity(x, t)

    for t in (0.1003, 0.5007, 0.8001):
        parts, flow, velocity = terms(jnp.asarray(t * sde.T))
        assert jnp.max(jnp.abs(sum(parts)) / sum(map(jnp.abs, parts))) <= 1e-10
        np.testing.assert_allclose(flow, velocity, rtol=1e-8, atol=1e-10)
        parts, *_ = terms(jnp.asarray(t * sde.T), 1.0)  # control: the reverse SDE's drift
        assert jnp.max(jnp.abs(sum(parts)) / sum(map(jnp.abs, parts))) > 1e-3


def test_static_pytree(sde):
    assert jax.tree.leaves(sde) == [] and hash(sde) == hash(type(sde)()) and sde == type(sde)()
    t = jnp.float32(0.3 * sde.T)
    np.testing.assert_allclose(jax.jit(lambda sde, t: sde.sigma(t))(sde, t), sde.sigma(t), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP(beta_min=0.0), lambda: SubVP(beta_min=2.0, beta_max=1.0), lambda: VE(sigma_min=-1.0), lambda: EDM(sigma_max=0.001),
        lambda: OU(theta=0.0),
        lambda: Cosine(s=-1.0), lambda: Trig(sigma_data=0.0), lambda: DDPM(betas=(0.1, 1.2)), lambda: NCSN(sigmas=(0.2, 0.1)),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
