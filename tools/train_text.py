#!/usr/bin/env python3
"""Trains models/text.lm, the small text model that the examples, the curve and the tests run on.

    python3 tools/train_text.py --out models/text.lm [--minutes N] [--resume]

Needs PyTorch and NumPy from PyPI, no download, no GPU. A byte-level decoder (byte 0 begins and ends a document) with
grouped-query attention. Its layers alternate: in the first, third, ... a row sees WINDOW keys and heads are rotated
(RoPE), in the others it sees every key and nothing is rotated, so that no position is out of range in a context much
longer than those of the training.

Text: stories that tools/text_stories.py makes up, from seeds, and the licences that every Debian system has in
/usr/share/common-licenses. Held out, by document: stories from other seeds and every HOLD_OUT_EVERYth licence text.
models/heldout.txt is three long stories of the held-out part.

Recipe: matrices by Muon, embedding and norms by AdamW; the rate warms up, stays and falls to 0 over the last part;
sequences get longer towards the end (PHASES). Matrix products in bf16 (fast on processors that have it), all else in
f32. Without --minutes the schedule follows the steps, and PyTorch's version and the processor decide the rounding; with
it the schedule follows the clock where that is ahead.

The committed file: --minutes 62, SEED 20, PyTorch 2.15.0, one busy core with AMX: 827 steps, 6.8 million bytes. Bits
per byte: training 0.463 (last 100 steps), held-out stories 0.367, held-out licences 1.976. More in models/README.md.
"""
import argparse
import glob
import math
import os
import random
import struct
import time

import numpy as np
import torch
import torch.nn.functional as F

import text_stories

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 576, 6, 4, 2, 64, 256
WINDOW, THETA, EPS, MAX_LEN = 128, 10000.0, 1e-5, 32768
WINDOWS = [WINDOW if i % 2 == 0 else 0 for i in range(LAYERS)]

SEED = 20
STORY_BYTES = 40_000_000
LICENCE_SHARE = 0.10       # of the sequences
HOLD_OUT_EVERY = 8
STEPS = 2400
STEP_BYTES = 8192
PHASES = [(0.0, 1024), (0.3, 2048), (0.88, 8192)]  # from this part of the run on, sequences of so many bytes
MUON_RATE, ADAM_RATE, WARM_UP, DECAY_FROM = 0.02, 0.003, 0.02, 0.55
CHECKPOINT_SECONDS = 240


# ---- text ------------------------------------------------------------------------------------------------------------

class Text:
    """Documents as one array of bytes, each ended by a 0, and where each begins."""

    def __init__(self, documents):
        data = b"".join(d.encode("ascii", "replace") + b"\0" for d in documents)
        self.data = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(self.data == 0)
        self.starts = np.concatenate(([0], ends[:-1] + 1))

    def sequence(self, rng, length):
        """length + 1 bytes: from the boundary before a document, or from anywhere."""
        at = self.starts[rng.randrange(len(self.starts))] if rng.random() < 0.5 else rng.randrange(len(self.data))
        index = np.arange(at - 1, at + length) % len(self.data)
        return self.data[index]


def licences():
    """The texts of /usr/share/common-licenses, one of each (some names there are links), in two parts."""
    names = [n for n in sorted(glob.glob("/usr/share/common-licenses/*")) if not os.path.islink(n)]
    texts = [open(n, encoding="utf-8", errors="replace").read() for n in names]
    held_out = texts[::HOLD_OUT_EVERY]
    return [t for t in texts if t not in held_out], held_out


def stories(first_seed, size):
    """Stories of the seeds from first_seed on, until there are `size` bytes."""
    documents, total = [], 0
    while total < size:
        documents.append(text_stories.story(first_seed + len(documents)))
        total += len(documents[-1]) + 1
    return documents


# ---- model -----------------------------------------------------------------------------------------------------------

