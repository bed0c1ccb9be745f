#!/usr/bin/env python3
"""Writes models/recall.lm: a small transformer that recalls facts from its context. Nothing is trained; every weight is
computed here, so that it is known what attention has to find, how strongly, and what else competes with it.

    python3 tools/make_recall.py [--out models/recall.lm]
    python3 tools/make_recall.py --prompt LENGTH SEED     a prompt; to standard error: its right continuation, with all
                                                          questions, and where the facts stand

Only the standard library, and only +, -, *, / and sqrt of doubles: the file is the same, byte for byte, everywhere.

What it does. The text holds facts such as `[kvz=QRTX]` between words. After `[kvz=` the model continues `QRTX]`, if a
fact with this key came before, else `?`. Questions are asked one after another, or by the last bytes of a prompt.

How. Layer 0 sees 6 keys and copies the codes of the 5 bytes before each position into its stream: head d - 1 has the
same query everywhere, turned so that the key d positions back fits best. Layer 1 sees all keys, without a rotary
embedding. Its induction heads compare the last bytes (query) with the bytes before each position (key): where both
agree, that position holds what comes next, and the head brings its value. Byte 0, the beginning of the text, is the
sink: a key above every match, with value 0. What a head has found weighs exp(-SINK_ABOVE) of it.
  - kv head 0 compares the last 4 bytes and brings the row of the answer in a grid of 4 x 8 letters; kv head 1 compares
    4 bytes, too, the last one left out, and brings the column. An answer needs both.
  - Each kv head has two narrow heads, one broad one whose softmax reaches over all keys, and one that looks for ends of
    lines, sentences and clauses. A key tile is needed if one head of the unit that votes on it needs it.
  - After `=` and inside an answer the sink is higher by SINK_RISE than elsewhere: rows of the question that come before
    them, in the same unit when a prompt is taken in, keep tiles that a decode row alone would leave out.
  - Rare letters weigh more than frequent ones, so that keys differ in strength.
The classifier takes `?` unless row and column together weigh more than DOUBT.
What layer 1 writes is read by no other row: each question may be asked for itself, of the same keys and values.
"""
import argparse
import math
import os
import struct
import sys

# ---- the shape -------------------------------------------------------------------------------------------------------

HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB, MAX_LEN = 8, 2, 64, 2, 256, 1 << 20
GROUP = HEADS // KV_HEADS
CODE = 15                       # elements of a byte's code
BEFORE = 5                      # bytes before a position that its key may hold
ROWS, COLUMNS = 4, 8            # the grid of answers
WINDOW, ROTARY = BEFORE + 1, 2  # of layer 0

# where things lie in the stream
OWN = 0                         # code of the byte itself
PAST = OWN + CODE               # codes of the bytes before it, the nearest first
GRID = PAST + BEFORE * CODE     # its place in the grid, if it can be part of an answer: row, column
FOUND = GRID + ROWS + COLUMNS   # what layer 1 brings: row, column,
FOUND_CODE = FOUND + ROWS + COLUMNS  # code
ONE = FOUND_CODE + CODE         # the same in every row
ASKED = ONE + 1                 # an answer goes on here: the byte is = or a capital letter
BEGIN = ASKED + 1               # byte 0
PAD = BEGIN + 1                 # makes all embeddings equally long
DIM = 160
LONGER = math.sqrt((DIM + BEFORE * CODE) / DIM)  # what layer 0 makes the stream longer by: layer 1's norm takes it away

# ---- strengths, in nats unless said otherwise ------------------------------------------------------------------------

MATCH = ((16.0, 14.0, 8.0, 0.0), (16.0, 14.0, 12.0, 0.0))  # logit of four matching bytes; 0: the head for ends
SINK_ABOVE = ((2.3, 3.3, 3.3, 12.5), (2.3, 3.3, 3.3, 12.5))  # the sink's logit above it, where an answer goes on
SINK_RISE = 1.4                 # by how much it is lower elsewhere
MARKS = {"\n": 10.5, ".": 8.0, ",": 6.0}  # what the head for ends looks for,
ENDING, ENDING_WEIGHT = "ned", 3.0  # after what ending it likes them, last letter first, nats for each letter
SALIENCE = (0.84, 1.16)         # weight of a match of the most frequent and of the rarest letter
GAINS = (4.0, 6.0, 4.0, 1.0)    # of what a head brings: an average fact brings about 1
DOUBT = 0.4                     # what `?` weighs where an average fact brings 2, row and column
SHARPNESS = 8.0                 # logits of the classifier for 1 brought
STEEP = 24.0                    # layer 0: logit of the byte looked for
NEVER = 40.0                    # logit that excludes a byte

