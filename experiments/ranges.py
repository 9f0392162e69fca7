"""The values that each option of a config may have, in one table, which `experiments.train` checks before it writes anything.

An option with a range of its own is declared here once. What depends on several options (a batch that the devices divide, a schedule that needs its
`decay`) is checked where those options are used, also before anything is written.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from ml_collections import ConfigDict

from experiments import autoencoder, cli, consistency, couplings, folders, network, objectives, state, units
from sde_lib import PLANE


@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`; an end that is open is not allowed itself. whole: integers only."""

    low: float = -np.inf
    high: float = np.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def accepts(self, value) -> bool:
        kind = Integral if self.whole else Real
        if isinstance(value, bool | np.bool_) or not isinstance(value, kind) or not np.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"above {self.low:.10g}" if self.open_low else f"at least {self.low:.10g}"
        high = f"below {self.high:.10g}" if self.open_high else f"at most {self.high:.10g}"
        ends = [end for end, there in ((low, self.low > -np.inf), (high, self.high < np.inf)) if there]
        return ", ".join([*ends, "an integer" if self.whole else "a finite number"])


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def accepts(self, value) -> bool:
        return isinstance(value, str) and value in self.words

    def __str__(self) -> str:
        words = [word or "''" for word in self.words]
        return f"one of {', '.join(words)}" if len(words) > 2 else " or ".join(words)


@dataclass(frozen=True)
class Text:
    """Any string; what it names is checked where it is used."""

    def accepts(self, value) -> bool:
        return isinstance(value, str)

    def __str__(self) -> str:
        return "a string"


@dataclass(frozen=True)
class Switch:
    """True or False."""

    def accepts(self, value) -> bool:
        return isinstance(value, bool | np.bool_)

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Several:
    """Any number of values of one range, or as many as `length` says."""

    each: Number
    length: int | None = None

    def accepts(self, value) -> bool:
        listed = isinstance(value, list | tuple) and self.length in (None, len(value))
        return listed and all(map(self.each.accepts, value))

    def __str__(self) -> str:
        return f"a tuple{'' if self.length is None else f' of {self.length}'}, each {self.each}"


ANY = Number()
POSITIVE = Number(0, open_low=True)
NOT_NEGATIVE = Number(0)
SHARE = Number(0, 1)
BELOW_ONE = Number(0, 1, open_high=True)
COUNT = Number(1, whole=True)
COUNT_OR_NONE = Number(0, whole=True)
TEXT, SWITCH = Text(), Switch()
Range = Number | Choice | Text | Switch | Several

