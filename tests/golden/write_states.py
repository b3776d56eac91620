"""States for `smooth-probe similarity --states`: any model that transformers runs. docs/states.md shows this file."""

import json
import os

import numpy as np
import torch
from safetensors.numpy import save_file


def write_states(model, tokenizer, texts, folder, last="final_norm"):
    """`last` names what the model's last hidden state is: "block" for BERT, "final_norm" for decoders."""
    os.makedirs(folder)
    layers, ids, offsets, lines = {}, [], [0], []
    for index, text in enumerate(texts):
        encoded = tokenizer(text, return_special_tokens_mask=True)
        ids += encoded["input_ids"]
        offsets.append(len(ids))
        tokens, special = [tokenizer.decode([i]) for i in encoded["input_ids"]], encoded["special_tokens_mask"]
        lines.append(json.dumps({"text": index, "tokens": tokens, "special": [m == 1 for m in special]}))
        with torch.no_grad():
            output = model(torch.tensor([encoded["input_ids"]]), output_hidden_states=True)
        for layer, states in enumerate(output.hidden_states):
            layers.setdefault(layer, []).append(states[0].float().numpy())
    shared = {"ids": np.array(ids, np.uint32), "offsets": np.array(offsets, np.int64)}
    for layer, rows in layers.items():
        site = "embedding" if layer == 0 else "block" if layer < len(layers) - 1 else last
        save_file({"states": np.concatenate(rows), **shared}, f"{folder}/{site}_{layer}.safetensors")
    with open(f"{folder}/tokens.jsonl", "w") as file:
        file.write("\n".join(lines) + "\n")
