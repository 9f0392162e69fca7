"""Noise-conditional classifiers for classifier guidance (Dhariwal & Nichol 2021, 2105.05233): experiments.sample --classifier=WORKDIR.

python -m experiments.train --config=configs/classifier.py:digits --workdir=runs/digits_classifier
:digits, on the path of configs/digits.py.
:fashion, on that of configs/fashion.py. Not trained here.
:imagenet64, theirs of 64x64 (appendix H and their released flags: width 128, depth 4, attention at 32, 16 and 8, 300,000 steps of 256 images) on a
folder of images, --config.data.path=FOLDER, with a path of ours in the place of their cosine schedule. Not trained here.
"""

from configs import default


def get_config(name: str = "digits"):
    config = default.get_config()
    config.sde.name = "Trig"
    config.objective.update(loss="classifier", clock="log_snr")
    config.model.name = "NoisyClassifier"
    if name == "digits":
        config.data.name = "digits"
        config.model.update(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.1, num_classes=10)
        config.optim.update(learning_rate=2e-3, schedule="cosine", warmup=100, beta2=0.99, weight_decay=0.05, ema=0.998)
        config.training.update(batch=64, steps=2000, log_every=100, checkpoint_every=500)
    elif name == "fashion":
        config.data.name = "fashion_mnist"
        config.model.update(channels=48, multipliers=(1, 2), blocks=1, attention=(7,), dropout=0.1, patch=2, num_classes=10)
        config.optim.update(learning_rate=2e-3, schedule="cosine", warmup=300, beta2=0.99, weight_decay=0.05, ema=0.999)
        config.training.update(batch=64, steps=4000, log_every=100, checkpoint_every=1000)
    elif name == "imagenet64":
        config.data.update(name="folder", size=64, flip=True)
        config.sde.name = "Cosine"
        config.model.update(channels=128, multipliers=(1, 2, 3, 4), blocks=4, attention=(32, 16, 8), num_classes=1000)
        config.model.update(embedding="dit", embedding_scale=1000.0)
        config.objective.clock = "time"
        config.optim.update(learning_rate=3e-4, schedule="linear", warmup=0, weight_decay=0.05, ema=0.9999, clip=1e9)
        config.training.update(batch=256, steps=300_000, log_every=100, checkpoint_every=10_000)
    else:
        raise ValueError(f"configs/classifier.py:{name}: expected digits, fashion or imagenet64")
    return config
