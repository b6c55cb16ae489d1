"""Vectors by sentence-transformers' `encode` of tiny models shaped as Qwen3-Embedding and EmbeddingGemma, with their exports by torch.onnx.

    sentence_decoders.py [--out tests/golden/sentence-decoders]

`qwen3`: a causal decoder, the last token (an end token that the tokenizer adds), Normalize, padding on the left. `gemma3`: attention in both directions,
the mean, two Dense modules, Normalize, a default prompt. `lower`: qwen3 with do_lower_case, and a tokenizer that knows no capitals. `gemma3-whole` has
one graph with all modules, as onnx-community publishes EmbeddingGemma. `gemma3-training`: an adapter by PEFT on `gemma3`, with losses, gradients and
steps of sentence-transformers in float64, and the vectors that `encode` gives with the adapter.
Needs requirements.txt and sentence-transformers==6.2.0.
"""
import argparse
import pathlib
import shutil
import tempfile

import onnx
import torch

from common import ADAMW, GOLDEN, adamw_steps, adapt, all_double, fresh, save_adapter, save_tensors, trainable, versions, write_json
from sentence_modules import dense

SEED = 41
WORDS = "the sea was calm she said it Rain rain came and night went whale saw king a good day query : task".split()
TEXTS = ["the sea was calm", "she said it", "Rain came and the night came and the whale saw it", "A GOOD day"]
ROWS = [
    {"text": "the sea was calm", "textPair": "the whale saw a calm sea", "negative": "Rain came and night came", "score": 0.9},
    {"text": "she said it", "textPair": "it was said", "negative": "the king saw it", "score": 0.4},
    {"text": "a good day and the sea", "textPair": "night came", "negative": "whale and rain", "score": -0.2},
    {"text": "and the king was good", "textPair": "a king said it", "negative": "whale and sea and day", "score": 0.1},
]
LOSSES, STEPS, SCALE, MARGIN = {"in-batch": 2, "in-batch-negatives": 3, "cosine": 2, "triplet": 3}, 5, 20.0, 0.2
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = {"prompts": {"query": "task : query ", "document": ""}, "default_prompt_name": "query"}


