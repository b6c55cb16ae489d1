"""T5 and BART exported by torch.onnx(dynamo=True), trained by lowrank, against the same models exported by optimum.

    seq2seq_dynamo.py OUT

Needs requirements.txt and onnxscript, and a build of lowrank. The models are those of tests/golden/graphs, made again
from graphs.py's seed. The losses and weights of those are PEFT's, as tests/train/tasks/seq2seq.test.ts checks.
"""
import pathlib
import shutil
import subprocess
import sys

import torch

from common import GOLDEN, fresh
from graphs import MODELS, build


def encoder_of(model):
    """The whole model with another `forward`, so that its modules keep their names."""
    model.forward = lambda input_ids, attention_mask: model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)[0]
    return model


def decoder_of(model):
    whole = model.forward
    model.forward = lambda input_ids, encoder_hidden_states, encoder_attention_mask: whole(
        decoder_input_ids=input_ids, encoder_outputs=(encoder_hidden_states,), attention_mask=encoder_attention_mask,
        use_cache=False,
    ).logits
    return model


def export(module, given, output, path):
    axes = {"input_ids": ("batch_size", "sequence_length"), "attention_mask": ("batch_size", "sequence_length")}
    if "encoder_hidden_states" in given:
        axes = {"input_ids": ("batch_size", "decoder_sequence_length")}
        axes |= {name: ("batch_size", "encoder_sequence_length") for name in given if name != "input_ids"}
    shapes = {name: {0: torch.export.Dim(batch), 1: torch.export.Dim(length)} for name, (batch, length) in axes.items()}
    torch.onnx.export(
        module, tuple(given.values()), path, dynamo=True, external_data=False, input_names=list(given),
        output_names=[output], dynamic_shapes=shapes, verbose=False)


def main():
    out = pathlib.Path(sys.argv[1])
    for name in ("t5", "bart"):
        def new():
            model = build(MODELS[name][0])
            model.set_attn_implementation("eager")
            return model

        folder = fresh(out / name)
        (folder / "onnx").mkdir()
        ids, mask = torch.randint(3, 2048, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
        encoder = {"input_ids": ids, "attention_mask": mask}
        export(encoder_of(new()), encoder, "last_hidden_state", folder / "onnx/encoder_model.onnx")
        states = {"input_ids": ids[:, :5], "encoder_hidden_states": torch.randn(2, 7, 16), "encoder_attention_mask": mask}
        export(decoder_of(new()), states, "logits", folder / "onnx/decoder_model.onnx")
        for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            if (GOLDEN / "graphs" / name / file).exists():
                shutil.copy(GOLDEN / "graphs" / name / file, folder / file)
    script = pathlib.Path(__file__).with_suffix(".mjs")
    subprocess.run(["node", script, out], check=True)


if __name__ == "__main__":
    main()
