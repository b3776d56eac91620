"""Scores a model with a LoRA adapter by the real lm-evaluation-harness, on tasks of local files.

harness.py MODEL ADAPTER FOLDER OUT: every FOLDER/NAME.yaml is a task over FOLDER/NAME.jsonl; OUT is a JSON with each
task's results and, item by item, the log-likelihood of every choice and whether it is greedy.
"""

import json
import os
import sys
from pathlib import Path


def tokenizer_config(model):
    """The tokenizer of a folder as tokenizer.json has it, and not as transformers would build the family's own."""
    path = model / "tokenizer_config.json"
    if not path.exists():
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        path.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def whole_vocabulary(model):
    """As many words as the table of embeddings has rows: with an adapter lm_eval cuts the table to the tokenizer's size."""
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] == "WordLevel":
        words, rows = tokenizer["model"]["vocab"], json.loads((model / "config.json").read_text())["vocab_size"]
        words.update({f"filler{index}": index for index in range(len(words), rows)})
        path.write_text(json.dumps(tokenizer), encoding="utf-8")


def main():
    model, adapter, folder, out = map(Path, sys.argv[1:])
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    tokenizer_config(model)
    whole_vocabulary(model)
    import lm_eval
    from lm_eval.tasks import TaskManager

    names = sorted(path.stem for path in folder.glob("*.yaml"))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "peft": str(adapter), "dtype": "float32"},
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        batch_size=1,
        device="cpu",
        bootstrap_iters=0,
    )
    rows = {}
    for name in names:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        pairs = [[response[0] for response in sample["resps"]] for sample in samples]
        rows[name] = {
            "results": {key: value for key, value in found["results"][name].items() if isinstance(value, (int, float))},
            "items": [[[float(log), str(greedy) == "True"] for log, greedy in item] for item in pairs],
        }
    out.write_text(json.dumps(rows))
    print("lm_eval", lm_eval.__version__, {name: rows[name]["results"] for name in names})


main()
