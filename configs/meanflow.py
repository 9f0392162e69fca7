"""MeanFlow (Geng et al. 2025, 2505.13447): one jump from noise to data, trained without a teacher; on the linear path.

python -m experiments.train --config=configs/meanflow.py:digits --workdir=runs/meanflow
python -m experiments.sample --workdir=runs/meanflow --solver=jumps --steps=1 --num=100
:digits, conditional on the class, and :8gaussians are small: minutes on two CPU cores. Not trained here: :b4 and :xl2, DiT on latents of ImageNet
256 x 256 that experiments.autoencode has written (131 and 676 M parameters; FID in one evaluation 11.4, of the released weights, and 3.43, after 240
epochs; TPUs, days to weeks), guided in training to omega/(1 - kappa) = 2 and 2.5; :cifar10, the U-Net of DDPM++, FID 2.92 after 800,000 steps.
Unlike theirs, networks see their input scaled to unit variance.
"""

from configs import default, sit

NAMES = ("digits", "8gaussians", "b4", "xl2", "cifar10")


def get_config(name: str = "digits"):
    if name not in NAMES:
        raise ValueError(f"configs/meanflow.py:{name}: expected {', '.join(NAMES)}")
    config = sit.get_config({"b4": "b", "xl2": "xl"}[name]) if name in ("b4", "xl2") else default.get_config()
    config.sde.name = "Linear"
    config.model.second_time = True
    config.objective.update(loss="meanflow", kind="velocity", clock="time")
    config.objective.time.update(name="logit_normal", mean=-0.4, std=1.0)
    if name in ("b4", "xl2"):
        config.optim.update(beta2=0.95)
        config.training.update(steps=1_200_000)  # 240 epochs
        if name == "b4":
            config.model.patch = 4
            config.objective.meanflow.update(omega=1.0, kappa=0.5)
        else:
            config.objective.meanflow.update(omega=0.2, kappa=0.92, until=0.75)
    elif name == "cifar10":
        config.data.update(name="cifar10", flip=True)
        config.model.update(name="UNet", channels=128, multipliers=(2, 2, 2), blocks=4, attention=(16,), dropout=0.2, modulate="shift")
        config.model.update(resample="block_projected", rescale=True, decoder_attention="last", epsilon=1e-6, head_channels=0)
        config.model.update(embedding="positional", embedding_scale=1.0)
        config.objective.time.update(mean=-2.0, std=2.0)
        config.objective.meanflow.update(apart=0.75, power=0.75, constant=1e-3)
        config.optim.update(learning_rate=6e-4, warmup=10_000, ema=0.99995, clip=1e9)  # no clip
        config.training.update(batch=1024, steps=800_000, log_every=1000, checkpoint_every=10_000)
    elif name == "digits":
        config.data.name = "digits"
        config.model.update(name="UNet", channels=32, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=10, embedding_scale=10.0)
        config.objective.label_dropout = 0.1
        config.objective.meanflow.apart = 0.5
        config.optim.update(learning_rate=2e-3, schedule="cosine", warmup=200, beta2=0.99, ema=0.998)
        config.training.update(batch=64, steps=4000, log_every=100, checkpoint_every=1000)
    else:
        config.data.name = "8gaussians"
        config.model.update(name="MLP", width=128, depth=3)
        config.objective.meanflow.apart = 0.5
        config.optim.update(schedule="cosine")
        config.training.update(batch=512, steps=5000, log_every=500, checkpoint_every=5000)
    return config
