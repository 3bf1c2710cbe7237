"""The known-answer challenge: a directory record is a hint until its holder has answered one (DESIGN §5, PROTOCOL §11).

One request of one token on a probe input; the manifest carries what an honest expert answers. It finds wrong weights,
wrong formats and broken kernels before the first token. It does not find a liar who looks the public answer up: the
verification of real answers is later work, and PROTOCOL §12 says so.
"""

from collections.abc import Callable

import torch

from shoal.client.routing.model_id import ModelId
from shoal.experts.manifest import Manifest, check_probe
from shoal.experts.probe import probe_input
from shoal.protocol.errors import WrongModel
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Dispatch, DType, Rounding
from shoal.protocol.net.channel import Channel
from shoal.protocol.tensors import read_partial_body, tensor_bytes

PROBE_DEADLINE_MS = 10_000
"""One row of one expert takes milliseconds; ten seconds forgive a node that is packing weights."""


async def challenge(
    channel: Channel,
    manifest: Manifest,
    model: ModelId,
    layer: LayerId,
    expert: ExpertId,
    clock: Callable[[], float],
) -> float:
    """Ask the holder behind `channel` for a known answer; return the round trip in seconds, its compute time taken off.

    Raises:
        WrongModel: the answer is not that of the manifest's expert. Else as `Channel.request`.
    """
    x = probe_input(layer, expert, model.hidden).to(
        torch.bfloat16 if model.rounding is Rounding.BF16 else torch.float32
    )
    message = Dispatch(
        model_root=model.root,
        layer=layer,
        rounding=model.rounding,
        weight_format=model.weight_format,
        dtype=DType.BF16 if model.rounding is Rounding.BF16 else DType.F32,
        num_tokens=1,
        hidden=model.hidden,
        experts=(expert,),
        num_rows=(1,),
        deadline_ms=PROBE_DEADLINE_MS,
    )
    body = (tensor_bytes(x), tensor_bytes(torch.ones(1)), tensor_bytes(torch.zeros(1, dtype=torch.uint16)))
    started = clock()
    reply = await channel.request(message, body)
    rtt_s = max(0.0, clock() - started - reply.message.compute_us / 1e6)
    if not check_probe(manifest, layer, expert, read_partial_body(reply.message, reply.body)[0]):
        raise WrongModel(f"{channel.peer} does not compute expert {expert} of layer {layer} as the manifest says")
    return rtt_s
