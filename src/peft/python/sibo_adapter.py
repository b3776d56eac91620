"""Runs an adapter made by smooth-probe on a transformers model. `smooth-probe export --python` wrote this file.

    model = AutoModelForCausalLM.from_pretrained("base").eval()
    handle = apply_adapter(model, "path/to/adapter")    # handle.remove() gives the base model back
    model(input_ids)                                    # model.generate(...) as well, KV cache included

It needs torch and safetensors and runs LORA (DoRA too), IA3 and BOTTLENECK_ADAPTER, each also with SIBO_ in front, for
inference: the adapter's matrices are constants and LoRA's dropout is off. Gradients pass; under gradient checkpointing,
call backward before the next forward. A branch is scale * up(activation(down(x~))), where x~ = (1 - lambda) x +
lambda r if the initial residual is mixed in, else x; DoRA and (IA)3 have other forms, below. By the arm, r is the tokens' own
embedding (`h0`; with a KV cache that of the newest tokens), nothing (`none`), or h0 at the norm of x (`h0-normed`).
sibo_modules.json, beside the adapter, says:

    {"format": 1,
     "arm": "h0",                              null for a vanilla adapter
     "h0": {                                   null for a vanilla adapter and for the arm `none`
       "kind": "token",                        or "input", as adapter_config.json has it
       "module": "model.embed_tokens",         where h0 is seen: the embedding, the first block, ...
       "at": "output",                         ... its "output", or its "input": the first argument or hidden_states
       "factor": 1.0,                          optional: what is seen times this, ...
       "projection": null},                    ... optional: through this module of the model
     "modules": [{
       "path": "model.layers.0.mlp.up_proj",   in the model; "base_model.model.<path>.lora_A.weight" among the tensors
       "position": "beside",                   y + branch(x); "before": linear(x + branch(x)); "after": y + branch(y)
       "mixed": true, "lambda": 0.3, "scale": 2.0,
       "activation": "none",                   or "tanh"
       "form": "branch",                       optional; DoRA's "decomposed": magnitude / |V| (W x + branch(x)) + bias
                                               with V = W + scale B A; (IA)3's "factors" l: before the linear
                                               x + (l - 1) x~, after it l y
       "first_call_of": null}]}                optional: a module in whose every pass only the first call of the linear
                                               reads tokens (DeBERTa's attention.self: the next read distances)
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import linear

PREFIX = "base_model.model."
TENSORS = {"LORA": ("lora_A.weight", "lora_B.weight"), "IA3": ("ia3_l",)}
TENSORS["BOTTLENECK_ADAPTER"] = ("adapter_down.weight", "adapter_up.weight")
MAGNITUDE = "lora_magnitude_vector"  # of DoRA, behind LoRA's two
FORMS = ["branch", "decomposed", "factors"]
ACTIVATIONS = {"none": lambda x: x, "tanh": torch.tanh}
# The keys of sibo_modules.json that must be there, and what they may be.
FILE = {"format": [1], "arm": [None, "none", "h0", "h0-normed"], "h0": None, "modules": None}
H0 = {"kind": ["token", "input"], "module": None, "at": ["output", "input"]}
MODULE = {"path": None, "mixed": [True, False], "lambda": None, "scale": None, "activation": list(ACTIVATIONS)}
MODULE["position"] = ["beside", "before", "after"]


def apply_adapter(model, folder):
    """Puts the adapter of `folder` on `model`; the `remove()` of what it returns takes it off again."""
    config, spec = (read_json(Path(folder) / name) for name in ("adapter_config.json", "sibo_modules.json"))
    check_spec(config, spec)
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    own = TENSORS[config["peft_type"].removeprefix("SIBO_")] + ((MAGNITUDE,) if config.get("use_dora") else ())
    names = {part["path"]: [f"{PREFIX}{part['path']}.{name}" for name in own] for part in spec["modules"]}
    missing = [name for all_of in names.values() for name in all_of if name not in tensors]
    # A learned lambda stands in sibo_modules.json as it is.
    others = {name for name in set(tensors).difference(*names.values()) if not name.endswith(".sibo_lambda")}
    heads = {name.removeprefix(PREFIX): tensors[name] for name in others}
    check_fit(model, config, spec, missing, heads)
    return AppliedAdapter(model, spec, {path: [tensors[name] for name in own] for path, own in names.items()}, heads)


class AppliedAdapter:
    """An adapter on a model: its hooks, and h0 of the pass that runs."""

    def __init__(self, model, spec, weights, heads):
        self.model, self.arm, self.h0, self.hooks = model, spec["arm"], None, []
        if spec["h0"]:
            self.watch_h0(**spec["h0"])
        for part in spec["modules"]:
            self.add_branch(part, weights[part["path"]], part.get("first_call_of"))
        self.replaced = {name: value.clone() for name, value in model.state_dict().items() if name in heads}
        model.load_state_dict(heads, strict=False)

    def remove(self):
        """Takes all hooks off and puts the model's own head for classes back."""
        for hook in self.hooks:
            hook.remove()
        self.model.load_state_dict(self.replaced, strict=False)
        self.h0, self.hooks, self.replaced = None, [], {}

    def before(self, path, hook):
        self.hooks.append(self.model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, path, hook):
        self.hooks.append(self.model.get_submodule(path).register_forward_hook(hook))

    def watch_h0(self, module, at, kind, factor=None, projection=None):
        @torch.no_grad()
        def keep(seen):
            seen = seen * torch.tensor(factor or 1.0, dtype=seen.dtype)
            self.h0 = (self.model.get_submodule(projection)(seen) if projection else seen).detach()

        # A pass that never calls the module (one of `inputs_embeds`) must not read what another has left.
        self.before(module.rpartition(".")[0], lambda *_: setattr(self, "h0", None))
        if at == "output":
            self.after(module, lambda _module, _args, y: keep(y))
        else:
            self.before(module, lambda _module, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]))

    def add_branch(self, part, weights, first_call_of):
        activation, first, form = ACTIVATIONS[part["activation"]], set(), part.get("form", "branch")

        def read(x):
            nonlocal weights
            weights = [weight.to(x) for weight in weights]  # cast once: what fits comes back as it is
            mixed = self.mix(x, part) if part["mixed"] and (first or not first_call_of) else x
            first.clear()
            return mixed

        def branch(x):
            mixed = read(x)
            if form == "factors":
                return (weights[0].flatten() - 1) * mixed
            return part["scale"] * linear(activation(linear(mixed, weights[0])), weights[1])

        def decomposed(module, args, y):
            added, bias = branch(args[0]), 0 if module.bias is None else module.bias
            weight = module.weight.detach()
            weight = weight.t() if type(module).__name__ == "Conv1D" else weight
            length = (weight + part["scale"] * weights[1] @ weights[0]).norm(dim=1)
            return weights[2] / length * (y - bias + added.to(y)) + bias

        if first_call_of:
            self.before(first_call_of, lambda *_: first.add(True))
        if form == "decomposed":
            self.after(part["path"], decomposed)
        elif part["position"] == "before":
            self.before(part["path"], lambda _module, args, kwargs: ((args[0] + branch(args[0]), *args[1:]), kwargs))
        elif part["position"] == "beside":
            self.after(part["path"], lambda _module, args, y: y + branch(args[0]).to(y))
        else:
            self.after(part["path"], lambda _module, _args, y: y + branch(y))

    def mix(self, x, part):
        """(1 - lambda) x + lambda r."""
        if self.arm == "none":
            return (1 - part["lambda"]) * x
        if self.h0 is None or self.h0.numel() != x.numel():
            h0 = "no h0 was seen in this pass" if self.h0 is None else f"h0 is {tuple(self.h0.shape)}"
            raise RuntimeError(f"{part['path']} reads {tuple(x.shape)} and {h0}; call the model with input_ids")
        r = self.h0.to(x).reshape(x.shape)
        if self.arm == "h0-normed":
            wide = torch.promote_types(x.dtype, torch.float32)
            target, own = (t.detach().to(wide).norm(dim=-1, keepdim=True) for t in (x, r))
            r = (r.to(wide) * (target / own).masked_fill(own == 0, 0)).to(x)  # a zero row has no direction
        return (1 - part["lambda"]) * x + part["lambda"] * r