def shapes():
    """Name and shape of every tensor, in the order of the file."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer = {"norm_att": (DIM,), "wq": (q, DIM), "wk": (kv, DIM), "wv": (kv, DIM), "wo": (DIM, q),
             "norm_ffn": (DIM,), "w1": (HIDDEN, DIM), "w2": (DIM, HIDDEN), "w3": (HIDDEN, DIM)}
    return ([("embedding", (VOCAB, DIM))] + [(f"{i}.{name}", shape) for i in range(LAYERS)
                                             for name, shape in layer.items()] + [("norm_final", (DIM,))])


def initial_weights():
    """What adds to the residual stream begins at 0, norms at 1."""
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, shape in shapes():
        if "norm" in name:
            weights[name] = torch.ones(shape)
        elif name.endswith(("wo", "w2")):
            weights[name] = torch.zeros(shape)
        else:
            weights[name] = torch.randn(shape, generator=generator) * (0.02 if name == "embedding" else DIM ** -0.5)
    return {name: w.requires_grad_() for name, w in weights.items()}


def rotate(x):
    """RoPE of the whole head: x [batch][head][row][HEAD_DIM], pairs (2i, 2i + 1)."""
    frequency = THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def windowed_attention(q, k, v):
    """Rows in blocks of WINDOW see the keys of their own block and of the one before, masked to WINDOW keys."""
    batch, _, rows, _ = q.shape
    blocks = rows // WINDOW
    q = q.reshape(batch, KV_HEADS, HEADS // KV_HEADS, blocks, WINDOW, HEAD_DIM)

    def with_block_before(x):
        x = x.reshape(batch, KV_HEADS, blocks, WINDOW, HEAD_DIM)
        return torch.cat((F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x), 3)[:, :, None]

    row, key = torch.arange(WINDOW)[:, None], torch.arange(2 * WINDOW)[None] - WINDOW
    seen = (key <= row) & (key > row - WINDOW)
    seen = seen.expand(blocks, -1, -1) & ((torch.arange(blocks)[:, None, None] > 0) | (key >= 0))
    scores = q @ with_block_before(k).transpose(-1, -2) * HEAD_DIM ** -0.5
    bias = torch.zeros(seen.shape, dtype=scores.dtype).masked_fill(~seen, -math.inf)
    return (torch.softmax(scores + bias, -1) @ with_block_before(v)).reshape(batch, HEADS, rows, HEAD_DIM)


def full_attention(q, k, v):
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def forward(weights, tokens):
    """Logits of every row. tokens: [batch][rows], rows a multiple of WINDOW."""
    batch, rows = tokens.shape
    x = F.embedding(tokens, weights["embedding"])

    def norm(name):
        return F.rms_norm(x, (DIM,), weights[name], EPS)

    def heads(y, count):
        return y.view(batch, rows, count, HEAD_DIM).transpose(1, 2)

    for i, window in enumerate(WINDOWS):
        n = norm(f"{i}.norm_att")
        q = heads(F.linear(n, weights[f"{i}.wq"]), HEADS)
        k = heads(F.linear(n, weights[f"{i}.wk"]), KV_HEADS)
        v = heads(F.linear(n, weights[f"{i}.wv"]), KV_HEADS)
        o = windowed_attention(rotate(q), rotate(k), v) if window else full_attention(q, k, v)
        x = x + F.linear(o.transpose(1, 2).reshape(batch, rows, HEADS * HEAD_DIM), weights[f"{i}.wo"])
        n = norm(f"{i}.norm_ffn")
        x = x + F.linear(F.silu(F.linear(n, weights[f"{i}.w1"])) * F.linear(n, weights[f"{i}.w3"]), weights[f"{i}.w2"])
    return F.linear(norm("norm_final"), weights["embedding"])


# ---- file ------------------------------------------------------------------------------------------------------------

def export(path, weights):
    """Writes an .lm file with int8 matrices, a scale per row. The name appears only when the file is complete."""
    out = [b"ATTNLM1\n", struct.pack("<8i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, MAX_LEN),
           struct.pack("<2i2f", 2, 1, THETA, EPS)]
    out += [struct.pack("<2i", window, HEAD_DIM if window else 0) for window in WINDOWS]
    for name, shape in shapes():
        w = weights[name].detach().float().numpy()
        if len(shape) == 1:
            out.append(w.astype("<f4").tobytes())
            continue
        scale = np.maximum(np.abs(w).max(1, keepdims=True) / 127, 1e-12).astype("<f4")
        data = np.clip(np.rint(w / scale), -127, 127).astype(np.int8).tobytes()
        out += [data, bytes(-len(data) % 4), scale.tobytes()]
    with open(path + ".new", "wb") as file:
        file.write(b"".join(out))
    os.replace(path + ".new", path)


def load(path):
    """The tensors of a file that export wrote, as float64 arrays, and the window and rotary width of each layer."""
    data = open(path, "rb").read()
    assert data[:8] == b"ATTNLM1\n"
    assert struct.unpack_from("<8i", data, 8) == (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, MAX_LEN)
    assert struct.unpack_from("<2i", data, 40) == (2, 1)
    layers = [struct.unpack_from("<2i", data, 56 + 8 * i) for i in range(LAYERS)]
    at, arrays = 56 + 8 * LAYERS, {}
    for name, shape in shapes():
        if len(shape) == 1:
            arrays[name] = np.frombuffer(data, "<f4", shape[0], at).astype(float)
            at += 4 * shape[0]
            continue
        count = shape[0] * shape[1]
        values = np.frombuffer(data, np.int8, count, at).reshape(shape)
        at += count + -count % 4
        arrays[name] = values * np.frombuffer(data, "<f4", shape[0], at).astype(float)[:, None]
        at += 4 * shape[0]
    assert at == len(data)
    return arrays, layers


def forward_float64(arrays, layers, tokens):
    """Logits of every row of one sequence, in float64 and from the definitions alone."""
    rows = len(tokens)
    x = arrays["embedding"][tokens]

    def norm(name):
        return x / np.sqrt((x * x).mean(1, keepdims=True) + EPS) * arrays[name]

    def turned(y, rotary):
        y = y.copy()
        for j in range(0, rotary, 2):
            angle = np.arange(rows)[:, None] * THETA ** (-j / rotary)
            a, b = y[:, :, j].copy(), y[:, :, j + 1].copy()
            y[:, :, j] = a * np.cos(angle) - b * np.sin(angle)
            y[:, :, j + 1] = a * np.sin(angle) + b * np.cos(angle)
        return y

    distance = np.arange(rows)[:, None] - np.arange(rows)[None]
    for i, (window, rotary) in enumerate(layers):
        n = norm(f"{i}.norm_att")
        q = turned((n @ arrays[f"{i}.wq"].T).reshape(rows, HEADS, HEAD_DIM), rotary)
        k = turned((n @ arrays[f"{i}.wk"].T).reshape(rows, KV_HEADS, HEAD_DIM), rotary)
        v = (n @ arrays[f"{i}.wv"].T).reshape(rows, KV_HEADS, HEAD_DIM)
        seen = (distance >= 0) & ((window == 0) | (distance < window))
        o = np.empty_like(q)
        for h in range(HEADS):
            g = h // (HEADS // KV_HEADS)
            p = np.where(seen, np.exp(q[:, h] @ k[:, g].T / math.sqrt(HEAD_DIM)), 0)
            o[:, h] = p / p.sum(1, keepdims=True) @ v[:, g]
        x = x + o.reshape(rows, -1) @ arrays[f"{i}.wo"].T
        n = norm(f"{i}.norm_ffn")
        a = n @ arrays[f"{i}.w1"].T
        x = x + (a / (1 + np.exp(-a)) * (n @ arrays[f"{i}.w3"].T)) @ arrays[f"{i}.w2"].T
    return norm("norm_final") @ arrays["embedding"].T


def dequantised(path):
    return {name: torch.tensor(a, dtype=torch.float32) for name, a in load(path)[0].items()}


def self_check(path, tokens):
    """The file, read back, gives in float64 what PyTorch gives in f32. Returns the largest difference of a logit."""
    with torch.no_grad():
        ours = forward(dequantised(path), torch.tensor(tokens[None].astype(np.int64)))[0].double().numpy()
    return float(np.abs(ours - forward_float64(*load(path), tokens)).max())


# ---- measuring -------------------------------------------------------------------------------------------------------

def row_bits(weights, sequence):
    """Bits per row of predicting sequence[1:]."""
    tokens = torch.tensor(sequence.astype(np.int64))[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = forward(weights, tokens[:, :-1])
    return F.cross_entropy(logits[0].float(), tokens[0, 1:], reduction="none") / math.log(2)


def held_out_bits(weights, text, length, sequences):
    rng = random.Random(SEED)
    return float(torch.cat([row_bits(weights, text.sequence(rng, length)) for _ in range(sequences)]).mean())


def context_bits(weights, data, context):
    """Mean bits of the last 1024 of `context` rows, at places that are the same for every context."""
    ends = range(MAX_LEN, len(data), 12_000)
    return float(torch.cat([row_bits(weights, data[end - context:end + 1])[-1024:] for end in ends]).mean())


def sample(weights, prompt, count, temperature, seed):
    """Continues a prompt; at temperature 0 with the most likely byte."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [0] + list(prompt.encode())
    for _ in range(count):
        padded = torch.tensor([tokens + [0] * (-len(tokens) % WINDOW)])
        with torch.no_grad():
            logits = forward(weights, padded)[0, len(tokens) - 1]
        chances = torch.softmax(logits / max(temperature, 1e-4), 0)
        tokens.append(int(torch.multinomial(chances, 1, generator=generator)))
        if tokens[-1] == 0:
            break
    return bytes(tokens[1:]).decode("ascii", "replace")


