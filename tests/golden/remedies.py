"""Golden values of remedies for over-smoothing under LoRA: states, gradients and ten AdamW steps.

`python remedies.py` remakes all cases, `python remedies.py neutreno cosine` those. README.md says what is in a
folder. But for one the models are those of methods.py and families.py, read where they lie.
"""

import shutil
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

import families_reference as ref
import remedies_reference as remedies
from methods import BETAS, EPS, LR, STEPS, train, train_by_hand
from remedies_by_hand import ByHand
from remedies_cases import BERT, CASES, LLAMA, MODERNBERT, SPREAD
from tiny_models import random_ids, write_json

LENGTHS = (1, 8, 13)
"""Of the causal texts; the first has neither a target nor a pair of tokens."""


def make_texts(root):
    """Three texts a model, by its path: the causal ones are new, an encoder's those of its own golden file."""
    texts = {}
    for base, seed in ((LLAMA, 82), (SPREAD, 83)):
        ids = random_ids(base.case.config["vocab_size"], LENGTHS, seed)
        texts[base.path] = [{"inputs": {"input_ids": row}} for row in ids]
    for base in (BERT, MODERNBERT):
        stored = load_file(root / base.path / "golden.safetensors")
        texts[base.path] = []
        for s in range(3):
            kept = {"input_ids": f"ids_{s}", "token_type_ids": f"types_{s}"}
            inputs = {name: stored[key].long() for name, key in kept.items() if key in stored}
            texts[base.path].append({"inputs": inputs, "labels": stored[f"labels_{s}"].long()})
    return texts


def worst(some, others):
    """Largest relative error between two dictionaries of tensors."""
    assert set(some) == set(others), set(some) ^ set(others)
    return max(ref.relative_error(some[name], others[name]) for name in some)


def gradient(case, tensors, loss, penalty):
    whole = remedies.total(case, loss, penalty)
    return dict(zip(tensors, torch.autograd.grad(whole, list(tensors.values()), retain_graph=True)))


def gradients(case, watched, tensors, texts):
    """The states, the data's loss, the penalty, and the gradient of what is trained on."""
    states = watched.each(texts)
    loss, penalty = remedies.losses(case, texts, states)
    return states, loss, penalty, gradient(case, tensors, loss, penalty)


def check_neutral(case, folder, values, texts):
    """At lambda 0, with every remedy there at the strength where it does nothing: the real PEFT, eager attention."""
    off = {"contranorm": {"strength": 0.0, "temperature": 1.0}, "neutreno": {"mu": 0.0}}
    off = {name: off.get(name, setting) for name, setting in case.remedies.items() if setting != "max"}
    depth = ref.load_plain(case.base.case, folder).config.num_hidden_layers

    def nothing(name, value):
        if ".lora_" in name:
            return value
        last = name.split(".")[3] == str(depth)
        if name.endswith(".weight"):
            return torch.eye(len(value)) if last else torch.zeros_like(value)
        # sigmoid(1000) and sigmoid(-1000) are 1 and 0 in f64.
        far = 1000.0 if last else -1000.0
        return torch.full_like(value, far) if name.endswith(".bias") else torch.zeros_like(value)

    ours, _ = remedies.build(case, folder, {n: nothing(n, v) for n, v in values.items()}, off, share=0.0)
    eager = replace(case.base.case, attention="eager")
    lora = {name: value for name, value in values.items() if ".lora_" in name}
    theirs = ref.Watched(eager, ref.load_exact(eager, folder))
    with ref.exact(), torch.no_grad():
        config = LoraConfig(r=ref.RANK, lora_alpha=ref.ALPHA, target_modules=list(eager.targets))
        wrapped = get_peft_model(theirs.model, config).eval()
        assert set(get_peft_model_state_dict(wrapped)) == set(lora), case.name
        set_peft_model_state_dict(wrapped, lora)
        error = max(worst(a, b) for a, b in zip(ours.each(texts), theirs.each(texts)))
    assert error < 1e-12, (case.name, error)


