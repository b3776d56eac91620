"""Tiny random BERT and RoBERTa models, their states, one LoRA-SIBO gradient, their tokenizers; and MiniLM's states.

transformers' encoders compute in f64 throughout when the model is f64, so nothing is replaced here. The LoRA
modules are written out over the frozen linears, and every gradient is checked by differences.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM, RobertaTokenizer,
)  # fmt: skip

from tiny_models import random_ids, write_json

BERT = dict(
    hidden_size=30, num_attention_heads=5, num_hidden_layers=3, intermediate_size=41, vocab_size=71, hidden_act="gelu",
    max_position_embeddings=40, type_vocab_size=2, layer_norm_eps=1e-12,
)  # fmt: skip
ROBERTA = dict(
    hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=50, vocab_size=272,
    hidden_act="gelu_new", max_position_embeddings=35, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
)  # fmt: skip
LENGTHS = (1, 7, 23)
LAMBDA, RANK, SCALE = 0.3, 3, 2.5
TARGETS = ("query", "value", "intermediate.dense", "output.dense")
MIXED = ("query", "key", "value", "intermediate.dense")
# Of the whole model's gradients these few are kept: one of every kind of tensor.
FULL = (
    "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight", "embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias",
    "encoder.layer.0.attention.self.key.weight", "encoder.layer.0.attention.output.LayerNorm.weight",
    "encoder.layer.1.intermediate.dense.bias", "encoder.layer.1.output.LayerNorm.bias",
)  # fmt: skip
WORDS = "the cat dog sat on mat run un caf and two one ##ning ##s ##able ##aff ##e 日 本 , . ! ? ' ( ) - 1 2 ##3".split()
TEXTS = (
    "The CAT sat on the mat, running!", "café unaffable (dogs?) - 123", "日本 and\tthe\ndog's", "",
    "zebra [SEP] cat [MASK].",
)  # fmt: skip
PAIRS = (("The cat sat.", "On the mat?"), ("un run", "two cats and 1 dog"))


def fill(model, seed):
    """Activations of order one, layers that differ, norms that are not the identity."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            value = torch.randn(weight.shape, generator=noise)
            if weight.dim() == 1 and name.endswith("weight"):
                value = 1.0 + 0.25 * value
            elif name.endswith("bias"):
                value = 0.3 * value
            elif "embeddings" in name:
                value = 0.5 * value
            else:
                value = value * (0.7 + 0.6 * torch.rand((), generator=noise)) / weight.shape[1] ** 0.5
            weight.copy_(value)
    return model.eval()


def hidden_states(model, ids, types):
    """[layer 0, block 1, …, block L] of one sequence alone, [n, d] each."""
    out = model(input_ids=ids[None], token_type_ids=types[None], output_hidden_states=True)
    return [state[0] for state in out.hidden_states]


class Lora(nn.Module):
    def __init__(self, base, mixed, owner, noise):
        super().__init__()
        self.base, self.mixed, self.owner = base, mixed, [owner]
        self.lora_A = nn.Parameter(torch.randn(RANK, base.in_features, generator=noise).double() / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.randn(base.out_features, RANK, generator=noise).double() / 4)

    def forward(self, x):
        read = (1 - LAMBDA) * x + LAMBDA * self.owner[0].h0 if self.mixed else x
        return self.base(x) + SCALE * (read @ self.lora_A.T @ self.lora_B.T)


def attach(model, seed):
    """Puts LoRA into every target, reading h0 = layer 0 where mixed; the trainable tensors by PEFT's names."""
    noise = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    model.embeddings.register_forward_hook(lambda _m, _i, out: setattr(model, "h0", out.detach()))
    tensors = {}
    for path, base in list(model.named_modules()):
        if not isinstance(base, nn.Linear) or not any(path.endswith("." + target) for target in TARGETS):
            continue
        parent, _, name = path.rpartition(".")
        lora = Lora(base, any(path.endswith("." + target) for target in MIXED), model, noise)
        setattr(model.get_submodule(parent), name, lora)
        tensors |= {f"base_model.model.{path}.{part}.weight": getattr(lora, part) for part in ("lora_A", "lora_B")}
    return tensors


def loss(model, all_ids, all_types, weights):
    """A scalar in which every number of the last block has another weight."""
    pairs = zip(all_ids, all_types, weights)
    return sum((hidden_states(model, ids, types)[-1] * weight).sum() for ids, types, weight in pairs)


def gradients(model, tensors, *inputs):
    value = loss(model, *inputs)
    grads = dict(zip(tensors, torch.autograd.grad(value, list(tensors.values()))))
    noise = torch.Generator().manual_seed(5)
    for name in list(tensors)[::5]:
        # h0 is detached: a difference in front of it would move it, which LoRA's tensors do not.
        flat, step, sides = tensors[name].detach().view(-1), 1e-5, []
        k = torch.randint(flat.numel(), (), generator=noise).item()
        kept = flat[k].item()
        for sign in (1, -1):
            flat[k] = kept + sign * step
            with torch.no_grad():
                sides.append(loss(model, *inputs).item())
        flat[k] = kept
        slope, given = (sides[0] - sides[1]) / (2 * step), grads[name].view(-1)[k].item()
        assert abs(slope - given) < 1e-6 + 1e-6 * abs(given), (name, slope, given)
    return value.item(), grads


