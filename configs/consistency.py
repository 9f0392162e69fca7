"""Consistency models, trained without a teacher: CT (Song et al. 2023, 2303.01469), iCT (Song & Dhariwal 2024, 2310.14189), ECT (2406.14548),
sCT (Lu & Song 2025, 2410.11081).

python -m experiments.train --config=configs/consistency.py:ict_8gaussians --workdir=runs/ict
python -m experiments.sample --workdir=runs/ict --solver=jumps --steps=1 --num=1000
:ct, :ict, :ect, :sct of CIFAR-10 (FID by one evaluation 8.70, 2.83, 3.60, 2.85 in the papers; by two 5.83, 2.46, 2.11, 2.06), :ict_imagenet64 (4.02;
3.20), :ect_imagenet64 (5.51; 3.18) and :sct_imagenet64 of a folder of ImageNet: --config.data.path=FOLDER. NCSN++ of 56 M parameters, of EDM's depth;
of ImageNet ADM of 296 M (ict), and EDM2-S of 280 M (ect, sct). :ect begins from a diffusion model, a run of configs/edm.py:cifar10_uncond
(configs/edm2.py:imagenet64_s): --config.training.init=runs/edm, and so does :sct, from a run of :trig, of the same on TrigFlow (:trig_imagenet64),
which teaches sCD (configs/distill.py). Not trained here; without LPIPS, which CT has in the place of l2. sCM's networks are told the angle, and are
modulated by double normalization. Those of 8 gaussians are minutes on two CPU cores: :ct_8gaussians,
:ict_8gaussians, :ect_8gaussians (from configs/edm.py:8gaussians), :sct_8gaussians; those of _digits begin from a run of configs/digits.py,
--config.training.init=runs/digits, and sct_digits from one of :trig_digits.
"""

import numpy as np

from configs import digits, edm, edm2

TIMES = {
    "ct": {"times": "ct", "start": 2, "end": 150, "target": 0.9},
    "ict": {"times": "ict", "start": 10, "end": 1280, "metric": "huber", "constant": 0.00054, "weight": "gap"},
    "ect": {"times": "ect", "stages": 8, "shrink": 2.0, "metric": "huber", "constant": 0.0, "weight": "gap"},
}
NAMES = (*TIMES, "sct", "trig", *(f"{name}_imagenet64" for name in ("ict", "ect", "sct", "trig")))
NAMES += tuple(f"{name}_{data}" for data in ("8gaussians", "digits") for name in (*TIMES, "sct", "trig"))


def continuous(config, sigma_data: float):
    """The config of sCM, on TrigFlow."""
    config.sde.update(name="Trig", sigma_data=sigma_data)
    config.objective.update(loss="scm", kind="edm", clock="time", sigma_data=sigma_data)  # log-SNR is too steep a clock at the ends
    if config.model.name != "MLP":  # in few dimensions tangents are small where they are right, and w leaves the others behind
        config.objective.adaptive = True
        config.model.update(modulate="double", embedding="positional", embedding_scale=float(np.pi / 2), dtype="float32")  # of the angle
    config.objective.time.update(name="log_normal", mean=float(np.log(2 * sigma_data)) - 1, std=1.4)  # published of data of standard deviation 0.5
    return config


def of_continuous(config, data: str) -> None:
    """The optimization of sCT and sCD at full scale."""
    config.optim.update(learning_rate=1e-4, beta2=0.99)
    if data:
        config.objective.time.std = 1.6
        config.optim.update(epsilon=1e-11, ema_std=0.05)
    else:
        config.optim.ema = 0.99929
    config.training.update(batch=2048 if data else 512, steps=400_000)


def get_config(name: str = "ict"):
    if name not in NAMES:
        raise ValueError(f"configs/consistency.py:{name}: expected {', '.join(NAMES)}")
    method, _, data = name.partition("_")
    small = data in ("8gaussians", "digits")
    if data == "8gaussians":
        config = edm.get_config("8gaussians")
    elif data == "digits":
        config = digits.get_config()
        # at 2e-3 those whose target is of the same parameters end at noisy digits (FD-clf by four steps: ECT 12, of 2e-4 2.0)
        config.optim.learning_rate = {"ict": 2e-4, "ect": 2e-4, "sct": 5e-4}.get(method, 2e-3)
        config.training.steps = 4000 if method == "trig" else 700
    elif data and method != "ict":
        config = edm2.get_config("imagenet64_s")
    else:
        config = edm.get_config("imagenet64" if data else "cifar10_uncond_ncsnpp" if method in ("ct", "ict") else "cifar10_uncond")
        if method != "trig":
            config.data.augment = 0.0
            if not data:
                config.model.augment_dim = 0
            config.optim.update(name="radam", learning_rate=4e-4 if method == "ct" else 1e-4, warmup=0)
    if method in ("sct", "trig"):
        continuous(config, 1.0 if small else 0.5)
    if method == "sct":
        if not small:
            of_continuous(config, data)
            config.model.update(dropout=0.45, dropout_height=16) if data else config.model.update(dropout=0.2)
        return config
    if method == "trig":
        config.objective.update(loss="regression", adaptive=not small)
        mean, std = (-0.5, 1.2) if small else (-0.8, 1.6) if data else (-1.2, 1.2)
        config.objective.time.update(mean=mean, std=std)
        if not small:
            config.training.steps = 1_048_000 if data else 400_000
        if data == "imagenet64":
            config.optim.epsilon = 1e-11
        return config
    config.objective.loss = "consistency"
    config.objective.consistency.update(TIMES[method])
    if method == "ct":
        config.objective.time.name = "karras"
    else:
        config.objective.time.update(name="log_normal", mean=-0.4 if small else -1.1, std=2.0)  # of data twice as wide
    if method == "ct" and small:
        config.objective.consistency.end = 20 if data == "digits" else 40  # in so few steps theta^- does not follow N up to 150
    elif name == "ct":
        config.model.dropout = 0.0
        config.optim.ema = 0.9999
        config.training.update(batch=512, steps=800_000)
    elif name == "ict":
        config.model.update(dropout=0.3, embedding_scale=0.02)
        config.optim.ema = 0.99993
        config.training.update(batch=1024, steps=400_000)
    elif name == "ect":
        config.data.flip = True
        config.model.dropout = 0.2
        config.optim.ema = 0.9999
        config.training.update(batch=128, steps=400_000)
    elif name == "ect_imagenet64":
        config.objective.adaptive = False
        config.objective.consistency.update(stages=4, shrink=4.0, constant=0.00054, weight="edm")
        config.objective.time.update(mean=-0.8, std=1.6)
        config.model.update(dropout=0.4, dropout_height=16, dtype="float32")
        config.optim.update(learning_rate=1e-3, warmup=0, decay=2000, ema=0.9999, ema_std=0.0)
        config.training.update(batch=128, steps=100_000)
    elif name == "ict_imagenet64":
        config.model.dropout = 0.2
        config.optim.ema = 0.99997
        config.training.update(batch=4096, steps=800_000)
    return config
