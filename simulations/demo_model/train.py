"""Train the demonstration model: text in, official checkpoint out. The loop is all here and short.

    python -m shoal.simulations.demo_model.train --out /tmp/demo_model

Three things change as training proceeds, all as functions of `progress` in [0, 1]: the rate falls linearly to zero,
rows grow longer (short rows are cheaper and teach most of it), and the extras join (the MTP layer past half, rounding
to the fp8 grid for the last part, so that the exported weights are as good as the trained ones).
It prints its log as JSON lines: settings first, then where it stands, last the finished model.
With `--steps` (default) a run is a pure function of the seed on one machine; with `--minutes` the clock decides.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from shoal.simulations.demo_model.batches import TokenStream
from shoal.simulations.demo_model.bpe import train_tokenizer
from shoal.simulations.demo_model.corpus import Document, load, split
from shoal.simulations.demo_model.evaluate import network_bits
from shoal.simulations.demo_model.export import export, load_network
from shoal.simulations.demo_model.network import Network
from shoal.simulations.demo_model.optimizer import Optimizer
from shoal.simulations.demo_model.shape import Shape

ROW_TOKENS = ((0.0, 256), (0.6, 512), (0.9, 1024))
"""`(from progress, row length)`: attention costs as the square, and most of a language is learned from near words."""
MTP_FROM = 0.6
"""The MTP layer costs a third of a step; the last part of the training is enough for it to draft well."""
MTP_WEIGHT = 0.3
"""Weight of its loss (arXiv 2412.19437, 4.2)."""
ROUNDING_FROM = 0.9
"""From here on weights are rounded to the fp8 grid in every forward pass."""
WARM_UP = 0.02
"""Share of training over which the rate rises."""
BALANCE_STEP = 2e-3
"""How far a router's bias moves per step (DeepSeek-V3: 1e-3); falls with the rate. Scores of one expert differ by about
0.03 between tokens at first: ten times this step whips all tokens to and fro, batch by batch (measured: busiest over
mean 3.5 in every batch, 1.3 on average over ten)."""
GRADIENT_NORM = 1.0
NUM_REPORTS = 40
"""Lines of the running log, spread evenly."""
REPORT_EVERY_NTH_DOCUMENT = 16
"""Held-out documents in the running figure; the card uses all."""
REPORTED_GROUPS = ("all", "story: en", "book: es")


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. Defaults reproduce the shipped model."""

    out: Path
    """Checkpoint directory to write."""
    continue_from: Path | None = None
    """Checkpoint of an earlier run to start from, with a fresh optimizer: another cycle of the same schedule."""
    steps: int = 9000
    """Optimizer steps; measured so that two CPU cores finish within 150 minutes."""
    minutes: float | None = None
    """If given, train for this long on the wall clock instead of counting steps."""
    seed: int = 20261121
    device: str = "cpu"
    tokens_per_step: int = 3072
    shortest_row_tokens: int = 256
    """Rows never get shorter than this: a run that continues another should not unlearn its long rows."""
    peak_rate: float = 4e-3
    weight_decay: float = 0.1
    dropout: float = 0.0


