"""Golden values of parameter-efficient methods on one tiny model: states, gradients and ten AdamW steps.

`python methods.py` remakes all cases, `python methods.py dora ia3` those. README.md says what is in a folder.
Methods that PEFT has run in the real PEFT; those with the initial residual, the adapters and BitFit as
methods_reference.py writes them out.
"""

import shutil
import sys
import zlib
from pathlib import Path

import peft
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

import families_reference as ref
import methods_reference as methods
from methods_cases import CASES, MODEL, VIRTUAL, input_form, is_mixed, resolve, targets
from tiny_models import random_ids, write_json

LENGTHS = (5, 9, 14)
STEPS, LR, BETAS, EPS = 10, 1e-2, (0.9, 0.999), 1e-8


def train(tensors, loss_of):
    """Losses before each AdamW step; the tensors are left as the last one leaves them."""
    parameters, losses = list(tensors.values()), []
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


def train_by_hand(tensors, loss_of):
    """The same with AdamW written out, as a second opinion on torch's and on how this file calls it."""
    m, v = ({name: torch.zeros_like(p) for name, p in tensors.items()} for _ in range(2))
    (b1, b2), losses = BETAS, []
    for step in range(1, STEPS + 1):
        loss = loss_of()
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, list(tensors.values()))
        for (name, p), g in zip(tensors.items(), grads):
            m[name], v[name] = b1 * m[name] + (1 - b1) * g, b2 * v[name] + (1 - b2) * g * g
            p.data -= LR * m[name] / (1 - b1**step) / ((v[name] / (1 - b2**step)).sqrt() + EPS)
    return losses


def same(one, other, texts, name):
    """Two builds of one function: states to 1e-12 (relative), gradients to 1e-10."""
    (a, ours), (b, theirs) = one, other
    with ref.exact():
        pairs = [(x[key], y[key]) for x, y in zip(a.each(texts), b.each(texts)) for key in x]
        assert max(ref.relative_error(x, y) for x, y in pairs) < 1e-12, name
        (_, mine), (_, yours) = methods.gradients(a, ours, texts), methods.gradients(b, theirs, texts)
    assert set(mine) <= set(yours), (name, set(mine) ^ set(yours))
    worst = max(ref.relative_error(mine[key], yours[key]) for key in mine)
    assert worst < 1e-10, (name, worst)


def check(case, folder, values, texts, seed):
    """Second computations of what the case holds: another build, and differences."""
    virtual = case.method in ("prefix", "prompt")
    if virtual:
        watched, tensors = methods.build_peft(case, folder, values)
    else:
        watched, tensors = methods.build_reference(case, folder, values, case.share, held={})
    if case.config is not None and not virtual:
        base_values = {name: value for name, value in values.items() if not name.endswith(".sibo_lambda")}
        theirs = methods.build_peft(case, folder, base_values)
        for share in (0.0, None):
            same(methods.build_reference(case, folder, base_values, share), theirs, texts, case.name)
    if case.method == "adapter":
        same(methods.build_reference(case, folder, values, case.share),
             methods.build_adapters(case, folder, values), texts, case.name)  # fmt: skip
    with ref.exact():
        _, grads = methods.gradients(watched, tensors, texts)
        ref.check_by_difference(lambda: methods.loss(texts, watched.each(texts)), tensors, grads, seed + 3)
    assert all(grad.isfinite().all() and grad.norm() > 0 for grad in grads.values()), case.name
    return grads


def check_virtual(case, folder, prompt, texts, states):
    """Layout and positions of virtual tokens: real ones begin at rotary position 4, and at 0 would differ."""
    for text, state in zip(texts, states):
        ids = text["inputs"]["input_ids"]
        put = lambda first: methods.virtual_by_hand(case, folder, prompt, ids, first)
        assert ref.relative_error(put(VIRTUAL), state["logits"]) < 1e-12, case.name
        assert ref.relative_error(put(0), state["logits"]) > 1e-4, case.name


def check_reload(case, folder, to, texts, states):
    """PEFT reads its own folder into the untouched f32 model, and computes these logits."""
    wrapped = PeftModel.from_pretrained(ref.load_plain(MODEL, folder), to).eval()
    with torch.no_grad():
        plain = methods.Watched(wrapped).each(texts)
    worst = max(ref.relative_error(p[name], s[name]) for p, s in zip(plain, states) for name in s)
    assert worst < 3e-6, (case.name, worst)


def about_modules(case, model):
    """What holds of each target, by its path in the model."""
    modules = {}
    for path, _ in targets(case, model):
        about = modules[path] = {}
        if case.method in ("lora", "dora"):
            about |= resolve(case.config, path)
        elif case.method == "ia3":
            about["form"] = "input" if input_form(case, path) else "output"
        elif case.method == "adapter":
            about |= {"bottleneck": case.bottleneck, "scale": case.scale}
        if case.share is not None:
            about["mixed"] = is_mixed(case, path)
            if about["mixed"] and not isinstance(case.share, str):
                layer = int(path.split(".")[2])
                about["lambda"] = case.share[layer] if isinstance(case.share, list) else case.share
    return modules


