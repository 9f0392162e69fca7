from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import integrate, stats

from experiments import objectives
from experiments.data import Dataset
from sde_lib import EDM, OU, SDE, VE, VP, Denoiser, GaussianMixture, Linear, SubVP

NORMAL = Dataset("normal", {}, {}, 0.0, 1.0)  # values are x themselves
GM = GaussianMixture(np.zeros((1, 1)), np.array([0.5]))


@dataclass(frozen=True)
class Exact:
    """The network that predicts `kind` exactly for data N(0, 0.25)."""

    sde: SDE
    kind: str
    sigma_data: float = 0.5
    schedule: None = None
    interpolant: None = None
    none = None

    def __call__(self, params, x, t, label=None, example=None, dropout_key=None):
        return GM.denoiser(self.sde).predict(self.kind, x, t) if self.kind != "edm" else edm(self.sde, x, t)


def edm(sde, x, t):
    exact = GM.denoiser(sde)
    c, d = objectives.plane_point(sde, "edm", t, 0.5)
    return c[:, None] * exact.data(x, t) + d[:, None] * exact.noise(x, t)


def batch(n, start=0):
    position = np.arange(start, start + n, dtype=np.uint32)
    x = 0.5 * np.random.default_rng(0).standard_normal((start + n, 1))[start:]
    return {"value": x.astype(np.float32), "label": np.zeros(n, np.int32), "position": position}


def objective(weighting="own", **time):
    return ConfigDict({"loss": "regression", "weighting": weighting, "time": {"name": "uniform", **time}})


@pytest.mark.parametrize("path, floor", [(VP(), 0.17331), (SubVP(), 0.23555), (VE(), 0.45932)], ids=lambda v: type(v).__name__)
def test_floor_of_denoising_score_matching(path, floor):
    """The loss of the exact network per dimension, E_t[alpha^2 s^2/(alpha^2 s^2 + sigma^2)], t ~ U(1e-5, 1) (score_sde.md, check 7).

    100,000 examples; bound 4 standard errors, about 0.004.
    """
    loss = jax.jit(lambda b: objectives.loss(Exact(path, "noise"), None, NORMAL, objective(), jax.random.PRNGKey(0), b))(batch(100_000))
    assert abs(float(loss.mean()) - floor) < 4 * float(loss.std()) / np.sqrt(len(loss))
    quadrature = integrate.quad(lambda t: (path.alpha(t) * 0.5) ** 2 / ((path.alpha(t) * 0.5) ** 2 + path.sigma(t) ** 2), 1e-5, 1)[0]
    assert quadrature == pytest.approx(floor, abs=2e-5)


