"""onnxruntime-genai on a directory: genai.py tokens DIR IDS [COUNT] | genai.py speed [-p PROMPT] [-n TOKENS] [-r ROUNDS] [-t THREADS] DIR [DIR2]

`tokens` goes on greedily after these token ids (with commas) and checks every ONNX file there. `speed` takes turns with our session (DROPHAMMER
names the program, by default target/release/drophammer) on DIR, or runs genai alone on DIR2 beside genai on DIR. Needs onnx and onnxruntime_genai.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def opened(directory, threads):
    import onnxruntime_genai as genai

    config = genai.Config(directory)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return genai, genai.Model(config)


def continued(genai, model, ids, count, timed=True):
    """The tokens that follow, and seconds of the prompt and of each token; what is timed does not stop at an end of text."""
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + count, min_length=len(ids) + count if timed else 0, do_sample=False)
    generator = genai.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens(ids)
    generator.generate_next_token()
    prompt = time.perf_counter() - start
    steps = []
    while not generator.is_done():
        start = time.perf_counter()
        generator.generate_next_token()
        steps.append(time.perf_counter() - start)
    return [int(token) for token in generator.get_sequence(0)[len(ids):]], prompt, steps


def tokens(directory, ids, count):
    import glob

    import onnx

    for file in glob.glob(f"{directory}/*.onnx"):
        onnx.checker.check_model(file)
        print(f"{file}: onnx.checker has nothing against it")
    genai, model = opened(directory, 2)
    print("tokens", continued(genai, model, [int(token) for token in ids.split(",")], count, timed=False)[0])


def measure(directory, prompt, count, threads):
    """Tokens per second: prompt and decode, the middle of three after one to warm up."""
    import random

    genai, model = opened(directory, threads)
    runs = []
    for _ in range(4):
        ids = [random.randint(100, 1900) for _ in range(prompt)]
        _, first, steps = continued(genai, model, ids, count + 1)
        runs.append((prompt / first, len(steps) / sum(steps)))
    return [statistics.median(run[which] for run in runs[1:]) for which in (0, 1)]


def alone(directory, options):
    flags = ["-p", str(options.prompt), "-n", str(options.generate), "-t", str(options.threads)]
    command = [sys.executable, __file__, "one", *flags, directory]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def speed(options):
    program = os.environ.get("DROPHAMMER", "target/release/drophammer")
    directory, rounds = options.directories[0], []
    for _ in range(options.rounds):
        if len(options.directories) > 1:
            ours = alone(options.directories[1], options)
        else:
            flags = ["-p", str(options.prompt), "-n", str(options.generate), "-t", str(options.threads)]
            command = [program, "bench", directory, "--backend", "onnxruntime", *flags, "--json"]
            bench = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["artifacts"][0]
            ours = (bench["prefill_tps"], bench["decode_tps"])
        rounds.append((ours, alone(directory, options)))
    for which, phase in enumerate(("prefill", "decode")):
        pairs = [(ours[which], theirs[which]) for ours, theirs in rounds]
        middle = statistics.median(ours / theirs for ours, theirs in pairs)
        shown = ", ".join(f"{ours:.1f}/{theirs:.1f}" for ours, theirs in pairs)
        print(f"{options.directories[-1]} {phase}: beside genai on {directory} {shown}; middle ratio {middle:.2f}", flush=True)


if sys.argv[1] == "tokens":
    tokens(sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 32)
    sys.exit()
parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["speed", "one"])
parser.add_argument("-p", "--prompt", type=int, default=256)
parser.add_argument("-n", "--generate", type=int, default=64)
parser.add_argument("-r", "--rounds", type=int, default=3)
parser.add_argument("-t", "--threads", type=int, default=2)
parser.add_argument("directories", nargs="+")
options = parser.parse_args()
if options.what == "one":
    print(json.dumps(measure(options.directories[0], options.prompt, options.generate, options.threads)))
else:
    speed(options)
