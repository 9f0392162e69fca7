"""What a training step costs beyond its gradient: python -m experiments.benchmarks.training

ratio = wall time of a full step (batch from grain, dequantization, noise, loss, clipping, EMA, pmap) / wall time of a bare jitted
value_and_grad and Adam of the same network on a fixed batch; at batch 256 also with noise that is joined with the data by optimal transport.

And what the convolutions of CPUs save (`models.convolution`): wall time of a gradient step with XLA's own gradients / with ours, alone and as one of
four in a `lax.scan`.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import optax
from absl import flags

from configs import digits, fashion, mmdit, sit, toy
from experiments import cli, couplings, data, network, parallel, state
from experiments.benchmarks.timing import medians, report

SMALL = {"channels": 8, "width": 16, "depth": 1, "num_heads": 2}  # of --quick


def measure(config, name: str, inner: int, repeats: int) -> dict:
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes)
    holder = {"full": state.init(config, net, dataset.shape)}
    full_step = parallel.parallel_step(state.make_step(config, net, dataset))
    stream = data.batches(dataset, config.training.batch, 0, couple=couplings.from_config(config, dataset, net))

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


def convolutions(config, name: str, repeats: int) -> list[dict]:
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes)
    params = net.init(jax.random.key(0), dataset.shape)
    x, t = jax.random.normal(jax.random.key(1), (config.training.batch, *dataset.shape)), jnp.full(config.training.batch, 0.5)

    def step(params):
        grads = jax.grad(lambda p: jnp.mean((net(p, x, t) - x) ** 2))(params)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)

    def compiled(steps: int):
        fn = jax.jit(step if steps == 1 else lambda p: jax.lax.scan(lambda p, _: (step(p), None), p, None, length=steps)[0])
        fn = fn.lower(params).compile()
        return lambda: fn(params)

    ours = {steps: compiled(steps) for steps in (1, 4)}
    jax.clear_caches()  # of traces
    with mock.patch("models.unet.convolve", jax.lax.conv_general_dilated):
        theirs = {steps: compiled(steps) for steps in (1, 4)}
    rows = []
    for steps in (1, 4):
        seconds = medians({"ours": ours[steps], "XLA": theirs[steps]}, repeats)
        where = "alone" if steps == 1 else f"in a scan of {steps}"
        rows.append({"network": name, "gradient step": where} | {f"{k} ms": 1e3 * s / steps for k, s in seconds.items()})
        rows[-1]["ratio"] = seconds["XLA"] / seconds["ours"]
    return rows


def main():
    quick = flags.FLAGS.quick
    cases = [
        (digits.get_config(), "digits U-Net", 10), (mmdit.get_config(), "digits MMDiT", 10), (toy.get_config(), "MLP 3x256", 100),
        (fashion.get_config(), "Fashion-MNIST U-Net, patch 2", 3), (sit.get_config("fashion"), "Fashion-MNIST DiT, patch 4", 3),
    ]  # fmt: skip
    if quick:
        for config, _, _ in cases:
            config.model.update({name: small for name, small in SMALL.items() if config.model[name] is not None})
    for config, name, inner in (cases[0], cases[2]):  # at batch 256, with noise as it comes and joined by optimal transport
        for coupling in ("independent", "ot"):
            joined = config.copy_and_resolve_references()
            joined.training.batch, joined.coupling.name = 256, coupling
            cases.append((joined, f"{name}, {coupling}", max(inner // 4, 3)))
    rows = [measure(config, name, *((1, 1) if quick else (inner, 9))) for config, name, inner in cases]
    for config, name, _ in (cases[0], cases[3]):
        rows += convolutions(config, name, 1 if quick else 3)
    report(rows, flags.FLAGS.out, "training", quick=quick)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmarks", "Where the JSON goes.")
    flags.DEFINE_bool("quick", False, "One repetition, to see that it runs.")
    cli.run(main)