def write_model(folder, model, encoder, types_of, seed):
    """The folder's weights and golden.safetensors: ids, types, states, LoRA tensors and all gradients."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    encoder = encoder.double()
    # torch drops the gradients of the padding's rows. Nothing is padded here, and that token is one as any other.
    for table in (encoder.embeddings.word_embeddings, encoder.embeddings.position_embeddings):
        table.padding_idx = None
    all_ids = random_ids(model.config.vocab_size, LENGTHS, seed=seed)
    all_ids[2][5] = model.config.pad_token_id
    all_types = [types_of(len(ids)) for ids in all_ids]
    stored = {}
    for s, (ids, types) in enumerate(zip(all_ids, all_types)):
        with torch.no_grad():
            states = hidden_states(encoder, ids, types)
        stored |= {f"ids_{s}": ids.to(torch.uint32), f"types_{s}": types.to(torch.uint32)}
        stored |= {f"layer_{l}_{s}": state.float().contiguous() for l, state in enumerate(states)}
    noise = torch.Generator().manual_seed(seed + 1)
    weights = [torch.randn(len(ids), model.config.hidden_size, generator=noise).double() for ids in all_ids]
    stored |= {f"weights_{s}": weight for s, weight in enumerate(weights)}
    named = dict(encoder.named_parameters())
    value, grads = gradients(encoder, {name: named[name] for name in FULL}, all_ids, all_types, weights)
    stored |= {f"full.{name}": grad for name, grad in grads.items()}
    lora = attach(encoder, seed + 2)
    tuned, grads = gradients(encoder, lora, all_ids, all_types, weights)
    stored |= {f"lora.{name}": value.detach().contiguous() for name, value in lora.items()}
    stored |= {f"grad.{name}": grad for name, grad in grads.items()}
    stored |= {"loss": torch.tensor([value, tuned], dtype=torch.float64)}
    save_file(stored, folder / "golden.safetensors")
    print(f"{folder.name}: {len(lora)} LoRA tensors, losses {value:.4f} {tuned:.4f}")


def tokens(tokenizer):
    single = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    pairs = []
    for a, b in PAIRS:
        out = tokenizer(a, b, return_token_type_ids=True)
        pairs.append({"text": a, "pair": b, "ids": out["input_ids"], "types": out["token_type_ids"]})
    return {"single": single, "pairs": pairs}


def write_bert(root):
    shutil.rmtree(root, ignore_errors=True)
    bert, roberta = root / "tiny_bert", root / "tiny_roberta"
    torch.manual_seed(0)
    model = fill(BertModel(BertConfig(**BERT)), seed=1)
    write_model(bert, model, model, split_types, seed=21)
    alphabet = [c for c in "abdenortz"] + ["##" + c for c in "abdenortz"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + alphabet + WORDS
    assert len(vocab) <= BERT["vocab_size"], len(vocab)
    (bert / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    write_json(bert / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    write_json(bert / "tokens.json", tokens(BertTokenizer.from_pretrained(bert)))

    masked = fill(RobertaForMaskedLM(RobertaConfig(**ROBERTA)), seed=2)
    write_model(roberta, masked, masked.roberta, no_types, seed=22)
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    spelled = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merges = ["t h", "th e", "Ġ the", "Ġ c", "a t", "Ġc at", "o n"]
    vocab = ["<s>", "<pad>", "</s>", "<unk>"] + spelled + [merge.replace(" ", "") for merge in merges] + ["<mask>"]
    assert len(vocab) <= ROBERTA["vocab_size"], len(vocab)
    write_json(roberta / "vocab.json", {token: i for i, token in enumerate(vocab)})
    (roberta / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    write_json(roberta / "tokens.json", tokens(RobertaTokenizer.from_pretrained(roberta)))


def split_types(n):
    """The second half of a sequence is the second text."""
    return (torch.arange(n) >= (n + 1) // 2).long()


def no_types(n):
    return torch.zeros(n, dtype=torch.long)


def write_minilm(path):
    """States of all-MiniLM-L6-v2, where SMOOTH_PROBE_SHARED has it: norm and first four numbers of two tokens."""
    shared = Path(os.environ.get("SMOOTH_PROBE_SHARED", path.parent / "../../../shared"))
    folder = shared / "models/all-MiniLM-L6-v2"
    if not folder.exists():
        print(f"SKIPPED: {folder} is not there")
        return
    model = BertModel.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    cases = []
    single, two = ("The quick brown fox jumps over the lazy dog, naïvely.",), ("Is it smooth?", "It over-smooths in 12 layers.")
    for pair in (single, two):
        out = tokenizer(*pair, return_token_type_ids=True)
        ids, types = torch.tensor(out["input_ids"]), torch.tensor(out["token_type_ids"])
        with torch.no_grad():
            states = hidden_states(model, ids, types)
        row = lambda x: {"norm": x.norm().item(), "first": x[:4].tolist()}
        layers = [{"first_token": row(s[0]), "last_token": row(s[-1]), "norm": s.norm().item()} for s in states]
        cases.append({"texts": pair, "ids": ids.tolist(), "types": types.tolist(), "layers": layers})
    write_json(path, cases)
    print(f"minilm: last state of the first text {cases[0]['layers'][-1]['norm']:.6f}")
