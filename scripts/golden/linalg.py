"""What LAPACK says of matrices that the tests can make themselves: QR, singular values, energy of the leading ones.

    linalg.py [--out tests/golden/linalg.json]

All in float64. A matrix is named by its shape and seed (`uniform` below, and in tests/core/linalg/matrices.ts), or by a tensor of
models/union-3m.
"""
import argparse
import pathlib

import numpy as np
from safetensors.numpy import load_file

from common import GOLDEN, UNION, versions, write_json

RANKS = [1, 8, 16, 64]


def uniform(rows, columns, seed):
    """Values of U(-0.5, 0.5) that depend on index and seed alone, by a 32-bit hash."""
    h = np.arange(rows * columns, dtype=np.uint64) + np.uint64(seed * 1000003)
    mask = np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor) & mask
    h ^= h >> np.uint64(15)
    return (h.astype(np.float64) / 2**32 - 0.5).reshape(rows, columns)


def falling(rows, columns, seed, ratio):
    """Columns that shrink by `ratio` each."""
    return uniform(rows, columns, seed) * ratio ** np.arange(columns)


def leading(matrix):
    s = np.linalg.svd(matrix, compute_uv=False)
    return {"energies": {str(r): (s[:r] ** 2).sum() for r in RANKS if r <= len(s)}, "values": s[:65].tolist()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "linalg.json")
    out = parser.parse_args().out
    qrs = []
    for rows, columns, seed in ((6, 4, 1), (4, 6, 2), (5, 5, 3), (45, 40, 4)):
        q, r = np.linalg.qr(uniform(rows, columns, seed))
        qrs.append({"rows": rows, "columns": columns, "seed": seed, "q": q.ravel().tolist(), "r": r.ravel().tolist()})
    values = []
    for rows, columns, seed, ratio in ((7, 5, 5, 1), (30, 60, 6, 1), (60, 50, 7, 0.6), (64, 64, 8, 0.9)):
        matrix = falling(rows, columns, seed, ratio)
        values.append({"rows": rows, "columns": columns, "seed": seed, "ratio": ratio, "values": np.linalg.svd(matrix, compute_uv=False).tolist()})
    products = []
    for d, r, k, seed in ((40, 6, 70, 9), (5, 8, 30, 10), (100, 16, 90, 11)):
        product = uniform(d, r, seed) @ uniform(r, k, seed + 100)
        products.append({"d": d, "r": r, "k": k, "seed": seed, "values": np.linalg.svd(product, compute_uv=False)[:min(d, r, k)].tolist()})
    flat = [{"rows": n, "columns": m, "seed": seed, **leading(uniform(n, m, seed))} for n, m, seed in ((480, 520, 12), (600, 500, 13))]
    u, s, vt = np.linalg.svd(falling(200, 300, 14, 0.85))
    probe = uniform(300, 1, 15)
    truncated = {"rows": 200, "columns": 300, "seed": 14, "ratio": 0.85, "rank": 12, "probeSeed": 15, "values": s[:13].tolist(),
                 "image": ((u[:, :12] * s[:12]) @ (vt[:12] @ probe)).ravel().tolist()}
    union = load_file(UNION / "model.safetensors")
    real = [{"tensor": name, **leading(union[name].astype(np.float64))}
            for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight", "model.embed_tokens.weight")]
    write_json(out, {"qr": qrs, "values": values, "products": products, "flat": flat, "truncated": truncated, "real": real,
                     "versions": versions("numpy")})
    out.chmod(0o644)


if __name__ == "__main__":
    main()
