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
DECODED = [54, 260, 1356, 270]  # after the start token


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


def t5gemma():
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration, T5GemmaModuleConfig
    part = dict(**SPECIAL, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                query_pre_attn_scalar=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"], dropout_rate=0.0,
                max_position_embeddings=64, attn_logit_softcapping=5.0, final_logit_softcapping=8.0)
    return T5GemmaForConditionalGeneration(T5GemmaConfig(
        encoder=T5GemmaModuleConfig(**part), decoder=T5GemmaModuleConfig(**part), dropout_rate=0.0, attention_dropout=0.0, decoder_start_token_id=0,
        vocab_size=2048, attn_implementation="eager", **{key: value for key, value in SPECIAL.items() if key != "vocab_size"}))


WITH_TEXT = ["text2text-generation-with-past", "dynamo"]
T5 = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
GEMMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BART = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
MODELS = {  # name: (model, targets, task of optimum)
    "t5": (t5, T5, "text2text-generation-with-past"),
    "bart": (bart, BART, "text2text-generation-with-past"),
    "t5gemma": (t5gemma, GEMMA, "dynamo"),
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


def decoded(model):
    return [model.config.decoder_start_token_id, *DECODED]


def greedy(model, given):
    """New tokens, and the smallest lead of a chosen token over the second."""
    ids, lead = [model.config.decoder_start_token_id], float("inf")
    for _ in range(NEW_TOKENS):
        top = logits_of(model, given, ids)[-1].topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return ids[1:], lead


def onnx_logits(folder, given, ids):
    """Of the exported graphs: one run over all tokens, then the last one with a cache."""
    open_graph = lambda file: ort.InferenceSession(str(folder / "onnx" / file), providers=["CPUExecutionProvider"])
    decoder, ids = open_graph("decoder_model_merged.onnx"), np.array([ids])
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


def dynamo(source, out, args):
    """An encoder, and a decoder as optimum writes it, by PyTorch's newer exporter: optimum-onnx 0.1 does not know T5Gemma."""
    import onnx
    from transformers import DynamicCache, EncoderDecoderCache, T5GemmaForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput
    model = T5GemmaForConditionalGeneration.from_pretrained(source, attn_implementation="eager").eval()
    whole, encoder = model.forward, model.get_encoder()
    layers, heads, size = 2, 2, 8
    caches = [f"{i}.{side}.{part}" for i in range(layers) for side in ("decoder", "encoder") for part in ("key", "value")]
    out.mkdir()

    def write(name, forward, inputs, outputs, axes):
        model.forward = forward
        shapes = tuple({axis: torch.export.Dim(dim) for axis, dim in axes[key].items()} for key in inputs)
        torch.onnx.export(model, tuple(inputs.values()), out / f"{name}.onnx", dynamo=True, external_data=False, input_names=list(inputs),
                          output_names=outputs, dynamic_shapes=shapes, verbose=False)
        exported = onnx.load(out / f"{name}.onnx")
        for node in exported.graph.node:  # of what the exporter tells of nodes, only the modules that they are in
            kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
        for value in exported.graph.output:
            del value.metadata_props[:]
        onnx.save(exported, out / f"{name}.onnx")

    def decode(input_ids, mask, states, cache):
        result = whole(decoder_input_ids=input_ids, encoder_outputs=BaseModelOutput(states), attention_mask=mask, cache=cache, use_cache=True)
        pairs = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers)
        return result.logits, [(own.keys, own.values, cross.keys, cross.values) for own, cross in pairs]

    def first(input_ids, encoder_hidden_states, encoder_attention_mask):
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits, states = decode(input_ids, encoder_attention_mask, encoder_hidden_states, cache)
        return logits, *(state for layer in states for state in layer)

    def later(input_ids, encoder_attention_mask, p0, p1, p2, p3, p4, p5, p6, p7):
        past = (p0, p1, p2, p3, p4, p5, p6, p7)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for i in range(layers):
            cache.self_attention_cache.update(*past[4 * i:4 * i + 2], i)
            cache.cross_attention_cache.update(*past[4 * i + 2:4 * i + 4], i)
            cache.is_updated[i] = True
        states = torch.zeros(*encoder_attention_mask.shape, 16)
        logits, after = decode(input_ids, encoder_attention_mask, states, cache)
        return logits, *(state for layer in after for state in layer[:2])

    ids, mask = torch.randint(3, 2048, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    tokens, source_tokens = {0: "batch_size", 1: "decoder_sequence_length"}, {0: "batch_size", 1: "encoder_sequence_length"}
    axes = {"input_ids": source_tokens, "attention_mask": source_tokens}
    write("encoder_model", lambda input_ids, attention_mask: encoder(input_ids=input_ids, attention_mask=attention_mask)[0],
          {"input_ids": ids, "attention_mask": mask}, ["last_hidden_state"], axes)
    axes = {"input_ids": tokens, "encoder_hidden_states": source_tokens, "encoder_attention_mask": source_tokens}
    given = {"input_ids": ids[:, :5], "encoder_hidden_states": torch.randn(2, 7, 16), "encoder_attention_mask": mask}
    write("decoder_model", first, given, ["logits", *(f"present.{c}" for c in caches)], axes)
    past = {f"past_key_values.{c}": torch.randn(2, heads, 7 if "encoder" in c else 4, size) for c in caches}
    axes = {"input_ids": tokens, "encoder_attention_mask": source_tokens,
            **{name: {0: "batch_size", 2: "encoder_sequence_length" if "encoder" in name else "past_sequence_length"} for name in past}}
    write("decoder_with_past_model", later, {"input_ids": ids[:, :3], "encoder_attention_mask": mask, **past},
          ["logits", *(f"present.{c}" for c in caches if "decoder" in c)], axes)
    parts = [out / f"{name}.onnx" for name in ("decoder_model", "decoder_with_past_model")]
    call(args.optimum, "-c", "import sys; from optimum.onnx import merge_decoders; *parts, path = sys.argv[1:]; "
         "merge_decoders(*parts, save_path=path, strict=False)", *parts, out / "decoder_model_merged.onnx")


def export(task, source, out, args):
    if task == "dynamo":
        return dynamo(source, out, args)
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
    ids = decoded(model)
    base = logits_of(model, given, ids)
    whole, last = onnx_logits(folder, given, ids)
    deviation = {"whole": float(np.abs(whole - base.numpy()).max()), "cached": float(np.abs(last[-1] - base[-1].numpy()).max())}
    if max(deviation.values()) > 1e-4:
        raise SystemExit(f"{name}: logits differ from PyTorch's by {deviation}")
    base_ids, base_lead = greedy(model, given)
    adapted = adapt(model, SEED, 0.2, name=f"tiny-{name}", r=4, lora_alpha=8, target_modules=targets, task_type=None)
    save_adapter(adapted, folder / "golden" / "adapter")
    adapted_ids, lead = greedy(adapted, given)
    save_tensors(folder / "golden" / "logits.safetensors", {
        "base": base[-2:].contiguous(), "adapted": logits_of(adapted, given, ids)[-2:].contiguous(),
        **({"input_features": given["input_features"].half()} if name == "whisper" else {})})
    write_json(folder / "golden" / "expected.json", {
        "versions": versions("torch", "transformers", "peft", "onnxruntime"),
        "text": TEXT, "inputIds": given["input_ids"][0].tolist() if "input_ids" in given else None, "decoderIds": ids,
        "baseIds": base_ids, "adaptedIds": adapted_ids, "smallestLead": min(lead, base_lead), "onnxDeviation": deviation,
    })
    print(name, deviation, base_ids, adapted_ids, min(lead, base_lead), float((logits_of(adapted, given, ids) - base).abs().max()))


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
