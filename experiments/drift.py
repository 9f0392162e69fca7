"""What a resumed run may change of its config: every field has a class, and all that have drifted are said at once, old -> new.

`FREE` fields change nothing of the result but rounding. `RESULT` fields make another experiment: refused, unless --allow_drift. The saved state does
not fit another value of a `STATE` field, and nothing overrides that. A field that is newer than the run has its default and has not drifted; one in
no class is a `RESULT` field. What a run has been through is in its config_history.jsonl, the newest config alone in config.json.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from experiments import cli, state, weights
from experiments.data import READING, SOURCES, Dataset, Stretch, fingerprint
from experiments.kept import write_text

FREE, RESULT, STATE = "changes nothing of the result", "changes the result", "the saved state does not fit"
CLASSES = {
    FREE: """
        training.log_every training.checkpoint_every training.keep training.keep_every training.nonfinite training.accumulate training.sharding
        model.remat""",
    RESULT: """
        seed data.name data.variant data.path data.size data.flip data.augment
        data.fit data.mode data.levels data.standardize data.classes
        sde.name sde.T sde.beta_max sde.beta_min sde.betas sde.noise sde.s sde.sigma_data sde.sigma_max sde.sigma_min sde.sigmas sde.theta
        model.activation model.dropout model.dropout_height model.dtype model.embedding_scale model.epsilon model.head_channels model.kernel
        model.rescale
        objective.clock objective.kind objective.kl objective.label_dropout objective.reconstruction objective.sigma_data objective.weighting
        objective.adversarial.distillation objective.adversarial.mean objective.adversarial.penalty objective.adversarial.real
        objective.adversarial.std
        objective.consistency.chain objective.consistency.constant objective.consistency.count objective.consistency.end
        objective.consistency.grid objective.consistency.metric objective.consistency.omega objective.consistency.phases
        objective.consistency.regression objective.consistency.shrink objective.consistency.stages objective.consistency.start
        objective.consistency.step objective.consistency.target objective.consistency.through objective.consistency.times
        objective.consistency.to objective.consistency.weight objective.meanflow.apart objective.meanflow.constant objective.meanflow.kappa
        objective.meanflow.omega objective.meanflow.power objective.meanflow.until objective.scm.constant objective.scm.step
        objective.scm.warmup objective.perflow.steps objective.perflow.windows objective.progressive.start objective.progressive.steps
        objective.time.count objective.time.high objective.time.low objective.time.mean objective.time.name objective.time.scale
        objective.time.std
        optim.beta1 optim.beta2 optim.clip optim.decay optim.ema optim.ema_std optim.epsilon optim.learning_rate optim.name optim.schedule
        optim.warmup optim.weight_decay
        coupling.bridge coupling.by_class coupling.constant coupling.group coupling.name coupling.regularization
        coupling.source.name coupling.source.path coupling.source.variant
        lora.alpha teacher.guidance teacher.workdir training.batch training.init training.steps""",
    STATE: """
        model.name model.attention model.augment_dim model.blocks model.channels model.decoder_attention model.depth model.embedding
        model.embeddings model.frequencies model.grow_input model.grow_output model.image_channels model.label_tokens model.latent_channels
        model.mlp_ratio model.modulate model.multipliers model.normalise model.num_classes model.num_heads model.patch model.resample
        model.second_time model.told_omega model.width objective.adaptive objective.adversarial.weight objective.loss
        lora.base lora.pattern lora.rank""",
}
FIELDS = {field: kind for kind, fields in CLASSES.items() for field in fields.split()}
TIMED = ("consistency", "scm")  # losses whose schedules are of the share of training that is done
PLACE = ("data.name", "data.variant", "data.path", "data.size")  # where data come from: nothing, if they are the same
READ_BY = tuple(f"data.{name}" for name in READING if name != "size")
DATA, HISTORY = weights.NOTED, "config_history.jsonl"
LOOK = 64  # examples of each split, by which data are known


def examined(dataset: Dataset) -> dict:
    """What tells data from others wherever they are: shape and numbers, and a projection of each of `LOOK` examples of a split and their labels."""
    found = {"shape": list(dataset.shape)} | ({"facts": dataset.facts} if dataset.name in SOURCES else {})
    for split, values in dataset.values.items():
        index = np.unique(np.linspace(0, len(values) - 1, LOOK).astype(int))
        labels = [part[index] for part in jax.tree.leaves(dataset.labels[split])]
        parts = [part.reshape(len(index), -1).astype(np.float64) for part in (dataset.raw(values[index]), *labels)]
        numbers = [part for part in jax.tree.leaves(dataset.labels[split]) if np.issubdtype(part.dtype, np.integer)]
        looks = [part @ np.cos(np.arange(part.shape[1])) / np.sqrt(part.shape[1]) for part in parts]
        found[split] = {"examples": len(values), "looks": [look.tolist() for look in looks], "labels": fingerprint(*numbers)}
        if type(values) is np.ndarray:  # in memory
            found[split]["mean"] = float(np.mean(dataset.units.origin + dataset.units.step * values.mean(0, dtype=np.float64)))
    return found


def same(noted: dict, found: dict) -> bool:
    """Whether `examined` was of the same data. Another release of a decoder or of NumPy may differ in a level or a last digit."""
    exact = lambda a: (a["examples"], a["labels"], [len(look) for look in a["looks"]])
    near = lambda a, b: np.allclose(a, b, rtol=0, atol=0.2 * np.std(b) + 1e-6)
    alike = lambda a, b: exact(a) == exact(b) and np.isclose(a.get("mean", 0), b.get("mean", 0), rtol=1e-2) and all(map(near, a["looks"], b["looks"]))
    return noted["shape"] == found["shape"] and all(alike(noted[split], found[split]) for split in ("train", "test"))


def same_reading(noted: dict, found: dict) -> bool:
    """Whether files were read in the same way for `examined`: to the same levels, scales and classes. A run without facts is older than they are."""
    if "facts" in noted:
        return noted["facts"] == found.get("facts")
    now = found.get("facts", {"levels": 0, "units": {"step": 1.0}, "classes": []})
    plain = now["levels"] in (0, 256) and np.ndim(now["units"]["step"]) == 0 and now["units"]["step"] == 1
    return plain and not now["classes"]


def drifted(before: dict, after: dict, same_data: bool, alike: bool = False) -> dict[str, str]:
    """The class of each field whose value differs between two flat configs (`cli.flat`); same_data: whether both are of the same examples, alike:
    whether these are read in the same way."""
    changed = [field for field in sorted(before.keys() | after.keys()) if before.get(field) != after.get(field)]
    # whether what is done at a step does not depend on how many there will be
    steady = all(c["optim.schedule"] in ("constant", "inverse_sqrt") and c["objective.loss"] not in TIMED for c in (before, after))
    classes = {}
    for field in changed:
        classes[field] = FIELDS.get(field, RESULT)
        other = [before | {field: after.get(field)}, after | {field: before.get(field)}]
        if (field in PLACE and same_data) or (field in READ_BY and same_data and alike):
            classes[field] = FREE
        elif field == "training.steps" and steady:
            classes[field] = FREE
        elif field == "objective.time.name" and "importance" in (before.get(field), after.get(field)):  # which has a history
            classes[field] = STATE
        elif field.startswith("optim.") and any(_moments(a) != _moments(b) for a, b in zip((before, after), other)):
            classes[field] = STATE
    return classes


def _moments(config: dict):
    """The structure of the optimizer's state: of weight decay and schedules it has parts of their own."""
    nested = ConfigDict(unflatten_dict(config | {"optim.decay": 1}, sep="."))  # of whatever schedule
    return jax.tree.structure(jax.eval_shape(state.optimizer(nested).init, {}))


