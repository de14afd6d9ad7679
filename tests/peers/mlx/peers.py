"""MLX directories and sessions beside mlx-lm's own (mlx 0.32.4, mlx-lm 0.32).

python peers.py PEER SHAKESPEARE SMOLLM2.gguf WORK     tensors compared, and greedy continuations
python peers.py PEER --families tests/fixtures/arch WORK  mlx-lm's logits of a directory of every architecture
python peers.py PEER --speed DIRECTORY [PROMPT COUNT]  prefill and decode, alternating
python peers.py PEER --convert SOURCE WORK             a large model to 4 bits, alternating

PEER is the plugin's example: cargo build --release -p drophammer-mlx --example peer. SOURCE of --convert needs a tokenizer
for mlx-lm's sake. Ours is on the disk when --convert stops its clock,
mlx-lm's in the system's memory.
"""

import json, pathlib, random, shutil, statistics, struct, subprocess, sys, time

import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
PEER = sys.argv[1]


def peer(*words):
    out = subprocess.run([PEER, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def tensors(directory):
    found = {}
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        data = path.read_bytes()
        (n,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + n])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found[name] = (entry["dtype"], tuple(entry["shape"]), data[8 + n + begin : 8 + n + end])
    return found


def compare(ours, theirs):
    a, b = tensors(ours), tensors(theirs)
    names = set(a) ^ set(b)
    differing = [name for name in sorted(set(a) & set(b)) if a[name] != b[name]]
    return {"tensors": len(b), "names only on one side": sorted(names)[:4], "differing": len(differing), "first": differing[:3]}


def forge(source, scheme, out):
    shutil.rmtree(out, ignore_errors=True)
    return peer("forge", source, scheme, out)


def theirs(source, out, **options):
    from mlx_lm import convert

    shutil.rmtree(out, ignore_errors=True)
    convert(str(source), str(out), quantize=True, **options)


def prompts():
    """One of real words, and some of noise, whose best tokens are often a rounding apart."""
    random.seed(5)
    return [[11, 202, 57, 890, 13, 400, 7, 1201]] + [[random.randrange(2, 2000) for _ in range(n)] for n in (5, 12, 20)]


def greedy(directory, count=32):
    """Whether mlx-lm's own generation and our session go on alike."""
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(pathlib.Path(directory))
    for ids in prompts():
        theirs = [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=count)]
        ours = peer("greedy", directory, count, *ids)
        if ours != theirs:
            return f"differ after {ids}: {ours} {theirs}"
    return f"same {count} tokens after each of {len(prompts())} prompts"


def identity_and_greedy(shakespeare, smollm2, work):
    work = pathlib.Path(work)
    forge(smollm2, "bf16", work / "smollm2")
    for name, source in (("shakespeare", shakespeare), ("smollm2", work / "smollm2")):
        for scheme, options in (
            ("affine_4_g64", dict(q_bits=4, q_group_size=64)),
            ("affine_8_g64", dict(q_bits=8, q_group_size=64)),
            ("mxfp4", dict(q_mode="mxfp4")),
            ("mixed_3_6", dict(q_group_size=64, quant_predicate="mixed_3_6")),
            ("mxfp8", dict(q_mode="mxfp8")),
            ("nvfp4", dict(q_mode="nvfp4")),
        ):
            forge(source, scheme, work / "ours")
            theirs(source, work / "theirs", **options)
            print(name, scheme, json.dumps(compare(work / "ours", work / "theirs")), flush=True)
    for scheme in ("bf16", "affine_4_g64", "affine_8_g32", "mixed_3_6", "mxfp4"):
        forge(shakespeare, scheme, work / "ours")
        print("shakespeare", scheme, greedy(work / "ours"), flush=True)
    print("smollm2 bf16", greedy(work / "smollm2"), flush=True)


# What mlx-lm does not do, seen in its sources; where its model has no windows, only what lies inside the first is compared.
WINDOWLESS = {"gemma2", "mistral-window", "qwen2-window", "starcoder2"}
LIMITS = {
    "glm": "rotates whole heads, whatever partial_rotary_factor says",
    "gpt_neox": "knows no other width of the feed-forward block than four times the model's",
    "gpt_neox-sequential": "knows no other width of the feed-forward block than four times the model's",
    "olmo": "wants the package ai2-olmo and its names",
    "phi3-shortrope": "always takes the long factors",
    "qwen2_moe": "knows no dense layers among those of experts",
}


