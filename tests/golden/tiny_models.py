"""Part A: tiny random LLaMA models in the forms real ones come in, and their golden states."""

import json
import shutil

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import exact
from cosine import similarity

COMMON = dict(bos_token_id=1, eos_token_id=2, pad_token_id=None, hidden_act="silu", use_cache=False)
GQA_TIED = dict(
    COMMON, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=8, num_hidden_layers=3,
    intermediate_size=80, vocab_size=97, tie_word_embeddings=True, max_position_embeddings=128,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)  # fmt: skip
MHA_UNTIED = dict(
    COMMON, hidden_size=30, num_attention_heads=5, num_key_value_heads=5, head_dim=6, num_hidden_layers=2,
    intermediate_size=41, vocab_size=61, tie_word_embeddings=False, max_position_embeddings=64,
    rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
)  # fmt: skip
# theta 20 and 12 dimensions a head put rotary pairs in all three regimes of llama3 scaling (kept, blended,
# divided), which the usual theta would not do at so small a head.
ROPE31 = dict(
    COMMON, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=12, num_hidden_layers=2,
    intermediate_size=45, vocab_size=53, tie_word_embeddings=True, max_position_embeddings=256,
    rope_parameters={"rope_type": "llama3", "rope_theta": 20.0, "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
)  # fmt: skip


def random_model(config, seed):
    """A model whose activations are of order one, whose layers differ and whose norm weights are not one."""
    model = LlamaForCausalLM(LlamaConfig(**config))
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            value = torch.randn(weight.shape, generator=noise)
            if "norm" in name:
                value = 1.0 + 0.25 * value
            elif "embed_tokens" in name:
                # The shared direction makes tokens alike, as in real models: cosines away from zero.
                value = 0.4 * value + 0.3 * torch.randn(weight.shape[1], generator=noise)
            else:
                strength = 0.7 + 0.6 * torch.rand((), generator=noise)
                value = value * strength / weight.shape[1] ** 0.5
            weight.copy_(value)
    return model


def random_ids(vocab, lengths, seed):
    noise = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=noise) for n in lengths]


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def old_style(path):
    """Rewrites a config.json to the keys that folders of before transformers 5 have, as most of the hub does."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    if config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
        del config["head_dim"]
    write_json(path, dict(sorted(config.items())))


def write_golden(folder, all_ids):
    """golden.safetensors and golden.json of a model folder, from the model read back from that folder."""
    model = exact.load(folder)
    with torch.no_grad():
        tensors, loss = exact.states(model, all_ids)
    stored = {name: t.to(torch.uint32) if "ids" in name else t.float() for name, t in tensors.items()}
    save_file({name: t.contiguous() for name, t in stored.items()}, folder / "golden.safetensors")

    depth, texts = model.config.num_hidden_layers, range(len(all_ids))
    layers = [(0, "embedding", [tensors[f"layer0_{s}"] for s in texts])]
    layers += [(l, "block", [tensors[f"block_{l}_{s}"] for s in texts]) for l in range(1, depth + 1)]
    layers += [(depth, "final_norm", [tensors[f"final_norm_{s}"] for s in texts])]
    lengths = [len(ids) for ids in all_ids]
    write_json(folder / "golden.json", {"lengths": lengths, "loss": loss, "similarity": similarity(layers)})

    untouched = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        plain, plain_loss = exact.states(untouched, all_ids)
    worst = max(exact.relative_error(plain[name], t) for name, t in tensors.items() if "ids" not in name)
    assert worst < 2e-6 and abs(plain_loss - loss) < 2e-6 * loss, (folder, worst, plain_loss, loss)
    scale = {name: round(t.pow(2).mean().sqrt().item(), 2) for name, t in tensors.items() if name[-2:] == "_2" and "ids" not in name}
    print(f"{folder.name}: loss {loss:.4f}; off transformers' own f32 by {worst:.1e}; rms {scale}")


def write_models(root):
    """Writes every model folder; gives `(folder, ids)` of gqa_tied, which the PEFT parts stand on."""
    shutil.rmtree(root, ignore_errors=True)

    def save(name, model, all_ids, old=False, **how):
        model.save_pretrained(root / name, **how)
        (root / name / "generation_config.json").unlink(missing_ok=True)
        if old:
            old_style(root / name / "config.json")
        write_golden(root / name, all_ids)
        return root / name

    ids = random_ids(GQA_TIED["vocab_size"], (1, 7, 23), seed=11)
    gqa = save("gqa_tied", random_model(GQA_TIED, seed=1), ids, old=True)

    long_ids = random_ids(ROPE31["vocab_size"], (1, 7, 40), seed=13)
    rope31 = save("rope31", random_model(ROPE31, seed=3), long_ids)
    shutil.copy(rope31 / "config.json", rope31 / "config_v5.json")
    old_style(rope31 / "config.json")

    odd_ids = random_ids(MHA_UNTIED["vocab_size"], (1, 7, 23), seed=12)
    mha = save("mha_untied", random_model(MHA_UNTIED, seed=2), odd_ids)
    for suffix, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        save(f"mha_untied_{suffix}", random_model(MHA_UNTIED, seed=2).to(dtype), odd_ids)

    # The same weights in two other containers: the golden values are those of mha_untied.
    sharded, pickled = root / "mha_untied_sharded", root / "mha_untied_bin"
    random_model(MHA_UNTIED, seed=2).save_pretrained(sharded, max_shard_size="45KB")
    assert len(list(sharded.glob("model-*-of-00002.safetensors"))) == 2
    pickled.mkdir()
    torch.save(random_model(MHA_UNTIED, seed=2).state_dict(), pickled / "pytorch_model.bin")
    shutil.copy(mha / "config.json", pickled / "config.json")
    old_style(pickled / "config.json")
    for folder in (sharded, pickled):
        (folder / "generation_config.json").unlink(missing_ok=True)
        same = exact.states(exact.load(folder), odd_ids)[1] == exact.states(exact.load(mha), odd_ids)[1]
        assert same, folder
    old = exact.load(rope31)
    assert old.config.rope_parameters["rope_type"] == "llama3" and old.config.rope_parameters["rope_theta"] == 20.0
    return gqa, ids
