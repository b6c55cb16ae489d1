"""Tiny encoders as ONNX Runtime's optimizer fuses them, with PEFT's and PyTorch's numbers beside them.

    fused_encoders.py [--out tests/golden/fused] [--optimum PYTHON] [NAME …]

optimum exports each model, and onnxruntime.transformers.optimizer fuses its attention: as MultiHeadAttention (NAME-mha) and as Attention, whose
one weight holds query, key and value (NAME-attention). Of ModernBERT, ViT and DINOv2 it fuses norms and activations alone (NAME-norms); NAME-plain is optimum's own export of these. ViT and
DINOv2 run in the Python of requirements-optimum.txt with peft 0.18.1: exports have the names of that transformers. NAME/numbers.safetensors holds the inputs, PyTorch's hidden states without (`base`) and
with each adapter (plain, DoRA, DoRA with trained biases, plain with trained norms), and the gradients of sum(g · hidden states) by all that is trained. tests/golden/README.md explains the folder.
"""
import argparse
import json
import pathlib
import shutil
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
import torch

import packed
from common import GOLDEN, all_double, fresh, save_adapter, save_tensors, versions, write_json
from exporters import call

SEED, HEADS, WIDTH = 17, 4, 16
TEXT = {"vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 24,
        "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISTILBERT = {"vocab_size": 40, "dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 24, "max_position_embeddings": 32,
              "dropout": 0.0, "attention_dropout": 0.0}
BERT_LINEARS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
MODERNBERT = {"vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32,
              "local_attention": 24, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
IMAGES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "patch_size": 4, "hidden_dropout_prob": 0.0,
          "attention_probs_dropout_prob": 0.0}
PICTURES = ("vit", "dinov2")
MODELS = {  # name: (model type, settings, all linear layers, what DoRA changes)
    "bert": ("bert", TEXT, BERT_LINEARS, ["query", "value", "intermediate.dense"]),
    "roberta": ("roberta", {**TEXT, "pad_token_id": 1}, BERT_LINEARS, ["key", "value"]),
    "distilbert": ("distilbert", DISTILBERT, ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"], ["v_lin"]),
    "xlm-roberta": ("xlm-roberta", {**TEXT, "pad_token_id": 1}, BERT_LINEARS, ["key", "value"]),
    "modernbert": ("modernbert", MODERNBERT, ["Wqkv", "Wo", "Wi"], ["Wqkv", "Wi"]),
    "vit": ("vit", {**IMAGES, "image_size": 8, "intermediate_size": 24}, BERT_LINEARS, ["query", "intermediate.dense"]),
    "dinov2": ("dinov2", {**IMAGES, "image_size": 12, "mlp_ratio": 2}, ["query", "key", "value", "dense", "fc1", "fc2"], ["value", "fc1"]),
}
FORMS = {"mha": "MultiHeadAttention", "attention": "Attention"}  # and what each must have
NORMS = {"norms": "SkipLayerNormalization"}
SAVED = {  # the modules of all norms, which one adapter trains whole
    "modernbert": ["norm", "attn_norm", "mlp_norm", "final_norm"],
    "vit": ["layernorm_before", "layernorm_after", "layernorm"],
    "dinov2": ["norm1", "norm2", "layernorm"],
}
LENGTHS = [7, 4, 5]


def build(name):
    """A model with random weights, made in the order of the parameters' names."""
    from transformers import AutoConfig, AutoModel
    kind, settings, *_ = MODELS[name]
    model = AutoModel.from_config(AutoConfig.for_model(kind, **settings), attn_implementation="eager")
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (1 if "orm" in key and key.endswith("weight") or "lambda" in key else 0))
            elif key.endswith(("_token", "position_embeddings")):
                p.copy_(0.3 * noise)
            else:
                p.copy_(noise * (0.3 if "embeddings" in key else 1.2 / p[0].numel() ** 0.5))
    return model.eval()


def inputs(name):
    generator = torch.Generator().manual_seed(SEED + 1)
    if name in PICTURES:
        return {"pixel_values": torch.randn(len(LENGTHS), 3, *[MODELS[name][1]["image_size"]] * 2, generator=generator)}
    ids = torch.randint(3, 40, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    made = {"input_ids": torch.where(mask == 1, ids, 1 if "roberta" in name else 0), "attention_mask": mask}
    if name == "bert":
        made["token_type_ids"] = (torch.arange(max(LENGTHS))[None] >= 3).long().expand(len(LENGTHS), -1) * mask
    return made


def adapted(name, targets, **config):
    from peft import LoraConfig, get_peft_model
    model = build(name)
    model.name_or_path = f"tiny-{name}"
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets, **config))
    generator = torch.Generator().manual_seed(SEED + 2)
    with torch.no_grad():
        for _, p in sorted((n, p) for n, p in model.named_parameters() if p.requires_grad):
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(p * (1 + 0.2 * noise) if p.dim() == 1 else noise * 0.5 / p.shape[1] ** 0.5)
    return model.eval()


