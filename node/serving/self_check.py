"""The challenge that clients will put to us, put to ourselves first.

Between loading and announcing: a machine whose kernel computes wrongly must not announce. It also pays for what the
first call of a kernel costs (0.4 s for torch's threads), so that no client's deadline does.
"""

import torch

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.manifest import Manifest, check_probe
from shoal.experts.probe import probe_input
from shoal.experts.specs import ExpertSpec
from shoal.node.serving.server import Held
from shoal.protocol.errors import IntegrityError
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding


def check_ourselves(held: Held, backend: ExpertBackend, manifest: Manifest) -> None:
    """Compute the known answer of one expert of every layer, in both roundings. Blocking: run it on the worker.

    Raises:
        IntegrityError: this machine does not compute what the manifest says.
    """
    for layer, experts in held.experts.items():
        if experts:
            expert, packed = next(iter(experts.items()))
            check_expert(held.spec, backend, manifest, (layer, expert), packed)


def check_expert(
    spec: ExpertSpec, backend: ExpertBackend, manifest: Manifest, place: tuple[LayerId, ExpertId], packed: PackedExpert
) -> None:
    """The same for one expert. Raises as `check_ourselves`."""
    layer, expert = place
    x = probe_input(layer, expert, spec.hidden)
    for rounding, dtype in ((Rounding.FP32, torch.float32), (Rounding.BF16, torch.bfloat16)):
        row_idx, weights = torch.zeros(1, dtype=torch.int64), torch.ones(1)
        answer = backend.run([packed], x.to(dtype), row_idx, (0, 1), weights, rounding)
        if not check_probe(manifest, layer, expert, answer[0]):
            raise IntegrityError(
                f"this machine's {backend.name} kernel computes expert {expert} of layer {layer} wrongly"
            )