def check_by_hand(case, folder, watched, tensors, texts, states, loss, grads):
    """States and gradients as remedies_by_hand.py computes them; where there is a `head`, those behind the blocks."""
    model = ref.load_exact(case.base.case, folder)
    with ref.exact():
        hand = ByHand(case, model.config, model.state_dict(), tensors)
        if case.base.head is None:
            theirs = hand.each(texts)
        else:
            theirs = watched.each(texts)
            for state in theirs:
                x = hand.fused([state[f"block_{l}"] for l in range(1, model.config.num_hidden_layers + 1)])
                state["final_norm"] = x = model.get_submodule(case.base.case.final_norm)(x)
                for path in case.base.head:
                    x = model.get_submodule(path)(x)
                state["logits"] = x
        their_loss = ref.loss(case.base.case, texts, theirs)
        their_grads = gradient(case, tensors, their_loss, hand.penalty(theirs))
    kept = [{name: state[name] for name in other} for state, other in zip(states, theirs)]
    assert max(worst(a, b) for a, b in zip(kept, theirs)) < 1e-12, case.name
    assert abs(loss.item() - their_loss.item()) < 1e-12, case.name
    assert worst(grads, their_grads) < 1e-10, (case.name, worst(grads, their_grads))


def check_what_is_seen(case, watched, texts):
    """Another last token moves no earlier logit of a causal model, and all of an encoder's."""
    text = texts[-1]
    other = {**text, "inputs": {name: value.clone() for name, value in text["inputs"].items()}}
    ids = other["inputs"]["input_ids"]
    ids[-1] = (ids[-1] + 1) % watched.model.config.vocab_size
    with torch.no_grad():
        a, b = (watched.each([x])[0]["logits"] for x in (text, other))
    moved = (a - b).abs().amax(-1)
    if case.base.causal:
        assert moved[:-1].max() == 0 and moved[-1] > 1e-3, case.name
    else:
        assert moved.min() > 1e-6, case.name


def check_each_matters(case, folder, values, texts, states, grads):
    """Without any one of its remedies the case is another function, or has another gradient."""
    for name in case.remedies:
        fewer = replace(case, remedies={key: value for key, value in case.remedies.items() if key != name})
        watched, tensors = remedies.build(fewer, folder, values)
        with ref.exact():
            there = {key: tensors[key] for key in tensors if ".lora_" in key}
            plain, _, _, other = gradients(fewer, watched, there, texts)
        if name == "cosine":
            assert max(ref.relative_error(other[key], grads[key]) for key in there) > 1e-2, (case.name, name)
        else:
            assert ref.relative_error(plain[2]["logits"], states[2]["logits"]) > 1e-2, (case.name, name)


def check_signs(states):
    """Cosines of either sign are there, so that their absolute values are not the cosines themselves."""
    last = [state[max(name for name in state if name.startswith("block_"))] for state in states]
    cosines = torch.cat([(x @ x.T / x.norm(dim=-1) / x.norm(dim=-1)[:, None])[~torch.eye(len(x)).bool()] for x in last])
    assert (cosines > 0.01).sum() > 9 and (cosines < -0.01).sum() > 9, cosines.sort().values


