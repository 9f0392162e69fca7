import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import PLANE, VP, Denoiser, Linear, plane_point
from sde_lib.numerics import expand


@pytest.mark.few_paths
def test_every_kind_gives_every_prediction(sde, kind, interior, x64):
    """From the true point of `kind`, all six predictions are the true points, to 1e-12 relative in float64 (flows.md, check 1)."""
    x0, eps = jax.random.normal(jax.random.key(0), (2, 9, 4))
    t = jnp.asarray(interior)
    x = expand(sde.alpha(t), x0) * x0 + expand(sde.sigma(t), x0) * eps
    point = lambda kind: sum(expand(c, x0) * p for c, p in zip(plane_point(sde, kind, t), (x0, eps)))
    den = Denoiser(lambda x, t: point(kind), sde, kind)
    for target in PLANE:
        size = sum(jnp.abs(expand(c, x0)) for c in plane_point(sde, target, t)) * (1 + 1 / expand(jnp.minimum(sde.sigma(t), 1), x0))
        off = lambda den: jnp.max(jnp.abs(den.predict(target, x, t) - point(target)) / size)  # noqa: B023
        assert off(den) <= 1e-12
        if target not in ("v", "velocity"):  # control: a point of one kind taken for that of another
            assert off(Denoiser(den.fn, sde, "v" if kind != "v" else "data")) > 1e-3


def test_predictions_by_name(sde):
    """data, noise, score, velocity and v are their textbook combinations; t may be a number or [B]."""
    den = Denoiser(lambda x, t: 0.3 * x, sde, "data")
    x, t = jnp.ones((3, 2)), 0.4 * sde.T
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    noise = (x - alpha * 0.3 * x) / sigma
    np.testing.assert_allclose(den.noise(x, t), noise, rtol=1e-4)
    np.testing.assert_allclose(den.score(x, jnp.full(3, t)), -noise / sigma, rtol=1e-4)
    np.testing.assert_allclose(den.v(x, t), alpha * noise - sigma * 0.3 * x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(den.velocity(x, t), sde.alpha_dot(t) * 0.3 * x + sde.sigma_dot(t) * noise, rtol=1e-4, atol=1e-5)


def test_velocity_of_the_linear_path_is_noise_minus_data():
    assert plane_point(Linear(), "velocity", 0.3) == (-1.0, 1.0)


def test_edm_is_the_preconditioning_of_the_paper():
    """2206.00364, table 1: D = c_skip x + c_out F."""
    from sde_lib import EDM

    sigma = np.array([0.01, 0.5, 20.0])
    a, b = Denoiser(lambda x, t: x, EDM(), "edm", sigma_data=0.5).linear("data", jnp.ones((3, 1)), sigma)
    np.testing.assert_allclose(a[:, 0], 0.25 / (sigma**2 + 0.25), rtol=1e-5)
    np.testing.assert_allclose(b[:, 0], sigma * 0.5 / np.sqrt(sigma**2 + 0.25), rtol=1e-5)


@pytest.mark.few_paths
def test_finite_where_alpha_is_zero(sde, kind, mixture):
    """At t = T every kind still gives finite data, noise, score and velocity, near the exact ones."""
    exact = mixture.denoiser(sde)
    den = Denoiser(lambda x, t: exact.predict(kind, x, t), sde, kind)
    x = sde.prior_sample(jax.random.key(0), (16, 2))
    for target in ("data", "noise", "score", "velocity"):
        want = exact.predict(target, x, sde.T)
        np.testing.assert_allclose(den.predict(target, x, sde.T), want, atol=6e-3 * float(1 + jnp.abs(want).max()))


def test_pytree_condition_and_parameters():
    """A Denoiser passes through jit; parameters in a Partial are arguments, so that new ones do not compile anew; cond reaches fn."""
    traces = []

    def fn(scale, x, t, label):
        traces.append(1)
        return scale * x * label[:, None]

    data = jax.jit(lambda den, x: den.data(x, 0.5))
    x = jnp.ones((3, 2))
    for scale in (1.0, 2.0):
        den = Denoiser(jax.tree_util.Partial(fn, jnp.float32(scale)), VP(), "data", cond=jnp.arange(3.0))
        np.testing.assert_allclose(data(den, x), scale * jnp.arange(3.0)[:, None] * x)
    assert len(traces) == 1


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="nois.*expected one of noise, data"):
        Denoiser(lambda x, t: x, VP(), "nois")
    with pytest.raises(ValueError, match="epsilon"):
        Denoiser(lambda x, t: x, VP()).predict("epsilon", jnp.ones((1, 1)), 0.5)
