"""Tiny MPNet, ELECTRA and DeBERTa-v2 for labels of texts and of words, and for vectors: optimum's exports, and PEFT's and PyTorch's numbers.

    encoder_families.py [--out tests/golden/encoder-families] [--optimum PYTHON] [NAME …]

Each has a tokenizer of the kind that its models on the Hub have. --optimum: the Python of a virtual environment with
requirements-optimum.txt. ../../tests/golden/README.md explains the folder.
"""
import argparse
import json
import pathlib
import tempfile

import torch

import embedding
import text_classification as text
import token_classification as tokens
from common import GOLDEN, fresh, write_json
from exporters import call, shape_like_hub

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = [".", ",", "!", "?"]
COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_dropout_prob": 0.0,
          "attention_probs_dropout_prob": 0.0}


def mpnet_tokenizer():
    """WordPiece, with RoBERTa's special tokens and pairs. Token 1 fills up: MPNet counts positions from there."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [w for w in text.WORDS if len(w) > 1]
    names = [*special, "[UNK]", *MARKS, *LETTERS, *(f"##{c}" for c in LETTERS), *words, "<mask>"]
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    made.add_special_tokens([*special, "<mask>"])
    return made


def deberta_tokenizer():
    """Unigram over SentencePiece's pieces."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    letters = [*LETTERS, *LETTERS.upper()]
    pieces = [(token, 0.0) for token in special]
    pieces += [(f"▁{word}", -3.0 - 0.1 * i) for i, word in enumerate(w for w in text.WORDS if len(w) > 1)]
    pieces += [(letter, -6.0 - 0.01 * i) for i, letter in enumerate(["▁", *letters, *MARKS])]
    made = Tokenizer(models.Unigram([*pieces, ("[MASK]", 0.0)], unk_id=3, byte_fallback=False))
    made.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.add_special_tokens([*special, "[MASK]"])
    return made


BERT_SPECIAL = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
MPNET_SPECIAL = {"unk_token": "[UNK]", "cls_token": "<s>", "bos_token": "<s>", "sep_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>",
                 "mask_token": "<mask>"}
FAMILIES = {
    "mpnet": {
        "type": "mpnet", "has_types": False, "classes": "MPNet", "config": {"max_position_embeddings": 34, "pad_token_id": 1},
        "tokenizer": mpnet_tokenizer, "tokenizer_class": "MPNetTokenizer", "special": MPNET_SPECIAL, "encoder": "mpnet",
        "targets": ["attn.q", "attn.v", "attn.o", "output.dense"], "saved": ["classifier"]},
    "electra": {
        "type": "electra", "has_types": True, "classes": "Electra", "config": {"embedding_size": 8, "max_position_embeddings": 32, "pad_token_id": 0},
        "tokenizer": text.tokenizer, "tokenizer_class": "ElectraTokenizer", "special": BERT_SPECIAL, "encoder": "electra",
        "targets": ["query", "value", "output.dense", "embeddings_project"], "saved": ["classifier"]},
    "deberta-v2": {  # settings of DeBERTa-v3: positions are distances alone, and share the projections of the tokens
        "type": "deberta-v2", "has_types": False, "classes": "DebertaV2", "config": {
            "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4, "max_relative_positions": -1, "share_att_key": True,
            "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0, "layer_norm_eps": 1e-7,
            "max_position_embeddings": 32, "pooler_hidden_size": 16, "pooler_hidden_act": "gelu", "pooler_dropout": 0.0, "pad_token_id": 0},
        "tokenizer": deberta_tokenizer, "tokenizer_class": "DebertaV2Tokenizer", "special": BERT_SPECIAL, "encoder": "deberta",
        "targets": ["query_proj", "key_proj", "value_proj", "output.dense"], "saved": ["classifier", "pooler"]},
}


def build(family, ending, labels, seed, dtype=torch.float32):
    """A model of transformers with random weights, made in the order of the parameters' names: those of the encoder are the same for all tasks."""
    import transformers
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = transformers.AutoConfig.for_model(family["type"], **{**COMMON, **family["config"]}, vocab_size=family["tokenizer"]().get_vocab_size(), **names)
    model = getattr(transformers, f"{family['classes']}For{ending}")._from_config(config, attn_implementation="eager")
    encoder = getattr(model, family["encoder"])
    tokens.fill(encoder, text.SEED)
    inner = {id(p) for p in encoder.parameters()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            if id(p) not in inner:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.1 if p.dim() == 1 else 1.2 / p.shape[-1] ** 0.5))
    return model.eval().to(dtype)


TENSORS = text.tensors


def use(family):
    """The golden scripts of other tasks work on this family from here on."""
    left_out = () if family["has_types"] else ("token_type_ids",)
    text.tensors = lambda: {name: rows for name, rows in TENSORS().items() if name not in left_out}
    pad = family["tokenizer"]().token_to_id(family["special"]["pad_token"])
    text.build = lambda dtype=torch.float32: build(family, "SequenceClassification", text.LABELS, text.SEED + 5, dtype)
    text.tokenizer, text.PAD = family["tokenizer"], pad
    text.LORA = {"r": 3, "lora_alpha": 6, "target_modules": family["targets"]}
    tokens.build = lambda kind, dtype=torch.float32: build(family, "TokenClassification", tokens.LABELS, tokens.SEED, dtype)
    tokens.LORA = {family["type"]: family["targets"]}
    embedding.encoder = lambda: getattr(text.build(), family["encoder"])
    embedding.tokenizer, embedding.SPECIAL = family["tokenizer"], family["special"]
    embedding.LORA = {"r": 3, "lora_alpha": 6, "target_modules": family["targets"]}


def export(family, model, task, out, optimum):
    with tempfile.TemporaryDirectory() as work:
        folder, exported = pathlib.Path(work) / f"tiny-{family['type']}", pathlib.Path(work) / "exported"
        model.save_pretrained(folder)
        family["tokenizer"]().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": family["tokenizer_class"], **family["special"]}))
        call(optimum, "-m", "optimum.exporters.onnx", "--model", folder, "--task", task, "--dtype", "fp32", exported)
        shape_like_hub(folder, exported, out)
        # optimum writes the tokenizer anew
        family["tokenizer"]().save(str(out / "tokenizer.json"))
    config = json.loads((out / "config.json").read_text())
    config["_name_or_path"] = f"tiny-{family['type']}"
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def rename(folder, family):
    path = folder / "adapter-init" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = f"tiny-{family['type']}"
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "encoder-families")
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    for name in args.names or FAMILIES:
        family, out = FAMILIES[name], fresh(args.out / name)
        use(family)
        model = text.build()
        encoder = getattr(model, family["encoder"])
        export(family, encoder, "feature-extraction", out / "encoder", args.optimum)
        export(family, model, "text-classification", out / "classifier", args.optimum)
        print(text.check(out / "encoder" / "onnx" / "model.onnx", lambda **x: encoder(**x).last_hidden_state))
        print(text.check(out / "classifier" / "onnx" / "model.onnx", lambda **x: model(**x).logits))
        text.numbers(family["saved"], out / "texts")
        tokens.numbers(family["type"], fresh(out / "words"))
        embedding.numbers(out / "vectors")
        for part in ["texts", "words", "vectors"]:
            rename(out / part, family)


if __name__ == "__main__":
    main()