def check(config: ConfigDict, workdir: str | Path, found: dict, allow: bool = False) -> list[tuple]:
    """What `config` and its data, `examined`, change of the run in `workdir`, as (field, old, new), printed.

    Raises ValueError, naming all fields that drifted, old and new, if one of them changes the result, unless `allow`, or if the saved state does
    not fit.
    """
    workdir = Path(workdir)
    # as json has them: what an older run lacks is taken from configs/default.py, where it may be a tuple
    before, after = (cli.flat(ConfigDict(json.loads(c.to_json()))) for c in (cli.load_config(workdir), config))
    file = workdir / DATA
    try:
        noted = json.loads(file.read_text()) if file.exists() else None  # a run older than this file has none
        unchanged = noted is not None and same(noted, found)
        alike = noted is not None and same_reading(noted, found)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is corrupt: delete it, if the data are those that the run was trained on") from None
    classes = drifted(before, after, unchanged, alike)
    changes = [(field, before.get(field), after.get(field)) for field in classes]
    if noted is not None and not unchanged:
        changes.append(("the data", f"{noted['train']['examples']} examples", f"{found['train']['examples']} others"))
    lines = [f"{field}: {old} -> {new} ({classes.get(field, RESULT)})" for field, old, new in changes]
    kinds = {classes.get(field, RESULT) for field, _, _ in changes}
    if STATE in kinds or (RESULT in kinds and not allow):
        way = "use another --workdir, or the old values" + ("" if STATE in kinds else ", or go on with --allow_drift")
        raise ValueError(f"{workdir} was trained with another config: {'; '.join(lines)}: {way}")
    for line in lines:
        print(line)
    return changes