class Clock:
    """Progress of a run in [0, 1], by steps or by wall time."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._start_s = settings, time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    def progress(self, step: int) -> float:
        if self._settings.minutes is None:
            return step / self._settings.steps
        return self.elapsed_s / (60 * self._settings.minutes)


def rate_at(progress: float, peak: float) -> float:
    """Linear rise over `WARM_UP`, then linear fall to zero at the end."""
    return peak * min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP), 1.0) if progress > 0 else peak * 0.01


def row_tokens_at(progress: float, shortest: int) -> int:
    """Row length of the stage that `progress` is in, but not below `shortest`."""
    return max([tokens for start, tokens in ROW_TOKENS if progress >= start][-1], shortest)


def losses_of(network: Network, ids: Tensor, *, with_mtp: bool) -> tuple[Tensor, Tensor]:
    """`ids: [B, T+2]` -> mean cross-entropies in nats per token of the main model and of the MTP layer (0 without)."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        if not with_mtp:
            return _cross_entropy(network(ids[:, :-2]), ids[:, 1:-1]), torch.zeros(())
        prediction = network.with_drafts(ids[:, :-1])
        return _cross_entropy(prediction.main, ids[:, 1:]), _cross_entropy(prediction.mtp, ids[:, 2:])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def train(settings: Settings, network: Network, tokenizer: Tokenizer, documents: list[Document]) -> None:
    """Run the loop on the training documents; at the end `network` is set to round its weights to the fp8 grid."""
    learned, held_out = split(documents)
    torch.manual_seed(settings.seed)
    network.to(settings.device).train()
    optimizer = Optimizer(network, settings.weight_decay)
    stream = TokenStream(learned, tokenizer, settings.seed)
    clock, step = Clock(settings), 0
    report = Report(tokenizer, held_out, stream, clock)
    while (progress := clock.progress(step)) < 1:
        row_tokens = row_tokens_at(progress, settings.shortest_row_tokens)
        network.round_weights(progress >= ROUNDING_FROM)
        ids = stream.batch(max(settings.tokens_per_step // row_tokens, 1), row_tokens).to(settings.device)
        loss, draft_loss = losses_of(network, ids, with_mtp=progress >= MTP_FROM)
        (loss + MTP_WEIGHT * draft_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimizer.step(rate_at(progress, settings.peak_rate))
        for layer in network.moe_layers():
            layer.gate.balance(layer.load, BALANCE_STEP * (1 - progress))
        if report.is_due(progress):
            report.write(network, step, float(loss.detach()), row_tokens)
        step += 1
    network.round_weights(True)
    report.write(network, step, float(loss.detach()), row_tokens)


class Report:
    """Prints the log: one JSON line each time it is asked."""

    def __init__(self, tokenizer: Tokenizer, held_out: list[Document], stream: TokenStream, clock: Clock) -> None:
        self._tokenizer, self._held_out = tokenizer, held_out[::REPORT_EVERY_NTH_DOCUMENT]
        self._stream, self._clock = stream, clock
        self._next = 0.0

    def is_due(self, progress: float) -> bool:
        """True `NUM_REPORTS` times in a run, evenly spread."""
        if progress < self._next:
            return False
        self._next += 1 / NUM_REPORTS
        return True

    def write(self, network: Network, step: int, nats_per_token: float, row_tokens: int) -> None:
        """Where the run stands after `step` steps."""
        # Before anything else runs through the layers: the balance of the training batch.
        balance = [float(layer.load.max() / layer.load.mean().clamp(min=1e-9)) for layer in network.moe_layers()]
        network.eval()
        # In windows as long as the rows so far: what comes beyond has not been learned yet.
        bits = network_bits(network, self._tokenizer, self._held_out, window_tokens=row_tokens)
        network.train()
        line = {
            "step": step,
            "minutes": round(self._clock.elapsed_s / 60, 1),
            "tokens": self._stream.num_tokens_read,
            "train_nats_per_token": round(nats_per_token, 3),
            "held_out_bits_per_byte": {group: round(bits[group], 3) for group in REPORTED_GROUPS if group in bits},
            "router_max_over_mean": [round(ratio, 2) for ratio in balance],
        }
        print(json.dumps(line), flush=True)


def settings_from_arguments() -> Settings:
    """Parse the command line; unset options keep the defaults of `Settings`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], argument_default=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--continue-from", type=Path, help="checkpoint of an earlier run to start from")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--minutes", type=float, help="train by the wall clock instead of counting steps")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--peak-rate", type=float)
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--tokens-per-step", type=int)
    parser.add_argument("--shortest-row-tokens", type=int)
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Train with the command line's settings and export."""
    settings = settings_from_arguments()
    print(json.dumps(_header(settings)), flush=True)
    documents = load()
    network, tokenizer = _beginning(settings, documents)
    train(settings, network, tokenizer, documents)
    export(network.cpu(), tokenizer, settings.out)


def _beginning(settings: Settings, documents: list[Document]) -> tuple[Network, Tokenizer]:
    if settings.continue_from is not None:
        return load_network(settings.continue_from, settings.dropout)
    shape = Shape()
    torch.manual_seed(settings.seed)
    return Network(shape, settings.dropout), train_tokenizer(split(documents)[0], shape.vocab_size)


def _header(settings: Settings) -> dict[str, object]:
    """The log's first line: everything that a second run would need to know."""
    fields: dict[str, object] = {name: value for name, value in asdict(settings).items() if name != "out"}
    fields["continue_from"] = settings.continue_from and settings.continue_from.name
    return {**fields, "torch": torch.__version__, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
