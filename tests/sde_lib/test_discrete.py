import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import solvers
from sde_lib import DDPM, NCSN, VE, VP, normal

STEPS = np.arange(1, 1001)


def test_ddpm_tends_to_vp():
    """score_sde.md, check 2: the gaps at N = 1000, and at ten times as many steps a tenth of them."""
    chain, sde = DDPM(), VP()
    gap = np.max(np.abs(chain.alpha(STEPS / 1000) - sde.alpha(STEPS / 1000)))
    assert gap == pytest.approx(9.93e-4, rel=1e-2)
    assert chain.sigma(1e-3) / sde.sigma(1e-3) - 1 == pytest.approx(-4.63e-2, rel=1e-2)
    assert chain.alpha(1.0) ** 2 == pytest.approx(4.0358e-5, rel=1e-4) and sde.alpha(1.0) ** 2 == pytest.approx(4.3186e-5, rel=1e-4)
    finer = DDPM(betas=tuple(np.linspace(0.1, 20.0, 10_000) / 10_000))
    assert np.max(np.abs(finer.alpha(STEPS / 1000) - sde.alpha(STEPS / 1000))) == pytest.approx(gap / 10, rel=0.05)


def test_ncsn_is_ve_at_its_steps():
    chain = NCSN()
    np.testing.assert_allclose(chain.sigma(chain.time_of_step(STEPS)), VE().sigma((STEPS - 1) / 999), rtol=1e-10)


@pytest.mark.parametrize("chain", [DDPM(), NCSN()], ids=["DDPM", "NCSN"])
def test_steps_and_times_are_inverse(chain):
    np.testing.assert_array_equal(chain.step_of_time(chain.time_of_step(STEPS)), STEPS)
    np.testing.assert_array_equal(jax.jit(lambda i: chain.step_of_time(chain.time_of_step(i)))(jnp.asarray(STEPS)), STEPS)


def cosine_betas(n):
    """Nichol & Dhariwal 2021 (2102.09672), section 3.2: beta clipped at 0.999, so that the last steps are a hundred times the others."""
    bars = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    return tuple(np.minimum(1 - bars[1:] / bars[:-1], 0.999))


@pytest.mark.parametrize("chain", [DDPM(cosine_betas(50)), DDPM((0.5, 1e-3)), NCSN((0.01, 0.011, 3.0, 3.1)), NCSN((1.0, 2.0))], ids=str)
def test_chains_with_uneven_steps_stay_monotone_and_invertible(chain):
    t = np.linspace(1e-3, 1, 5000)
    assert np.all(np.diff(chain.log_snr(t)) < 0)
    np.testing.assert_allclose(chain.time(chain.log_snr(t)), t, rtol=1e-9)


@pytest.mark.parametrize("chain", [DDPM(), NCSN()], ids=["DDPM", "NCSN"])
def test_iterative_form_compounds_to_single_step(chain):
    """Coefficients of each iterative step, read off exactly, compound to those of the single step (Table 1 of the survey)."""
    key, zero, one = jax.random.key(0), jnp.zeros((1, 1)), jnp.ones((1, 1))
    with jax.enable_x64(True):
        zero, one = (a.astype(jnp.float64) for a in (zero, one))
        z = normal(key, (1, 1), jnp.float64)
        mean, variance = 1.0, 0.0
        for i in range(1, 201):
            noise = float((chain.iterate(key, zero, i) / z)[0, 0])
            decay = float((chain.iterate(key, one, i) - chain.iterate(key, zero, i))[0, 0])
            mean, variance = decay * mean, decay**2 * variance + noise**2
        x, eps = chain.single_step(key, one, 200)
        np.testing.assert_allclose(x, mean * one + np.sqrt(variance) * eps, rtol=1e-9)


def test_ancestral_sampling_on_the_chain_is_that_of_ddpm():
    """2006.11239, eq. 7, coefficient by coefficient."""
    chain, betas = DDPM(), np.array(DDPM().betas)
    bars = np.cumprod(1 - betas)
    table = solvers.ancestral()(chain, STEPS[::-1] / 1000)
    i = np.arange(999, 0, -1)  # from x_{i+1} to x_i, zero-based betas[i]
    variance = betas[i] * (1 - bars[i - 1]) / (1 - bars[i])
    np.testing.assert_allclose(table.x[:, 0], np.sqrt(1 - betas[i]) * (1 - bars[i - 1]) / (1 - bars[i]), rtol=1e-8)
    np.testing.assert_allclose(table.p[:, 0], np.sqrt(bars[i - 1]) * betas[i] / (1 - bars[i]), rtol=1e-8)
    np.testing.assert_allclose(table.noise, np.sqrt(variance), rtol=1e-8)


def test_steps_outside_the_chain_are_refused():
    for i in (0, 1001):
        with pytest.raises(ValueError, match="expected 1 to 1000"):
            DDPM().iterate(jax.random.key(0), jnp.ones((1, 1)), i)
