"""Flow maps against the closed form of one Gaussian (few_step.md), in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import EDM, VE, VP, Cosine, FlowMap, GaussianMixture, Linear, Trig


def gaussian():
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return GaussianMixture([[0.3, -0.8]], [[0.5, 0.2]], None, turn[None])


def along(fm, x, t, s):
    """X_{s<-t}(x) and its derivatives along the flow, (v, 1) in (x, t), and in s."""
    v, one = fm.denoiser().velocity(x, t), jnp.ones_like(t)
    jump, dt = jax.jvp(lambda x, t: fm(x, t, s), (x, t), (v, one))
    return jump, dt, jax.jvp(lambda s: fm(x, t, s), (s,), (one,))[1]


@pytest.mark.few_paths
def test_exact_flow_map(sde, x64):
    """Of a Gaussian: X = alpha_s m + V (S_s/S_t) V^T (x - alpha_t m); X_{t<-t} = id; X_{s<-m} X_{m<-t} = X_{s<-t}; constant along the flow;
    its derivative in s is the velocity; u = v - (t - s) du/dt; its denoiser is the Gaussian's own."""
    gm = gaussian()
    fm, den = gm.flow_map(sde), gm.denoiser(sde)
    low, t = 0.02 * sde.T, jnp.linspace(0.1, 0.98, 4) * sde.T
    x = sde.perturb(jax.random.key(0), gm.sample(jax.random.key(1), 4), t)[0]
    turn, std = np.asarray(gm.eigenvectors[0]), np.asarray(gm.stds[0])
    spread = lambda t: np.hypot(np.asarray(sde.alpha(t))[:, None] * std, np.asarray(sde.sigma(t))[:, None])
    mean = lambda t: np.asarray(sde.alpha(t))[:, None] * np.asarray(gm.means)
    np.testing.assert_allclose(fm.denoiser().data(x, t), den.data(x, t), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fm(x, t, t), x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(fm.mean_velocity(x, t, t), den.velocity(x, t), rtol=1e-8, atol=1e-8)
    for share in (0.0, 0.4, 0.9):
        s = low + share * (t - low)
        jump, dt, ds = along(fm, x, t, s)
        size = 1 + np.abs(den.velocity(x, t)).max()
        np.testing.assert_allclose(jump, mean(s) + (x - mean(t)) @ turn * (spread(s) / spread(t)) @ turn.T, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(fm(fm(x, t, (s + t) / 2), (s + t) / 2, s), jump, rtol=1e-9, atol=1e-9)
        ratio = lambda c: np.asarray(c)[:, None]
        line = ratio(sde.sigma(s) / sde.sigma(t))
        np.testing.assert_allclose(line * x + (ratio(sde.alpha(s)) - ratio(sde.alpha(t)) * line) * fm.data(x, t, s), jump, rtol=1e-9, atol=1e-9)
        assert np.abs(dt).max() <= 1e-8 * size
        np.testing.assert_allclose(ds, den.velocity(jump, s), rtol=1e-7, atol=1e-8 * size)
        u, du = jax.jvp(lambda x, t, s=s: (x - fm(x, t, s)) / (t - s)[:, None], (x, t), (den.velocity(x, t), jnp.ones_like(t)))
        np.testing.assert_allclose(fm.mean_velocity(x, t, s), u, rtol=1e-8, atol=1e-8 * size)
        np.testing.assert_allclose(u, den.velocity(x, t) - (t - s)[:, None] * du, rtol=1e-6, atol=1e-6 * size)
    near = 0.995 * t  # the slopes are derivatives midway
    np.testing.assert_allclose(fm.mean_velocity(x, t, near), (x - fm(x, t, near)) / (t - near)[:, None], rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("sde", [Linear(), Cosine(), Trig(), VP(), EDM(), VE()], ids=lambda sde: type(sde).__name__)
def test_from_the_prior_to_the_data(sde):
    """At both ends, where alpha or sigma is zero, in float32: the exact map is finite, and right."""
    gm = GaussianMixture([[0.3, -0.8]], [0.5])
    x = sde.prior_sample(jax.random.key(0), (8, 2))
    spread = lambda t: np.hypot(sde.alpha(t) * 0.5, sde.sigma(t))
    for start, end in ((sde.T, 0.0), (sde.T, sde.T), (0.0, 0.0)):
        got = gm.flow_map(sde)(x, start, end)
        want = sde.alpha(end) * gm.means + spread(end) / spread(start) * (x - sde.alpha(start) * gm.means)
        np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(x).max()))


@pytest.mark.few_paths
@pytest.mark.parametrize("kind", ["data", "velocity", "v", "edm", "noise"])
def test_any_network_stays_where_it_is(sde, kind):
    """X_{t<-t} = x to 1e-6 in float32, whatever the network."""
    if kind == "noise" and sde.alpha(sde.T) < 1e-3:
        with pytest.raises(ValueError, match="noise.*expected data, velocity, v or edm"):
            FlowMap(lambda x, t, s: x, sde, kind)
        return
    fm = FlowMap(lambda x, t, s: jnp.sin(9 * x) + expand_to(t - 2 * s, x) / sde.T, sde, kind)
    t = jnp.linspace(0.02, 0.98, 7) * sde.T
    x = sde.prior_sample(jax.random.key(0), (7, 3))
    np.testing.assert_allclose(jax.jit(fm)(x, t, t), x, rtol=1e-6, atol=1e-6 * float(jnp.abs(x).max()))


def expand_to(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1))


def test_on_the_linear_path_the_velocity_is_the_mean_velocity():
    """MeanFlow: u = F and X = x - (t - s) F; a condition reaches fn; kind edm is minus the F of TrigFlow, x cos - F sigma_d sin."""
    x, t, s = jax.random.normal(jax.random.key(0), (3, 2)), jnp.array([1.0, 0.7, 0.30001]), jnp.array([0.0, 0.2, 0.3])
    fm = FlowMap(lambda x, t, s, label: x * label[:, None] + (t * s)[:, None], Linear(), cond=jnp.arange(3.0))
    F = x * jnp.arange(3.0)[:, None] + (t * s)[:, None]
    np.testing.assert_allclose(fm.mean_velocity(x, t, s), F, rtol=1e-5)
    np.testing.assert_allclose(fm(x, t, s), x - (t - s)[:, None] * F, rtol=1e-5, atol=1e-6)
    trig = FlowMap(lambda x, t, s: 0.3 * x + 1, Trig(sigma_data=0.5), "edm", 0.5)
    want = jnp.cos(t - s)[:, None] * x + jnp.sin(t - s)[:, None] * 0.5 * (0.3 * x + 1)
    np.testing.assert_allclose(trig(x, t, s), want, rtol=1e-5, atol=1e-6)


def test_impossible_flow_maps_are_refused():
    with pytest.raises(ValueError, match="velocit.*expected one of"):
        FlowMap(lambda x, t, s: x, VP(), "velocit")
    with pytest.raises(ValueError, match="mixture of 2 components"):
        GaussianMixture([[0.0], [1.0]], [1.0, 1.0]).flow_map(VP())
    with pytest.raises(ValueError, match="0 <= t <= T"):
        gaussian().flow_map(Linear()).data(jnp.ones((1, 2)), 1.5, 0.5)
