"""Two ways to run a case of methods.py: by the real PEFT, and written out with hooks.

The written-out way alone knows the residual: a branch that is mixed reads x~ = (1 - lambda) x + lambda h0, h0 the
token's row of the embedding table (detached), while the frozen path keeps x. At lambda 0 the two must agree.
"""

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import DynamicCache

import families_reference as ref
import sibo_reference as sibo
from methods_cases import DEPTH, MODEL, VIRTUAL, WIDTH, input_form, is_mixed, resolve, targets

PREFIX = "base_model.model."
THETAS = [-2.0, 0.3, 1.0]


class Watched(ref.Watched):
    """Calls a model as PEFT does, and keeps the states of the real tokens only."""

    def __init__(self, wrapped):
        super().__init__(MODEL, wrapped.get_base_model() if isinstance(wrapped, PeftModel) else wrapped)
        self.wrapped = wrapped

    def run(self, inputs):
        self.seen, self.blocks = {}, []
        logits = self.wrapped(**inputs, use_cache=False).logits
        states = {f"block_{l}": block for l, block in enumerate(self.blocks, start=1)}
        states |= {"final_norm": self.seen["final_norm"], "logits": logits}
        real = inputs["input_ids"].shape[1]
        return {name: value[:, -real:] for name, value in states.items()}


def loss(texts, states):
    return ref.loss(MODEL, texts, states)


def gradients(watched, tensors, texts):
    value = loss(texts, watched.each(texts))
    return value, dict(zip(tensors, torch.autograd.grad(value, list(tensors.values()))))


def base_name(name):
    """The model's own name of a base tensor that an adapter file holds."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".ln_tuning_layers.", ".")


def is_base(name, model):
    return base_name(name) in dict(model.named_parameters())


def peft_shapes(case, folder):
    """Names and shapes of the tensors that PEFT saves, or trains where it saves none of those it trains."""
    wrapped = get_peft_model(ref.load_plain(MODEL, folder), case.config)
    if getattr(case.config, "prefix_projection", False):
        return {name: p.shape for name, p in wrapped.named_parameters() if p.requires_grad}
    return {n: p.shape for n, p in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()}


def shapes(case, folder):
    if case.config is not None:
        found = peft_shapes(case, folder)
    elif case.method == "bitfit":
        named = ref.load_plain(MODEL, folder).named_parameters()
        found = {PREFIX + name: p.shape for name, p in named if name.endswith(".bias")}
    else:
        found = {}
        for path, _ in targets(case, ref.load_plain(MODEL, folder)):
            found[f"{PREFIX}{path}.adapter_down.weight"] = (case.bottleneck, WIDTH)
            found[f"{PREFIX}{path}.adapter_up.weight"] = (WIDTH, case.bottleneck)
    if case.share == "layer":
        found |= {f"{PREFIX}model.layers.{layer}.sibo_lambda": (1,) for layer in range(DEPTH)}
    if case.share == "module":
        paths = [path for path, _ in targets(case, ref.load_plain(MODEL, folder)) if is_mixed(case, path)]
        found |= {f"{PREFIX}{path}.sibo_lambda": (1,) for path in paths}
    return found


def start_values(case, folder, seed):
    """Random f32 start values by name, none of them the trivial initialisation."""
    noise, values = torch.Generator().manual_seed(seed), {}
    base = ref.load_plain(MODEL, folder).state_dict()
    for name, shape in shapes(case, folder).items():
        value = torch.randn(tuple(shape), generator=noise)
        if name.endswith(".ia3_l"):
            value = 1.0 + 0.3 * value
        elif name.endswith(".lora_magnitude_vector"):
            module = name.removesuffix(".lora_magnitude_vector")
            a, b = values[f"{module}.lora_A.weight"], values[f"{module}.lora_B.weight"]
            path = module.removeprefix(PREFIX)
            whole = base[f"{path}.weight"] + resolve(case.config, path)["scale"] * (b @ a)
            value = whole.norm(dim=1) * (1.0 + 0.2 * value)
        elif name.endswith(".sibo_lambda"):
            value = torch.tensor([THETAS[int(name.split(".")[4])]]) if case.share == "layer" else 0.5 * value - 1.0
        elif base_name(name) in base:
            value = base[base_name(name)] + 0.1 * value
        elif "prompt_e" in name and "transform" not in name:
            value = 0.7 * value
        else:
            value = 0.6 * value / shape[-1] ** 0.5
        values[name] = value
    return values


def fill_peft(wrapped, values):
    """Puts values into a model wrapped by PEFT, by PEFT's own loader where these are what it loads."""
    own = dict(wrapped.named_parameters())
    if set(values) <= set(own):
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        return
    left = set_peft_model_state_dict(wrapped, values).unexpected_keys
    assert not set(left) - {"prompt_embeddings"}, left


