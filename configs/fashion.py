"""Class-conditional flow matching on Fashion-MNIST: a 1.8 M parameter U-Net on 28x28 images. Needs hours on two CPU cores; meant for a GPU.

python -m experiments.train --config=configs/fashion.py --workdir=runs/fashion
(the IDX files are found in --config.data.path, in the Debian package dataset-fashion-mnist, or downloaded)
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "fashion_mnist"
    config.sde.name = "Trig"
    config.model.update(name="UNet", channels=32, multipliers=(1, 2, 2), blocks=2, attention=(7,), dropout=0.1, num_classes=10)
    config.objective.kind = "velocity"
    config.objective.clock = "log_snr"
    config.objective.label_dropout = 0.1
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup = 1000
    config.optim.beta2 = 0.99
    config.optim.ema = 0.9995
    config.training.batch = 128
    config.training.steps = 50_000
    config.training.checkpoint_every = 2000
    return config
