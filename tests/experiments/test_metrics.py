import numpy as np
import pytest
from sklearn import datasets
from sklearn.neural_network import MLPClassifier

from experiments import metrics

RNG = np.random.default_rng(0)
A = RNG.standard_normal((400, 3))


@pytest.mark.slow
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
    near = metrics.prdc(A + 0.01, modes)
    assert near.precision > 0.9 and near.recall == near.coverage == pytest.approx(0.5, abs=0.1)
    near = metrics.prdc(20 * RNG.standard_normal((400, 3)), A)
    assert near.precision < 0.2 and near.recall > 0.8


def test_precision_recall_density_and_coverage_by_their_definitions():
    """Every ball and every point, one by one, over more samples than are computed at once."""
    samples, data, k = RNG.standard_normal((1100, 2)), 0.5 + RNG.standard_normal((60, 2)), 3
    far = lambda x, points: np.sort(np.linalg.norm(points - x, axis=1))[k]
    ball_data, ball_samples = [far(x, data) for x in data], [far(x, samples) for x in samples]
    inside = np.array([[np.linalg.norm(x - y) <= r for y, r in zip(data, ball_data)] for x in samples])
    recalled = [any(np.linalg.norm(y - x) <= r for x, r in zip(samples, ball_samples)) for y in data]
    expected = inside.any(1).mean(), np.mean(recalled), inside.sum() / (k * len(samples)), inside.any(0).mean()
    assert metrics.prdc(samples, data, k) == pytest.approx(expected)


def test_frechet_of_moments():
    """Of commuting covariances |m|^2 + sum (s_a - s_b)^2, singular or not, in any basis."""
    basis = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    a, b, mean = np.array([0.0, 1.0, 2.0, 0.0]), np.array([1.0, 1.0, 0.5, 0.0]), np.array([0.0, 3.0, 0.0, 4.0])
    expected = 25 + np.sum((a - b) ** 2)
    assert metrics.frechet_of(mean, basis @ np.diag(a**2) @ basis.T, 0 * mean, basis @ np.diag(b**2) @ basis.T) == pytest.approx(expected)


def test_mmd():
    """Of N(0, 1) and N(1, 1) by the kernel's Gaussian integrals, within 4 standard errors of 40 draws of n = 200; h is the data's."""
    draws = RNG.standard_normal((40, 2, 200, 1)) + np.array([1.0, 0.0])[:, None, None]
    h2 = np.median([np.median(np.abs(b - b.T)[np.triu_indices(200, 1)]) ** 2 for _, b in draws])
    expected = 2 * np.sqrt(h2 / (h2 + 2)) * (1 - np.exp(-1 / (2 * (h2 + 2))))
    found = [metrics.mmd2(a, b) for a, b in draws]
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(40)
    same = [metrics.mmd2(a - 1, b) for a, b in draws]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(40) and min(same) < 0


def test_kid():
    """By its definition on all points, pair by pair; unbiased between halves of one law (40 draws of n = 100, 4 standard errors)."""
    a, b = A[:30], A[30:55] + 0.5
    kernel = lambda x, y: (x @ y / 3 + 1) ** 3
    within = lambda p: np.mean([kernel(x, y) for i, x in enumerate(p) for j, y in enumerate(p) if i != j])
    expected = within(b) + within(a[:25]) - 2 * np.mean([kernel(x, y) for x in a[:25] for y in b])
    assert metrics.kid(a[:25], b, subsets=1) == pytest.approx((expected, 0.0))
    draws = [metrics.kid(*RNG.standard_normal((2, 100, 3)), subsets=1)[0] for _ in range(40)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(40)
    mean, deviation = metrics.kid(A, A + 1, subsets=5, size=50)
    assert mean > 1 and deviation > 0


def test_inception_score():
    """K of certain and even predictions over K classes, 1 of equal ones."""
    certain = 1e3 * np.eye(5)[np.arange(100) % 5]
    assert metrics.inception_score(certain) == pytest.approx((5.0, 0.0))
    assert metrics.inception_score(np.tile(RNG.standard_normal(5), (100, 1))) == pytest.approx((1.0, 0.0))


def test_classifier(tmp_path):
    """It predicts as scikit-learn's does, of many classes and of two; is the same each time; and comes back from its file."""
    data = datasets.load_digits()
    ours = metrics.classifier(data.data[:150], data.target[:150])
    model = MLPClassifier((128, 64), max_iter=300, random_state=0).fit(data.data[:150] / ours.scale, data.target[:150])
    held = data.data[150:]
    np.testing.assert_allclose(np.exp(ours.log_probabilities(held)), model.predict_proba(held / ours.scale), atol=1e-9)
    assert ours.agreement(held, data.target[150:]) == model.score(held / ours.scale, data.target[150:]) > 0.7
    assert ours.features(held).shape[1] == 64 and len(ours.hash) == 8
    ours.save(tmp_path / "classifier.npz")
    again = metrics.load_classifier(tmp_path / "classifier.npz")
    assert again.hash == ours.hash and again.confidence(held) == ours.confidence(held)
    two = data.target[:60] % 2 + 3  # any labels
    assert metrics.classifier(data.data[:60], two).agreement(data.data[:60], two) > 0.99
    (tmp_path / "classifier.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged"):
        metrics.load_classifier(tmp_path / "classifier.npz")