def test_one_regression(kind):
    """Whatever the network predicts, an error measured in the noise is the same error: one loss for all objectives."""
    loss = lambda kind: objectives.loss(Exact(VP(), kind), None, NORMAL, objective("noise"), jax.random.PRNGKey(0), batch(512))
    np.testing.assert_allclose(loss(kind), loss("noise"), rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("name", objectives.LOSSES)
def test_the_exact_prediction_is_a_fixed_point(name, x64):
    """Of each loss of a Denoiser, of N(0.3, 0.8^2): in a slope and a shift of the noise the mean gradient is 0 at the exact one and not beside it.
    Means are exact, by three points for the data and three for the noise."""
    sde, root = VP(), np.sqrt(3.0)
    exact = GaussianMixture([[0.3]], [0.8]).denoiser(sde)
    a, b = (jnp.asarray(c.ravel())[:, None] for c in np.meshgrid([-root, 0, root], [-root, 0, root]))
    weight = jnp.asarray(np.outer([1 / 6, 2 / 3, 1 / 6], [1 / 6, 2 / 3, 1 / 6]).ravel())
    x0, t, keys = 0.3 + 0.8 * a, jnp.full(9, 0.4), jax.random.split(jax.random.key(0), 9)
    x_t = sde.alpha(0.4) * x0 + sde.sigma(0.4) * b
    options = ConfigDict({"loss": name, "weighting": "own"})

    @jax.jit
    @jax.grad
    def slope(bend):
        den = Denoiser(lambda x, t: exact.noise(x, t) + bend[0] * x + bend[1], sde, "noise")
        return weight @ objectives.LOSSES[name](den, x0, x_t, b, t, keys, options)

    assert np.abs(slope(jnp.zeros(2))).max() < 1e-12
    assert all(np.abs(slope(jnp.asarray(bend))).max() > 1e-3 for bend in ((0.1, 0.0), (0.0, 0.1)))


def test_flow_matching_regresses_on_noise_minus_data():
    """On the linear path a network that outputs 0 has the loss |eps - x_0|^2 (2210.02747, eq. 9; data at t = 0 here)."""
    net = SimpleNamespace(sde=Linear(), kind="velocity", sigma_data=1.0, none=None)
    zero = lambda *args: jnp.zeros_like(args[1])
    net = type("Zero", (), {**net.__dict__, "schedule": None, "interpolant": None, "__call__": lambda self, params, x, t, **_: zero(params, x, t)})()
    b = batch(100_000)
    loss = objectives.loss(net, None, NORMAL, objective(), jax.random.PRNGKey(0), b)
    assert float(loss.mean()) == pytest.approx(1.25, abs=4 * 1.25 * np.sqrt(2 / 1e5))


def test_likelihood_weighting():
    """g^2 |score error|^2 / 2, which for VP is beta/(2 sigma^2) times the error of the noise (2101.09258)."""
    loss = lambda w: objectives.loss(Exact(VP(), "noise"), None, NORMAL, objective(w), jax.random.PRNGKey(0), batch(64))
    u = objectives.low_discrepancy(jnp.arange(64), jax.random.bits(jax.random.split(jax.random.PRNGKey(0), 4)[3]))
    t = np.asarray(objectives.uniform(u, VP(), None), np.float64)
    np.testing.assert_allclose(loss("likelihood"), loss("noise") * (0.1 + 19.9 * t) / (2 * VP().sigma(t) ** 2), rtol=1e-3)


def test_time_samplers():
    """Each lands where its distribution says, at the quartiles of u."""
    u = jnp.array([0.25, 0.5, 0.75])
    options = ConfigDict({"mean": -1.2, "std": 1.2, "low": -4.0, "high": 6.0, "scale": 1.29})
    sde, z = VP(), np.array([-0.6744898, 0.0, 0.6744898])
    np.testing.assert_allclose(objectives.uniform(u, sde, options), [0.2500075, 0.500005, 0.7500025], rtol=1e-6)
    np.testing.assert_allclose(objectives.logit_normal(u, sde, options), 1 / (1 + np.exp(1.2 - 1.2 * z)), rtol=1e-4)
    np.testing.assert_allclose(-EDM().log_snr(objectives.log_normal(u, EDM(), options)), -1.2 + 1.2 * z, rtol=1e-3)  # its tails are beyond times
    np.testing.assert_allclose(objectives.mode(u, sde, options), [0.616416, 0.5, 0.383584], rtol=1e-5)  # SD3's eq. 20 by hand
    np.testing.assert_allclose(sde.log_snr(objectives.log_snr(u, sde, options)), [3.5, 1.0, -1.5], rtol=1e-3)


def test_densities_of_sd3():
    """cosmap has the density 2/(pi - 2 pi t + 2 pi t^2) of SD3's eq. 22, mode that of eq. 20's slope at the middle and T times both elsewhere.

    n = 20,000, seed 0: KS at 1 % (0.0115), which the uniform law fails."""
    u, sde = jnp.asarray(np.random.default_rng(0).uniform(size=20_000)), OU()
    options = ConfigDict({"scale": 1.29})
    cosmap, mode = (np.asarray(sampler(u, sde, options)) / sde.T for sampler in (objectives.cosmap, objectives.mode))
    cdf = lambda t: 0.5 + 2 / np.pi * np.arctan(2 * t - 1)
    assert stats.kstest(cosmap, cdf).statistic < 0.0115 < stats.kstest(cosmap, "uniform").statistic
    at = np.linspace(1, 0, 1001)  # eq. 20 falls in u
    inverse = lambda t: 1 - np.interp(t, (1 - at - 1.29 * (np.cos(np.pi * at / 2) ** 2 - 1 + at)), at)
    assert stats.kstest(mode, inverse).statistic < 0.0115 < stats.kstest(mode, "uniform").statistic
    share, want = np.mean(np.abs(mode - 0.5) < 0.01), 0.02 / (1 - 1.29 * (np.pi / 2 - 1))
    assert share == pytest.approx(want, abs=4 * np.sqrt(want / 20_000))
    with pytest.raises(ValueError, match="scale = 2.0: expected -1 to 1.7519"):
        objectives.mode(u, sde, ConfigDict({"scale": 2.0}))


def test_low_discrepancy_times():
    """Every run of 256 examples covers (0, 1) with no gap above 3/256, at the start and after four thousand million examples."""
    for start in (0, 12_345, 2**32 - 100):
        position = jnp.asarray((np.arange(start, start + 256) % 2**32).astype(np.uint32))
        u = np.sort(np.asarray(objectives.low_discrepancy(position, jnp.uint32(77))))
        assert 0 < u[0] and u[-1] < 1 and np.diff(u, prepend=0, append=1).max() < 3 / 256


def test_times_stay_below_one():
    """The largest 32-bit numbers are still below 1 in float32: 1 would be the infinite time of a normal law."""
    position = jnp.zeros(1, jnp.uint32)
    assert float(objectives.low_discrepancy(position, jnp.uint32(2**32 - 1))[0]) < 1


def test_examples_are_independent_of_the_batch():
    """The loss of an example follows its position, however the stream is cut."""
    loss = lambda b: objectives.loss(Exact(VP(), "noise"), None, NORMAL, objective(), jax.random.PRNGKey(0), b)
    np.testing.assert_allclose(loss(batch(4, start=6)), loss(batch(10))[6:], rtol=1e-5)


def test_unknown_names_are_refused():
    for bad, words in ((objective("snr"), "expected own, likelihood"), (objective(name="unifrom"), "expected one of uniform")):
        with pytest.raises(ValueError, match=words):
            objectives.loss(Exact(VP(), "noise"), None, NORMAL, bad, jax.random.PRNGKey(0), batch(2))


def test_times_do_not_depend_on_the_precision():
    """With 64-bit types in force the bits of a key are 64 too, and a u made of them is not in (0, 1)."""
    u = lambda: np.asarray(objectives.uniforms(jax.random.key(0), jnp.arange(100, dtype=jnp.uint32)))
    usual = u()
    with jax.enable_x64(True):
        np.testing.assert_array_equal(u(), usual)
    assert 0 < usual.min() and usual.max() < 1
