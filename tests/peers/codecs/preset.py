#!/usr/bin/env python3
"""Makes the file that llama-quantize would make: every tensor of a GGUF file again, in the same types, by ggml's own encoders.

usage: preset.py OWNER.so SOURCE.gguf OURS.gguf OUT.gguf [IMATRIX.gguf]     (OWNER.so from build.sh; needs numpy and gguf)

SOURCE is F16, BF16 or F32; OURS was made from it with a preset of llama.cpp's, whose types are the ones llama-quantize chooses
(checked in core/quant/src/presets). Statistics are used as llama-quantize uses them: sums over counts, where the width fits.
Prints the seconds that the encoders took on one thread.
"""
import ctypes, shutil, sys, time

import gguf
import numpy as np

library, source, ours, out, *statistics = sys.argv[1:]
owner = ctypes.CDLL(library)
owner.owner_encode.restype = ctypes.c_size_t
owner.owner_encode.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]

means = {}
if statistics:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(statistics[0]).tensors}
    for name, tensor in tensors.items():
        if name.endswith(".in_sum2"):
            sums = np.array(tensor.data, np.float32).reshape(-1)
            counts = np.array(tensors[name.removesuffix(".in_sum2") + ".counts"].data, np.float32).reshape(-1)
            means[name.removesuffix(".in_sum2")] = sums / np.repeat(counts, len(sums) // len(counts))

rows_of = {}
for tensor in gguf.GGUFReader(source).tensors:
    rows_of[tensor.name] = tensor
shutil.copyfile(ours, out)
seconds = 0.0
with open(out, "r+b") as file:
    for tensor in gguf.GGUFReader(ours).tensors:
        if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            continue
        plain = rows_of[tensor.name]
        rows = np.ascontiguousarray(gguf.quants.dequantize(plain.data, plain.tensor_type), np.float32)
        columns = int(tensor.shape[0])
        rows = rows.reshape(-1, columns)
        weights = means.get(tensor.name)
        if weights is not None and len(weights) != columns:
            weights = None
        encoded = np.zeros(tensor.n_bytes, np.uint8)
        owner.owner_prepare(int(tensor.tensor_type))
        begin = time.perf_counter()
        size = owner.owner_encode(
            int(tensor.tensor_type), rows.ctypes.data, encoded.ctypes.data, len(rows), columns,
            None if weights is None else weights.ctypes.data,
        )
        seconds += time.perf_counter() - begin
        assert size == tensor.n_bytes, (tensor.name, size, tensor.n_bytes)
        file.seek(tensor.data_offset)
        file.write(encoded.tobytes())
print(f"{seconds:.3f}")
