"""ab.py - attn.h beside another version of itself, for changes of a few percent.

python3 bench/ab.py OLD [WORDS]; see make bench-ab. OLD is a header, or a commit, whose attn.h is taken. WORDS: cases of
cpu.py with these words in their names. Both versions are in one process and take turns; processor time of one thread.
Which pages a buffer gets moves decoding by up to 5 % either way, so a case is opened several times, in changing order.
Printed are the mean of the openings' ratios, their lowest and highest, and the shortest call of either version.
"""
import os
import shutil
import subprocess
import sys

import cpu

OPENINGS, ROUNDS, LEAST = 6, 9, 0.01


def build_old(old):
    """The library of make bench-cpu with another attn.h."""
    root = os.path.dirname(cpu.HERE)
    tree, name = os.path.join(cpu.BUILD, "old"), os.path.join(cpu.BUILD, "libold.so")
    for part in "bench", "tests":
        os.makedirs(os.path.join(tree, part), exist_ok=True)
    for path in "bench/bench.h", "bench/cpu.c", "tests/ref.h", "tests/ref.c":
        shutil.copy(os.path.join(root, path), os.path.join(tree, path))
    with open(os.path.join(tree, "attn.h"), "wb") as header:
        if os.path.exists(old):
            with open(old, "rb") as file:
                header.write(file.read())
        else:
            header.write(subprocess.check_output(["git", "-C", root, "show", old + ":attn.h"]))
    subprocess.check_call([os.environ.get("CC", "cc"), "-O2", "-fPIC", "-shared", "-o", name,
                           os.path.join(tree, "bench/cpu.c"), os.path.join(cpu.BUILD, "tiles.o"),
                           os.path.join(tree, "tests/ref.c"), "-lm", "-lpthread"])
    return name


def ratio(versions, case, opening, shortest):
    """The median of new / old over the rounds of one opening."""
    for version in versions[::-1 if opening % 2 else 1]:
        error = version.open(case)
        if not error <= cpu.TOLERANCE.get(case.type, 0.02):
            sys.exit(f"{case.name()}: error {error:.1e} of the largest |o|")
    ratios = []
    for _ in range(ROUNDS):
        times = [version.time(LEAST) for version in versions]
        ratios.append(times[1] / times[0])
        shortest[:] = map(min, shortest, times)
    for version in versions[::1 if opening % 3 else -1]: # what is freed last comes back first
        version.close()
    return cpu.median(ratios)


def main():
    if len(sys.argv) < 2 or not sys.argv[1]:
        sys.exit(__doc__)
    old, words = build_old(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    cores = sorted(os.sched_getaffinity(0))[:1]
    versions = [cpu.Ours(cpu.library(path), cores) for path in (old, os.path.join(cpu.BUILD, "libcpu.so"))]
    for version in versions:
        version.use(1)
    for case in cpu.cases(False):
        if words in case.name():
            shortest = [float("inf")] * 2
            ratios = [ratio(versions, case, opening, shortest) for opening in range(OPENINGS)]
            mean = sum(ratios) / OPENINGS
            print(f"{case.name():32} {mean:.3f} of the time ({min(ratios):.3f} to {max(ratios):.3f}), "
                  f"{shortest[0] * 1e6:.0f} us before, {shortest[1] * 1e6:.0f} now", flush=True)


if __name__ == "__main__":
    main()
