"""Our compression beside NNCF's: nncf.py SOURCE FP16_DIR TEXT [--data CALIBRATION --imatrix FILE] [--case MODE:GROUP:RATIO]…

SOURCE is what both come from, FP16_DIR our fp16 directory of it (NNCF reads that one), TEXT what divergence is measured on. With --data NNCF does
AWQ and scale estimation, and ours the like (--awq --compensate): with what --imatrix holds, or with products collected from the same text
by `imatrix --products`, whose seconds count for every case. DROPHAMMER names the program (by default target/release/drophammer). Ours
are also compared by what they are measured from: `eval --reference FP16_DIR`.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("source")
parser.add_argument("fp16")
parser.add_argument("text")
parser.add_argument("--data")
parser.add_argument("--imatrix")
parser.add_argument("--rounds", type=int, default=1, help="both take turns; seconds are the middle ones")
parser.add_argument("--option", action="append", default=[], help="passed on to ours")
parser.add_argument("--products", help="tokens that products are collected from, where not as many as usual")
parser.add_argument("--tokens", default="2048")
parser.add_argument("--samples", default="64")
parser.add_argument("--case", action="append", default=[])
parser.add_argument("--only", choices=["ours", "nncf"])
options = parser.parse_args()
program = os.environ.get("DROPHAMMER", "target/release/drophammer")
here = os.path.dirname(os.path.abspath(__file__))
cases = options.case or ["int4_asym:128:1", "int4_asym:128:0.8", "int4_sym:64:1", "int4_sym:64:0.8"]


def divergence(directory):
    command = [program, "eval", directory, "--reference", options.fp16, "--text", options.text, "--tokens", options.tokens, "--json"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer["kl_mean"], answer["top1"]


def nncf(mode, group, ratio, out):
    command = [sys.executable, f"{here}/nncf_compress.py", options.fp16, out, mode, group, ratio]
    if options.data:
        command += ["--data", options.data, "--samples", options.samples, "--awq", "--scale-estimation"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    compressed, whole, peak, size = re.search(r"RESULT (\S+) (\S+) (\S+) (\S+)", done.stdout).groups()
    return float(compressed), float(whole), float(peak), float(size)


def ours(mode, group, ratio, out):
    usual = "128"
    scheme = mode if group == usual else f"{mode}_g{group}"
    command = [program, "quantize", options.source, "--to", "openvino", "--scheme", scheme, "-o", out, "--option", f"ratio={ratio}"]
    for option in options.option:
        command += ["--option", option]
    start = time.time()
    if options.imatrix:
        command += ["--imatrix", options.imatrix]
    elif options.data:
        products = f"{out}.products.gguf"
        if os.path.exists(products):
            os.remove(products)
        limit = ["--tokens", options.products] if options.products else []
        collect = [program, "imatrix", options.source, "--products", "--text", options.data, *limit, "-o", products]
        subprocess.run(collect, check=True, capture_output=True)
        command += ["--imatrix", products, "--awq", "--compensate"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.time() - start
    if status:
        sys.exit("ours failed")
    number, unit = re.search(r"peak memory ([\d.]+) ([kMG])B", said).groups()
    worker = float(number) * {"k": 1e-3, "M": 1, "G": 1e3}[unit]
    size = os.path.getsize(f"{out}/openvino_model.bin") / 1e6
    return seconds, max(worker, usage.ru_maxrss / 1e3), size


def middle(runs):
    """Each column's median."""
    return [statistics.median(column) for column in zip(*runs)]


print("| case | NNCF: s (with reading and saving), peak MB, MB, KL, top-1 | ours: s, peak MB, MB, KL, top-1 | KL, times, memory |")
for case in cases:
    mode, group, ratio = case.split(":")
    with tempfile.TemporaryDirectory() as place:
        makers = {"nncf": nncf, "ours": ours}
        runs = {who: [] for who in makers if options.only in (None, who)}
        for _ in range(options.rounds):
            for who, done in runs.items():
                shutil.rmtree(f"{place}/{who}", ignore_errors=True)
                done.append(makers[who](mode, group, ratio, f"{place}/{who}"))
        theirs = own = None
        if "nncf" in runs:
            compressed, whole, peak, size = middle(runs["nncf"])
            kl, top1 = divergence(f"{place}/nncf")
            theirs = f"{compressed:.1f} ({whole:.1f}), {peak:.0f}, {size:.1f}, {kl:.6f}, {top1:.2%}"
        if "ours" in runs:
            seconds, worker, own_size = middle(runs["ours"])
            own_kl, own_top1 = divergence(f"{place}/ours")
            own = f"{seconds:.2f}, {worker:.0f}, {own_size:.1f}, {own_kl:.6f}, {own_top1:.2%}"
        ratios = ""
        if theirs and own:
            ratios = f"{own_kl / kl:.2f}, {compressed / seconds:.1f}, {peak / worker:.1f}"
        print(f"| {mode} g{group}, ratio {ratio} | {theirs} | {own} | {ratios} |", flush=True)
