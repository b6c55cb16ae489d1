"""Exports of models of a few kB, and PEFT's logits with adapters of every kind: what merged .onnx files and sessions have to give.

    onnx_kinds.py [--out tests/golden/onnx-kinds]

<model>-ts.onnx is written by torch.onnx.export's older exporter, <model>-dynamo.onnx by the newer one. qwen2-tied-q4head.onnx is the
first one with its head alone in 4 bits, by ONNX Runtime's quantizer. logits.safetensors has, in
float64 rounded to float32, base.<model>, the logits of each case, and those of sums of adapters with weights. Cases of
tests/golden/kinds are read from there; cases/ has the others' folders. cases.json says which case belongs to which model, and what
the models are fed.
"""
import argparse
import copy
import pathlib
import warnings
from types import SimpleNamespace

import onnx
import torch
from torch import nn

import peft_kinds
import packed
from common import GOLDEN, adapt, all_double, fresh, save_adapter, save_tensors, versions, write_json
from peft_kinds import LINEARS, RANKS, SEED, move

KINDS = GOLDEN / "kinds"
INPUTS = {"input_ids": [[3, 31, 2, 17, 5, 4, 30], [1, 0, 12, 5, 31, 9, 22]], "attention_mask": [[1] * 7, [1] * 7]}

OWN = {  # case: (model, LoraConfig, options of save_pretrained)
    "tied-tokens": ("qwen2-tied", {**RANKS, "target_modules": LINEARS, "trainable_token_indices": [31, 2, 17]}, {}),
    "tied-embedding": ("qwen2-tied", {**RANKS, "target_modules": ["embed_tokens", "q_proj"]}, {"save_embedding_layers": False}),
    "tied-head": ("qwen2-tied", {**RANKS, "target_modules": LINEARS, "modules_to_save": ["lm_head"]}, {}),
    "gpt2-bias-all": ("gpt2", {**peft_kinds.GPT, "bias": "all"}, {}),
    "gpt2-norms": ("gpt2", {**peft_kinds.GPT, "modules_to_save": ["ln_f", "ln_1"]}, {}),
    "gpt2-saved": ("gpt2", {**peft_kinds.GPT, "modules_to_save": ["mlp.c_proj", "wpe"]}, {}),
    "bert": ("bert", {**RANKS, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}, {}),
    "bert-dora": ("bert", {**RANKS, "target_modules": ["query", "dense"], "use_dora": True, "bias": "lora_only", "task_type": "SEQ_CLS"}, {}),
    "bert-all": ("bert", {**RANKS, "target_modules": ["key", "word_embeddings"], "bias": "all", "task_type": "SEQ_CLS"}, {}),
    "bert-lora-bias": ("bert", {**RANKS, "target_modules": ["query", "dense"], "lora_bias": True, "task_type": "SEQ_CLS"}, {}),
}
CONV = {"r": 3, "lora_alpha": 5, "rank_pattern": {"point": 2}, "task_type": None, "target_modules": ["near", "plane", "point", "logits"]}
OWN |= {
    "conv": ("convolved", CONV, {}),
    "conv-dora": ("convolved", {**CONV, "use_dora": True}, {}),
    "conv-lora-bias": ("convolved", {**CONV, "lora_bias": True}, {}),
    "conv-point": ("convolved", {**CONV, "target_modules": ["point", "logits"]}, {}),
    "conv-point-dora": ("convolved", {**CONV, "target_modules": ["point"], "use_dora": True}, {}),
    "conv-point-bias": ("convolved", {**CONV, "target_modules": ["point"], "lora_bias": True}, {}),
    "conv-saved": ("convolved", {**CONV, "target_modules": ["near"], "modules_to_save": ["plane"]}, {}),
}
SUMS = {  # name: adapters with weights
    "sum-linear": [("linear", 0.5), ("lora-bias", -0.75)],
    "sum-embedding": [("embedding", 0.25), ("linear", 1), ("lora-bias", 2)],
}
MODELS = {"qwen2": ["ts", "dynamo"], "qwen2-tied": ["ts", "dynamo"], "gpt2": ["ts", "dynamo"], "bert": ["ts", "dynamo"], "convolved": ["ts", "dynamo"]}


