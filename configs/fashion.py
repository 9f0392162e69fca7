"""Class-conditional flow matching on Fashion-MNIST: a 1.8 M parameter U-Net on 28x28 images. Needs hours on two CPU cores; meant for a GPU.

python -m experiments.train --config=configs/fashion.py --workdir=runs/fashion
(the IDX files are found in --config.data.path, in the Debian package dataset-fashion-mnist, or downloaded)
:latents is a 2.8 M parameter residual MLP on the 7x7x4 latents of configs/autoencoder.py:fashion, six minutes on two CPU cores, on what
experiments.autoencode has written: --config.data.path=LATENTS.
"""

from configs import default


def get_config(name: str = "pixels"):
    if name not in ("pixels", "latents"):
        raise ValueError(f"configs/fashion.py:{name}: expected pixels or latents")
    config = default.get_config()
    config.sde.name = "Trig"
    config.objective.kind = "velocity"
    config.objective.clock = "log_snr"
    config.objective.label_dropout = 0.1
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    if name == "latents":
        config.data.name = "latents"
        config.model.update(name="ResidualMLP", width=384, depth=4, num_classes=10)
        config.optim.update(warmup=200, beta2=0.99, ema=0.998)
        config.training.update(batch=256, steps=4000, log_every=100, checkpoint_every=500)
        return config
    config.data.name = "fashion_mnist"
    config.model.update(name="UNet", channels=32, multipliers=(1, 2, 2), blocks=2, attention=(7,), dropout=0.1, num_classes=10)
    config.optim.warmup = 1000
    config.optim.beta2 = 0.99
    config.optim.ema = 0.9995
    config.training.batch = 128
    config.training.steps = 50_000
    config.training.checkpoint_every = 2000
    return config
