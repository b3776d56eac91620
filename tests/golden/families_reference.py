"""What every case of families.py is made with: transformers in f64 throughout, hooks, LoRA-SIBO, padding.

transformers casts to f32 by name inside norms, softmax and rotary tables, even in an f64 model. Within `exact()`
every such cast gives f64 instead and tables built by a model's constructor are f64; nothing else is changed.
"""

import contextlib
import inspect
import json
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

RANK, ALPHA, SCALE, LAMBDA = 3, 7.5, 2.5, 0.3
IGNORED = 2**32 - 1
"""The label of a position that is not predicted."""


@dataclass
class Case:
    name: str
    cls: type
    config: dict
    stack: str
    """Path of the blocks: a ModuleList, or the one module that runs once per layer."""
    table: str
    """Path of the token embedding, whose output (already scaled, where a family scales it) is h0 `token`."""
    targets: list
    mixed: list
    """Targets and mixed are ends of module paths, as PEFT's `target_modules`."""
    final_norm: str | None = None
    h0: str = "token"
    loss: str = "next_token"
    zero_norm: bool = False
    """Norm weights are used as 1 + weight."""
    old: object = None
    """Rewrites config.json (a dict) to the keys of before transformers 5, in place."""
    left: bool = True
    """Can positions of a left-padded text be given?"""
    position_offset: int = 0
    attention: str = "eager"
    """Falcon's eager attention adds ALiBi twice in transformers 5 (in the mask and to the scores); `sdpa` is right."""
    relative: bool = False
    """Targets run on the relative position table too, where h0 is not mixed in."""


class F64Only(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        wide = lambda value: torch.float64 if value is torch.float32 else value
        return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})


@contextlib.contextmanager
def exact():
    assert torch.get_default_dtype() == torch.float32, "not to be nested"
    torch.set_default_dtype(torch.float64)
    try:
        with F64Only():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def load_plain(case, folder, config="config.json"):
    """The untouched f32 model of a folder."""
    config = case.cls.config_class.from_dict(json.loads((folder / config).read_text()))
    model = case.cls.from_pretrained(folder, config=config, attn_implementation=case.attention, dtype=torch.float32)
    return model.eval()


def load_exact(case, folder):
    """The model of a folder with the stored weights widened. Loaded outside `exact()`, run within it."""
    plain = load_plain(case, folder)
    plain.config._attn_implementation = case.attention
    plain.config.dtype = torch.float64
    with exact():
        model = case.cls(plain.config)
        model.load_state_dict(plain.state_dict())
    values = [*model.parameters(), *model.buffers()]
    assert all(value.dtype == torch.float64 for value in values if value.is_floating_point())
    for name, value in model.named_buffers():
        assert not name.endswith("inv_freq") or len(value) < 3 or not torch.equal(value, value.float().double()), name
    return model.eval()


