"""What is trained and measured: shapes, token batches, and the folders that both sides read.

A case is a folder with a model of random weights (transformers' own initialisation) and `case.json`: what is trained, and
token batches. Both sides load it and make the same optimizer steps.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path


def llama(layers, width, heads, kv_heads, inner, vocabulary, positions=1024):
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
    }


BENCH = llama(8, 512, 8, 8, 1376, 4096)
STORIES = llama(6, 288, 6, 6, 768, 32000)
SMOL = llama(30, 576, 9, 3, 1536, 49152)

# As its recipe trains it: 18 texts a step, 104 tokens each on average.
EMBEDDED_BATCH = (18, 104)


def embedded():
    """The embedded model's own shape."""
    folder = Path(__file__).parents[2] / "models" / "embedded"
    config = json.loads((folder / "config.json").read_text())
    return {key: config[key] for key in BENCH}


@dataclass
class Case:
    """One work; `target` bounds our time over torch's (None: 0.85 times the share of torch's tokens that is no padding)."""

    name: str
    title: str
    config: dict
    tuning: object
    targets: list
    batches: list
    target: float | None

    def lay_out(self, work):
        """Writes the case's folder; the weights are made once and stay."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        folder = work / self.name
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.safetensors").is_file():
            torch.manual_seed(0)
            LlamaForCausalLM(LlamaConfig(**self.config)).save_pretrained(folder)
        case = {"tuning": self.tuning, "targets": self.targets, "learning_rate": 1e-4, "batches": self.batches}
        (folder / "case.json").write_text(json.dumps(case))
        return folder


def padded_share(batches):
    """The share of padding where each batch is padded to its longest sequence."""
    cells = sum(len(batch) * max(map(len, batch)) for batch in batches)
    return 1 - sum(len(s) for batch in batches for s in batch) / cells


def by_length(batches):
    """The same sequences in batches of like lengths, as `group_by_length` makes them."""
    size, every = len(batches[0]), sorted((s for batch in batches for s in batch), key=len)
    return [every[i : i + size] for i in range(0, len(every), size)]


def sequences(rng, vocabulary, lengths, size):
    """Batches of `size` random sequences of these lengths, in this order."""
    drawn = [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]
    return [drawn[i : i + size] for i in range(0, len(drawn), size)]


def problem_lengths(path):
    """Lengths of GSM8K problems with their answers, in tokens of four characters, in an order drawn at random.

    The padded share depends on how lengths differ from problem to problem, hardly on the tokenizer.
    """
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    lengths = [max(16, len(record["question"] + " " + record["answer"]) // 4) for record in records]
    random.Random(1).shuffle(lengths)
    return lengths


def training(steps, lengths):
    """The training cases of `steps` steps; without `lengths` those of real problems are left out."""
    rng = random.Random(0)

    def equal(config, size, length, count=steps):
        return sequences(rng, config["vocab_size"], [length] * (size * count), size)

    def real(config, count=steps):
        return sequences(rng, config["vocab_size"], lengths[: 8 * count], 8)

    query_value = ["q_proj", "v_proj"]
    released = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    lora = lambda rank: {"lora": {"rank": rank}}
    yield Case("lora", "LoRA, equal lengths", BENCH, lora(8), query_value, equal(BENCH, 4, 256), 0.85)
    if lengths:
        stories, smol = real(STORIES), real(SMOL)
        yield Case("stories15M", "LoRA on GSM8K lengths, stories15M", STORIES, lora(32), released, stories, None)
        yield Case("smollm2", "LoRA on GSM8K lengths, SmolLM2-135M", SMOL, lora(32), released, smol, None)
    gate_up = ["gate_proj", "up_proj"]
    yield Case("adapter", "series adapters", BENCH, {"adapter": {"bottleneck": 64}}, gate_up, equal(BENCH, 4, 256), 0.95)
    yield Case("full", "full fine-tuning", BENCH, "full", [], equal(BENCH, 4, 256), 0.95)
    own = embedded()
    yield Case("pretrain", "pre-training the embedded model", own, "full", [], equal(own, *EMBEDDED_BATCH), 1 / 1.3)


def states(threads):
    """The case of the forward pass with its measure: a chunk of 32 texts for every thread."""
    rng = random.Random(0)
    batches = sequences(rng, BENCH["vocab_size"], [256] * (32 * threads), 8)
    return Case("states", "forward and cosine of all layers", BENCH, "full", [], batches, 0.8)


def step_flop(case, trained, batches):
    """Floating-point operations of the matrix products of a step, mean over `batches`.

    Two for each weight and token forward, two for its input's gradient, two for its own where it is trained; attention
    meets half of the n² pairs (causal), with two products forward and five backward.
    """
    c = case.config
    width, head_dim = c["hidden_size"], c["hidden_size"] // c["num_attention_heads"]
    keys = c["num_key_value_heads"] * head_dim
    block = width * (2 * width + 2 * keys) + 3 * width * c["intermediate_size"]
    weights = c["num_hidden_layers"] * block + c["vocab_size"] * width
    per_token = 6 * weights if case.tuning == "full" else 4 * weights + 6 * trained
    tokens = sum(len(s) for batch in batches for s in batch)
    pairs = sum(len(s) ** 2 / 2 for batch in batches for s in batch)
    attention = 7 * 2 * pairs * width * c["num_hidden_layers"]
    return (per_token * tokens + attention) / len(batches)


# Width of a branch up to which h0 is multiplied by itself instead of mixed in first (src/kernels/branch.rs).
NARROW = 32


def residual_cost(mixed, tokens, branch):
    """FLOP and bytes read or written that the initial residual adds to a step of `tokens` tokens, in f32; it keeps nothing.

    Forward and again for the gradient of the branch's first matrix, a module whose branch is `branch` wide multiplies h0
    with that matrix, or mixes (1-λ)x + λh0, two multiplications and an addition an element, into memory that it frees.
    """
    elements = 2 * sum(width for _, width in mixed) * tokens
    return (2 * branch * elements, 4 * elements) if branch <= NARROW else (3 * elements, 12 * elements)
