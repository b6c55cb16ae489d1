"""Small models and adapters as llama.cpp's own converters write them, and PEFT's logits.

    gguf_adapters.py LLAMA_CPP [--out tests/golden/gguf] [--bases FOLDER] [--only NAME]

LLAMA_CPP is a checkout of ggml-org/llama.cpp (v0.5.0; see scripts/generate/gguf_names.py). For each model: config.json; the adapter as
PEFT writes it; expected.gguf, the same adapter by convert_lora_to_gguf.py (only where alpha says the scaling, since that converter
loses rsLoRA and patterns), once as q8_0; logits.json, what PEFT computes. With --bases the models as GGUF files in f32, for check_gguf.mjs.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import torch
from peft import LoraConfig, get_peft_model

import packed
from common import GOLDEN, fresh, save_adapter, versions, write_json

TOKENS = [3, 17, 42, 5, 60, 11, 23, 9]
SMALL = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERNS = {"rank_pattern": {"k_proj": 2, "layers.1.mlp.down_proj": 6}, "alpha_pattern": {"v_proj": 9}}
MODELS = {  # name: (class, config, LoraConfig)
    "llama": ("Llama", {"tie_word_embeddings": False}, {"r": 4, "lora_alpha": 6, "target_modules": [*ALL, "lm_head"]}),
    "llama-rslora": ("Llama", {"tie_word_embeddings": True}, {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ALL}),
    "llama-patterns": ("Llama", {"tie_word_embeddings": True}, {"r": 4, "lora_alpha": 6, **PATTERNS, "target_modules": ALL}),
    "llama-embedding": ("Llama", {"tie_word_embeddings": False}, {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]}),
    "mistral": ("Mistral", {"tie_word_embeddings": False, "sliding_window": None}, {"r": 4, "lora_alpha": 6, "target_modules": ALL}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, {"r": 4, "lora_alpha": 6, **PATTERNS, "use_rslora": True, "target_modules": ALL}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}, {"r": 4, "lora_alpha": 6, "target_modules": ALL}),
    "gemma": ("Gemma", {}, {"r": 4, "lora_alpha": 6, "target_modules": ALL}),
    "gemma2": ("Gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 32}, {"r": 4, "lora_alpha": 6, "target_modules": ALL}),
    "phi3": ("Phi3", {"tie_word_embeddings": False, "pad_token_id": 0, "head_dim": None},
             {"r": 4, "lora_alpha": 6, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}),
    "qwen3-moe": ("Qwen3Moe", {"tie_word_embeddings": False, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                               "decoder_sparse_step": 1, "norm_topk_prob": True, "mlp_only_layers": []},
                  {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"],
                   "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "gemma3": ("Gemma3", {"query_pre_attn_scalar": 8, "sliding_window": 32}, {"r": 4, "lora_alpha": 6, "target_modules": ALL}),
}
BY_LLAMA_CPP = {"llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "llama-embedding"}


def build(name):
    import transformers
    cls, config, _ = MODELS[name]
    torch.manual_seed(31)
    # Gemma3Config is that of images and texts.
    config_class = getattr(transformers, f"{cls}TextConfig" if cls == "Gemma3" else f"{cls}Config")
    made = config_class(**{k: v for k, v in {**SMALL, **config}.items() if v is not None or k == "sliding_window"})
    made._attn_implementation = "eager"
    model = getattr(transformers, f"{cls}ForCausalLM")(made).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def base_gguf(llama_cpp, folder, out):
    """The model with a vocabulary of bytes: tokens are given as numbers."""
    import conversion
    import gguf
    config = json.loads((folder / "config.json").read_text())
    cls = conversion.get_model_class(config["architectures"][0])

    class Small(cls):
        model_arch = cls.model_arch

        def set_vocab(self):
            bytes_ = [f"<0x{i:02X}>".encode() for i in range(256)]
            tokens = [b"<unk>", b"<s>", b"</s>", *bytes_, b"<|endoftext|>", *[f"w{i}".encode() for i in range(12)]]
            self.gguf_writer.add_tokenizer_model("llama")
            self.gguf_writer.add_tokenizer_pre("default")
            self.gguf_writer.add_token_list(tokens)
            self.gguf_writer.add_token_scores([0.0] * len(tokens))
            self.gguf_writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 13])
            self.gguf_writer.add_bos_token_id(1)
            self.gguf_writer.add_eos_token_id(2)
            self.gguf_writer.add_unk_token_id(0)
            self.gguf_writer.add_add_space_prefix(False)

        def set_gguf_parameters(self):
            super().set_gguf_parameters()
            if not any("vocab_size" in key for values in self.gguf_writer.kv_data for key in values):
                self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    Small(folder, gguf.LlamaFileType.ALL_F32, out).write()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("llama_cpp", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "gguf")
    parser.add_argument("--bases", type=pathlib.Path)
    parser.add_argument("--only", choices=MODELS)
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp / "gguf-py"), str(args.llama_cpp)]
    for i, name in enumerate(MODELS):
        if args.only not in (None, name):
            continue
        folder = fresh(args.out / name)
        model = build(name)
        scratch = fresh(pathlib.Path(f"/tmp/gguf-golden/{name}"))
        model.save_pretrained(scratch)
        # The converter of Gemma3 counts the tokens here.
        vocab = {str(token): token for token in range(SMALL["vocab_size"])}
        write_json(scratch / "tokenizer.json", {"model": {"vocab": vocab}, "added_tokens": []})
        if args.bases:
            args.bases.mkdir(parents=True, exist_ok=True)
            base_gguf(args.llama_cpp, scratch, args.bases / f"{name}.gguf")
        torch.manual_seed(50 + i)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **MODELS[name][2])).eval()
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(std=0.3)
        save_adapter(adapted, folder, save_embedding_layers=False)
        shutil.copy(scratch / "config.json", folder / "config.json")
        with torch.no_grad():
            logits = adapted(torch.tensor([TOKENS])).logits[0, -1]
            with adapted.disable_adapter():
                base = adapted(torch.tensor([TOKENS])).logits[0, -1]
        write_json(folder / "logits.json", {"versions": versions("torch", "transformers", "peft"), "tokens": TOKENS,
                                            "logits": [round(x, 6) for x in logits.tolist()], "base": [round(x, 6) for x in base.tolist()]})
        for dtype in ["f32", "q8_0"] if name == "mistral" else ["f32"] if name in BY_LLAMA_CPP else []:
            subprocess.run([sys.executable, args.llama_cpp / "convert_lora_to_gguf.py", folder, "--base", scratch, "--outfile",
                            folder / ("expected.gguf" if dtype == "f32" else f"{dtype}.gguf"), "--outtype", dtype],
                           check=True, capture_output=True)
    packed.pack(args.out, "gguf")


if __name__ == "__main__":
    main()
