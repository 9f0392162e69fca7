import numpy as np
import pytest
from sklearn import datasets

from experiments import metrics

RNG = np.random.default_rng(0)
A = RNG.standard_normal((400, 3))


def test_distances_of_a_shift():
    """A shift by d moves W2 by |d|, its slices by |d|/sqrt(3) in 3-D, Frechet by |d|^2, exactly (the sample is the same)."""
    d = np.array([3.0, 0.0, 4.0])
    assert metrics.wasserstein2(A, A + d) == pytest.approx(5.0)
    assert metrics.sliced_wasserstein2(A, A + d, projections=20_000) == pytest.approx(5 / np.sqrt(3), rel=0.01)
    assert metrics.frechet(A, A + d) == pytest.approx(25.0)


def test_frechet_of_scaled_gaussians():
    """N(0, S) to N(0, 4 S): trace(S + 4 S - 4 S) = trace S."""
    assert metrics.frechet(A, 2 * A) == pytest.approx(np.trace(np.cov(A, rowvar=False)) + np.sum(A.mean(0) ** 2))


def test_energy_distance():
    """Unbiased: 0 between halves of one law within 4 standard errors (40 draws of n = 200); positive for another one."""
    draws = [metrics.energy_distance(*RNG.standard_normal((2, 200, 2))) for _ in range(40)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(40)
    assert metrics.energy_distance(A, A + 1) > 0.5


def test_precision_and_recall():
    """A subset in one mode is precise without recall; a too wide sample has recall without precision."""
    modes = np.concatenate([A, A + 20])
    precision, recall = metrics.precision_recall(A + 0.01, modes)
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.1)
    precision, recall = metrics.precision_recall(20 * RNG.standard_normal((400, 3)), A)
    assert precision < 0.2 and recall > 0.8


def test_classifier():
    data = datasets.load_digits()
    classifier = metrics.Classifier(data.data[:1400], data.target[:1400])
    assert np.mean(classifier.model.predict(data.data[1400:] / classifier.scale) == data.target[1400:]) > 0.9
    h = classifier.features(data.data[1400:])
    logits = h @ classifier.model.coefs_[-1] + classifier.model.intercepts_[-1]
    np.testing.assert_array_equal(logits.argmax(1), classifier.model.predict(data.data[1400:] / classifier.scale))
    assert h.shape[1] == 64 and len(classifier.hash) == 8
    assert metrics.Classifier(data.data[:1400], data.target[:1400]).hash == classifier.hash
