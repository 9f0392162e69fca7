"""Distances between samples and data. All take float arrays, of raw values or of features, and are reported beside their floor: the same distance
between two sets of real data of the same sizes. None needs a download; FID, IS and KID are these of the features of `experiments.inception`."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist, pdist
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier

from experiments import arrays
from experiments.assignment import assignment

Points = Float[np.ndarray, "n d"]
LAYERS = 3  # of a classifier


def wasserstein2(a: Points, b: Points) -> float:
    """Exact W2 of two samples of equal size, by optimal assignment. O(n^3): meant for n up to a few thousand."""
    cost = cdist(a, b, "sqeuclidean")
    return float(np.sqrt(cost[np.arange(len(cost)), assignment(cost)].mean()))


def standard_error(values) -> float:
    """Of the mean of independent values [n]."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def rms(square: Float[np.ndarray, " n"]) -> tuple[float, float | None]:
    """The root of the mean of squares, and its standard error (None of one)."""
    value = float(np.sqrt(square.mean()))
    return value, standard_error(square) / max(2 * value, 1e-30) if len(square) > 1 else None


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


def unbiased_mmd2(aa: Float[np.ndarray, "n n"], bb: Float[np.ndarray, "m m"], ab: Float[np.ndarray, "n m"]) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy from the kernel's values (Gretton et al. 2012, eq. 3); may be negative."""
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return float(within(aa) + within(bb) - 2 * ab.mean())


def mmd2(a: Points, b: Points) -> float:
    """`unbiased_mmd2` of the kernel exp(-|x - y|^2/(2 h^2)), h the median distance within b, the data."""
    h = np.median(pdist(b))
    kernel = lambda x, y: np.exp(-cdist(x, y, "sqeuclidean") / (2 * h**2))
    return unbiased_mmd2(kernel(a, a), kernel(b, b), kernel(a, b))


def kid(a: Points, b: Points, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Kernel Inception distance of features (Binkowski et al. 2018, 1801.01401): mean and standard deviation over subsets, of `size` or as many as
    there are, of `unbiased_mmd2` of the kernel (x y/d + 1)^3."""
    rng, size = np.random.default_rng(seed), min(size, len(a), len(b))
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    series = []
    for _ in range(subsets):
        x, y = (points[rng.choice(len(points), size, replace=False)].astype(np.float64) for points in (a, b))
        series.append(unbiased_mmd2(kernel(x, x), kernel(y, y), kernel(x, y)))
    return float(np.mean(series)), float(np.std(series))


def inception_score(logits: Float[np.ndarray, "n classes"], splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) || p(y)), mean and standard deviation over `splits` (Salimans et al. 2016, 1606.03498)."""
    series = []
    for part in np.array_split(log_softmax(logits.astype(np.float64), 1), splits):
        p = np.exp(part)
        series.append(np.exp(np.mean(np.sum(p * (part - np.log(p.mean(0))), 1))))
    return float(np.mean(series)), float(np.std(series))


def moments(points: Points) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance, divided by n - 1."""
    return points.mean(0, dtype=np.float64), np.atleast_2d(np.cov(points, rowvar=False, dtype=np.float64))


def frechet_of(mu_a: Float[np.ndarray, " d"], sigma_a: Float[np.ndarray, "d d"], mu_b, sigma_b) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 sqrt(A B)) of two Gaussians (Dowson & Landau 1982), singular or not."""
    values, vectors = np.linalg.eigh(sigma_a)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))  # root root' = A: A B has the eigenvalues of root' B root
    cross = np.sum(np.sqrt(np.clip(np.linalg.eigvalsh(root.T @ sigma_b @ root), 0.0, None)))
    return float(np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a) + np.trace(sigma_b) - 2 * cross)


def frechet_to(features: Callable, train: Points) -> Callable:
    """values [n, d] -> the Frechet distance of their features to those of `train`, whose moments are taken once; in a classifier, FD-clf."""
    reference = moments(features(train))
    return lambda values: frechet_of(*moments(features(values)), *reference)