# ---- training --------------------------------------------------------------------------------------------------------

class Run:
    """Weights, optimisers and the place in the schedule."""

    def __init__(self):
        self.weights = initial_weights()
        matrices = [w for n, w in self.weights.items() if w.dim() == 2 and n != "embedding"]
        others = [w for n, w in self.weights.items() if w.dim() == 1 or n == "embedding"]
        self.optimisers = [torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01),
                           torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)]
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.rng = random.Random(SEED)

    def save(self, path):
        state = {"weights": self.weights, "optimisers": [o.state_dict() for o in self.optimisers], "step": self.step,
                 "seconds": self.seconds, "losses": self.losses, "rng": self.rng.getstate()}
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)

    def restore(self, path):
        state = torch.load(path, weights_only=False)
        for name, w in self.weights.items():
            w.data.copy_(state["weights"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        self.rng.setstate(state["rng"])

    def train_step(self, texts, progress):
        length = [n for start, n in PHASES if progress >= start][-1]
        batch = np.stack([(texts[1] if self.rng.random() < LICENCE_SHARE else texts[0]).sequence(self.rng, length)
                          for _ in range(STEP_BYTES // length)]).astype(np.int64)
        tokens = torch.from_numpy(batch)
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(self.weights, tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
        rate = min(1.0, progress / WARM_UP, (1 - progress) / (1 - DECAY_FROM))
        for optimiser, full_rate in zip(self.optimisers, (MUON_RATE, ADAM_RATE)):
            optimiser.param_groups[0]["lr"] = full_rate * rate
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.losses.append(loss.item() / math.log(2))
        return length


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=1e9, help="finish the schedule in so much time")
    parser.add_argument("--resume", action="store_true", help="go on from OUT.checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = Run()
    if arguments.resume:
        run.restore(arguments.out + ".checkpoint")
    kept, left_out = licences()
    texts = [Text(stories(0, STORY_BYTES)), Text(kept)]
    held_out = [Text(stories(1_000_000_000, 1_000_000)), Text(left_out)]
    print(f"{len(texts[0].data)} bytes of {len(texts[0].starts)} stories, {len(texts[1].data)} of licences", flush=True)

    then = saved = time.time()
    while True:
        progress = max(run.step / STEPS, run.seconds / (60 * arguments.minutes))
        if progress >= 1:
            break
        length = run.train_step(texts, progress)
        now = time.time()
        run.seconds += now - then
        then = now
        if run.step % 20 == 0:
            print(f"step {run.step}  {run.seconds:.0f} s  length {length}  {np.mean(run.losses[-20:]):.4f} bits",
                  flush=True)
        if now - saved > CHECKPOINT_SECONDS:
            run.save(arguments.out + ".checkpoint")
            export(arguments.out, run.weights)
            print(f"held out: {held_out_bits(run.weights, held_out[0], 1024, 32):.4f}", flush=True)
            saved = then = time.time()
    run.save(arguments.out + ".checkpoint")
    export(arguments.out, run.weights)
    report(arguments.out, run, texts, held_out)


def report(path, run, texts, held_out):
    """The figures of models/README.md."""
    print(f"{run.step} steps of {STEP_BYTES} bytes in {run.seconds / 60:.1f} minutes, torch {torch.__version__}")
    print(f"training, mean of the last 100 steps: {np.mean(run.losses[-100:]):.4f} bits per byte")
    for name, weights in (("f32", run.weights), ("int8", dequantised(path))):
        print(f"held out, {name}: stories {held_out_bits(weights, held_out[0], 2048, 64):.4f}, "
              f"licences {held_out_bits(weights, held_out[1], 2048, 8):.4f}")
    long_stories = "\0".join(text_stories.story(2_000_000_000 + i, 42_000) for i in range(3)).encode()
    with open(os.path.join(os.path.dirname(path), "heldout.txt"), "wb") as file:
        file.write(long_stories)
    data = np.frombuffer(b"\0" + long_stories + b"\0", np.uint8)
    for context in (1024, 2048, 4096, 8192, 16384, 32768):
        print(f"heldout.txt, context {context}: {context_bits(run.weights, data, context):.4f}")
    difference = self_check(path, held_out[0].sequence(random.Random(1), 1024)[:-1])
    print(f"self-check: largest difference of a logit {difference:.2e}")
    assert difference < 1e-3
    for prompt in ("Once upon a time there was", "\"Good evening,\" said the innkeeper. ", "QUEST: The Silver"):
        for temperature in (0.0, 0.8):
            print(f"---- temperature {temperature}\n{sample(run.weights, prompt, 500, temperature, 1)}")


if __name__ == "__main__":
    main()
