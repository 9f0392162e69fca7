"""Continuous-time consistency models: sCT, of data alone, and sCD, of a teacher (Lu & Song 2025, 2410.11081), on TrigFlow.

python -m experiments.train --config=configs/scm.py:8gaussians --workdir=runs/sct
python -m experiments.sample --workdir=runs/sct --solver=jumps --steps=1 --num=1000
python -m experiments.distill --teacher_workdir=runs/trig --config=configs/scm.py:scd_cifar10 --workdir=runs/scd
:8gaussians is sCT, two minutes on two CPU cores. Not trained here: :sct_cifar10 (FID by one evaluation 2.85 in the paper, by two 2.06), :scd_cifar10
(3.66, 2.52), :sct_imagenet64 and :scd_imagenet64 of a folder of ImageNet, --config.data.path=FOLDER. All four begin from a diffusion model, a run of
:trig_cifar10 or :trig_imagenet64: --config.training.init=runs/trig, and of scd it is the teacher. DDPM++ and ADM, with positional embeddings of the
angle and adaptive double normalization. Theirs of ImageNet is EDM2-S, of 280 M parameters, magnitude-preserving layers, concatenations and weights
that are normalized (2312.02696), which the U-Net of `models` has not: ADM, of 296 M, stands in for it, and its figures are not those of the paper.
"""

import math

from configs import edm, toy

NAMES = ("8gaussians", *(f"{method}_{data}" for data in ("cifar10", "imagenet64") for method in ("sct", "scd", "trig")))


def on_trig(config, sigma_data: float):
    """TrigFlow, and its prediction."""
    config.sde.update(name="Trig", sigma_data=sigma_data)
    config.objective.update(kind="edm", sigma_data=sigma_data, clock="time")
    config.objective.time.update(name="log_normal", mean=-1.0, std=1.4)
    return config


def get_config(name: str = "sct_cifar10"):
    if name not in NAMES:
        raise ValueError(f"configs/scm.py:{name}: expected {', '.join(NAMES)}")
    method, _, data = name.partition("_")
    if name == "8gaussians":
        config = on_trig(toy.get_config(), 1.0)
        config.objective.loss = "scm"
        config.objective.time.mean = -0.3  # of data twice as wide as theirs
        config.objective.scm.adaptive = False  # in few dimensions tangents are small where they are right, and the weight leaves the rest behind
        config.model.update(width=128)
        config.training.update(steps=5000)
        return config
    config = on_trig(edm.get_config("cifar10_uncond" if data == "cifar10" else "imagenet64"), 0.5)
    config.data.augment = 0.0
    config.model.update(augment_dim=0, modulate="double", embedding="positional", embedding_scale=math.pi / 2)  # of the angle
    if method != "trig":
        config.objective.loss = "scm"
        config.objective.scm.step = "data" if method == "sct" else "teacher"
    if method == "scd":
        config.training.init = "teacher"
    config.optim.update(name="radam", learning_rate=1e-4, warmup=0, beta2=0.99)
    config.training.update(batch=512 if data == "cifar10" else 2048, steps=400_000)
    if method != "trig":
        config.objective.scm.warmup = 10_000 / 400_000
    return config
