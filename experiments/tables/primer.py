"""The primer: every number and worked example of the five seeds that can be computed, beside its closed form and what the text says.

Seeds: 000 "Differential Equations in Generative Modeling for Dummies"; 001 "The mathematical machinery of generation"; 002 "Diffusion Models in
Vision"; 003 "Introduction to diffusion and flow models"; 004 "Diffusion Models and (Many) Differential Equations". Their times are kept for numbers
of theirs (001 and 003 have the data at t = 1); in float64.
ours: by diffrax, `sde_lib` and `samplers`. ±: the standard error of a Monte Carlo estimate (fixed seeds, in the code). closed form: or, where a row
says so, the density of Fokker-Planck on a grid; none of what is only measured. digits: decimals to which ours must equal the closed form. text: what
the seed says: a number as printed there, in parentheses one that its formula comes to, or words; agrees: whether the closed form rounds to it, or
"no:" and what is right, by a comparison of the numbers. Gate: every row to its digits, or within four standard errors.
fields.png, steps.png, car.png, traces.png, maps.png and showcase.png draw the same.
"""

import jax

from experiments.tables import _primer_densities as densities
from experiments.tables import _primer_figures as figures
from experiments.tables import _primer_models as models
from experiments.tables import _primer_ordinary as ordinary
from experiments.tables import _primer_solvers as solvers
from experiments.tables import _primer_stochastic as stochastic
from experiments.tables._primer import holds

SEEDS = {"draws": tuple(range(19)), "figures": (20, 21)}


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and whether every one of them passes its gate, which holds for fewer samples too."""
    n, steps = (400, 200) if quick else (10_000, 1000)
    with jax.enable_x64(True):
        rows = [*ordinary.fields(), *ordinary.flows(), *ordinary.steps(), *ordinary.rocket_car()]
        rows += [*solvers.schedules(), *solvers.summary(), *solvers.steadiness(n // 10), *solvers.few_steps()]
        rows += [*stochastic.traces(), *stochastic.brownian(n), *stochastic.ornstein_uhlenbeck(n), *stochastic.turbulence(n)]
        rows += [*stochastic.noise_levels(), *stochastic.chains()]
        rows += [*densities.two_maps(n), *densities.densities(), *densities.losses(n), *densities.formulas()]
        rows += [*models.fields_of_models(), *models.two_modes(n // 4), *models.showcase(n // 2, steps), *models.round_trip()]
        figures.fields(out / "fields.png")
        figures.steps(out / "steps.png")
        figures.rocket_car(out / "car.png")
        figures.traces(out / "traces.png")
        figures.maps(out / "maps.png")
        figures.showcase(out / "showcase.png")
    return rows, gates(rows)


def gates(rows: list[dict]) -> dict[str, bool]:
    """Whether all rows hold, and those that do not."""
    wrong = [row["what"] for row in rows if not holds(row)]
    return {f"all {len(rows)} rows equal their closed forms, to their digits or within 4 standard errors": not wrong} | dict.fromkeys(wrong, False)
