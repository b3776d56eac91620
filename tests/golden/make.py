"""Remakes every golden file in this folder: `python make.py` (README.md says what they are).

Needs the versions of requirements.txt. Each part checks itself against a second computation and stops if
the two disagree; seconds on one core.
"""

from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging

from measures import write_measures
from bert import write_bert, write_minilm
from families import write_families
from peft_lora import write_adapter
from sibo_cases import write_cases
from sites import write_sites
from states import write_golden_states
from tiny_models import write_models
from training import write_training

HERE = Path(__file__).resolve().parent


def check_versions():
    for line in (HERE / "requirements.txt").read_text().split():
        name, wanted = line.split("==")
        found = version(name).split("+")[0]
        assert found == wanted, f"{name} is {found}, requirements.txt pins {wanted}"


def main():
    check_versions()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    gqa_tied, ids = write_models(HERE / "models")
    write_adapter(HERE / "peft_lora", gqa_tied, ids, rslora=False)
    write_adapter(HERE / "peft_rslora", gqa_tied, ids, rslora=True)
    write_cases(HERE / "sibo", gqa_tied, ids)
    write_sites(HERE / "sites", HERE / "sibo", gqa_tied, ids)
    write_training(HERE / "training", gqa_tied, ids)
    write_measures(HERE / "measures")
    write_bert(HERE / "bert")
    write_minilm(HERE / "minilm.json")
    write_golden_states(HERE / "states")
    write_families(HERE / "families")


if __name__ == "__main__":
    main()
