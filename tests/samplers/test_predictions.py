"""Whatever the network predicts, diffrax's samplers and the likelihood give the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import grids, log_likelihood, sample_adaptive, sample_sde
from sde_lib import PLANE, SDE, VP, Denoiser, GaussianMixture

GM = GaussianMixture([[-0.8, 0.1], [0.5, 0.4]], [0.3, 0.2], [1.0, 2.0])


CASES = [(cls, kind) for cls in SDE.__subclasses__() for kind in PLANE]
fast = lambda cls, kind: cls is VP and kind == "noise"
CASES = [pytest.param(c(), k, marks=() if fast(c, k) else pytest.mark.slow, id=f"{c.__name__}-{k}") for c, k in CASES]


@pytest.mark.parametrize("path, kind", CASES)
@pytest.mark.slow
def test_every_prediction(path, kind):
    """From the exact prediction of `kind`: the flow, the reverse SDE on the same noise and log p, as from the oracle's own denoiser, in float32.

    On a path that reaches alpha = 0, `noise` and `score` are evaluated no nearer to it than alpha = 1e-3, and differ by as much.
    """
    exact = GM.denoiser(path)
    den = Denoiser(lambda x, t: exact.predict(kind, x, t), path, kind)
    x_T, x = path.prior_sample(jax.random.key(0), (4, 2)), GM.sample(jax.random.key(1), 4)
    tolerance = 1e-2 if kind in ("noise", "score") else 2e-3
    run = lambda den: (
        sample_adaptive(den, x_T).x,
        sample_sde(den, x_T, grids.log_snr(path, 20), jax.random.key(2)).x,
        log_likelihood(den, x).log_prob,
    )
    for got, want in zip(run(den), run(exact)):
        assert np.all(np.isfinite(got))
        np.testing.assert_allclose(got, want, atol=tolerance * float(1 + jnp.abs(want).max()))
