"""A tiny OLMo 3 by torch.onnx's dynamo exporter, with PyTorch's logits and PEFT's, its loss and gradients, and a classifier's.

    olmo3.py [--out tests/golden/olmo3]

`logits.safetensors`: the last tokens' logits without and with the adapter, `loss` of IDS with it, and `gradient/…` of its factors.
`classifier/`: an adapter of Olmo3ForSequenceClassification over the same decoder, with `logits` of its labels.
"""
import argparse
import pathlib
import tempfile

import onnx
import torch

import exporters
from common import GOLDEN, adapt, fresh, last_logits, save_adapter, save_tensors, trainable
from genai_decoders import IDS, SEED, SPECIAL

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(**changes):
    from transformers import Olmo3Config
    return Olmo3Config(**SPECIAL, hidden_size=32, sliding_window=64, layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False, **changes)


def classifier():
    """The same decoder with a head for three labels."""
    from transformers import Olmo3ForSequenceClassification
    model = Olmo3ForSequenceClassification._from_config(config(num_labels=3), attn_implementation="eager").eval()
    model.model.load_state_dict(exporters.build("olmo3").model.state_dict())
    torch.manual_seed(SEED)
    torch.nn.init.normal_(model.score.weight)
    return model


def named_alone(path):
    """Of what the exporter tells of nodes, only the modules that they are in."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "olmo3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    exporters.BASES["olmo3"] = (config, {})
    out = fresh(args.out)
    with tempfile.TemporaryDirectory() as work:
        source, exported = pathlib.Path(work) / "tiny-olmo3", pathlib.Path(work) / "exported"
        exporters.save_base("olmo3", source)
        exporters.dynamo(source, exported, args)
        named_alone(exported / "model.onnx")
        exporters.shape_like_hub(source, exported, out)
    for unread in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):  # no text is read
        (out / unread).unlink(missing_ok=True)
    ids = torch.tensor(IDS)
    adapted = adapt(exporters.build("olmo3"), SEED, 0.3, name="tiny-olmo3", r=2, lora_alpha=4, target_modules=TARGETS)
    save_adapter(adapted, out / "golden/adapter")
    loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    grads = {f"gradient/{key}": parameter.grad for key, parameter in trainable(adapted).items()}
    labelled = adapt(classifier(), SEED, 0.3, name="tiny-olmo3", r=2, lora_alpha=4, target_modules=["q_proj"], task_type="SEQ_CLS")
    save_adapter(labelled, out / "golden/classifier")
    with torch.no_grad():
        labels = labelled.double()(input_ids=ids).logits
    save_tensors(out / "golden/logits.safetensors", {
        "base": last_logits(exporters.build("olmo3"), IDS), "adapted": last_logits(adapted, IDS), "loss": loss.reshape(1), "labels": labels, **grads})


if __name__ == "__main__":
    main()
