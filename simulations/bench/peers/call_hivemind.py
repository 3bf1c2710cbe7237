"""hivemind's remote expert: a server with one that computes nothing, and a client beside it.

call_hivemind HIDDEN     {"calls": 100} -> {"seconds": […]}: f32[1, HIDDEN] there and back
"""

import sys
from time import perf_counter, sleep

import hivemind
import torch
from hivemind.moe.client.expert import RemoteExpert
from hivemind.moe.server import Server
from hivemind.moe.server.dht_handler import get_experts

from shoal.simulations.bench.peers.program import Answer, answer_lines

UID = "nop.0"
FOUND_TIMEOUT_S = 60.0
POLL_S = 0.2


def _found(dht: hivemind.DHT) -> RemoteExpert:
    """The expert, once the server has announced it."""
    ends_at = perf_counter() + FOUND_TIMEOUT_S
    while perf_counter() < ends_at:
        (expert,) = get_experts(dht, [UID])
        if expert is not None:
            return expert
        sleep(POLL_S)
    raise TimeoutError(f"nobody announced {UID}")


def _calls(expert: RemoteExpert, x: torch.Tensor, num_calls: int) -> Answer:
    seconds = []
    with torch.inference_mode():
        for _ in range(num_calls):
            started = perf_counter()
            y = expert(x)
            seconds.append(perf_counter() - started)
    if not torch.equal(x, y):
        raise ValueError("the expert does not give back what it got")
    return {"seconds": seconds}


def main() -> None:
    """Start both sides, answer, end them."""
    torch.set_num_threads(1)
    hidden = int(sys.argv[1])
    dht = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], use_ipfs=False)
    server = Server.create(
        expert_uids=[UID], expert_cls="nop", hidden_dim=hidden, optim_cls=None, num_handlers=1,
        initial_peers=dht.get_visible_maddrs(), start=True,
    )  # fmt: skip
    try:
        expert, x = _found(dht), torch.randn(1, hidden)
        answer_lines(lambda question: _calls(expert, x, question["calls"]))
    finally:
        server.shutdown()
        dht.shutdown()


if __name__ == "__main__":
    main()
