r"""Consistency: the jumps from two times t > u of one trajectory of the flow must meet at s <= u,

    L = w(t, u) d(X_theta(x_t, t -> s), sg X_theta^-(x_u, u -> s)),        x_u = Phi(x_t, t -> u),

as X_{s<-s} = x whatever the network (`sde_lib.flow_map`). By `config.objective.consistency`, with a teacher's step Phi (distillation), or without
one, x_u of the same data and noise as x_t (training: E[x_u - x_t | x_t] is the flow's to first order in t - u):

| method                           | times    | step  | to     | metric | weight | target                                                        |
|----------------------------------|----------|-------|--------|--------|--------|---------------------------------------------------------------|
| CT (2303.01469, alg. 3)          | ct       | data  | data   | l2     | one    | 0.9 (mu_0)                                                    |
| iCT (2310.14189, table 1)        | ict      | data  | data   | huber  | gap    | 0                                                             |
| ECT (2406.14548)                 | ect      | data  | data   | huber  | gap    | 0, begun from a diffusion model                               |
| CD (2303.01469, alg. 2)          | fixed    | heun  | data   | l2     | one    | 0 or above                                                    |
| LCM (2310.04378)                 | fixed    | ddim  | data   | huber  | one    | 0.95, with `omega`, of which the student is told              |
| TCD (2402.19159, eq. 20)         | fixed    | ddim  | random | l2     | one    | 0.95                                                          |
| CTM (2310.02279, eq. 9), `through` | fixed, a `chain` | heun | random | l2 | one  | 0.999, with `regression` (eq. 13)                             |
| PCM (2405.18407, eq. 9)          | fixed    | ddim  | phase  | huber  | one    | 0.95                                                          |

Times are neighbours t_{i+1}, t_i of N points of a grid from eps to T, i being where a time drawn by `config.objective.time` lies; N grows in training
by ct (equal in N^2) and ict (doubled), and is `count` if fixed. ect has no grid: in r = sigma/alpha, r_u = r_t (1 - (1 + 8 sigmoid(-r_t))/q^(stage +
1)), and the data where that is below 0. "data" is eps (ect: 0), "random" any point of the grid up to u, "phase" the lower edge of t's of `phases`
parts of the grid. Of CTM the number of a teacher's steps is 1 to `chain`, each as likely, its inner jump from x_u is the student's own without a
gradient, and the weights of its terms are fixed; in the paper they balance gradients. Distances are of whole examples: l2, the mean square; huber,
sqrt(|.|^2 + c^2 d) - c d^(1/2), d being the dimension; LPIPS there is none. gap: 1/(r_t - r_u); edm:
1/r_t^2 + 1/sigma_d^2 (ECT on ImageNet). LCM's c_skip and c_out are those of a jump to t = 0,
to 1e-5 on its grid.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from samplers import grids, solvers
from samplers.table import by_example, execute
from sde_lib import SDE, Denoiser, FlowMap
from sde_lib.numerics import expand

WORDS = {"times": ("fixed", "ct", "ict", "ect"), "grid": ("karras", "uniform"), "to": ("data", "random", "phase"), "metric": ("l2", "huber")}
WORDS |= {"weight": ("one", "gap", "edm"), "step": ("data", "euler", "heun", "ddim", "dpm_solver", "dpm_solver_pp")}
RHO = 7.0  # of karras


def check(objective: ConfigDict, second_time: bool, told_omega: bool) -> None:
    """Raise ValueError for settings of `config.objective.consistency` that are none."""
    o, of = objective.consistency, "config.objective.consistency"
    for name, words in WORDS.items():
        if o[name] not in words:
            raise ValueError(f"{of}.{name} = '{o[name]}': expected one of {', '.join(words)}")
    if o.step != "data" and o.times != "fixed":
        raise ValueError(f"{of}.times = '{o.times}' of step '{o.step}': expected fixed, on whose points a teacher's steps are made, or step data")
    if o.chain < 1 or (o.chain > 1 and o.step == "data"):
        raise ValueError(f"{of}.chain = {o.chain} of step '{o.step}': expected 1, or more of a teacher's steps")
    if o.to != "data" and (not second_time or o.times == "ect"):
        raise ValueError(f"{of}.to = '{o.to}': expected a network of two times (config.model.second_time = True), and times on a grid")
    if o.phases < 1:
        raise ValueError(f"{of}.phases = {o.phases}: expected at least 1")
    if o.times in ("ct", "ict") and not 1 <= o.start <= o.end:
        raise ValueError(f"{of}.start = {o.start}, end = {o.end}: expected numbers of intervals from 1, the first not above the last")
    if o.times == "ct" and o.target == 0:
        raise ValueError(f"{of}.target = 0 of times 'ct': expected CT's mu_0 (0.9), whose logarithm is taken; without theta^-, times ict")
    if o.times == "ect" and (o.stages < 1 or o.shrink <= 1):
        raise ValueError(f"{of}.stages = {o.stages}, shrink = {o.shrink}: expected at least 1 (8), and above 1 (2 or 4)")
    if o.metric == "huber" and o.constant < 0:
        raise ValueError(f"{of}.constant = {o.constant}: expected 0 or above")
    if o.regression < 0 or ((o.regression or o.through) and not second_time):
        raise ValueError(
            f"{of}.regression = {o.regression}, through = {o.through}: expected 0 or above, and of either a network of two times "
            "(config.model.second_time = True)"
        )
    if o.times == "fixed" and (o.count < 2 or (o.to == "phase" and (o.count - 1) % o.phases)):
        raise ValueError(f"{of}.count = {o.count}: expected at least 2 points, and intervals that the {o.phases} phases divide")
    low, high = o.omega
    if (high > 0) != told_omega or not (0 < low <= high or low == high == 0) or (high and o.step == "data"):
        raise ValueError(f"{of}.omega = {o.omega}, model.told_omega = {told_omega}: expected both, 0 < low <= high and a teacher's step, or neither")
    if not 0 <= o.target < 1:
        raise ValueError(f"{of}.target = {o.target}: expected a decay from 0 (the parameters themselves) to below 1")
    if objective.weighting != "own" or objective.time.name == "importance":
        raise ValueError("config.objective.loss = 'consistency' has its own weight: leave objective.weighting out, and times of importance")


def averaged(objective: ConfigDict) -> bool:
    """Whether a run's state has a theta^- of its own."""
    return objective.loss == "consistency" and objective.consistency.target > 0


