"""Makes pytorch_model.bin and smollm2.json: what torch saves, and what transformers computes from a GGUF file.

Run with torch 2.15, transformers 5.23 and gguf; SMOOTH_PROBE_SHARED names the folder with models/.
"""

import json
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("SMOOTH_PROBE_SHARED", HERE / "../../../shared"))
IDS = [1, 504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30]

base = torch.arange(12, dtype=torch.float32) / 8 - 0.5
shared = base.reshape(3, 4)
torch.save(
    {
        "single": shared,
        "tied": shared,
        "tail": base[8:],
        "half": base[:6].reshape(2, 3).half(),
        "brain": base[:4].bfloat16(),
        "double": base[:3].double() / 3,
        "whole": torch.arange(5),
        "parameter": torch.nn.Parameter(base[4:6].clone()),
    },
    HERE / "pytorch_model.bin",
)

model = AutoModelForCausalLM.from_pretrained(
    SHARED / "models/SmolLM2-135M", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
).eval()
states = {}


def keep(name):
    def hook(_module, _input, output):
        states[name] = (output[0] if isinstance(output, tuple) else output).detach().reshape(len(IDS), -1)

    return hook


model.model.embed_tokens.register_forward_hook(keep("embedding"))
model.model.norm.register_forward_hook(keep("final_norm"))
for index in (0, 1, 15, 29):
    model.model.layers[index].register_forward_hook(keep(f"block_{index}"))
with torch.no_grad():
    logits = model(torch.tensor([IDS])).logits[0, -1]

weights = model.state_dict()
rows = {
    "model.layers.0.self_attn.q_proj.weight": [0, 1, 32, 97],
    "model.layers.29.self_attn.k_proj.weight": [0, 1, 191],
    "model.layers.3.self_attn.v_proj.weight": [1],
}
result = {
    "ids": IDS,
    "last_token": {
        name: {"norm": state[-1].double().norm().item(), "first": state[-1, :4].tolist()}
        for name, state in states.items()
    },
    "logits": {"argmax": logits.argmax().item(), "max": logits.max().item()},
    "rows": {name: {str(r): weights[name][r, :4].tolist() for r in wanted} for name, wanted in rows.items()},
}
(HERE / "smollm2.json").write_text(json.dumps(result, indent=1) + "\n")
