"""Models of few steps, of a trained teacher or of its pairs.

python -m experiments.distill --teacher_workdir=runs/dit_xl --config=configs/distill.py:perflow --workdir=runs/perflow
Of configs/dit.py on latents of ImageNet 256, --config.data.path=LATENTS, in the place of text to image: :perflow (Yan et al. 2024, 2405.07510; four
windows with eight DDIM steps of the teacher in each, in the epsilon form), LCM, :lcm (Luo et al. 2023, 2310.04378; told its guidance, 6 to 16, theirs
5 to 15 and one), as an adapter :lcm_lora (2311.05556; of guidance 7.5, --config.lora.base=runs/dit_xl), :tcd (Zheng et al. 2024, 2402.19159) and :pcm
(Wang et al. 2024, 2405.18407, with its adversary), all on 50 equal steps in time. Of configs/sit.py likewise :add (Sauer et al. 2023, 2311.17042; one
to four steps; on features of the teacher, as LADD, 2403.12015). Of configs/edm.py on CIFAR-10: :cd (Song et al. 2023, 2303.01469; of
:cifar10_uncond_ncsnpp; FID by one evaluation 3.55, by two 2.93 in the paper, with LPIPS in the place of l2) and :ctm (Kim et al. 2024, 2310.02279; of
:cifar10; 1.73 by one, with a GAN on features of classifiers, here on the teacher's) and :ctm_imagenet64 (of :imagenet64;
1.92); :cd_imagenet64 of its :imagenet64 (6.20, 4.70); :scd (Lu & Song
2025, 2410.11081; of configs/consistency.py:trig; 3.66, 2.52) and :scd_imagenet64 of its :trig_imagenet64; :progressive (Salimans & Ho 2022,
2202.00512; of configs/progressive.py; from 8192 steps to 1 in 13 rounds; 9.12, 4.51, 3.00, 2.57 by 1, 2, 4, 8).
python -m experiments.train --config=configs/distill.py:instaflow --config.data.path=PAIRS --config.training.init=runs/two --workdir=runs/instaflow
:instaflow (Liu et al. 2024, 2309.06380), one step on the linear path by regression on pairs that experiments.reflow has drawn of a 2-rectified flow
(configs/sit.py, trained on pairs of a model of any path), without LPIPS, which their last stage has.
Not trained here, but for the small ones: those of _digits are of a run of configs/digits.py (of lcm with --config.model.num_classes=10
--config.objective.label_dropout=0.1), those of _8gaussians of configs/edm.py:8gaussians, but for those of perflow, progressive and add, of
configs/toy.py:8gaussians, and of scd, of configs/consistency.py:trig_8gaussians and :trig_digits. The optimization of :perflow and :instaflow is that
of the teacher's config, as the papers' data are others.
"""

from configs import consistency, digits, dit, edm, edm2, progressive, sit, toy

CONSISTENCY = {
    "cd": {"step": "heun", "count": 18},
    "ctm": {"step": "heun", "count": 18, "chain": 17, "to": "random", "through": True, "target": 0.999, "regression": 1.0},
    "lcm": {"step": "ddim", "grid": "uniform", "count": 51, "metric": "huber", "constant": 0.001, "target": 0.95, "omega": (6.0, 16.0)},
    "tcd": {"step": "ddim", "grid": "uniform", "count": 51, "to": "random", "target": 0.95},
    "pcm": {"step": "ddim", "grid": "uniform", "count": 51, "to": "phase", "phases": 2, "metric": "huber", "constant": 0.001, "target": 0.95},
}
METHODS = dict(perflow=dit, instaflow=sit, cd=edm, ctm=edm, lcm=dit, tcd=dit, pcm=dit, scd=edm, progressive=progressive, add=sit)
SMALL = {"digits": tuple(METHODS), "8gaussians": ("perflow", "scd", "progressive", "cd", "ctm", "tcd", "pcm", "add")}
NAMES = (*METHODS, "cd_imagenet64", "ctm_imagenet64", "scd_imagenet64", "lcm_lora", "lcm_lora_digits")
NAMES += tuple(f"{method}_{data}" for data, methods in SMALL.items() for method in methods)


