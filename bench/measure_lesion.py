"""The lesion engine beside one hook and one full pass a lesion, and beside its floor, bare suffix passes."""

import numpy as np
import torch
from harness import Race, measure
from torch.nn import functional as F

from specialize_nb.data import digits
from specialize_nb.lesion import lesion_table, scores_node
from specialize_nb.train import cnn, mlp
from specialize_nb.units import trace

N_LESIONS = 60


def scene(model, layer):
    """The network traced, and random groups of a tenth of the layer's units."""
    data = digits("test")
    network = trace(model, data.x)
    groups = np.random.default_rng(0).random((N_LESIONS, network.layer(layer).n_units)) < 0.1
    return data, network, groups


def naive(model, module, data, groups):
    """(n_groups, n_examples) losses: a hook on `module`, and the whole network for each lesion."""
    losses = []
    with torch.no_grad():
        for group in torch.as_tensor(groups):

            def silence(mod, inputs, output, group=group):
                output[:, group] = 0

            handle = module.register_forward_hook(silence)
            losses.append(F.cross_entropy(model(data.x), data.y, reduction="none"))
            handle.remove()
    return torch.stack(losses).numpy()


def against_hooks(model, layer, module) -> Race:
    data, network, groups = scene(model, layer)

    def same(mine, theirs) -> str:
        return f"largest difference of a loss {np.abs(mine.measures['loss'] - theirs).max():.1g} nats"

    return Race(
        lambda: lesion_table(model, data, network, layer, groups), lambda: naive(model, module, data, groups), same
    )


@measure(
    f"lesion_table, CNN on digits, second convolution, {N_LESIONS} lesions", peer="one hook, one full pass a lesion"
)
def cnn_hooks() -> Race:
    model = cnn(size=8)
    return against_hooks(model, "2", model[3])


@measure(f"lesion_table, MLP 64-256x4-10, third layer, {N_LESIONS} lesions", peer="one hook, one full pass a lesion")
def mlp_hooks() -> Race:
    model = mlp((64, 256, 256, 256, 256, 10))
    return against_hooks(model, "5", model[6])


@measure(f"lesion_table, CNN on digits, first convolution, {N_LESIONS} lesions", peer="the floor: bare suffix passes")
def cnn_floor() -> Race:
    model = cnn(size=8)
    data, network, groups = scene(model, "0")
    program, site, scores = network.program, network.layer("0").site, scores_node(network)[0]
    kept = program.extract(program.inputs, [site])(data.x)[0].contiguous(memory_format=torch.channels_last)
    suffix = program.extract([site], [scores])

    def passes():
        with torch.inference_mode():
            for _ in range(N_LESIONS):
                suffix(kept)

    return Race(lambda: lesion_table(model, data, network, "0", groups), passes, lambda mine, theirs: "no answers")
