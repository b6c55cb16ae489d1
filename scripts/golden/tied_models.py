"""Adapters of models with tied weights. Untied, each use has what its adapter changes; kept, the one weight has all changes, as in PEFT's merge,
but for ensure_weight_tying, which PEFT's merge adds once for each use: --check calls that wrong.

    tied_models.py [--out tests/golden/tied-models]     writes all cases but these, as names.py does
    tied_models.py --check [NAME …]                     merges all cases by the command line (npm run build) and loads them in transformers
"""
import argparse
import copy
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import save_file

import names
import packed
from common import GOLDEN, REPO, fill_b, fresh, save_tensors, write_json

CLI = REPO / "dist" / "cli" / "main.js"
# Case → class, settings of the adapter, policy (None: no word is needed)
CASES = {
    "llama-head": ("LlamaForCausalLM", {"target_modules": ["lm_head", "q_proj"]}, "untie"),
    "llama-both": ("LlamaForCausalLM", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}, "keep"),
    "llama-both-untied": ("LlamaForCausalLM", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}, "untie"),
    "gpt2-embedding": ("GPT2LMHeadModel", {"target_modules": ["wte"]}, "untie"),
    "bart-head": ("BartForConditionalGeneration", {"target_modules": ["lm_head"]}, "untie"),
    "bart-decoder": ("BartForConditionalGeneration", {"target_modules": ["decoder.embed_tokens"]}, "untie"),
    "mbart-head": ("MBartForConditionalGeneration", {"target_modules": ["lm_head"]}, "untie"),
    "m2m-head": ("M2M100ForConditionalGeneration", {"target_modules": ["lm_head"]}, "untie"),
    "marian-head": ("MarianMTModel", {"target_modules": ["lm_head"]}, "untie"),
    "marian-embedding": ("MarianMTModel", {"target_modules": ["decoder.embed_tokens", "q_proj"]}, "keep"),
    "t5-head": ("T5ForConditionalGeneration", {"target_modules": ["lm_head", "q"]}, "untie"),
    "t5-shared": ("T5ForConditionalGeneration", {"target_modules": ["q"], "modules_to_save": ["shared"]}, "untie"),
    "whisper-head": ("WhisperForConditionalGeneration", {"target_modules": ["proj_out"]}, "untie"),
    "biogpt-head": ("BioGptForCausalLM", {"target_modules": ["output_projection"]}, "untie"),
    "blip2-head": ("Blip2ForConditionalGeneration", {"target_modules": ["lm_head"]}, "untie"),
    "mamba-head": ("MambaForCausalLM", {"target_modules": ["lm_head"]}, "untie"),
    "mamba-embedding": ("MambaForCausalLM", {"target_modules": ["embeddings"]}, "untie"),
    "modernbert-embedding": ("ModernBertForMaskedLM", {"target_modules": ["tok_embeddings"]}, "untie"),
    "gpt1-embedding": ("OpenAIGPTLMHeadModel", {"target_modules": ["tokens_embed"]}, "untie"),
    "xlnet-embedding": ("XLNetLMHeadModel", {"target_modules": ["word_embedding"]}, "untie"),
    "distilbert-biases": ("DistilBertForMaskedLM", {"target_modules": ["q_lin"], "bias": "all"}, None),
    "bert-biases": ("BertForMaskedLM", {"target_modules": ["query"], "bias": "all"}, None),
    "albert-biases": ("AlbertForMaskedLM", {"target_modules": ["query"], "bias": "all"}, None),
    "mpnet-biases": ("MPNetForMaskedLM", {"target_modules": ["q"], "bias": "all"}, None),
    "deberta-biases": ("DebertaV2ForMaskedLM", {"target_modules": ["query_proj"], "bias": "all"}, None),
    "electra-biases": ("ElectraForMaskedLM", {"target_modules": ["query"], "bias": "all"}, None),
    "roberta-biases": ("RobertaForMaskedLM", {"target_modules": ["query"], "bias": "all"}, None),
    "bert-head": ("BertForMaskedLM", {"target_modules": ["query"], "modules_to_save": ["decoder"]}, "untie"),
    "bert-block": ("BertForMaskedLM", {"target_modules": ["query"], "modules_to_save": ["cls"]}, "untie"),
    "roberta-block": ("RobertaForMaskedLM", {"target_modules": ["query"], "modules_to_save": ["lm_head"]}, "untie"),
    "distilbert-head": ("DistilBertForMaskedLM", {"target_modules": ["q_lin"], "modules_to_save": ["vocab_projector"]}, "untie"),
    "electra-head": ("ElectraForMaskedLM", {"target_modules": ["query"], "modules_to_save": ["generator_lm_head"]}, "untie"),
    "gemma3-head": ("Gemma3ForConditionalGeneration", {"target_modules": ["lm_head"]}, "untie"),
    "electra-block": ("ElectraForMaskedLM", {"target_modules": ["query"], "modules_to_save": ["generator_predictions", "generator_lm_head"]}, "untie"),
    "xlm-embedding": ("XLMWithLMHeadModel", {"target_modules": ["embeddings"]}, "untie"),
    "bart-shared": ("BartForConditionalGeneration", {"target_modules": ["q_proj"], "modules_to_save": ["shared"]}, "untie"),
    "neox-head": ("GPTNeoXForCausalLM", {"target_modules": ["lm_head"]}, "untie"),
    "modernbert-along": ("ModernBertForMaskedLM", {"target_modules": ["Wqkv"]}, None),
    "mamba-along": ("MambaForCausalLM", {"target_modules": ["in_proj"]}, None),
    "xlnet-along": ("XLNetLMHeadModel", {"target_modules": ["layer_1"]}, None),
    "whisper-along": ("WhisperForConditionalGeneration", {"target_modules": ["q_proj"]}, None),
    "bert-along": ("BertForMaskedLM", {"target_modules": ["query"]}, None),
    "marian-ensured": ("MarianMTModel", {"target_modules": ["decoder.embed_tokens", "q_proj"], "ensure_weight_tying": True}, None),
    "bart-ensured": ("BartForConditionalGeneration", {"target_modules": ["shared", "q_proj"], "ensure_weight_tying": True}, None),
    "whisper-ensured": ("WhisperForConditionalGeneration", {"target_modules": ["decoder.embed_tokens", "q_proj"], "ensure_weight_tying": True}, None),
    "modernbert-ensured": ("ModernBertForMaskedLM", {"target_modules": ["tok_embeddings"], "ensure_weight_tying": True}, None),
    "mamba-ensured": ("MambaForCausalLM", {"target_modules": ["embeddings"], "ensure_weight_tying": True}, None),
    # PEFT ties embed_tokens and lm_head alone: of these it says nothing, and only one use changes.
    "gpt2-untied": ("GPT2LMHeadModel", {"target_modules": ["wte", "c_attn"], "ensure_weight_tying": True}, "untie"),
    "bert-untied": ("BertForMaskedLM", {"target_modules": ["word_embeddings"], "ensure_weight_tying": True}, "untie"),
    "bloom-untied": ("BloomForCausalLM", {"target_modules": ["word_embeddings"], "ensure_weight_tying": True}, "untie"),
    "roberta-untied": ("RobertaForMaskedLM", {"target_modules": ["word_embeddings"], "ensure_weight_tying": True}, "untie"),
    "electra-untied": ("ElectraForMaskedLM", {"target_modules": ["word_embeddings"], "ensure_weight_tying": True}, "untie"),
    "falcon-untied": ("FalconForCausalLM", {"target_modules": ["word_embeddings"], "ensure_weight_tying": True}, "untie"),
    "gpt2-saved": ("GPT2LMHeadModel", {"target_modules": ["c_attn"], "modules_to_save": ["wte"], "ensure_weight_tying": True}, "untie"),
    "bert-saved": ("BertForMaskedLM", {"target_modules": ["query"], "modules_to_save": ["word_embeddings"], "ensure_weight_tying": True}, "untie"),
    "marian-rows": ("MarianMTModel", {"target_modules": ["q_proj"], "trainable_token_indices": {"decoder.embed_tokens": [3, 5]}}, None),
    "bart-rows": ("BartForConditionalGeneration", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}}, None),
    "whisper-rows": ("WhisperForConditionalGeneration", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}}, None),
    "modernbert-rows": ("ModernBertForMaskedLM", {"target_modules": ["Wqkv"], "bias": "lora_only", "trainable_token_indices": {"tok_embeddings": [3, 5]}}, None),
    "llama-rows": ("LlamaForCausalLM", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}, None),
}


