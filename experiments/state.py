"""The train state and the step that advances it. All a run needs to go on is in the state: nothing else is carried from step to step."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from experiments import adversarial, consistency, importance, objectives
from experiments.data import Dataset
from experiments.network import BESIDE, Network
from models import lora
from models.edm2 import normalized
from sde_lib import Denoiser

AXIS = "devices"
SCALES = {"adam": optax.scale_by_adam, "radam": optax.scale_by_radam}
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt")
WIDEST_EMA = 0.28  # `ema_std` below which EDM2's average exists


@flax.struct.dataclass
class TrainState:
    """step: updates made, which is also the number of the next batch. key: never changes; noise is keyed by
    example. params, ema: raw and averaged parameters, or those of the adapter alone (`config.lora`). opt_state: of the optimizer.
    history: of the losses by time, or None (`experiments.importance`). target: theta^-, another average, which a consistency loss aims at, or None
    (`experiments.consistency.decay`)."""

    step: Int[Array, ""]
    key: Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    history: importance.History | None = None
    target: PyTree | None = None


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam (AdamW if weight_decay is above 0) or rectified Adam (1908.03265), whose gradient is clipped by its global norm unless `clip` is 0; linear
    warm-up, then a constant rate, a cosine or a line to zero at the last step, or, after `decay` steps, one that falls with the root of their number
    (EDM2, 2312.02696, eq. 67)."""
    o = config.optim
    if o.schedule == "constant":
        rate = optax.linear_schedule(0.0, o.learning_rate, o.warmup) if o.warmup else o.learning_rate
    elif o.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, o.learning_rate, o.warmup, max(config.training.steps, o.warmup + 1))
    elif o.schedule == "linear":
        down = optax.linear_schedule(o.learning_rate, 0.0, max(config.training.steps - o.warmup, 1))
        rate = optax.join_schedules([optax.linear_schedule(0.0, o.learning_rate, o.warmup), down], [o.warmup])
    elif o.schedule == "inverse_sqrt":
        if not o.decay > 0:
            raise ValueError(f"config.optim.decay = {o.decay} of schedule 'inverse_sqrt': expected the steps after which the rate falls")
        rise = optax.linear_schedule(0.0, o.learning_rate, o.warmup) if o.warmup else optax.constant_schedule(o.learning_rate)
        rate = lambda count: rise(count) / jnp.sqrt(jnp.maximum(count / o.decay, 1.0))
    else:
        raise ValueError(f"config.optim.schedule = '{o.schedule}': expected one of {', '.join(SCHEDULES)}")
    scale = SCALES[o.name]
    # a schedule's ends are no weights, nor is what learns the weight of a loss
    learned = config.objective.loss in ("variational", "scm") or config.objective.adaptive
    own = (lambda params: {name: name not in BESIDE for name in params}) if learned else None
    decay = [optax.add_decayed_weights(o.weight_decay, own)] if o.weight_decay else []
    clip = optax.clip_by_global_norm(o.clip) if o.clip else optax.identity()
    if adversarial.used(config.objective):  # two players, neither of whom shortens the other's steps
        whose = lambda params: {name: "discriminator" if name == "discriminator" else "student" for name in params}
        clip = optax.multi_transform({"discriminator": clip, "student": clip}, whose)
    forced = [unit_weights()] if config.model.name == "EDM2" else []
    return optax.chain(clip, scale(o.beta1, o.beta2, o.epsilon), *decay, optax.scale_by_learning_rate(rate), *forced)


def unit_weights() -> optax.GradientTransformation:
    """After the others of a chain: puts the kernels of `models.edm2.Layer` back to unit size in every update (EDM2, 2312.02696, eq. 66)."""

    def one(path, update, param):
        return normalized(param + update) - param if path[-1].key == "kernel" and path[0].key not in BESIDE else update

    update = lambda updates, state, params: (jax.tree_util.tree_map_with_path(one, updates, params), state)
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def ema_share(optim: ConfigDict, step: Int[Array, ""]) -> Float[Array, ""]:
    """What the parameters after this step count for in the average: 1 - `ema`, more at the start; or, of an `ema_std`, 1 - (1 - 1/n)^(gamma + 1) at
    the n-th, by which those of step k count as k^gamma in the end, a bump of that standard deviation relative to the length of training (EDM2,
    2312.02696, eq. 123 to 127)."""
    if not optim.ema_std:
        return jnp.maximum(1 - optim.ema, 9.0 / (10.0 + step))
    gamma = np.roots([1, 7, 16 - optim.ema_std**-2, 12 - optim.ema_std**-2]).real.max()
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / (step + 1.0)))


