"""What the dashboard costs while nobody touches it and four models answer requests without a pause.

    python dashboard.py --program target/release/drophammer --model sm-q4_0.gguf [--seconds 60]

Prints processor time as a part of one core, resident memory, and bytes drawn, of the dashboard in a terminal of 120 × 34,
on each view; then the same of the daemon.
"""

import argparse
import asyncio
import fcntl
import os
import pathlib
import pty
import struct
import subprocess
import tempfile
import termios
import time

import load


def ticks(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    """Megabytes, mapped files included."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS"))


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/drophammer")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = pathlib.Path(temporary)
        daemon, port, _ = load.start("native", arguments, place, models=4)
        names = [f"sm{number or ''}:source" for number in range(4)]
        dashboard, asking = None, []
        try:
            for name in names:
                await load.until_it_answers(port, name)

            async def forever(name):
                number = 0
                while True:
                    number += 1
                    await load.ask(port, name, number, 200)

            asking = [asyncio.create_task(forever(name)) for name in names]
            outer, inner = pty.openpty()
            fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 34, 120, 0, 0))
            environment = {**os.environ, "DROPHAMMER_HOME": str(place / "home"), "TERM": "xterm-256color"}
            dashboard = subprocess.Popen(
                [place / "drophammer"], env=environment, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
            )
            os.close(inner)
            drawn = 0

            def read():
                nonlocal drawn
                try:
                    drawn += len(os.read(outer, 1 << 16))
                except OSError:  # The dashboard has left.
                    asyncio.get_running_loop().remove_reader(outer)

            asyncio.get_running_loop().add_reader(outer, read)
            await asyncio.sleep(4)
            for key, view in zip("136", ["Forge", "Hardware", "Requests"], strict=True):
                os.write(outer, key.encode())
                await asyncio.sleep(1)
                before, cpu, served, began = drawn, ticks(dashboard.pid), ticks(daemon.pid), time.monotonic()
                await asyncio.sleep(arguments.seconds / 3)
                seconds = time.monotonic() - began
                print(
                    f"{view:9}: dashboard {(ticks(dashboard.pid) - cpu) / seconds:.2%} of a core, "
                    f"{resident(dashboard.pid):.1f} MB, {(drawn - before) / seconds:.0f} bytes drawn a second; daemon "
                    f"{(ticks(daemon.pid) - served) / seconds:.2%}, {resident(daemon.pid):.1f} MB",
                    flush=True,
                )
        finally:
            for task in asking:
                task.cancel()
            for process in [dashboard, daemon]:
                if process:
                    process.terminate()
                    process.wait()


asyncio.run(main())
