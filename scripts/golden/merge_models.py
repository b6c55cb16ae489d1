"""Small models merged by PEFT's merge_and_unload, in float32 and bfloat16: Llama, BERT, GPT-2 (Conv1D) and T5.

    merge_models.py [--out tests/golden/merge]

Each folder has base/, adapter/ and merged.safetensors (PEFT's float32 result) and f64.safetensors: for the bfloat16 copy of
the base, W + s·B·A in float64, rounded once, by tensor.
"""
import argparse
import pathlib

import torch
from safetensors.torch import load_file, save_file

from common import GOLDEN, fill_b, fresh, save_adapter, union, versions, write_json

SEED = 5


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3,
                                        num_key_value_heads=1, tie_word_embeddings=False)), ["q_proj", "k_proj", "down_proj", "lm_head"]


def bert():
    from transformers import BertConfig, BertForMaskedLM
    return BertForMaskedLM(BertConfig(vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3,
                                      max_position_embeddings=16)), ["query", "value", "attention.output.dense"]


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=24, n_layer=1, n_head=3, n_positions=16)), ["c_attn", "c_proj"]


def t5():
    from transformers import T5Config, T5ForConditionalGeneration
    return T5ForConditionalGeneration(T5Config(vocab_size=48, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=3)), ["q", "v", "wo"]


def make(build, out):
    from peft import LoraConfig, PeftModel, get_peft_model
    fresh(out)
    torch.manual_seed(SEED)
    model, targets = build()
    model = model.float().eval()
    model.save_pretrained(out / "base")
    (out / "base" / "generation_config.json").unlink(missing_ok=True)
    model.name_or_path = "base"
    is_conv1d = build is gpt2
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=7, target_modules=targets, fan_in_fan_out=is_conv1d))
    fill_b(adapted, SEED, 0.1)
    save_adapter(adapted, out / "adapter", save_embedding_layers=False)

    base = load_file(out / "base" / "model.safetensors")
    again = type(model).from_pretrained(out / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(again, out / "adapter").merge_and_unload()
    state = merged.state_dict()
    save_file({k: state[k].contiguous() for k in base}, out / "merged.safetensors", metadata={"format": "pt"})

    lora = load_file(out / "adapter" / "adapter_model.safetensors")
    half = {}
    for key, a in lora.items():
        if ".lora_A." not in key:
            continue
        name = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        delta = (7 / 3) * lora[key.replace("lora_A", "lora_B")].double() @ a.double()
        weight = base[name].bfloat16().double() + (delta.T if is_conv1d else delta)
        half[name] = weight.bfloat16()
    save_file(half, out / "f64.safetensors", metadata={"format": "pt"})
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def union_high_rank(out):
    """The bundled model with the adapter of tests/golden/peft/high-rank: the one tensor that changes."""
    from peft import PeftModel
    merged = PeftModel.from_pretrained(union(), GOLDEN / "peft" / "high-rank").merge_and_unload()
    name = "model.layers.2.self_attn.k_proj.weight"
    save_file({name: merged.state_dict()[name].contiguous()}, out, metadata={"format": "pt"})
    out.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "merge")
    args = parser.parse_args()
    for build in (llama, bert, gpt2, t5):
        make(build, args.out / build.__name__)
    union_high_rank(args.out / "union-high-rank.safetensors")
    write_json(args.out / "versions.json", versions("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
