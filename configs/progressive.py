"""Progressive distillation (Salimans & Ho 2022, 2202.00512): a student of half its teacher's steps, again and again.

python -m experiments.train --config=configs/progressive.py:teacher --workdir=runs/cosine
python -m experiments.distill --teacher_workdir=runs/cosine --config=configs/progressive.py:cifar10 --workdir=runs/progressive
python -m experiments.sample --workdir=runs/progressive/steps_4 --solver=ddim --grid=few --steps=4 --num=100
:cifar10 begins with the student of 4096 steps, taught by 8192 of :teacher's, and ends with that of one: FID 9.12, 4.51, 3.00 and 2.57 in 1, 2, 4 and
8 steps in the paper; 13 rounds of 50,000 updates, the last two of 100,000, a day of eight TPU v4. Not trained here. :digits of a run of
configs/digits.py and :8gaussians of configs/toy.py:8gaussians, from 16 steps to one, are minutes on two CPU cores.
"""

from configs import default, digits, toy

NAMES = ("cifar10", "teacher", "digits", "8gaussians")


def get_config(name: str = "cifar10"):
    if name not in NAMES:
        raise ValueError(f"configs/progressive.py:{name}: expected {', '.join(NAMES)}")
    config = {"digits": digits.get_config, "8gaussians": lambda: toy.get_config("8gaussians")}.get(name, default.get_config)()
    config.objective.weighting = "truncated_snr"
    if name in ("cifar10", "teacher"):
        config.data.update(name="cifar10", flip=True)
        config.sde.name = "Trig"  # theirs is the cosine of angles, without Nichol and Dhariwal's offset
        config.model.update(name="UNet", channels=256, multipliers=(1, 1, 1), blocks=3, attention=(8, 16), dropout=0.2, head_channels=0)
        config.model.update(embedding="positional", embedding_scale=1000.0, resample="block")
        config.objective.update(kind="data", sigma_data=0.5)
        config.optim.update(learning_rate=2e-4, warmup=1000, weight_decay=0.001, ema=0.9999)
        config.training.update(batch=128, steps=800_000, log_every=1000, checkpoint_every=10_000)
    if name == "teacher":
        return config
    config.objective.loss = "progressive"
    config.objective.time.update(name="grid", count=1)
    config.objective.progressive.update(first=4096 if name == "cifar10" else 16, longer=2)
    config.training.init = "teacher"
    config.optim.update(schedule="linear", warmup=0)
    if name == "cifar10":
        config.model.dropout = 0.0
        config.optim.update(learning_rate=5e-5, weight_decay=0.0, ema=0.0)
        config.training.steps = 50_000
    else:
        config.optim.ema = 0.99
        config.training.update(steps=300 if name == "digits" else 700, checkpoint_every=1000)
    return config
