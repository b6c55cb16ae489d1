"""Blocks of GGUF files and their values, by gguf-py.

    pip install gguf==0.19.0 && python scripts/golden/gguf_blocks.py

Writes tests/golden/gguf-merge/blocks.json: for each type, blocks of random bytes with what they mean, and values with the
blocks that gguf-py writes for them, in base64.
"""

import base64
import json
from pathlib import Path

import gguf
import numpy as np

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]
WRITTEN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]

rng = np.random.default_rng(7)


def text(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def halves_are_finite(blocks, places):
    """Sets the scales of blocks of random bytes to ordinary numbers."""
    for place in places:
        scales = rng.normal(size=len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks


SCALES = {"Q6_K": [208], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2]}

# Ordinary values, one block of zeros, ties between a largest and a smallest value, tiny and large ones.
values = np.concatenate(
    [
        rng.normal(size=(6, 256)),
        np.zeros((1, 256)),
        np.tile([1, -1, 0.5, -0.5], (1, 64)),
        rng.normal(size=(1, 256)) * 1e-6,
        rng.normal(size=(1, 256)) * 1e3,
        np.abs(rng.normal(size=(1, 256))) + 1,
    ]
).astype(np.float32)

result = {"values": text(values), "types": {}}
for name in TYPES:
    kind = gguf.GGMLQuantizationType[name]
    size, byte_length = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(512 // size, byte_length), dtype=np.uint8)
    blocks = halves_are_finite(blocks, SCALES.get(name, [0]))
    entry = {"blocks": text(blocks), "means": text(gguf.quants.dequantize(blocks, kind).astype(np.float32))}
    if name in WRITTEN:
        entry["written"] = text(gguf.quants.quantize(values, kind))
    result["types"][name.lower()] = entry

path = Path(__file__).parent.parent.parent / "tests/golden/gguf-merge/blocks.json"
path.write_text(json.dumps(result, indent=1) + "\n")
