"""NNCF's compression of an OpenVINO directory: nncf_compress.py FP16_DIR OUT MODE GROUP RATIO [--data TEXT] [--awq] [--scale-estimation]

Prints seconds of the compression alone, of it with reading and saving, and the process's peak memory. Needs nncf and openvino;
with --data also tokenizers.
"""

import argparse
import os
import re
import resource
import shutil
import sys
import time

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("source")
parser.add_argument("out")
parser.add_argument("mode", choices=["int4_sym", "int4_asym", "int8_sym", "int8_asym"])
parser.add_argument("group", type=int)
parser.add_argument("ratio", type=float)
parser.add_argument("--data", help="calibration text")
parser.add_argument("--samples", type=int, default=64)
parser.add_argument("--length", type=int, default=256)
parser.add_argument("--awq", action="store_true")
parser.add_argument("--scale-estimation", action="store_true")
options = parser.parse_args()

sys.path.pop(0)  # nncf.py beside this file is not the package
import nncf  # noqa: E402
import openvino as ov  # noqa: E402

dataset = None
if options.data:
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(f"{options.source}/tokenizer.json").encode(open(options.data).read(), add_special_tokens=False).ids
    heads = [name for line in open(f"{options.source}/openvino_model.xml") for name in re.findall(r'type="Parameter".*?names="(\w+)"', line)]

    def sample(number):
        ids = np.array([tokens[number * options.length : (number + 1) * options.length]], dtype=np.int64)
        return {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }

    count = min(options.samples, len(tokens) // options.length)
    dataset = nncf.Dataset([sample(number) for number in range(count)])

start = time.time()
model = ov.Core().read_model(f"{options.source}/openvino_model.xml")
begun = time.time()
kind = getattr(nncf.CompressWeightsMode, options.mode.upper())
chosen = {}
if options.mode.startswith("int4"):
    advanced = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    chosen = {"group_size": options.group, "ratio": options.ratio, "advanced_parameters": advanced}
if dataset:
    chosen |= {"dataset": dataset, "awq": options.awq, "scale_estimation": options.scale_estimation}
    chosen |= {"subset_size": count}
model = nncf.compress_weights(model, mode=kind, **chosen)
compressed = time.time() - begun
os.makedirs(options.out, exist_ok=True)
ov.save_model(model, f"{options.out}/openvino_model.xml", compress_to_fp16=False)
whole = time.time() - start
for name in os.listdir(options.source):
    if not name.startswith("openvino_model."):
        shutil.copy(f"{options.source}/{name}", options.out)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
size = os.path.getsize(f"{options.out}/openvino_model.bin") / 1e6
print(f"RESULT {compressed:.2f} {whole:.2f} {peak:.1f} {size:.1f}")