def get_config(name: str = "perflow"):
    if name not in NAMES:
        raise ValueError(f"configs/distill.py:{name}: expected {', '.join(NAMES)}")
    method, _, data = name.replace("lcm_lora", "lcm").partition("_")
    if data == "8gaussians":
        config = toy.get_config() if method in ("perflow", "progressive", "add") else edm.get_config("8gaussians")
        config.training.steps = 5000
    elif data == "digits":
        config = digits.get_config()
        config.optim.learning_rate = 1.5e-4 if method == "scd" else 2e-3  # at which sCD's are noisy: FD-clf by four steps 8.5, of 1.5e-4 1.2
        config.training.steps = 700
    else:
        of = {
            "cd": "cifar10_uncond_ncsnpp",
            "scd": "cifar10_uncond",
            "ctm": "cifar10",
            "cd_imagenet64": "imagenet64",
            "ctm_imagenet64": "imagenet64",
        }
        config = edm2.get_config("imagenet64_s") if name == "scd_imagenet64" else METHODS[method].get_config(*([of[name]] if name in of else []))
    if method == "instaflow":
        config.data.name = "pairs"
        config.objective.time.update(name="grid", count=1)
    else:
        config.training.init = "teacher"
    if method == "perflow":
        config.objective.loss = "perflow"
        config.objective.perflow.update(windows=4, steps=8)
        config.model.second_time = True
    elif method in CONSISTENCY:
        config.objective.loss = "consistency"
        config.objective.consistency.update(CONSISTENCY[method])
        config.objective.time.name = "uniform" if CONSISTENCY[method].get("grid") == "uniform" else "karras"
        config.model.second_time = method not in ("cd", "lcm")
        if name == "cd_digits":
            config.objective.consistency.target = 0.95  # as of ImageNet; at 0 FD-clf by one step is 7.7, with it 2.1
        if name == "ctm_digits":
            config.objective.consistency.chain = 2  # whose steps are most of the cost
            config.training.steps = 500  # as long as others' 700
        if data == "8gaussians":  # on whose path equal steps in time are none near the data
            config.objective.consistency.grid = config.objective.time.name = "karras"
    if method == "progressive":
        config.objective.loss = "progressive"
        config.objective.progressive.update(start=4 if data == "digits" else 8, steps=1)
        if data:
            config.training.steps //= 2  # each of the rounds
            config.optim.ema = 0.99  # which are short
    elif method == "add":
        config.objective.loss = "add"
        config.objective.adversarial.weight = 1.0
        config.objective.time.update(name="grid", count=4)
        if data == "digits":  # at the others' rate and beta1 its adversary leads nowhere: FD-clf by one step 131, or 220, with these 13
            config.optim.update(learning_rate=5e-4, beta1=0.5)
            config.training.steps = 600  # which take three minutes
    elif method == "scd":
        consistency.continuous(config, 0.5 if data in ("", "imagenet64") else 1.0)
        config.objective.scm.step = "teacher"
    if name in ("pcm", "ctm", "ctm_imagenet64"):
        config.objective.adversarial.update(weight=0.1, real="target" if name == "pcm" else "data")
    if method == "lcm":
        config.model.told_omega = True
        config.objective.label_dropout = 0.0  # the teacher alone is asked without a label
        if data:
            config.model.num_classes = 10
            # to huber the step at the data, which all others hang on, is one of 50, however wrong: small networks lose it
            config.objective.consistency.update(omega=(1.0, 4.0), metric="l2")
    if name.startswith("lcm_lora"):  # of one guidance, of which it is not told; the adapter begins where the teacher is
        config.model.told_omega = False
        config.objective.consistency.omega = (0.0, 0.0)
        if not data:
            config.objective.consistency.target = 0.0
        config.teacher.guidance = 7.5 if name == "lcm_lora" else 2.0
        config.training.init = ""
        config.lora.update(rank=64 if name == "lcm_lora" else 8, alpha=64.0 if name == "lcm_lora" else 8.0)
    if name in ("perflow", "instaflow"):
        config.training.steps = 100_000
    elif name in ("tcd", "pcm", "lcm", "lcm_lora"):
        config.optim.update(learning_rate=1e-4 if name == "lcm_lora" else 8e-6, warmup=0)  # of an adapter as in diffusers
        config.training.update(batch=72, steps=100_000)
    elif name == "add":
        config.optim.learning_rate = 1e-5
        config.training.update(batch=128, steps=20_000)
    elif name == "progressive":
        config.objective.weighting = "own"
        config.objective.progressive.start = 4096
        config.model.dropout = 0.0
        config.optim.update(learning_rate=5e-5, schedule="linear", warmup=0, weight_decay=0.0, ema=0.0)
        config.training.steps = 50_000
    elif name == "scd_imagenet64":
        consistency.of_continuous(config, "imagenet64")
    elif name in ("cd", "ctm", "scd", "cd_imagenet64", "ctm_imagenet64"):
        config.data.augment = 0.0
        config.model.dropout = 0.0
        config.optim.update(name="radam", learning_rate=4e-4, warmup=0, ema=0.9999)
        config.training.update(batch=512, steps=800_000)
        if name == "cd_imagenet64":
            config.objective.consistency.update(count=40, target=0.95)
            config.optim.update(learning_rate=8e-6, ema=0.99994)
            config.training.update(batch=2048, steps=600_000)
        elif name == "ctm_imagenet64":
            config.objective.consistency.update(count=40, chain=20)
            config.optim.update(learning_rate=8e-6, ema=0.999)
            config.training.update(batch=2048, steps=30_000)
        else:
            config.model.augment_dim = 0
        if name == "scd":
            consistency.of_continuous(config, "")
        elif name == "ctm":
            config.optim.ema = 0.999
            config.training.update(batch=256, steps=100_000)
    return config
