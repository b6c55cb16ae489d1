"""Audio classification over a tiny Whisper: exports of the classifier and of its encoder alone, and PEFT's numbers.

    audio_classification.py [--out tests/golden/audio-classification]

../../tests/golden/README.md explains the folder.
"""
import argparse
import json
import pathlib

import numpy as np
import onnxruntime as ort
import torch

from common import ADAMW, GOLDEN, fill_trained, fresh, save_tensors, versions, write_json

SEED, STEPS, LABELS = 17, 4, ["calm", "loud", "near"]
BANDS, TIMES = 8, 24
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "fc1"]}
ROWS = [LABELS[2 - i % 3] for i in range(6)]


def build(dtype=torch.float32):
    from transformers import WhisperConfig, WhisperForAudioClassification
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    config = WhisperConfig(vocab_size=20, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                           encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=BANDS, max_source_positions=TIMES // 2, max_target_positions=8,
                           classifier_proj_size=12, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
                           attn_implementation="eager", architectures=["WhisperForAudioClassification"], **names)
    model = WhisperForAudioClassification(config)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (1 if "norm" in name and name.endswith("weight") else 0))
            else:
                p.copy_(noise * 1.2 / p[0].numel() ** 0.5)
    return model.eval().to(dtype)


def features(dtype=torch.float32):
    places = torch.arange(BANDS * TIMES).reshape(BANDS, TIMES)
    return torch.stack([torch.sin(0.37 * (1 + i % 3) * places + i) for i in range(len(ROWS))]).to(dtype)


def tensors(dtype=torch.float32):
    return {"input_features": features(dtype), "labels": torch.tensor([LABELS.index(label) for label in ROWS])}


def adapted(dtype=torch.float32):
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(build(), LoraConfig(modules_to_save=["projector", "classifier"], **LORA))
    fill_trained(model, SEED + 1)
    return model.eval().to(dtype)


def trained(model):
    return {name.replace(".default", "").replace(".modules_to_save", ""): p for name, p in model.named_parameters() if p.requires_grad}


def numbers(out):
    wide, narrow = adapted(torch.float64), adapted()
    narrow.peft_config["default"].base_model_name_or_path = "tiny-whisper"
    narrow.peft_config["default"].target_modules = sorted(LORA["target_modules"])
    narrow.save_pretrained(out / "adapter-init")
    (out / "adapter-init" / "adapter_model.safetensors").chmod(0o644)
    (out / "adapter-init" / "README.md").unlink(missing_ok=True)
    result = wide(**tensors(torch.float64))
    result.loss.backward()
    save_tensors(out / "gradients.safetensors", {name: p.grad for name, p in trained(wide).items()})
    parameters = list(trained(wide).values())
    optimizer = torch.optim.AdamW(parameters, lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weightDecay"])
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = wide(**tensors(torch.float64)).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, ADAMW["maxGradNorm"]).item())
        optimizer.step()
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft"), "seed": SEED, "adamw": ADAMW, "labels": LABELS, "rows": ROWS,
        "loss": result.loss.item(), "logits": result.logits.tolist(), "base": build(torch.float64)(features(torch.float64)).logits.tolist(),
        "adamwLosses": losses, "gradNorms": norms})
    print(out, result.loss.item(), losses)


def export(model, output, out):
    """The names of nodes are those of the model's own modules, as optimum has them."""
    (out / "onnx").mkdir(parents=True)
    forward = type(model).forward
    plain = type(model).__name__
    model.__class__ = type(plain, (type(model),), {"forward": lambda self, input_features: getattr(forward(self, input_features), output)})
    torch.onnx.export(model, (features(),), str(out / "onnx" / "model.onnx"), input_names=["input_features"], output_names=[output],
                      dynamic_axes={"input_features": {0: "batch_size"}, output: {0: "batch_size"}}, opset_version=17, dynamo=False)
    with torch.no_grad():
        truth = model(features()).numpy()
    session = ort.InferenceSession(str(out / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    error = np.abs(session.run(None, {"input_features": features().numpy()})[0] - truth).max()
    print(out, error)
    if error > 1e-4:
        raise SystemExit(f"{out}: outputs differ by {error}")
    config = json.loads(model.config.to_json_string())
    config["_name_or_path"] = "tiny-whisper"
    write_json(out / "config.json", config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "audio-classification")
    out = fresh(parser.parse_args().out)
    numbers(fresh(out / "golden"))
    export(build().encoder, "last_hidden_state", out / "encoder")
    export(build(), "logits", out / "classifier")


if __name__ == "__main__":
    main()
