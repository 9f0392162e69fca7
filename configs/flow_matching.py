"""Conditional flow matching on CIFAR-10 with independent coupling, on the linear path.

python -m experiments.train --config=configs/flow_matching.py:tong --workdir=runs/flow_matching
:tong, the I-CFM of Tong et al. 2024 (2302.00482): a U-Net of 36 M parameters, 400,000 steps; FID 3.66 with dopri5 in the paper; one A100, two days.
:lipman, FM-OT of Lipman et al. 2023 (2210.02747): 256 channels; FID 6.35 with 142 evaluations, 2.99 bits/dim; theirs has a polynomial decay of the
learning rate. Not trained here. Unlike theirs, networks see their input scaled to unit variance, and data are dequantized.
"""

from configs import default


def get_config(name: str = "tong"):
    config = default.get_config()
    config.data.update(name="cifar10", flip=True)
    config.sde.name = "Linear"
    config.model.update(name="UNet", channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), dropout=0.1)
    config.model.update(embedding="dit", embedding_scale=1.0, modulate="shift", head_channels=64)
    config.objective.update(kind="velocity", clock="time")
    config.optim.update(learning_rate=2e-4, warmup=5000, clip=1.0, ema=0.9999)
    config.training.update(batch=128, steps=400_000, log_every=1000, checkpoint_every=10_000)
    if name == "lipman":
        config.model.update(channels=256, dropout=0.0, modulate="scale_shift")
        config.optim.update(learning_rate=5e-4, warmup=45_000)
        config.training.update(batch=256, steps=391_000)
    elif name != "tong":
        raise ValueError(f"configs/flow_matching.py:{name}: expected tong or lipman")
    return config
