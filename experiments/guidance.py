"""How samples of a run are guided, by the flags of experiments.sample: --guidance and what goes with it, another run, or a classifier; and the run
that a bridge has its score of."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.tree_util import Partial
from ml_collections import ConfigDict

from experiments import cli, runs
from experiments.classifier import Classifier
from samplers import autoguidance, classifier_free, classifier_guidance, rectified_cfg
from sde_lib import Denoiser

KINDS = ("cfg", "rectified")
# of the flags
NAMES = ("guidance", "guidance_kind", "guidance_interval", "guidance_rescale", "autoguidance", "classifier", "classifier_scale", "score")


def define_flags() -> None:
    flags.DEFINE_float("guidance", 1.0, "Guidance omega: 1 is none, above 1 is more of the label, or away from --autoguidance.")
    flags.DEFINE_enum("guidance_kind", "cfg", KINDS, "Classifier-free guidance, or Rectified-CFG++ of strength omega - 1.")
    flags.DEFINE_list("guidance_interval", [], "LO,HI: guide only where LO < sigma/alpha <= HI.")
    flags.DEFINE_float("guidance_rescale", 0.0, "Rescaled guidance, 0 to 1 (0.7 in the paper): how much the conditional standard deviation is kept.")
    flags.DEFINE_string("autoguidance", "", "WORKDIR[,CHECKPOINT] of a worse run, which --guidance leads away from, in the place of no label.")
    flags.DEFINE_string("classifier", "", "WORKDIR of a noise-conditional classifier (configs/classifier.py): samples of its classes.")
    flags.DEFINE_float("classifier_scale", 1.0, "Scale of --classifier's gradient.")
    flags.DEFINE_string("score", "", "Of --solver=bridge: the run that predicts the noise of the same interpolant (config.coupling).")


def from_flags() -> dict:
    """--guidance, and the other flags that are not at their defaults."""
    f = flags.FLAGS
    return {name: f[name].value for name in NAMES if name == "guidance" or f[name].value != f[name].default}


def _extrapolated(strong, weak, omega, x, t):
    """Classifier-free guidance of what is no point of the prediction plane."""
    found = strong(x, t)
    return found + (omega - 1) * (found - weak(x, t))


@dataclass(frozen=True)
class Guide:
    """omega, interval, rescale: of `samplers.classifier_free`. times: the grid of `samplers.rectified_cfg`, or None for the other kind. weak: the
    run of `samplers.autoguidance`. classifier: the run of `samplers.classifier_guidance`, with its scale. score: the run of a bridge's noise."""

    run: runs.Run
    omega: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    times: np.ndarray | None = None
    weak: runs.Run | None = None
    classifier: runs.Run | None = None
    scale: float = 1.0
    score: runs.Run | None = None

    def labels(self, n: int, label: int = -1):
        """As `Run.labels`, but of an unconditional run the classes that the classifier leads to."""
        if self.classifier is None or self.run.conditional:
            return self.run.labels(n, label)
        classes, dataset = self.classifier.network.classes, self.classifier.dataset
        label = dataset.class_of(label) if dataset.classes and label >= 0 else label
        if not -1 <= label < classes:
            raise ValueError(f"--label={label}: expected 0 to {classes - 1}, or -1 for all in turn")
        return np.full(n, label) if label >= 0 else np.arange(n) % classes

    def denoiser(self, labels=None) -> Denoiser:
        """Of the run, guided to `labels` of `labels`."""
        told = labels if self.run.conditional else None
        den = self.run.denoiser(told)
        if self.weak is not None:
            den = autoguidance(den, self.weak.denoiser(told if self.weak.conditional else None), self.omega, self.interval)
        elif self.omega != 1 and self.times is not None:
            den = rectified_cfg(den, self.run.network.none, self.omega - 1, self.times)
        elif self.omega != 1:
            den = classifier_free(den, self.run.network.none, self.omega, self.interval, self.rescale)
        if self.classifier is not None:
            by = self.classifier
            den = classifier_guidance(den, Partial(by.network, by.params), jnp.asarray(labels), self.scale)
        return den

    def bridge(self, labels=None) -> tuple:
        """The interpolant, its velocity, and its noise by `score`, both guided to `labels` of `labels`: the first arguments of
        `samplers.bridge.sample_bridge`."""
        fields = []
        for run in (self.run, self.score):
            field = Partial(run.network, run.params, label=labels)
            if self.omega != 1:
                none = jax.tree.map(jnp.full_like, labels, run.network.none)
                field = Partial(_extrapolated, field, Partial(run.network, run.params, label=none), self.omega)
            fields.append(field)
        return self.run.network.interpolant, *fields

    def fingerprints(self) -> list[str]:
        """What identifies the weights of the other runs."""
        return [other.fingerprint() for other in (self.weak, self.classifier, self.score) if other is not None]


