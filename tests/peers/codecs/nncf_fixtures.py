#!/usr/bin/env python3
"""Writes tests/fixtures/codecs/nncf.json: what NNCF loses on a matrix that the tests generate too.

usage: nncf_fixtures.py        (needs numpy, openvino and nncf; nncf 3.4.0 wrote what is there)

The matrix is bell(7, 4096) in 16 rows of 256, the activations have mean squares importance(8, 256) in independent columns. For every
mode and group: the squared error of what `nncf.compress_weights` stores without data, the same weighed by the importance, and the
weighed error of what it stores with data, by scale estimation. Constants are decoded by OpenVINO's reference kernels.
"""
import json, logging, os, pathlib, sys

os.environ.setdefault("NNCF_TELEMETRY", "0")
import numpy as np
import nncf, openvino as ov
from nncf import BackupMode, CompressWeightsMode as Mode
from openvino import opset13 as ops

sys.argv = [sys.argv[0], ""]
here = pathlib.Path(__file__).parent
source = (here / "fixtures.py").read_text().split("TYPES = {")[0]
exec(compile(source, "fixtures.py", "exec"))
nncf.set_log_level(logging.ERROR)
ROWS, COLUMNS = 16, 256

w = bell(7, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
squares = importance(8, COLUMNS)
random = np.random.default_rng(1)
tokens = [(random.standard_normal((1, 64, COLUMNS)) * np.sqrt(squares)).astype(np.float32) for _ in range(16)]


def model():
    x = ops.parameter([1, -1, COLUMNS], np.float32, name="x")
    product = ops.matmul(x, ops.constant(w, np.float32, name="w"), False, True, name="product")
    return ov.Model([ops.result(product)], [x], "one")


def stored(mode, group, data):
    options = {"mode": mode}
    if mode not in (Mode.INT8_SYM, Mode.INT8_ASYM):
        options |= {"all_layers": True, "backup_mode": BackupMode.NONE, "group_size": group or -1}
        if data:
            options |= {"dataset": nncf.Dataset(tokens), "scale_estimation": True}
    compressed = nncf.compress_weights(model(), **options)
    product = next(op for op in compressed.get_ordered_ops() if op.get_type_name() == "MatMul")
    weights = product.input_value(1)
    kinds = sorted({op.get_element_type().get_type_name() for op in compressed.get_ops() if op.get_type_name() == "Constant"})
    decoder = ov.Model([ops.result(weights)], [], "decoder")
    compiled = ov.Core().compile_model(decoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([])[0], np.float64).reshape(ROWS, COLUMNS), kinds


out = {}
modes = [(Mode.INT8_SYM, None), (Mode.INT8_ASYM, None)]
modes += [(mode, group) for mode in (Mode.INT4_SYM, Mode.INT4_ASYM, Mode.NF4) for group in (32, 64, 128, None)]
modes += [(Mode.FP8_E4M3, None), (Mode.FP8_E4M3, 128), (Mode.FP4, 64), (Mode.MXFP4, 32), (Mode.MXFP8_E4M3, 32), (Mode.INT2_SYM, 64), (Mode.INT3_SYM, 64)]
for mode, group in modes:
    name = mode.value + (f"_g{group}" if group else "_channel")
    try:
        back, kinds = stored(mode, group, False)
        square = (w.astype(np.float64) - back) ** 2
        entry = {"error": float(square.sum()), "weighted": float((square * squares.astype(float)).sum())}
        if mode in (Mode.INT4_SYM, Mode.INT4_ASYM, Mode.NF4):
            back, _ = stored(mode, group, True)
            entry["estimated"] = float(((w.astype(np.float64) - back) ** 2 * squares.astype(float)).sum())
        out[name] = entry
        print(name, kinds, entry)
    except Exception as error:
        print(name, "not here:", str(error)[:200])
target = here.parents[1] / "fixtures" / "codecs" / "nncf.json"
target.write_text(json.dumps(out, indent=1) + "\n")
print(target, target.stat().st_size)
