"""Between a network, which knows no SDE, and a Denoiser, which knows no network: scaling of the input, time as the network is told it."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

import models
from experiments import adversarial, autoencoder, classifier, consistency, couplings, meanflow, perflow, progressive, scm
from experiments.augmentation import LABELS
from experiments.cli import build
from experiments.objectives import LOSSES
from models.discriminator import Discriminator
from models.schedule import Schedule
from models.uncertainty import Uncertainty
from sde_lib import PLANE, SDE, Denoiser, FlowMap
from sde_lib.denoiser import MIN_ALPHA
from sde_lib.interpolants import Interpolant
from sde_lib.noise import normal
from sde_lib.numerics import expand


def by_time(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """t / T."""
    return t / sde.T


def by_log_snr(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """(10 - log-SNR) / 20, the log-SNR clipped to [-10, 10]: even resolution down to the smallest noise."""
    return (10.0 - jnp.clip(sde.log_snr(t), -10.0, 10.0)) / 20.0


def by_log_sigma(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """log(sigma/alpha), within [-10, 10] (NCSN++, 2011.13456, appendix H)."""
    return -jnp.clip(sde.log_snr(t), -10.0, 10.0)


def by_edm(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """log(sigma/alpha)/4 (EDM, 2206.00364, table 1)."""
    return by_log_sigma(sde, t) / 4


CLOCKS = {"time": by_time, "log_snr": by_log_snr, "log_sigma": by_log_sigma, "edm": by_edm}


LOSS_NAMES = (*LOSSES, "meanflow", "perflow", "progressive", "consistency", "scm", "add", "variational", "autoencoder", "classifier")
BESIDE = ("schedule", "uncertainty", "discriminator")  # what is trained beside a network's own module
# the layers whose outputs are features: blocks, and of perceptrons the layers of the vector that they carry
FEATURES = {"DiT": "DiTBlock", "MMDiT": "MMDiTBlock", "UNet": "ResBlock", "EDM2": "Block", "MLP": "Dense", "ResidualMLP": "LayerNorm"}


@dataclass(frozen=True)
class Network:
    """A module on a path: (params, x [B, ...], t [B], label [B]) -> the prediction F of `kind`. Hashable, hence static under jit.

    The module sees x / sqrt(alpha^2 sigma_data^2 + sigma^2), of unit variance, and the time by `clock` (a name in `CLOCKS`), about 0 to 1.
    schedule: of training on the variational bound (`experiments.vdm`), with parameters of its own in params["schedule"]; uncertainty: of sCM
    or of a regression (`config.objective.adaptive`), likewise; discriminator: on the features of a teacher (`experiments.adversarial`), likewise.
    coupled: whether eps was joined with x_0 (`experiments.couplings`).
    windows: of PeRFlow (`experiments.perflow`): s is where t's window ends; 0 of others.
    interpolant: the path, where it has noise beside both ends (`config.coupling`); of kind "noise" F is then E[z | x_t], that noise.
    final: a network of one time that jumps to the data alone, a consistency function.
    """

    module: nn.Module
    sde: SDE
    kind: str
    sigma_data: float
    clock: str
    schedule: Schedule | None = None
    coupled: bool = False
    windows: int = 0
    final: bool = False
    uncertainty: Uncertainty | None = None
    interpolant: Interpolant | None = None
    discriminator: Discriminator | None = None

    def __call__(self, params, x: Float[Array, "b ..."], t: Float[Array, " b"], label=None, example=None, dropout_key=None, s=None, **training):
        """F [B, ...]. example: [B] global indices, dropout_key, and what else the module takes, in training only. s: see `between`."""
        variance = (self.sde.alpha(t) * self.sigma_data) ** 2 + self.sde.sigma(t) ** 2
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        own = {"params": {name: value for name, value in params.items() if name not in BESIDE}}
        if s is None and self.windows:
            s = perflow.window(self.sde, self.windows, t)[0]
        if s is not None and getattr(self.module, "second_time", False):
            # where the path begins, no further: losses train no s below it, and on EDM's path clocks run on beyond
            training["s"] = CLOCKS[self.clock](self.sde, jnp.maximum(s, jnp.minimum(t, self.sde.sampling_eps)))
        return self.module.apply(own, x / expand(jnp.sqrt(variance), x), CLOCKS[self.clock](self.sde, t), label, example, rngs=rngs, **training)

    def between(self, params, x: Float[Array, "b ..."], t: Float[Array, " b"], s: Float[Array, " b"], cond=None, **training):
        """F [B, ...] of the jump from t to s, of a module with `second_time`; without s it is that of s = t. One of one time jumps to the data.
        cond: the label, and with it the guidance of a module that is told, {"label", "omega" [B]}."""
        label = cond
        if getattr(self.module, "told_omega", False) and cond is not None:
            label, training["omega"] = cond["label"], cond["omega"]
        return self(params, x, t, label, s=None if self.final else s, **training)

    @property
    def jumps(self) -> bool:
        """Whether its samples are drawn by jumps of its flow map. A model of windows, of two times or not, follows a flow as a Denoiser."""
        return self.final or (getattr(self.module, "second_time", False) and not self.windows)

    @property
    def prior_std(self) -> float:
        """Standard deviation of x_T of a model that begins at noise: sigma(T), with what an interpolant has there beside it."""
        return float(np.hypot(self.sde.sigma(self.sde.T), self.gamma(self.sde.T)))

    def prior_sample(self, key, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
        """x_T of a model that begins at noise, as `SDE.prior_sample`."""
        return self.prior_std * normal(key, shape)

    def gamma(self, t: float) -> float:
        """The standard deviation of the noise that an interpolant has at t beside both ends, 0 of others."""
        return 0.0 if self.interpolant is None else float(self.interpolant.gamma(t))

    @property
    def none(self):
        """What stands for "no label": a number beyond the classes, or zeros for both of a pair of embeddings; None of an unconditional model."""
        if getattr(self.module, "embeddings", ()):
            return 0.0, 0.0
        return self.module.num_classes or None

    def init(self, key, shape: tuple[int, ...]):
        """Parameters for examples of `shape`."""
        x, t, label = jnp.zeros((1, *shape)), jnp.ones(1), None
        params = self.module.init(key, x, t, None)["params"]
        if embeddings := getattr(self.module, "embeddings", ()):
            length, each, pooled = embeddings
            label = jnp.zeros((1, length, each)), jnp.zeros((1, pooled))
        for name in BESIDE:
            if (module := getattr(self, name)) is not None:
                told = (self.features(params, x, t), t, label) if name == "discriminator" else (t,)
                params = {**params, name: module.init(jax.random.fold_in(key, 1), *told)["params"]}
        return params

    def features(self, params, x: Float[Array, "b ..."], t: Float[Array, " b"], label=None) -> tuple[Float[Array, "b ..."], ...]:
        """The outputs of the module's `FEATURES`, [B, ...] each, in the order of their names."""
        if (layer := FEATURES.get(type(self.module).__name__)) is None:
            raise ValueError(
                f"features of {type(self.module).__name__} are not known: expected one of {', '.join(FEATURES)} (experiments/network.py)"
            )
        chosen = lambda module, method: type(module).__name__ == layer and method == "__call__"
        _, found = self(params, x, t, label, capture_intermediates=chosen, mutable=["intermediates"])
        outputs = (jax.tree.leaves(outputs)[0] for _, outputs in sorted(found["intermediates"].items()))  # of two streams the images'
        return tuple(a.astype(x.dtype) for a in outputs)

    def discriminate(self, params, features: tuple, t: Float[Array, " b"], label=None) -> tuple[Float[Array, "b ..."], ...]:
        """The logits of the discriminator of these parameters, its own, on features at t."""
        return self.discriminator.apply({"params": params}, features, CLOCKS[self.clock](self.sde, t), label)

    def weight(self, params, t: Float[Array, " b"]) -> Float[Array, " b"]:
        """w(t) of `models.uncertainty`, [B], or 0 of a network without it."""
        if self.uncertainty is None:
            return jnp.zeros_like(t)
        return self.uncertainty.apply({"params": params["uncertainty"]}, CLOCKS[self.clock](self.sde, t))

    def ends(self, params) -> tuple[float, float]:
        """The times nearest to the data and to the prior that the model was trained on."""
        if self.schedule is None:
            return self.sde.eps, self.sde.T
        first, last = (float(self.sde.time(end)) for end in np.asarray(params["schedule"]["ends"]))
        return first, last

    def denoiser(self, params, label=None) -> Denoiser:
        """The Denoiser of these parameters, conditioned on labels if given: classes [B], or a pair of embeddings [B, L, E] and [B, P].
        Raises ValueError for a consistency function, the noise of an interpolant, which are no velocity, and a model that is told its guidance."""
        if self.final:
            raise ValueError("a consistency function tells where the flow ends, not its velocity: expected --solver=jumps")
        if self.interpolant is not None and self.kind == "noise":
            raise ValueError("this run predicts the noise of an interpolant: give it as --score, with --workdir of kind velocity")
        if getattr(self.module, "told_omega", False):
            raise ValueError("this model is told its guidance, and was trained to jump: expected --solver=jumps with --guidance=OMEGA")
        return Denoiser(jax.tree_util.Partial(self, params), self.sde, self.kind, self.sigma_data, label, coupled=self.coupled)

    def flow_map(self, params, label=None, omega: float | Float[Array, " b"] = 1.0, **training) -> FlowMap:
        """The FlowMap of these parameters, as `denoiser`; omega: the guidance, of a module that is told. Raises ValueError for a network of one time
        that was not trained to jump."""
        if not (self.final or getattr(self.module, "second_time", False)):
            raise ValueError("a flow map of a network that sees one time: expected a model trained with config.model.second_time = True")
        cond = label
        if getattr(self.module, "told_omega", False):
            cond = {"label": label, "omega": jnp.broadcast_to(jnp.asarray(omega, jnp.float32), (len(jax.tree.leaves(label)[0]),))}
        return FlowMap(jax.tree_util.Partial(Between(self), params, **training), self.sde, self.kind, self.sigma_data, cond, self.final)


