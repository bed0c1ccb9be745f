/* skip.cu - skip-softmax: which tiles weigh too little; >>skip of attn.h is the text to it. Part of plain.cu: a vote
   unit is what a block has of a kv head, up to 16 rows. A warp keeps the accounts of its rows; votes pass through
   shared memory. */
#ifndef ATTN_SKIP_CU
#define ATTN_SKIP_CU

/* Softmax mass of a row: kept and skipped sums of exp(logit - m). */
struct account {
    float m, kept, skipped;
};

DEVICE account no_account() {
    account none = { LOWEST, 0.0f, 0.0f };
    return none;
}

/* EPS: the keys of a row, as span, and how much of its softmax it may lose for each. */
struct budget {
    int lead, lo, hi;
    float per_key;
};

struct skip_memory {
    account seed[STRIP_ROWS], ref[STRIP_ROWS];      /* [kv head of the strip][row] */
    budget budgets[STRIP_ROWS];                     /* [row] */
    float below[STRIP_ROWS];
};

/* What the mode says about a task. */
struct skipper {
    float gap;      /* tiles fall whose logits lie further below the reference; 0: none */
    float eps;      /* share of the softmax that a row may lose; 0: none */
    bool dense;     /* lambda is 1 or more */
    u32 seeded;     /* bit h: kv head h of the strip knows its seeds */
    bool counting;
};

/* attn_counters of attn.h */
enum { COUNT_TILES, COUNT_V_SKIPPED, COUNT_SOFTMAX_SKIPPED, COUNT_DENSE, COUNT_HISTOGRAM };

DEVICE void count(const attn_cu_call &p, int which) { atomicAdd(pointer<u64>(p.counters) + which, 1ull); }

/* TREE: as if causal, so that a chain gives the bits of CAUSAL. */
DEVICE budget budget_of(const attn_cu_call &p, const job &j, const skipper &k, int position) {
    attn_cu_layer l = p.layer;
    if (l.mask == TREE) l.mask = CAUSAL;
    span a = key_span(l, j.n, position - j.past);
    int lead = min_(a.lead, a.lo);
    budget b = { lead, a.lo, a.hi, __fdiv_rn(k.eps, (float)max_(1, lead + a.hi - a.lo)) };
    return b;
}

DEVICE void open_skip(const attn_cu_call &p, const job &j, const shared_memory &m, skip_memory &s, skipper &k) {
    int mode = p.layer.skip_mode;
    int row = (int)threadIdx.x;
    float value = float_of(j.phase == PREFILL ? p.layer.skip_prefill : p.layer.skip_decode);
    k.gap = 0.0f;
    k.eps = 0.0f;
    k.dense = false;
    k.seeded = 0;
    if (mode == SKIP_EPS) k.eps = __fmul_rn(value, 0.9999f - drift(p, j.n, j.phase)); /* the rest: roundings */
    if (mode == SKIP_LAMBDA) value = pointer<float>(p.lambda)[j.s.request];
    if ((mode == SKIP_FACTOR || mode == SKIP_LAMBDA) && value != 0.0f) {
        k.gap = -log_(value);
        if (mode == SKIP_FACTOR) k.gap = __fadd_rn(k.gap, log_((float)j.n.kv_len));
        k.dense = k.gap <= 0.0f;
    }
    if (row < j.s.rows && k.eps > 0.0f) s.budgets[row] = budget_of(p, j, k, m.position[row]);
    __syncthreads();
}

/* What a row may have lost when it has passed its keys in first .. last - 1. */
DEVICE float allowance(const budget &b, i64 first, i64 last) {
    i64 lead = max_(0ll, min_((i64)b.lead, last) - first);
    i64 rest = max_(0ll, min_((i64)b.hi, last) - max_((i64)b.lo, first));
    return __fmul_rn(b.per_key, (float)(lead + rest));
}

/* EPS: does what `own` and `ref` skipped stay within that part of what they kept? */
DEVICE bool affordable(const account &own, const account &ref, float allowed) {
    float most = fmaxf(own.m, ref.m);
    if (ref.m == LOWEST) return own.skipped <= __fmul_rn(allowed, own.kept);
    float a = exp_(__fsub_rn(own.m, most));
    float b = exp_(__fsub_rn(ref.m, most));
    float skipped = __fadd_rn(__fmul_rn(own.skipped, a), __fmul_rn(ref.skipped, b));
    float kept = __fadd_rn(__fmul_rn(own.kept, a), __fmul_rn(ref.kept, b));
    return skipped <= __fmul_rn(allowed, kept);
}

/* What key tile 0 gives to the runs that start behind it: for every row its largest logit there and its mass. */
DEVICE void make_seeds(const attn_cu_call &p, const job &j, shared_memory &m, int h, account (&seed)[OWN]) {
    int head = j.s.head + h;
    float top[OWN];
    int first, last;
    clip(j.seen, 0, TILE, &first, &last);
    if (first == last) return;
    open_tile(p, j, m, head, 0);
    tile_logits(p, j, m, head, 0);
    find_tops(j, m, top);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (top[i] == LOWEST) continue;
        seed[i].m = top[i];
        seed[i].kept = weigh(m, own_row(i), top[i]);
    }
}

DEVICE void load_refs(const job &j, const skip_memory &s, int h, account (&ref)[OWN]) {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        ref[i] = no_account();
        if (own_row(i) < j.s.rows) ref[i] = s.ref[h * j.s.rows + own_row(i)];
    }
}

