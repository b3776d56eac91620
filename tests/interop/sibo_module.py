"""sibo_adapter.py against the program: the same adapters must give the same hidden states in transformers.

    python sibo_module.py [--program PATH] [--families NAME ...] [--folder DIR]

Needs torch, transformers and peft (tests/golden/requirements.txt); NAME is a case of tests/golden/families_cases.py,
`llama`, or `all` that learn from texts; by default llama, gpt2, gemma and bert_mlm. For each a tiny random model is
saved; the program trains every method, policy and arm on it (lambda 0.3, scale 2.5, five steps of a large rate) and
writes the hidden states of three texts and, by `export --python`, what sibo_adapter.py is told. sibo_adapter.py must give them within 1e-5 at every layer, and must not if it
ignores the initial residual. Decoders must then generate with a KV cache what they generate without. Exit codes: 0 as
hoped, 1 not. The network is never used.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src/peft/python"), str(ROOT / "tests/golden")]

import families_reference as ref
import torch
from families_cases import CASES, LLAMA, llama_like
from safetensors.torch import load_file, save_file
from sibo_adapter import apply_adapter
from transformers import AutoModel, LlamaForCausalLM
from transformers.utils import logging

CAUSAL_LLAMA = {name: value for name, value in LLAMA.items() if name not in ("num_labels", "pad_token_id")}
ALL = [
    llama_like("llama", LlamaForCausalLM, CAUSAL_LLAMA),
    *(case for case in CASES if case.name not in ("vit", "t5_encoder", "t5_gated")),
]
USUAL = ["llama", "gpt2", "gemma", "bert_mlm"]
TOLERANCE, FELT, SCALE, LAMBDA = 1e-5, 1e-2, 2.5, 0.3

SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the cat dog bird sees likes one two three red green blue and with now then here there runs sleeps big small"
WORDS = WORDS.split()
TEXTS = ["the cat", "two dog sees the red bird and then runs here", "now one big bird likes three small green cat with"]


def write_tokenizer(folder):
    """Whole words, [CLS] in front and [SEP] behind; ids that suit the padding of every family."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": word, "special": True, **plain} for i, word in enumerate(SPECIAL)]
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    single.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    specials = {word: {"id": word, "ids": [SPECIAL.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")}
    post = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": specials}
    vocab = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": post, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }  # fmt: skip
    names = dict(bos_token="[CLS]", eos_token="[SEP]", mask_token="[MASK]", cls_token="[CLS]", sep_token="[SEP]")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


class Program:
    def __init__(self, path):
        self.path = path

    def run(self, *arguments):
        for _ in range(60):
            try:
                return subprocess.run([self.path, *map(str, arguments)], capture_output=True, text=True)
            except OSError:  # being built anew
                time.sleep(10)
        raise SystemExit(f"{self.path} cannot be run")

    def __call__(self, *arguments):
        done = self.run("--threads", 1, *arguments)
        if done.returncode:
            raise SystemExit(f"smooth-probe {' '.join(map(str, arguments))}\n{done.stderr}")
        return done.stdout

    def linears(self, model):
        """Names of all linears of a block, which only an error tells."""
        said = self.run("inspect", "--model", model, "--method", "lora", "--targets", "none").stderr
        return said.split("its linears are ")[1].strip().replace(", ", ",")


def adapters(targets):
    """{name: (method, options of inspect and train)}."""
    ways = {"lora": ["--rank", 4, "--alpha", 4 * SCALE, "--dropout", 0], "adapter": ["--bottleneck", 5]}
    ways["adapter-parallel"] = ways["adapter"]
    ways |= {"dora": ways["lora"], "ia3": []}
    arms = {f"{arm}-{policy}": ["--sibo-lambda", LAMBDA, "--sibo-policy", policy, "--residual", arm]
            for policy in ("official", "all") for arm in ("h0", "none")}  # fmt: skip
    arms |= {"normed": ["--sibo-lambda", LAMBDA, "--sibo-policy", "all", "--residual", "h0-normed"], "vanilla": []}
    return {
        f"{method}-{arm}": (method, ["--method", method, "--targets", targets, *sizes, *residual])
        for method, sizes in ways.items()
        for arm, residual in arms.items()
    }


def write_modules(adapter, spec):
    (adapter / "sibo_modules.json").write_text(json.dumps(spec, indent=1))


def states_of(watched, texts):
    """{file name: rows of all texts, one after another}, as the program writes them."""
    with torch.no_grad():
        runs = [watched.run({"input_ids": torch.tensor([ids])}) for ids in texts]
    depth = watched.model.config.num_hidden_layers
    names = {"embedding": "embedding_0", "final_norm": f"final_norm_{depth}"}
    names |= {f"block_{layer}": f"block_{layer}" for layer in range(1, depth + 1)}
    return {file: torch.cat([run[name][0] for run in runs]) for name, file in names.items() if name in runs[0]}


def worst(found, expected):
    """The largest relative error of a layer; NaN where one is."""
    return torch.tensor([ref.relative_error(found[name], expected[name]) for name in expected]).max().item()


def read_states(folder):
    files = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    one = next(iter(files.values()))
    ids, offsets = one["ids"].long().tolist(), one["offsets"].tolist()
    texts = [ids[start:end] for start, end in zip(offsets, offsets[1:])]
    return {name: tensors["states"] for name, tensors in files.items()}, texts


def fresh(case, folder):
    return ref.load_plain(case, folder)


def check_generation(case, folder, adapter, texts):
    """Greedy, by beams and in a left-padded batch: with the cache as without."""
    model = fresh(case, folder)
    plain = dict(max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
    base = [model.generate(torch.tensor([ids]), **plain) for ids in texts]
    apply_adapter(model, adapter)
    with_cache = [model.generate(torch.tensor([ids]), use_cache=True, **plain) for ids in texts]
    for ids, out in zip(texts, with_cache):
        rows = torch.tensor([ids])
        assert torch.equal(out, model.generate(rows, use_cache=False, **plain)), "greedy"
        beams = [model.generate(rows, num_beams=3, use_cache=cache, **plain) for cache in (True, False)]
        assert torch.equal(*beams), "beams"
    longest = max(map(len, texts))
    rows = torch.tensor([[0] * (longest - len(ids)) + ids for ids in texts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in texts])
    batch = model.generate(rows, attention_mask=mask, use_cache=True, **plain)
    for row, out, ids in zip(batch, with_cache, texts):
        assert torch.equal(row[longest:], out[0, len(ids) :]), "batch"
    return any(not torch.equal(a, b) for a, b in zip(base, with_cache))


def check_adapter(case, folder, adapter, expected, texts, base):
    """The worst error, how far the adapter moves the states, and how far they are off without the initial residual."""
    watched = ref.Watched(case, fresh(case, folder))
    model = watched.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle = apply_adapter(model, adapter)
    found = states_of(watched, texts)
    heads = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert bool(heads) == (case.loss == "class"), heads
    error, moved = worst(found, expected), worst(found, base)
    handle.remove()
    assert worst(states_of(watched, texts), base) == 0, "remove() leaves something"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "remove() leaves a head"
    spec = json.loads((adapter / "sibo_modules.json").read_text())
    blind = None
    if any(part["mixed"] for part in spec["modules"]):
        other = copy.deepcopy(spec)
        for part in other["modules"]:
            part["mixed"] = False
        write_modules(adapter, other)
        apply_adapter(model, adapter)
        blind = worst(states_of(watched, texts), expected)
        write_modules(adapter, spec)
    return error, moved, blind


def write_model(case, folder):
    torch.manual_seed(0)
    model = ref.fill(case, case.cls(case.cls.config_class(**case.config)), seed=5)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tokenizer(folder)


def check_family(case, program, root):
    folder, data, lines = root / "model", root / "data.jsonl", root / "texts.txt"
    root.mkdir(parents=True)
    write_model(case, folder)
    rows = [{"text": f"{a} {b} {TEXTS[i % 3]} {a}", "label": "abc"[i % 3]}
            for i, (a, b) in enumerate(zip(WORDS[:12], WORDS[7:19]))]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines.write_text("\n".join(TEXTS) + "\n")
    usual = ["--model", folder, "--data", data, "--steps", 5, "--warmup-steps", 1, "--lr", 0.02, "--val-size", 0,
             "--probe-every", 0, "--batch-size", 4, "--accumulate", 1, "--quiet"]  # fmt: skip
    usual += ["--label-field", "label"] if case.loss == "class" else []
    made = adapters(program.linears(folder))
    for name, (method, options) in made.items():
        scale = ["--adapter-scale", SCALE] if method.startswith("adapter") else []
        program("train", *usual, *options, *scale, "--out", root / name)
        adapter = root / name / "adapter"
        program("export", "--python", "--adapter", adapter, "--model", folder)
    if case.h0 == "input":  # the program computes the other kind too, where an adapter names it
        made["lora-token"] = None
        shutil.copytree(root / "lora-h0-all", root / "lora-token")
        adapter = root / "lora-token/adapter"
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["sibo"]["h0"] = "token"
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        program("export", "--python", "--adapter", adapter, "--model", folder)
    runs = [part for name in made for part in ("--adapter", f"{name}={root / name / 'adapter'}")]
    program("similarity", "--model", folder, *runs, "--texts", lines, "--measures", "cosine", "--quiet",
            "--save-states", root / "states", "--out", root / "similarity")  # fmt: skip

    expected, texts = read_states(root / "states/base")
    base = states_of(ref.Watched(case, fresh(case, folder)), texts)
    assert base.keys() == expected.keys(), (base.keys(), expected.keys())
    print(f"{case.name}: {len(made)} adapters, {sum(map(len, texts))} tokens, base {worst(base, expected):.0e}")
    assert worst(base, expected) < TOLERANCE
    for name in made:
        expected, _ = read_states(root / "states" / name)
        adapter = root / name / "adapter"
        error, moved, blind = check_adapter(case, folder, adapter, expected, texts, base)
        line = f"  {name:30} error {error:.0e}, moves the states by {moved:.2f}"
        line += "" if blind is None else f", off by {blind:.3f} without the residual"
        assert moved > FELT and (blind is None or blind > 1e-3) and error < TOLERANCE, line
        if case.cls.__name__.endswith(("ForCausalLM", "LMHeadModel")):
            line += f"; generates {'other' if check_generation(case, folder, adapter, texts) else 'the same'} tokens"
        print(line, flush=True)
    return folder, texts


def check_the_rest(case, folder, texts, root):
    """Of one LLaMA: padding, 16 bits, gradient checkpointing, `inputs_embeds`, and what must be refused."""
    adapter = root / "lora-h0-all/adapter"
    model = fresh(case, folder)
    bare = AutoModel.from_pretrained(folder)
    apply_adapter(model, adapter)
    longest = max(map(len, texts))
    rows = torch.tensor([ids + [0] * (longest - len(ids)) for ids in texts])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
    with torch.no_grad():
        batch = model(rows, attention_mask=mask).logits
        alone = [model(torch.tensor([ids])).logits[0] for ids in texts]
        error = max(ref.relative_error(a[: len(b)], b) for a, b in zip(batch, alone))
        half = copy.deepcopy(fresh(case, folder)).to(torch.bfloat16)
        apply_adapter(half, adapter)
        coarse = max(ref.relative_error(half(torch.tensor([ids])).logits[0], b) for ids, b in zip(texts, alone))
        zero = fresh(case, folder)
        zero.get_input_embeddings().weight[texts[1][3]] = 0
        apply_adapter(zero, root / "lora-normed/adapter")
        assert zero(torch.tensor([texts[1]])).logits.isfinite().all(), "a zero row has no direction"
    print(f"  padded batch {error:.0e}; bfloat16 {coarse:.0e}")
    assert error < TOLERANCE and coarse < 0.1

    grads = []
    for how in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        if how:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        model.train().zero_grad()
        model(rows, attention_mask=mask, labels=rows, use_cache=False).loss.backward()
        grads.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    error = max(ref.relative_error(grad, grads[0]) for grad in grads[1:])
    print(f"  gradients under checkpointing {error:.0e}")
    assert error < TOLERANCE

    def refused(words, action):
        try:
            action()
        except (ValueError, RuntimeError, FileNotFoundError) as reason:
            assert all(word in str(reason) for word in words), f"{words}: {reason}"
            print(f"  refused: {reason}".replace(str(root), "DIR")[:220])
        else:
            raise SystemExit(f"not refused: {words}")

    spec = json.loads((adapter / "sibo_modules.json").read_text())
    base = fresh(case, folder)

    def with_spec(change):
        other = copy.deepcopy(spec)
        change(other)
        write_modules(adapter, other)
        try:
            apply_adapter(base, adapter)
        finally:
            write_modules(adapter, spec)

    embeds = model.get_input_embeddings().weight[rows].detach()
    refused(["h0", "input_ids"], lambda: model(inputs_embeds=embeds))
    refused(["another prefix", "layers.0", "model.layers.0"], lambda: apply_adapter(bare, adapter))
    refused(["shuffled", "random stream"], lambda: with_spec(lambda s: s.update(arm="shuffled")))
    refused(["another adapter"], lambda: with_spec(lambda s: s.update(arm="h0-normed")))
    refused(["lacks h0"], lambda: with_spec(lambda s: s.pop("h0")))
    refused(["h0 lacks at"], lambda: with_spec(lambda s: s["h0"].pop("at")))
    refused(["lacks scale"], lambda: with_spec(lambda s: s["modules"][0].pop("scale")))
    refused(["position", "above"], lambda: with_spec(lambda s: s["modules"][0].update(position="above")))
    refused(["q_proj.lora_A", "model lacks: none"], lambda: with_spec(lambda s: s["modules"].pop(0)))
    refused(["no.such", "lora_A"], lambda: with_spec(lambda s: s["modules"][0].update(path="no.such")))
    refused(["no.table"], lambda: with_spec(lambda s: s["h0"].update(module="no.table")))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.score.weight": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    refused(["score.weight"], lambda: apply_adapter(base, adapter))
    save_file(weights, adapter / "adapter_model.safetensors")
    (adapter / "sibo_modules.json").unlink()
    refused(["sibo_modules.json", "export --python"], lambda: apply_adapter(base, adapter))
    write_modules(adapter, spec)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules()), "a refusal leaves hooks"


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--program", default=ROOT / "target/debug/smooth-probe", type=Path)
    parser.add_argument("--families", nargs="+", default=USUAL)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    names = [case.name for case in ALL] if arguments.families == ["all"] else arguments.families
    unknown = set(names) - {case.name for case in ALL}
    if unknown:
        raise SystemExit(f"no case is called {', '.join(unknown)}")
    program = Program(arguments.program)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.folder or Path(scratch)
        for case in ALL:
            if case.name in names:
                folder, texts = check_family(case, program, root / case.name)
                if case.name == "llama":
                    check_the_rest(case, folder, texts, root / case.name)


if __name__ == "__main__":
    main()
