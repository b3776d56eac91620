"""Commands run in turns, so that what slows the machine slows every side."""

import json
import os
import statistics
import subprocess
import time

# What would change an allocator, set by whoever starts the bench: both sides run as a user finds them.
ALLOCATORS = ("MALLOC_", "MIMALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def environment(threads):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ALLOCATORS)}
    pools = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    return kept | {name: str(threads) for name in pools} | {"HF_HUB_OFFLINE": "1"}


def run(command, threads):
    """The JSON in the last line of a command's output."""
    command = [str(word) for word in command]
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{' '.join(command)} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_turns(sides, runs, threads):
    """What each side's command printed, by side, in the order of the runs."""
    found = {side: [] for side in sides}
    for _ in range(runs):
        for side, command in sides.items():
            found[side].append(run(command, threads))
    return found


def wall(command, runs, threads):
    """Wall seconds of whole commands whose output nobody reads."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(command, env=environment(threads), stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - started)
    return times


class Ratio:
    """The median of the ratios of paired values, and their range."""

    def __init__(self, ours, theirs):
        self.all = [a / b for a, b in zip(ours, theirs)]
        self.value = statistics.median(self.all)

    def __str__(self):
        spread = f" ({min(self.all):.2f}–{max(self.all):.2f})" if len(self.all) > 1 else ""
        return f"{self.value:.2f}{spread}"
