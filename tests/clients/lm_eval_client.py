"""lm-eval, offline: multiple choice and generation through local-completions, and through local-chat-completions."""

import json
import os
import tempfile
from pathlib import Path

from cases import MODEL, run_cases
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

FOLDER = Path(tempfile.mkdtemp())
BASE = os.environ["OPENAI_BASE_URL"]
ROWS = [
    {"question": "Once upon a time there was a little", "choices": [" frog", " xqzt"], "answer": 0, "gold": "frog"},
    {"question": "The sun rises in the", "choices": [" zzkq", " morning"], "answer": 1, "gold": "morning"},
]
(FOLDER / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
TASK = f"""
task: {{name}}
dataset_path: json
dataset_kwargs: {{{{data_files: {{{{test: {FOLDER}/rows.jsonl}}}}}}}}
test_split: test
doc_to_text: "{{{{{{{{question}}}}}}}}"
"""
(FOLDER / "choice.yaml").write_text(
    TASK.format(name="frog_choice")
    + 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
    + "metric_list: [{metric: acc}]\n"
)
(FOLDER / "generate.yaml").write_text(
    TASK.format(name="frog_generate")
    + 'output_type: generate_until\ndoc_to_target: "{{gold}}"\n'
    + 'generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}\nmetric_list: [{metric: exact_match}]\n'
)
MANAGER = TaskManager(include_path=str(FOLDER), include_defaults=False)


def evaluate(kind: str, path: str, task: str, **more: object) -> dict:
    arguments = f"model={MODEL},base_url={BASE}{path},num_concurrent=2,max_retries=1"
    return simple_evaluate(kind, model_args=arguments, tasks=[task], task_manager=MANAGER, log_samples=True, **more)


def case_multiple_choice_through_completions():
    results = evaluate("local-completions", "/completions", "frog_choice", batch_size=2)
    assert results["results"]["frog_choice"]["acc,none"] == 1.0
    again = evaluate("local-completions", "/completions", "frog_choice")
    scores = [sample["filtered_resps"] for sample in results["samples"]["frog_choice"]]
    assert scores == [sample["filtered_resps"] for sample in again["samples"]["frog_choice"]]


def case_generation_through_completions():
    results = evaluate("local-completions", "/completions", "frog_generate")
    assert all(sample["filtered_resps"][0] for sample in results["samples"]["frog_generate"])


def case_generation_through_chat():
    results = evaluate("local-chat-completions", "/chat/completions", "frog_generate", apply_chat_template=True)
    assert all(isinstance(sample["filtered_resps"][0], str) for sample in results["samples"]["frog_generate"])


run_cases(globals())
