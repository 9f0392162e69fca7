"""The model that progressive distillation begins from (Salimans & Ho 2022, 2202.00512), on CIFAR-10: the teacher of configs/distill.py:progressive.

python -m experiments.train --config=configs/progressive.py --workdir=runs/cosine
A U-Net of 60 M parameters that predicts the data, on the path of the cosine of the time, without Nichol and Dhariwal's offset; its error is weighted
by SNR + 1 (theirs also by max(SNR, 1), which the students have). Eight TPU v4, a day or more; not trained here.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.update(name="cifar10", flip=True)
    config.sde.name = "Trig"
    config.model.update(name="UNet", channels=256, multipliers=(1, 1, 1), blocks=3, attention=(8, 16), dropout=0.2, head_channels=0)
    config.model.update(embedding="positional", embedding_scale=1000.0, resample="block")
    config.objective.update(kind="data", weighting="v", sigma_data=0.5)
    config.optim.update(learning_rate=2e-4, warmup=1000, weight_decay=0.001, ema=0.9999)
    config.training.update(batch=128, steps=800_000, log_every=1000, checkpoint_every=10_000)
    return config
