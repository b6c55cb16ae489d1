"""A decoder of onnxruntime-genai whose rotary factors depend on the length of a run (long RoPE, as Phi-3.5), with the texts that transformers writes.

    long_rope.py [--out tests/golden/long-rope]

The switch is at 40 tokens. golden.json: prompts on either side of it and greedy tokens that stay there, and `crossing`, a text that begins before the
switch and goes on behind it: transformers reads such a text again when it crosses.
"""
import argparse
import json
import pathlib
import tempfile

import onnx
import torch

import exporters
from common import GOLDEN, fresh, save_words, versions, write_json

SWITCH = 40
PROMPTS = [[5, 17, 40, 3, 59, 33], [7, 7, 61, 12, 20, 26, 44, 9], [(7 * i + 11) % 60 + 3 for i in range(54)], [(5 * i + 3) % 60 + 3 for i in range(45)]]
NEW, CROSSING = 5, [(11 * i + 9) % 60 + 3 for i in range(36)]


def config():
    from transformers import Phi3Config
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": SWITCH, "partial_rotary_factor": 1.0,
            "short_factor": [1 + 0.05 * i for i in range(8)], "long_factor": [2 + 0.7 * i for i in range(8)]}
    return Phi3Config(vocab_size=80, bos_token_id=0, eos_token_id=1, pad_token_id=2, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                      num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6, max_position_embeddings=96,
                      original_max_position_embeddings=SWITCH, sliding_window=None, tie_word_embeddings=False, rope_parameters=rope)


exporters.BASES["long-rope"] = (config, {})


def greedy(model, prompt, count):
    """Each token with the factors of the length that the text has by then, and the smallest lead over the second token."""
    ids, lead = list(prompt), float("inf")
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[1] = -1e9  # no text ends
        top = logits.topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return ids[len(prompt):], lead


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "long-rope")
    args = parser.parse_args()
    out = fresh(args.out)
    with tempfile.TemporaryDirectory() as work:
        source, exported = pathlib.Path(work) / "tiny-long-rope", pathlib.Path(work) / "exported"
        exporters.save_base("long-rope", source)
        file = source / "config.json"  # where the builder looks for it
        content = json.loads(file.read_text())
        content["rope_scaling"] = {"type": "longrope", **content["rope_parameters"]}
        file.write_text(json.dumps(content))
        exporters.genai()(source, exported, args)
        loaded = onnx.load(exported / "model.onnx")
        (out / "onnx").mkdir()
        onnx.save(loaded, out / "onnx" / "model.onnx")
        (out / "config.json").write_text((exported / "config.json").read_text() if (exported / "config.json").exists() else file.read_text())
    save_words(out, 80)
    model = exporters.build("long-rope")
    texts = [greedy(model, prompt, NEW) for prompt in PROMPTS]
    crossing = greedy(model, CROSSING, 12)
    print(texts, crossing)
    write_json(out / "golden.json", {"versions": versions("torch", "transformers", "onnxruntime-genai"), "switch": SWITCH,
                                     "texts": [{"prompt": prompt, "tokens": tokens} for prompt, (tokens, _) in zip(PROMPTS, texts)],
                                     "crossing": {"prompt": CROSSING, "tokens": crossing[0]}})


if __name__ == "__main__":
    main()
