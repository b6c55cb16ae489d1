"""Image classification over tiny ViT and DINOv2: optimum's exports, PEFT's and PyTorch's numbers, and pixels of Pillow and transformers.

    image_classification.py [--out tests/golden/image-classification]

Needs requirements-optimum.txt, and peft 0.18.1 and pillow 12.0.0 beside it: exports have the names of that transformers.
../../tests/golden/README.md explains the folder.
"""
import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image

from common import ADAMW, GOLDEN, fill_trained, fresh, save_tensors, versions, write_json
from exporters import call, shape_like_hub

SEED, STEPS, LABELS = 13, 4, ["blue", "green", "red"]
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value", "dense"]}
KINDS = ["vit", "dinov2"]


def build(kind, dtype=torch.float32):
    from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "hidden_dropout_prob": 0.0,
             "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}
    if kind == "vit":
        model = ViTForImageClassification(ViTConfig(**shape, **names, image_size=8, intermediate_size=24))
    else:
        model = Dinov2ForImageClassification(Dinov2Config(**shape, **names, image_size=12, mlp_ratio=2))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (1 if "norm" in name and name.endswith("weight") or "lambda" in name else 0))
            elif "token" in name or "position" in name:
                p.copy_(0.3 * noise)
            else:
                p.copy_(noise * 1.2 / p[0].numel() ** 0.5)
    return model.eval().to(dtype)


def processor(kind):
    """As those of google/vit-base-patch16-224 and facebook/dinov2-small, for the size of the tiny models."""
    from transformers import BitImageProcessor, ViTImageProcessor
    if kind == "vit":
        return ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return BitImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 12, "width": 12}, resample=3,
                             image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


def pictures():
    """Small pictures of different sizes: waves in three colours."""
    sizes = [(12, 9), (8, 8), (16, 20), (5, 7), (23, 14), (12, 12)]
    found = []
    for number, (width, height) in enumerate(sizes):
        y, x, c = np.mgrid[0:height, 0:width, 0:3]
        wave = np.sin(0.7 * x * (1 + number % 3) + 0.9 * y + 2.1 * c + number) + (c == number % 3)
        found.append(np.clip(np.rint(wave * 70 + 110), 0, 255).astype(np.uint8))
    return found


ROWS = [LABELS[2 - i % 3] for i in range(6)]


def pixels(kind):
    return processor(kind)([Image.fromarray(p) for p in pictures()], return_tensors="np")["pixel_values"]


def tensors(kind, dtype=torch.float32):
    return {"pixel_values": torch.tensor(pixels(kind)).to(dtype), "labels": torch.tensor([LABELS.index(label) for label in ROWS])}


def adapted(kind, dtype=torch.float32):
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(build(kind), LoraConfig(modules_to_save=["classifier"], **LORA))
    fill_trained(model, SEED + 1)
    return model.eval().to(dtype)


def key(name):
    return name.replace(".default", "").replace(".modules_to_save", "")


def trained(model):
    return {key(name): p for name, p in model.named_parameters() if p.requires_grad}


def numbers(kind, out):
    wide, narrow = adapted(kind, torch.float64), adapted(kind)
    narrow.peft_config["default"].base_model_name_or_path = f"tiny-{kind}"
    narrow.peft_config["default"].target_modules = sorted(LORA["target_modules"])
    narrow.save_pretrained(out / "adapter-init")
    (out / "adapter-init" / "adapter_model.safetensors").chmod(0o644)
    (out / "adapter-init" / "README.md").unlink(missing_ok=True)
    result = wide(**tensors(kind, torch.float64))
    result.loss.backward()
    save_tensors(out / "gradients.safetensors", {name: p.grad for name, p in trained(wide).items()})
    parameters = list(trained(wide).values())
    optimizer = torch.optim.AdamW(parameters, lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weightDecay"])
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = wide(**tensors(kind, torch.float64)).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, ADAMW["maxGradNorm"]).item())
        optimizer.step()
    rows = [{"image": {"width": p.shape[1], "height": p.shape[0], "data": p.ravel().tolist()}, "label": label} for p, label in zip(pictures(), ROWS)]
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft", "pillow"), "seed": SEED, "adamw": ADAMW, "labels": LABELS, "rows": rows,
        "pixels": pixels(kind).tolist(), "loss": result.loss.item(), "logits": result.logits.tolist(), "adamwLosses": losses, "gradNorms": norms})
    print(out, result.loss.item(), losses)


def export(kind, task, source, out, wanted):
    with tempfile.TemporaryDirectory() as work:
        folder, exported = pathlib.Path(work) / f"tiny-{kind}", pathlib.Path(work) / "exported"
        source.save_pretrained(folder)
        processor(kind).save_pretrained(folder)
        call(sys.executable, "-m", "optimum.exporters.onnx", "--model", folder, "--task", task, "--dtype", "fp32", exported)
        shape_like_hub(folder, exported, out)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    config = json.loads((out / "config.json").read_text())
    config["_name_or_path"] = f"tiny-{kind}"
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    session = ort.InferenceSession(str(out / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    made = session.run(None, {"pixel_values": pixels(kind)})[0]
    with torch.no_grad():
        truth = wanted(torch.tensor(pixels(kind))).numpy()
    error = np.abs(made - truth).max()
    print(out, [o.name for o in session.get_outputs()], error)
    if error > 1e-4:
        raise SystemExit(f"{out}: outputs differ by {error}")


def resampled(out):
    """Pillow's resizing in all its filters, up and down, and the picture as a file."""
    cases = []
    picture = pictures()[4]
    Image.fromarray(picture).save(out.parent / "picture.png")
    for resample in range(6):
        for width, height in [(7, 5), (40, 31), (23, 6), (12, 14)]:
            made = np.asarray(Image.fromarray(picture).resize((width, height), resample=resample))
            cases.append({"resample": resample, "width": width, "height": height, "data": made.ravel().tolist()})
    write_json(out, {"versions": versions("pillow"), "image": {"width": picture.shape[1], "height": picture.shape[0], "data": picture.ravel().tolist()}, "cases": cases})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "image-classification")
    args = parser.parse_args()
    fresh(args.out)
    resampled(args.out / "resampled.json")
    for kind in KINDS:
        model = build(kind)
        base = model.base_model
        export(kind, "feature-extraction", base, args.out / kind, lambda x: base(pixel_values=x).last_hidden_state)
        numbers(kind, fresh(args.out / kind / "golden"))
    model = build("vit")
    export("vit", "image-classification", model, args.out / "vit-classifier", lambda x: model(pixel_values=x).logits)


if __name__ == "__main__":
    main()
