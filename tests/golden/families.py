"""One tiny random model of every family the toolkit reads: its states at every layer and one LoRA-SIBO gradient.

`python families.py` remakes all cases, `python families.py gptj bloom` those. README.md says what is in a folder.
"""

import json
import shutil
import sys
import zlib
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file

import families_reference as ref
from families_cases import CASES
from tiny_models import random_ids, write_json

LENGTHS = (1, 7, 19)
MASKED = (0, 2, 4)
"""How many tokens of each text are masked."""


def make_texts(case, config, seed):
    """Three sequences: `inputs` of the model, `labels` where the loss has them, `stored` for the golden file."""
    noise = torch.Generator().manual_seed(seed + 1)
    if hasattr(config, "image_size"):
        return make_images(config, noise)
    texts = []
    for s, ids in enumerate(random_ids(config.vocab_size, LENGTHS, seed)):
        if config.pad_token_id is not None:
            # Padding within a text would shift RoBERTa's positions and end a classified text.
            ids[ids == config.pad_token_id] = config.pad_token_id + 2
        text = {"inputs": {"input_ids": ids}, "stored": {f"ids_{s}": ids}}
        if case.loss == "masked_token":
            mask_id = config.vocab_size - 1
            places = torch.randperm(len(ids), generator=noise)[: MASKED[s]]
            text["labels"] = torch.full_like(ids, ref.IGNORED)
            text["labels"][places] = ids[places]
            ids[places] = mask_id
            text["stored"][f"labels_{s}"] = text["labels"]
        if getattr(config, "type_vocab_size", 0) > 1:
            types = (torch.arange(len(ids)) >= (len(ids) + 1) // 2).long()
            text["inputs"]["token_type_ids"] = text["stored"][f"types_{s}"] = types
        if case.loss == "class":
            text["labels"] = torch.tensor(s % config.num_labels)
            text["stored"][f"classes_{s}"] = text["labels"][None]
        texts.append(text)
    return texts


def make_images(config, noise):
    shape = (config.num_channels, config.image_size, config.image_size)
    texts = []
    for s in range(3):
        pixels, label = torch.randn(shape, generator=noise), torch.tensor((2 * s + 1) % config.num_labels)
        texts.append({"inputs": {"pixel_values": pixels}, "labels": label, "stored": {f"pixels_{s}": pixels}})
    texts[0]["stored"]["labels"] = torch.stack([text["labels"] for text in texts])
    return texts


def check_peft(case, folder, values, texts):
    """PEFT itself loads these tensors under these names and, with lambda 0, computes what the hooks compute."""
    ours, theirs = (ref.Watched(case, ref.load_exact(case, folder)) for _ in range(2))
    ref.attach(case, ours, values, share=0.0)
    peft_config = LoraConfig(r=ref.RANK, lora_alpha=ref.ALPHA, target_modules=list(case.targets))
    with ref.exact(), torch.no_grad():
        wrapped = get_peft_model(theirs.model, peft_config).eval()
        assert set(get_peft_model_state_dict(wrapped)) == set(values), case.name
        set_peft_model_state_dict(wrapped, values)
        for a, b in zip(ours.each(texts), theirs.each(texts)):
            assert all(ref.relative_error(a[name], b[name]) < 1e-12 for name in a), case.name


def write_case(root, case):
    folder, seed = root / case.name, zlib.crc32(case.name.encode()) % 2**31
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    model = ref.fill(case, case.cls(case.cls.config_class(**case.config)), seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    texts = make_texts(case, model.config, seed)
    if case.old:
        new = json.loads((folder / "config.json").read_text())
        write_json(folder / "config_v5.json", new)
        new["torch_dtype"] = new.pop("dtype")
        case.old(new)
        write_json(folder / "config.json", dict(sorted(new.items())))

    watched = ref.Watched(case, ref.load_exact(case, folder))
    with ref.exact(), torch.no_grad():
        states = watched.each(texts)
        base = ref.loss(case, texts, states).item()
        if "input_ids" in texts[0]["inputs"]:
            ref.check_padding(case, watched, texts, states)
    worst = check_plain(case, folder, texts, states, base)

    renamed = ref.renamed(case, folder, watched.model)
    values = ref.lora_values(case, watched.model, seed + 2)
    check_peft(case, folder, values, texts)
    with ref.exact():
        tensors = ref.attach(case, watched, values)
        value = lambda: ref.loss(case, texts, watched.each(texts))
        tuned = value()
        grads = dict(zip(tensors, torch.autograd.grad(tuned, list(tensors.values()))))
        ref.check_by_difference(value, tensors, grads, seed + 3)
    assert all(grad.isfinite().all() and grad.norm() > 0 for grad in grads.values()), case.name

    stored = {name: value for text in texts for name, value in text["stored"].items()}
    stored = {name: value if value.is_floating_point() else value.to(torch.uint32) for name, value in stored.items()}
    stored |= {f"{name}_{s}": value.float() for s, state in enumerate(states) for name, value in state.items()}
    stored |= {f"lora.{name}": value for name, value in values.items()}
    stored |= {f"grad.{name}": grad for name, grad in grads.items()}
    save_file({name: value.detach().contiguous() for name, value in stored.items()}, folder / "golden.safetensors")
    lora = {"r": ref.RANK, "alpha": ref.ALPHA, "scale": ref.SCALE, "lambda": ref.LAMBDA, "policy": "all"}
    lora |= {"targets": case.targets, "mixed": case.mixed, "h0": case.h0}
    if case.relative:
        lora["mixed_in_relative_positions"] = False
    about = {"model_type": model.config.model_type, "class": case.cls.__name__}
    about["transformers"] = transformers.__version__
    about |= {"lengths": [len(state["embedding"]) for state in states], "sequences": len(texts)}
    about |= {"loss_kind": case.loss, "loss": [base, tuned.item()], "lora": lora}
    if renamed:
        about["names_in_file"] = renamed
    if case.loss == "masked_token":
        about["mask_id"] = model.config.vocab_size - 1
    write_json(folder / "golden.json", about)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1024
    rms = {name: round(v.pow(2).mean().sqrt().item(), 2) for name, v in states[2].items()}
    print(f"{case.name}: {size:.0f} KB, loss {base:.4f} {tuned.item():.4f}, off f32 by {worst:.1e}; rms {rms}")
    assert size < 190, case.name


def check_plain(case, folder, texts, states, base):
    """The untouched f32 model agrees; and the config in its old and its new form is one."""
    for config in ("config.json", "config_v5.json") if case.old else ("config.json",):
        plain = ref.Watched(case, ref.load_plain(case, folder, config))
        with torch.no_grad():
            plain_states = plain.each(texts)
        errors = [ref.relative_error(p[name], s[name]) for p, s in zip(plain_states, states) for name in s]
        plain_loss = ref.loss(case, texts, plain_states).item()
        assert max(errors) < 3e-6 and abs(plain_loss - base) < 3e-6 * base, (case.name, config, max(errors), plain_loss)
    return max(errors)


def write_families(root, names=()):
    root.mkdir(exist_ok=True)
    unknown = set(names) - {case.name for case in CASES}
    assert not unknown, unknown
    for case in CASES:
        if not names or case.name in names:
            write_case(root, case)


if __name__ == "__main__":
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write_families(Path(__file__).resolve().parent / "families", sys.argv[1:])