def frechet(a: Points, b: Points) -> float:
    """Frechet distance of the Gaussians fitted to two samples of features (Heusel et al. 2017, 1706.08500)."""
    return frechet_of(*moments(a), *moments(b))


class PRDC(NamedTuple):
    """precision: the share of samples in a ball of the data. recall: of data in a ball of the samples. density: the mean number of the data's balls
    around a sample, over k; may exceed 1. coverage: the share of the data's balls that hold a sample."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(samples: Points, data: Points, k: int = 5) -> PRDC:
    """Improved precision and recall (Kynkaanniemi et al. 2019, 1904.06991), density and coverage (Naeem et al. 2020, 2002.09797): a point's ball
    reaches to its k-th nearest neighbour."""
    radius = lambda points: NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, -1]
    radius_samples, radius_data = radius(samples), radius(data)
    count, recalled, covered = np.empty(len(samples)), np.zeros(len(data), bool), np.zeros(len(data), bool)
    for start in range(0, len(samples), 1000):  # distances of 50k to 50k do not fit in memory
        part = slice(start, start + 1000)
        distance = euclidean_distances(samples[part], data)  # a product of matrices: ten times as fast as `cdist` in 2048 dimensions
        inside = distance <= radius_data
        count[part] = inside.sum(1)
        covered |= inside.any(0)
        recalled |= (distance <= radius_samples[part, None]).any(0)
    return PRDC(float(np.mean(count > 0)), float(recalled.mean()), float(count.mean() / k), float(covered.mean()))


@dataclass(frozen=True)
class Classifier:
    """A classifier trained here on the same data, for features: Frechet distances in it are called FD-clf, never FID.

    scale: values are divided by it. classes: [C], the labels in the order of the outputs. weights, biases: of its layers, with ReLUs between.
    """

    scale: float
    classes: Int[np.ndarray, " classes"]
    weights: list[np.ndarray]
    biases: list[np.ndarray]

    @property
    def hash(self) -> str:
        """Of the weights, to be reported with every figure."""
        return hashlib.sha256(b"".join(w.tobytes() for w in self.weights)).hexdigest()[:8]

    def features(self, values: Points) -> Points:
        """The activations of the last hidden layer, [n, 64]."""
        h = values / self.scale
        for weight, bias in list(zip(self.weights, self.biases))[:-1]:
            h = np.maximum(h @ weight + bias, 0.0)
        return h

    def log_probabilities(self, values: Points) -> Float[np.ndarray, "n classes"]:
        """log p(class | value)."""
        logits = self.features(values) @ self.weights[-1] + self.biases[-1]
        return log_softmax(np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits, 1)

    def confidence(self, values: Points) -> float:
        """Mean probability of the most likely class."""
        return float(np.exp(self.log_probabilities(values).max(1)).mean())

    def agreement(self, values: Points, labels: Int[np.ndarray, " n"]) -> float:
        """The share of values that are given their label."""
        return float(np.mean(self.classes[self.log_probabilities(values).argmax(1)] == labels))

    def save(self, path: Path) -> None:
        named = {f"{name}_{i}": array for name in ("weights", "biases") for i, array in enumerate(getattr(self, name))}
        arrays.save(path, scale=self.scale, classes=self.classes, **named)


def classifier(values: Points, labels: Int[np.ndarray, " n"]) -> Classifier:
    """Trained on values [n, d], for 300 epochs of few examples and ten of 60,000, always the same."""
    scale = float(np.abs(values).max())
    epochs = int(np.clip(600_000 // len(values), 10, 300))
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # so many epochs and no more are meant
        model = MLPClassifier((128, 64), max_iter=epochs, random_state=0, early_stopping=False).fit(values / scale, labels)
    return Classifier(scale, model.classes_, model.coefs_, model.intercepts_)


def load_classifier(path: Path) -> Classifier:
    """What `Classifier.save` wrote. Raises ValueError if the file is damaged."""
    names = [f"{name}_{i}" for name in ("weights", "biases") for i in range(LAYERS)]
    scale, classes, *layers = arrays.load(path, ["scale", "classes", *names], "python -m experiments.evaluate")
    return Classifier(float(scale), classes, layers[:LAYERS], layers[LAYERS:])
