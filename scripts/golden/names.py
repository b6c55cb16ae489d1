"""Adapters and bases that transformers 5 saved, many under other names than its modules have, and what PEFT merges.

    names.py [--out tests/golden/names] [NAME …]

Each case: base.json, the shapes of a base that save_pretrained wrote, whose values are a formula of name and place (`values`, again in
tests/merge/plan/names.test.ts); adapter/, made by PEFT on that base, loaded by from_pretrained; merged.safetensors, what differs from
the base in what save_pretrained writes of PEFT's merged model.
"""
import argparse
import copy
import json
import pathlib
import sys
import tempfile
import zlib

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import packed
from common import GOLDEN, fill_b, fresh, save_tensors, write_json

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "generate"))
import transformers_classes

SEED = 11
# Case → class, target_modules (of one layer, to keep files small), other settings of the adapter
CASES = {
    "vit": ("ViTForImageClassification", r".*layers\.1\..*(q_proj|fc1)", {"modules_to_save": ["classifier"]}),
    "deit": ("DeiTForImageClassification", r".*layers\.1\..*(v_proj|fc2)", {"use_dora": True}),
    "dinov2": ("Dinov2ForImageClassification", r".*layers?\.1\..*(q_proj|fc1|query)", {}),
    "swin": ("SwinForImageClassification", r".*\.1\..*(q_proj|query|fc1)", {}),
    "segformer": ("SegformerForImageClassification", r".*\.1\..*(q_proj|query|fc1)", {}),
    "llava": ("LlavaForConditionalGeneration", r".*language_model\.layers\.1\..*(q_proj|up_proj)|.*vision_tower.*layers\.0.*q_proj|lm_head", {}),
    "gemma3": ("Gemma3ForConditionalGeneration", r".*language_model\.layers\.1\..*(q_proj|up_proj)", {}),
    "paligemma": ("PaliGemmaForConditionalGeneration", r".*language_model\.layers\.1\..*(q_proj|up_proj)|.*multi_modal_projector.linear", {}),
    "qwen2-vl": ("Qwen2VLForConditionalGeneration", r".*language_model\.layers\.1\..*(q_proj|up_proj)|.*visual.blocks.0.attn.proj", {}),
    "qwen2.5-vl": ("Qwen2_5_VLForConditionalGeneration", r".*language_model\.layers\.1\..*(q_proj|up_proj)", {}),
    "gpt-neox": ("GPTNeoXForCausalLM", r".*layers\.1\..*dense|.*(lm_head|embed_out)", {}),
    "phimoe": ("PhimoeForCausalLM", r".*layers\.1\..*q_proj", {"target_parameters": ["1.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj", "1.mlp.router.weight"]}),
    "granitemoe": ("GraniteMoeForCausalLM", r".*layers\.1\..*q_proj", {"target_parameters": [
        f"1.block_sparse_moe.{name}" for name in ("experts.gate_up_proj", "experts.down_proj", "router.weight")]}),
    "mixtral": ("MixtralForCausalLM", r".*layers\.1\..*q_proj", {"target_parameters": ["1.mlp.experts.gate_up_proj"]}),
    "nomic-bert": ("NomicBertForMaskedLM", r".*layers\.1\..*(q_proj|k_proj|v_proj)", {"use_dora": True}),
    "minimax-m3-vl": ("MiniMaxM3SparseForConditionalGeneration", r".*language_model.*layers\.1\..*shared_experts\.(gate_up_proj|down_proj)", {"use_dora": True}),
    "vit-block": ("ViTForImageClassification", r".*layers\.0\..*q_proj", {"modules_to_save": ["layers.1.mlp"]}),
    "mixtral-block": ("MixtralForCausalLM", r".*layers\.0\..*q_proj", {"modules_to_save": ["layers.1.mlp"]}),
    "nomic-bert-block": ("NomicBertForMaskedLM", r".*layers\.1\..*q_proj", {"modules_to_save": ["layers.1.self_attn.k_proj"]}),
    "qwen3": ("Qwen3ForCausalLM", r".*layers\.1\..*(q_proj|up_proj)", {"use_rslora": True}),
    "phi3": ("Phi3ForCausalLM", r".*layers\.1\..*(qkv_proj|gate_up_proj)", {"use_dora": True}),
    "falcon": ("FalconForCausalLM", r".*h\.1\..*(query_key_value|dense_h_to_4h)", {}),
    "bloom": ("BloomForCausalLM", r".*h\.1\..*(query_key_value|dense_4h_to_h)", {}),
    "gemma3-text": ("Gemma3ForCausalLM", r".*layers\.1\..*(q_proj|down_proj)", {}),
    "mamba": ("MambaForCausalLM", r".*layers\.1\..*(in_proj|x_proj)", {}),
    "whisper": ("WhisperForConditionalGeneration", r".*decoder\.layers\.1\..*(q_proj|fc1)", {}),
    "bart": ("BartForConditionalGeneration", r".*encoder\.layers\.1\..*(v_proj|fc2)", {"use_dora": True}),
    "dots1": ("Dots1ForCausalLM", r".*layers\.1\..*q_proj", {"target_parameters": ["1.mlp.experts.gate_up_proj"]}),
    "granite4-vision": ("Granite4VisionForConditionalGeneration", r".*language_model\.layers\.1\..*(q_proj|down_proj)", {}),
    "granite4": ("GraniteMoeHybridForCausalLM", r".*layers\.1\..*(shared_mlp\.(input|output)_linear|q_proj)", {}),
    "clip": ("CLIPModel", r".*layers\.1\..*(q_proj|fc1)", {}),
    "clip-vision": ("CLIPVisionModel", r".*layers\.1\..*(q_proj|fc1)", {}),
}
# Architecture → class, the targets of one layer, a part of their names for which patterns say otherwise
GRID = {
    "bart": ("BartForConditionalGeneration", r".*decoder\.layers\.1\.(self_attn\.q_proj|fc1)", "fc1"),
    "bloom": ("BloomForCausalLM", r".*h\.1\..*(query_key_value|dense_4h_to_h)", "dense_4h_to_h"),
    "deberta": ("DebertaV2ForMaskedLM", r".*layer\.1\..*(query_proj|intermediate\.dense)", "query_proj"),
    "distilbert": ("DistilBertForMaskedLM", r".*layer\.1\..*(q_lin|lin2)", "lin2"),
    "falcon": ("FalconForCausalLM", r".*h\.1\..*(query_key_value|dense_h_to_4h)", "query_key_value"),
    "gemma3-text": ("Gemma3ForCausalLM", r".*layers\.1\..*(q_proj|down_proj)", "down_proj"),
    "gpt-neox": ("GPTNeoXForCausalLM", r".*layers\.1\..*(query_key_value|dense_4h_to_h)", "query_key_value"),
    "llava": ("LlavaForConditionalGeneration", r".*language_model\.layers\.1\..*(q_proj|up_proj)|.*vision_tower.*layers\.0.*q_proj", "q_proj"),
    "mamba": ("MambaForCausalLM", r".*layers\.1\..*(in_proj|x_proj)", "x_proj"),
    "modernbert": ("ModernBertForMaskedLM", r".*layers\.1\..*(Wqkv|Wi)", "Wi"),
    "phi3": ("Phi3ForCausalLM", r".*layers\.1\..*(qkv_proj|down_proj)", "qkv_proj"),
    "qwen2.5-vl": ("Qwen2_5_VLForConditionalGeneration", r".*language_model\.layers\.1\..*(q_proj|up_proj)", "q_proj"),
    "qwen3": ("Qwen3ForCausalLM", r".*layers\.1\..*(q_proj|up_proj)", "up_proj"),
    "roberta": ("RobertaForMaskedLM", r".*layer\.1\..*(query|intermediate\.dense)", "query"),
    "whisper": ("WhisperForConditionalGeneration", r".*decoder\.layers\.1\.(self_attn\.q_proj|fc1)", "fc1"),
}
OPTIONS = {
    "rslora": lambda _: {"use_rslora": True},
    "dora": lambda _: {"use_dora": True},
    "bias": lambda _: {"bias": "all"},
    "pattern": lambda part: {"rank_pattern": {part: 3}, "alpha_pattern": {rf".*1\..*{part}": 7}},
}
WITHOUT_BIASES = ("gemma3-text", "modernbert", "phi3", "qwen3")
CASES |= {
    f"{name}+{option}": (cls, targets, settings(part))
    for name, (cls, targets, part) in GRID.items()
    for option, settings in OPTIONS.items()
    if option != "bias" or name not in WITHOUT_BIASES
}
PARTS = {"clip-vision": ("CLIPModel", "vision_config")}  # adapters of a part of the base: its class, and where the part's config is
SMALLER = {
    "granite4": {"num_hidden_layers": 2, "layer_types": ["attention"] * 2, "num_local_experts": 0, "hidden_size": 16, "mamba_n_heads": 2, "mamba_d_head": 16,
                 "shared_intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "out_features": None, "stage_names": ["stem", "stage1", "stage2"]},
    "segformer": {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2],
                  "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16},
}


def values(name, shape):
    """Of a base's tensor: a product of whole numbers in 32 bits, spread over −0.25 … 0.25."""
    count = int(numpy.prod(shape))
    bits = (numpy.arange(1, count + 1, dtype=numpy.uint64) * 2654435761 + zlib.crc32(name.encode())) % 2**32
    bits = (bits ^ (bits >> numpy.uint64(15))) * 2246822519 % 2**32
    return torch.from_numpy(((bits / 2**32 - 0.5) / 2).astype(numpy.float32).reshape(shape))


def read(folder):
    result = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            result |= {name: stored.get_tensor(name) for name in stored.keys()}
    return result


def save(adapted, folder, **more):
    """As PEFT does, but for sets, which it writes in an order of its own each time."""
    for config in adapted.peft_config.values():
        for key, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, key, sorted(value))
    adapted.save_pretrained(folder, **more)
    (pathlib.Path(folder) / "README.md").unlink(missing_ok=True)


