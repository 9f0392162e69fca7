"""A number of the primer: ours, its closed form, what the text says, and whether they agree."""

import numpy as np
from scipy.stats import kstest

from experiments.metrics import standard_error

# mean and standard deviation of Kolmogorov's law, that of sqrt(n) times the distance of n draws for n large
KOLMOGOROV = np.sqrt(np.pi / 2) * np.log(2), np.sqrt(np.pi**2 / 12 - np.pi / 2 * np.log(2) ** 2)


def number(what: str, where: str, ours, exact, text=None, agrees=None, digits: int = 9, error=None) -> dict:
    """A row of the table. where: the seed and its heading. exact: the closed form, or None of what is only measured.

    text: what the seed says: a number as printed, words, in quotes if they are no number's, or in parentheses the number that its formula comes to.
    agrees: the `verdict` on it; by default whether the closed form rounds to the number. Gate (see `holds`): to `digits` decimals or, with the
    standard error of a Monte Carlo estimate, within four of them.
    """
    if agrees is None and text is not None:
        said = text.strip("()")
        right = f"{exact:.{len(said.partition('.')[2])}f}"
        agrees = verdict(float(right) == float(said), right)
    row = {"what": what, "seed": where, "ours": float(ours), "±": None if error is None else float(error)}
    return row | {
        "closed form": None if exact is None else float(exact),
        "digits": digits if error is None and exact is not None else None,
        "text": text,
        "agrees": agrees,
    }


def verdict(right: bool, no: str, yes: str = "") -> str:
    """What to say of the text, by a comparison of numbers: "yes", with a remark, or "no" and what is so instead."""
    return f"no: {no}" if not right else f"yes: {yes}" if yes else "yes"


def drawn(what: str, where: str, values: np.ndarray, exact, text=None, agrees=None) -> dict:
    """A row of the mean of independent values [n]."""
    return number(what, where, np.mean(values), exact, text, agrees, error=standard_error(values))


def deviation(what: str, where: str, squares: np.ndarray, exact, text=None, agrees=None) -> dict:
    """A row of the root of the mean of independent squares [n]; its standard error to first order."""
    std = np.sqrt(np.mean(squares))
    return number(what, where, std, exact, text, agrees, error=standard_error(squares) / (2 * std))


def distributed(what: str, where: str, values: np.ndarray, cdf, text=None) -> dict:
    """A row of sqrt(n) times the Kolmogorov-Smirnov distance of independent values [n] to a law, beside the mean of Kolmogorov's; ±: the deviation
    of his. agrees: whether that is the law."""
    (exact, error), ours = KOLMOGOROV, np.sqrt(len(values)) * kstest(values, cdf).statistic
    row = number(f"{what}: sqrt(n) Kolmogorov-Smirnov", where, ours, exact, error=error)
    return row if text is None else row | {"text": text, "agrees": verdict(holds(row), "another law")}


def holds(row: dict) -> bool:
    """Whether ours equals the closed form to the row's digits, or within four standard errors."""
    if row["closed form"] is None:
        return True
    bound = 0.5 * 10.0 ** -row["digits"] if row["±"] is None else 4 * row["±"]
    return abs(row["ours"] - row["closed form"]) <= bound
