#!/usr/bin/env python3
"""Breaks attn.h in many places, one at a time, and counts what the tests notice.

A site is drawn by seed: first a section of the implementation, each with the same chance, then a place in it. The
changed header is built with the test programs in a directory of its own; the first program that does not build, fails,
crashes or runs out of time decides. Survivors are listed: each is a missing test or a change without effect.

    python3 tools/mutate.py --count 30 --seed 1 [--section plan] [--jobs 2] [--programs errors,api]
"""
import argparse
import concurrent.futures
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WITH_REF = {"attention", "engine", "properties", "sliding_window"}
OWN = {"maths", "plan"}  # programs that hold the implementation themselves
ORDER = ["errors", "api", "maths", "plan", "modes", "meta", "ring", "latent", "rope", "quant", "sparse", "skip",
         "engine", "sliding_window", "attention", "properties"]
BUILD_SECONDS = 300

# pattern, replacement: the match is the site
RULES = [
    (r"(?<=[^<\-=]) <= ", " < "),
    (r"(?<=[^<]) < (?!<)", " <= "),
    (r" >= ", " > "),
    (r"(?<=[^>\-]) > ", " >= "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r"(?<=[\w)\]]) \* (?=[\w(])", " + "),
    (r" / ", " * "),
    (r" % ", " / "),
    (r" && ", " || "),
    (r" \|\| ", " && "),
    (r" \+= ", " -= "),
    (r" -= ", " += "),
    (r" \*= ", " += "),
    (r" << ", " >> "),
    (r" >> ", " << "),
    (r"\+\+", "--"),
    (r"attn__min(?=(64)?\()", "attn__max"),
    (r"attn__max(?=(64)?\()", "attn__min"),
    (r"(?<=_)min(?=_ps\()", "max"),
    (r"(?<=_)max(?=_ps\()", "min"),
    (r"_add_ps\(", "_sub_ps("),
    (r"_sub_ps\(", "_add_ps("),
    (r"_fmadd_ps\(", "_fnmadd_ps("),
    (r"\bcontinue;", "break;"),
    (r"\bif \((?=.*\) [^{]*;$|.*\) \{$)", "if (!"),
]
INTEGER = re.compile(r"(?<![\w.])(\d+|0x[0-9a-fA-F]+)(u?)(?![\w.])")
FLOAT = re.compile(r"(?<![\w.])\d+\.\d+f\b")
TYPE = r"(u?int\d*(_t)?|int|float|double|char|size_t|unsigned|void|__m\w+|__mmask\w+|attn_\w+)"
KEYWORD = r"(static|const|typedef|enum|struct|union|return|break|continue|goto|case|default|#)"
DECLARATION = re.compile(r"^\s*(" + KEYWORD + r"|" + TYPE + r"\s+[\w*(])")
STATEMENT = re.compile(r"^\s+[A-Za-z_*(][^{}]*;$")


def blank(text):
    """The text with comments, strings and preprocessor lines replaced by blanks of the same length."""
    def erase(match):
        return re.sub(r"[^\n]", " ", match.group(0))
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'', erase, text, flags=re.S)
    return re.sub(r"(?m)^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", erase, text)


def sections(text):
    """Name, start and end of each section of the implementation."""
    start = text.index("end of header")
    heads = [(m.group(1), m.start()) for m in re.finditer(r"/\* -+ >>(\w+)", text) if m.start() > start]
    ends = [at for _, at in heads[1:]] + [len(text)]
    return [(name, at, end) for (name, at), end in zip(heads, ends)]


def sites(text, code, start, end):
    """(start, end, replacement) of every change that can be made between two offsets."""
    found = []
    for pattern, to in RULES:
        for m in re.finditer(pattern, code[start:end], flags=re.M):
            found.append((start + m.start(), start + m.end(), to))
    for m in INTEGER.finditer(code[start:end]):
        value = int(m.group(1), 0)
        for other in {value + 1, max(value - 1, 0)} - {value}:
            found.append((start + m.start(), start + m.end(), str(other) + m.group(2)))
    for m in FLOAT.finditer(code[start:end]):
        found.append((start + m.start(), start + m.end(), "(%s * 1.001f)" % m.group(0)))
    at = start
    for line in code[start:end].splitlines(keepends=True):
        bare = line.rstrip()
        if STATEMENT.match(bare) and not DECLARATION.match(bare) and bare.count("(") == bare.count(")"):
            lead = len(bare) - len(bare.lstrip())
            found.append((at + lead, at + len(bare), "(void)0;"))
        at += len(line)
    return found


