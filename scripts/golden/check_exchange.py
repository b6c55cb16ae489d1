"""Opens what lowrank wrote: .onnx_adapter files in ONNX Runtime, folders for mlx-lm in mlx-lm.

    check_exchange.py onnx FILE              needs requirements.txt; FILE is tests/golden/gguf/llama by `lowrank convert --to onnx-adapter`
    check_exchange.py mlx FOLDER LOGITS MODEL   needs mlx[cpu] 0.32.4 and mlx-lm 0.32.2 alone; MODEL is the folder of the base

Prints the largest difference, and exits with 1 when it is above 1e-4.
"""
import json
import pathlib
import sys


def onnx(file):
    import numpy
    import onnxruntime
    # The arrays are views of the adapter's memory: it must live as long as they do.
    adapters = [onnxruntime.AdapterFormat.read_adapter(str(path))
                for path in (file, pathlib.Path(__file__).parents[2] / "tests/golden/exchange/llama.onnx_adapter")]
    got, expected = ({k: v.numpy() for k, v in adapter.get_parameters().items()} for adapter in adapters)
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    return max(float(numpy.abs(got[k] - expected[k]).max()) for k in got)


def mlx(folder, logits, model):
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model
    expected = json.loads(pathlib.Path(logits).read_text())
    loaded, _ = load_model(pathlib.Path(model), lazy=False)
    of = lambda: loaded(mx.array([expected["tokens"]]))[0, -1].astype(mx.float32)
    base = of()
    loaded = load_adapters(loaded, folder)
    loaded.eval()
    got = of()
    off = lambda values, wanted: float(mx.abs(values - mx.array(wanted)).max())
    print("base", off(base, expected["base"]), "adapter changes", off(got, expected["base"]))
    return off(got, expected["logits"])


difference = {"onnx": onnx, "mlx": mlx}[sys.argv[1]](*sys.argv[2:])
print("largest difference", difference)
sys.exit(0 if difference < 1e-4 else 1)
