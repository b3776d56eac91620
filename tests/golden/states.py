"""States of a model that smooth-probe does not know, as the documented writer saves them, and their cosine."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

from cosine import mean_pairwise_cosine
from write_states import write_states

TEXTS = ["the cat sees 7 dogs .", "a bird", "now , the old dog runs : 12 12 12 !", "then"]
CLASSES = ["first", "special", "digits", "punctuation", "words"]


def tiny_tokenizer():
    words = ["<unk>", "<s>", "</s>"] + sorted({word for text in TEXTS for word in text.split()})
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    ends = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **ends), len(words)


def kind(position, token, special):
    """The class of a token, said another way than in the program."""
    if position == 0:
        return "first"
    if special:
        return "special"
    return "words" if token.strip().isalpha() else "digits" if token.strip().isdigit() else "punctuation"


def mean(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def pair_mean(a, b):
    """Mean cosine over all pairs of a row of `a` with one of `b`."""
    pairs = [torch.cosine_similarity(x, y, dim=0).item() for x in a for y in b]
    return mean(pairs)


def write_golden_states(folder):
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(5)
    tokenizer, vocabulary = tiny_tokenizer()
    config = GPT2Config(vocab_size=vocabulary, n_positions=32, n_embd=12, n_layer=2, n_head=3, initializer_range=0.3)
    model = GPT2Model(config).eval()
    write_states(model, tokenizer, TEXTS, folder)

    lines = [json.loads(line) for line in (folder / "tokens.jsonl").read_text().splitlines()]
    golden = {"cosine": {}, "classes": {}}
    for site in ["embedding_0", "block_1", "final_norm_2"]:
        stored = load_file(folder / f"{site}.safetensors")
        starts = stored["offsets"].tolist()
        texts = [stored["states"][a:b].double() for a, b in zip(starts, starts[1:])]
        golden["cosine"][site] = mean([mean_pairwise_cosine(text) for text in texts])
        for index, first in enumerate(CLASSES):
            for second in CLASSES[index:]:
                values = []
                for line, rows in zip(lines, texts):
                    kinds = [kind(i, t, s) for i, (t, s) in enumerate(zip(line["tokens"], line["special"]))]
                    a, b = ([rows[i] for i, k in enumerate(kinds) if k == name] for name in (first, second))
                    same = first == second
                    values.append(mean_pairwise_cosine(a) if same else pair_mean(a, b))
                if any(value is not None for value in values):
                    golden["classes"][f"{site} {first} {second}"] = mean(values)
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_golden_states(Path(__file__).resolve().parent / "states")
