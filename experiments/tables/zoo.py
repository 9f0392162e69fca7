"""Every solver by name: where it is from, what it consumes, and what it costs, read off its docstring and its table for ten steps."""

import inspect
import re

from samplers import grids, solvers
from sde_lib import VP


def row(name: str) -> dict:
    """One solver with its defaults."""
    table = solvers.SOLVERS[name]()(VP(), grids.log_snr(VP(), 10))
    what = re.split(r"(?:: |; |\. (?=[A-Z]))(?![^(]*\))", " ".join(inspect.getdoc(solvers.SOLVERS[name]).split()))[0].rstrip(".")
    options = ", ".join(p for p in inspect.signature(solvers.SOLVERS[name]).parameters)
    return {
        "solver": name,
        "what": what,
        "options": options,
        "consumes": table.prediction,
        "noise": "yes" if table.stochastic else "",
        "NFE": table.nfe,
    }


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """A row per solver of `samplers.solvers`; no gates."""
    return [row(name) for name in sorted(solvers.SOLVERS)], {}
