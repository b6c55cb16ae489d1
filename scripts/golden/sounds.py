"""What transformers' WhisperFeatureExtractor makes of sounds.

    sounds.py [--out tests/golden/sounds]

../../tests/golden/README.md explains the folder.
"""
import argparse
import pathlib

import numpy as np
import torch

from common import GOLDEN, fresh, save_tensors, versions, write_json

CASES = {  # name: (settings of the extractor, number of samples)
    "short": ({"feature_size": 80, "chunk_length": 1}, 9000),
    "long": ({"feature_size": 128, "chunk_length": 1}, 20000),
    "other": ({"feature_size": 40, "chunk_length": 2, "sampling_rate": 8000, "hop_length": 100, "n_fft": 256}, 15999),
}


def sound(count):
    """Two tones, one that rises, and silence in the middle."""
    at = np.arange(count, dtype=np.float64)
    tones = 0.4 * np.sin(0.05 * at) + 0.2 * np.sin(1.3 * at) + 0.1 * np.sin(2e-5 * at * at)
    return np.where((at > 4000) & (at < 5000), 0, tones).astype(np.float32)


def main():
    from transformers import WhisperFeatureExtractor
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "sounds")
    args = parser.parse_args()
    fresh(args.out)
    tensors = {}
    for name, (settings, count) in CASES.items():
        extractor = WhisperFeatureExtractor(**settings)
        # numpy's way computes in float64; PyTorch's differs from it by 1e-5.
        given = np.zeros(extractor.n_samples, np.float32)
        given[:count] = sound(count)[: extractor.n_samples]
        made = extractor._np_extract_fbank_features(given[None], "cpu")[0]
        public = extractor(sound(count), sampling_rate=extractor.sampling_rate, return_tensors="np").input_features[0]
        assert np.abs(made - public).max() < 1e-4, np.abs(made - public).max()
        tensors[name] = torch.from_numpy(made.astype(np.float32))
    save_tensors(args.out / "features.safetensors", tensors)
    write_json(args.out / "golden.json", {
        "versions": versions("transformers", "numpy"),
        "cases": {name: {"config": settings, "samples": count} for name, (settings, count) in CASES.items()}})


if __name__ == "__main__":
    main()
