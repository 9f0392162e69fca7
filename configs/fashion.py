"""Class-conditional flow matching on Fashion-MNIST, 28 x 28 in full: a U-Net on 2 x 2 patches, for classifier-free guidance.

python -m experiments.train --config=configs/fashion.py --workdir=runs/fashion
(the IDX files are found in --config.data.path, in the Debian package dataset-fashion-mnist, or downloaded)
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "fashion_mnist"
    config.sde.name = "Trig"
    config.model.update(name="UNet", channels=48, multipliers=(1, 2), blocks=1, attention=(7,), patch=2, num_classes=10)
    config.objective.update(kind="velocity", clock="log_snr", label_dropout=0.1)
    config.objective.time.name = "logit_normal"
    config.optim.update(learning_rate=2e-3, schedule="cosine", warmup=300, beta2=0.99, ema=0.999)
    config.training.update(batch=32, steps=8000, log_every=100, checkpoint_every=1000)
    return config
