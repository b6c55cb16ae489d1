"""Decoders that give labels to texts: PEFT's and PyTorch's numbers for *ForSequenceClassification over the models of exporters.py.

    decoder_classification.py [--out tests/golden/decoder-classification]

Needs requirements.txt. tests/golden/README.md explains the folder.
"""
import argparse
import json
import pathlib

import torch

from common import ADAMW, GOLDEN, PAD, UNION, call, fill_b, fresh, save_adapter, save_tensors, trainable, versions, write_json
from exporters import BASES, build

SEED, LABELS, STEPS, MAX_LENGTH = 11, ["calm", "glad", "sad"], 4, 14
ROWS = [
    {"text": "The sea was calm.", "label": "calm"},
    {"text": "He saw the sun and was happy!", "label": "glad"},
    {"text": "Rain came, a grim night", "textPair": "and the ship went.", "label": "sad"},
    {"text": "The king is good", "label": "glad"},
    {"text": "She said it was bad and grim and the night came and the rain came and the sun went", "label": "sad"},
    {"text": "a", "label": "calm"},
]
CLASSES = {"llama": "LlamaForSequenceClassification", "qwen2": "Qwen2ForSequenceClassification", "gpt2": "GPT2ForSequenceClassification"}


def adapted(base, dtype):
    import transformers
    from peft import LoraConfig, get_peft_model
    causal = build(base)
    config = causal.config
    config.num_labels, config.pad_token_id = len(LABELS), PAD
    model = getattr(transformers, CLASSES[base])(config)
    prefix = model.base_model_prefix
    getattr(model, prefix).load_state_dict(getattr(causal, prefix).state_dict())
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=generator) * 0.3)
    model.name_or_path = f"tiny-{base}"
    torch.manual_seed(SEED)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, **BASES[base][1]))
    fill_b(model, SEED, 0.1)
    return model.eval().to(dtype)


def batch():
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(UNION / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.enable_padding(pad_id=PAD)
    rows = tokenizer.encode_batch([(r["text"], r["textPair"]) if "textPair" in r else r["text"] for r in ROWS])
    return {"input_ids": [r.ids for r in rows], "attention_mask": [r.attention_mask for r in rows], "labels": [LABELS.index(r["label"]) for r in ROWS]}


def tensors():
    return {name: torch.tensor(rows) for name, rows in batch().items()}


def numbers(base, out):
    fresh(out)
    inputs = tensors()
    wide, narrow = adapted(base, torch.float64), adapted(base, torch.float32)
    save_adapter(narrow, out / "adapter-init")
    result = call(wide, **inputs)
    result.loss.backward()
    named = {name.replace(".modules_to_save", ""): p for name, p in trainable(wide).items()}
    save_tensors(out / "gradients.safetensors", {name: p.grad for name, p in named.items()})
    deviation = (call(narrow, **inputs).logits.double() - result.logits).abs().max().item()
    optimizer = torch.optim.AdamW(named.values(), lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weightDecay"])
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = call(wide, **inputs).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(named.values(), ADAMW["maxGradNorm"]).item())
        optimizer.step()
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft"), "seed": SEED, "adamw": ADAMW, "labels": LABELS, "maxLength": MAX_LENGTH, "rows": ROWS,
        "batch": batch(), "loss": result.loss.item(), "logits": result.logits.tolist(), "adamwLosses": losses, "gradNorms": norms, "float32Deviation": deviation})
    config = json.loads((out / "adapter-init" / "adapter_config.json").read_text())
    print(out, config["modules_to_save"], losses, deviation)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "decoder-classification")
    out = parser.parse_args().out
    for base in CLASSES:
        numbers(base, out / base / "golden")


if __name__ == "__main__":
    main()