def put_ties(config, is_tied):
    sys.path.insert(0, str(REPO / "scripts" / "generate"))
    from transformers_classes import parts, put
    for _, part in parts(config):
        put(part, "tie_word_embeddings", is_tied)


def make(name, out=None):
    """Writes a case, or checks it."""
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model
    transformers.utils.logging.disable_progress_bar()
    cls, settings, policy = CASES[name]
    cls = getattr(transformers, cls)
    config = names.small(cls, None).config
    put_ties(config, True)
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(names.SEED)
        cls(copy.deepcopy(config)).save_pretrained(f"{scratch}/base")
        tensors = {key: names.values(key, value.shape) if value.is_floating_point() else value for key, value in names.read(f"{scratch}/base").items()}
        save_file(tensors, f"{scratch}/base/model.safetensors", metadata={"format": "pt"})

        def load():
            return cls.from_pretrained(f"{scratch}/base", config=copy.deepcopy(config)).eval()

        torch.manual_seed(names.SEED)
        adapted = get_peft_model(load(), LoraConfig(r=2, lora_alpha=3, **settings))
        generator = torch.Generator().manual_seed(names.SEED)
        fill_b(adapted, names.SEED, 0.3)
        with torch.no_grad():
            for key, p in adapted.named_parameters():
                if "lora_embedding_A" in key or (p.requires_grad and "lora_" not in key):
                    p.add_(0.3 * torch.randn(p.shape, generator=generator))
        names.save(adapted, f"{scratch}/adapter", **({"save_embedding_layers": True} if name.endswith("-along") else {}))
        wanted = load()
        if policy == "untie":
            apart, before = copy.deepcopy(config), wanted.state_dict()
            put_ties(apart, False)
            wanted = cls(apart).eval()
            ties = wanted.get_expanded_tied_weights_keys(all_submodels=True)
            for target in ties:  # of models that tie whatever the config says
                owner, _, own = target.rpartition(".")
                setattr(wanted.get_submodule(owner), own, torch.nn.Parameter(wanted.get_parameter(target).detach().clone()))
            wanted.load_state_dict(before)
        merged = PeftModel.from_pretrained(wanted, f"{scratch}/adapter").merge_and_unload()
        if out is not None:
            merged.save_pretrained(f"{scratch}/wanted")
            write_case(out / name, scratch, tensors, policy)
            return
        wanted = merged.state_dict()
        words = [] if policy is None else ["--tied", policy]
        done = subprocess.run(["node", CLI, "merge", "--base", f"{scratch}/base", "--adapter", f"{scratch}/adapter", "--out", f"{scratch}/merged", *words],
                              capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: REFUSED {done.stderr.strip().splitlines()[-1][:300]}")
            return
        got, info = cls.from_pretrained(f"{scratch}/merged", output_loading_info=True)
    got = got.state_dict()
    worst = {key: (got[key].double() - value.double()).abs().max().item() for key, value in wanted.items() if value.is_floating_point() and value.numel()}
    bad = [key for key, value in worst.items() if value > 1e-5]
    state = "" if not bad and not info["missing_keys"] else f" WRONG {bad[:6]} missing {sorted(info['missing_keys'])[:4]}"
    print(f"{name}: all of {len(wanted)} tensors, within {max(worst.values()):.1e}{state}")


def write_case(out, scratch, base, policy):
    fresh(out)
    shutil.copytree(f"{scratch}/adapter", out / "adapter")
    after = names.read(f"{scratch}/wanted")
    changed = {key: value for key, value in after.items() if key not in base or not torch.equal(value, base[key])}
    config = json.loads(pathlib.Path(f"{scratch}/base/config.json").read_text(encoding="utf8"))
    kept = {key: value for key, value in config.items() if key in ("architectures", "model_type", "tie_word_embeddings")}
    if "text_config" in config:
        kept["text_config"] = {key: value for key, value in config["text_config"].items() if key in ("model_type", "tie_word_embeddings")}
    write_json(out / "base.json", {"config": kept, "tied": policy or "refuse",
                                   "tensors": {key: list(value.shape) for key, value in base.items() if value.is_floating_point()}})
    save_tensors(out / "merged.safetensors", changed)
    print(f"{out.name}: {sorted(changed)}, {sum(f.stat().st_size for f in out.rglob('*') if f.is_file())} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "tied-models")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    written = [name for name in CASES if not name.endswith("-ensured")]
    for name in args.names or (CASES if args.check else written):
        make(name, None if args.check else args.out)
    if not args.check:
        packed.pack(args.out, "tied-models")


if __name__ == "__main__":
    main()