def guide(
    run: runs.Run,
    guidance: float = 1.0,
    guidance_kind: str = "cfg",
    guidance_interval: Iterable[str] = (),
    guidance_rescale: float = 0.0,
    autoguidance: str = "",
    classifier: str = "",
    classifier_scale: float = 1.0,
    score: str = "",
    times: np.ndarray | None = None,
) -> Guide:
    """The Guide of a run by the values of the flags. times: the sampler's grid, if it has one.

    Raises ValueError for values without a meaning, or without an effect together or on this run, and what `runs.load_run` raises.
    """
    if not np.isfinite(guidance):
        raise ValueError(f"--guidance={guidance}: expected a finite number")
    for name, value in (("interval", guidance_interval), ("rescale", guidance_rescale), ("kind", guidance_kind if guidance_kind != "cfg" else "")):
        if value and guidance == 1:
            raise ValueError(f"--guidance_{name}: there is no guidance that it could be of; expected --guidance above 1")
    if autoguidance and guidance == 1:
        raise ValueError(f"--autoguidance={autoguidance}: has no effect at --guidance=1; expected --guidance above 1")
    if autoguidance and (guidance_rescale or guidance_kind != "cfg"):
        raise ValueError("--autoguidance with --guidance_rescale or --guidance_kind: these are of classifier-free guidance; leave one of them out")
    if guidance_kind == "rectified" and (len(guidance_interval) or guidance_rescale):
        raise ValueError("--guidance_kind=rectified with --guidance_interval or --guidance_rescale: these are of --guidance_kind=cfg; leave one out")
    if guidance_kind == "rectified" and times is None:
        raise ValueError("--guidance_kind=rectified looks half a step ahead: expected a --solver of a fixed --grid that is not fitted")
    if classifier_scale != 1 and not classifier:
        raise ValueError(f"--classifier_scale={classifier_scale}: expected a --classifier that it is of")
    if guidance != 1 and not autoguidance and not run.conditional:
        raise ValueError(f"--guidance={guidance}: this model is unconditional; expected 1, or --autoguidance")
    if guidance != 1 and not autoguidance and not run.config.objective.label_dropout > 0:
        raise ValueError(f"--guidance={guidance}: this model was trained with objective.label_dropout = 0, it has seen no example without its label")
    interval = None
    if len(guidance_interval):
        try:
            low, high = interval = tuple(float(end) for end in guidance_interval)
        except ValueError:
            low, high = 1, 0
        if not 0 <= low < high:
            raise ValueError(f"--guidance_interval={','.join(guidance_interval)}: expected LO,HI of sigma/alpha with 0 <= LO < HI")
    weak = by = None
    if autoguidance:
        folder, _, step = autoguidance.partition(",")
        if step and not step.isdigit():
            raise ValueError(f"--autoguidance={autoguidance}: expected WORKDIR or WORKDIR,CHECKPOINT")
        weak = other_run(run, folder, "autoguidance", int(step) if step else None)
        if isinstance(weak.network, Classifier) or weak.conditional and not run.conditional:
            raise ValueError(f"--autoguidance={folder} is conditional on labels or a classifier: expected a worse run of the kind of --workdir")
        if weak.conditional and weak.network.none != run.network.none:
            raise ValueError(f"--autoguidance={folder} has {weak.network.none} classes: expected those of the model, {run.network.none}")
    if classifier:
        by = other_run(run, classifier, "classifier")
        if not isinstance(by.network, Classifier):
            raise ValueError(f"--classifier={classifier} is no classifier: train one with --config=configs/classifier.py")
        if run.conditional and run.network.none != by.network.classes:
            raise ValueError(f"--classifier={classifier} has {by.network.classes} classes: expected those of the model, {run.network.none}")
    of_noise = other_run(run, score, "score") if score else None
    if of_noise:
        check_score(run, of_noise, guidance)
    rectified = times if guidance_kind == "rectified" else None
    return Guide(run, guidance, interval, guidance_rescale, rectified, weak, by, classifier_scale, of_noise)


def check_score(run: runs.Run, score: runs.Run, guidance: float) -> None:
    """Raises ValueError unless run and score have the velocity and the noise of one interpolant, between the same ends and told the same labels."""
    kinds, gamma = [r.config.objective.kind for r in (run, score)], (run.config.coupling.constant, run.config.coupling.bridge)
    if kinds != ["velocity", "noise"] or not any(gamma):
        said = f"--workdir of kind {kinds[0]} and coupling.constant, bridge = {gamma}, --score={score.workdir} of kind {kinds[1]}"
        raise ValueError(f"{said}: expected kind velocity, one of the two above 0, and kind noise")
    ours, theirs = (cli.flat(ConfigDict(json.loads(r.config.to_json()))) for r in (run, score))  # as json has them, without tuples
    for name in sorted(ours.keys() | theirs.keys()):
        if name.startswith(("coupling.", "data.", "model.num_classes", "model.embeddings")) and ours.get(name) != theirs.get(name):
            raise ValueError(f"--score={score.workdir} has config.{name} = {theirs.get(name)!r}: expected that of --workdir, {ours.get(name)!r}")
    if guidance != 1 and not score.config.objective.label_dropout > 0:
        raise ValueError(f"--guidance={guidance}: --score={score.workdir} was trained with objective.label_dropout = 0; expected more, or guidance 1")


def other_run(run: runs.Run, workdir: str, flag: str, step: int | None = None) -> runs.Run:
    """Another run, of the same weights (raw or averaged), for examples on the same path. Raises ValueError if they are of another."""
    other = runs.load_run(workdir, step, run.weights)
    path = lambda r: (r.dataset.name, getattr(r.network, "sde", None), r.dataset.shape)
    if path(other) != path(run):
        raise ValueError(f"--{flag}={workdir} is of {path(other)}: expected the data, path and shape of --workdir, {path(run)}")
    return other
