"""Embedding losses of sentence-transformers over the tiny BERT of text_classification.py, with a PEFT adapter, in float64.

    embedding.py [--out tests/golden/embedding]

The numbers belong to the export tests/golden/text-classification/encoder. Needs requirements.txt and sentence-transformers==6.2.0.
"""
import argparse
import json
import pathlib
import tempfile

import torch

from common import ADAMW, GOLDEN, fresh, save_tensors, versions, write_json
from text_classification import SEED, build, key, tokenizer

MAX_LENGTH, STEPS, SCALE, MARGIN = 12, 3, 20.0, 0.2
ROWS = [
    {"text": "The sea was calm.", "textPair": "a good day and the sun", "negative": "a grim night", "score": 0.9},
    {"text": "He saw the king", "textPair": "the king is happy", "negative": "rain", "score": 0.4},
    {"text": "Rain came, and the night came and the ship went and the whale saw it", "textPair": "bad rain", "negative": "sun and sea", "score": -0.2},
    {"text": "she said it", "textPair": "it was said", "negative": "the whale", "score": 0.1},
]
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value"]}
SPECIAL = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
LOSSES = {"in-batch": 2, "in-batch-negatives": 3, "cosine": 2, "triplet": 3}


def encoder():
    return build().bert


def sentence_model(dtype, pooling="mean"):
    from peft import LoraConfig, get_peft_model
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work) / "tiny-bert"
        encoder().save_pretrained(folder)
        tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}))
        transformer = Transformer(str(folder), max_seq_length=MAX_LENGTH)
        model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_word_embedding_dimension(), pooling)], device="cpu")
    transformer.model = get_peft_model(transformer.model, LoraConfig(task_type="FEATURE_EXTRACTION", **LORA))
    generator = torch.Generator().manual_seed(SEED + 2)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.5 / p.shape[1] ** 0.5)
    return model.eval().to(dtype)


def loss_of(name, model):
    from sentence_transformers import losses
    from sentence_transformers.util import cos_sim
    if name.startswith("in-batch"):
        return losses.MultipleNegativesRankingLoss(model, scale=SCALE, similarity_fct=cos_sim)
    if name == "cosine":
        return losses.CosineSimilarityLoss(model)
    return losses.TripletLoss(model, distance_metric=losses.TripletDistanceMetric.COSINE, triplet_margin=MARGIN)


def features(model, count):
    return [model.tokenize([row[field] for row in ROWS]) for field in ["text", "textPair", "negative"][:count]]


def numbers(folder):
    out = fresh(folder)
    narrow = sentence_model(torch.float32)
    transformer = narrow[0].model
    transformer.peft_config["default"].base_model_name_or_path = "tiny-bert"
    transformer.save_pretrained(out / "adapter-init")
    (out / "adapter-init" / "README.md").unlink(missing_ok=True)
    gradients, results = {}, {}
    for name, count in LOSSES.items():
        model = sentence_model(torch.float64)
        trained = {n: p for n, p in model.named_parameters() if "lora_" in n}
        for n, p in model.named_parameters():
            p.requires_grad_(n in trained)
        criterion = loss_of(name, model)
        labels = torch.tensor([row["score"] for row in ROWS], dtype=torch.float64)
        run = lambda: criterion(features(model, count), labels)
        loss = run()
        loss.backward()
        gradients.update({f"{name}/{key(n.removeprefix('0.model.'))}": p.grad for n, p in trained.items()})
        optimizer = torch.optim.AdamW(trained.values(), lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weightDecay"])
        steps = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            value = run()
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), ADAMW["maxGradNorm"])
            optimizer.step()
            steps.append(value.item())
        results[name] = {"loss": loss.item(), "adamwLosses": steps}
    save_tensors(out / "gradients.safetensors", gradients)
    texts = [row[field] for row in ROWS for field in ["text", "textPair"]]
    encode = lambda pooling, normalize: sentence_model(torch.float64, pooling).encode(
        texts, batch_size=3, normalize_embeddings=normalize).tolist()
    write_json(out / "golden.json", {
        "versions": {**versions("torch", "transformers", "peft"), **versions("sentence_transformers")}, "seed": SEED, "adamw": ADAMW,
        "maxLength": MAX_LENGTH, "temperature": 1 / SCALE, "margin": MARGIN, "rows": ROWS, "losses": results, "texts": texts,
        "mean": encode("mean", True), "meanUnscaled": encode("mean", False), "cls": encode("cls", True)})
    print(results)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "embedding")
    numbers(parser.parse_args().out)


if __name__ == "__main__":
    main()
