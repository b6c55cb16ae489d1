"""Token classification over tiny BERT and DistilBERT: PEFT's and PyTorch's numbers, and seqeval's scores.

    token_classification.py [--out tests/golden/token-classification] [--optimum PYTHON] [--seqeval PYTHON]

Run it after text_classification.py, whose encoder it uses. --optimum: the Python of a virtual environment with
requirements-optimum.txt. --seqeval: that of one with seqeval 1.2.2. ../../tests/golden/README.md explains the folder.
"""
import argparse
import json
import pathlib
import random
import subprocess
import tempfile

import numpy as np
import onnxruntime as ort
import torch

import text_classification as text
from common import ADAMW, GOLDEN, fill_trained, fresh, save_tensors, versions, write_json
from exporters import call, shape_like_hub

SEED, STEPS, MAX_LENGTH = 12, 4, 14
LABELS = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
ROWS = [
    (["The", "king", "Ahab", "saw", "the", "Red", "Sea", "."], ["O", "O", "B-PER", "O", "O", "B-LOC", "I-LOC", "O"]),
    (["Queequeg", "the", "Great", "was", "glad"], ["B-PER", "I-PER", "I-PER", "O", "O"]),
    (["It", "is", "night", "in", "Nantucket"], ["O", "O", "O", "O", "B-LOC"]),
    (["a"], ["O"]),
    (["He", "went", "from", "New", "Bedford", ",", "and", "Ishmael", "came", "to", "the", "sea"], ["O", "O", "O", "B-LOC", "I-LOC", "O", "O", "B-PER", "O", "O", "O", "O"]),
]
LORA = {"bert": ["query", "value", "output.dense"], "distilbert": ["q_lin", "v_lin", "lin2"]}


def build(kind, dtype=torch.float32):
    """Random weights, made in the order of the parameters' names. The BERT is the encoder of text_classification.py."""
    from transformers import BertForTokenClassification, DistilBertConfig, DistilBertForTokenClassification
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    if kind == "bert":
        base = text.build()
        base.config.update(names)
        model = BertForTokenClassification(base.config)
        model.bert.load_state_dict({key: value for key, value in base.bert.state_dict().items() if not key.startswith("pooler")})
        fill(model.classifier, SEED)
    else:
        model = DistilBertForTokenClassification(DistilBertConfig(
            vocab_size=text.tokenizer().get_vocab_size(), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32, dropout=0.0,
            attention_dropout=0.0, attn_implementation="eager", pad_token_id=0, **names))
        fill(model, SEED)
    return model.eval().to(dtype)


def fill(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (1 if "norm" in name.lower() and name.endswith("weight") else 0))
            else:
                p.copy_(noise * (0.3 if "embeddings" in name else 1.2 / p.shape[1] ** 0.5))


def adapted(kind, dtype=torch.float32):
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(build(kind), LoraConfig(task_type="TOKEN_CLS", modules_to_save=["classifier"], r=3, lora_alpha=6, target_modules=LORA[kind]))
    fill_trained(model, SEED + 1)
    return model.eval().to(dtype)


def batch():
    """Words as transformers' examples take them: labels of first sub-words, -100 elsewhere."""
    encode = text.tokenizer()
    encode.enable_truncation(MAX_LENGTH)
    encode.enable_padding(pad_id=text.PAD)
    rows = encode.encode_batch([words for words, _ in ROWS], is_pretokenized=True)
    labels = []
    for row, (_, tags) in zip(rows, ROWS):
        seen, own = set(), []
        for word in row.word_ids:
            own.append(-100 if word is None or word in seen else LABELS.index(tags[word]))
            seen.add(word)
        labels.append(own)
    return {"input_ids": [r.ids for r in rows], "attention_mask": [r.attention_mask for r in rows], "labels": labels}


def tensors():
    return {name: torch.tensor(rows) for name, rows in batch().items()}