def small(cls, changes):
    if changes:
        torch.manual_seed(SEED)
        return cls(cls.config_class(num_labels=3, **changes))
    transformers_classes.LAYERS = 2
    sizes = {96: 40, 32: 16, 48: 24, 4: 2}
    transformers_classes.SIZES = [(pattern, {"num_experts": 2}.get(pattern, sizes.get(size, size))) for pattern, size in transformers_classes.SIZES]
    torch.manual_seed(SEED)
    return transformers_classes.tiny(cls, len(transformers_classes.SIZES), False)


def make(name, out):
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model
    transformers.utils.logging.disable_progress_bar()
    cls, targets, more = CASES[name]
    cls = getattr(transformers, cls)
    with tempfile.TemporaryDirectory() as folder:
        base_class, part = PARTS.get(name, (None, None))
        model = small(cls if part is None else getattr(transformers, base_class), SMALLER.get(name))
        model.save_pretrained(folder)

        def load():
            return cls.from_pretrained(folder, config=copy.deepcopy(model.config if part is None else getattr(model.config, part)))

        base = {key: values(key, value.shape) if value.is_floating_point() else value for key, value in read(folder).items()}
        for file in pathlib.Path(folder).glob("*.safetensors"):
            file.unlink()
        save_file(base, f"{folder}/model.safetensors", metadata={"format": "pt"})
        torch.manual_seed(SEED)
        adapted = get_peft_model(load(), LoraConfig(r=2, lora_alpha=3, target_modules=targets, **more))
        generator = torch.Generator().manual_seed(SEED)
        fill_b(adapted, SEED, 0.3)
        with torch.no_grad():
            for key, p in adapted.named_parameters():
                if "modules_to_save" in key or (p.requires_grad and "lora_" not in key):
                    p.add_(0.2 * torch.randn(p.shape, generator=generator))
        fresh(out)
        save(adapted, out / "adapter")
        merged = PeftModel.from_pretrained(load(), out / "adapter").merge_and_unload()
        merged.save_pretrained(f"{folder}/merged")
        after = read(f"{folder}/merged")
        config = json.loads(pathlib.Path(f"{folder}/config.json").read_text(encoding="utf8"))
    assert part is not None or list(after) == list(base), set(after) ^ set(base)
    changed = {key: value for key, value in after.items() if not torch.equal(value, base[key])}
    kept = {key: value for key, value in config.items() if key in ("architectures", "model_type", "tie_word_embeddings", "text_config", "vision_config")}
    for inner in ("text_config", "vision_config"):
        if inner in kept:
            kept[inner] = {key: value for key, value in kept[inner].items() if key in ("model_type", "tie_word_embeddings")}
    write_json(out / "base.json", {"config": kept, "tensors": {key: list(value.shape) for key, value in base.items() if value.is_floating_point()}})
    save_tensors(out / "merged.safetensors", changed)
    print(f"{name}: {len(changed)} of {len(base)} tensors, {sum(f.stat().st_size for f in out.rglob('*') if f.is_file())} bytes")


def make_all(make_one, cases, about, out):
    """The command line of scripts like this one."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=out)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    for name in args.names or cases:
        make_one(name, args.out / name)
    packed.pack(args.out, out.name)


if __name__ == "__main__":
    make_all(make, CASES, __doc__, GOLDEN / "names")