def hidden(model, given):
    """In float64."""
    with all_double():
        given = {key: x.double() if x.is_floating_point() else x for key, x in given.items()}
        return model.double()(**given).last_hidden_state


def numbers(name, out):
    _, _, linears, dora = MODELS[name]
    folder, given = fresh(out / name), inputs(name)
    tensors = dict(given)
    with torch.no_grad():
        tensors["base"] = hidden(build(name), given)
    g = torch.randn(tensors["base"].shape, generator=torch.Generator().manual_seed(SEED + 3))
    if "attention_mask" in given:
        g = g * given["attention_mask"][..., None]  # what padding becomes is nobody's concern
    tensors["g"] = g
    kinds = {"lora": (linears, {}), "dora": (dora, {"use_dora": True}), "bias": (dora, {"use_dora": True, "bias": "all"})}
    if name in SAVED:
        kinds["saved"] = (linears, {"modules_to_save": SAVED[name]})
    for kind, (targets, config) in kinds.items():
        model = adapted(name, targets, **config)
        save_adapter(model, folder / kind)
        output = hidden(model, given)
        tensors[kind] = output.detach()
        (output * g.double()).sum().backward()
        prefix = "gradient/" if kind == "lora" else f"gradient/{kind}/"
        # The pooler's bias has no gradient: it is behind the hidden states.
        tensors.update({prefix + key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    save_tensors(folder / "numbers.safetensors", tensors)
    return tensors


def fused(path, out, multi_head, kind):
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions
    options = FusionOptions(kind)
    options.use_multi_head_attention = multi_head
    model = optimizer.optimize_model(str(path), kind, num_heads=HEADS, hidden_size=WIDTH, optimization_options=options)
    model.model.producer_name, model.model.producer_version = "", ""
    out.parent.mkdir(parents=True)
    model.save_model_to_file(str(out))


def quantized(out):
    """bert-int8: bert-attention in int8 by ONNX Runtime's quantizer, which makes QAttention of Attention."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    folder = fresh(out / "bert-int8" / "onnx")
    quantize_dynamic(out / "bert-attention" / "onnx" / "model.onnx", folder / "model.onnx", weight_type=QuantType.QInt8,
                     extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})  # it cannot tell types behind fused operators
    shutil.copyfile(out / "bert-attention" / "config.json", folder.parent / "config.json")


def deviation(path, given, truth):
    """Largest error of a hidden state at tokens that are no padding."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    made = session.run(["last_hidden_state"], {i.name: given[i.name].numpy() for i in session.get_inputs()})[0]
    error = np.abs(made - truth.numpy())
    return float((error[given["attention_mask"].numpy() == 1] if "attention_mask" in given else error).max())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "fused")
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    for name in args.names or MODELS:
        kind = MODELS[name][0]
        tensors, operators, errors = numbers(name, args.out), {}, {}
        with tempfile.TemporaryDirectory() as work:
            source, exported = pathlib.Path(work) / f"tiny-{name}", pathlib.Path(work) / "exported"
            build(name).save_pretrained(source)
            if name in PICTURES:
                shutil.copyfile(GOLDEN / "image-classification" / name / "preprocessor_config.json", source / "preprocessor_config.json")
            for file in () if name in PICTURES else ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(GOLDEN / "text-classification" / "encoder" / file, source / file)
            call(args.optimum, "-m", "optimum.exporters.onnx", "--model", source, "--task", "feature-extraction", "--library", "transformers",
                 "--dtype", "fp32", "--no-post-process", exported)
            for form, operator in (NORMS if name in ("modernbert", *PICTURES) else FORMS).items():
                folder = fresh(args.out / f"{name}-{form}")
                path = folder / "onnx" / "model.onnx"
                fused(exported / "model.onnx", path, form == "mha", "vit" if name in PICTURES else "bert")
                (folder / "config.json").write_text(json.dumps({"model_type": kind, **MODELS[name][1]}, indent=1) + "\n")
                errors[form] = deviation(path, tensors, tensors["base"])
                operators[form] = sorted({n.op_type for n in onnx.load(path).graph.node if n.domain == "com.microsoft"})
                if errors[form] > 1e-4 or operator not in operators[form]:
                    raise SystemExit(f"{path}: hidden states differ by {errors[form]}; {operators[form]}")
            if name in SAVED:
                plain = fresh(args.out / f"{name}-plain")
                (plain / "onnx").mkdir()
                shutil.copyfile(exported / "model.onnx", plain / "onnx" / "model.onnx")
                shutil.copyfile(folder / "config.json", plain / "config.json")
                for file in ("preprocessor_config.json",) if name in PICTURES else ("tokenizer.json", "tokenizer_config.json"):
                    shutil.copyfile(source / file, folder / file)  # what training needs besides
        if name == "bert":
            quantized(args.out)
        write_json(args.out / name / "golden.json", {
            "versions": versions("torch", "transformers", "peft", "onnx", "onnxruntime"), "seed": SEED, "operators": operators, "onnxDeviation": errors})
        print(name, errors, operators, flush=True)
    packed.pack(args.out, "fused")


if __name__ == "__main__":
    main()
