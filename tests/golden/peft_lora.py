"""Part B: a LoRA made and saved by the real PEFT, and what it computes."""

import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import exact
from sibo_cases import LORA_TARGETS, Run
from tiny_models import write_json


def write_adapter(root, folder, all_ids, rslora):
    """One adapter folder as PEFT saves it, with golden.safetensors and golden.json beside."""
    shutil.rmtree(root, ignore_errors=True)
    config = LoraConfig(
        r=4, lora_alpha=10, target_modules=LORA_TARGETS, lora_dropout=0.1, task_type="CAUSAL_LM", use_rslora=rslora
    )
    noise = torch.Generator().manual_seed(21)
    maker = get_peft_model(exact.load(folder).float(), config)
    with torch.no_grad():
        for name, tensor in maker.named_parameters():
            if "lora_" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=noise) * 0.5 / tensor.shape[1] ** 0.5)
    maker.peft_config["default"].base_model_name_or_path = folder.name
    maker.peft_config["default"].target_modules = LORA_TARGETS
    maker.save_pretrained(root, save_embedding_layers=False)
    (root / "README.md").unlink()

    loaded = PeftModel.from_pretrained(exact.load(folder), root).double().eval()
    with torch.no_grad():
        tensors, loss = exact.states(loaded, all_ids, peft=loaded)
    wanted = {n: t for n, t in tensors.items() if n.startswith(("block_", "logits_"))}
    save_file({name: t.float().contiguous() for name, t in wanted.items()}, root / "golden.safetensors")
    scale = 10 / 4**0.5 if rslora else 10 / 4
    write_json(root / "golden.json", {"scale": scale, "loss": loss})

    # The written-out reference at lambda 0 must be PEFT's own LoRA.
    case = dict(method="lora", rank=4, scale=scale, targets=LORA_TARGETS, policy="all", residual="h0")
    run = Run(folder, all_ids, case | {"lambda": 0.0}, None, None)
    run.set(load_file(root / "adapter_model.safetensors"))
    with torch.no_grad():
        worst = max(exact.relative_error(run.forward(s)[1], tensors[f"logits_{s}"]) for s in range(3))
    assert worst < 1e-13, worst
    print(f"{root.name}: loss {loss:.4f}; sibo_reference at lambda 0 off by {worst:.1e}")
