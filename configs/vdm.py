"""Variational diffusion models (Kingma et al. 2021, 2107.00630): the variational bound, a learned schedule, Fourier features, no downsampling.

python -m experiments.train --config=configs/vdm.py --workdir=runs/vdm
Fashion-MNIST with the paper's CIFAR-10 settings (section C): 32 blocks of 128 channels at full resolution, 35 M parameters; not trained here.
:small is a 0.7 M parameter U-Net on 2x2 patches, seven minutes on two CPU cores, of --table=fashion_bpd.
The loss that is logged is the bound in bits/dim.
"""

from configs import default


def get_config(name: str = "paper"):
    config = default.get_config()
    config.data.name = "fashion_mnist"
    config.sde.name = "Trig"
    config.model.update(name="UNet", channels=128, multipliers=(1,), blocks=32, attention=(), dropout=0.1, frequencies=(128.0, 256.0))
    config.objective.loss = "variational"
    config.objective.kind = "noise"
    config.objective.clock = "log_snr"
    config.objective.time.update(high=6.65, low=-2.5)  # gamma from -13.3 to 5
    config.optim.update(learning_rate=2e-4, warmup=100, beta2=0.99, weight_decay=0.01, ema=0.9999)
    config.training.update(batch=1024, steps=10_000_000, log_every=1000, checkpoint_every=10_000)
    if name == "small":
        config.model.update(channels=32, multipliers=(1, 2), blocks=1, dropout=0.0, patch=2)
        config.objective.kind = "v"
        config.objective.time.low = -5.0
        config.optim.update(learning_rate=3e-3, schedule="cosine", ema=0.99)
        config.training.update(batch=64, steps=800, log_every=50, checkpoint_every=200)
    elif name != "paper":
        raise ValueError(f"configs/vdm.py:{name}: expected paper or small")
    return config
