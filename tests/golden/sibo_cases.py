"""Part C: loss, gradients and states of SIBO for both policies, all residual arms and all placements."""

import shutil

import torch
from safetensors.torch import save_file

import exact
from sibo_reference import ARMS, Residual, attach
from tiny_models import write_json

LAMBDA = 0.3
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
ALL_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# PEFT tensor files: what a case's modules are, whatever its policy and arm.
MODULES = {
    "lora": dict(method="lora", rank=3, alpha=7.5, scale=2.5, targets=LORA_TARGETS),
    "lora_every_linear": dict(method="lora", rank=3, alpha=7.5, scale=2.5, targets=ALL_LINEARS),
    "adapter_before": dict(method="adapter", bottleneck=5, scale=1.5, targets=["gate_proj", "up_proj"]),
    "adapter_after": dict(method="adapter", bottleneck=5, scale=1.0, targets=["o_proj", "down_proj"]),
    "adapter_both": dict(method="adapter", bottleneck=5, scale=1.5, targets=["gate_proj", "up_proj", "down_proj"]),
    "parallel": dict(method="adapter-parallel", bottleneck=5, scale=1.5, targets=["gate_proj", "up_proj", "down_proj"]),
}
POLICIES = ("official", "all")
PLAN = (
    [("lora", policy, arm) for policy in POLICIES for arm in ARMS]
    + [("lora_every_linear", policy, "h0") for policy in POLICIES]
    + [("adapter_before", policy, arm) for policy in POLICIES for arm in ("h0", "none", "h0-normed")]
    + [("adapter_after", "all", arm) for arm in ("h0", "none", "h0-normed")]
    + [("adapter_both", policy, "h0") for policy in POLICIES]
    + [("parallel", policy, "h0") for policy in POLICIES]
)


def controls(model, all_ids, seed):
    """The arms' own data: per text an index of earlier positions, and one vector of h0's mean norm."""
    noise = torch.Generator().manual_seed(seed)
    shuffles = [
        torch.tensor([0] + [int(torch.randint(i, (), generator=noise)) for i in range(1, len(ids))]) for ids in all_ids
    ]
    table = model.get_input_embeddings().weight.detach()
    vector = torch.randn(table.shape[1], generator=noise).double()
    return shuffles, vector / vector.norm() * table.norm(dim=1).mean()


def random_tensors(shapes, seed):
    """f32 values of order 1/sqrt(fan in), so that every branch is about as strong as the frozen path."""
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=noise) * 0.5 / shape[1] ** 0.5 for name, shape in shapes.items()}


class Run:
    """One case over gqa_tied: its PEFT tensors, and the loss as a function of them."""

    def __init__(self, folder, all_ids, case, shuffles, vector):
        self.model, self.all_ids = exact.load(folder), all_ids
        self.residual = Residual(case["residual"], case["lambda"], shuffles, vector)
        self.tensors = attach(self.model, case, self.residual)

    def set(self, values):
        with torch.no_grad():
            for name, value in self.tensors.items():
                value.copy_(values[name])

    def forward(self, s):
        """(last block's output, logits) of sequence s."""
        ids = self.all_ids[s]
        self.residual.start(s, self.model.get_input_embeddings()(ids))
        _, blocks, _, logits = exact.forward(self.model, ids)
        return blocks[-1], logits

    def loss(self):
        return exact.loss([self.forward(s)[1] for s in range(len(self.all_ids))], self.all_ids)

    def gradients(self):
        loss = self.loss()
        grads = torch.autograd.grad(loss, list(self.tensors.values()))
        return loss.item(), dict(zip(self.tensors, grads))


def check_by_difference(run, grads, seed):
    """Two entries of several gradient tensors against central differences."""
    noise = torch.Generator().manual_seed(seed)
    step = 1e-5
    names = list(run.tensors)[::4]
    if run.residual.arm == "h0-normed":
        # A difference moves the factor that the gradient holds fixed, but not within the last feed-forward.
        names = [name for name in run.tensors if f"layers.{run.model.config.num_hidden_layers - 1}.mlp" in name]
    for name in names:
        flat = run.tensors[name].detach().view(-1)
        for k in torch.randint(flat.numel(), (2,), generator=noise).tolist():
            value, sides = flat[k].item(), []
            for sign in (1, -1):
                flat[k] = value + sign * step
                with torch.no_grad():
                    sides.append(run.loss().item())
            flat[k] = value
            slope, given = (sides[0] - sides[1]) / (2 * step), grads[name].view(-1)[k].item()
            assert abs(slope - given) < 1e-8 + 1e-6 * abs(given), (name, k, slope, given)


def write_cases(root, folder, all_ids):
    """Writes sibo/: controls, one file of PEFT tensors per module set, one file of results per case, cases.json."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    shuffles, vector = controls(exact.load(folder), all_ids, seed=31)
    named = {f"shuffle_{s}": index.to(torch.uint32) for s, index in enumerate(shuffles)}
    save_file(named | {"random_vector": vector}, root / "controls.safetensors")

    values, cases, written = {}, [], {}
    for modules, policy, arm in PLAN:
        case = {"name": f"{modules}_{policy}_{arm}", "tensors": f"{modules}.safetensors", "lambda": LAMBDA}
        case |= {"policy": policy, "residual": arm, **MODULES[modules]}
        run = Run(folder, all_ids, case, shuffles, vector)
        if modules not in values:
            shapes = {name: tensor.shape for name, tensor in run.tensors.items()}
            values[modules] = random_tensors(shapes, seed=40 + len(values))
            save_file(values[modules], root / case["tensors"])
        run.set(values[modules])
        loss, grads = run.gradients()
        assert all(grad.isfinite().all() and grad.norm() > 0 for grad in grads.values()), case
        with torch.no_grad():
            block, logits = run.forward(2)
        check_by_difference(run, grads, seed=50)

        # Where a policy mixes nothing else (adapters in front alone), the two policies are one function.
        result = {f"grad.{name}": grad for name, grad in grads.items()} | {"last_block_2": block, "logits_2": logits}
        twin = next((c for c in cases if c["tensors"] == case["tensors"] and c["residual"] == arm), None)
        same = twin is not None and all(torch.equal(result[k], written[twin["name"]][k]) for k in result)
        assert same == (policy == "all" and modules in ("adapter_before", "parallel")), case["name"]
        case["loss"], case["results"] = loss, twin["results"] if same else f"{case['name']}.safetensors"
        if not same:
            save_file(result, root / case["results"])
        written[case["name"]] = result
        cases.append(case)
        print(f"{case['name']}: loss {loss:.6f}{' (as official)' if same else ''}")
    distinct = {case["results"]: case["loss"] for case in cases}
    assert len(set(distinct.values())) == len(distinct), "two cases cannot be told apart"
    write_json(root / "cases.json", cases)
