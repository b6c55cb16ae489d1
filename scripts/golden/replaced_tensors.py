"""Adapters that replace whole tensors, on graphs where these are easy to miss, and PEFT's logits with them.

    replaced_tensors.py [--out tests/golden/replaced]

pruned-head/ is onnxruntime-genai's export of a small Llama with `prune_lm_head`, whose head computes the last token alone; adapter-head
replaces its head. adapter-norms replaces the norms of the Llama of models/merged-if, whose layers are in both branches of an `If`.
logits.safetensors has the last token's logits: PEFT's in float64, rounded to float32.
"""
import argparse
import pathlib
import tempfile

import torch

import exporters
from common import GOLDEN, adapt, fresh, last_logits, move_replaced, save_adapter, save_tensors, versions, write_json

SEED, IDS = 31, [[5, 17, 40, 3, 99, 64], [7, 7, 81, 12, 100, 26]]
exporters.BASES["pruned"] = (lambda: exporters.llama_config(num_hidden_layers=1, hidden_size=32, intermediate_size=64, vocab_size=128), {})
CASES = {  # adapter: (base, LoraConfig)
    "head": ("pruned", {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}),
    "norms": ("llama-1", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "post_attention_layernorm", "model.norm"]}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "replaced")
    args = parser.parse_args()
    out = fresh(args.out)
    with tempfile.TemporaryDirectory() as work:
        source, exported = pathlib.Path(work) / "tiny-pruned", pathlib.Path(work) / "exported"
        exporters.save_base("pruned", source)
        exporters.genai("prune_lm_head=true")(source, exported, args)
        exporters.shape_like_hub(source, exported, out / "pruned-head")
    for name in ("tokenizer.json", "tokenizer_config.json"):  # no text is read
        (out / "pruned-head" / name).unlink(missing_ok=True)
    results = {}
    for case, (base, config) in CASES.items():
        adapted = adapt(exporters.build(base), SEED, 0.3, name=f"tiny-{base}", r=3, lora_alpha=6, **config)
        move_replaced(adapted, SEED)
        save_adapter(adapted, out / f"adapter-{case}")
        results[f"base.{case}"] = last_logits(exporters.build(base), IDS)
        results[case] = last_logits(adapted, IDS)
        assert (results[case] - results[f"base.{case}"]).abs().max() > 0.05, case
    save_tensors(out / "logits.safetensors", results)
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "peft", "onnxruntime-genai"), "inputIds": IDS})


if __name__ == "__main__":
    main()
