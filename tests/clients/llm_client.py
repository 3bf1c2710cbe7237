"""simonw's llm: its command line, with the gateway in extra-openai-models.yaml."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from cases import MODEL, SIZE_SCHEMA, run_cases

FOLDER = Path(tempfile.mkdtemp())
(FOLDER / "extra-openai-models.yaml").write_text(
    f"- model_id: shoal\n  model_name: {MODEL}\n  api_base: {os.environ['OPENAI_BASE_URL']}\n"
    "  supports_schema: true\n  supports_tools: true\n"
    f"- model_id: shoal-text\n  model_name: {MODEL}\n  api_base: {os.environ['OPENAI_BASE_URL']}\n  completion: true\n"
)


def llm(*arguments: str) -> str:
    environment = os.environ | {"LLM_USER_PATH": str(FOLDER)}
    done = subprocess.run(["llm", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def case_prompt():
    assert llm("-m", "shoal", "-o", "max_tokens", "12", "Tell a story about a frog.").strip()


def case_no_stream():
    assert llm("-m", "shoal", "--no-stream", "-o", "max_tokens", "12", "Tell a story about a frog.").strip()


def case_usage_is_logged():
    llm("-m", "shoal", "-o", "max_tokens", "5", "-u", "Tell a story about a frog.")
    assert json.loads(llm("logs", "--json", "-n", "1"))[0]["output_tokens"] == 5


def case_schema():
    told = llm("-m", "shoal", "-o", "max_tokens", "200", "--schema", json.dumps(SIZE_SCHEMA), "Paint a frog.")
    assert json.loads(told)["color"] in ("red", "green")


def case_conversation_goes_on():
    assert llm("-m", "shoal", "-c", "-o", "max_tokens", "6", "And then?").strip()


def case_text_completion():
    assert llm("-m", "shoal-text", "-o", "max_tokens", "8", "Once upon a time").strip()


run_cases(globals())
