"""Conditional flow matching on the linear path, on CIFAR-10 and ImageNet; with independent noise, but for :ot.

python -m experiments.train --config=configs/flow_matching.py:tong --workdir=runs/flow_matching
:tong, the I-CFM of Tong et al. 2024 (2302.00482): a U-Net of 36 M parameters, 400,000 steps; FID 3.66 with dopri5 in the paper; one A100, two days.
:ot, their OT-CFM, with noise that is joined with the images of a batch by optimal transport: FID 3.577 with dopri5, 134 evaluations.
:lipman, FM-OT of Lipman et al. 2023 (2210.02747): 256 channels; FID 6.35 with 142 evaluations, 2.99 bits/dim. :lipman_imagenet32 (FID 5.02 with 122,
3.53 bits/dim; four GPUs) and :lipman_imagenet64 (14.45 with 138, 3.31; sixteen), on a folder of ImageNet: --config.data.path=FOLDER.
:rectified, the first rectified flow of Liu et al. 2023 (2209.03003), with DDPM++: FID 2.58 with RK45, 127 evaluations; eight GPUs, days.
:reflow, its 2-rectified flow on pairs that experiments.reflow has drawn of that run (they draw a million): --config.data.path=PAIRS
--config.training.init=runs/rectified; FID 3.36 with RK45, 12.21 by one step, 4.85 distilled into one (--config.objective.time.name=grid).
Not trained here. Unlike theirs, networks see their input scaled to unit variance, and data are dequantized.
"""

from configs import default

NAMES = ("tong", "ot", "lipman", "lipman_imagenet32", "lipman_imagenet64", "rectified", "reflow")


def get_config(name: str = "tong"):
    if name not in NAMES:
        raise ValueError(f"configs/flow_matching.py:{name}: expected {', '.join(NAMES)}")
    config = default.get_config()
    config.data.update(name="cifar10", flip=True)
    config.sde.name = "Linear"
    config.objective.update(kind="velocity", clock="time")
    config.model.update(name="UNet", channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), dropout=0.1, modulate="shift")
    config.optim.update(learning_rate=2e-4, warmup=5000, clip=1.0, ema=0.9999)
    config.training.update(batch=128, steps=400_000, log_every=1000, checkpoint_every=10_000)
    if name in ("rectified", "reflow"):
        config.model.update(blocks=4, dropout=0.15, resample="block_projected", rescale=True, decoder_attention="last", epsilon=1e-6)
        config.model.update(embedding="positional", embedding_scale=1000.0, head_channels=0)
        config.optim.ema = 0.999999
        config.training.steps = 800_000
        if name == "reflow":
            config.data.update(name="pairs", flip=False)
        return config
    config.model.update(embedding="dit", embedding_scale=1.0, head_channels=64)
    if name in ("tong", "ot"):
        config.coupling.name = "ot" if name == "ot" else "independent"
        return config
    config.model.update(channels=256, dropout=0.0, modulate="scale_shift")
    config.optim.update(learning_rate=5e-4, warmup=45_000, schedule="linear")
    config.training.update(batch=256, steps=391_000)
    if name == "lipman_imagenet32":
        config.data.update(name="folder", size=32)
        config.model.update(blocks=3, attention=(16, 8))
        config.optim.update(learning_rate=1e-4, warmup=20_000)
        config.training.update(batch=1024, steps=250_000)
    elif name == "lipman_imagenet64":
        config.data.update(name="folder", size=64)
        config.model.update(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), remat=True)
        config.optim.update(learning_rate=1e-4, warmup=0, schedule="constant")
        config.training.update(batch=2048, steps=157_000)
    return config
