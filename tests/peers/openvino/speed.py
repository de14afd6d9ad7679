"""Our sessions beside OpenVINO GenAI on the same directories: speed.py [-p PROMPT] [-n TOKENS] [-r ROUNDS] [-t THREADS] DIR…

Rounds take turns; both run as they run by default, each round in a process of its own. GenAI gets a new prompt each time, because it keeps
prefixes. With --one a GGUF file will do as well. DROPHAMMER names the program (by default target/release/drophammer). Needs openvino_genai.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("-p", "--prompt", type=int, default=256)
parser.add_argument("-n", "--generate", type=int, default=64)
parser.add_argument("-r", "--rounds", type=int, default=3)
parser.add_argument("-t", "--threads", type=int, default=2)
parser.add_argument("--one", action="store_true", help="one measurement of GenAI, printed as JSON")
parser.add_argument("directories", nargs="+")
options = parser.parse_args()
program = os.environ.get("DROPHAMMER", "target/release/drophammer")


def measure(directory):
    """Tokens per second of GenAI: prefill and decode, the middle of three after one to warm up."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    # Of a GGUF file, which GenAI reads itself, token ids that every usual vocabulary has.
    file = os.path.isfile(directory)
    vocabulary = 32000 if file else json.load(open(f"{directory}/config.json"))["vocab_size"]
    pipeline = genai.LLMPipeline(directory, "CPU", INFERENCE_NUM_THREADS=options.threads)
    config = genai.GenerationConfig(max_new_tokens=options.generate + 1, do_sample=False, ignore_eos=True)
    runs = []
    for _ in range(4):
        ids = np.random.randint(100, vocabulary - 100, (1, options.prompt), dtype=np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        metrics = pipeline.generate(inputs, config).perf_metrics
        runs.append((options.prompt / metrics.get_ttft().mean * 1e3, 1e3 / metrics.get_tpot().mean))
    return [statistics.median(run[which] for run in runs[1:]) for which in (0, 1)]


if options.one:
    print(json.dumps(measure(options.directories[0])))
    sys.exit()

for directory in options.directories:
    rounds = []
    for _ in range(options.rounds):
        flags = ["-p", str(options.prompt), "-n", str(options.generate), "-t", str(options.threads)]
        command = [sys.executable, __file__, *flags, "--one", directory]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        command = [program, "bench", directory, "--backend", "openvino", *flags, "--json"]
        bench = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["artifacts"][0]
        rounds.append((theirs, (bench["prefill_tps"], bench["decode_tps"])))
    for which, phase in enumerate(("prefill", "decode")):
        pairs = [(theirs[which], ours[which]) for theirs, ours in rounds]
        middle = statistics.median(ours / theirs for theirs, ours in pairs)
        shown = ", ".join(f"{ours:.1f}/{theirs:.1f}" for theirs, ours in pairs)
        print(f"{directory} {phase}: ours/GenAI {shown}; middle ratio {middle:.2f}", flush=True)