def completed(config: ConfigDict, workdir: str | Path) -> ConfigDict:
    """The config with the value of an option that has no value (`coupling.by_class` = None) as the run in `workdir` was trained with it, so that the
    same command resumes a run that is older than the meaning of None."""
    if config.coupling.by_class is not None:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.coupling.by_class = cli.load_config(workdir).coupling.by_class
    return config


def _stretches(workdir: str | Path) -> list[tuple[int, int]]:
    """(first step, batch size) of each stretch of training in one batch size, as the history of a run has them; [] if it never changed."""
    file, found = Path(workdir) / HISTORY, []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            said = json.loads(line)
            step, (old, new) = said["step"], said["changed"].get("training.batch", (0, 0))
        except (ValueError, KeyError, TypeError, AttributeError):  # half a line, of a run that was killed before the change took effect
            continue
        if new:
            found = _extended(found, step, old, new)
    return found


def _extended(found: list[tuple[int, int]], step: int, old: int, new: int) -> list[tuple[int, int]]:
    """The stretches with a change of the batch size from `old` to `new` at `step`; what they have from there on was undone."""
    return [(first, batch) for first, batch in found or [(0, old)] if first < step] + [(step, new)]


def stretch(workdir: str | Path, step: int, changes: list[tuple]) -> Stretch:
    """Where the run's batches of the present size begin in the stream of examples: after all examples of the batches before. changes: what
    `record` notes at `step`."""
    found = _stretches(workdir)
    for old, new in (change for field, *change in changes if field == "training.batch"):
        found = _extended(found, step, old, new)
    seen = sum(batch * (end - first) for (first, batch), (end, _) in zip(found[:-1], found[1:]))
    return Stretch(found[-1][0], seen) if found else Stretch()


def changes_of_batch(config: ConfigDict, workdir: str | Path, step: int, changes: list[tuple]) -> list[tuple]:
    """`changes` with that of the batch size at `step`, where training goes on, and not at the newest checkpoint if that is damaged. Prints what a
    change means."""
    field, new = "training.batch", config.training.batch
    before = [batch for first, batch in _stretches(workdir) if first <= step]
    old = before[-1] if before else cli.load_config(workdir).training.batch
    changes = [change for change in changes if change[0] != field]
    if old == new:
        return changes
    print(
        f"batches of {new} examples instead of {old} from step {step} on: the stream goes on after the last example of that step, so that none "
        "repeats with the same noise; schedules and averages count steps as before"
    )
    return [*changes, (field, old, new)]


def record(config: ConfigDict, workdir: str | Path, found: dict, step: int, changes: list[tuple] = ()) -> None:
    """Write data.json and config.json, each at once, after a line of config_history.jsonl that says what changes before `step` + 1."""
    workdir = Path(workdir)
    if changes:
        with open(workdir / HISTORY, "a+") as history:
            history.seek(0)
            if (history.read() or "\n")[-1] != "\n":
                history.write("\n")  # a kill left half a line
            history.write(json.dumps({"step": step, "changed": {field: [old, new] for field, old, new in changes}}) + "\n")
            history.flush()
            os.fsync(history.fileno())
    for name, content in ((DATA, found), ("config.json", json.loads(config.to_json()))):
        write_text(workdir / name, json.dumps(content, indent=1))  # a run without a readable config is lost
