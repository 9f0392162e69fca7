"""Class-conditional flow matching on Fashion-MNIST, 28 x 28 in full: a U-Net on 2 x 2 patches, for classifier-free guidance.

python -m experiments.train --config=configs/fashion.py --workdir=runs/fashion
(the IDX files are found in --config.data.path, in the Debian package dataset-fashion-mnist, or downloaded)
1.7 M parameters, forty minutes on two CPU cores (3.5 steps a second).
:latents is a 2.8 M parameter residual MLP on the 7x7x4 latents of configs/autoencoder.py:fashion, six minutes on two CPU cores, on what
experiments.autoencode has written: --config.data.path=LATENTS.
"""

from configs import default


def get_config(name: str = "pixels"):
    if name not in ("pixels", "latents"):
        raise ValueError(f"configs/fashion.py:{name}: expected pixels or latents")
    config = default.get_config()
    config.sde.name = "Trig"
    config.objective.update(kind="velocity", clock="log_snr", label_dropout=0.1)
    if name == "latents":
        config.data.name = "latents"
        config.model.update(name="ResidualMLP", width=384, depth=4, num_classes=10)
        config.optim.update(learning_rate=1e-3, schedule="cosine", warmup=200, beta2=0.99, ema=0.998)
        config.training.update(batch=256, steps=4000, log_every=100, checkpoint_every=500)
        return config
    config.data.name = "fashion_mnist"
    config.model.update(name="UNet", channels=48, multipliers=(1, 2), blocks=1, attention=(7,), patch=2, num_classes=10)
    config.objective.time.name = "logit_normal"
    config.optim.update(learning_rate=2e-3, schedule="cosine", warmup=300, beta2=0.99, ema=0.999)
    config.training.update(batch=32, steps=8000, log_every=100, checkpoint_every=1000)
    return config
