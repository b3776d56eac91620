"""Adapter folders against the real PEFT. Run with an interpreter that has torch, transformers and peft:

    python peft_files.py load   DIR MODEL_DIR OUT.safetensors
    python peft_files.py refuse DIR MODEL_DIR
    python peft_files.py make   DIR MODEL_DIR KIND

load    PeftModel.from_pretrained reads DIR (an adapter folder of ours) onto MODEL_DIR and OUT gets `ids` [n] (u32)
        and `logits` [n, vocab] (f32, computed in f32), as well as `base_logits` without the adapter. Fails, with
        one line on stderr, if PEFT warns of missing or unexpected tensors or config keys, or the adapter changes nothing.
refuse  For a folder whose peft_type begins with SIBO_: exit 0 and the error on stdout if PEFT raises; exit 1 if PEFT
        loads it, or fails for a reason that has nothing to do with the type.
make    Writes into DIR an adapter of KIND made by the real PEFT, with random values where it would begin as nothing, and
        DIR/expected.safetensors with `ids`, `logits` and `base_logits` as above. Kinds: lora (r 4, alpha 10, so scale 2.5;
        q, k, v, up, down), patterns (rsLoRA, ranks and alphas by pattern), dora, ia3, norms, prefix, prompt.

The ids are `(7 i^2 + 3 i + 1) mod vocab` for i = 0..18, so that both sides can know them without a file.
Exit codes: 0 as hoped, 1 not, 2 usage. The network is never used.
"""

import json
import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import (
    IA3Config, LNTuningConfig, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
)  # fmt: skip
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
from transformers.utils import logging

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def base_model(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def save_logits(model, vocab, path):
    """Logits of the fixed ids with the adapter and without."""
    ids = torch.tensor([(7 * i * i + 3 * i + 1) % vocab for i in range(19)])
    with torch.no_grad():
        # Virtual tokens in front have logits too.
        logits = model(input_ids=ids[None]).logits[0][-len(ids) :]
        with model.disable_adapter():
            base = model(input_ids=ids[None]).logits[0]
    if torch.equal(logits, base):
        raise SystemExit("the adapter changes no logit: its tensors were not used")
    tensors = {"ids": ids.to(torch.uint32), "logits": logits, "base_logits": base}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load(folder, model_folder, out):
    base = base_model(model_folder)
    vocab = base.config.vocab_size
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder).eval()
    # PEFT only warns when tensors do not fit the config, and then runs with what it initialised itself.
    for warning in said:
        if "missing" in str(warning.message).lower() or "unexpected" in str(warning.message).lower():
            raise SystemExit(f"PEFT warns: {warning.message}")
    save_logits(model, vocab, out)


def refuse(folder, model_folder):
    kind = json.loads((Path(folder) / "adapter_config.json").read_text()).get("peft_type")
    if not str(kind).startswith("SIBO_"):
        raise SystemExit(f"{folder}: peft_type is {kind!r}, this check is for those that begin with SIBO_")
    base = base_model(model_folder)
    try:
        PeftModel.from_pretrained(base, folder)
    except Exception as error:  # noqa: BLE001 (whichever type PEFT raises is its own affair)
        print(f"{type(error).__name__}: {error}")
        if kind not in str(error):
            raise SystemExit("PEFT failed, but not for the unknown type") from None
        return
    raise SystemExit(f"{folder}: PEFT loaded a SIBO adapter as if it were a plain one")


def config_of(kind):
    shared = {"r": 4, "lora_alpha": 10, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    patterns = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"down_proj": 3}}
    return {
        "lora": lambda: LoraConfig(**shared),
        "patterns": lambda: LoraConfig(**shared, **patterns, use_rslora=True),
        "dora": lambda: LoraConfig(**shared, use_dora=True),
        "ia3": lambda: IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
        "norms": lambda: LNTuningConfig(
            target_modules=["input_layernorm", "post_attention_layernorm", "norm"], task_type="CAUSAL_LM"
        ),
        "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "prompt": lambda: PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    }[kind]()


def make(folder, model_folder, kind):
    base = base_model(model_folder)
    vocab = base.config.vocab_size
    model = get_peft_model(base, config_of(kind)).eval()
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=noise) * 0.5 / tensor.shape[1] ** 0.5)
            elif tensor.requires_grad:
                tensor.mul_(1 + 0.3 * torch.randn(tensor.shape, generator=noise))
    model.save_pretrained(folder, save_embedding_layers=False)
    save_logits(model, vocab, Path(folder) / "expected.safetensors")


def main():
    verbs = {"load": (load, 3), "refuse": (refuse, 2), "make": (make, 3)}
    verb, arguments = sys.argv[1:2], sys.argv[2:]
    if not verb or verb[0] not in verbs or len(arguments) != verbs[verb[0]][1]:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    logging.disable_progress_bar()
    verbs[verb[0]][0](*arguments)


if __name__ == "__main__":
    main()
