"""Part D: twenty AdamW steps in f64, vanilla and SIBO, adapters and all weights."""

import shutil

import torch
from safetensors.torch import save_file

import exact
from sibo_cases import MODULES, Run
from tiny_models import write_json

STEPS, WARMUP, PEAK = 20, 5, 3e-3
RECIPE = {
    "steps": STEPS, "warmup_steps": WARMUP, "lr": PEAK, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
    "max_grad_norm": 1.0, "clip_eps": 1e-6,
}  # fmt: skip
CASES = {
    "lora_vanilla": ("lora", "official", 0.0),
    "lora_sibo_official": ("lora", "official", 0.3),
    "lora_sibo_all": ("lora", "all", 0.3),
    "adapter_sibo": ("adapter_before", "official", 0.3),
}
FULL_KEPT = ("model.embed_tokens.weight", "model.layers.1.post_attention_layernorm.weight")


def learning_rate(step):
    """Of the 0-based step: from 0 linearly to the peak, then linearly to 0 (first reached after the last step)."""
    return PEAK * step / WARMUP if step < WARMUP else PEAK * (STEPS - step) / (STEPS - WARMUP)


def train(parameters, loss_of):
    """Losses before each update and gradient norms before clipping."""
    optimizer = torch.optim.AdamW(
        parameters, lr=PEAK, betas=tuple(RECIPE["betas"]), eps=RECIPE["eps"], weight_decay=RECIPE["weight_decay"]
    )
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, RECIPE["max_grad_norm"]).item())
        losses.append(loss.item())
        optimizer.step()
    assert losses[0] == losses[1], "the first step has learning rate 0 and moves nothing"
    return losses, norms


def initial(shapes, seed):
    """LoRA as PEFT starts it (A Kaiming-uniform(sqrt 5), B zero); adapters N(0, 0.02). f32 values."""
    noise = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in shapes.items():
        if "lora_A" in name:
            values[name] = (2 * torch.rand(shape, generator=noise) - 1) / shape[1] ** 0.5
        elif "lora_B" in name:
            values[name] = torch.zeros(shape)
        else:
            values[name] = 0.02 * torch.randn(shape, generator=noise)
    return values


def by_hand(run, start, losses):
    """AdamW written out, as a second opinion on torch's and on how this file calls it."""
    run.set(start)
    p = {name: value.double() for name, value in start.items()}
    m = {name: torch.zeros_like(value) for name, value in p.items()}
    v = {name: torch.zeros_like(value) for name, value in p.items()}
    (b1, b2), eps, decay = RECIPE["betas"], RECIPE["eps"], RECIPE["weight_decay"]
    for step in range(STEPS):
        lr = learning_rate(step)
        loss, grads = run.gradients()
        assert abs(loss - losses[step]) < 1e-11 * loss, (step, loss, losses[step])
        norm = sum(g.pow(2).sum() for g in grads.values()).sqrt()
        factor = min(1.0, RECIPE["max_grad_norm"] / (norm.item() + RECIPE["clip_eps"]))
        for name, grad in grads.items():
            g = grad * factor
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g * g
            m_hat, v_hat = m[name] / (1 - b1 ** (step + 1)), v[name] / (1 - b2 ** (step + 1))
            p[name] = p[name] - lr * decay * p[name] - lr * m_hat / (v_hat.sqrt() + eps)
        run.set(p)
    return p


def write_training(root, folder, all_ids):
    """Writes training/: per case the tensors before and after, and training.json with losses and norms."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    cases = []
    for name, (modules, policy, share) in CASES.items():
        case = {"name": name, "lambda": share, "policy": policy, "residual": "h0", **MODULES[modules]}
        case["scale"] = 1.0 if modules == "adapter_before" else case["scale"]
        run = Run(folder, all_ids, case, None, None)
        # The LoRA cases start from the same tensors, as paired arms do.
        start = initial({n: t.shape for n, t in run.tensors.items()}, seed=61 if modules == "lora" else 62)
        run.set(start)
        losses, norms = train(list(run.tensors.values()), run.loss)
        case |= {"initial": f"{modules}_initial.safetensors", "final": f"{name}_final.safetensors"}
        save_file(start, root / case["initial"])
        final = {n: t.detach().clone() for n, t in run.tensors.items()}
        save_file(final, root / case["final"])
        again = by_hand(run, start, losses)
        assert max(exact.relative_error(again[n], final[n]) for n in final) < 1e-11, name
        cases.append(case | {"losses": losses, "grad_norms": norms})
        print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}, gradient norm {norms[0]:.3f} to {norms[-1]:.3f}")

    model = exact.load(folder)
    model.requires_grad_(True)
    parameters = list(model.parameters())
    losses, norms = train(parameters, lambda: exact.loss([exact.forward(model, ids)[3] for ids in all_ids], all_ids))
    case = {"name": "full", "method": "full", "initial": None, "final": "full_final.safetensors"}
    weights = dict(model.named_parameters())
    save_file({name: weights[name].detach().clone() for name in FULL_KEPT}, root / case["final"])
    cases.append(case | {"losses": losses, "grad_norms": norms})
    print(f"full: loss {losses[0]:.4f} to {losses[-1]:.4f}, gradient norm {norms[0]:.3f} to {norms[-1]:.3f}")
    rates = [learning_rate(step) for step in range(STEPS)]
    write_json(root / "training.json", {"recipe": RECIPE, "learning_rates": rates, "cases": cases})
