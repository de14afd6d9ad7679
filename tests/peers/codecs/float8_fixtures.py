#!/usr/bin/env python3
"""Writes tests/fixtures/codecs/float8.json: what ml_dtypes (the number types of ONNX, JAX and TensorFlow) makes of 8-bit floats.

usage: float8_fixtures.py        (needs numpy, ml_dtypes and torch, whose two types must agree)

Per type: the SHA-256 of the floats that its 256 codes stand for (little-endian, every NaN as 0x7fc00000), and of the codes of every
finite binary16, in the order of their bits, with magnitudes beyond the type's largest brought down to it (ONNX's saturating cast).
"""
import hashlib, json, pathlib

import ml_dtypes
import numpy as np
import torch

halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
halves = halves[np.isfinite(halves)]
codes = np.arange(256, dtype=np.uint8)
out = {}
for name, dtype, other in (
    ("f8_e4m3", ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
    ("f8_e5m2", ml_dtypes.float8_e5m2, torch.float8_e5m2),
):
    floats = codes.view(dtype).astype(np.float32)
    theirs = torch.from_numpy(codes).view(other).to(torch.float32).numpy()
    assert np.array_equal(floats, theirs, equal_nan=True)
    floats[np.isnan(floats)] = np.uint32(0x7FC00000).view(np.float32)
    largest = float(ml_dtypes.finfo(dtype).max)
    clipped = np.clip(halves, -largest, largest)
    encoded = clipped.astype(dtype).view(np.uint8)
    assert np.array_equal(encoded, torch.from_numpy(clipped).to(other).view(torch.uint8).numpy())
    sha = lambda array: hashlib.sha256(array.tobytes()).hexdigest()
    out[name] = {"decoded": sha(floats.astype("<f4")), "encoded": sha(encoded)}
target = pathlib.Path(__file__).parents[2] / "fixtures" / "codecs" / "float8.json"
target.write_text(json.dumps(out, indent=1) + "\n")
