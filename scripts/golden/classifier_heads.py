"""Classification heads of transformers, as PEFT saves them: hidden states in, logits out, for tiny random models.

    classifier_heads.py [--out tests/golden/classifier-heads]

Needs requirements.txt. tests/golden/README.md explains the folder.
"""
import argparse
import pathlib

import torch

from common import GOLDEN, fresh, save_tensors, versions, write_json

WIDTH, LABELS, TOKENS, PAD = 16, 3, 5, 0
TINY = {"vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
MODELS = {  # name: (model_type, other settings, what PEFT is told to save whole)
    "albert": ("albert", {"embedding_size": 8}, ["classifier", "pooler"]),
    "bert": ("bert", {}, ["classifier", "pooler"]),
    "camembert": ("camembert", {}, ["classifier"]),
    "deberta": ("deberta", {"pooler_hidden_size": WIDTH, "pad_token_id": 0}, ["classifier", "pooler"]),
    "deberta-v2": ("deberta-v2", {"pooler_hidden_size": WIDTH, "pad_token_id": 0}, ["classifier", "pooler"]),
    "distilbert": ("distilbert", {"dim": WIDTH, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}, ["classifier", "pre_classifier"]),
    "electra": ("electra", {"embedding_size": WIDTH}, ["classifier"]),
    "modernbert": ("modernbert", {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}, ["classifier", "head"]),
    "modernbert-biases": ("modernbert", {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "classifier_bias": True, "norm_bias": True}, ["classifier", "head"]),
    "modernbert-mean": ("modernbert", {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "classifier_pooling": "mean"}, ["classifier", "head"]),
    "mpnet": ("mpnet", {}, ["classifier"]),
    "roberta": ("roberta", {}, ["classifier"]),
    "xlm-roberta": ("xlm-roberta", {}, ["classifier"]),
}
DECODERS = {  # those that give labels to the last token of a text
    name: (name, {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 1, "n_embd": WIDTH, "n_head": 2, "n_layer": 1}, ["score"])
    for name in ("gpt2", "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma")
}
TOKEN_MODELS = {  # those of tokens: the same models, and what PEFT is told to save whole
    **{name: ["classifier"] for name in MODELS if not name.startswith("modernbert")},
    **{name: ["classifier", "head"] for name in MODELS if name in ("modernbert", "modernbert-biases")},
}


def main():
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "classifier-heads")
    out = fresh(parser.parse_args().out)
    tensors, models = {}, {}
    cases = [(name, "SEQ_CLS", AutoModelForSequenceClassification, *MODELS[name]) for name in MODELS]
    padded = [(name, "SEQ_CLS", AutoModelForSequenceClassification, *case) for name, case in DECODERS.items()]
    cases += [(f"{name}-tokens", "TOKEN_CLS", AutoModelForTokenClassification, *MODELS[name][:2], saved) for name, saved in TOKEN_MODELS.items()]
    for name, task, auto, kind, settings, saved in [*cases, *padded]:
        config = AutoConfig.for_model(kind, **{**TINY, **settings}, num_labels=LABELS)
        model = auto.from_config(config, attn_implementation="eager").eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, p in sorted(model.named_parameters()):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.6)
        adapted = get_peft_model(model, LoraConfig(task_type=task, target_modules="all-linear", exclude_modules=".*(classifier|pooler|head).*", modules_to_save=list(saved), r=1)).eval()
        hidden = []
        adapted.base_model.model.base_model.register_forward_hook(lambda _, __, output: hidden.append(output[0]))
        with torch.no_grad():
            inputs = {"input_ids": torch.randint(3, 40, (4, TOKENS), generator=generator)}
            if name in DECODERS or name == "modernbert-mean":  # rows of different lengths, padded on the right and on the left
                mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
                inputs = {"input_ids": torch.where(mask == 1, inputs["input_ids"], PAD), "attention_mask": mask}
                tensors.update({f"{name}:{key}": value for key, value in inputs.items()})
            logits = adapted(**inputs).logits
        state = get_peft_model_state_dict(adapted)
        head = {key.removeprefix("base_model.model."): value for key, value in state.items() if "lora_" not in key}
        tensors.update({f"{name}/{key}": value for key, value in head.items()})
        tensors.update({f"{name}:hidden": hidden[0], f"{name}:logits": logits})
        kept = ["model_type", "hidden_size", "dim", "n_embd", "classifier_bias", "classifier_pooling", "classifier_activation", "norm_bias", "norm_eps", "pooler_hidden_act", *(["pad_token_id"] if name in DECODERS else [])]
        models[name] = {"task": task, "modulesToSave": saved, "config": {key: config.to_dict()[key] for key in kept if key in config.to_dict()}}
        print(name, sorted(head), logits[0].tolist())
    save_tensors(out / "heads.safetensors", tensors)
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "peft"), "models": models})


if __name__ == "__main__":
    main()
