"""Adapters whose parts meet at the vocabulary: LoRA, DoRA, saved tensors, trained tokens and biases on the output layer, the embedding and
ordinary layers, tied and untied, with PEFT's logits over weights of 32 and of 4 bits.

    vocabulary_parts.py [--out tests/golden/vocabulary-parts]

`untied` and `tied` are onnxruntime-genai's exports of a small Qwen2: model.onnx, and model_q4.onnx with weights of 4 bits. <base>/<cell>/ is an adapter as PEFT saved it.
golden.json: for each cell `loss` (of IDS and eos, in float64), and `q4Loss`, that of PEFT over the weights that the 4 bits stand for; a copy of the base's own tensor that
PEFT has saved along is then the base's. `refused`: what PEFT says of combinations that it does not make. logits.safetensors: <base>/<cell> and <base>/<cell>/q4, the last token's
logits of each row.
"""
import argparse
import itertools
import pathlib
import shutil
import tempfile
import warnings

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import exporters
import packed
from common import GOLDEN, adapt, call, fresh, last_logits, move_replaced, save_adapter, save_tensors, save_words, versions, write_json

SEED, IDS = 41, [[5, 17, 40, 3, 59, 33], [7, 7, 61, 12, 20, 26]]
TOKENS = [3, 12, 40]
HEAD, EMBED, LAYERS = "lm_head", "embed_tokens", ["q_proj", "down_proj"]
KINDS = ["", "lora", "saved", "rows", "lora+rows"]


def config(tied):
    from transformers import Qwen2Config
    return Qwen2Config(vocab_size=64, bos_token_id=0, eos_token_id=1, pad_token_id=2, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                       num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6, max_position_embeddings=64, tie_word_embeddings=tied)


exporters.BASES.update({"untied": (lambda: config(False), {}), "tied": (lambda: config(True), {})})


def peft_config(head, embed, **more):
    targets, tokens, saved = list(LAYERS), {}, []
    for module, kind in ((HEAD, head), (EMBED, embed)):
        if "lora" in kind:
            targets.append(module)
        if "rows" in kind:
            tokens[module] = TOKENS if module == EMBED else TOKENS[1:]
        if "saved" in kind:
            saved.append(module)
    return {"r": 2, "lora_alpha": 4, "target_modules": targets, "modules_to_save": saved or None, "trainable_token_indices": tokens or None, **more}


def cells():
    """(base, name, config, options of save_pretrained)"""
    for base, head, embed in itertools.product(("untied", "tied"), KINDS, KINDS):
        name = f"head {head or 'base'}, embedding {embed or 'base'}"
        yield base, name, peft_config(head, embed), {}
    for base in ("untied", "tied"):
        yield base, "DoRA, head lora", peft_config("lora", "", use_dora=True), {}
        yield base, "DoRA, head lora, embedding lora", peft_config("lora", "lora", use_dora=True), {}
        yield base, "DoRA, embedding lora", peft_config("", "lora", use_dora=True), {}
        yield base, "DoRA, head saved", peft_config("saved", "", use_dora=True), {}
        yield base, "DoRA, head lora, embedding rows", peft_config("lora", "rows", use_dora=True), {}
        yield base, "bias, head lora", peft_config("lora", "", bias="all"), {}
        yield base, "bias of the layers, DoRA, head lora", peft_config("lora", "", bias="lora_only", use_dora=True), {}
        yield base, "bias, head saved, embedding rows", peft_config("saved", "rows", bias="all"), {}
        yield base, "head lora, no copies", peft_config("lora", ""), {"save_embedding_layers": False}
        yield base, "head base, copies", peft_config("", ""), {"save_embedding_layers": True}
        yield base, "another head, head lora", peft_config("lora", ""), {"moves": True}
        yield base, "another head, DoRA, head lora", peft_config("lora", "", use_dora=True), {"moves": True}
        yield base, "another head, embedding rows", peft_config("", "rows"), {"moves": True, "save_embedding_layers": True}
        yield base, "layer saved", {**peft_config("lora", ""), "modules_to_save": ["up_proj"]}, {}
    for head, embed in (("lora", ""), ("", "lora"), ("lora", "lora"), ("saved", ""), ("", "saved"), ("", "rows"), ("rows", ""), ("lora", "rows")):
        name = f"tying ensured, head {head or 'base'}, embedding {embed or 'base'}"
        yield "tied", name, peft_config(head, embed, ensure_weight_tying=True), {}


