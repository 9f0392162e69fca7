"""Variational diffusion models (Kingma et al. 2021, 2107.00630): the variational bound, a learned schedule, Fourier features, no downsampling.

python -m experiments.train --config=configs/vdm.py --workdir=runs/vdm_paper
:cifar10 (2.65 bits/dim in the paper; theirs is 2.637) has 32 blocks of 128 channels at full resolution, 31 M parameters; :imagenet32 (3.72) 256
channels and :imagenet64 (3.40) 64 blocks of them, on a folder of ImageNet: --config.data.path=FOLDER; and alone it is :cifar10's on Fashion-MNIST.
Eight TPU v3 chips or more, weeks; not trained here. Unlike theirs the schedule is a monotone network (their scalar one has ends only), the middle has
no attention, the network does not add its input, and gradients are clipped.
:small is a 0.7 M parameter U-Net on 2x2 patches of Fashion-MNIST, seven minutes on two CPU cores, of --table=fashion_bpd; :digits the network of
configs/digits.py, five minutes. The loss that is logged is the bound in bits/dim.
"""

from configs import default, digits

FULL = {
    "paper": (128, 32, {}),
    "cifar10": (128, 32, {"name": "cifar10"}),
    "imagenet32": (256, 32, {"name": "folder", "size": 32}),
    "imagenet64": (256, 64, {"name": "folder", "size": 64}),
}


def get_config(name: str = "paper"):
    config = digits.get_config() if name == "digits" else default.get_config()
    config.sde.name = "Trig"
    config.objective.loss = "variational"
    config.objective.kind = "v"
    config.objective.clock = "log_snr"
    config.model.frequencies = (128.0, 256.0)  # half a period and one period a bin, as x is in [-1, 1)
    config.objective.time.update(high=6.65, low=-5.0)
    if name == "digits":
        config.model.frequencies = (8.5, 17.0)
        config.objective.time.high = 4.0  # wider bins
        return config
    config.data.name = "fashion_mnist"
    config.optim.update(warmup=100, beta2=0.99, weight_decay=0.01)
    if name == "small":
        config.model.update(name="UNet", channels=32, multipliers=(1, 2), blocks=1, patch=2)
        config.optim.update(learning_rate=3e-3, schedule="cosine", ema=0.99)
        config.training.update(batch=64, steps=800, log_every=50, checkpoint_every=200)
    elif name in FULL:
        channels, blocks, data = FULL[name]
        config.data.update(**data)
        config.model.update(name="UNet", channels=channels, multipliers=(1,), blocks=blocks, attention=(), dropout=0.1, remat=blocks > 32)
        config.model.update(modulate="shift", embedding="positional", embedding_scale=2000.0)  # of half the range of times
        config.objective.kind = "noise"
        config.objective.time.low = -2.5  # gamma = -2 log-SNR from -13.3 to 5
        config.optim.update(learning_rate=2e-4, ema=0.9999)
        config.training.update(batch=128, steps=10_000_000, log_every=1000, checkpoint_every=10_000)
    else:
        raise ValueError(f"configs/vdm.py:{name}: expected {', '.join(FULL)}, small or digits")
    return config
