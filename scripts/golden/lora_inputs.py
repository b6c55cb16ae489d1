"""ONNX Runtime's own LoraAdapter runs .onnx_adapter files of lowrank on graphs of `lowrank lora-inputs`.

    node scripts/golden/lora_inputs.mjs OUT && python scripts/golden/lora_inputs.py OUT [--write]

The logits on models/union-3m go to tests/golden/lora-inputs.json, with a digest of the graph that gave them.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden/lora-inputs.json"


def logits(session, feeds, adapter):
    options = ort.RunOptions()
    if adapter is not None:
        held = ort.LoraAdapter()
        held.Load(str(adapter))
        options.add_active_adapter(held)
    return session.run(["logits"], feeds, options)[0][0, -1]


def check(out):
    """Differences between both, and ONNX Runtime's logits by adapter."""
    graph = out / "model/onnx/model.onnx"
    options = ort.SessionOptions()
    options.log_severity_level = 3  # the inputs have zeros as their default
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    config = json.loads((out / "model/config.json").read_text())
    ids = json.loads((out / "ids.json").read_text())
    known = {"input_ids": ids, "attention_mask": [1] * len(ids), "position_ids": range(len(ids))}
    feeds = {}
    for one in session.get_inputs():
        if one.name in known:
            feeds[one.name] = np.array([known[one.name]], dtype=np.int64)
        elif not one.name.endswith(("lora_A.weight", "lora_B.weight")):
            # An empty cache. The convolutions of LFM2 have a fixed length.
            width = {"batch_size": 1, "kv_cache_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]}
            shape = [dim if isinstance(dim, int) else width.get(dim, 0) for dim in one.shape]
            feeds[one.name] = np.zeros(shape, dtype=np.float32)
    golden = {"sha256": hashlib.sha256(graph.read_bytes()).hexdigest()}
    here = json.loads((out / "here.json").read_text())
    for name in ["base", *sorted(path.stem for path in out.glob("*.onnx_adapter"))]:
        there = logits(session, feeds, None if name == "base" else out / f"{name}.onnx_adapter")
        worst = np.abs(there - np.array(here[name], dtype=np.float32)).max()
        print(f"{out.name}, {name}: logits differ by {worst:.2e}")
        assert worst < 1e-4, name
        golden[name] = [float(value) for value in there[:16]]
        assert name == "base" or golden["base"] != golden[name], name
    return golden


out = Path(sys.argv[1])
goldens = {folder.name: check(folder) for folder in sorted(out.iterdir())}
assert set(goldens) == {"union", "lfm2", "phi3"}
if "--write" in sys.argv:
    GOLDEN.write_text(json.dumps(goldens["union"]) + "\n")