def save_peft(case, folder, values, to):
    """The adapter folder, f32, as PEFT writes it."""
    wrapped = get_peft_model(ref.load_plain(MODEL, folder), case.config)
    fill_peft(wrapped, values)
    config = wrapped.peft_config["default"]
    config.base_model_name_or_path = folder.name
    for key in ("target_modules", "feedforward_modules"):
        if getattr(config, key, None):
            setattr(config, key, sorted(getattr(config, key)))
    wrapped.save_pretrained(to, save_embedding_layers=False)
    (to / "README.md").unlink()


def build_peft(case, folder, values):
    """The real PEFT in f64: its watched model and the trainable tensors by the names of the file."""
    model = ref.load_exact(MODEL, folder)
    with ref.exact():
        wrapped = get_peft_model(model, case.config, autocast_adapter_dtype=False).double().eval()
        fill_peft(wrapped, values)
        if getattr(case.config, "prefix_projection", False):
            tensors = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
        elif case.method in ("prefix", "prompt"):
            tensors = {"prompt_embeddings": wrapped.prompt_encoder["default"].embedding.weight}
        else:
            live = wrapped.state_dict(keep_vars=True)
            tensors = get_peft_model_state_dict(wrapped, state_dict=live, save_embedding_layers=False)
    trained = {id(p) for p in wrapped.parameters() if p.requires_grad}
    assert {id(p) for p in tensors.values()} == trained, "PEFT trains what it saves"
    assert set(tensors) == set(values) and all(torch.equal(p, values[n].double()) for n, p in tensors.items())
    if case.method in ("lora", "dora"):
        for path, module in wrapped.get_base_model().named_modules():
            if hasattr(module, "lora_A"):
                theirs = {"rank": module.r["default"], "alpha": module.lora_alpha["default"]}
                assert theirs | {"scale": module.scaling["default"]} == resolve(case.config, path), path
    if case.method == "ia3":
        for path, module in wrapped.get_base_model().named_modules():
            assert not hasattr(module, "ia3_l") or module.is_feedforward == input_form(case, path)
    return Watched(wrapped), tensors