def read_json(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; `smooth-probe export --python` writes sibo_modules.json")
    return json.loads(path.read_text(encoding="utf-8"))


def faults(where, table, keys):
    absent = [f"{where} lacks {key}" for key in keys if key not in table]
    others = [key for key, known in keys.items() if key in table and known and table[key] not in known]
    return absent + [f"{where}: {key} is {table[key]!r}, known are {keys[key]}" for key in others]


def check_spec(config, spec):
    """Refuses what this file cannot run, and a sibo_modules.json that is not whole or belongs to another adapter."""
    if spec.get("arm") in ("shuffled", "random"):
        raise ValueError(f"the arm `{spec['arm']}` draws from smooth-probe's own random stream and runs only there")
    wrong = faults("the file", spec, FILE)
    if spec.get("arm") in ("h0", "h0-normed"):
        wrong += faults("h0", spec.get("h0") or {}, H0)
    for part in spec.get("modules") or []:
        wrong += faults(part.get("path", "a module"), {"form": "branch", **part}, {**MODULE, "form": FORMS})
    if config["peft_type"].removeprefix("SIBO_") not in TENSORS:
        wrong += [f"peft_type {config['peft_type']} is none of smooth-probe's"]
    if wrong:
        raise ValueError(f"sibo_modules.json: {'; '.join(wrong)}. `smooth-probe export --python` writes it anew")
    sibo, lambdas = config.get("sibo") or {}, {part["lambda"] for part in spec["modules"] if part["mixed"]}
    stated = lambdas if sibo.get("learned") else set(sibo.get("layers") or [sibo.get("lambda")])
    kind = (spec["h0"] or {}).get("kind", sibo.get("h0"))
    if (spec["arm"], kind) != (sibo.get("residual"), sibo.get("h0")) or lambdas - stated:
        raise ValueError(f"sibo_modules.json is of another adapter: adapter_config.json says {sibo or 'vanilla'}")


def check_fit(model, config, spec, missing, heads):
    """Every module must be in the model, and every tensor of the file must have its place there."""
    modules, own, h0 = dict(model.named_modules(remove_duplicate=False)), model.state_dict(), spec["h0"] or {}
    paths = [part[key] for part in spec["modules"] for key in ("path", "first_call_of") if part.get(key)]
    absent = [path for path in [*paths, h0.get("module"), h0.get("projection")] if path and path not in modules]
    alike = [name for name in modules if name and absent and f".{name}".endswith(f".{absent[0]}")]
    alike += [name for name in modules if name and absent and absent[0].endswith(f".{name}")]
    if alike:
        raise ValueError(
            f"the model's modules have another prefix than the adapter's: {alike[0]} where it has {absent[0]}; load "
            "the class of model that it was trained on (AutoModelForCausalLM, AutoModelForMaskedLM, ...)"
        )
    saved = tuple(f"{module}." for module in config.get("modules_to_save") or [])
    placed = {name for name in heads if name in own and own[name].shape == heads[name].shape and name.startswith(saved)}
    unused = sorted(set(heads) - placed)
    if absent or missing or unused:
        raise ValueError(
            f"the adapter does not fit. Modules that the model lacks: {absent or 'none'}. Tensors that the file lacks: "
            f"{missing or 'none'}. Tensors of the file with no place of their shape in the model (for classes, load it "
            f"with their num_labels): {unused or 'none'}"
        )
