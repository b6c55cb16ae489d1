"""A tiny random LLaVA as three graphs, as in folders for transformers.js, with PEFT's logits beside it.

    vision_language.py [--out tests/golden/graphs] [--optimum PYTHON]

--optimum: the Python of a virtual environment with requirements-optimum.txt. optimum has no export of such models: this script calls
PyTorch's exporter on the picture's part, the embedding and the decoder, as published folders divide them.
"""
import argparse
import pathlib
import shutil
import sys
import tempfile

if "--export" not in sys.argv:
    import numpy as np
    import onnxruntime as ort

    from common import GOLDEN, UNION, adapt, fresh, save_adapter, save_tensors, versions, write_json
    from exporters import call
    from graphs import SPECIAL, build
    from safetensors.torch import load_file, save_file
import torch

SEED, NEW_TOKENS, IMAGE = 7, 8, 2047
NAME, TARGETS = "llava", r".*\.(q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj|linear_1|linear_2|embed_tokens)"
TEXT = ["And the people", " said unto him"]
GRAPHS = ["vision_encoder", "embed_tokens", "decoder_model_merged"]
LAYERS, KV_HEADS, HEAD = 1, 1, 8


def llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16,
                              patch_size=8, projection_dim=16)
    text = LlamaConfig(**SPECIAL, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2,
                       num_key_value_heads=KV_HEADS, head_dim=HEAD, max_position_embeddings=64, tie_word_embeddings=False)
    return LlavaForConditionalGeneration(LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=4, vision_feature_layer=-2, tie_word_embeddings=False,
        attn_implementation="eager"))


# ---------------------------------------------------------------- what the second environment runs

def export(source, out):
    from optimum.exporters.onnx.model_patcher import sdpa_mask_without_vmap
    from optimum.onnx import merge_decoders
    from transformers import DynamicCache, LlamaForCausalLM, LlavaForConditionalGeneration
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", sdpa_mask_without_vmap)  # the exporter cannot trace transformers' own
    model = LlavaForConditionalGeneration.from_pretrained(source).eval()

    class Pictures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision_tower, self.multi_modal_projector = model.model.vision_tower, model.model.multi_modal_projector

        def forward(self, pixel_values):
            states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
            return self.multi_modal_projector(states[:, 1:])

    class Decoder(LlamaForCausalLM):
        def forward(self, inputs_embeds, attention_mask, position_ids, *past):
            cache = DynamicCache.from_legacy_cache(tuple(zip(past[::2], past[1::2]))) if past else DynamicCache()
            result = super().forward(inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
                                     past_key_values=cache, use_cache=True)
            return result.logits, *(state for layer in result.past_key_values.to_legacy_cache() for state in layer)

    decoder = Decoder(model.config.text_config).eval()
    decoder.model, decoder.lm_head = model.model.language_model, model.lm_head

    def write(name, module, inputs, outputs, axes):
        torch.onnx.export(module, tuple(inputs.values()), out / f"{name}.onnx", input_names=list(inputs), output_names=outputs,
                          dynamic_axes=axes, opset_version=18, do_constant_folding=True, dynamo=False)

    write("vision_encoder", Pictures(), {"pixel_values": torch.randn(2, 3, 16, 16)}, ["image_features"],
          {"pixel_values": {0: "batch_size"}, "image_features": {0: "batch_size"}})
    tokens = {0: "batch_size", 1: "sequence_length"}
    write("embed_tokens", model.model.language_model.embed_tokens, {"input_ids": torch.tensor([[1, 2, 3]])}, ["inputs_embeds"],
          {"input_ids": tokens, "inputs_embeds": tokens})
    caches = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
    past = {f"past_key_values.{c}": torch.randn(2, KV_HEADS, 4, HEAD) for c in caches}
    total = {0: "batch_size", 1: "total_sequence_length"}
    outputs, axes = ["logits", *(f"present.{c}" for c in caches)], {
        "inputs_embeds": tokens, "position_ids": tokens, "logits": tokens,
        **{f"present.{c}": {0: "batch_size", 2: "total_sequence_length"} for c in caches},
    }
    first = {"inputs_embeds": torch.randn(2, 3, 16), "attention_mask": torch.ones(2, 3, dtype=torch.int64),
             "position_ids": torch.arange(3).repeat(2, 1)}
    write("first", decoder, first, outputs, {**axes, "attention_mask": tokens})
    write("later", decoder, {**first, "attention_mask": torch.ones(2, 7, dtype=torch.int64), "position_ids": first["position_ids"] + 4, **past},
          outputs, {**axes, "attention_mask": total, **{name: {0: "batch_size", 2: "past_sequence_length"} for name in past}})
    # As optimum merges decoders: an If with a branch for the first tokens and one with a cache.
    parts = [out / f"{name}.onnx" for name in ("first", "later")]
    merge_decoders(*map(str, parts), save_path=str(out / "decoder_model_merged.onnx"), strict=False)
    for part in parts:
        part.unlink()


