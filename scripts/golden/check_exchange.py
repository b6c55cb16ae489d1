"""Opens folders that lowrank wrote for mlx-lm in mlx-lm.

    check_exchange.py FOLDER LOGITS MODEL   needs mlx[cpu] 0.32.4 and mlx-lm 0.32.2 alone; MODEL is the folder of the base

Prints the largest difference, and exits with 1 when it is above 1e-4.
"""
import json
import pathlib
import sys


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


difference = mlx(*sys.argv[1:])
print("largest difference", difference)
sys.exit(0 if difference < 1e-4 else 1)
