"""Polynomials on Chebyshev nodes of [0, 1], and what `samplers.likelihood` marches and integrates with: host-side, in float64."""

import numpy as np
from jaxtyping import Float
from numpy.polynomial import chebyshev

from samplers.solvers.steps import gauss_legendre, lagrange


def nodes(n: int) -> Float[np.ndarray, " n+1"]:
    """(1 - cos(pi k/n))/2, k = 0..n: nested under doubling."""
    return 0.5 * (1 - np.cos(np.pi * np.arange(n + 1) / n))


def interpolation(n: int, points) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [len(points), n + 1] from values at `nodes(n)` to the polynomial through them, and to its integral from 0, at points."""
    inverse = coefficients(n)
    values = chebyshev.chebvander(2 * points - 1, n) @ inverse
    integral = 0.5 * np.stack([chebyshev.chebval(2 * points - 1, chebyshev.chebint(c, lbnd=-1)) for c in inverse.T], 1)
    return values, integral


def clenshaw_curtis(n: int) -> Float[np.ndarray, " n+1"]:
    """Weights of `nodes(n)` on [0, 1]."""
    return interpolation(n, np.ones(1))[1][0]


def adams_weights(points: np.ndarray, count: int) -> Float[np.ndarray, "n+1 count"]:
    """Adams-Bashforth weights of the last `count` slopes, oldest first, for the step from each point to the next (from the last: 0)."""
    theta, weight = gauss_legendre(count)
    weights = np.zeros((len(points), count))
    for i, step in enumerate(np.diff(points)):
        last = points[max(0, i + 1 - count) : i + 1]
        weights[i, -len(last) :] = step * np.sum(weight * lagrange(last, points[i] + step * theta), 1)
    return weights


def path_plan(levels: tuple[int, ...], count: int = 4):
    """For each of `levels`, filled up to the size N + 1 of the last: its nodes [N + 1]; `adams_weights` [N + 1, count]. And, in lists, matrices from
    slopes at its own n + 1 nodes to slopes at the last level's [N + 1, n + 1], and to what their exact integral at its nodes differs from the
    steps' [n + 1, n + 1]."""
    most = levels[-1]
    points, weights = np.ones((len(levels), most + 1)), np.zeros((len(levels), most + 1, count))
    finest, defect = [], []
    for level, n in enumerate(levels):
        own = slice(n + 1)
        points[level, own], weights[level, own] = nodes(n), adams_weights(nodes(n), count)
        steps = np.zeros((n + 1, n + count))
        for i in range(n):
            steps[i + 1 :, i : i + count] += weights[level, i]
        finest.append(interpolation(n, nodes(most))[0])
        defect.append(interpolation(n, nodes(n))[1] - steps[:, count - 1 :])
    return points, weights, finest, defect


def quadrature_plan(levels: tuple[int, ...]):
    """The rules [len(levels) + 2, N + 1] of a quarter and a half of the first level and of all levels, as weights of the last one's nodes; the
    nodes that each level adds, as blocks [., levels[0] + 1] of their indices (the last of a level filled up by repetition); and the first block of
    each level, with their number."""
    finest, least = levels[-1], levels[0]
    every = lambda n: np.arange(0, finest + 1, finest // n)
    rules = np.zeros((len(levels) + 2, finest + 1))
    for rule, n in zip(rules, (least // 4, least // 2, *levels)):
        rule[every(n)] = clenshaw_curtis(n)
    blocks, first = [every(least)], [0, 1]
    for n in levels[1:]:
        blocks += [np.pad(new, (0, 1), mode="edge") for new in every(n)[1::2].reshape(-1, least)]
        first.append(len(blocks))
    return rules, np.stack(blocks), np.array(first)


def coefficients(n: int) -> Float[np.ndarray, "n+1 n+1"]:
    """Matrix from values at `nodes(n)` to the Chebyshev coefficients of the polynomial through them."""
    return np.linalg.inv(chebyshev.chebvander(2 * nodes(n) - 1, n))


def differentiation(n: int) -> Float[np.ndarray, "n+1 n+1"]:
    """Matrix from values at `nodes(n)` to the derivative, there, of the polynomial through them."""
    rows = [2 * chebyshev.chebval(2 * nodes(n) - 1, chebyshev.chebder(c)) for c in coefficients(n).T]
    return np.stack(rows, 1)
