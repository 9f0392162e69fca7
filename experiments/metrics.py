"""Distances between samples and data that need no download. All take raw values as float arrays, and are reported beside their floor: the same
distance between two sets of real data of the same sizes."""

import hashlib

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier

Points = Float[np.ndarray, "n d"]


def wasserstein2(a: Points, b: Points) -> float:
    """Exact W2 of two samples of equal size, by optimal assignment. O(n^3): meant for n up to a few thousand."""
    cost = cdist(a, b, "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def sliced_wasserstein2(a: Points, b: Points, projections: int = 1000, seed: int = 0) -> float:
    """Sliced W2: the root mean square over fixed random directions of the one-dimensional W2, by quantiles (sizes may differ)."""
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(1000) + 0.5) / 1000
    pa, pb = np.quantile(a @ directions, levels, axis=0), np.quantile(b @ directions, levels, axis=0)
    return float(np.sqrt(np.mean((pa - pb) ** 2)))


def energy_distance(a: Points, b: Points) -> float:
    """The unbiased estimate of 2 E|a - b| - E|a - a'| - E|b - b'| (Szekely & Rizzo 2013); may be slightly negative."""
    within = lambda x: cdist(x, x).sum() / (len(x) * (len(x) - 1))
    return float(2 * cdist(a, b).mean() - within(a) - within(b))


def frechet(a: Points, b: Points) -> float:
    """Frechet distance of the Gaussians fitted to two samples of features (Heusel et al. 2017, 1706.08500)."""
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr sqrt(ca cb) by the eigenvalues of ca cb, which are those of a positive semi-definite matrix, singular or not
    cross = np.sum(np.sqrt(np.clip(np.linalg.eigvals(ca @ cb).real, 0.0, None)))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca) + np.trace(cb) - 2 * cross)


def precision_recall(samples: Points, data: Points, k: int = 5) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, 1904.06991): the share of samples within a k-nearest-neighbour ball of the data, and
    of data within one of the samples."""

    def share(points, of):
        radius = NearestNeighbors(n_neighbors=k + 1).fit(of).kneighbors(of)[0][:, -1]
        return float(np.mean((cdist(points, of) <= radius).any(1)))

    return share(samples, data), share(data, samples)


class Classifier:
    """A classifier trained here on the same data, for features: Frechet distances in it are called FD-clf, never FID.

    hash: of its weights, to be reported with every figure.
    """

    def __init__(self, values: Points, labels: np.ndarray):
        self.scale = float(np.abs(values).max())
        self.model = MLPClassifier((128, 64), max_iter=300, random_state=0, early_stopping=False).fit(values / self.scale, labels)
        self.hash = hashlib.sha256(b"".join(w.tobytes() for w in self.model.coefs_)).hexdigest()[:8]

    def features(self, values: Points) -> Points:
        """The activations of the last hidden layer, [n, 64]."""
        h = values / self.scale
        for weights, bias in list(zip(self.model.coefs_, self.model.intercepts_))[:-1]:
            h = np.maximum(h @ weights + bias, 0.0)
        return h

    def confidence(self, values: Points) -> float:
        """Mean probability of the most likely class."""
        return float(self.model.predict_proba(values / self.scale).max(1).mean())