def attach(case, watched, values, share, held=None):
    """Writes the case's method out with hooks; the trainable tensors by name.

    `held`: DoRA's norms by module, kept from the first forward on, so that a difference sees them fixed as the
    gradient does.
    """
    model = watched.model.requires_grad_(False)
    own, tensors = dict(model.named_parameters()), {}
    for name, value in values.items():
        if is_base(name, model):
            tensors[name] = own[base_name(name)]
            tensors[name].data.copy_(value)
            tensors[name].requires_grad_()
        elif share in ("layer", "module") or not name.endswith(".sibo_lambda"):
            tensors[name] = value.double().requires_grad_()

    def lam(path):
        if isinstance(share, list):
            return share[int(path.split(".")[2])]
        if share == "layer":
            return torch.sigmoid(tensors[PREFIX + ".".join(path.split(".")[:3]) + ".sibo_lambda"])
        if share == "module":
            return torch.sigmoid(tensors[f"{PREFIX}{path}.sibo_lambda"])
        return share

    def mix(path, x):
        if share is None or not is_mixed(case, path):
            return x
        return (1 - lam(path)) * x + lam(path) * watched.h0

    def get(path, *parts):
        return [tensors[f"{PREFIX}{path}.{part}"] for part in parts]

    def lora(path, _linear):
        (a, b), s = get(path, "lora_A.weight", "lora_B.weight"), resolve(case.config, path)["scale"]
        return lambda _m, args, out: out + s * (mix(path, args[0]) @ a.T @ b.T)

    def dora(path, linear):
        a, b, m = get(path, "lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        s = resolve(case.config, path)["scale"]

        def hook(_module, args, out):
            norm = (linear.weight + s * (b @ a)).norm(dim=1).detach()
            norm = norm if held is None else held.setdefault(path, norm)
            return (m / norm) * (out - linear.bias + s * (mix(path, args[0]) @ a.T @ b.T)) + linear.bias

        return hook

    def ia3(path, _linear):
        (l,) = get(path, "ia3_l")
        if input_form(case, path):
            return lambda _m, args: (args[0] + (l.flatten() - 1) * mix(path, args[0]),)
        return lambda _m, _args, out: out * l.flatten()

    def adapter(path, _linear):
        down, up = get(path, "adapter_down.weight", "adapter_up.weight")
        return lambda _m, _args, out: out + case.scale * (torch.tanh(mix(path, out) @ down.T) @ up.T)

    write = {"lora": lora, "dora": dora, "ia3": ia3, "adapter": adapter}.get(case.method)
    for path, linear in targets(case, model) if write else ():
        before = case.method == "ia3" and input_form(case, path)
        (linear.register_forward_pre_hook if before else linear.register_forward_hook)(write(path, linear))
    return tensors


def build_reference(case, folder, values, share, held=None):
    """The method written out, in f64: its watched model and the trainable tensors by the names of the file."""
    watched = Watched(ref.load_exact(MODEL, folder))
    return watched, attach(case, watched, values, share, held)


def build_adapters(case, folder, values):
    """The adapter cases once more, by the modules of sibo_reference.py."""
    model = ref.load_exact(MODEL, folder)
    residual = sibo.Residual("h0", case.share or 0.0)
    keep = lambda _m, _args, out: residual.start(0, out)
    model.get_submodule(MODEL.table).register_forward_hook(keep)
    settings = {"method": "adapter", "policy": "all", "targets": case.targets, "scale": case.scale}
    with ref.exact():
        tensors = sibo.attach(model, settings | {"bottleneck": case.bottleneck}, residual)
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)
    return Watched(model), {name: tensors[name] for name in values}


def virtual_by_hand(case, folder, prompt, ids, first):
    """Logits with the virtual tokens put in by hand, real tokens at rotary positions from `first`."""
    model, n, config = ref.load_exact(MODEL, folder), len(ids), MODEL.config
    with ref.exact(), torch.no_grad():
        places, seen = first + torch.arange(n), torch.ones(1, VIRTUAL + n, dtype=torch.long)
        if case.method == "prompt":
            rows = torch.cat([prompt, model.get_input_embeddings()(ids)])
            places = torch.cat([torch.arange(VIRTUAL), places])
            return model(inputs_embeds=rows[None], position_ids=places[None], attention_mask=seen).logits[0, -n:]
        layers = prompt.view(VIRTUAL, DEPTH, 2, config["num_key_value_heads"], config["head_dim"])
        cache = DynamicCache()
        for layer in range(DEPTH):
            keys, values = (layers[:, layer, kind].transpose(0, 1)[None] for kind in (0, 1))
            cache.update(keys, values, layer)
        return model(ids[None], position_ids=places[None], cache=cache, attention_mask=seen).logits[0]
