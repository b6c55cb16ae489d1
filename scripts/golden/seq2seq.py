"""Training of the encoder-decoders of tests/golden/graphs: PEFT's and PyTorch's losses, gradients and steps.

    seq2seq.py [--out tests/golden/seq2seq] [NAME …]

Needs the models that graphs.py exports: the weights are made again from its seed, and checked against the graphs.
../../tests/golden/README.md explains the folder.
"""
import argparse
import pathlib

import numpy as np
import onnxruntime as ort
import torch

import packed
from common import ADAMW, GOLDEN, UNION, adamw_steps, adapt, all_double, fresh, peft_keys, save_adapter, save_tensors, trainable, versions, write_json
from graphs import MODELS, build

SEED, STEPS, EOS, PAD, IGNORED = 13, 20, 1, 2, -100
RATE = 1e-3  # seed and rate are such that PyTorch's float32 takes the steps of float64: Adam follows the sign of the smallest gradients
ROWS = [
    {"text": "And the people said unto him", "target": "the sea was calm"},
    {"text": "In the beginning", "target": "there was the word, and the word was good"},
    {"text": "the whale", "target": "a great fish"},
]
DEFAULTS = {"t5": ["q", "v"], "bart": ["q_proj", "v_proj"], "t5gemma": ["q_proj", "v_proj"]}


def encoded(start):
    """Tokens of inputs and targets. The tokenizer adds no end to a text, and a target needs one. The model itself puts the start token before it."""
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(UNION / "tokenizer.json"))
    targets = [tokenizer.encode(r["target"]).ids + [EOS] for r in ROWS]
    return [tokenizer.encode(r["text"]).ids for r in ROWS], [ids[1:] if ids[0] == start else ids for ids in targets]


def batch(start):
    inputs, targets = encoded(start)
    fill = lambda rows, value: torch.tensor([row + [value] * (max(map(len, rows)) - len(row)) for row in rows])
    mask = fill([[1] * len(row) for row in inputs], 0)
    return {"input_ids": fill(inputs, PAD), "attention_mask": mask, "labels": fill(targets, IGNORED)}


def run(model, given):
    """decoder_input_ids are made by the model: the labels moved to the right."""
    wide = next(model.parameters()).dtype == torch.float64
    if not wide:
        return model(**given, use_cache=False)
    with all_double():
        return model(**given, use_cache=False)


@torch.no_grad()
def check(name, model):
    """The graphs must be those of these weights."""
    folder = GOLDEN / "graphs" / name / "onnx"
    given = batch(model.config.decoder_start_token_id)
    opened = lambda file: ort.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
    encoder = opened("encoder_model.onnx")
    states = encoder.run(None, {i.name: given[i.name].numpy() for i in encoder.get_inputs()})[0]
    wanted = model.get_encoder()(**{k: v for k, v in given.items() if k != "labels"}).last_hidden_state.numpy()
    error = np.abs(states - wanted)[given["attention_mask"].numpy() == 1]
    if error.max() > 1e-4:
        raise SystemExit(f"{name}: the encoder differs by {error.max()}")


def numbers(name, targets, folder):
    make, _, _ = MODELS[name]
    check(name, build(make))
    fresh(folder)
    adapted = lambda: adapt(build(make), SEED, 0.2, name=f"tiny-{name}", r=2, lora_alpha=4, target_modules=targets, task_type="SEQ_2_SEQ_LM")
    save_adapter(adapted(), folder / "adapter-init")
    model = adapted().to(torch.float64)
    start = model.config.decoder_start_token_id
    given = batch(start)
    result = run(model, given)
    result.loss.backward()
    save_tensors(folder / "gradients.safetensors", peft_keys({k: p.grad.clone() for k, p in trainable(model).items()}))
    losses, norms = adamw_steps(trainable(model).values(), lambda _: run(model, given).loss, STEPS, RATE)
    narrow, own = adapted(), batch(start)
    others = adamw_steps(trainable(narrow).values(), lambda _: run(narrow, own).loss, STEPS, RATE)
    deviation = max(abs(a / b - 1) for pair in zip((losses, norms), others) for a, b in zip(*pair))
    if deviation > 1e-4:
        raise SystemExit(f"{name}: PyTorch's own float32 differs by {deviation}")
    counted = given["labels"] != IGNORED
    inputs, encoded_targets = encoded(start)
    write_json(folder / "golden.json", {
        "versions": versions("torch", "transformers", "peft"), "seed": SEED, "adamw": {**ADAMW, "lr": RATE}, "rows": ROWS,
        "inputIds": inputs, "labels": encoded_targets, "loss": result.loss.item(),
        "accuracy": (result.logits.argmax(-1) == given["labels"])[counted].double().mean().item(),
        "adamwLosses": losses, "gradNorms": norms})
    print(name, targets, result.loss.item(), losses[-1], deviation)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "seq2seq")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    for name in args.names or DEFAULTS:
        numbers(name, MODELS[name][1], args.out / name)
        numbers(name, DEFAULTS[name], args.out / f"{name}-default")
    packed.pack(args.out, "seq2seq")


if __name__ == "__main__":
    main()