def decay(objective: ConfigDict, progress: Float[Array, ""]) -> Float[Array, ""] | float:
    """Of theta^- at this share of training: constant, or CT's mu(k) = exp(s_0 log(mu_0)/n'(k)) (2303.01469, appendix C)."""
    o = objective.consistency
    return jnp.exp(o.start * np.log(o.target) / (points(o, progress) - 1)) if o.times == "ct" else o.target


# --- times ----------------------------------------------------------------------------------------------------------------------------


def points(options: ConfigDict, progress: Float[Array, ""]) -> Float[Array, ""] | int:
    """N at this share of training: of ct, ceil(sqrt(progress ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1; of ict min(s_0 2^floor(k/K'), s_1) + 1."""
    s0, s1 = options.start, options.end
    if options.times == "ct":
        return jnp.maximum(jnp.ceil(jnp.sqrt(progress * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1), 1) + 1
    if options.times == "ict":
        return jnp.minimum(s0 * 2 ** jnp.floor(progress * (np.floor(np.log2(s1 // s0)) + 1)), s1) + 1
    return options.count


def karras_ends(sde: SDE) -> tuple[float, float]:
    """r^(1/7) at eps and at T."""
    last, first = grids.log_snr_ends(sde, sde.sampling_eps)
    return float(np.exp(-first / RHO)), float(np.exp(-last / RHO))


def grid_time(sde: SDE, name: str, share):
    """The time at this share, 0 to 1, of a grid from eps to T: equal steps in t, or in r^(1/7), r = sigma/alpha (2206.00364, eq. 5)."""
    eps = sde.sampling_eps
    if name == "uniform":
        return eps + share * (sde.T - eps)
    first, last = karras_ends(sde)
    t = sde.time(-RHO * jnp.log(first + share * (last - first)))
    return jnp.where(share >= 1, sde.T, jnp.where(share <= 0, eps, t))


def grid_share(sde: SDE, name: str, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """The inverse of `grid_time`."""
    eps = sde.sampling_eps
    if name == "uniform":
        return (t - eps) / (sde.T - eps)
    first, last = karras_ends(sde)
    return (jnp.exp(-sde.log_snr(t) / RHO) - first) / (last - first)


def ratio(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """r = sigma/alpha, as far as the grids in it go."""
    first = grids.log_snr_ends(sde, sde.sampling_eps)[0]
    return jnp.exp(-jnp.maximum(sde.log_snr(t), first))


def earlier(sde: SDE, options: ConfigDict, t: Float[Array, " b"], progress) -> Float[Array, " b"]:
    """u of ect for each t [B]; 0 where it has come to the data."""
    stage = jnp.minimum(jnp.floor(progress * options.stages), options.stages - 1)
    r = ratio(sde, t)
    share = 1 - (1 + 8 * jax.nn.sigmoid(-r)) * options.shrink ** (-stage - 1)
    return jnp.where(share > 0, sde.time(-jnp.log(r * jnp.where(share > 0, share, 1.0))), 0.0).astype(t.dtype)


# --- the loss -------------------------------------------------------------------------------------------------------------------------


def distance(options: ConfigDict, a: Float[Array, "b ..."], b: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """d, [B]."""
    d = a[0].size
    square = jnp.sum((a - b) ** 2, range(1, a.ndim))
    if options.metric == "l2":
        return square / d
    c = options.constant * np.sqrt(d)
    same = square == 0  # the norm has no derivative there
    return jnp.where(same, 0.0, jnp.sqrt(jnp.where(same, 1.0, square) + c**2) - c)


def carried(
    teacher: Denoiser,
    solver: str,
    times: Float[np.ndarray, " n"],
    x: Float[Array, "b ..."],
    index: Int[Array, " b"],
    length: Int[Array, " b"],
    chain: int,
):
    """x [B, ...] from times[index + 1] to times[index + 1 - length] by as many steps of the teacher, at most `chain`; times increase, on the host."""
    tables = [solvers.SOLVERS[solver]()(teacher.sde, times[[i + 1, i]]) for i in range(len(times) - 1)]

    def step(i, x):
        after, _ = execute(teacher, by_example(tables, jnp.maximum(index - i, 0), x), x, None)
        return jnp.where(expand(i < length, x), after, x)

    return jax.lax.fori_loop(0, chain, step, x) if chain > 1 else step(0, x)


def loss(
    student: FlowMap,
    target: FlowMap,
    teacher: Denoiser | None,
    x0: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Float[Array, " b"],
    draws: tuple[Float[Array, " b"], Float[Array, " b"]],
    progress: Float[Array, ""] | float,
    options: ConfigDict,
    adversary: Callable | None = None,
) -> Float[Array, " b"]:
    """The loss of each example, [B].

    target: of theta^-, or of the student's parameters, to which there is no gradient. teacher: of a step other than "data". x0, noise [B, ...].
    t [B]: drawn, and put to a grid here; draws: uniform in (0, 1), of what else is random. progress: share of training that is done.
    adversary: (ours, theirs, s) -> a further term [B] of where both have come to, [B, ...] at s [B] (`experiments.adversarial`).
    """
    sde, steady = student.sde, jax.lax.stop_gradient
    target = steady(target)
    at = lambda r: expand(sde.alpha(r), x0) * x0 + expand(sde.sigma(r), x0) * noise
    if options.times == "ect":
        u, s = earlier(sde, options, t, progress), jnp.zeros_like(t)
        x_t, x_u = at(t), at(u)
    else:
        gaps = points(options, progress) - 1
        time_of = lambda i: grid_time(sde, options.grid, i / gaps).astype(x0.dtype)
        index = jnp.clip(jnp.floor(grid_share(sde, options.grid, t) * gaps), 0, gaps - 1)
        length = 1 + jnp.floor(draws[0] * jnp.minimum(options.chain, index + 1))  # u may be eps
        low = index + 1 - length
        to = {
            "data": jnp.zeros_like(low),
            "random": jnp.floor(draws[1] * (low + 1)),
            "phase": jnp.floor(low * options.phases / gaps) * gaps / options.phases,
        }
        t, u, s = time_of(index + 1), time_of(low), time_of(to[options.to])
        x_t = at(t)
        if options.step == "data":
            x_u = at(u)
        else:
            times = getattr(grids, options.grid)(sde, options.count - 1)[::-1]
            x_u = steady(carried(teacher, options.step, times, x_t, index.astype(int), length.astype(int), options.chain))
    at_data = u == 0  # of kind "data" there is no jump from there
    aim = student if options.through else target  # CTM's inner jump is the student's own, its outer ones are theta^-'s
    ours, theirs = student(x_t, t, s), steady(jnp.where(expand(at_data, x0), x_u, aim(x_u, jnp.where(at_data, t, u), s)))
    if options.through:
        end = jnp.full_like(s, sde.sampling_eps)
        ours, theirs, s = target(ours, s, end), steady(target(theirs, s, end)), end
    found = distance(options, ours, theirs)
    if options.weight == "gap":
        found = found / (ratio(sde, t) - ratio(sde, u))
    elif options.weight == "edm":
        found = found * (ratio(sde, t) ** -2 + student.sigma_data**-2)
    if options.regression:
        error = student.denoiser().data(x_t, t) - x0
        found = found + options.regression * jnp.mean(error**2, range(1, x0.ndim))
    return found if adversary is None else found + adversary(ours, theirs, s)
