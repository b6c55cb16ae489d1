"""Adapters of classifiers on pretrained bases, which have no such head, and what PEFT merges; and tied weights under their own names.

    heads.py [--out tests/golden/heads] [NAME …]

Each case as in names.py: base.json, whose tensors save_pretrained of the pretrained model names; adapter/; merged.safetensors, the
tensors of the merged classifier that differ from the base's, as save_pretrained of PEFT's merged model writes them.
"""
import copy
import json
import pathlib
import tempfile

import torch
from safetensors.torch import save_file

from common import GOLDEN, fill_b, fresh, save_tensors, write_json
from names import SEED, make_all, read, save, small, values

# Case → class of the base, class of the adapter, task, target_modules, other settings
CASES = {
    "roberta": ("RobertaForMaskedLM", "RobertaForSequenceClassification", "SEQ_CLS", r".*layer\.1\..*query", {}),
    "roberta-bare": ("RobertaModel", "RobertaForSequenceClassification", "SEQ_CLS", r".*layer\.1\..*query", {}),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertForSequenceClassification", "SEQ_CLS", r".*layer\.1\..*q_lin",
                   {"modules_to_save": ["pre_classifier", "classifier"]}),
    "mistral": ("MistralForCausalLM", "MistralForSequenceClassification", "SEQ_CLS", r".*layers\.1\..*q_proj", {}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2ForTokenClassification", "TOKEN_CLS", r".*layers\.1\..*q_proj", {}),
    "bert": ("BertForMaskedLM", "BertForSequenceClassification", "SEQ_CLS", r".*layer\.1\..*query", {}),
    "bert-pretraining": ("BertForPreTraining", "BertForSequenceClassification", "SEQ_CLS", r".*layer\.1\..*query", {}),
    "bert-tokens": ("BertForMaskedLM", "BertForTokenClassification", "TOKEN_CLS", r".*layer\.1\..*query", {}),
    "bert-answers": ("BertForMaskedLM", "BertForQuestionAnswering", "QUESTION_ANS", r".*layer\.1\..*query", {"modules_to_save": ["qa_outputs"]}),
    "deberta": ("DebertaV2ForMaskedLM", "DebertaV2ForSequenceClassification", "SEQ_CLS", r".*layer\.1\..*query_proj",
                {"modules_to_save": ["pooler", "classifier"]}),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertForSequenceClassification", "SEQ_CLS", r".*layers\.1\..*Wqkv",
                   {"modules_to_save": ["head", "classifier"]}),
}


def make(name, out):
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model
    transformers.utils.logging.disable_progress_bar()
    base_class, head_class, task, targets, more = CASES[name]
    base_class, head_class = getattr(transformers, base_class), getattr(transformers, head_class)
    with tempfile.TemporaryDirectory() as folder:
        model = small(base_class, None)
        model.save_pretrained(folder)
        base = {key: values(key, value.shape) if value.is_floating_point() else value for key, value in read(folder).items()}
        for file in pathlib.Path(folder).glob("*.safetensors"):
            file.unlink()
        save_file(base, f"{folder}/model.safetensors", metadata={"format": "pt"})
        config = copy.deepcopy(model.config)
        config.num_labels = 2 if task == "QUESTION_ANS" else 3

        def load():
            torch.manual_seed(SEED)
            return head_class.from_pretrained(folder, config=copy.deepcopy(config))

        adapted = get_peft_model(load(), LoraConfig(r=2, lora_alpha=3, target_modules=targets, task_type=task, **more))
        generator = torch.Generator().manual_seed(SEED)
        fill_b(adapted, SEED, 0.3)
        with torch.no_grad():
            for key, p in adapted.named_parameters():
                if "modules_to_save" in key:
                    p.add_(0.2 * torch.randn(p.shape, generator=generator))
        fresh(out)
        save(adapted, out / "adapter")
        merged = PeftModel.from_pretrained(load(), out / "adapter").merge_and_unload()
        merged.save_pretrained(f"{folder}/merged")
        after = read(f"{folder}/merged")
        saved = json.loads(pathlib.Path(f"{folder}/merged/config.json").read_text(encoding="utf8"))
        kept = {key: value for key, value in model.config.to_dict().items() if key in ("model_type", "tie_word_embeddings", "id2label", "label2id")}
    write_json(out / "base.json", {
        "config": {**kept, "architectures": [base_class.__name__]},
        "tensors": {key: list(value.shape) for key, value in base.items() if value.is_floating_point()},
        "merged": {key: saved.get(key) for key in ("architectures", "id2label", "label2id")}})
    def own(key):  # a bare model's checkpoint has no first part
        short = key.removeprefix(f"{head_class.base_model_prefix}.")
        return short if key not in base and short in base else key

    after = {own(key): value for key, value in after.items()}
    changed = {key: value for key, value in after.items() if key not in base or not torch.equal(value, base[key])}
    save_tensors(out / "merged.safetensors", changed)
    print(f"{name}: {sorted(changed)}, {sum(f.stat().st_size for f in out.rglob('*') if f.is_file())} bytes")


if __name__ == "__main__":
    make_all(make, CASES, __doc__, GOLDEN / "heads")
