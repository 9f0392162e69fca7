import numpy as np
import pytest

from samplers import grids

GRIDS = ["uniform", "quadratic", "cosine", "log_snr", "karras"]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", [1, 7, 50])
def test_grid(sde, name, n):
    """n + 1 decreasing finite times, exactly from T to eps."""
    times = getattr(grids, name)(sde, n)
    assert times.dtype == np.float64 and times.shape == (n + 1,)
    assert times[0] == sde.T and times[-1] == sde.sampling_eps
    assert np.all(np.diff(times) < 0)
    assert getattr(grids, name)(sde, n, eps=0.1 * sde.T)[-1] == 0.1 * sde.T
    np.testing.assert_array_equal(grids.with_zero(times), [*times, 0.0])


def test_spacing(sde):
    inner = grids.log_snr(sde, 20)[1:-1]
    np.testing.assert_allclose(np.diff(sde.log_snr(inner), 2), 0, atol=1e-6)
    inner = grids.karras(sde, 20)[1:-1]
    np.testing.assert_allclose(np.diff((sde.sigma(inner) / sde.alpha(inner)) ** (1 / 7), 2), 0, atol=1e-6)


def test_cosine_on_the_trigonometric_path_is_uniform():
    from sde_lib import Trig

    np.testing.assert_allclose(grids.cosine(Trig(), 10), grids.uniform(Trig(), 10), rtol=1e-9)


def test_karras_is_that_of_the_paper():
    """2206.00364, eq. 5: sigma_max 80, sigma_min 0.002, rho 7."""
    from sde_lib import EDM

    i = np.arange(18)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grids.karras(EDM(), 17), want, rtol=1e-12)


def test_impossible_grids_are_refused(sde):
    for options in ({"n": 0}, {"n": 5, "eps": 0.0}, {"n": 5, "eps": 2 * sde.T}):
        with pytest.raises(ValueError, match="expected"):
            grids.uniform(sde, **options)