# ---------------------------------------------------------------- numbers

@torch.no_grad()
def logits_of(model, ids, pixels):
    return model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), pixel_values=pixels,
                 use_cache=False).logits[0]


def greedy(model, ids, pixels):
    ids, start, lead = list(ids), len(ids), float("inf")
    for _ in range(NEW_TOKENS):
        top = logits_of(model, ids, pixels)[-1].topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return ids[start:], lead


def onnx_logits(folder, ids, pixels):
    run = lambda file, feeds: ort.InferenceSession(str(folder / "onnx" / f"{file}.onnx"), providers=["CPUExecutionProvider"]).run(None, feeds)
    features = run("vision_encoder", {"pixel_values": pixels.numpy()})[0]
    embeds = run("embed_tokens", {"input_ids": np.array([ids])})[0]
    embeds[0, [i for i, token in enumerate(ids) if token == IMAGE]] = features.reshape(-1, embeds.shape[-1])
    past = {f"past_key_values.{i}.{part}": np.zeros((1, KV_HEADS, 0, HEAD), np.float32) for i in range(LAYERS) for part in ("key", "value")}
    return run("decoder_model_merged", {
        "inputs_embeds": embeds, "attention_mask": np.ones((1, len(ids)), np.int64), "position_ids": np.arange(len(ids))[None],
        "use_cache_branch": np.array([False]), **past})[0][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("--export", type=pathlib.Path, help="only export this checkpoint, into --out")
    args = parser.parse_args()
    if args.export:
        return export(args.export, args.out)
    from tokenizers import Tokenizer
    folder = fresh((args.out or GOLDEN / "graphs") / NAME)
    model = build(llava)
    with tempfile.TemporaryDirectory() as work:
        source = pathlib.Path(work) / f"tiny-{NAME}"
        model.save_pretrained(source)
        weights = load_file(source / "model.safetensors")  # transformers 4, which exports it, has one more module around the tower
        save_file({k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in weights.items()},
                  source / "model.safetensors", {"format": "pt"})
        fresh(folder / "onnx")
        call(args.optimum, pathlib.Path(__file__).resolve(), "--export", source, "--out", folder / "onnx")
        for file in ("config.json", "generation_config.json"):
            shutil.copyfile(source / file, folder / file)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(UNION / file, folder / file)
    tokenizer = Tokenizer.from_file(str(UNION / "tokenizer.json"))
    first, second = (tokenizer.encode(text, add_special_tokens=not i).ids for i, text in enumerate(TEXT))
    ids = first + [IMAGE] * 4 + second
    pixels = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(SEED)).half().float()
    base = logits_of(model, ids, pixels)
    deviation = float(np.abs(onnx_logits(folder, ids, pixels) - base.numpy()).max())
    if deviation > 1e-4:
        raise SystemExit(f"logits differ from PyTorch's by {deviation}")
    base_ids, base_lead = greedy(model, ids, pixels)
    adapted = adapt(model, SEED, 0.2, name=f"tiny-{NAME}", r=4, lora_alpha=8, target_modules=TARGETS, task_type=None)
    for name, parameter in adapted.named_parameters():  # of an embedding, PEFT starts with A = 0
        if "lora_embedding" in name:
            with torch.no_grad():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(SEED)))
    save_adapter(adapted, folder / "golden" / "adapter", save_embedding_layers=False)
    adapted_ids, lead = greedy(adapted, ids, pixels)
    save_tensors(folder / "golden" / "logits.safetensors", {
        "base": base[-2:].contiguous(), "adapted": logits_of(adapted, ids, pixels)[-2:].contiguous(), "pixel_values": pixels.half()})
    write_json(folder / "golden" / "expected.json", {
        "versions": versions("torch", "transformers", "peft", "onnxruntime"), "imageToken": IMAGE, "inputIds": ids,
        "baseIds": base_ids, "adaptedIds": adapted_ids, "smallestLead": min(lead, base_lead), "onnxDeviation": deviation,
    })
    print(deviation, base_ids, adapted_ids, min(lead, base_lead), float((logits_of(adapted, ids, pixels) - base).abs().max()))


if __name__ == "__main__":
    main()