def families(fixtures, work):
    from mlx_lm.utils import load_model
    from safetensors.numpy import load_file

    wrong = 0
    print("| architecture | largest difference | |\n|---|---|---|")
    for fixture in sorted(pathlib.Path(fixtures).iterdir()):
        if not (fixture / "reference.safetensors").exists():
            continue
        forge(fixture, "f32", pathlib.Path(work) / "family")
        reference = load_file(fixture / "reference.safetensors")
        name, difference, remark = fixture.name, None, LIMITS.get(fixture.name, "")
        try:
            model, config = load_model(pathlib.Path(work) / "family")
            seen = config["sliding_window"] if name in WINDOWLESS else None
            tokens = mx.array(reference["tokens"][:, :seen].astype(np.int32))
            difference = np.abs(np.array(model(tokens)) - reference["logits"][:, :seen]).max()
            if seen:
                remark = f"mlx-lm has no windows here: the first {seen} tokens"
        except (ValueError, TypeError, AttributeError, SystemExit) as error:
            if "not supported" in str(error):
                remark = "no such model in mlx-lm"
            elif not remark:
                remark = f"fails: {type(error).__name__}: {error}"
        held = difference is not None and difference <= 2e-3
        wrong += held == (name in LIMITS) if difference is not None else remark.startswith("fails")
        shown = "" if difference is None else f"{difference:.1e}"
        print(f"| {name} | {shown} | {remark} |", flush=True)
    sys.exit(f"{wrong} differ" if wrong else 0)


def speed(directory, prompt=128, count=64):
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(pathlib.Path(directory))
    ids = [(i * 37 + 11) % min(2000, model.args.vocab_size) for i in range(prompt)]

    def measure():
        moments = [time.perf_counter()]
        for _ in generate_step(mx.array(ids), model, max_tokens=count + 1):
            moments.append(time.perf_counter())
        usual = statistics.median(b - a for a, b in zip(moments[1:], moments[2:]))
        return {"prefill": prompt / (moments[1] - moments[0]), "decode": 1 / usual}

    measure()
    rounds = []
    for _ in range(5):
        a, b = peer("speed", directory, prompt, count), measure()
        rounds.append({key: a[key] / b[key] for key in a})
        print(json.dumps({"ours": a, "mlx-lm": {k: round(v, 2) for k, v in b.items()}}), flush=True)
    middle = {key: round(statistics.median(ratios[key] for ratios in rounds), 3) for key in rounds[0]}
    print(json.dumps({"median ratio": middle}))


def conversion(source, work):
    work = pathlib.Path(work)
    code = (
        "import sys, time, resource\nbegin = time.time()\nfrom mlx_lm import convert\nimport mlx.core as mx\n"
        "mx.set_default_device(mx.cpu)\nstart = time.time()\n"
        "convert(sys.argv[1], sys.argv[2], quantize=True, q_bits=4, q_group_size=64)\n"
        "print('{\"seconds\": %.3f, \"with_imports\": %.3f, \"peak_bytes\": %d}' % (time.time() - start, time.time() - begin,"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))"
    )
    for _ in range(2):
        shutil.rmtree(work / "theirs", ignore_errors=True)
        words = [sys.executable, "-c", code, str(source), str(work / "theirs")]
        out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        b = json.loads(out.strip().splitlines()[-1])
        a = forge(source, "affine_4_g64", work / "ours")
        faster = {"the call": round(b["seconds"] / a["seconds"], 2), "with imports": round(b["with_imports"] / a["seconds"], 2)}
        print(json.dumps({"ours": a, "mlx-lm": b, "times faster": faster}), flush=True)
    print(json.dumps(compare(work / "ours", work / "theirs")))


if sys.argv[2] == "--speed":
    speed(sys.argv[3], *map(int, sys.argv[4:6]))
elif sys.argv[2] == "--families":
    families(sys.argv[3], sys.argv[4])
elif sys.argv[2] == "--convert":
    conversion(sys.argv[3], sys.argv[4])
else:
    identity_and_greedy(*sys.argv[2:5])
