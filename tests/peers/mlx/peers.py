"""MLX directories beside mlx-lm's own (mlx 0.32.4, mlx-lm 0.32).

python peers.py PEER SHAKESPEARE SMOLLM2.gguf WORK     tensors compared, and greedy continuations
python peers.py PEER --speed DIRECTORY [PROMPT COUNT]  prefill and decode, alternating
python peers.py PEER --convert SOURCE WORK             a large model to 4 bits, alternating

PEER is the plugin's example: cargo build --release -p drophammer-mlx --example peer. SOURCE of --convert needs a tokenizer
for mlx-lm's sake; --speed takes an mlx-lm directory.
"""

import json, os, pathlib, shutil, struct, subprocess, sys, time

import mlx.core as mx

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


def greedy(directory, ids, count):
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model, _ = load(str(directory))
    return [int(token) for token, _ in zip((t for t, _ in generate_step(mx.array(ids), model, max_tokens=count)), range(count))]


def tokenizer_beside(source, out):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (pathlib.Path(source) / name).exists():
            shutil.copy(pathlib.Path(source) / name, out)


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
    ids = [11, 202, 57, 890, 13, 400, 7, 1201]
    for scheme in ("bf16", "affine_4_g64", "affine_8_g32", "mixed_3_6", "mxfp4"):
        forge(shakespeare, scheme, work / "ours")
        tokenizer_beside(shakespeare, work / "ours")
        a, b = peer("greedy", work / "ours", 32, *ids), greedy(work / "ours", ids, 32)
        print("shakespeare", scheme, "same 32 tokens" if a == b else f"differ: {a} {b}", flush=True)
    a, b = peer("greedy", work / "smollm2", 32, *ids), greedy(work / "smollm2", ids, 32)
    print("smollm2 bf16", "same 32 tokens" if a == b else f"differ: {a} {b}", flush=True)


def speed(directory, prompt=128, count=64):
    from mlx_lm import load
    from mlx_lm.generate import stream_generate

    model, tokenizer = load(str(directory))
    vocabulary = min(2000, model.args.vocab_size)
    ids = [(i * 37 + 11) % vocabulary for i in range(prompt)]
    tokenizer._eos_token_ids = set()

    def measure():
        for response in stream_generate(model, tokenizer, ids, max_tokens=count):
            pass
        return {"prefill": response.prompt_tps, "decode": response.generation_tps}

    measure()
    for _ in range(3):
        a, b = peer("speed", directory, prompt, count), measure()
        ratios = {key: round(a[key] / b[key], 3) for key in a}
        print(json.dumps({"ours": a, "mlx-lm": {k: round(v, 2) for k, v in b.items()}, "ratio": ratios}), flush=True)


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
        print(json.dumps({"ours": a, "mlx-lm": b, "times faster": round(b["seconds"] / a["seconds"], 2)}), flush=True)
    print(json.dumps(compare(work / "ours", work / "theirs")))


if sys.argv[2] == "--speed":
    speed(sys.argv[3], *map(int, sys.argv[4:6]))
elif sys.argv[2] == "--convert":
    conversion(sys.argv[3], sys.argv[4])
else:
    identity_and_greedy(*sys.argv[2:5])
