import numpy as np
import pytest

from samplers import grids
from sde_lib import EDM, VP, Trig

GRIDS = ["uniform", "quadratic", "cosine", "log_snr", "karras", "exponential", "vp_uniform"]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", [1, 7, 50])
def test_grid(sde, name, n):
    """n + 1 decreasing finite times, exactly from T to eps."""
    times = getattr(grids, name)(sde, n)
    assert times.dtype == np.float64 and times.shape == (n + 1,)
    assert times[0] == sde.T and times[-1] == sde.sampling_eps
    assert np.all(np.diff(times) < 0)
    if name != "vp_uniform":  # no VP path has so short a range
        assert getattr(grids, name)(sde, n, eps=0.1 * sde.T)[-1] == 0.1 * sde.T
    np.testing.assert_array_equal(grids.with_zero(times), [*times, 0.0])


def test_spacing(sde):
    inner = grids.log_snr(sde, 20)[1:-1]
    np.testing.assert_allclose(np.diff(sde.log_snr(inner), 2), 0, atol=1e-6)
    inner = grids.karras(sde, 20)[1:-1]
    np.testing.assert_allclose(np.diff((sde.sigma(inner) / sde.alpha(inner)) ** (1 / 7), 2), 0, atol=1e-6)


def test_cosine_on_the_trigonometric_path_is_uniform():
    np.testing.assert_allclose(grids.cosine(Trig(), 10), grids.uniform(Trig(), 10), rtol=1e-9)


def test_karras_is_that_of_the_paper():
    """2206.00364, eq. 5: sigma_max 80, sigma_min 0.002, rho 7."""
    i = np.arange(18)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grids.karras(EDM(), 17), want, rtol=1e-12)


def test_exponential_is_polyexponential():
    """k-diffusion: sigma = exp(ramp^rho (log max - log min) + log min); rho = 1 is the log-SNR grid."""
    sde, ramp = EDM(), np.linspace(1, 0, 9)
    want = np.exp(ramp**2.0 * np.log(80 / 0.002) + np.log(0.002))
    np.testing.assert_allclose(grids.exponential(sde, 8, rho=2.0), want, rtol=1e-12)
    np.testing.assert_allclose(grids.exponential(sde, 8), grids.log_snr(sde, 8), rtol=1e-12)


def test_vp_time_is_that_of_diff_sampler():
    """beta_d = 19.9, beta_min = 0.1 for sigma 0.0101 to 152 (EDM's table 1); on it the grid is uniform in t."""
    vp = VP()
    sde = EDM(sigma_min=float(vp.sigma(1e-3) / vp.alpha(1e-3)), sigma_max=float(vp.sigma(1.0) / vp.alpha(1.0)))
    t = np.array([1e-3, 0.3, 1.0])
    np.testing.assert_allclose(grids.vp_time(sde)(vp.log_snr(t)), t, rtol=1e-6)
    np.testing.assert_allclose(grids.vp_uniform(vp, 7), grids.uniform(vp, 7), rtol=1e-6)


def test_impossible_grids_are_refused(sde):
    with pytest.raises(ValueError, match="expected a larger t_min"):
        grids.vp_uniform(sde, 5, eps=0.5 * sde.T)
    for options in ({"n": 0}, {"n": 5, "eps": 0.0}, {"n": 5, "eps": 2 * sde.T}):
        with pytest.raises(ValueError, match="expected"):
            grids.uniform(sde, **options)