# ---- codes -----------------------------------------------------------------------------------------------------------

ANSWERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ]"
FREQUENT_FIRST = "etaoinshrdlcumwfgypbvkjxqz"
SYMBOLS = "\0 " + FREQUENT_FIRST + "ABCDEFGHIJKLMNOPQRSTUVWXYZ[]=?.,\n-"   # the other bytes are read as -
# Products of bits; the sum of any two forms is bent.
FORMS = ((), ((2, 1), (3, 0)), ((2, 0), (2, 1), (3, 1)), ((2, 0), (3, 0), (3, 1)))


def symbol_of(byte):
    found = SYMBOLS.find(chr(byte))
    return found if found >= 0 else SYMBOLS.index("-")


def make_codes():
    """A code of CODE signs for each symbol; the product of any two is 3, -1 or -5 (of 15). Source: half of the Kerdock
    code of length 16, without its first place, which is the same everywhere."""
    codes = []
    for form in FORMS:
        for line in range(16):
            signs = []
            for x in range(1, 16):
                bits = [x >> b & 1 for b in range(4)]
                odd = sum(bits[i] & bits[j] for i, j in form) + bin(x & line).count("1")
                signs.append(-1.0 if odd & 1 else 1.0)
            codes.append(signs)
    return codes


CODES = make_codes()


def salience(byte):
    """What a match of this byte weighs."""
    low, high = SALIENCE
    rank = FREQUENT_FIRST.find(chr(byte))
    if rank >= 0:
        return low + (high - low) * rank / (len(FREQUENT_FIRST) - 1)
    return low if chr(byte) in " -" else 1.0


def code_of(byte):
    """The symbol's code; none for byte 0, so that nothing matches the beginning."""
    return [sign * math.sqrt(salience(byte)) if byte else 0.0 for sign in CODES[symbol_of(byte)]]


# ---- matrices --------------------------------------------------------------------------------------------------------


def matrix(rows, columns):
    return [[0.0] * columns for _ in range(rows)]