DEVICE void store_refs(const job &j, skip_memory &s, int h, const account (&ref)[OWN]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (lane() == 0 && own_row(i) < j.s.rows) s.ref[h * j.s.rows + own_row(i)] = ref[i];
    }
    __syncwarp();
}

/* The references of a unit's rows. DECODE: those of its group, which start from the seeds unless the group holds tile
   0; PREFILL: the seeds, unless the unit holds tile 0. starts: the unit is the first of the task or of a group. */
DEVICE void open_refs(const attn_cu_call &p, const job &j, shared_memory &m, skip_memory &s, skipper &k, int h,
                      int unit, bool starts) {
    bool seeds = unit >= (j.phase == DECODE ? GROUP_KEYS / UNIT : 1);
    account seed[OWN];
    if (!starts) return;
#pragma unroll
    for (int i = 0; i < OWN; i++) seed[i] = no_account();
    if (seeds && !(k.seeded >> h & 1u)) {
        make_seeds(p, j, m, h, seed);
        k.seeded |= 1u << h;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            if (lane() == 0 && own_row(i) < j.s.rows) s.seed[h * j.s.rows + own_row(i)] = seed[i];
        }
    } else if (seeds) {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            if (own_row(i) < j.s.rows) seed[i] = s.seed[h * j.s.rows + own_row(i)];
        }
    }
    store_refs(j, s, h, seed);
}

/* How far the largest logit of each row lies below its reference, at least; -1 if no row sees a key. reference: of the
   rows of a warp. */
DEVICE float vote(const job &j, skip_memory &s, const float (&reference)[OWN], const float (&top)[OWN]) {
    float least = -1.0f;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int row = own_row(i);
        float below = __fsub_rn(reference[i], top[i]);
        if (!(below > 0.0f)) below = 0.0f; /* NaN too */
        if (row < j.s.rows && lane() == 0) s.below[row] = top[i] == LOWEST ? -1.0f : below;
    }
    __syncthreads();
    for (int row = 0; row < j.s.rows; row++) {
        float below = s.below[row];
        if (below >= 0.0f && (least < 0.0f || below < least)) least = below;
    }
    return least;
}

DEVICE void count_tile(const attn_cu_call &p, const skipper &k, float gap, bool skip, bool light) {
    if (!k.counting || gap < 0.0f || threadIdx.x) return;
    count(p, COUNT_TILES);
    if (k.dense) count(p, COUNT_DENSE);
    if (skip) count(p, COUNT_V_SKIPPED);
    if (light) count(p, COUNT_SOFTMAX_SKIPPED);
    count(p, COUNT_HISTOGRAM + (gap < 31.5f ? (int)(gap * 2.0f) : 63));
}

/* PREFILL: the gap of a tile, before its weights are known. */
DEVICE float early_gap(const job &j, skip_memory &s, const account (&ref)[OWN], const float (&m)[OWN],
                       const float (&top)[OWN]) {
    float reference[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) reference[i] = fmaxf(m[i], ref[i].m);
    return vote(j, s, reference, top);
}

/* EPS, PREFILL: can every row afford to lose the tile? last: the end of its keys. */
DEVICE bool prefill_affords(const attn_cu_call &p, const job &j, const skip_memory &s, const account (&ref)[OWN],
                            i64 tile, i64 last, const float (&top)[OWN], const float (&sum)[OWN],
                            const float (&alpha)[OWN], const sums &t) {
    int keys = unit_keys(p.layer, PREFILL);
    bool all = true;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int row = own_row(i);
        if (row >= j.s.rows || top[i] == LOWEST) continue;
        account own = { t.m[i], __fmul_rn(t.l[i], alpha[i]), __fadd_rn(__fmul_rn(t.skipped[i], alpha[i]), sum[i]) };
        all &= affordable(own, ref[i], allowance(s.budgets[row], (int)tile / keys * keys, last));
    }
    return __syncthreads_and(all) != 0;
}

/* DECODE: shall the tile be skipped? Its weights are known: only V and its sums are saved. The references follow. */
DEVICE bool decode_skips(const attn_cu_call &p, const job &j, skip_memory &s, const skipper &k, account (&ref)[OWN],
                         i64 tile, i64 last, const float (&top)[OWN], const float (&sum)[OWN], const sums &t) {
    float reference[OWN];
    bool all = true;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int row = own_row(i);
        account own = { t.m[i], 0.0f, sum[i] };
        reference[i] = ref[i].m;
        if (k.eps == 0.0f || row >= j.s.rows || top[i] == LOWEST) continue;
        all &= affordable(own, ref[i], allowance(s.budgets[row], tile / GROUP_KEYS * GROUP_KEYS, last));
    }
    float gap = vote(j, s, reference, top);
    bool skip = k.gap > 0.0f && gap > k.gap;
    if (k.eps > 0.0f) skip = __syncthreads_and(all) && gap >= 0.0f;
    count_tile(p, k, gap, skip, false);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        float most = fmaxf(t.m[i], ref[i].m);
        float a = exp_(__fsub_rn(ref[i].m, most));
        float b = __fmul_rn(sum[i], exp_(__fsub_rn(t.m[i], most)));
        if (top[i] == LOWEST) continue;
        ref[i].kept = __fadd_rn(__fmul_rn(ref[i].kept, a), skip ? 0.0f : b);
        ref[i].skipped = __fadd_rn(__fmul_rn(ref[i].skipped, a), skip ? b : 0.0f);
        ref[i].m = most;
    }
    return skip;
}

#endif