def init(config: ConfigDict, network: Network, shape: tuple[int, ...], divided: Callable | None = None) -> TrainState:
    """A new state from config.seed, for examples of `shape`; divided: from its shapes to the shardings that it is made in (`parallel.divided`), so
    that no device ever holds all of it. Raises what `lora.init` raises."""
    init_key, key = jax.random.split(jax.random.PRNGKey(config.seed))
    adaptive = config.objective.time.name == "importance"
    if adaptive and config.objective.loss == "autoencoder":
        raise ValueError("config.objective.time.name = 'importance': loss 'autoencoder' has no such times; leave the name out")

    def make():
        params = network.init(init_key, shape)
        if config.lora.rank:
            params = lora.init(init_key, params, config.lora.pattern, config.lora.rank)
        copy = jax.tree.map(jnp.copy, params)  # a buffer of its own: a donated state may not hold one buffer twice
        history = importance.new() if adaptive else None
        target = jax.tree.map(jnp.copy, params) if consistency.averaged(config.objective) else None
        return TrainState(jnp.zeros((), jnp.int32), key, params, copy, optimizer(config).init(params), history, target)

    return jax.jit(make, out_shardings=divided(jax.eval_shape(make)) if divided else None)()


@flax.struct.dataclass
class Frozen:
    """What a step is given beside the state, and does not change. base: parameters that an adapter is trained on (`config.lora`). teacher: the
    Denoiser of `config.teacher`, guided, with no cond yet. features: (x, t, label) -> those of its network (`experiments.adversarial`)."""

    base: PyTree | None = None
    teacher: Denoiser | None = None
    features: Callable | None = None


def whole(config: ConfigDict, params: PyTree, base: PyTree | None) -> PyTree:
    """All parameters of the network: `params`, or `base` with `params` as its adapter."""
    return lora.merge(base, params, config.lora.alpha / config.lora.rank) if config.lora.rank else params


def make_step(config: ConfigDict, network: Network, dataset: Dataset, axis: str | None = AXIS) -> Callable:
    """(state, batch, frozen) -> (state, metrics), run by `experiments.parallel`: on the part of a batch that each device has, under an `axis` over
    devices; or, `axis` being None, as if on one device, which XLA divides.

    frozen: `Frozen`, which is not in the state. metrics: loss, grad_norm, finite [B], of which
    example the loss is finite, and, where config.training.nonfinite is "skip", skipped: 1 if the step was not finite and changed nothing but `step`.
    """
    optim, parts, skip = optimizer(config), config.training.accumulate, config.training.nonfinite == "skip"

    def step(state: TrainState, batch, frozen: Frozen | None = None):
        frozen = Frozen() if frozen is None else frozen
        progress = state.step / config.training.steps
        target = None if state.target is None else whole(config, state.target, frozen.base)
        given = objectives.Given(frozen.teacher, target, progress, features=frozen.features)

        def mean_loss(params, part):
            params = whole(config, params, frozen.base)
            if state.history is None:
                each = objectives.loss(network, params, dataset, config.objective, state.key, part, given)
                return each.mean(), (jnp.isfinite(each), None)
            u, weight = importance.draw(state.history, objectives.uniforms(state.key, part["position"]))
            each = objectives.loss(network, params, dataset, config.objective, state.key, part, given.replace(u=u))
            return (weight * each).mean(), (jnp.isfinite(each), importance.tally(u, each))

        def add(total, part):
            (loss, told), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params, part)
            return jax.tree.map(lambda a, b: a + b / parts, total, (loss, grads)), told

        if parts == 1:
            (loss, (finite, tally)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params, batch)
        else:  # noise is keyed by example: in parts, each of which takes something of all devices, the gradient is the same
            split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)
            (loss, grads), (finite, tallies) = jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)), split)
            finite, tally = finite.T.reshape(-1), jax.tree.map(lambda a: a.sum(0), tallies)
        if axis and jax.lax.axis_size(axis) > 1:  # an all-reduce costs a CPU a tenth of a small step even when there is nothing to reduce
            loss, grads = jax.lax.pmean((loss, grads), axis)
            finite, tally = jax.lax.all_gather(finite, axis, tiled=True), jax.lax.psum(tally, axis)
        updates, opt_state = optim.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        share = ema_share(config.optim, state.step)
        ema = jax.tree.map(lambda e, p: e + share * (p - e), state.ema, params)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads), "finite": finite}
        history = None if state.history is None else importance.update(state.history, tally)
        aim = state.target
        if aim is not None:
            aim = jax.tree.map(lambda e, p: e + (1 - consistency.decay(config.objective, progress)) * (p - e), aim, params)
        new = params, ema, opt_state, history, aim
        if skip:
            sound = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(optax.global_norm(updates))
            new = jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, (state.params, state.ema, state.opt_state, state.history, state.target))
            metrics["skipped"] = 1 - sound.astype(jnp.int32)
        return TrainState(state.step + 1, state.key, *new), metrics

    return step
