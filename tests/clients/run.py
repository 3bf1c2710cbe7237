"""Real clients, unmodified, each in an environment of its own, against `shoal serve --demo` (`make test-clients`).

Installs what is missing under .venv-clients/, starts one gateway, runs every client's suite, prints a table. No part of
`make test`: it downloads other people's packages. Run: python tests/clients/run.py [NAME …]
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent.parent / ".venv-clients"
SUITE_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Client:
    """A client and the suite that drives it."""

    name: str
    suite: str
    packages: tuple[str, ...]

    @property
    def is_node(self) -> bool:
        return self.suite.endswith(".mjs")


CLIENTS = (
    Client("openai-3", "openai_python.py", ("openai==3.54.0",)),
    Client("openai-2", "openai_python.py", ("openai==2.54.0",)),
    Client("langchain", "langchain_client.py", ("langchain-openai==1.7.3",)),
    Client("litellm", "litellm_client.py", ("litellm==1.106.2", "mcp")),
    Client("llm", "llm_client.py", ("llm==0.36",)),
    Client("lm-eval", "lm_eval_client.py", ("lm-eval[api]==0.4.13",)),
    Client("openai-node", "openai_node.mjs", ("openai@6.49.0",)),
    Client("ai-sdk", "ai_sdk.mjs", ("ai@6.0.326", "@ai-sdk/openai-compatible@2.0.87", "zod@4.6.7")),
)


def main(names: list[str]) -> int:
    """Run the suites named, or all; the number that failed."""
    chosen = [client for client in CLIENTS if not names or client.name in names]
    for client in chosen:
        install(client)
    failed = []
    with gateway() as url:
        for client in chosen:
            began = time.monotonic()
            status, cases = run(client, url)
            verdict = "pass" if status == 0 else f"FAIL ({status})"
            print(f"{client.name:12} {verdict:10} {cases:3} cases {time.monotonic() - began:6.1f} s", flush=True)
            failed += [client.name] if status else []
    return len(failed)


def install(client: Client) -> None:
    """Make the client's environment, once per list of versions."""
    home = ENVIRONMENTS / client.name
    stamp, wanted = home / ".installed", " ".join(client.packages)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"installing {wanted}", flush=True)
    home.mkdir(parents=True, exist_ok=True)
    if client.is_node:
        subprocess.run(["npm", "install", "--loglevel=error", "--prefix", str(home), *client.packages], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(home / "bin/python"), "-m", "pip", "install", "--quiet", *client.packages], check=True)
    stamp.write_text(wanted)


@contextmanager
def gateway() -> Iterator[str]:
    """A demonstration swarm behind a free port; gives the base URL without /v1."""
    command = [sys.executable, "-m", "shoal.cli", "serve", "--demo", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"http://[^/ ]+", line)
            if found:
                yield found[0]
                break
        else:
            sys.exit("the gateway did not start")
    finally:
        process.terminate()
        process.wait()


def run(client: Client, url: str) -> tuple[int, int]:
    """Drive one client; its exit status and how many cases were right."""
    home = ENVIRONMENTS / client.name
    script = home / client.suite if client.is_node else HERE / client.suite
    if client.is_node:  # node looks for packages beside the script
        script.write_text((HERE / client.suite).read_text(encoding="utf-8"), encoding="utf-8")
    program = "node" if client.is_node else str(home / "bin/python")
    environment = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    environment |= {
        "BASE_URL": url,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "none",
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{environment['PATH']}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    command = ["timeout", str(SUITE_TIMEOUT_S), program, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    num_ok = len(re.findall(r"^ok ", done.stdout, re.MULTILINE))
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", flush=True)
    return done.returncode, num_ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