def numbers(kind, out):
    wide, narrow = adapted(kind, torch.float64), adapted(kind)
    narrow.peft_config["default"].base_model_name_or_path = f"tiny-{kind}"
    narrow.peft_config["default"].target_modules = sorted(LORA[kind])
    narrow.save_pretrained(out / "adapter-init")
    (out / "adapter-init" / "adapter_model.safetensors").chmod(0o644)
    (out / "adapter-init" / "README.md").unlink(missing_ok=True)
    result = wide(**tensors())
    result.loss.backward()
    save_tensors(out / "gradients.safetensors", {name: p.grad for name, p in text.trained(wide).items()})
    parameters = list(text.trained(wide).values())
    optimizer = torch.optim.AdamW(parameters, lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weightDecay"])
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = wide(**tensors()).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, ADAMW["maxGradNorm"]).item())
        optimizer.step()
    write_json(out / "golden.json", {
        "versions": versions("torch", "transformers", "peft"), "seed": SEED, "adamw": ADAMW, "labels": LABELS, "maxLength": MAX_LENGTH,
        "rows": [{"words": words, "tags": tags} for words, tags in ROWS], "batch": batch(), "loss": result.loss.item(),
        "logits": result.logits.tolist(), "adamwLosses": losses, "gradNorms": norms})
    print(out, result.loss.item(), losses)


def export(optimum, out):
    """DistilBERT with its head, as optimum exports it."""
    model = build("distilbert")
    with tempfile.TemporaryDirectory() as work:
        folder, exported = pathlib.Path(work) / "tiny-distilbert", pathlib.Path(work) / "exported"
        model.save_pretrained(folder)
        text.tokenizer().save(str(folder / "tokenizer.json"))
        names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
        special = {f"{kind}_token": token for kind, token in names.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DistilBertTokenizerFast", "do_lower_case": True, **special}))
        call(optimum, "-m", "optimum.exporters.onnx", "--model", folder, "--task", "token-classification", "--dtype", "fp32", exported)
        shape_like_hub(folder, exported, out)
    config = json.loads((out / "config.json").read_text())
    config["_name_or_path"] = "tiny-distilbert"
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    session = ort.InferenceSession(str(out / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {i.name: np.array(batch()[i.name], np.int64) for i in session.get_inputs()}
    made = session.run(["logits"], feeds)[0]
    with torch.no_grad():
        truth = model(**{name: rows for name, rows in tensors().items() if name != "labels"}).logits.numpy()
    error = np.abs(made - truth)[np.array(batch()["attention_mask"]) == 1].max()
    if error > 1e-4:
        raise SystemExit(f"{out}: logits differ by {error}")


SCORES = """
import importlib.metadata, json, sys, warnings
warnings.simplefilter("ignore")
from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
cases = json.load(sys.stdin)
scores = []
for truth, predicted in cases:
    report = classification_report(truth, predicted, output_dict=True, zero_division=0)
    scores.append({
        "precision": precision_score(truth, predicted), "recall": recall_score(truth, predicted), "f1": f1_score(truth, predicted),
        "accuracy": accuracy_score(truth, predicted), "entities": get_entities(truth),
        "types": {name: float(one["f1-score"]) for name, one in report.items() if not name.endswith(" avg")}})
print(json.dumps({"version": importlib.metadata.version("seqeval"), "scores": scores}))
"""


def scores(python, out):
    """Tags that a model might give: well formed and not, in several schemes."""
    generator = random.Random(SEED)
    schemes = [["O", "B-A", "I-A", "B-B", "I-B"], ["O", "B-A", "I-A", "E-A", "S-A", "B-C-D", "I-C-D"], ["O", "I-A", "I-B", "B-A"], ["O", "O", "O", "B-A"]]
    cases = []
    for number in range(40):
        tags = schemes[number % len(schemes)]
        truth = [[generator.choice(tags) for _ in range(generator.randint(1, 9))] for _ in range(generator.randint(1, 6))]
        predicted = [[tag if generator.random() < 0.6 else generator.choice(tags) for tag in row] for row in truth]
        cases.append((truth, predicted))
    cases.append(([["O", "O"]], [["O", "O"]]))
    made = subprocess.run([python, "-c", SCORES], input=json.dumps(cases), capture_output=True, text=True, check=True)
    result = json.loads(made.stdout)
    found = [{"truth": truth, "predicted": predicted, **score} for (truth, predicted), score in zip(cases, result["scores"])]
    write_json(out, {"versions": {"seqeval": result["version"]}, "cases": found})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "token-classification")
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("--seqeval", default="python", help="Python with seqeval")
    args = parser.parse_args()
    fresh(args.out)
    scores(args.seqeval, args.out / "seqeval.json")
    numbers("bert", fresh(args.out / "encoder" / "golden"))
    export(args.optimum, args.out / "distilbert")
    numbers("distilbert", fresh(args.out / "distilbert" / "golden"))


if __name__ == "__main__":
    main()
