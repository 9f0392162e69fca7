"""What every experiment has, with the defaults that most share. A config inherits this and states what it changes."""

import dataclasses

from ml_collections import ConfigDict, config_dict

import models
from sde_lib import SDE


def options(name: str, classes) -> ConfigDict:
    """A class by name, and every option that any of `classes` has, so that all are flags; None stands for the class's own default. A class that
    is no dataclass, such as a path of a notebook, has none."""
    known = [cls for cls in classes if dataclasses.is_dataclass(cls)]
    fields = {field.name: field for cls in known for field in dataclasses.fields(cls) if field.name not in ("parent", "name")}
    return ConfigDict({"name": name} | {key: config_dict.placeholder(type(field.default)) for key, field in fields.items()})


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "digits"  # experiments.data.LOADERS or experiments.toy.TOYS
    config.data.variant = ""  # of a toy set; the first by default
    config.data.path = ""  # file or folder, where there are files
    config.data.size = 0  # side of the images of a folder, in pixels
    config.data.fit = "crop"  # a folder's images to squares; or pad, or keep, which keeps their shape
    config.data.mode = ""  # of a folder's images: "" as in the files, or L, RGB (8 bits), I;16 (16 bits), F (floats)
    config.data.levels = 0  # of integers in a user's files: 0 finds them, N says 0 to N - 1, -1 all that their type has
    config.data.standardize = ""  # of floats: coordinate, one (scale for all), none; "" is coordinate for the vectors of an npz
    config.data.classes = 0  # of labels in a user's files: 0 finds them, N says 0 to N - 1
    config.data.flip = False  # mirror half of the training images
    config.data.augment = 0.0  # probability of each of EDM's augmentations, of which a network with model.augment_dim = 9 is told

    config.sde = options("Linear", SDE.__subclasses__())
    config.model = options("MLP", [*models.NETWORKS.values(), models.KLAutoencoder, models.NoisyClassifier])

    config.objective = ConfigDict()
    # or sliced, implicit (experiments.score_matching); or meanflow, perflow, progressive, consistency, scm, add (modules here, some with a teacher);
    # or variational: VDM's bound with a learned schedule, from time.high to time.low at first;
    # or autoencoder, classifier (experiments.autoencoder, experiments.classifier)
    config.objective.loss = "regression"
    config.objective.kind = "velocity"  # the prediction: sde_lib.PLANE
    config.objective.weighting = "own"  # own, likelihood, or the prediction that the error is measured in
    # experiments.objectives.TIME_SAMPLERS; mean and std of logit_normal and log_normal, low and high of log_snr, scale of mode, count of grid
    config.objective.time = ConfigDict({"name": "uniform", "mean": 0.0, "std": 1.0, "low": -6.0, "high": 6.0, "scale": 1.29, "count": 1})
    # of loss consistency (experiments.consistency): times fixed (count points of the grid karras or uniform), ct or ict (from start to end), or ect
    # (of so many stages, each shrinking gaps); step: data, or the teacher's solver, up to `chain` in a row; to: data, random or phase
    config.objective.consistency = ConfigDict({"times": "fixed", "grid": "karras", "count": 18, "start": 10, "end": 1280, "stages": 8, "shrink": 2.0})
    config.objective.consistency.update(step="data", chain=1, to="data", phases=4, through=False)
    # metric l2, or huber with its constant; weight one, gap or edm; decay of theta^-, 0: the parameters themselves; weight of a regression
    config.objective.consistency.update(metric="l2", constant=0.00054, weight="one", target=0.0, regression=0.0)
    # the teacher's guidance, from to, which the student is told (told_omega); 0: none
    config.objective.consistency.omega = (0.0, 0.0)
    # of loss scm (experiments.scm): step data or teacher; constant c of the normalisation; share of training in which the tangent rises
    config.objective.scm = ConfigDict({"step": "data", "constant": 0.1, "warmup": 0.025})
    config.objective.adaptive = False  # of loss regression and scm: times weighted by how uncertain each is, which is learned (models/uncertainty.py)
    # of loss add, and by its weight of consistency (experiments.adversarial): real data or target, R1's penalty, mean and std of log(sigma/alpha) of
    # the features, weight of add's distillation
    config.objective.adversarial = ConfigDict({"weight": 0.0, "real": "data", "penalty": 1e-5, "mean": 1.0, "std": 1.0, "distillation": 2.5})
    config.objective.progressive = ConfigDict({"start": 4, "steps": 1})  # of loss progressive: steps of the first student and of the last
    config.objective.perflow = ConfigDict({"windows": 4, "steps": 8})  # of loss perflow, and the teacher's DDIM steps in each
    config.objective.sigma_data = 1.0  # rough standard deviation of x_0, for scaling the input and for kind edm
    config.objective.clock = "time"  # the time that the network is told: experiments.network.CLOCKS
    config.objective.label_dropout = 0.0  # share of examples whose label is hidden: what a conditional model knows without a label
    # of loss meanflow: share of examples with s < t; power p and constant c of the weight; guidance omega/(1 - kappa) of the target, for t <= until T
    config.objective.meanflow = ConfigDict({"apart": 0.25, "power": 1.0, "constant": 1e-2, "omega": 1.0, "kappa": 0.0, "until": 1.0})
    config.objective.reconstruction = "l1"  # or l2: of an autoencoder
    config.objective.kl = 1e-6  # weight of an autoencoder's divergence from N(0, I)

    config.coupling = ConfigDict()  # of each example with its noise (experiments/couplings.py)
    config.coupling.name = "independent"  # or ot, sinkhorn
    config.coupling.group = 0  # consecutive examples that are coupled with each other; 0: a batch
    # whether partners change within a class alone; None: where the model is conditional, whose labels would be wrong otherwise
    config.coupling.by_class = config_dict.placeholder(bool)
    config.coupling.regularization = 0.0  # of sinkhorn
    config.coupling.constant = 0.0  # of noise beside both ends, gamma^2 = constant^2 + bridge^2 t (1 - t) (sde_lib.interpolants); 0.1: I-CFM, OT-CFM
    config.coupling.bridge = 0.0
    config.coupling.source = ConfigDict({"name": "", "variant": "", "path": ""})  # a data set in the place of the prior's noise

    config.optim = ConfigDict()
    config.optim.name = "adam"  # or radam
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"  # or cosine or linear, to zero at the last step, or inverse_sqrt, which falls after `decay` steps
    config.optim.decay = 0
    config.optim.warmup = 100  # steps
    config.optim.clip = 1.0  # global norm of the gradient
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.999
    config.optim.epsilon = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.ema = 0.999
    config.optim.ema_std = 0.0  # above 0: in the place of ema, an average as long as training, of that width relative to it

    config.lora = ConfigDict()  # fine-tuning of a trained model by a low-rank adapter (models/lora.py)
    config.lora.rank = 0  # 0: all weights are trained
    config.lora.alpha = 8.0  # the adapter counts alpha/rank times
    config.lora.pattern = "kernel$"  # regular expression of the paths that are adapted, such as DiTBlock_0/Dense_1/kernel
    config.lora.base = ""  # workdir, of a run or an export, whose averaged weights stay as they are

    config.teacher = ConfigDict()  # of a distillation (experiments.distill)
    config.teacher.workdir = ""  # of a run or an export, whose averaged weights are the teacher
    config.teacher.guidance = 1.0  # classifier-free, of the teacher

    config.training = ConfigDict()
    config.training.init = ""  # workdir whose averaged weights training begins from, or "teacher", where names and shapes are the same
    config.training.batch = 256  # over all devices
    config.training.sharding = "data"  # or fsdp: a model that outgrows one device is divided over all
    config.training.accumulate = 1  # parts of a batch that a device computes one after another, for memory
    config.training.steps = 5000
    config.training.log_every = 100
    config.training.checkpoint_every = 1000
    config.training.keep = 2  # newest checkpoints; 0 keeps all
    config.training.keep_every = 0  # steps of whose multiples the checkpoints are kept besides
    config.training.nonfinite = "stop"  # or skip: a step whose loss or gradient is not finite then changes no weights, and is counted
    return config
