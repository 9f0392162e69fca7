"""Bits/dim of simple models of discrete data, fitted to the training split, for each test image: what a network must beat."""

import numpy as np
from scipy import special, stats

from experiments.data import Dataset


def levels_of(dataset: Dataset, split: str) -> np.ndarray:
    return dataset.values[split].reshape(len(dataset.values[split]), -1)


def gaussian_bits(dataset: Dataset, by_class: bool, draws: int) -> np.ndarray:
    """One Gaussian, or one for each class (and the classes' frequencies), mean over `draws` uniform dequantizations."""
    rng = np.random.default_rng(0)
    train, test = levels_of(dataset, "train"), levels_of(dataset, "test")
    dequantized = lambda levels: levels + rng.uniform(size=levels.shape)
    groups = [dataset.labels["train"] == k for k in range(dataset.num_classes)] if by_class else [np.ones(len(train), bool)]
    fits = []
    for group in groups:
        u = np.concatenate([dequantized(train[group]) for _ in range(draws)])
        # a class may have few more images than pixels: a variance of half a level^2 more keeps its covariance well-conditioned
        fits.append((np.log(group.mean()), stats.multivariate_normal(u.mean(0), np.cov(u.T) + (0.5 if by_class else 0) * np.eye(u.shape[1]))))
    log_p = lambda u: special.logsumexp([w + fit.logpdf(u) for w, fit in fits], 0)
    return -np.mean([log_p(dequantized(test)) for _ in range(draws)], 0) / (dataset.dim * np.log(2))


def categorical_bits(dataset: Dataset) -> np.ndarray:
    """Independent pixels, each with its own frequencies of levels and one count more of each."""
    pixels = np.arange(dataset.dim) * dataset.levels
    counts = np.bincount(np.ravel(levels_of(dataset, "train") + pixels), minlength=dataset.dim * dataset.levels) + 1
    log_p = np.log2(counts / (counts.sum() / dataset.dim))
    return -log_p[levels_of(dataset, "test") + pixels].mean(1)