class Convolved(nn.Module):
    """Over embedded tokens, in one and two dimensions."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 6)
        self.near = nn.Conv1d(6, 8, 3, padding=1)
        self.plane = nn.Conv2d(4, 6, (2, 3), padding=(0, 1))
        self.far = nn.Conv1d(6, 6, 3, padding=2, dilation=2)
        self.point = nn.Conv1d(6, 5, 1)
        self.logits = nn.Linear(5, 7)

    def forward(self, input_ids, attention_mask=None):
        x = torch.tanh(self.near(self.embed(input_ids).transpose(1, 2)))  # (batch, 8, tokens)
        x = torch.tanh(self.plane(x.reshape(x.shape[0], 4, 2, -1))).flatten(1, 2)  # (batch, 6, tokens)
        x = self.point(torch.tanh(self.far(x)))
        return SimpleNamespace(logits=self.logits(x.transpose(1, 2)))


def build(name):
    """The models of peft_kinds.py, one of them with tied embeddings as well, a classifier, and convolutions."""
    from transformers import BertConfig, BertForSequenceClassification, Qwen2ForCausalLM
    if name in ("qwen2", "gpt2"):
        model = peft_kinds.build(name)
    elif name == "qwen2-tied":
        config = peft_kinds.build("qwen2").config
        config.tie_word_embeddings = True
        torch.manual_seed(SEED)
        model = noisy(Qwen2ForCausalLM(config))
        assert model.lm_head.weight is model.model.embed_tokens.weight
    elif name == "convolved":
        torch.manual_seed(SEED)
        return noisy(Convolved()).eval()
    else:
        torch.manual_seed(SEED)
        model = noisy(BertForSequenceClassification(BertConfig(
            vocab_size=32, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
            num_labels=3)))
    model.set_attn_implementation("eager")
    return model.eval()


def noisy(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model


def inputs():
    return {k: torch.tensor(v) for k, v in INPUTS.items()}


class Logits(torch.nn.Module):
    """The model under its own names, with two inputs and one output."""

    def __init__(self, model):
        super().__init__()
        self.whole = [model]
        for name, child in model.named_children():
            setattr(self, name, child)

    def forward(self, input_ids, attention_mask):
        if hasattr(self, "near"):
            return Convolved.forward(self, input_ids).logits
        options = {} if hasattr(self, "bert") else {"use_cache": False}
        core = getattr(self, "model", None) or getattr(self, "transformer", None) or self.bert
        hidden = core(input_ids=input_ids, attention_mask=attention_mask, **options)
        return self.classifier(hidden[1]) if hasattr(self, "bert") else self.lm_head(hidden[0])


def export(name, exporter, path):
    module, example = Logits(build(name)).eval(), tuple(inputs().values())
    names = {"input_names": list(INPUTS), "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "ts":
            axes = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
            torch.onnx.export(module, example, path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
        else:
            axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
            torch.onnx.export(module, example, path, dynamo=True, external_data=False, verbose=False,
                              dynamic_shapes={"input_ids": axes, "attention_mask": axes}, **names)
    exported = onnx.load(path)
    for node in exported.graph.node:  # stack traces name this machine's folders, and are most of the file
        kept = [p for p in node.metadata_props if p.key.endswith("name_scopes")]
        node.doc_string = ""
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    del exported.graph.value_info[:]
    onnx.save(exported, path)


def quantize_head(source, path):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    model = onnx.load(source)
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and "lm_head" not in node.name]
    quantizer = MatMulNBitsQuantizer(model, block_size=16, is_symmetric=True, accuracy_level=0, nodes_to_exclude=others)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))


@torch.no_grad()
def logits(model):
    """In float64 throughout."""
    model = model.double().eval()
    with all_double():
        return model(**inputs()).logits


def loaded(base, folder):
    from peft import PeftModel
    return PeftModel.from_pretrained(build(base), folder).eval()


@torch.no_grad()
def logits_of_sum(base, parts):
    """W + Σ w·Δ, each Δ from PEFT's merge into a copy of its own, in float64."""
    model = build(base).double()
    original = {k: v.clone() for k, v in model.state_dict().items()}
    total = {k: v.clone() for k, v in original.items()}
    for case, weight in parts:
        merged = copy.deepcopy(loaded(base, KINDS / case)).double().merge_and_unload().state_dict()
        for k in total:
            total[k] += weight * (merged[k] - original[k])
    model.load_state_dict(total)
    return logits(model)


def make(name, out):
    base, config, options = OWN[name]
    generator = torch.Generator().manual_seed(SEED)
    adapted = adapt(build(base), SEED, 0.3, name=f"tiny-{base}", **config)
    with torch.no_grad():
        for key, p in adapted.named_parameters():
            if "lora_embedding_A" in key:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    move(adapted, generator)
    save_adapter(adapted, out / name, **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "onnx-kinds")
    out = fresh(parser.parse_args().out)
    results, cases = {}, {}
    for name, exporters in MODELS.items():
        for exporter in exporters:
            export(name, exporter, out / f"{name}-{exporter}.onnx")
        results[f"base.{name}"] = logits(build(name))
    quantize_head(out / "qwen2-tied-ts.onnx", out / "qwen2-tied-q4head.onnx")
    for case, (base, *_) in peft_kinds.CASES.items():
        if base not in MODELS:
            continue
        results[case] = logits(loaded(base, KINDS / case))
        cases[case] = {"model": base, "folder": f"kinds/{case}"}
    for case, (base, *_) in OWN.items():
        make(case, out / "cases")
        results[case] = logits(loaded(base, out / "cases" / case))
        cases[case] = {"model": base, "folder": f"onnx-kinds/cases/{case}"}
    for name, parts in SUMS.items():
        results[name] = logits_of_sum("qwen2", parts)
    for case, value in results.items():
        base = cases.get(case, {}).get("model")
        assert base is None or (value - results[f"base.{base}"]).abs().max() > 0.05, case
    save_tensors(out / "logits.safetensors", results)
    write_json(out / "cases.json", {"versions": versions("torch", "transformers", "peft", "onnx", "onnxscript"), "models": MODELS,
                                    "inputs": INPUTS, "cases": cases, "sums": SUMS})
    packed.pack(out, "onnx-kinds")


if __name__ == "__main__":
    main()