def tokenizer(folder, ends):
    """Words, with <eos> after each text if it `ends` texts, as Qwen3-Embedding has it, else also <bos> before, as Gemma."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *dict.fromkeys(WORDS)])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = "$A <eos>" if ends else "<bos> $A <eos>"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<eos>", 1), ("<bos>", 2)])
    made.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
                                   padding_side="left" if ends else "right", model_max_length=48)
    fast.save_pretrained(folder)


def model_of(name):
    from transformers import Gemma3TextConfig, Gemma3TextModel, Qwen3Config, Qwen3Model
    sizes = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2 if name == "gemma3" else 1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
                 max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=2, attn_implementation="eager")
    config = Gemma3TextConfig(**sizes, use_bidirectional_attention=True, sliding_window=5, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8) if name == "gemma3" else Qwen3Config(**sizes)
    model = (Gemma3TextModel if name == "gemma3" else Qwen3Model)(config)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() == 1 else 1.5 / p.shape[1] ** 0.5) + (1 if p.dim() == 1 and name != "gemma3" else 0))
    return model.eval()


def with_vectors(model, modules):
    """The model with another `forward`: the vectors of tokens, and if Dense modules follow, those of texts. Modules keep their names."""
    whole = model.forward
    for place, module in enumerate(modules, 2):
        model.add_module(str(place), module)

    def forward(input_ids, attention_mask):
        tokens = whole(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        if not modules:
            return tokens
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        vectors = (tokens * weights).sum(1) / weights.sum(1)
        for module in modules:
            vectors = module({"sentence_embedding": vectors})["sentence_embedding"]
        return tokens, torch.nn.functional.normalize(vectors, dim=-1)

    model.forward = forward
    return model.eval()


def export(model, path, modules=()):
    ids = torch.randint(4, 20, (2, 7))
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    path.parent.mkdir(parents=True)
    torch.onnx.export(with_vectors(model, modules), (ids, torch.ones_like(ids)), path, dynamo=True, external_data=False, input_names=["input_ids", "attention_mask"],
                      output_names=["last_hidden_state", "sentence_embedding"] if modules else ["last_hidden_state"], verbose=False, dynamic_shapes={"input_ids": axes, "attention_mask": axes})
    exported = onnx.load(path)
    for node in exported.graph.node:  # of what the exporter tells of nodes, only the modules that they are in
        kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(exported, path)


def loss_of(name, model):
    from sentence_transformers import losses
    from sentence_transformers.util import cos_sim
    if name == "cosine":
        return losses.CosineSimilarityLoss(model)
    if name == "triplet":
        return losses.TripletLoss(model, distance_metric=losses.TripletDistanceMetric.COSINE, triplet_margin=MARGIN)
    return losses.MultipleNegativesRankingLoss(model, scale=SCALE, similarity_fct=cos_sim)


def training(saved, folder):
    """Numbers of an adapter on the model of `saved`."""
    from sentence_transformers import SentenceTransformer

    def start(dtype):
        model = SentenceTransformer(str(saved), device="cpu")
        transformer = model[0]
        transformer.model = adapt(transformer.model, SEED, 0.3, name="tiny-gemma3", r=2, lora_alpha=4, target_modules=TARGETS, task_type="FEATURE_EXTRACTION")
        for module in list(model)[1:]:
            module.requires_grad_(False)
        return model.eval().to(dtype)

    narrow = start(torch.float32)
    save_adapter(narrow[0].model, folder / "adapter-init")
    prompt = PROMPT["prompts"]["query"]
    gradients, results = {}, {}
    for name, count in LOSSES.items():
        model = start(torch.float64)
        parameters = {key.removeprefix("0.model."): p for key, p in trainable(model).items()}
        given = [model.tokenize([prompt + row[field] for row in ROWS]) for field in ["text", "textPair", "negative"][:count]]
        criterion = loss_of(name, model)
        labels = torch.tensor([row["score"] for row in ROWS], dtype=torch.float64)
        with all_double():
            run = lambda _: criterion([dict(part) for part in given], labels)
            run(0).backward()
            gradients |= {f"{name}/{key}": p.grad.clone() for key, p in parameters.items()}
            losses, _ = adamw_steps(parameters.values(), run, STEPS)
        results[name] = {"loss": losses[0], "adamwLosses": losses}
    save_tensors(folder / "gradients.safetensors", gradients)
    write_json(folder / "golden.json", {
        "versions": versions("torch", "transformers", "peft", "sentence_transformers"), "adamw": ADAMW, "temperature": 1 / SCALE, "margin": MARGIN,
        "rows": ROWS, "losses": results, "adapted": narrow.encode(TEXTS, batch_size=4).tolist()})
    print(results)


def main():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "sentence-decoders")
    out = fresh(parser.parse_args().out)
    random = torch.Generator().manual_seed(SEED)
    found = {}
    for name in ("qwen3", "gemma3", "lower"):
        with tempfile.TemporaryDirectory() as work:
            base, saved = pathlib.Path(work) / name, pathlib.Path(work) / "saved"
            model = model_of(name)
            model.save_pretrained(base)
            tokenizer(base, ends=name != "gemma3")
            transformer = Transformer(str(base), do_lower_case=name == "lower")
            if name == "gemma3":
                two = [dense(random, 16, 24, torch.nn.Identity(), bias=False), dense(random, 24, 12, torch.nn.Identity(), bias=False)]
                modules, more = [Pooling(16, "mean"), *two], PROMPT
            else:
                modules, more = [Pooling(16, "lasttoken")], {}
            SentenceTransformer(modules=[transformer, *modules, Normalize()], device="cpu", **more).save(str(saved))
            found[name] = SentenceTransformer(str(saved), device="cpu").encode(TEXTS, batch_size=4).tolist()
            if name == "gemma3":
                training(saved, fresh(out / "gemma3-training"))
                export(model_of(name), out / "gemma3-whole" / "onnx" / "model.onnx", two)
            for file in saved.rglob("*"):
                if file.is_file() and file.name not in ("README.md", "model.safetensors") or "Dense" in str(file.parent):
                    target = out / name / file.relative_to(saved)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
            if name == "lower":
                shutil.rmtree(out / name / "onnx", ignore_errors=True)
            else:
                export(model, out / name / "onnx" / "model.onnx")
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "sentence_transformers"), "texts": TEXTS, **found})


if __name__ == "__main__":
    main()
