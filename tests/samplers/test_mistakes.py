"""Mistakes in a notebook: each ends in one line that names the mend, under jit as well; and values that say what they are in a line or two."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from samplers import (
    LogLikelihood,
    Solution,
    VariationalBound,
    autoguidance,
    classifier_free,
    classifier_guidance,
    dps,
    encode,
    gits,
    grids,
    jumps,
    langevin,
    log_likelihood,
    operators,
    predictor_corrector,
    rectified_cfg,
    replacement,
    sample,
    sample_adaptive,
    sample_sde,
    slerp,
    solvers,
    threshold,
    variational_bound,
)
from samplers.amed import amed
from samplers.solvers import v3
from samplers.straightness import Straightness, straightness
from sde_lib import SDE, VP, Denoiser, FlowMap, GaussianMixture, Linear
from sde_lib.numerics import namespace
from sde_lib.paths import path

SDE_, KEY = VP(), jax.random.key(0)
GM = GaussianMixture(np.array([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]]), np.array([0.2, 0.3, 0.1]))
DEN, ONE = GM.denoiser(SDE_), GaussianMixture(np.zeros((1, 2)), np.ones(1))
X, TIMES = np.ones((5, 2), np.float32), grids.karras(SDE_, 3)
FLOW_MAP = ONE.flow_map(SDE_)
LABELLED = Denoiser(lambda x, t, label: x * label[:, None], SDE_, cond=jnp.ones(3))  # of three examples
MAPPED = FlowMap(lambda x, t, s, label: x * label[:, None], SDE_, cond=jnp.ones(3))
OPERATOR = operators.inpainting(np.array([True, False]))
DDIM = solvers.ddim()

# what takes a denoiser and a batch: (denoiser, x, key) -> anything
TAKES = {
    "sample": lambda den, x, key: sample(den, x, TIMES, DDIM, key),
    "sample_adaptive": lambda den, x, key: sample_adaptive(den, x, 0.1, 0.1),
    "sample_sde": lambda den, x, key: sample_sde(den, x, TIMES, key),
    "encode": lambda den, x, key: encode(den, x, 0.1, 0.1),
    "log_likelihood": lambda den, x, key: log_likelihood(den, x, "hutchinson", key, 0.1, 0.1),
    "variational_bound": lambda den, x, key: variational_bound(den, x, key, 2),
    "predictor_corrector": lambda den, x, key: predictor_corrector(den, x, TIMES, DDIM, langevin(), key),
    "straightness": lambda den, x, key: straightness(den, x, 0.1, 0.1),
    "amed": lambda den, x, key: amed(den, x, TIMES, None),
    "gits": lambda den, x, key: gits(den, x, 2, 3),
    "replacement": lambda den, x, key: replacement(den, OPERATOR, np.ones((5, 1)), x, TIMES, DDIM, langevin(), key),
    "estimate": lambda den, x, key: v3.estimate(den, x, key, np.linspace(-1, 1, 3), 1),
}
DRAW = ("sample", "sample_sde", "log_likelihood", "variational_bound", "predictor_corrector", "replacement", "estimate")  # from a key


@pytest.mark.parametrize("name", TAKES)
def test_models_and_batches(name):
    """No denoiser, no batch axis, conditions of other examples, no key: refused before anything is computed, traced or not."""
    take = TAKES[name]
    for wrong, words in ((GM, r"pass its denoiser, gm\.denoiser\(sde\)"), (FLOW_MAP, "samplers.jumps"), (lambda x, t: x, "pass Denoiser")):
        with pytest.raises(ValueError, match=f"of a {type(wrong).__name__}: expected a sde_lib.Denoiser; .*{words}"):
            take(wrong, X, KEY)
    for x, words in ((X[0], r"of shape \(2,\): expected a batch of examples"), (np.float32(1.0), r"\[None\] for one example$")):
        with pytest.raises(ValueError, match=words):
            take(DEN, x, KEY)
    with pytest.raises(ValueError, match=r"cond of shape \(3,\) for 5 examples: expected a row .* for each"):
        take(LABELLED, X, KEY)
    if name != "gits":  # which looks at values
        with pytest.raises(ValueError, match=r"cond of shape \(3,\) for 5 examples"):
            jax.jit(lambda x: take(LABELLED, x, KEY))(X)
    if name in DRAW:
        for key, words in ((0, r"key = 0: expected a JAX key; pass key=jax.random.key\(0\)"), (jnp.asarray(3), "an array of int32: expected")):
            with pytest.raises(ValueError, match=words):
                take(DEN, X, key)


@pytest.mark.parametrize("name", ["sample", "predictor_corrector", "replacement"])
def test_solvers(name):
    take = {
        "sample": lambda solver: sample(DEN, X, TIMES, solver),
        "predictor_corrector": lambda solver: predictor_corrector(DEN, X, TIMES, solver, langevin(), KEY),
        "replacement": lambda solver: replacement(DEN, OPERATOR, np.ones((5, 1)), X, TIMES, solver, langevin(), KEY),
    }[name]
    for wrong, words in (
        (solvers.heun, r"solvers.heun has not been called: pass solvers.heun\(\)"),
        (solvers.SOLVERS["unipc"], r"pass solvers.unipc\(\)"),
        ("heun", r"solver = 'heun': expected a solver; pass solvers.heun\(\)"),
        ("eulr", r"pass solvers.euler\(\)"),
        ("nothing like it", "pass one of samplers.solvers, .*dpm_solver_pp"),
        (3, "solver = 3: expected a function"),
        (DDIM(SDE_, TIMES), "solver is a Table: expected the function"),
        (lambda sde, times: DDIM, "gave a Named: expected a Table"),
    ):
        with pytest.raises(ValueError, match=words):
            take(wrong)
    with pytest.raises(ValueError, match="corrector = 'langevin': expected samplers.langevin"):
        predictor_corrector(DEN, X, TIMES, DDIM, "langevin", KEY)


def test_solvers_of_diffrax():
    for wrong in (DDIM, "tsit5", solvers.heun):
        for take in (sample_adaptive, encode, log_likelihood):
            with pytest.raises(ValueError, match=r"expected an explicit Runge-Kutta method of diffrax, e.g. diffrax.Tsit5\(\)"):
                take(DEN, X, solver=wrong)
        with pytest.raises(ValueError, match=r"expected a solver of diffrax, e.g. diffrax.Euler\(\)"):
            sample_sde(DEN, X, TIMES, KEY, wrong)


def test_flow_maps():
    for wrong, words in ((DEN, "jumps of a Denoiser: expected a sde_lib.FlowMap"), (GM, "of a GaussianMixture: expected a sde_lib.FlowMap")):
        with pytest.raises(ValueError, match=words):
            jumps(wrong, X, TIMES)
    for arguments, words in (((FLOW_MAP, X[0], TIMES), "x_T of shape"), ((FLOW_MAP, X, TIMES, 1.0, 0), "key = 0"), ((MAPPED, X, TIMES), "cond of")):
        with pytest.raises(ValueError, match=words):
            jumps(*arguments)
    with pytest.raises(ValueError, match="expected a batch"):
        slerp(X[0], X[1], 0.5)


def test_guidance():
    wrap = {
        "classifier_free": lambda den: classifier_free(den, 0.0, 2.0),
        "rectified_cfg": lambda den: rectified_cfg(den, 0.0, 2.0, TIMES),
        "autoguidance": lambda den: autoguidance(den, den, 2.0),
        "classifier_guidance": lambda den: classifier_guidance(den, lambda x, t, label: x[:, 0] * label, jnp.ones(3)),
        "threshold": lambda den: threshold(den),
        "a posterior": lambda den: dps(den, OPERATOR, np.ones((3, 1)), TIMES),
    }
    for name, wrapped in wrap.items():
        wrong = FLOW_MAP if name == "a posterior" or name == "rectified_cfg" else GM  # these read its path first
        with pytest.raises(ValueError, match=f"{name} of a {type(wrong).__name__}: expected a sde_lib.Denoiser"):
            wrapped(wrong)
        with pytest.raises(ValueError, match=r"cond of shape \(3.*\) for 5 examples"):
            sample(wrapped(LABELLED), X, TIMES, DDIM)
    with pytest.raises(ValueError, match=r"none = \(0, 1\) has the structure .*: expected that of den.cond"):
        classifier_free(LABELLED, (0, 1), 2.0)


def test_paths_and_their_draws():
    for call, words in (
        (lambda: SDE_.perturb(0, X, 0.1), "key = 0"),
        (lambda: SDE_.perturb(KEY, X[0], 0.1), "x0 of shape"),
        (lambda: SDE_.perturb(KEY, X, jnp.ones(3)), r"times t of shape \(3,\) for 5 examples"),
        (lambda: SDE_.marginal(X[0], 0.1), "x0 of shape"),
        (lambda: SDE_.prior_sample(0, (5, 2)), "key = 0"),
        (lambda: SDE_.prior_sample(KEY, 5), "shape = 5: expected"),
        (lambda: SDE_.prior_log_prob(X[0]), "x of shape"),
        (lambda: GM.sample(0, 5), "key = 0"),
        (lambda: DEN.data(X[0], 0.1), "x of shape"),
        (lambda: DEN.data(X, jnp.ones(3)), "times t of shape"),
        (lambda: GM.denoiser(VP), r"sde = VP, a class: expected a path; pass VP\(\)"),
        (lambda: grids.uniform(VP, 3), r"pass VP\(\)"),
        (lambda: Denoiser(lambda x, t: x, 3), "sde = 3: expected a path"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_points_of_another_dimension():
    """They broadcast: [B, 1] against two dimensions gave the density of points on the diagonal."""
    for x, words in (
        (X[:, :1], r"x of shape \(5, 1\): expected \[B, 2\], points of the 2 dimensions"),
        (np.ones((5, 3)), r"x of shape \(5, 3\)"),
        (np.ones((5, 2, 1)), r"x of shape \(5, 2, 1\)"),
        (X[0], r"pass x\[None\] for one point"),
    ):
        for density in (GM.log_prob, jax.jit(GM.log_prob), lambda x: GM.marginal_log_prob(SDE_, x, 0.1)):
            with pytest.raises(ValueError, match=words):
                density(x)
    for model in (DEN.data, lambda x, t: FLOW_MAP(x, t, 0.0)):
        with pytest.raises(ValueError, match=r"x of shape \(5, 1\): expected \[B, 2\]"):
            model(X[:, :1], 0.5)
    with pytest.raises(ValueError, match=r"expected \[N, 2\] and \[N\]"):
        GM.posterior(np.ones((1, 3)), np.ones(1), 0.1)
    assert GM.log_prob(X).shape == (5,)


def parabola(xp_of=namespace, time=None, decorate=path):
    """The path alpha = 1 - t^2, sigma = t, in the arithmetic of `xp_of`: not a direct subclass of SDE, all of which other tests look at."""

    class Parabola(Linear):
        def alpha(self, t):
            return 1.0 - xp_of(t).square(t)

        def sigma(self, t):
            return xp_of(t).add(t, 0.0)

        def time(self, log_snr):
            ratio = xp_of(log_snr).exp(log_snr)
            return 2.0 / (ratio + xp_of(log_snr).hypot(ratio, 2.0))

    if time is not None:
        Parabola.time = time
    return decorate(Parabola)()


PATHS = {
    "without time": (parabola(time=SDE.time), "Parabola has no `time`: define time"),
    "jnp alone": (parabola(lambda t: jnp), r"Parabola.alpha computes with jax.numpy on the host.*write it with xp = namespace\(t\)"),
    "NumPy alone": (parabola(lambda t: np), r"Parabola.alpha is not of NumPy and JAX both.*write it with xp = namespace\(t\)"),
    "math": (parabola(time=lambda self, log_snr: math.exp(-log_snr)), r"Parabola.time is not of NumPy and JAX both"),
    "another inverse": (parabola(time=lambda self, log_snr: 0.5 + 0.0 * log_snr), r"Parabola.time\(log_snr\) gives .*: expected the inverse"),
}


@pytest.mark.parametrize("wrong", PATHS)
def test_paths_of_ones_own(wrong):
    sde, words = PATHS[wrong]
    for use in (lambda: grids.karras(sde, 3), lambda: grids.few(sde, 3), lambda: GM.denoiser(sde), lambda: ONE.flow_map(sde)):
        with pytest.raises(ValueError, match=words):
            use()
    with pytest.raises(ValueError, match=words):
        jax.jit(lambda x: sample(GM.denoiser(sde), x, TIMES, DDIM))(X)


def test_a_right_path_needs_no_decorator():
    """The control; of a class without `path` as well, which is static all the same."""
    for sde in (parabola(), parabola(decorate=lambda cls: cls)):
        x = jax.jit(lambda x, sde=sde: sample(GM.denoiser(sde), x, grids.karras(sde, 3), solvers.heun()))(X)
        assert np.all(np.isfinite(x)) and not jax.tree.leaves(sde)
    assert default.options("VP", [VP, object]) == default.options("VP", [VP]), "a path that is no dataclass breaks no config"


def results(kind):
    """Results of 2000 examples, for each field by its name."""
    numbers = jnp.linspace(0.0, 1.0, 2000)
    by_name = {"x": jnp.zeros((2000, 2)), "latent": jnp.zeros((2000, 2)), "success": numbers < 0.9, "nfe": jnp.arange(2000)}
    return kind(*(by_name.get(name, numbers) for name in kind._fields))


def texts():
    """What a notebook shows of values, by name: the value, and words that its text has."""
    many = GaussianMixture(np.random.default_rng(0).standard_normal((300, 64)), np.linspace(0.1, 0.3, 300))
    labelled = Denoiser(jax.tree_util.Partial(lambda w, x, t, y: x, np.ones((50, 50))), SDE_, cond=jnp.zeros(4000, int))
    return {
        "oracle": (many, "GaussianMixture(300 components in 64 dimensions, stds 0.1 to 0.3)"),
        "denoiser": (labelled, "Denoiser(kind='noise', sde=VP(beta_min=0.1, beta_max=20.0), 2,500 numbers in fn, cond int32[4000])"),
        "flow map": (ONE.flow_map(Linear()), "FlowMap(kind='v', sde=Linear(), 5 numbers in fn)"),
        "table": (solvers.heun()(SDE_, grids.karras(SDE_, 500)), "times float64[1000] from 1 to 0.001"),
        "solver": (solvers.unipc(order=2, variant="bh1"), "unipc(order=2, variant='bh1')"),
        **{kind.__name__: (results(kind), f"{kind.__name__}(") for kind in (Solution, LogLikelihood, VariationalBound, Straightness)},
        "operator": (operators.blur((28, 28, 1), 2.0), "LinearOperator(shape=(28, 28, 1), "),
        "statistics": (v3.Statistics.constant((-1.0, 1.0), (28, 28, 1)), "float64[2, 28, 28, 1]"),
    }


def test_values_say_what_they_are():
    """In a line or two, traced or not, in vmap and as placeholders of transformations; as pytrees they are what they were."""
    shown = []
    for name, (value, words) in texts().items():
        assert words in repr(value) and len(repr(value)) < 300 and "\n" not in repr(value), (name, repr(value))
        if not jax.tree.leaves(value) or name in ("solver", "statistics"):
            continue
        jax.jit(lambda value: shown.append(repr(value)))(value)
        jax.eval_shape(lambda value: shown.append(repr(value)), value)
        shown.append(repr(jax.tree.map(lambda leaf: object(), value)))
        leaves, tree = jax.tree.flatten(value)
        again = jax.tree.unflatten(tree, leaves)
        assert type(again) is type(value) and all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))
    assert all(len(text) < 400 and "\n" not in text for text in shown) and any("float32[2000]" in text for text in shown)
    result = jax.tree.map(lambda leaf: leaf[:5], results(Solution))
    jax.vmap(lambda one: shown.append(repr(one)))(result)
    assert shown[-1] == "Solution(x=float32[2], nfe=int32[], success=bool[], error=float32[])"
    failed = result._replace(error=None, success=np.array([True, False, True, True, True]), nfe=np.array([np.nan, 1.0, 2.0, 3.0, 4.0]))
    assert repr(failed) == "Solution(x=float32[5, 2], nfe=2.5 ± 0.65 of the 4 of 5 that are finite, success=4 of 5)"
    assert "log_prob=0.5 ± 0.0065, latent=float32[2000, 2]" in repr(results(LogLikelihood)) and "success=1800 of 2000" in repr(results(Solution))
