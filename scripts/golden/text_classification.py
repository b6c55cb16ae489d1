"""A tiny BERT for text classification: its exports, and PEFT's and PyTorch's numbers beside them.

    text_classification.py [--out tests/golden/text-classification] [--optimum PYTHON]

--optimum: the Python of a virtual environment with requirements-optimum.txt. ../../tests/golden/README.md explains the folder.
"""
import argparse
import json
import pathlib
import tempfile

import numpy as np
import onnxruntime as ort
import torch

from common import ADAMW, GOLDEN, fill_trained, fresh, save_tensors, versions, write_json
from exporters import call, shape_like_hub

SEED, LABELS, STEPS, MAX_LENGTH = 11, ["calm", "glad", "sad"], 4, 14
WORDS = "the a he she it was is and sea ship whale king day night good bad sun rain came went saw said happy grim".split()
ROWS = [
    {"text": "The sea was calm.", "label": "calm"},
    {"text": "He saw the sun and was happy!", "label": "glad"},
    {"text": "Rain came, a grim night", "textPair": "and the ship went.", "label": "sad"},
    {"text": "The king is good", "textPair": "it is a happy day", "label": "glad"},
    {"text": "She said it was bad and grim and the night came and the rain came and the sun went", "textPair": "no?", "label": "sad"},
    {"text": "a", "label": "calm"},
]
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value", "output.dense"]}
PAD = 0


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "!", "?", *letters, *(f"##{c}" for c in letters)]
    vocabulary = {token: i for i, token in enumerate([*tokens, *(w for w in WORDS if len(w) > 1)])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def build(dtype=torch.float32):
    """BertForSequenceClassification with random weights, made in the order of the parameters' names."""
    from transformers import BertConfig, BertForSequenceClassification
    config = BertConfig(
        vocab_size=tokenizer().get_vocab_size(), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}, attn_implementation="eager")
    model = BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (1 if "LayerNorm.weight" in name else 0))
            else:
                p.copy_(noise * (0.3 if "embeddings" in name else 1.2 / p.shape[1] ** 0.5))
    return model.eval().to(dtype)


def adapted(saved, dtype=torch.float32, **options):
    """With LoRA, and the head that PEFT saves whole: the classifier, and with `pooler` all behind the encoder. Options are PEFT's."""
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(build(), LoraConfig(task_type="SEQ_CLS", modules_to_save=saved, **{**LORA, **options}))
    fill_trained(model, SEED + 1)
    return model.eval().to(dtype)


def batch():
    encode = tokenizer()
    encode.enable_truncation(MAX_LENGTH)
    encode.enable_padding(pad_id=PAD)
    rows = encode.encode_batch([(r["text"], r["textPair"]) if "textPair" in r else r["text"] for r in ROWS])
    return {"input_ids": [r.ids for r in rows], "attention_mask": [r.attention_mask for r in rows],
            "token_type_ids": [r.type_ids for r in rows], "labels": [LABELS.index(r["label"]) for r in ROWS]}


def tensors():
    return {name: torch.tensor(rows) for name, rows in batch().items()}


def key(name):
    """A parameter's name in PEFT's file."""
    return name.replace(".default", "").replace(".modules_to_save", "")


def trained(model):
    return {key(name): p for name, p in model.named_parameters() if p.requires_grad}


def numbers(saved, folder):
    out = fresh(folder)
    wide, narrow = adapted(saved, torch.float64), adapted(saved)
    narrow.peft_config["default"].base_model_name_or_path = "tiny-bert"
    narrow.save_pretrained(out / "adapter-init")
    (out / "adapter-init" / "README.md").unlink(missing_ok=True)
    result = wide(**tensors())
    result.loss.backward()
    save_tensors(out / "gradients.safetensors", {name: p.grad for name, p in trained(wide).items()})
    optimizer = torch.optim.AdamW(trained(wide).values(), lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weightDecay"])
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = wide(**tensors()).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(trained(wide).values(), ADAMW["maxGradNorm"]).item())
        optimizer.step()
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft"), "seed": SEED, "adamw": ADAMW, "labels": LABELS,
        "maxLength": MAX_LENGTH, "rows": ROWS, "batch": batch(), "loss": result.loss.item(), "logits": result.logits.tolist(),
        "adamwLosses": losses, "gradNorms": norms})
    print(folder, result.loss.item(), losses)


def check(path, wanted):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {i.name: np.array(batch()[i.name], np.int64) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    inputs = {name: rows for name, rows in tensors().items() if name != "labels"}
    with torch.no_grad():
        truth = wanted(**inputs).numpy()
    mask = np.array(batch()["attention_mask"]) == 1
    made = session.run(names, feeds)[0]
    error = np.abs(made - truth)[mask if made.ndim == 3 else slice(None)].max()
    if error > 1e-4:
        raise SystemExit(f"{path}: {names} differ by {error}")
    return names, float(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "text-classification")
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    args = parser.parse_args()
    model = build()
    exports = {  # name: (optimum's task, what is saved, what the first output must be)
        "encoder": ("feature-extraction", model.bert, ["classifier", "pooler"], lambda **x: model.bert(**x).last_hidden_state),
        "classifier": ("text-classification", model, None, lambda **x: model(**x).logits),
    }
    for name, (task, source, saved, wanted) in exports.items():
        with tempfile.TemporaryDirectory() as work:
            folder, exported = pathlib.Path(work) / "tiny-bert", pathlib.Path(work) / "exported"
            source.save_pretrained(folder)
            tokenizer().save(str(folder / "tokenizer.json"))
            names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
            special = {f"{kind}_token": token for kind, token in names.items()}
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast", "do_lower_case": True, **special}))
            call(args.optimum, "-m", "optimum.exporters.onnx", "--model", folder, "--task", task, "--dtype", "fp32", exported)
            shape_like_hub(folder, exported, args.out / name)
        config = json.loads((args.out / name / "config.json").read_text())
        config["_name_or_path"] = "tiny-bert"
        (args.out / name / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        print(name, check(args.out / name / "onnx" / "model.onnx", wanted))
        numbers(saved, args.out / name / "golden")


if __name__ == "__main__":
    main()
