#!/usr/bin/env python3
"""What PEFT and sentence-transformers reach on PyTorch, for run.mjs.

    peer.py {spam,similarity} CHECKPOINT GIVEN.json RESULT.json --seeds 1 2 3 [--threads N]

GIVEN.json has the rows and the settings. RESULT.json gets a list of metrics, one entry a seed. Versions: requirements.txt.
"""
import argparse, json, pathlib

import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model

LINEARS = r".*(query|key|value|attention\.output\.dense|intermediate\.dense|output\.dense)"


def lora(given, **more):
    return LoraConfig(r=given["rank"], lora_alpha=given["alpha"], lora_dropout=given["dropout"], target_modules=LINEARS, **more)


def steps(model, given, loss_of):
    """AdamW, a linear schedule without warm-up, and clipping, over seeded batches."""
    settings = given["settings"]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings["learningRate"], weight_decay=given["weightDecay"])
    total, size = settings["maxSteps"], settings["batchSize"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    order = []
    model.train()
    for _ in range(total):
        if len(order) < size:
            order = torch.randperm(len(given["data"])).tolist()
        rows, order = [given["data"][i] for i in order[:size]], order[size:]
        loss_of(rows).backward()
        torch.nn.utils.clip_grad_norm_(parameters, given["maxGradNorm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def spam(checkpoint, given):
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    base = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    # The exported graph ends at the hidden states, so its pooler is new.
    torch.nn.init.normal_(base.bert.pooler.dense.weight, std=base.config.initializer_range)
    torch.nn.init.zeros_(base.bert.pooler.dense.bias)
    model = get_peft_model(base, lora(given, task_type="SEQ_CLS", modules_to_save=["pooler", "classifier"]))
    labels = sorted({row["label"] for row in given["data"]})

    def run(rows):
        texts = [row["text"] for row in rows]
        tokens = tokenizer(texts, truncation=True, max_length=given["settings"]["maxLength"], padding=True, return_tensors="pt")
        return model(**tokens, labels=torch.tensor([labels.index(row["label"]) for row in rows]))

    steps(model, given, lambda rows: run(rows).loss)
    found, wanted = [], [labels.index(row["label"]) for row in given["evalData"]]
    with torch.no_grad():
        for i in range(0, len(wanted), 32):
            found += run(given["evalData"][i:i + 32]).logits.argmax(-1).tolist()
    return {"accuracy": accuracy_score(wanted, found), "f1": f1_score(wanted, found, average="macro")}


def similarity(checkpoint, given):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    model = SentenceTransformer(checkpoint, device="cpu", model_kwargs={"attn_implementation": "sdpa"})
    model.max_seq_length = given["settings"]["maxLength"]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if type(module).__name__.endswith("SelfAttention") and hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    # Its own add_adapter refuses this version of PEFT.
    model.requires_grad_(False)
    inject_adapter_in_model(lora(given), model[0].model)
    loss = MultipleNegativesRankingLoss(model)

    def tokens(rows, field):
        return model.tokenize([row[field] for row in rows])

    steps(model, given, lambda rows: loss([tokens(rows, "text"), tokens(rows, "textPair")], None))
    rows = given["evalData"]
    evaluator = InformationRetrievalEvaluator(
        {str(i): row["text"] for i, row in enumerate(rows)}, {str(i): row["textPair"] for i, row in enumerate(rows)},
        {str(i): {str(i)} for i in range(len(rows))}, accuracy_at_k=[1, 10], precision_recall_at_k=[1, 10],
        mrr_at_k=[len(rows)], ndcg_at_k=[10], map_at_k=[10], show_progress_bar=False)
    result = evaluator(model)
    return {"recall@1": result["cosine_recall@1"], "recall@10": result["cosine_recall@10"], "mrr": result[f"cosine_mrr@{len(rows)}"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("spam", "similarity"))
    parser.add_argument("checkpoint")
    parser.add_argument("given", type=pathlib.Path)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = json.loads(args.given.read_text())
    results = []
    for seed in args.seeds:
        torch.manual_seed(seed)
        results.append({"spam": spam, "similarity": similarity}[args.name](args.checkpoint, given))
        print(args.name, "peer, seed", seed, results[-1], flush=True)
    args.result.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