def draw(text, count, rng, only):
    """Endless stream of different changes, sections with equal chance."""
    code = blank(text)
    table = []
    for name, start, end in sections(text):
        found = sites(text, code, start, end)
        if found and (not only or name == only):
            table.append((name, found))
    if not table:
        sys.exit("no section to change")
    seen = set()
    for _ in range(50 * count):
        name, found = rng.choice(table)
        change = rng.choice(found)
        if change not in seen:
            seen.add(change)
            yield name, change


IMPLEMENTATION = [os.environ.get("CC", "cc"), "-std=gnu99", "-O1", "-w", "-c", "-o", "attn.o", "tests/compile/impl.c"]


def build_command(program):
    command = [os.environ.get("CC", "cc"), "-std=gnu99", "-O1", "-w", "-o", program,
               os.path.join("tests", program + ".c")]
    if program not in OWN:
        command.append("attn.o")
    if program in WITH_REF:
        command += ["tests/ref.c", "tests/cases.c"]
    return command + ["-lm", "-lpthread"]


def run(command, directory, seconds):
    """Exit status, or None when the time ran out."""
    try:
        return subprocess.run(command, cwd=directory, timeout=seconds, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    except subprocess.TimeoutExpired:
        return None


def judge(text, tests, limits):
    """killed by ..., survived, did not compile, timeout in ...; limits: seconds of each program, changed to what the
    run took when they are None."""
    directory = tempfile.mkdtemp(prefix="attn-mutant-")
    try:
        shutil.copytree(tests, os.path.join(directory, "tests"))
        with open(os.path.join(directory, "attn.h"), "w", encoding="utf-8") as f:
            f.write(text)
        if run(IMPLEMENTATION, directory, BUILD_SECONDS) != 0:
            return "did not compile"
        for program, limit in limits.items():
            if run(build_command(program), directory, BUILD_SECONDS) != 0:
                return "did not compile"
            start = time.monotonic()
            status = run([os.path.join(directory, program)], directory, limit)
            if limit is None:
                limits[program] = time.monotonic() - start
            if status is None:
                return "timeout in " + program
            if status != 0:
                return "killed by " + program
        return "survived"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def describe(text, change, name):
    start, end, to = change
    line = text.count("\n", 0, start) + 1
    begin = text.rfind("\n", 0, start) + 1
    stop = text.find("\n", end)
    before = text[begin:stop].strip()
    after = (text[begin:start] + to + text[end:stop]).strip()
    return "attn.h:%d (%s): %s -> %s" % (line, name, before, after)


def hunt(text, tests, limits, args):
    stream = draw(text, args.count, random.Random(args.seed), args.section)
    counts = {"killed": 0, "survived": 0, "timeout": 0, "did not compile": 0}
    survivors = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        while sum(counts.values()) - counts["did not compile"] < args.count:
            missing = args.count - sum(counts.values()) + counts["did not compile"]
            batch = [c for _, c in zip(range(missing), stream)]
            if not batch:
                break
            mutants = [text[:c[0]] + c[2] + text[c[1]:] for _, c in batch]
            results = pool.map(judge, mutants, [tests] * len(mutants), [limits] * len(mutants))
            for (name, change), result in zip(batch, results):
                kind = next(k for k in counts if result.startswith(k))
                counts[kind] += 1
                line = describe(text, change, name)
                print("%-24s %s" % (result, line), flush=True)
                if kind == "survived":
                    survivors.append(line)
    print()
    for line in survivors:
        print("survived: " + line)
    print("mutants: %d killed, %d survived, %d timeouts, %d did not compile" %
          (counts["killed"], counts["survived"], counts["timeout"], counts["did not compile"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--section")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--programs", help="comma-separated names; default: all that exist")
    args = parser.parse_args()
    with open(os.path.join(ROOT, "attn.h"), encoding="utf-8") as f:
        text = f.read()
    names = args.programs.split(",") if args.programs else ORDER
    tests = tempfile.mkdtemp(prefix="attn-mutant-tests-")
    try:
        shutil.copytree(os.path.join(ROOT, "tests"), tests, dirs_exist_ok=True)
        programs = [n for n in names if os.path.exists(os.path.join(tests, n + ".c"))]
        limits = dict.fromkeys(programs)
        state = judge(text, tests, limits)
        if state != "survived":
            sys.exit("the unchanged header: " + state)
        limits = {name: 30 + 6 * seconds * args.jobs for name, seconds in limits.items()}
        hunt(text, tests, limits, args)
    finally:
        shutil.rmtree(tests, ignore_errors=True)


if __name__ == "__main__":
    main()
