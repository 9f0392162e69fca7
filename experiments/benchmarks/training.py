"""What a training step costs beyond its gradient: python -m experiments.benchmarks.training

ratio = wall time of a full step (batch from grain, dequantization, noise, loss, clipping, EMA, pmap) / wall time of a bare jitted
value_and_grad and Adam of the same network on a fixed batch.
"""

import jax
import jax.numpy as jnp
import optax
from absl import flags

from configs import digits, toy
from experiments import cli, data, network, parallel, state
from experiments.benchmarks.timing import medians, report


def measure(config, name: str, inner: int, repeats: int) -> dict:
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes)
    holder = {"full": state.init(config, net, dataset.shape)}
    full_step = parallel.parallel_step(state.make_step(config, net, dataset))
    stream = data.batches(dataset, config.training.batch, 0)

    params, adam = net.init(jax.random.key(0), dataset.shape), optax.adam(1e-4)
    holder["bare"] = (params, adam.init(params))
    x = jax.random.normal(jax.random.key(1), (config.training.batch, *dataset.shape))
    t, example = jnp.full(config.training.batch, 0.5), jnp.arange(config.training.batch, dtype=jnp.uint32)

    @jax.jit(donate_argnums=0)
    def bare_step(carry, x, key):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((net(p, x, t, None, example, key) - x) ** 2))(params)
        updates, opt_state = adam.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    def full():
        for _ in range(inner):
            holder["full"], metrics = full_step(holder["full"], next(stream))
        return metrics

    def bare():
        for _ in range(inner):
            holder["bare"], loss = bare_step(holder["bare"], x, jax.random.key(2))
        return loss

    bare(), full()  # compile
    seconds = medians({"bare": bare, "full": full}, repeats)
    return {
        "network": name, "batch": config.training.batch, "bare ms": 1e3 * seconds["bare"] / inner, "full ms": 1e3 * seconds["full"] / inner,
        "ratio": seconds["full"] / seconds["bare"],
    }  # fmt: skip


def main():
    quick = flags.FLAGS.quick
    cases = ((digits.get_config(), "digits U-Net", 10), (toy.get_config(), "MLP 3x256", 100))
    if quick:
        cases[0][0].model.channels = 8
    rows = [measure(config, name, *((1, 1) if quick else (inner, 15))) for config, name, inner in cases]
    report(rows, flags.FLAGS.out, "training")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmarks", "Where the JSON goes.")
    flags.DEFINE_bool("quick", False, "One repetition, to see that it runs.")
    cli.run(main)
