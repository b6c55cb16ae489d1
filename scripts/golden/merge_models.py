"""Small models merged by PEFT's merge_and_unload, in float32 and bfloat16: Llama, BERT, GPT-2 (Conv1D), T5, and Phi-3 and GPT-NeoX,
whose queries, keys and values are one module. And a Llama in float64, with a float64 adapter.

    merge_models.py [--out tests/golden/merge] [MODEL...]

Each folder has base/, adapter/ and merged.safetensors (PEFT's result) and f64.safetensors: for the bfloat16 copy of
the base, W + s·B·A in float64, rounded once, by tensor.
"""
import argparse
import pathlib
import tempfile

import torch
from safetensors.torch import load_file, save_file

from common import GOLDEN, fill_b, fresh, save_adapter, union

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


def phi3():
    from transformers import Phi3Config, Phi3ForCausalLM
    return Phi3ForCausalLM(Phi3Config(vocab_size=48, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=3,
                                      num_key_value_heads=1, tie_word_embeddings=False, pad_token_id=0)), ["qkv_proj", "gate_up_proj", "o_proj"]


def gpt_neox():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3,
                                            max_position_embeddings=16)), ["query_key_value", "dense_4h_to_h"]


def llama_f64():
    return llama()


def make(build, out):
    from peft import LoraConfig, PeftModel, get_peft_model
    fresh(out)
    torch.manual_seed(SEED)
    model, targets = build()
    dtype = torch.float64 if build is llama_f64 else torch.float32
    model = model.to(dtype).eval()
    model.save_pretrained(out / "base")
    (out / "base" / "generation_config.json").unlink(missing_ok=True)
    model.name_or_path = "base"
    is_conv1d = build is gpt2
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=7, target_modules=targets, fan_in_fan_out=is_conv1d))
    fill_b(adapted, SEED, 0.1)
    save_adapter(adapted, out / "adapter", save_embedding_layers=False)

    base = load_file(out / "base" / "model.safetensors")
    again = type(model).from_pretrained(out / "base", dtype=dtype)
    merged = PeftModel.from_pretrained(again, out / "adapter").merge_and_unload()
    # As transformers writes it: some models have other names in memory.
    with tempfile.TemporaryDirectory() as folder:
        merged.save_pretrained(folder)
        state = load_file(pathlib.Path(folder) / "model.safetensors")
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
    parser.add_argument("models", nargs="*", help="default: all")
    args = parser.parse_args()
    builds = {build.__name__.replace("_", "-"): build for build in (llama, bert, gpt2, t5, phi3, gpt_neox, llama_f64)}
    for name in args.models or [*builds, "union-high-rank"]:
        if name in builds:
            make(builds[name], args.out / name)
        else:
            union_high_rank(args.out / "union-high-rank.safetensors")


if __name__ == "__main__":
    main()
