"""Adapters that replace norms, for graphs of onnxruntime-genai's builder, and PEFT's logits, loss and gradients with them.

    genai_norms.py [--out tests/golden/genai-norms]

The builder fuses a norm with the sum before it, calls the last one by the number of layers, and adds 1 to the weights of Gemma's. `llama` is over
models/llama-genai; `gemma` and `qwen3` have exports of their own. Numbers are computed in float64 and rounded to float32.
"""
import argparse
import pathlib
import tempfile

import torch

import exporters
from common import (ADAMW, GOLDEN, adapt, adamw, all_double, fresh, gradients, last_logits, loss_of, move_replaced, peft_keys, save_adapter,
                    save_tensors, versions, write_json)

SEED, STEPS = 37, 3
IDS = [[5, 17, 40, 3, 99, 64], [7, 7, 81, 12, 100, 26]]
BATCH = {"inputIds": IDS, "attentionMask": [[1] * 6] * 2, "labels": IDS}


def gemma_config():
    """The builder rounds the root of the hidden size to two digits: 6 is exact."""
    from transformers import GemmaConfig
    return GemmaConfig(vocab_size=128, bos_token_id=0, eos_token_id=1, pad_token_id=2, hidden_size=36, intermediate_size=48, num_hidden_layers=2,
                       num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=128)


def qwen3_config():
    from transformers import Qwen3Config
    return Qwen3Config(vocab_size=128, bos_token_id=0, eos_token_id=1, pad_token_id=2, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                       num_attention_heads=2, num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-6, max_position_embeddings=128)


exporters.BASES.update({"gemma": (gemma_config, {}), "qwen3-small": (qwen3_config, {})})
NORMS = ["input_layernorm", "post_attention_layernorm", "model.norm"]
CASES = {  # name: (base, norms, whether it has an export of its own)
    "llama": ("llama", NORMS, False),
    "gemma": ("gemma", NORMS, True),
    "qwen3": ("qwen3-small", [*NORMS, "q_norm", "k_norm"], True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "genai-norms")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = fresh(args.out)
    for name, (base, norms, exports) in CASES.items():
        if exports:
            with tempfile.TemporaryDirectory() as work:
                source, exported = pathlib.Path(work) / f"tiny-{name}", pathlib.Path(work) / "exported"
                exporters.save_base(base, source)
                exporters.genai()(source, exported, args)
                exporters.shape_like_hub(source, exported, out / name)
            for unread in ("tokenizer.json", "tokenizer_config.json", "genai_config.json"):  # no text is read
                (out / name / unread).unlink(missing_ok=True)
        folder = fresh(out / name / "golden")
        adapted = adapt(exporters.build(base), SEED, 0.3, name=f"tiny-{name}", r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"],
                        modules_to_save=norms)
        move_replaced(adapted, SEED)
        save_adapter(adapted, folder / "adapter-init")
        results = {"base": last_logits(exporters.build(base), IDS), "adapted": last_logits(adapted, IDS)}
        assert (results["adapted"] - results["base"]).abs().max() > 0.05, name
        save_tensors(folder / "logits.safetensors", results)
        with all_double():
            wide = adapted.double()
            loss = loss_of(wide, BATCH).item()
            grads = {key.replace(".modules_to_save", ""): value for key, value in peft_keys(gradients(wide, BATCH)).items()}
            save_tensors(folder / "gradients.safetensors", grads)
            losses, lengths = adamw(wide, [BATCH], STEPS)
        write_json(folder / "golden.json", {
            "versions": versions("torch", "transformers", "peft", "onnxruntime-genai"), "inputIds": IDS, "loss": loss, "adamw": ADAMW,
            "adamwLosses": losses, "gradNorms": lengths})
        print(name, loss, losses)


if __name__ == "__main__":
    main()
