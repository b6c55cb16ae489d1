"""Gradients and steps of PEFT's trainable_token_indices, and of LoRA of embeddings: over the decoders of exporters.py, tied and untied, and the tiny BERT of
text_classification.py.

    trained_tokens.py [--out tests/golden/trained-tokens]

The numbers belong to tests/golden/models/<model>-optimum and tests/golden/text-classification/encoder. Needs requirements.txt.
"""
import argparse
import pathlib

import torch

import text_classification as bert
import packed
from common import GOLDEN, adamw_steps, adapt, call, fresh, gradients, loss_of, make_batches, save_adapter, save_tensors, trainable, versions, write_json
from exporters import BASES, build

SEED, STEPS, RATE, RATIO = 23, 6, 5e-3, 16.0
# 86 and 14 are in all batches, 4 in none: only an output layer gives it a gradient. The order is not that of the ids.
TOKENS, OTHERS, BERT_TOKENS = [86, 4, 14], [9, 14], [67, 9, 61]
EMBEDDINGS = {  # name: (model, targets)
    "llama-embedding": ("llama", ["embed_tokens", "q_proj"]),
    "qwen2-embedding": ("qwen2", ["embed_tokens"]),
    "gpt2-embedding": ("gpt2", ["wte", "wpe"]),
}
CASES = {  # name: (model, trainable_token_indices)
    "llama": ("llama", TOKENS),
    "llama-apart": ("llama", {"embed_tokens": TOKENS, "lm_head": OTHERS}),
    "qwen2": ("qwen2", TOKENS),
    "qwen2-head": ("qwen2", {"embed_tokens": TOKENS, "lm_head": OTHERS}),
}


def rows_of(model):
    return {name: p for name, p in trainable(model).items() if "trainable_tokens_delta" in name}


def decoder(base, tokens, dtype):
    model = adapt(build(base), SEED, 0.1, name=f"tiny-{base}", r=2, lora_alpha=4, trainable_token_indices=tokens, **BASES[base][1])
    rows = {name: p.detach().clone() for name, p in rows_of(model).items()}
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _, p in sorted(rows_of(model).items()):
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.to(dtype), rows


def embedding(base, targets, dtype):
    model = adapt(build(base), SEED, 0.1, name=f"tiny-{base}", **{**BASES[base][1], "r": 2, "lora_alpha": 6, "target_modules": targets})
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _, p in sorted(trainable(model).items()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.to(dtype), {}


def loraplus(model, loss_at):
    from peft.optimizers import create_loraplus_optimizer
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, loraplus_weight_decay=0.0, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_at(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def numbers(out, make, gradients_of, loss_at):
    """Writes the adapter, its gradients, what it becomes, and the rows of the base. Returns the losses."""
    narrow, rows = make(torch.float32)
    save_adapter(narrow, out / "adapter-init", save_embedding_layers=False)
    if rows:
        save_tensors(out / "base-rows.safetensors", rows)
    wide, _ = make(torch.float64)
    save_tensors(out / "gradients.safetensors", gradients_of(wide))
    losses, norms = adamw_steps(trainable(wide).values(), lambda step: loss_at(wide, step), STEPS, lr=RATE)
    save_tensors(out / "after.safetensors", {bert.key(name): p for name, p in trainable(wide).items()})
    return {"losses": losses, "gradNorms": norms}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "trained-tokens")
    out = fresh(parser.parse_args().out)
    batches = make_batches()
    assert all([token in sum(b["inputIds"], []) for token in TOKENS] == [True, False, True] for b in batches)
    at = lambda model, step: loss_of(model, batches[step % len(batches)])
    cases = {}
    for name, (base, tokens) in CASES.items():
        cases[name] = numbers(out / name, lambda dtype: decoder(base, tokens, dtype), lambda model: gradients(model, batches[0]), at)
        cases[name] |= {"model": f"{base}-optimum", "tokens": tokens}
    for name, (base, targets) in EMBEDDINGS.items():
        cases[name] = numbers(out / name, lambda dtype: embedding(base, targets, dtype), lambda model: gradients(model, batches[0]), at)
        cases[name]["model"] = f"{base}-optimum"
    wide, _ = decoder("llama", TOKENS, torch.float64)
    cases["llama"]["loraPlusLosses"] = loraplus(wide, lambda step: at(wide, step))

    def encoder(dtype):
        model = bert.adapted(["classifier", "pooler"], dtype, trainable_token_indices=BERT_TOKENS)
        rows = {name: model.get_base_model().get_input_embeddings().token_adapter.trainable_tokens_original["default"].clone() for name in rows_of(model)}
        model.get_base_model().name_or_path = "tiny-bert"
        return model, rows

    def of_bert(model):
        model(**bert.tensors()).loss.backward()
        found = {bert.key(name): p.grad.clone() for name, p in trainable(model).items()}
        model.zero_grad(set_to_none=True)
        return found

    cases["bert"] = numbers(out / "bert", encoder, of_bert, lambda model, step: model(**bert.tensors()).loss) | {"tokens": BERT_TOKENS}
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "peft"), "learningRate": RATE, "ratio": RATIO, "batches": batches, **cases})
    for name, case in cases.items():
        print(name, case["losses"], case["gradNorms"])
    packed.pack(out, "trained-tokens")


if __name__ == "__main__":
    main()