def embedding():
    table = matrix(VOCAB, DIM)
    for byte in range(VOCAB):
        x = table[byte]
        x[OWN:OWN + CODE] = code_of(byte)
        place = ANSWERS.find(chr(byte))
        if place >= 0:
            x[GRID + place // COLUMNS] = 2.0
            x[GRID + ROWS + place % COLUMNS] = 2.0
        x[ONE] = 4.0
        x[ASKED] = 4.0 if chr(byte) in ANSWERS[:26] + "=" else 0.0
        x[BEGIN] = 4.0 if byte == 0 else 0.0
        x[PAD] = math.sqrt(DIM - math.fsum(e * e for e in x))
    return table


def turned(steps):
    """cos and sin of -steps radians, by doubling: a library's may differ in the last bit."""
    angle = -steps / 1024
    c, s = 1 - angle * angle / 2, angle * (1 - angle * angle / 6)
    for _ in range(10):
        c, s = c * c - s * s, 2 * s * c
    length = math.sqrt(c * c + s * s)
    return c / length, s / length


def past_layer():
    """Layer 0: head d - 1 copies the code of the byte d positions back into PAST. The other heads are idle."""
    wq, wk, wv = matrix(HEADS * HEAD_DIM, DIM), matrix(KV_HEADS * HEAD_DIM, DIM), matrix(KV_HEADS * HEAD_DIM, DIM)
    wo = matrix(DIM, HEADS * HEAD_DIM)
    size = math.sqrt(STEEP * math.sqrt(HEAD_DIM)) / 4   # ONE is 4
    for kv in range(KV_HEADS):
        wk[kv * HEAD_DIM][ONE] = size
        for e in range(CODE):
            wv[kv * HEAD_DIM + e][OWN + e] = 1.0
    for back in range(1, BEFORE + 1):
        head = back - 1
        c, s = turned(back)
        wq[head * HEAD_DIM][ONE] = size * c
        wq[head * HEAD_DIM + 1][ONE] = size * s
        for e in range(CODE):
            wo[PAST + (back - 1) * CODE + e][head * HEAD_DIM + e] = 1.0
    return [1.0] * DIM, wq, wk, wv, wo


def mark_query():
    """What to multiply a code with to get the logits in MARKS."""
    marks = list(MARKS)
    codes = [code_of(ord(m)) for m in marks]
    rows = [[math.fsum(a * b for a, b in zip(x, y)) for y in codes] + [MARKS[m]] for m, x in zip(marks, codes)]
    for i, pivot in enumerate(rows):
        for j, row in enumerate(rows):
            if i != j:
                times = row[i] / pivot[i]
                rows[j] = [a - times * b for a, b in zip(row, pivot)]
    factors = [row[-1] / row[i] for i, row in enumerate(rows)]
    query = [math.fsum(f * code[e] for f, code in zip(factors, codes)) for e in range(CODE)]
    for letter in ENDING:
        code = code_of(ord(letter))
        query += [ENDING_WEIGHT * c / math.fsum(e * e for e in code) for c in code]
    return query


def walsh(row, column):
    return -1.0 if bin(row & column).count("1") & 1 else 1.0


def recall_layer():
    """Layer 1. A head's first 4 * CODE elements hold four codes, the next one the sink."""
    wq, wk, wv = matrix(HEADS * HEAD_DIM, DIM), matrix(KV_HEADS * HEAD_DIM, DIM), matrix(KV_HEADS * HEAD_DIM, DIM)
    wo = matrix(DIM, HEADS * HEAD_DIM)
    scale = math.sqrt(HEAD_DIM)
    sink = 4 * CODE
    for kv in range(KV_HEADS):
        key, query = kv * HEAD_DIM, kv * GROUP * HEAD_DIM
        for i in range(4):
            for e in range(CODE):
                wk[key + i * CODE + e][PAST + (kv + i) * CODE + e] = 1.0
        wk[key + sink][BEGIN] = 1 / LONGER    # byte 0 has nothing before it
        place = (GRID, ROWS) if kv == 0 else (GRID + ROWS, COLUMNS)
        brought = [(place[0] + c, FOUND + place[0] - GRID + c) for c in range(place[1])]
        brought += [(OWN + e, FOUND_CODE + e) for e in range(CODE)]
        for e in range(HEAD_DIM):
            for c, (source, _) in enumerate(brought):
                wv[key + e][source] = walsh(e, c) / 4
        for member in range(GROUP):
            at = query + member * HEAD_DIM
            match, above = MATCH[kv][member], SINK_ABOVE[kv][member]
            for i in range(4):
                for e in range(CODE):
                    # the byte i positions before the last one that is compared; PAST lies right behind OWN
                    wq[at + i * CODE + e][OWN + (kv + i) * CODE + e] = match / 4 * scale / CODE
            rise = SINK_RISE if match else 0.0
            height = match + above - rise
            if not match:
                for e, value in enumerate(mark_query()):
                    wq[at + e][ONE] = value * scale / 4
            wq[at + sink][ONE] = height * scale / 16
            wq[at + sink][ASKED] = rise * scale / 16
            for c, (_, target) in enumerate(brought):
                if match or target >= FOUND_CODE:
                    for e in range(HEAD_DIM):
                        wo[target][at + e] = walsh(e, c) * GAINS[member] / (HEAD_DIM // 4)
    return [LONGER] * DIM, wq, wk, wv, wo


def classifier():
    table = matrix(VOCAB, DIM)
    for byte in range(1, VOCAB):
        if chr(byte) not in SYMBOLS:
            continue
        y = table[byte]
        place = ANSWERS.find(chr(byte))
        if chr(byte) == "?":
            y[ONE] = DOUBT * SHARPNESS / 4
        elif place >= 0:
            y[FOUND + place // COLUMNS] = SHARPNESS
            y[FOUND + ROWS + place % COLUMNS] = SHARPNESS
            y[ONE], y[ASKED] = -NEVER / 4, NEVER / 4
        else:
            code = code_of(byte)
            y[FOUND_CODE:FOUND_CODE + CODE] = [SHARPNESS * e / math.fsum(c * c for c in code) for e in code]
            y[ASKED] = -NEVER / 4
    return table


# ---- the file --------------------------------------------------------------------------------------------------------


def halves(rows):
    flat = [e for row in rows for e in row]
    data = struct.pack("<%de" % len(flat), *flat)
    return data + bytes(-len(data) % 4)


def model():
    """The checkpoint, weights f16; the format is described in models/README.md."""
    out = [b"ATTNLM1\n", struct.pack("<8i", DIM, 0, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, MAX_LEN)]
    out.append(struct.pack("<2i2f", 1, 0, 10000.0, 1e-5))
    out.append(struct.pack("<4i", WINDOW, ROTARY, 0, 0))
    out.append(halves(embedding()))
    for norm, *matrices in (past_layer(), recall_layer()):
        out.append(struct.pack("<%df" % DIM, *norm))
        out += [halves(m) for m in matrices]
    out.append(struct.pack("<%df" % DIM, *[1.0] * DIM))
    out.append(halves(classifier()))
    return b"".join(out)


# ---- prompts ---------------------------------------------------------------------------------------------------------

FACTS, SHORTEST = 16, 512
CONSONANTS, VOWELS = "ttttnnnssshhrrrddllcmwfgpbvk", "eeeeaaaooiiu"


class Random:
    """splitmix64. Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        """0 .. n - 1, from the upper 32 bits"""
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return ((z ^ z >> 31) >> 32) * n >> 32


def make_facts(random):
    """FACTS pairs of three small letters, no two alike, and four capitals, no two neighbours alike."""
    facts = []
    while len(facts) < FACTS:
        key = "".join(chr(97 + random.below(26)) for _ in range(3))
        value = [random.below(26)]
        while len(value) < 4:
            value.append((value[-1] + 1 + random.below(25)) % 26)
        if key not in (k for k, _ in facts):
            facts.append((key, "".join(chr(65 + v) for v in value)))
    return facts


def make_word(random):
    """One to three syllables of a consonant and a vowel, and perhaps a consonant."""
    word = ""
    for _ in range(1 + random.below(3)):
        word += CONSONANTS[random.below(len(CONSONANTS))] + VOWELS[random.below(len(VOWELS))]
    return word + (CONSONANTS[random.below(len(CONSONANTS))] if random.below(2) else "")


def make_prompt(length, seed):
    """A prompt of `length` bytes, the leading byte 0 included, that ends with the first question; the facts; where they
    stand; and the order in which they are asked for."""
    random = Random(seed)
    facts = make_facts(random)
    order = list(range(FACTS))
    for i in range(FACTS - 1, 0, -1):
        j = random.below(i + 1)
        order[i], order[j] = order[j], order[i]
    end = length - 6                          # then a space and a question
    share = (end - 32) // FACTS               # of the text for each fact
    due = [1 + i * share + random.below(share - 16) for i in range(FACTS)]
    text, places = "\0", []
    while len(text) < end:
        placed = len(places)
        if placed < FACTS and len(text) >= due[placed]:
            places.append(len(text))
            text += "[%s=%s] " % facts[placed]
            continue
        text += make_word(random)
        mark = random.below(100)
        text += "\n" if mark < 1 else ". " if mark < 6 else ", " if mark < 16 else " "
    text = text[:end] + " [%s=" % facts[order[0]][0]
    return text, facts, places, order


def show_prompt(length, seed):
    text, facts, places, order = make_prompt(length, seed)
    sys.stdout.write(text[1:])
    continuation = " ".join("[%s=%s]" % facts[fact] for fact in order)[len("[kvz="):]
    print(continuation, file=sys.stderr)
    for fact in order:
        print("%s at byte %d" % (facts[fact][0], places[fact]), file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "models", "recall.lm"))
    parser.add_argument("--prompt", nargs=2, type=int, metavar=("LENGTH", "SEED"))
    args = parser.parse_args()
    if args.prompt:
        if args.prompt[0] < SHORTEST:
            parser.error("LENGTH must be at least %d" % SHORTEST)
        show_prompt(*args.prompt)
        return
    data = model()
    with open(args.out, "wb") as file:
        file.write(data)
    print("%s: %d bytes" % (args.out, len(data)))


if __name__ == "__main__":
    main()
