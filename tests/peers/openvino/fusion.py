"""Counts what the CPU plugin fused in a directory's graph: fusion.py DIR…  (needs the Python package openvino)."""

import sys
from collections import Counter

import openvino as ov

for directory in sys.argv[1:]:
    compiled = ov.Core().compile_model(f"{directory}/openvino_model.xml", "CPU")
    layers, weights = Counter(), Counter()
    for operation in compiled.get_runtime_model().get_ordered_ops():
        info = operation.get_rt_info()
        kind = info["layerType"].astype(str)
        layers[kind] += 1
        if kind in ("FullyConnected", "MatMul"):
            weights[f"{kind} {operation.input(1).get_element_type().get_type_name()}"] += 1
    shown = {kind: layers[kind] for kind in sorted(layers) if layers[kind] and kind not in ("Const", "Input", "Output")}
    print(directory, shown, dict(weights))
