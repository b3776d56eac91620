"""Makes generation.json: what transformers' `generate` writes behind prompts, token for token.

Greedy and beam search (1, 4 and 5 beams) with and without tokens that end a text, length penalties and all forms of
early stopping, on tiny random models of many families and, where SMOOTH_PROBE_SHARED has it, on stories15M with stop
strings too; and the probabilities that its temperature, top-k and top-p leave. Every case is decoded in f32 and in f64
and kept only if both choose the same tokens, so that no tie decides; the script stops if more than a few do not.

    python generation.py
"""

import itertools
import json
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation import logits_process

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("SMOOTH_PROBE_SHARED", HERE / "../../../shared"))
FAMILIES = [
    "models/gqa_tied", "models/mha_untied", "families/gpt2", "families/gptj", "families/gpt_neox", "families/bloom",
    "families/falcon_alibi", "families/mistral", "families/gemma2", "families/opt_350m", "families/phi3", "families/stablelm",
]  # fmt: skip
NEW = 20
# beams, length penalty, early stopping
BEAMS = [(4, 1.0, False), (4, 0.0, "never"), (5, 2.0, "never"), (5, -1.0, False), (4, 1.0, True), (5, 0.5, True)]
STORIES = ["Once upon a time", "Lily and Ben went to the", "The little dog was very"]


def settings(ends):
    yield dict(beams=1, ends=ends)
    for beams, penalty, early in BEAMS:
        yield dict(beams=beams, ends=ends, length_penalty=penalty, early_stopping=early)


def decode(model, ids, new, case, **more):
    """The new tokens, and for beams the winner's score."""
    beams = case["beams"]
    extra = {} if beams == 1 else {key: case[key] for key in ("length_penalty", "early_stopping")}
    config = GenerationConfig(
        do_sample=False, num_beams=beams, max_new_tokens=new, eos_token_id=case["ends"] or None, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True, use_cache=True, **extra, **more,
    )  # fmt: skip
    model.generation_config = GenerationConfig()
    inputs = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            inputs, generation_config=config, attention_mask=torch.ones_like(inputs),
            **({"tokenizer": more_tokenizer} if "stop_strings" in more else {}),
        )  # fmt: skip
    written = out.sequences[0, len(ids) :].tolist()
    return written, out.sequences_scores[0].item() if beams > 1 else None


more_tokenizer = None


def family(path):
    folder = HERE / path
    # Falcon's eager attention adds ALiBi twice in transformers 5, see families_reference.py.
    attention = "sdpa" if "falcon" in path else "eager"
    models = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
        for dtype in (torch.float32, torch.float64)
    ]
    vocab = models[0].config.vocab_size
    noise = torch.Generator().manual_seed(len(path))
    prompts = [torch.randint(3, vocab, (n,), generator=noise).tolist() for n in (1, 6, 13)]
    cases, ties = [], 0
    for prompt in prompts:
        plain, _ = decode(models[0], prompt, NEW, dict(beams=1, ends=[]))
        beam, _ = decode(models[0], prompt, NEW, dict(beams=4, ends=[], length_penalty=1.0, early_stopping=False))
        # Tokens that do come: one early and two that beams choose.
        ends = [[], [plain[4]], sorted({beam[2], beam[9], plain[-1]})]
        for case in itertools.chain.from_iterable(settings(e) for e in ends):
            (ids, score), (exact_ids, _) = (decode(model, prompt, NEW, case) for model in models)
            if ids != exact_ids:
                ties += 1
                continue
            cases.append(dict(prompt=prompt, **case, ids=ids, score=score))
    assert ties <= len(cases) // 10, (path, ties)
    print(path, len(cases), "cases,", ties, "ties; ended early:", sum(len(c["ids"]) < NEW for c in cases))
    return dict(model=path, new=NEW, cases=cases)


def stories():
    global more_tokenizer
    folder = SHARED / "models/stories15M"
    more_tokenizer = AutoTokenizer.from_pretrained(folder)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=d).eval() for d in (torch.float32, torch.float64)]
    cases = []
    for text in STORIES:
        prompt = more_tokenizer(text).input_ids
        wanted = [dict(case, new=60) for case in itertools.chain(settings([]), settings([2]))]
        wanted += [dict(beams=1, ends=[2], new=200), dict(beams=4, ends=[2], new=200, length_penalty=1.0, early_stopping=True)]
        stop = [".", "One day"]
        wanted += [dict(beams=1, ends=[2], new=60, stop=stop), dict(wanted[1], ends=[2], stop=stop)]
        for case in wanted:
            more = {"stop_strings": case["stop"]} if "stop" in case else {}
            (ids, score), (exact_ids, _) = (decode(model, prompt, case["new"], case, **more) for model in models)
            if ids != exact_ids:
                print("a tie:", case)
                continue
            cases.append(dict(text=text, prompt=prompt, **case, ids=ids, score=score))
    print("stories15M", len(cases), "cases")
    return dict(model="stories15M", cases=cases)


def chances():
    """Probabilities behind transformers' processors, in their order."""
    noise = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(40, generator=noise, dtype=torch.float64)).tolist()
    cases = []
    for temperature, top_k, top_p in [(1.0, None, 1.0), (0.7, None, 1.0), (1.3, 5, 1.0), (1.0, None, 0.8), (0.9, 12, 0.6), (2.0, 30, 0.95)]:
        scores = torch.tensor([logits], dtype=torch.float64)
        scores = logits_process.TemperatureLogitsWarper(temperature)(None, scores)
        if top_k is not None:
            scores = logits_process.TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1.0:
            scores = logits_process.TopPLogitsWarper(top_p)(None, scores)
        probabilities = scores.softmax(-1)[0].tolist()
        cases.append(dict(temperature=temperature, top_k=top_k, top_p=top_p, probabilities=probabilities))
    return dict(logits=logits, cases=cases)


def main():
    torch.set_num_threads(1)
    models = [family(path) for path in FAMILIES]
    made = dict(models=models, chances=chances())
    previous = HERE / "generation.json"
    if (SHARED / "models/stories15M").is_dir():
        made["stories15M"] = stories()
    elif previous.is_file():
        made["stories15M"] = json.loads(previous.read_text())["stories15M"]
    previous.write_text(json.dumps(made, separators=(",", ":")).replace('{"prompt"', '\n{"prompt"') + "\n")


if __name__ == "__main__":
    main()
