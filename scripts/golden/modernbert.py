"""A tiny ModernBERT for text classification, with the mean of all tokens: optimum's export of its encoder, and PEFT's and PyTorch's numbers.

    modernbert.py [--out tests/golden/modernbert] [--optimum PYTHON]

ONNX Runtime's converter makes float16 of it: with inputs and outputs as they were (model_fp16), and with these in float16 too (model_fp16_io).
--optimum: the Python of a virtual environment with requirements-optimum.txt. ../../tests/golden/README.md explains the folder.
"""
import argparse
import json
import pathlib
import tempfile

import onnx
import torch

import text_classification as text
from common import GOLDEN
from exporters import call, shape_like_hub


def build(dtype=torch.float32):
    """ModernBertForSequenceClassification with random weights. Each token of these rows sees a real one, as far as it looks: else float64 gives NaN."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification
    config = ModernBertConfig(
        vocab_size=text.tokenizer().get_vocab_size(), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, local_attention=24,
        max_position_embeddings=32, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, classifier_pooling="mean",
        id2label=dict(enumerate(text.LABELS)), label2id={label: i for i, label in enumerate(text.LABELS)}, attn_implementation="eager")
    model = ModernBertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(text.SEED)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(0.1 * noise + (1 if "norm" in name else 0))
            else:
                p.copy_(noise * (0.3 if "embeddings" in name else 1.2 / p.shape[1] ** 0.5))
    return model.eval().to(dtype)


def halves(folder):
    """model_fp16.onnx and model_fp16_io.onnx beside model.onnx."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    for name, keeps in (("model_fp16", True), ("model_fp16_io", False)):
        onnx.save(convert_float_to_float16(onnx.load(folder / "model.onnx"), keep_io_types=keeps), folder / f"{name}.onnx")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "modernbert")
    parser.add_argument("--optimum", default="python", help="Python with requirements-optimum.txt")
    args = parser.parse_args()
    text.build, text.LORA = build, {"r": 3, "lora_alpha": 6, "target_modules": ["Wqkv", "Wo", "Wi"]}
    tensors = text.tensors
    text.tensors = lambda: {name: rows for name, rows in tensors().items() if name != "token_type_ids"}
    model = build()
    with tempfile.TemporaryDirectory() as work:
        folder, exported = pathlib.Path(work) / "tiny-modernbert", pathlib.Path(work) / "exported"
        model.model.save_pretrained(folder)
        text.tokenizer().save(str(folder / "tokenizer.json"))
        names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
        special = {f"{kind}_token": token for kind, token in names.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
        call(args.optimum, "-m", "optimum.exporters.onnx", "--model", folder, "--task", "feature-extraction", "--dtype", "fp32", exported)
        shape_like_hub(folder, exported, args.out)
    config = json.loads((args.out / "config.json").read_text())
    config["_name_or_path"] = "tiny-modernbert"
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(text.check(args.out / "onnx" / "model.onnx", lambda **x: model.model(**x).last_hidden_state))
    halves(args.out / "onnx")
    text.numbers(["classifier", "head"], args.out / "golden")
    adapter = args.out / "golden" / "adapter-init" / "adapter_config.json"
    adapter.write_text(adapter.read_text().replace("tiny-bert", "tiny-modernbert"))


if __name__ == "__main__":
    main()
