"""Variational diffusion models (Kingma et al. 2021, 2107.00630): the variational bound, a learned schedule, Fourier features, no downsampling.

python -m experiments.train --config=configs/vdm.py --workdir=runs/vdm_paper
Fashion-MNIST with the authors' CIFAR-10 settings: 32 blocks of 128 channels at full resolution, 35 M parameters; not trained here. Unlike theirs the
schedule is a monotone network (their scalar one has ends only), and gradients are clipped.
:small is a 0.7 M parameter U-Net on 2x2 patches of Fashion-MNIST, seven minutes on two CPU cores, of --table=fashion_bpd; :digits the network of
configs/digits.py, five minutes. The loss that is logged is the bound in bits/dim.
"""

from configs import default, digits


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
    elif name == "paper":
        config.model.update(name="UNet", channels=128, multipliers=(1,), blocks=32, attention=(), dropout=0.1)
        config.objective.kind = "noise"
        config.objective.time.low = -2.5  # gamma = -2 log-SNR from -13.3 to 5
        config.optim.update(learning_rate=2e-4, ema=0.9999)
        config.training.update(batch=128, steps=10_000_000, log_every=1000, checkpoint_every=10_000)
    else:
        raise ValueError(f"configs/vdm.py:{name}: expected paper, small or digits")
    return config
