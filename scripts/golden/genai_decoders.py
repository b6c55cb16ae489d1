"""Decoders of onnxruntime-genai whose caches or modules are of another kind than Llama's, with PyTorch's logits, alone and with an adapter.

    genai_decoders.py [--out tests/golden/genai-decoders] [NAME …]

`lfm2` keeps the last inputs of its convolutions, and its modules have Llama's names in the graph. `gemma2` has caches of sliding windows. `qwen3_5` has
a layer of linear attention. `granite` is a dense Granite 4, whose modules have Llama's names in the graph: gate and up are one module.
`loss` is that of IDS with the adapter, `gradient/…` that of its factors.
"""
import argparse
import pathlib
import tempfile

import torch

import exporters
import packed
from common import GOLDEN, adapt, fresh, last_logits, save_adapter, save_tensors, trainable

SEED = 37
IDS = [[5, 17, 40, 3, 99, 64], [7, 7, 81, 12, 100, 26]]
SPECIAL = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "num_hidden_layers": 2, "intermediate_size": 48,
           "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}


def lfm2_config():
    from transformers import Lfm2Config
    return Lfm2Config(**SPECIAL, hidden_size=32, layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False,
                      tie_word_embeddings=True)


def gemma2_config():
    """The builder rounds the root of the hidden size to two digits: 6 is exact."""
    from transformers import Gemma2Config
    return Gemma2Config(**SPECIAL, hidden_size=36, head_dim=16, sliding_window=64, query_pre_attn_scalar=16)


def granite_config():
    from transformers import GraniteMoeHybridConfig
    return GraniteMoeHybridConfig(
        **SPECIAL, hidden_size=32, shared_intermediate_size=48, num_local_experts=0, mamba_n_heads=4, layer_types=["attention"] * 2,
        position_embedding_type="rope",
        embedding_multiplier=2.0, attention_multiplier=0.25, residual_multiplier=0.5, logits_scaling=4.0, tie_word_embeddings=True)


def qwen3_5_config():
    from transformers import Qwen3_5TextConfig
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return Qwen3_5TextConfig(
        **SPECIAL, hidden_size=32, head_dim=16, layer_types=["linear_attention", "full_attention"], linear_conv_kernel_dim=4, rope_parameters=rope,
        linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2, tie_word_embeddings=False)


def save_qwen3_5(folder):
    """The builder takes the whole model, of texts and pictures, and writes the graph of its texts."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
    vision = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=32, num_position_embeddings=16)
    text = exporters.build("qwen3_5")
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text.config.to_dict(), vision_config=vision, tie_word_embeddings=False))
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    whole.save_pretrained(folder)


exporters.BASES.update({"lfm2": (lfm2_config, {}), "gemma2": (gemma2_config, {}), "qwen3_5": (qwen3_5_config, {}), "granite": (granite_config, {})})
TARGETS = {"lfm2": ["q_proj", "w1", "w2", "in_proj"], "gemma2": ["q_proj", "down_proj"],
           "granite": ["q_proj", "input_linear", "output_linear"],
           "qwen3_5": ["in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "down_proj"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "genai-decoders")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out
    for name in args.names or TARGETS:
        targets = TARGETS[name]
        with tempfile.TemporaryDirectory() as work:
            source, exported = pathlib.Path(work) / f"tiny-{name}", pathlib.Path(work) / "exported"
            exporters.save_base(name, source)
            if name == "qwen3_5":
                save_qwen3_5(source)
            exporters.genai()(source, exported, args)
            exporters.shape_like_hub(source, exported, out / name)
        for unread in ("tokenizer.json", "tokenizer_config.json", "genai_config.json", "generation_config.json"):  # no text is read
            (out / name / unread).unlink(missing_ok=True)
        adapted = adapt(exporters.build(name), SEED, 0.3, name=f"tiny-{name}", r=2, lora_alpha=4, target_modules=targets)
        save_adapter(adapted, fresh(out / name / "golden") / "adapter")
        ids = torch.tensor(IDS)
        loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        grads = {f"gradient/{key}": parameter.grad for key, parameter in trainable(adapted).items()}
        save_tensors(out / name / "golden/logits.safetensors", {
            "base": last_logits(exporters.build(name), IDS), "adapted": last_logits(adapted, IDS), "loss": loss.reshape(1), **grads})
    packed.pack(out, "genai-decoders")


if __name__ == "__main__":
    main()