RANGES: dict[str, Range] = {
    "seed": Number(0, 2**32 - 1, whole=True),  # keys are made of 32 bits: a larger seed would repeat a smaller one
    "data.name": TEXT,
    "data.variant": TEXT,
    "data.path": TEXT,
    "data.size": COUNT_OR_NONE,
    "data.standardize": Choice(units.STANDARDIZE),
    "data.levels": Number(units.WHOLE_TYPE, whole=True),
    "data.classes": COUNT_OR_NONE,
    "data.mode": Choice(("", *folders.MODES)),
    "data.fit": Choice(folders.FITS),
    "data.flip": SWITCH,
    "data.augment": SHARE,
    "sde.name": TEXT,
    "sde.T": POSITIVE,
    "sde.beta_max": POSITIVE,
    "sde.beta_min": POSITIVE,
    "sde.betas": Several(Number(0, 1, open_low=True, open_high=True)),
    "sde.noise": POSITIVE,
    "sde.s": NOT_NEGATIVE,
    "sde.sigma_data": POSITIVE,
    "sde.sigma_max": POSITIVE,
    "sde.sigma_min": POSITIVE,
    "sde.sigmas": Several(POSITIVE),
    "sde.theta": POSITIVE,
    "model.name": TEXT,
    "model.activation": TEXT,
    "model.attention": Several(Number(-1, whole=True)),  # -1: every size up to 16 and the smallest
    "model.augment_dim": COUNT_OR_NONE,
    "model.blocks": COUNT,
    "model.channels": COUNT,
    "model.decoder_attention": TEXT,
    "model.depth": COUNT,
    "model.dropout": BELOW_ONE,
    "model.dropout_height": COUNT_OR_NONE,
    "model.dtype": TEXT,
    "model.embedding": TEXT,
    "model.embedding_scale": POSITIVE,
    "model.embeddings": Several(COUNT),
    "model.epsilon": POSITIVE,
    "model.frequencies": Several(POSITIVE),
    "model.grow_input": TEXT,
    "model.grow_output": TEXT,
    "model.head_channels": COUNT_OR_NONE,
    "model.image_channels": COUNT,
    "model.kernel": Several(ANY),
    "model.label_tokens": COUNT,
    "model.latent_channels": COUNT,
    "model.mlp_ratio": COUNT,
    "model.modulate": TEXT,
    "model.multipliers": Several(COUNT),
    "model.normalise": SWITCH,
    "model.num_classes": COUNT_OR_NONE,
    "model.num_heads": COUNT,
    "model.patch": COUNT,
    "model.remat": SWITCH,
    "model.resample": TEXT,
    "model.rescale": SWITCH,
    "model.second_time": SWITCH,
    "model.told_omega": SWITCH,
    "model.width": COUNT,
    "objective.loss": Choice(network.LOSS_NAMES),
    "objective.kind": Choice(tuple(PLANE)),
    "objective.weighting": Choice(("own", "likelihood", *PLANE)),
    "objective.time.name": Choice(tuple(objectives.TIME_SAMPLERS)),
    "objective.time.mean": ANY,
    "objective.time.std": POSITIVE,
    "objective.time.low": ANY,
    "objective.time.high": ANY,
    "objective.time.scale": Number(-1, 2 / (np.pi - 2)),  # where `objectives.mode` is monotone
    "objective.time.count": COUNT,
    **{f"objective.consistency.{name}": Choice(words) for name, words in consistency.WORDS.items()},
    "objective.consistency.count": Number(2, whole=True),
    "objective.consistency.start": COUNT,
    "objective.consistency.end": COUNT,
    "objective.consistency.stages": COUNT,
    "objective.consistency.shrink": Number(1, open_low=True),
    "objective.consistency.chain": COUNT,
    "objective.consistency.phases": COUNT,
    "objective.consistency.through": SWITCH,
    "objective.consistency.constant": NOT_NEGATIVE,
    "objective.consistency.target": BELOW_ONE,
    "objective.consistency.regression": NOT_NEGATIVE,
    "objective.consistency.omega": Several(NOT_NEGATIVE, 2),
    "objective.scm.step": Choice(("data", "teacher")),
    "objective.scm.constant": POSITIVE,
    "objective.scm.warmup": SHARE,
    "objective.adaptive": SWITCH,
    "objective.adversarial.weight": NOT_NEGATIVE,
    "objective.adversarial.real": Choice(("data", "target")),
    "objective.adversarial.penalty": NOT_NEGATIVE,
    "objective.adversarial.mean": ANY,
    "objective.adversarial.std": POSITIVE,
    "objective.adversarial.distillation": NOT_NEGATIVE,
    "objective.progressive.start": COUNT,
    "objective.progressive.steps": COUNT,
    "objective.perflow.windows": COUNT,
    "objective.perflow.steps": COUNT,
    "objective.sigma_data": POSITIVE,
    "objective.clock": Choice(tuple(network.CLOCKS)),
    "objective.label_dropout": BELOW_ONE,
    "objective.meanflow.apart": SHARE,
    "objective.meanflow.power": NOT_NEGATIVE,
    "objective.meanflow.constant": POSITIVE,
    "objective.meanflow.omega": POSITIVE,
    "objective.meanflow.kappa": BELOW_ONE,
    "objective.meanflow.until": SHARE,
    "objective.reconstruction": Choice(tuple(autoencoder.ERRORS)),
    "objective.kl": NOT_NEGATIVE,
    "coupling.name": Choice(couplings.NAMES),
    "coupling.group": COUNT_OR_NONE,
    "coupling.by_class": SWITCH,
    "coupling.regularization": NOT_NEGATIVE,
    "coupling.constant": NOT_NEGATIVE,
    "coupling.bridge": NOT_NEGATIVE,
    "coupling.source.name": TEXT,
    "coupling.source.variant": TEXT,
    "coupling.source.path": TEXT,
    "optim.name": Choice(tuple(state.SCALES)),
    "optim.learning_rate": POSITIVE,
    "optim.schedule": Choice(state.SCHEDULES),
    "optim.decay": COUNT_OR_NONE,
    "optim.warmup": COUNT_OR_NONE,
    "optim.clip": NOT_NEGATIVE,
    "optim.beta1": BELOW_ONE,
    "optim.beta2": BELOW_ONE,
    "optim.epsilon": POSITIVE,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.ema": BELOW_ONE,
    "optim.ema_std": Number(0, state.WIDEST_EMA, open_high=True),
    "lora.rank": COUNT_OR_NONE,
    "lora.alpha": POSITIVE,
    "lora.pattern": TEXT,
    "lora.base": TEXT,
    "teacher.workdir": TEXT,
    "teacher.guidance": NOT_NEGATIVE,
    "training.init": TEXT,
    "training.batch": Number(whole=True),  # `parallel.check_batch` names the nearest that the devices divide
    "training.sharding": Choice(("data", "fsdp")),
    "training.accumulate": COUNT,
    "training.steps": COUNT,
    "training.log_every": COUNT,
    "training.checkpoint_every": COUNT,
    "training.keep": COUNT_OR_NONE,
    "training.keep_every": COUNT_OR_NONE,
    "training.nonfinite": Choice(("stop", "skip")),
}
# Options of one class among several: None stands for the default of the class, which itself refuses an option that it does not have.
OF_A_CLASS = ("sde.", "model.")
MAY_BE_NONE = (*OF_A_CLASS, "coupling.by_class")


def check(config: ConfigDict | Mapping) -> None:
    """Check every option of a config.

    Raises ValueError, naming the option, its value and what is expected, for the first one that is out of its range or of another type, and for one
    that no config has.
    """
    for name, value in cli.flat(config).items():
        if name not in RANGES:
            if name.startswith(OF_A_CLASS):
                continue
            group, _, option = name.rpartition(".")
            siblings = [known.rpartition(".")[2] for known in RANGES if known.rpartition(".")[0] == group]
            close = difflib.get_close_matches(option, siblings or RANGES, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(siblings or RANGES)}"
            raise ValueError(f"config{'.' if group else ''}{group} has no option '{option}': {hint}")
        if value is None and name.startswith(MAY_BE_NONE):
            continue
        if not RANGES[name].accepts(value):
            shown = f"'{value}'" if isinstance(value, str) else value
            raise ValueError(f"config.{name} = {shown}: expected {RANGES[name]}")
