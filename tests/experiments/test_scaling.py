"""The scaling estimate: operations against published and hand-counted ones, communication against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from configs import default
from experiments.benchmarks import scaling
from models import DiT, UNet

H100, POD = scaling.MACHINES


def forward(net, shape, label=None):
    """FLOPs of a network on one example."""
    x, t = jnp.zeros((1, *shape)), jnp.zeros(1)
    params = jax.eval_shape(net.init, jax.random.key(0), x, t, label)
    return jax.jit(net.apply).lower(params, x, t, label).cost_analysis()["flops"]


def test_operations_as_published():
    """DiT-XL/2 has 118.64 G multiply-adds (2212.09748, table 4), DDPM's U-Net for CIFAR-10 6.1 G (2305.10924, table 1): two FLOPs each.

    XLA does not count products with the zeros around an image, 4 % of DDPM's."""
    dit = DiT(width=1152, depth=28, num_heads=16, patch=2, num_classes=1000)
    assert forward(dit, (32, 32, 4), jnp.zeros(1, jnp.int32)) == pytest.approx(2 * 118.64e9, rel=0.01)
    ddpm = UNet(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), embedding="positional", modulate="shift", head_channels=0)
    assert forward(ddpm, (32, 32, 3)) == pytest.approx(0.96 * 2 * 6.1e9, rel=0.02)


@pytest.mark.parametrize("remat, passes", [(False, 3), (True, 4)])
def test_a_step_is_three_passes(remat, passes):
    """By hand, of a DiT: a token takes 12 w^2 multiply-adds a layer and 2 N w in attention, an example 6 w^2 a layer for its modulation; the
    backward pass is twice the forward, which `remat` does once more; on any number of examples."""
    width, depth, tokens, batch = 256, 2, 256, 4
    config = default.get_config()
    config.data.name = "latents"
    config.model.update(name="DiT", width=width, depth=depth, num_heads=4, patch=2, remat=remat)
    config.training.batch = batch
    hand = depth * (tokens * (12 * width**2 + 2 * tokens * width) + 6 * width**2)
    found = scaling.work("dit", config)
    assert found.flops == pytest.approx(2 * passes * batch * hand, rel=0.06)
    assert found.parameters > 18 * depth * width**2
    config.training.batch = 2 * batch
    assert scaling.work("dit", config).flops == pytest.approx(2 * found.flops, rel=0.03)  # less the optimizer's


def test_communication():
    """An all-reduce in one group is 2 (n - 1)/n of the bytes; over groups the slow links carry the g-th part; more devices never cost less."""
    size, quick = 4e9, scaling.Machine("quick", 1e15, group=8, near=1e11, far=1e10, latency=0.0)
    assert scaling.communication(quick, 8, size) == pytest.approx(2 * 7 / 8 * size / 1e11)
    assert scaling.communication(quick, 64, size) == pytest.approx(2 * (7 / 8 * size / 1e11 + 7 / 8 * size / 8 / 1e10))
    assert scaling.communication(quick, 1, size) == 0
    assert scaling.communication(H100, 8, size, 3.0) == pytest.approx(1.5 * scaling.communication(H100, 8, size))
    for machine in scaling.MACHINES:
        spent = [scaling.communication(machine, n, size) for n in (1, 2, 8, 16, 64, 512)]
        assert spent == sorted(spent)


def test_efficiency():
    """On one device 1; overlap hides up to two thirds of the computation; strong scaling falls with n, and a larger batch helps."""
    work = scaling.Work("net", 10**8, 256, 256 * 3e11)
    assert scaling.efficiency(H100, work, 1, 256) == (1.0, 1.0)
    for machine in scaling.MACHINES:
        last = (1.0, 1.0)
        for n in scaling.DEVICES:
            plain, overlapped = found = scaling.efficiency(machine, work, n, 256)
            compute, wire = work.flops / n / (0.4 * machine.peak), scaling.communication(machine, n, 4e8)
            assert plain == pytest.approx(compute / (compute + wire))
            assert overlapped == pytest.approx(min(1, 1 / (1 / 3 + wire / compute)))
            assert plain < last[0] and plain < overlapped <= last[1]
            assert scaling.efficiency(machine, work, n, 512) > found
            last = found


@pytest.mark.slow
def test_measurement():
    """Of a tiny network on one and, where there are two cores, two devices."""
    config = scaling.full_scale("digits")
    config.model.update(channels=8, attention=())
    config.training.batch = 8
    rows = scaling.measured(config, 2, 1)[2:]
    assert rows[0].startswith("| 1 | 1 | ") and rows[0].endswith("| 1.00 | 100 % |")