def about_case(case, model, tensors, texts):
    base = case.base.case
    about = {"model": case.base.path, "method": "lora", "remedies": case.remedies, "causal": case.base.causal}
    about |= {"transformers": transformers.__version__, "loss_kind": base.loss}
    about["lengths"] = [len(text["inputs"]["input_ids"]) for text in texts]
    if case.twin:
        about["start_values_of"] = case.twin
    modules = {}
    for path, _, mixed in ref.targets(base, model):
        modules[path] = {"rank": ref.RANK, "alpha": ref.ALPHA, "scale": ref.SCALE}
        if case.share:
            modules[path] |= {"mixed": mixed} | ({"lambda": case.share} if mixed else {})
    about |= {"targets": base.targets, "modules": modules, "rank": ref.RANK, "alpha": ref.ALPHA, "use_rslora": False}
    about |= {"bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}
    if case.share:
        about |= {"lambda": case.share, "policy": "all", "h0": base.h0}
    return about | {"notes": case.notes, "trainable": list(tensors)}


def write_case(root, case, texts):
    folder, to = root.parent / case.base.path, root / case.name
    seed = zlib.crc32((case.twin or case.name).encode()) % 2**31
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    values = remedies.start_values(case, folder, seed)
    save_file({name: value.contiguous() for name, value in values.items()}, to / "adapter_model.safetensors")

    watched, tensors = remedies.build(case, folder, values)
    assert set(tensors) == set(values), case.name
    with ref.exact():
        states, loss, penalty, grads = gradients(case, watched, tensors, texts)
        whole = lambda: remedies.total(case, *remedies.losses(case, texts, watched.each(texts)))
        own = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
        for some in (tensors, own):
            ref.check_by_difference(whole, some, grads, seed + 3)
        check_what_is_seen(case, watched, texts)
    assert all(grad.isfinite().all() and grad.norm() > 0 for grad in grads.values()), case.name
    check_neutral(case, folder, values, texts)
    check_by_hand(case, folder, watched, tensors, texts, states, loss, grads)
    check_each_matters(case, folder, values, texts, states, grads)
    if case.base is SPREAD:
        check_signs(states)

    def trained(how):
        """The loss and penalty before each step, and the tensors after the last."""
        watched, tensors = remedies.build(case, folder, values)
        seen = []

        def loss_of():
            parts = remedies.losses(case, texts, watched.each(texts))
            seen.append([part if part is None else part.item() for part in parts])
            return remedies.total(case, *parts)

        with ref.exact():
            how(tensors, loss_of)
        assert len(seen) == STEPS
        return [list(column) for column in zip(*seen)], tensors

    (losses, penalties), after = trained(train)
    (losses_again, _), again = trained(train_by_hand)
    assert max(abs(a - b) for a, b in zip(losses, losses_again)) < 1e-11 and losses[0] == loss.item(), case.name
    assert all((after[name] - again[name]).abs().max() < 1e-10 for name in after), case.name
    moved = {name: (after[name] - values[name]).abs().max().item() for name in after}
    assert min(moved.values()) > 1e-4, (case.name, min(moved.items(), key=lambda item: item[1]))

    kept = lambda name: name.startswith("block_") or name in ("final_norm", "logits")
    stored = {f"ids_{s}": text["inputs"]["input_ids"].to(torch.uint32) for s, text in enumerate(texts)}
    for s, text in enumerate(texts):
        if "token_type_ids" in text["inputs"]:
            stored[f"types_{s}"] = text["inputs"]["token_type_ids"].to(torch.uint32)
        if "labels" in text:
            stored[f"labels_{s}"] = text["labels"].to(torch.uint32)
    stored |= {f"{n}_{s}": value.float() for s, state in enumerate(states) for n, value in state.items() if kept(n)}
    stored |= {f"grad.{name}": grad for name, grad in grads.items()}
    stored |= {f"after.{name}": value for name, value in after.items()}
    save_file({name: value.detach().contiguous() for name, value in stored.items()}, to / "golden.safetensors")
    about = about_case(case, ref.load_plain(case.base.case, folder), tensors, texts)
    optimizer = {"name": "AdamW", "betas": list(BETAS), "eps": EPS, "weight_decay": 0.0, "steps": STEPS}
    about |= {"learning_rate": LR, "optimizer": optimizer, "loss": loss.item(), "losses": losses}
    if penalty is not None:
        assert penalties[0] == penalty.item()
        about["penalties"] = penalties
    write_json(to / "golden.json", about)
    size = sum(path.stat().st_size for path in to.iterdir()) / 1024
    assert size < 200 and losses[-1] < losses[0], (case.name, size, losses)
    pressed = "" if penalty is None else f", penalty {penalties[0]:.4f} to {penalties[-1]:.4f}"
    print(f"{case.name}: {size:.0f} KB, {len(tensors)} tensors, loss {losses[0]:.4f} to {losses[-1]:.4f}{pressed}")
    return losses[-1]


def write_model(folder):
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    case = SPREAD.case
    model = ref.fill(case, case.cls(case.cls.config_class(**case.config)), seed=81)
    with torch.no_grad():
        table = model.get_submodule(case.table).weight
        table -= table.mean(0)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def write_remedies(root, names=()):
    unknown = set(names) - {case.name for case in CASES}
    assert not unknown, unknown
    root.mkdir(exist_ok=True)
    write_model(root / "model")
    texts = make_texts(root.parent)
    ends = [write_case(root, case, texts[case.base.path]) for case in CASES if not names or case.name in names]
    assert len(set(ends)) == len(ends), "no two cases are one training"


if __name__ == "__main__":
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write_remedies(Path(__file__).resolve().parent / "remedies", sys.argv[1:])
