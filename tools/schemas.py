"""Write docs/schemas: what `--json` prints, made from the dataclasses that it prints."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.cli.manifest import ShownCheck, ShownManifest, ShownProof
from shoal.cli.model_reports import ShownModels, ShownPull, ShownRemoved, ShownVerified
from shoal.cli.settings_layers import ShownSettings
from shoal.cli.swarms import ListedToken
from shoal.cli.version import Versions
from shoal.client.answer import Answer
from shoal.client.engine.generation import Generation
from shoal.node.doctor import Diagnosis
from shoal.node.service import ServiceStatus
from shoal.protocol.control import Coverage, LogLine, NodeStatus, Peers
from shoal.simulations.chaos.run import ChaosReport
from shoal.simulations.demo import DemoResult
from shoal.simulations.forecast.plan import PlanReport
from shoal.simulations.forecast.real.verdict import RealReport
from shoal.simulations.forecast.report import SimulationReport
from shoal.simulations.trial import TrialResult

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True)
class Flat:
    """One object with the fields of several dataclasses; a field that holds one of the others is left out."""

    parts: tuple[type, ...]

    def schema(self) -> dict[str, object]:
        """The JSON Schema of it."""
        _, parts = msgspec.json.schema_components(self.parts)
        properties: dict[str, object] = {}
        for part in self.parts:
            own = parts.pop(part.__name__)["properties"]
            properties |= {name: each for name, each in own.items() if name not in ("answer", "generation")}
        closed = {"type": "object", "additionalProperties": False}
        return closed | {"properties": properties, "required": sorted(properties), "$defs": parts}


VERBS: dict[str, tuple[str, object]] = {
    "status": ("shoal status, pause, resume, stop", NodeStatus),
    "peers": ("shoal peers", Peers),
    "coverage": ("shoal coverage", Coverage),
    "logs": ("shoal logs: one object a line", LogLine),
    "doctor": ("shoal doctor", Diagnosis),
    "manifest-show": ("shoal manifest show, make, sign", ShownManifest),
    "manifest-verify": ("shoal manifest verify", ShownCheck),
    "manifest-proof": ("shoal manifest show --proof", ShownProof),
    "models-ls": ("shoal models ls", ShownModels),
    "models-pull": ("shoal models pull, import", ShownPull),
    "models-rm": ("shoal models rm", ShownRemoved),
    "models-verify": ("shoal models verify", ShownVerified),
    "config-show": ("shoal config show", ShownSettings),
    "plan": ("shoal plan", PlanReport),
    "run": ("shoal run", Flat((Generation, Answer))),
    "demo": ("shoal demo", Flat((Generation, Answer, DemoResult))),
    "simulate-virtual": ("shoal simulate --virtual", SimulationReport),
    "simulate-local": ("shoal simulate --local", TrialResult),
    "simulate-validate-real": ("shoal simulate validate --real", RealReport),
    "simulate-chaos": ("shoal simulate chaos", ChaosReport),
    "invite-list": ("shoal invite --list", list[ListedToken]),
    "version": ("shoal version", Versions),
    "service-status": ("shoal service status", ServiceStatus),
}


def schema_of(verb: str) -> str:
    """The JSON Schema of what a verb prints, as the text of its file."""
    title, printed = VERBS[verb]
    schema = printed.schema() if isinstance(printed, Flat) else msgspec.json.schema(printed)
    return json.dumps({"$schema": DIALECT, "title": title, **schema}, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write all files."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for verb in VERBS:
        (DIRECTORY / f"{verb}.json").write_text(schema_of(verb), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
