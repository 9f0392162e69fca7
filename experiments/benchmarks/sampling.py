"""What the samplers cost beyond the network: python -m experiments.benchmarks.sampling

ratio = wall time of sample() / (NFE x one jitted call of the network), compile ratio = compile time of sample() / that of the network,
for the digits U-Net at batch 64 and the 3x256 MLP on the plane at batch 4096.
"""

import jax
import jax.numpy as jnp
from absl import flags

from configs import digits, toy
from experiments import cli, data, network
from experiments.benchmarks.timing import medians, report, seconds_of
from samplers import grids, sample, solvers


def measure(config, name: str, batch: int, steps: int, repeats: int) -> list[dict]:
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes)
    params = net.init(jax.random.key(0), dataset.shape)
    den = net.denoiser(params)
    x, t = net.sde.prior_sample(jax.random.key(1), (batch, *dataset.shape)), jnp.full(batch, 0.5)
    call = jax.jit(net)
    times = grids.log_snr(net.sde, steps)
    candidates = {"network": lambda: call(params, x, t)}
    for label, solver in solvers.SOLVERS.items():
        candidates[label] = lambda solver=solver: sample(den, x, times, solver(), jax.random.key(2))
    compile_seconds = {label: seconds_of(fn) for label, fn in candidates.items()}  # with one run
    seconds = medians(candidates, repeats)
    rows = []
    for solver, make in solvers.SOLVERS.items():
        nfe = make()(net.sde, times).nfe
        ratio = seconds[solver] / (nfe * seconds["network"])
        compiling = (compile_seconds[solver] - seconds[solver]) / (compile_seconds["network"] - seconds["network"])
        rows.append({"network": name, "batch": batch, "solver": solver, "NFE": nfe, "ratio": ratio, "compile ratio": compiling})
    return rows


def main():
    quick = flags.FLAGS.quick
    rows = []
    for config, name, batch in ((digits.get_config(), "digits U-Net", 64), (toy.get_config(), "MLP 3x256", 4096)):
        if quick and config.model.name == "UNet":
            config.model.channels = 8
        rows += measure(config, name, 8 if quick else batch, 2 if quick else 20, 1 if quick else 7)
    report(rows, flags.FLAGS.out, "sampling", quick=quick)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmarks", "Where the JSON goes.")
    flags.DEFINE_bool("quick", False, "Tiny sizes, to see that it runs.")
    cli.run(main)
