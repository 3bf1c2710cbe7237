"""Runs a suite's cases where nothing but the client is installed: the functions whose names begin with `case_`."""

import asyncio
import inspect
import sys
import traceback
from collections.abc import Mapping

STORY = [{"role": "user", "content": "Tell a story about a frog."}]
MODEL = "shoal-demo"
SIZE_SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"type": "string", "enum": ["red", "green"]},
        "size": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["color", "size"],
    "additionalProperties": False,
}


def run_cases(names: Mapping[str, object]) -> None:
    """Run all; exit 1 if one fails."""
    failed = 0
    for name, case in list(names.items()):
        if not name.startswith("case_") or not callable(case):
            continue
        try:
            asyncio.run(case()) if inspect.iscoroutinefunction(case) else case()
            print("ok ", name.removeprefix("case_"), flush=True)
        except Exception:
            failed += 1
            print("FAIL", name)
            traceback.print_exc()
    sys.exit(1 if failed else 0)
