"""ONNX Runtime's own LoraAdapter runs .onnx_adapter files of lowrank on graphs of `lowrank lora-inputs`.

    node scripts/golden/lora_inputs.mjs OUT && python scripts/golden/lora_inputs.py OUT [--write]

The logits go to tests/golden/lora-inputs.json, with a digest of the graph that gave them.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden/lora-inputs.json"
out = Path(sys.argv[1])
graph = out / "model/onnx/model.onnx"
session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
given = json.loads((out / "feeds.json").read_text())
feeds = {name: np.array(value["data"], dtype=np.int64).reshape(value["dims"]) for name, value in given.items()}
for one in session.get_inputs():
    if one.name not in feeds:
        # An empty cache.
        shape = [dim if isinstance(dim, int) else int("batch" in dim) for dim in one.shape]
        feeds[one.name] = np.zeros(shape, dtype=np.float32)


def logits(adapter):
    options = ort.RunOptions()
    if adapter is not None:
        held = ort.LoraAdapter()
        held.Load(str(adapter))
        options.add_active_adapter(held)
    return session.run(["logits"], feeds, options)[0][0, -1]


golden = {"sha256": hashlib.sha256(graph.read_bytes()).hexdigest()}
here = json.loads((out / "here.json").read_text())
for name in ["base", *sorted(path.stem for path in out.glob("*.onnx_adapter"))]:
    there = logits(None if name == "base" else out / f"{name}.onnx_adapter")
    worst = np.abs(there - np.array(here[name], dtype=np.float32)).max()
    print(f"{name}: logits differ by {worst:.2e}")
    assert worst < 1e-4, name
    golden[name] = [float(value) for value in there[:16]]
assert golden["base"] != golden["f32"]
if "--write" in sys.argv:
    GOLDEN.write_text(json.dumps(golden) + "\n")
