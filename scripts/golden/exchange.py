"""An adapter as ONNX Runtime's own Python writes it, with Olive's names and orientation.

    exchange.py [--out tests/golden/exchange]

After gguf_adapters.py: its adapter of `llama` as llama.onnx_adapter. A is transposed; B is transposed and multiplied by alpha/r.
"""
import argparse
import json
import pathlib

from safetensors.torch import load_file

from common import GOLDEN, fresh

SOURCE = GOLDEN / "gguf" / "llama"


def main():
    import onnxruntime
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "exchange")
    out = fresh(parser.parse_args().out)
    config = json.loads((SOURCE / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]
    values = {}
    for key, tensor in sorted(load_file(SOURCE / "adapter_model.safetensors").items()):
        array = tensor.T.contiguous().numpy() * (scaling if ".lora_B." in key else 1)
        values[key.removeprefix("base_model.model.")] = onnxruntime.OrtValue.ortvalue_from_numpy(array.astype("float32"))
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    adapter.export_adapter(str(out / "llama.onnx_adapter"))


if __name__ == "__main__":
    main()
