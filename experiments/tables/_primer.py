"""A number of the primer: ours, its closed form, what the text says, and whether they agree."""

import numpy as np


def number(what: str, where: str, ours, exact, text=None, agrees=None, digits: int = 9, error=None) -> dict:
    """A row of the table. where: the seed and its heading. text: the number as printed there, or None; agrees: what to say of it, if it is no number.

    exact: None for what is only measured. Gate (see `holds`): to `digits` decimals or, with the standard error of a Monte Carlo estimate, within four
    of them.
    """
    if agrees is None and text is not None:
        right = f"{exact:.{len(text.partition('.')[2])}f}"
        agrees = "yes" if float(right) == float(text) else f"no: {right}"
    row = {"what": what, "seed": where, "ours": float(ours), "±": None if error is None else float(error)}
    return row | {"closed form": None if exact is None else float(exact), "digits": digits if error is None else None, "text": text, "agrees": agrees}


def drawn(what: str, where: str, values: np.ndarray, exact, text=None, agrees=None) -> dict:
    """A row of the mean of independent values [n]."""
    return number(what, where, np.mean(values), exact, text, agrees, error=np.std(values, ddof=1) / np.sqrt(len(values)))


def holds(row: dict) -> bool:
    """Whether ours equals the closed form to the row's digits, or within four standard errors."""
    if row["closed form"] is None:
        return True
    bound = 0.5 * 10.0 ** -row["digits"] if row["±"] is None else 4 * row["±"]
    return abs(row["ours"] - row["closed form"]) <= bound
