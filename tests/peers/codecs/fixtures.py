#!/usr/bin/env python3
"""Writes tests/fixtures/codecs/owners.json: what the formats' owners do with inputs that the tests generate too.

usage: fixtures.py OWNER.so        (from build.sh; needs numpy, mlx and mlx-cpu)

For every GGUF type: the SHA-256 of the floats that ggml decodes from 64 blocks of pseudo-random bytes (little-endian, every NaN
as 0x7fc00000), and the weighted squared error of its encoder on bell(7, 2048) in rows of 256 without importance and with
importance(8, 256). For every MLX mode: SHA-256 of packed words, scales and biases of bell(7, 256) in two rows.
"""
import ctypes, hashlib, json, pathlib, sys

import numpy as np

f32 = np.float32
MASK = (1 << 64) - 1


def bell(seed, count):
    """The generator of core/quant/src/testing.rs, in the same single-precision operations."""
    state = (seed * 2 & MASK) | 1

    def uniform():
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        return f32(state >> 40) / f32(1 << 24) - f32(0.5)

    out = np.zeros(count, f32)
    for i in range(count):
        value = f32(f32(f32(uniform() + uniform()) + uniform()) + uniform())
        out[i] = value * f32(6) if i % 97 == 13 else value
    return out


def importance(seed, count):
    x = bell(seed, count)
    return x * x * f32(8) + f32(0.01)


def noise(count):
    state, out = 1, bytearray()
    for _ in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out.append(state >> 24)
    return bytes(out)


def sha(data):
    return hashlib.sha256(data).hexdigest()


TYPES = {  # name: number, bytes, elements
    "q4_0": (2, 18, 32), "q4_1": (3, 20, 32), "q5_0": (6, 22, 32), "q5_1": (7, 24, 32), "q8_0": (8, 34, 32),
    "q2_k": (10, 84, 256), "q3_k": (11, 110, 256), "q4_k": (12, 144, 256), "q5_k": (13, 176, 256),
    "q6_k": (14, 210, 256), "iq2_xxs": (16, 66, 256), "iq2_xs": (17, 74, 256), "iq3_xxs": (18, 98, 256),
    "iq1_s": (19, 50, 256), "iq4_nl": (20, 18, 32), "iq3_s": (21, 110, 256), "iq2_s": (22, 82, 256),
    "iq4_xs": (23, 136, 256), "iq1_m": (29, 56, 256), "tq1_0": (34, 54, 256), "tq2_0": (35, 66, 256),
    "mxfp4": (39, 17, 32), "nvfp4": (40, 36, 64), "q1_0": (41, 18, 128),
}
NEEDS_IMPORTANCE = {"iq2_xxs", "iq2_xs", "iq1_s"}


def ggml(library):
    owner = ctypes.CDLL(library)
    pointer = lambda a: ctypes.c_void_p(a.ctypes.data)
    x, w = bell(7, 2048), importance(8, 256)
    out = {}
    for name, (number, size, elements) in TYPES.items():
        owner.owner_prepare(number)
        blocks = np.frombuffer(noise(size * 64), np.uint8).copy()
        floats = np.zeros(elements * 64, f32)
        owner.owner_decode(number, pointer(blocks), pointer(floats), ctypes.c_int64(floats.size))
        floats[np.isnan(floats)] = np.uint32(0x7FC00000).view(f32)
        entry = {"decoded": sha(floats.astype("<f4").tobytes())}
        for key, weights in (("error", None), ("error_with_importance", w)):
            if weights is None and name in NEEDS_IMPORTANCE:
                weights_used = np.ones(256, f32)
            else:
                weights_used = weights
            code = np.zeros(x.size // elements * size, np.uint8)
            back = np.zeros(x.size, f32)
            used = None if weights_used is None else pointer(weights_used)
            owner.owner_encode(number, pointer(x), pointer(code), ctypes.c_int64(8), ctypes.c_int64(256), used)
            owner.owner_decode(number, pointer(code), pointer(back), ctypes.c_int64(back.size))
            square = (x.astype(float) - back.astype(float)) ** 2
            if weights is not None:
                square *= np.tile(weights.astype(float), 8)
            entry[key] = float(square.sum())
        out[name] = entry
    return out


def mlx():
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    x = mx.array(bell(7, 256).reshape(2, 128))
    out = {}
    for name, dtype in (("f32", mx.float32), ("bf16", mx.bfloat16), ("f16", mx.float16)):
        w = x.astype(dtype)
        modes = [("affine", group, bits) for group in (32, 64, 128) for bits in (2, 3, 4, 5, 6, 8)]
        for mode, group, bits in modes + [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)]:
            parts = mx.quantize(w, group_size=group, bits=bits, mode=mode)
            as_bytes = lambda a: np.array(a if a.dtype in (mx.uint32, mx.uint8) else a.astype(mx.float32)).tobytes()
            out[f"{name} {mode} g{group} b{bits}"] = [sha(as_bytes(part)) for part in parts]
    return out


fixture = {"ggml": ggml(sys.argv[1]), "mlx": mlx()}
target = pathlib.Path(__file__).parents[2] / "fixtures" / "codecs" / "owners.json"
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text(json.dumps(fixture, indent=1) + "\n")
print(target, target.stat().st_size)
