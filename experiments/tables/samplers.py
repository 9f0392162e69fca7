"""Predictors, correctors and both on VE, VP and sub-VP: the scaled twin of Table 1 of Song et al. 2021 (2011.13456).

FD-clf of 4 x 360 samples of the digits, by residual MLPs trained here if OUT has no runs of them (configs/score_sde.py:ve_digits, vp_digits,
subvp_digits). P100 and P200: so many steps of the predictor; C200: of the Langevin corrector alone; PC100: 100 steps of both; r = 0.16, uniform
times, one evaluation more that denoises. "published": FID on CIFAR-10 by ten times as many steps, where lower is better too. All start from the same
x_T, so that standard errors of differences ("PC100 - P200") are over paired sets. FD-clf is a distance in a small classifier, not FID; its floor is
that of 360 test images. OUT/orderings.txt says which of the published orderings hold, by the 95 % interval of Student's t of the difference.
"""

import jax
import numpy as np
from scipy import stats

from configs import score_sde
from experiments import evaluate, metrics, plots
from experiments.tables._training import trained
from samplers import grids, langevin, predictor_corrector, solvers
from sde_lib import Denoiser

SEEDS = {"training": 0, "x_T": 0, "sampler": 1}
SOURCES = {"published": "FID of CIFAR-10, Song et al. 2021, 2011.13456, table 1"}
GROUPS = 4
# VP's ancestral sampling has the variance of the forward step, VE's that of the posterior (appendix F)
SAMPLERS = {"ancestral": solvers.ancestral, "reverse diffusion": solvers.reverse_diffusion, "probability flow": solvers.probability_flow}
PUBLISHED = {  # P1000, P2000, C2000, PC1000
    ("VE", "ancestral"): (4.98, 4.88, 20.43, 3.62), ("VE", "reverse diffusion"): (4.79, 4.74, 20.43, 3.60),
    ("VE", "probability flow"): (15.41, 10.54, 20.43, 3.51), ("VP", "ancestral"): (3.24, 3.24, 19.06, 3.21),
    ("VP", "reverse diffusion"): (3.21, 3.19, 19.06, 3.18), ("VP", "probability flow"): (3.59, 3.23, 19.06, 3.06),
}  # fmt: skip


def difference(a, b) -> tuple[float, float]:
    """Mean of a - b over paired sets, and its standard error."""
    return float(np.mean(a - b)), metrics.standard_error(a - b)


def verdict(better, worse) -> str:
    """By the 95 % interval of Student's t for so few sets."""
    gap, error = difference(better, worse)
    bound = stats.t.ppf(0.975, len(better) - 1) * error
    return f"{'holds' if gap < -bound else 'is reversed' if gap > bound else 'is not decided'} ({gap:+.2f} ± {error:.2f})"


def orderings(scores: dict, columns: tuple[str, ...]) -> list[str]:
    """The orderings of the published figures, each with what was found here; those of sub-VP, of which none are published, are its VP's."""
    few, many, alone, both = columns
    lines = []

    def say(sde, better, worse):
        """Of two (sampler, column)."""
        of = lambda which: PUBLISHED[sde if (sde, which[0]) in PUBLISHED else "VP", which[0]][columns.index(which[1])]
        if of(better) < of(worse):
            found = verdict(scores[sde, better[0]][better[1]], scores[sde, worse[0]][worse[1]])
            lines.append(f"{sde}: {' '.join(better)} is better than {' '.join(worse)}: {found}")

    for sde in dict.fromkeys(sde for sde, _ in scores):
        for name in SAMPLERS:
            for better, worse in ((both, many), (many, few), (both, alone)):
                say(sde, (name, better), (name, worse))
        say(sde, ("reverse diffusion", few), ("ancestral", few))
        say(sde, ("ancestral", few), ("probability flow", few))
    return lines


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and gates of PC beside the corrector alone, and beside twice the steps of the predictor."""
    n, steps = (20, 3) if quick else (360, 100)
    few, many, alone, both = columns = (f"P{steps}", f"P{2 * steps}", f"C{2 * steps}", f"PC{steps}")
    scores, rows = {}, []
    for name in ("ve", "vp", "subvp"):
        model = trained(score_sde.get_config(f"{name}_digits"), out / name, quick)
        den, sde, dataset, label = model.denoiser(), model.network.sde, model.dataset, type(model.network.sde).__name__
        judge = evaluate.classifier(dataset)
        distance = metrics.frechet_to(judge.features, evaluate.flat(dataset.values["train"]))
        x_T = sde.prior_sample(jax.random.key(0), (GROUPS * n, *dataset.shape))

        def distances(predictor, corrector, count):
            times = grids.uniform(sde, count)  # noqa: B023
            x = predictor_corrector(den, x_T, times, predictor, corrector, jax.random.key(1))  # noqa: B023
            values = dataset.from_x(np.asarray(jax.jit(Denoiser.data)(den, x, times[-1])))  # noqa: B023
            return np.array([distance(evaluate.flat(group)) for group in np.split(values, GROUPS)])  # noqa: B023

        corrected = distances(None, langevin(), 2 * steps)
        for sampler, factory in SAMPLERS.items():
            predictor = factory("posterior" if name == "ve" else "forward") if sampler == "ancestral" else factory()
            plain = {few: distances(predictor, None, steps), many: distances(predictor, None, 2 * steps)}
            found = scores[label, sampler] = {**plain, alone: corrected, both: distances(predictor, langevin(), steps)}
            gap, error = difference(found[both], found[many])
            row = {"SDE": label, "sampler": sampler}
            for column in columns:
                row |= {column: found[column].mean(), f"± {column}": metrics.standard_error(found[column])}
            row |= {f"{both} - {many}": gap, f"± {both} - {many}": error}
            rows.append(row | dict(zip(("published P1000", "P2000", "C2000", "PC1000"), PUBLISHED.get((label, sampler), (None,) * 4))))
    floor = distance(evaluate.flat(dataset.values["test"][:n]))
    statement = "\n".join([f"FD-clf ({judge.hash}), floor {floor:.2f} of {n} test images", *orderings(scores, columns)])
    (out / "orderings.txt").write_text(statement + "\n")
    print(statement)
    plots.scores(scores, floor, f"FD-clf of {n} samples", out / "samplers.png")
    gates = {}
    for (sde, sampler), found in scores.items():
        gates[f"{sde}, {sampler}: PC is better than the corrector alone"] = verdict(found[both], found[alone]).startswith("holds")
        gates[f"{sde}, {sampler}: PC is no worse than twice the steps of the predictor"] = not verdict(found[both], found[many]).startswith("is rev")
    return rows, {} if quick else gates