def four_bits(path):
    """The float weights, (d, k), that the integers of MatMulNBits stand for, by the name of the node."""
    model = onnx.load(path)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        at = {a.name: a.i for a in node.attribute}
        packed, scales = tensors[node.input[1]], tensors[node.input[2]].reshape(at["N"], -1, 1).astype(np.float32)
        integers = np.stack([packed & 15, packed >> 4], -1).reshape(at["N"], scales.shape[1], at["block_size"]).astype(np.float32)
        zeros = 8.0
        if len(node.input) > 3 and node.input[3]:
            stored = tensors[node.input[3]].reshape(at["N"], -1)
            zeros = np.stack([stored & 15, stored >> 4], -1).reshape(at["N"], -1)[:, :scales.shape[1], None].astype(np.float32)
        found[node.name] = torch.from_numpy(((integers - zeros) * scales).reshape(at["N"], -1)[:, :at["K"]].copy())
    return found


def loss_of(model):
    ids = torch.tensor([[*row, 1] for row in IDS])  # a record ends with eos
    return call(model, input_ids=ids, labels=ids).loss.item()


def innermost(module):
    """The layer of the base behind PEFT's wrappers."""
    for name in ("original_module", "token_adapter", "base_layer"):
        inner = getattr(module, name, None)
        if isinstance(inner, torch.nn.Module):
            return innermost(inner)
    return module


def put_four_bits(base, adapted, graph):
    """Gives the model under the adapter the weights of the graph. A head that the adapter's file has put there stays, unless it is the base's."""
    plain = exporters.build(base)
    for name, weight in four_bits(graph).items():
        module = name.strip("/").rsplit("/", 1)[0].replace("/", ".").replace(".attn.", ".self_attn.")
        layer, stored = innermost(adapted.base_model.model.get_submodule(module)), plain.get_submodule(module).weight
        assert stored.shape == weight.shape and (stored - weight).abs().max() < 0.3, module
        layers = [layer]
        if base == "tied" and module == "lm_head":  # the graph has one table for both
            layers.append(innermost(adapted.base_model.model.model.embed_tokens))
        for layer in layers:
            if torch.equal(layer.weight, stored):
                layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return adapted


def cell(base, folder, changes, moves, options, q4):
    """Saves the adapter; the logits and losses of those who load it."""
    from peft import PeftModel
    model = exporters.build(base)
    if moves:  # a base whose head is another than the graph's
        weight = model.get_output_embeddings().weight
        with torch.no_grad():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(SEED)))
    adapted = adapt(model, SEED, 0.3, name=f"tiny-{base}", **changes)
    move_replaced(adapted, SEED)
    save_adapter(adapted, folder, **options)
    models = [PeftModel.from_pretrained(exporters.build(base), folder).eval() for _ in range(2)]
    put_four_bits(base, models[1], q4)
    logits = [last_logits(model, IDS) for model in models]
    losses = [loss_of(model.double()) for model in models]
    return *logits, dict(zip(("loss", "q4Loss"), losses))


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "vocabulary-parts")
    args = parser.parse_args()
    out = fresh(args.out)
    for base in ("untied", "tied"):
        with tempfile.TemporaryDirectory() as work:
            source = pathlib.Path(work) / f"tiny-{base}"
            exporters.save_base(base, source)
            for precision, options in (("fp32", ["fuse_qkv=false"]), ("int4", ["fuse_qkv=false", "accuracy_level=1"])):
                exported = pathlib.Path(work) / precision
                exporters.genai(*options, precision=precision)(source, exported, args)
                if precision == "fp32":
                    exporters.shape_like_hub(source, exported, out / base)
                else:
                    loaded = onnx.load(exported / "model.onnx")
                    onnx.save(loaded, out / base / "onnx" / "model_q4.onnx")
        fp32 = out / base / "onnx" / "model.onnx"
        loaded = onnx.load(fp32)
        for file in (out / base / "onnx").glob("model.onnx*"):
            file.unlink()
        onnx.save(loaded, fp32)
        for name in ("genai_config.json", "generation_config.json"):
            (out / base / name).unlink(missing_ok=True)
        save_words(out / base, 64)
    losses, refused, logits = {}, {}, {}
    for base, name, changes, options in cells():
        moves = options.pop("moves", False) if options else False
        folder = out / base / name
        try:
            numbers = cell(base, folder, changes, moves, options, out / base / "onnx" / "model_q4.onnx")
        except Exception as error:  # whatever PEFT says
            shutil.rmtree(folder, ignore_errors=True)
            refused[f"{base}/{name}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            continue
        logits[f"{base}/{name}"], logits[f"{base}/{name}/q4"], losses[f"{base}/{name}"] = numbers
        print(base, name, losses[f"{base}/{name}"])
    save_tensors(out / "logits.safetensors", logits)
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "peft", "onnxruntime-genai"), "inputIds": IDS, "cells": losses, "refused": refused})
    packed.pack(out, "vocabulary-parts")
    for name, why in refused.items():
        print("refused", name, why)


if __name__ == "__main__":
    main()