def about_case(case, model, tensors):
    about = {"method": case.method, "peft_config": None if case.config is None else case.config.peft_type.value}
    about |= {"peft": peft.__version__, "transformers": transformers.__version__, "lengths": list(LENGTHS)}
    if case.twin:
        about["start_values_of"] = case.twin
    if case.targets:
        about |= {"targets": case.targets, "modules": about_modules(case, model)}
    if case.method in ("lora", "dora"):
        config = case.config
        about |= {"rank": config.r, "alpha": config.lora_alpha, "use_rslora": config.use_rslora}
        about |= {"bias": config.bias, "rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
        about["modules_to_save"] = config.modules_to_save
    if case.share is not None:
        learned = {"layer": "learnable by layer", "module": "learnable by module"}
        share = learned[case.share] if isinstance(case.share, str) else case.share
        about |= {"lambda": share, "policy": "all", "h0": "token"}
    if case.method in ("prefix", "prompt"):
        about |= {"num_virtual_tokens": VIRTUAL, "first_real_position": VIRTUAL}
    base = {name: methods.base_name(name) for name in tensors if methods.is_base(name, model)}
    if base:
        about["base_tensors"] = base
    return about | {"notes": case.notes, "trainable": list(tensors)}


def write_case(root, case, texts):
    folder, to = root / "model", root / case.name
    seed = zlib.crc32((case.twin or case.name).encode()) % 2**31
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    values = methods.start_values(case, folder, seed)
    projected = getattr(case.config, "prefix_projection", False)
    if case.config is not None and case.share is None:
        methods.save_peft(case, folder, values, to)
        saved = load_file(to / "adapter_model.safetensors")
        same_file = set(saved) == set(values) and all(torch.equal(saved[name], values[name]) for name in saved)
        assert same_file or projected, case.name
        build = lambda: methods.build_peft(case, folder, values)
    else:
        save_file({n: v.contiguous() for n, v in values.items()}, to / "adapter_model.safetensors")
        build = lambda: methods.build_reference(case, folder, values, case.share)
    other_grads = check(case, folder, values, texts, seed)

    watched, tensors = build()
    prompt = lambda: watched.wrapped.get_prompt_embedding_to_save("default").clone()
    stored = {}
    with ref.exact():
        with torch.no_grad():
            states = watched.each(texts)
        start, grads = methods.gradients(watched, tensors, texts)
        if projected:
            stored |= {f"start.{name}": values[name] for name in tensors} | {"prompt_embeddings_start": prompt()}
            assert ref.relative_error(saved["prompt_embeddings"], stored["prompt_embeddings_start"]) < 1e-6
        elif case.method in ("prefix", "prompt"):
            stored["prompt_embeddings_start"] = prompt()
    if case.method in ("prefix", "prompt"):
        check_virtual(case, folder, stored["prompt_embeddings_start"], texts, states)
        if not projected:
            del stored["prompt_embeddings_start"]
    if case.config is not None and case.share is None:
        check_reload(case, folder, to, texts, states)
    assert max(ref.relative_error(other_grads[name], grads[name]) for name in grads) < 1e-10, case.name
    with ref.exact():
        losses = train(tensors, lambda: methods.loss(texts, watched.each(texts)))
        after = {name: p.detach().clone() for name, p in tensors.items()}
        if projected:
            stored["prompt_embeddings_after"] = prompt()
    second, again = build()
    with ref.exact():
        losses_again = train_by_hand(again, lambda: methods.loss(texts, second.each(texts)))
    assert max(abs(a - b) for a, b in zip(losses, losses_again)) < 1e-11 and losses[0] == start.item()
    assert all((after[name] - again[name]).abs().max() < 1e-10 for name in after), case.name
    assert all((after[name] - values[name]).abs().max() > 1e-3 for name in after), case.name

    stored |= {f"ids_{s}": text["inputs"]["input_ids"].to(torch.uint32) for s, text in enumerate(texts)}
    stored |= {f"{name}_{s}": value.float() for s, state in enumerate(states) for name, value in state.items()}
    stored |= {f"grad.{name}": grad for name, grad in grads.items()}
    stored |= {f"after.{name}": value for name, value in after.items()}
    save_file({name: value.detach().contiguous() for name, value in stored.items()}, to / "golden.safetensors")
    about = about_case(case, ref.load_plain(MODEL, folder), tensors)
    optimizer = {"name": "AdamW", "betas": list(BETAS), "eps": EPS, "weight_decay": 0.0, "steps": STEPS}
    about |= {"learning_rate": LR, "optimizer": optimizer, "loss": start.item(), "losses": losses}
    write_json(to / "golden.json", about)
    size = sum(path.stat().st_size for path in to.iterdir()) / 1024
    assert size < 300 and losses[-1] < losses[0], (case.name, size, losses)
    print(f"{case.name}: {size:.0f} KB, {len(tensors)} tensors, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    return start.item()


def write_model(folder):
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    model = ref.fill(MODEL, MODEL.cls(MODEL.cls.config_class(**MODEL.config)), seed=71)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def write_methods(root, names=()):
    unknown = set(names) - {case.name for case in CASES}
    assert not unknown, unknown
    root.mkdir(exist_ok=True)
    write_model(root / "model")
    ids = random_ids(MODEL.config["vocab_size"], LENGTHS, seed=72)
    texts = [{"inputs": {"input_ids": row}} for row in ids]
    losses = [write_case(root, case, texts) for case in CASES if not names or case.name in names]
    assert len(set(losses)) == len(losses), "no two cases are one function"


if __name__ == "__main__":
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write_methods(Path(__file__).resolve().parent / "methods", sys.argv[1:])