def fill(case, model, seed):
    """Activations of order one, layers that differ, norms that are not the identity, biases that are not zero."""
    noise = torch.Generator().manual_seed(seed)
    kinds = {id(m.weight): m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D, nn.Conv2d))}
    kinds |= {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            value, module = torch.randn(weight.shape, generator=noise), kinds.get(id(weight))
            if isinstance(module, nn.Embedding):
                # The shared direction makes tokens alike, as in real models: cosines away from zero.
                value = 0.4 * value + 0.3 * torch.randn(weight.shape[1], generator=noise)
                value = value / getattr(module, "scalar_embed_scale", 1.0)
            elif module is not None:
                fan_in = weight.shape[0] if isinstance(module, Conv1D) else weight[0].numel()
                value = value * (0.7 + 0.6 * torch.rand((), generator=noise)) / fan_in**0.5
            elif name.endswith("weight") and weight.dim() == 1:
                value = 0.25 * value + (0.0 if case.zero_norm else 1.0)
            else:
                value = 0.3 * value
            weight.copy_(value)
    return model.eval()


def first(out):
    return out[0] if isinstance(out, tuple) else out


class Watched:
    """A model with hooks that keep what the golden file holds, for whatever batch ran last."""

    def __init__(self, case, model):
        self.case, self.model, self.seen = case, model, {}
        stack = model.get_submodule(case.stack)
        stack = list(stack) if isinstance(stack, nn.ModuleList) else [stack]
        stack[0].register_forward_pre_hook(self.keep_input, with_kwargs=True)
        for block in stack:
            block.register_forward_hook(lambda _m, _i, out: self.blocks.append(first(out)))
        self.hook(case.table, "token")
        if case.final_norm:
            self.hook(case.final_norm, "final_norm")

    def hook(self, path, name):
        keep = lambda _m, _i, out: self.seen.setdefault(name, out)
        self.model.get_submodule(path).register_forward_hook(keep)

    def keep_input(self, _module, args, kwargs):
        self.seen.setdefault("embedding", args[0] if args else kwargs["hidden_states"])

    @property
    def h0(self):
        return self.seen["token" if self.case.h0 == "token" else "embedding"].detach()

    def run(self, inputs):
        """`embedding`, `block_l`, `final_norm`, `h0`, `logits` of a batch, as far as the model has them."""
        self.seen, self.blocks = {}, []
        takes_cache = "use_cache" in inspect.signature(self.model.forward).parameters
        out = self.model(**inputs, **({"use_cache": False} if takes_cache else {}))
        assert len(self.blocks) == self.model.config.num_hidden_layers
        states = {"embedding": self.seen["embedding"]}
        states |= {f"block_{l}": block for l, block in enumerate(self.blocks, start=1)}
        if self.case.final_norm:
            states["final_norm"] = self.seen["final_norm"]
        states["h0"] = self.h0
        if "logits" in out:
            # A text's class stands at its first token, where each token has one.
            first_token = self.case.loss == "class" and out.logits.dim() == 3
            states["logits"] = out.logits[:, 0] if first_token else out.logits
        return states

    def each(self, texts):
        """The states of every text, each alone."""
        return [{name: value[0] for name, value in self.run(alone(text)).items()} for text in texts]


def alone(text):
    return {name: value[None] for name, value in text["inputs"].items()}


def loss(case, texts, states):
    """Mean over all target tokens (or texts) of all sequences together; README.md defines the kinds."""
    total = count = 0
    for text, state in zip(texts, states):
        if case.loss == "half_mean_square":
            x = state["final_norm"]
            total, count = total + x.pow(2).sum() / (2 * x.shape[-1]), count + len(x)
            continue
        logits, labels = state["logits"], text.get("labels")
        if case.loss == "next_token":
            logits, labels = logits[:-1], text["inputs"]["input_ids"][1:]
        elif case.loss == "masked_token":
            logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
        else:
            assert case.loss == "class"
            logits, labels = logits[None], labels[None]
        if len(labels):
            total, count = total + cross_entropy(logits, labels, reduction="sum"), count + len(labels)
    return total / count


def targets(case, model):
    """(path, module, does it read h0) of every target, by PEFT's rule."""
    ends = lambda path, names: any(path == name or path.endswith("." + name) for name in names)
    found = [(path, m, ends(path, case.mixed)) for path, m in model.named_modules() if ends(path, case.targets)]
    assert all(any(ends(path, [name]) for path, _, _ in found) for name in case.targets), case.targets
    assert all(isinstance(m, (nn.Linear, Conv1D)) for _, m, _ in found)
    return found


def lora_values(case, model, seed):
    """Random A and B of every target, under PEFT's names, f32."""
    noise = torch.Generator().manual_seed(seed)
    values = {}
    for path, module, _ in targets(case, model):
        width = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        for part, shape in (("lora_A", (RANK, width[0])), ("lora_B", (width[1], RANK))):
            name = f"base_model.model.{path}.{part}.weight"
            values[name] = 0.5 * torch.randn(shape, generator=noise) / shape[1] ** 0.5
    return values


def attach(case, watched, values, share=LAMBDA):
    """Adds s B A ((1 - lambda) x + lambda h0) to every target's output; the trainable tensors by PEFT's names."""
    watched.model.requires_grad_(False)
    tensors = {name: value.double().requires_grad_() for name, value in values.items()}

    def branch(path, mixed):
        a, b = (tensors[f"base_model.model.{path}.{part}.weight"] for part in ("lora_A", "lora_B"))

        def hook(_module, args, out):
            x = args[0]
            if mixed and (x.shape == watched.h0.shape or not case.relative):
                x = (1 - share) * x + share * watched.h0.reshape(x.shape)
            return out + SCALE * (x @ a.T @ b.T)

        return hook

    for path, module, mixed in targets(case, watched.model):
        module.register_forward_hook(branch(path, mixed))
    return tensors


def check_by_difference(value, tensors, grads, seed):
    """One entry of every third tensor against a central difference."""
    noise = torch.Generator().manual_seed(seed)
    step = 1e-5
    for name in list(tensors)[::3]:
        flat = tensors[name].detach().view(-1)
        k = torch.randint(flat.numel(), (), generator=noise).item()
        kept, sides = flat[k].item(), []
        for sign in (1, -1):
            flat[k] = kept + sign * step
            with torch.no_grad():
                sides.append(value().item())
        flat[k] = kept
        slope, given = (sides[0] - sides[1]) / (2 * step), grads[name].view(-1)[k].item()
        assert abs(slope - given) < 1e-8 + 2e-6 * abs(given), (name, k, slope, given)


def check_padding(case, watched, texts, states):
    """A padded batch gives every text the states it has alone; the sides that were tried."""
    longest = max(len(text["inputs"]["input_ids"]) for text in texts)
    parameters = inspect.signature(watched.model.forward).parameters
    for side in ("right", "left") if case.left else ("right",):
        batch = {name: [] for name in [*texts[0]["inputs"], "attention_mask", "position_ids"]}
        for text in texts:
            n = len(text["inputs"]["input_ids"])
            room = (0, longest - n) if side == "right" else (longest - n, 0)
            fill_id = watched.model.config.pad_token_id or 0
            for name, value in text["inputs"].items():
                batch[name].append(pad(value, room, value=fill_id if name == "input_ids" else 0))
            batch["attention_mask"].append(pad(torch.ones(n, dtype=torch.long), room))
            batch["position_ids"].append(pad(torch.arange(n) + case.position_offset, room))
        if "position_ids" not in parameters:
            del batch["position_ids"]
        padded = watched.run({name: torch.stack(rows) for name, rows in batch.items()})
        for s, (text, state) in enumerate(zip(texts, states)):
            n = len(text["inputs"]["input_ids"])
            for name, value in state.items():
                other = padded[name][s]
                if value.dim() == 2:
                    other = other[:n] if side == "right" else other[-n:]
                assert relative_error(other, value) < 1e-10, (case.name, side, s, name, relative_error(other, value))


def renamed(case, folder, model):
    """Targets whose weight has another path in the file than in the model: {path in the model: path in the file}."""
    file = load_file(folder / "model.safetensors")
    paths = {}
    for path, module, _ in targets(case, model):
        same = [key for key, value in file.items() if torch.equal(value.double(), module.weight)]
        assert len(same) == 1, (path, same)
        paths[path] = same[0].removesuffix(".weight")
    return {path: key for path, key in paths.items() if path != key}


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
