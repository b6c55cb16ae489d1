"""Vectors by sentence-transformers' `encode` of tiny BERTs, one for each field of a saved folder that decides a vector.

    sentence_modules.py [--out tests/golden/embedding/modules.json]

The BERT is that of tests/golden/text-classification/encoder. Each case has the files that `save` writes beside the
weights of the BERT: JSON as text, weights in base64. Needs requirements.txt and sentence-transformers==6.2.0.
"""
import argparse
import base64
import json
import pathlib
import tempfile

import torch

from common import GOLDEN, versions, write_json
from embedding import SPECIAL, encoder
from text_classification import SEED, tokenizer

TEXTS = ["The sea was calm.", "she said it", "Rain came, and the night came and the ship went and the whale saw it"]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
PROMPT = {"prompts": {"query": "the king: ", "document": ""}, "default_prompt_name": "query"}
OWN = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "special_tokens_map.json"}


def dense(generator, k, d, activation, **more):
    from sentence_transformers.sentence_transformer.modules import Dense
    module = Dense(k, d, activation_function=activation, **more)
    with torch.no_grad():
        for _, p in sorted(module.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module


def cases():
    from sentence_transformers.sentence_transformer.modules import Normalize
    random = torch.Generator().manual_seed(SEED + 3)
    for mode in MODES:
        yield mode, mode, [], {}
    yield "two modes", ("cls", "mean"), [], {}
    yield "normalize", "mean", [Normalize()], {}
    yield "dense", "mean", [dense(random, 16, 6, torch.nn.Tanh())], {}
    # As EmbeddingGemma has them.
    two = [dense(random, 16, 24, torch.nn.Identity(), bias=False), dense(random, 24, 16, torch.nn.Identity(), bias=False)]
    yield "two dense", "mean", [*two, Normalize()], {}
    yield "dense after normalize", "cls", [Normalize(), dense(random, 16, 5, torch.nn.ReLU())], {}
    yield "residual", "lasttoken", [dense(random, 16, 16, torch.nn.Sigmoid(), use_residual=True)], {}
    yield "wide residual", "mean", [dense(random, 16, 4, torch.nn.Tanh(), use_residual=True)], {}
    yield "model_max_length", "mean", [], {"length": 6}
    yield "prompt", "mean", [], {"prompt": PROMPT}
    yield "prompts without default", "mean", [], {"prompt": {"prompts": PROMPT["prompts"]}}
    for mode in MODES:
        yield f"{mode} without the prompt", mode, [], {"prompt": PROMPT, "include_prompt": False}


def saved(folder):
    files = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name in OWN:
            continue
        files[name] = path.read_text() if path.suffix == ".json" else base64.b64encode(path.read_bytes()).decode()
    return files


def main():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "embedding" / "modules.json")
    found = {}
    with tempfile.TemporaryDirectory() as work:
        base = pathlib.Path(work) / "tiny-bert"
        encoder().save_pretrained(base)
        tokenizer().save(str(base / "tokenizer.json"))
        (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}))
        for name, mode, modules, more in cases():
            transformer = Transformer(str(base), max_seq_length=more.get("length", 24))
            pooling = Pooling(16, mode, include_prompt=more.get("include_prompt", True))
            model = SentenceTransformer(modules=[transformer, pooling, *modules], device="cpu", **more.get("prompt", {}))
            model.save(f"{work}/saved-{name}")
            again = SentenceTransformer(f"{work}/saved-{name}", device="cpu")
            vectors = again.encode(TEXTS, batch_size=3)
            found[name] = {"files": saved(f"{work}/saved-{name}"), "vectors": vectors.tolist()}
    write_json(parser.parse_args().out, {"versions": versions("sentence_transformers", "transformers"), "texts": TEXTS, **found})


if __name__ == "__main__":
    main()