@dataclass(frozen=True)
class Between:
    """`Network.between`, equal for equal networks, which are compiled once then: a bound method is equal to that of the same object alone."""

    network: Network

    def __call__(self, *args, **training):
        return self.network.between(*args, **training)


def from_config(config: ConfigDict, num_classes: int, embeddings: tuple[int, ...] = ()) -> Network | autoencoder.Autoencoder | classifier.Classifier:
    """The network of `config.sde`, `config.model` and `config.objective`, for data of `num_classes`, or of `embeddings` (L, E, P); or the
    autoencoder, which has no path, or the classifier, which predicts a label.

    Raises ValueError for unknown names and options.
    """
    if config.objective.adaptive and (
        config.objective.loss not in ("regression", "scm")
        or config.objective.time.name == "importance"
        or config.coupling.constant
        or config.coupling.bridge
    ):
        raise ValueError(
            f"config.objective.adaptive = True of loss '{config.objective.loss}' and times '{config.objective.time.name}': expected a regression or "
            "scm, times that are not of importance, and no interpolant (coupling.constant, coupling.bridge)"
        )
    coupled = couplings.coupled(config.coupling) or config.data.name == "pairs"
    if coupled and config.objective.loss != "regression":
        raise ValueError(f"config.objective.loss = '{config.objective.loss}' of a coupling, or of pairs, draws its own noise: expected regression")
    if config.objective.loss == "autoencoder":
        return autoencoder.from_config(config)
    classifies = config.objective.loss == "classifier"
    module = build({"NoisyClassifier": models.NoisyClassifier} if classifies else models.NETWORKS, config.model, "model")
    second_time, told_omega = (getattr(module, option, False) for option in ("second_time", "told_omega"))
    if module.num_classes not in (0, num_classes):
        raise ValueError(f"config.model.num_classes = {module.num_classes}: the data set has {num_classes} classes (0 ignores labels)")
    if classifies and not (module.num_classes and not config.data.augment):
        raise ValueError(
            f"config.objective.loss = 'classifier', model.num_classes = {module.num_classes}, data.augment = {config.data.augment}: "
            f"expected the {num_classes} classes of the data, and augment 0"
        )
    asked = getattr(module, "embeddings", ())
    if asked and (asked != embeddings or module.num_classes):
        raise ValueError(f"config.model.embeddings = {asked}: the data set has {embeddings or 'none'}; expected its own, and no classes")
    if config.data.augment and getattr(module, "augment_dim", 0) != LABELS:
        raise ValueError(f"config.data.augment = {config.data.augment}: the network is told; expected a UNet with model.augment_dim = {LABELS}")
    if told_omega and (config.objective.loss != "consistency" or not (asked or module.num_classes)):
        raise ValueError(
            f"config.model.told_omega = True, objective.loss = '{config.objective.loss}', model.num_classes = {module.num_classes}: "
            "the guidance that a model is told is of a consistency loss, and of labels; expected both, or told_omega = False"
        )
    sde = build({cls.__name__: cls for cls in SDE.__subclasses__()}, config.sde, "sde")
    objective = config.objective
    if objective.kind not in PLANE:
        raise ValueError(f"config.objective.kind = '{objective.kind}': expected one of {', '.join(PLANE)}")
    if objective.clock not in CLOCKS:
        raise ValueError(f"config.objective.clock = '{objective.clock}': expected one of {', '.join(CLOCKS)}")
    interpolant = couplings.interpolant(config.coupling, sde)
    if interpolant is not None:
        asked = (objective.loss, objective.weighting, objective.kind)
        if asked not in (("regression", "own", "velocity"), ("regression", "own", "noise")):
            raise ValueError(f"config.objective.loss, weighting, kind = {asked} of an interpolant: expected regression, own, and velocity or noise")
    schedule = None
    if objective.loss == "variational":
        if sde.alpha(sde.T) > MIN_ALPHA or sde.sigma(0.0) > 0:
            raise ValueError(f"config.objective.loss = 'variational' learns the ends of the path: {sde} has its own; expected Linear, Cosine or Trig")
        if objective.weighting != "own" or objective.time.name != "uniform":
            raise ValueError(
                "config.objective.loss = 'variational' has its own weighting and times: leave objective.weighting and objective.time.name out"
            )
        if config.data.augment:
            raise ValueError(f"config.objective.loss = 'variational' is of the data: expected config.data.augment = 0, not {config.data.augment}")
        if objective.time.high <= objective.time.low:
            raise ValueError(f"config.objective.time.high = {objective.time.high}: expected more than time.low = {objective.time.low}")
        schedule = Schedule(objective.time.high, objective.time.low)
    elif classifies:
        return classifier.Classifier(Network(module, sde, objective.kind, objective.sigma_data, objective.clock))
    elif objective.loss == "meanflow":
        if not second_time or objective.weighting != "own" or objective.time.name == "importance":
            raise ValueError(
                f"config.objective.loss = 'meanflow', model.second_time = {second_time}, objective.weighting = '{objective.weighting}', "
                f"time.name = '{objective.time.name}': expected a network of two times (second_time = True), the loss's own weighting, no importance"
            )
        meanflow.check(objective.meanflow, bool(asked or module.num_classes), objective.label_dropout)
    elif objective.loss == "consistency":
        consistency.check(objective, second_time, told_omega)
    elif objective.loss == "progressive":
        progressive.check(objective)
    elif objective.loss == "scm":
        scm.check(objective, second_time)
    elif objective.loss not in LOSS_NAMES:
        raise ValueError(f"config.objective.loss = '{objective.loss}': expected one of {', '.join(LOSS_NAMES)}")
    adversarial.check(objective, second_time)
    if objective.loss in ("progressive", "add") and sde.few_grid != "uniform":
        raise ValueError(
            f"config.objective.loss = '{objective.loss}' has equal steps in t, on the path of {type(sde).__name__} all noise: "
            "expected another config.sde.name"
        )
    if adversarial.used(objective) and config.lora.rank:
        raise ValueError(
            f"config.lora.rank = {config.lora.rank} with a discriminator, which no adapter trains: expected 0, or adversarial.weight = 0"
        )
    windows = perflow.check(config) if objective.loss == "perflow" else 0
    coupled = coupled or objective.loss in ("perflow", "progressive") or interpolant is not None  # no score
    final = objective.loss in ("consistency", "scm", "add") and not second_time
    beside = {"schedule": schedule, "uncertainty": Uncertainty() if objective.adaptive else None}
    beside["discriminator"] = Discriminator(module.num_classes) if adversarial.used(objective) else None
    of = {"coupled": coupled, "windows": windows, "interpolant": interpolant, "final": final}
    return Network(module, sde, objective.kind, objective.sigma_data, objective.clock, **beside, **of)
