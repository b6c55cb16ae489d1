"""Tiny random encoder-decoders, whose graphs are several and have branches, with PEFT's logits beside them.

    graphs.py [--out tests/golden/graphs] [--optimum PYTHON] [NAME …]

--optimum: the Python of a virtual environment with requirements-optimum.txt. A model is kept only if ONNX Runtime gives PyTorch's logits.
Folders are as on the Hub for transformers.js; ../../tests/golden/README.md explains them.
"""
import argparse
import json
import pathlib
import shutil
import tempfile

import numpy as np
import onnxruntime as ort
import torch

from common import GOLDEN, UNION, adapt, fresh, save_adapter, save_tensors, versions, write_json
from exporters import call

SEED, NEW_TOKENS = 7, 10
SPECIAL = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
TEXT = "And the people said unto him"
DECODED = [2, 54, 260, 1356, 270]


def t5():
    from transformers import T5Config, T5ForConditionalGeneration
    model = T5ForConditionalGeneration(T5Config(
        **SPECIAL, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", decoder_start_token_id=2))
    model.config.scale_decoder_outputs = True  # as transformers 4, which exports it, does with tied embeddings
    return model


def bart():
    from transformers import BartConfig, BartForConditionalGeneration
    return BartForConditionalGeneration(BartConfig(
        **SPECIAL, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, dropout=0.0, decoder_start_token_id=2,
        forced_eos_token_id=None))


def whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration
    return WhisperForConditionalGeneration(WhisperConfig(
        **SPECIAL, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=4, max_source_positions=1500, max_target_positions=32,
        decoder_start_token_id=2, suppress_tokens=None, begin_suppress_tokens=None))


WITH_TEXT = ["text2text-generation-with-past"]
T5 = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
BART = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
MODELS = {  # name: (model, targets, task of optimum)
    "t5": (t5, T5, "text2text-generation-with-past"),
    "bart": (bart, BART, "text2text-generation-with-past"),
    "whisper": (whisper, BART, "automatic-speech-recognition-with-past"),
}


def build(make):
    """Random weights, scaled so that each layer matters; norms near 1."""
    model = make()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
            elif p.dim() == 2 and p.shape[0] not in (2048, 1500, 66, 34, 32):
                p.copy_(noise * 1.2 / p.shape[1] ** 0.5)
            else:
                p.copy_(0.3 * noise)
    return model.eval()


def inputs(name):
    """What goes into the model: of encoder-decoders what the encoder takes."""
    from tokenizers import Tokenizer
    if name == "whisper":
        return {"input_features": torch.randn((1, 4, 3000), generator=torch.Generator().manual_seed(SEED)).half().float()}
    ids = torch.tensor([Tokenizer.from_file(str(UNION / "tokenizer.json")).encode(TEXT).ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits_of(model, given, decoded):
    return model(**given, decoder_input_ids=torch.tensor([decoded]), use_cache=False).logits[0]


def greedy(model, given):
    """New tokens, and the smallest lead of a chosen token over the second."""
    ids, lead = [2], float("inf")
    for _ in range(NEW_TOKENS):
        top = logits_of(model, given, ids)[-1].topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return ids[1:], lead


def onnx_logits(folder, given):
    """Of the exported graphs: one run over all tokens, then the last one with a cache."""
    open_graph = lambda file: ort.InferenceSession(str(folder / "onnx" / file), providers=["CPUExecutionProvider"])
    decoder, ids = open_graph("decoder_model_merged.onnx"), np.array([DECODED])
    states = open_graph("encoder_model.onnx").run(None, {k: v.numpy() for k, v in given.items()})[0]

    def run(tokens, past):
        feeds = {}
        for i in decoder.get_inputs():
            if i.name.startswith("past"):
                feeds[i.name] = past[i.name] if past else np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
            else:
                feeds[i.name] = {
                    "input_ids": tokens, "encoder_hidden_states": states,
                    "encoder_attention_mask": np.ones(states.shape[:2], np.int64),
                    "use_cache_branch": np.array([past is not None]),
                }[i.name]
        names = [o.name for o in decoder.get_outputs()]
        out = dict(zip(names, decoder.run(names, feeds)))
        return out["logits"][0], {k.replace("present", "past_key_values"): v for k, v in out.items() if k != "logits"}

    whole, _ = run(ids, None)
    _, past = run(ids[:, :-1], None)
    last, _ = run(ids[:, -1:], past)
    return whole, last


def export(task, source, out, args):
    call(args.optimum, "-m", "optimum.exporters.onnx", "--model", source, "--task", task, "--dtype", "fp32", out)


def arrange(task, source, exported, folder):
    fresh(folder / "onnx")
    for file in sorted(exported.iterdir()):
        if ".onnx" in file.name and file.name not in ("decoder_model.onnx", "decoder_with_past_model.onnx"):
            shutil.copyfile(file, folder / "onnx" / file.name)
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        place = source if file.startswith("tokenizer") or not (exported / file).exists() else exported
        if (place / file).exists() and not (task not in WITH_TEXT and file.startswith("tokenizer")):
            shutil.copyfile(place / file, folder / file)


def make(name, args):
    build_model, targets, task = MODELS[name]
    folder = fresh(args.out / name)
    with tempfile.TemporaryDirectory() as work:
        source, exported = pathlib.Path(work) / f"tiny-{name}", pathlib.Path(work) / "exported"
        model = build(build_model)
        model.save_pretrained(source)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(UNION / file, source / file)
        config = json.loads((source / "config.json").read_text())
        # Where transformers 4 looks for them.
        config.setdefault("rope_theta", 10000.0)
        config["tie_word_embeddings"] = True
        (source / "config.json").write_text(json.dumps(config, indent=2))
        if name == "whisper":
            write_json(source / "preprocessor_config.json", {
                "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 4, "hop_length": 160, "n_fft": 400,
                "sampling_rate": 16000, "chunk_length": 30, "padding_value": 0.0, "processor_class": "WhisperProcessor",
                "return_attention_mask": False})
        export(task, source, exported, args)
        arrange(task, source, exported, folder)
    given = inputs(name)
    base = logits_of(model, given, DECODED)
    whole, last = onnx_logits(folder, given)
    deviation = {"whole": float(np.abs(whole - base.numpy()).max()), "cached": float(np.abs(last[-1] - base[-1].numpy()).max())}
    if max(deviation.values()) > 1e-4:
        raise SystemExit(f"{name}: logits differ from PyTorch's by {deviation}")
    base_ids, base_lead = greedy(model, given)
    adapted = adapt(model, SEED, 0.2, name=f"tiny-{name}", r=4, lora_alpha=8, target_modules=targets, task_type=None)
    save_adapter(adapted, folder / "golden" / "adapter")
    ids, lead = greedy(adapted, given)
    save_tensors(folder / "golden" / "logits.safetensors", {
        "base": base[-2:].contiguous(), "adapted": logits_of(adapted, given, DECODED)[-2:].contiguous(),
        **({"input_features": given["input_features"].half()} if name == "whisper" else {})})
    write_json(folder / "golden" / "expected.json", {
        "versions": versions("torch", "transformers", "peft", "onnxruntime"),
        "text": TEXT, "inputIds": given["input_ids"][0].tolist() if "input_ids" in given else None, "decoderIds": DECODED,
        "baseIds": base_ids, "adaptedIds": ids, "smallestLead": min(lead, base_lead), "onnxDeviation": deviation,
    })
    print(name, deviation, base_ids, ids, min(lead, base_lead), float((logits_of(adapted, given, DECODED) - base).abs().max()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "graphs")
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    for name in args.names or MODELS:
        make(name, args)


if __name__ == "__main__":
    main()
