/* meta.c - the index arrays of a step. Each call is compared with an image of the whole buffer, made from the
   definitions by code that shares nothing with the library, so a byte written elsewhere is seen too. Trap numbers are
   those of the list of known faults in engines. */
#include "../attn.h"
#include "isas.h"
#include "test.h"

enum { MAX_N = 64, GUARD = 64, POISON = 0x5a, ARRAYS = 17 };

typedef struct step {
    attn_batch batch;
    attn_meta_input in;
    int32_t want;
    int32_t q_len[MAX_N], kv_len[MAX_N], index[MAX_N], token_count;
    int32_t *tokens;                /* req_to_token, from malloc */
    unsigned char *buffer;          /* guard, memory, guard */
    size_t bytes;
    attn_meta meta;
    attn_error error;
} step;

static void open_step(step *s, int n) {
    memset(s, 0, sizeof *s);
    s->batch.n = n;
    s->batch.q_len = s->q_len;
    s->batch.kv_len = s->kv_len;
    s->want = ATTN_META_ALL & ~(ATTN_META_PAGE_TABLE | ATTN_META_ROW_TABLE);
    s->in.page_size = 1;
    s->in.topk = 2048;
}

static void set_lengths(step *s, const int32_t *q_len, const int32_t *kv_len) {
    memcpy(s->q_len, q_len, (size_t)s->batch.n * 4);
    memcpy(s->kv_len, kv_len, (size_t)s->batch.n * 4);
}

static void close_step(step *s) {
    free(s->tokens);
    free(s->buffer);
    s->tokens = NULL;
    s->buffer = NULL;
}

/* A table of `requests` rows, slots 0 .. slots - 1 at random. */
static void add_tokens(step *s, test_rng *r, int requests, int64_t row, int slots, int evicted) {
    int64_t i, count = requests * row;
    s->tokens = (int32_t *)malloc((size_t)count * 4 + 4);
    for (i = 0; i < count; i++) {
        s->tokens[i] = evicted && !test_range(r, 0, 9) ? -1 : test_range(r, 0, slots - 1);
    }
    s->in.req_to_token = s->tokens;
    s->in.req_to_token_row = row;
    s->in.requests = requests;
    s->want |= ATTN_META_PAGE_TABLE | ATTN_META_ROW_TABLE;
}

static void *memory_of(const step *s) {
    return s->buffer + GUARD;
}

/* Buffer of exactly the size asked for. */
static void add_buffer(step *s) {
    s->bytes = attn_meta_bytes(&s->batch, &s->in, s->want);
    CHECK(s->bytes >= 16, "no size");
    free(s->buffer);
    s->buffer = (unsigned char *)malloc(s->bytes + 2 * GUARD);
    memset(s->buffer, POISON, s->bytes + 2 * GUARD);
}

/* ---- the definitions --------------------------------------------------------------------------------------------- */

static int64_t rows_of(const step *s, int i) {
    return s->batch.q_len ? s->q_len[i] : 1;
}

static int64_t rows_before(const step *s, int i) {
    int64_t sum = 0;
    while (i-- > 0) sum += rows_of(s, i);
    return sum;
}

static int64_t keys_before(const step *s, int i) {
    int64_t sum = 0;
    while (i-- > 0) sum += s->kv_len[i];
    return sum;
}

static int64_t largest(const step *s, int keys) {
    int64_t most = 0;
    int i;
    for (i = 0; i < s->batch.n; i++) {
        int64_t x = keys ? s->kv_len[i] : rows_of(s, i);
        if (x > most) most = x;
    }
    return most;
}

static int64_t cap_q(const step *s) {
    return s->batch.max_q_len ? s->batch.max_q_len : largest(s, 0);
}

static int64_t cap_kv(const step *s) {
    return s->batch.max_kv_len ? s->batch.max_kv_len : largest(s, 1);
}

static int64_t cap_rows(const step *s) {
    return s->batch.max_rows ? s->batch.max_rows : rows_before(s, s->batch.n);
}

/* Keys k < KV with k <= KV - E + j, one by one where that is quick. */
static int64_t keys_seen(const step *s, int i, int64_t j) {
    int64_t e = rows_of(s, i), kv = s->kv_len[i], seen = 0, key;
    if (kv > 3000) return kv - e + 1 + j > 0 ? kv - e + 1 + j : 0;
    for (key = 0; key < kv; key++) seen += key + e <= kv + j;
    return seen;
}

static int64_t page_at(const step *s, int i, int64_t column) {
    int64_t row = s->in.req_index ? s->in.req_index[i] : i, key = column * s->in.page_size;
    int32_t slot;
    if (key >= s->kv_len[i]) return -1;
    slot = s->in.req_to_token[row * s->in.req_to_token_row + key];
    return slot >= 0 ? slot / s->in.page_size : -1;
}

/* Value of an array at row j of request i; arrays in the order of attn_meta. */
static int64_t per_row(const step *s, int array, int i, int64_t j) {
    int64_t seen = keys_seen(s, i, j);
    if (array == 2) return seen;
    if (array == 3) return s->kv_len[i] - rows_of(s, i) + j;
    if (array == 4) return i;
    if (array == 5) return seen < s->in.topk ? seen : s->in.topk;
    if (array == 7 || array == 9) return keys_before(s, i);
    if (array == 8) return keys_before(s, i) + seen;
    return i * cap_q(s) + j;        /* 13: unpad_row */
}

/* ---- the comparison ---------------------------------------------------------------------------------------------- */

typedef struct shape {
    const int32_t *at;
    int64_t used, extent;           /* entries of this step, entries that the capacities reserve */
    int want;
} shape;

static void shapes(const step *s, const attn_meta *m, shape *a) {
    int64_t n = s->batch.n, rows = rows_before(s, s->batch.n), cap = cap_rows(s), row = m->table_row;
    const shape all[ARRAYS] = { { m->cu_seqlens_q, n + 1, n + 1, ATTN_META_CU_SEQLENS },
                                { m->cu_seqlens_k, n + 1, n + 1, ATTN_META_CU_SEQLENS },
                                { m->seqlens_expand, rows, cap, ATTN_META_EXPAND },
                                { m->positions, rows, cap, ATTN_META_POSITIONS },
                                { m->row_request, rows, cap, ATTN_META_POSITIONS },
                                { m->sparse_len, rows, cap, ATTN_META_SPARSE },
                                { m->cu_sparse, rows + 1, cap + 1, ATTN_META_SPARSE },
                                { m->indexer_ks, rows, cap, ATTN_META_INDEXER },
                                { m->indexer_ke, rows, cap, ATTN_META_INDEXER },
                                { m->topk_offset, rows, cap, ATTN_META_TOPK_OFFSET },
                                { m->page_table, n * row, n * row, ATTN_META_PAGE_TABLE },
                                { m->row_table, rows * row, cap * row, ATTN_META_ROW_TABLE },
                                { m->pad_row, n * cap_q(s), n * cap_q(s), ATTN_META_PAD },
                                { m->unpad_row, rows, cap, ATTN_META_PAD },
                                { m->pad_len, n, n, ATTN_META_PAD },
                                { m->row_q_len, cap, cap, ATTN_META_ROW_TABLE },
                                { m->row_kv_len, cap, cap, ATTN_META_ROW_TABLE } };
    memcpy(a, all, sizeof all);
}

static void expect_array(const step *s, int array, int32_t *to, int64_t row) {
    int64_t j, at = 0, sum = 0;
    int i;
    for (i = 0; i <= s->batch.n && array < 2; i++) to[i] = (int32_t)(array ? keys_before(s, i) : rows_before(s, i));
    if (array < 2) return;
    for (i = 0; i < s->batch.n; i++) {
        int64_t e = rows_of(s, i), c;
        if (array == 10) {
            for (c = 0; c < row; c++) to[i * row + c] = (int32_t)page_at(s, i, c);
        } else if (array == 12) {
            for (j = 0; j < cap_q(s); j++) to[at++] = j < e ? (int32_t)(rows_before(s, i) + j) : -1;
        } else if (array == 14) {
            to[i] = (int32_t)(s->kv_len[i] - e + cap_q(s));
        } else if (array > 14) {
            for (j = 0; j < e; j++) to[at++] = array == 15 ? 1 : (int32_t)keys_seen(s, i, j);
        } else {
            for (j = 0; j < e; j++, at++) {
                for (c = 0; array == 11 && c < row; c++) to[at * row + c] = (int32_t)page_at(s, i, c);
                if (array != 11 && array != 6) to[at] = (int32_t)per_row(s, array, i, j);
                if (array != 6) continue;
                to[at] = (int32_t)sum;
                sum += per_row(s, 5, i, j);
            }
        }
    }
    if (array == 6) to[at] = (int32_t)sum;
    while (array > 14 && at < cap_rows(s)) to[at++] = 0;
}

static void check_fields(const step *s) {
    const attn_meta *m = &s->meta;
    int tables = (s->want & (ATTN_META_PAGE_TABLE | ATTN_META_ROW_TABLE)) != 0;
    CHECK(m->n == s->batch.n && m->rows == rows_before(s, s->batch.n) && m->keys == keys_before(s, s->batch.n),
          "n %d, rows %d, keys %d", m->n, m->rows, m->keys);
    CHECK(m->max_q_len == cap_q(s) && m->max_kv_len == cap_kv(s) && m->max_rows == cap_rows(s), "capacities");
    CHECK(m->bytes == s->bytes, "bytes");
    CHECK(m->table_row == (tables ? (cap_kv(s) + s->in.page_size - 1) / s->in.page_size : 0), "table_row %lld",
          (long long)m->table_row);
    if (!(s->want & ATTN_META_ROW_TABLE)) {
        CHECK(m->row_batch.n == 0 && !m->row_batch.kv_len, "row_batch without its lengths");
        return;
    }
    CHECK(m->row_batch.n == m->max_rows && m->row_batch.kv_len == m->row_kv_len && m->row_batch.q_len == m->row_q_len &&
          m->row_batch.phase == m->row_q_len && m->row_batch.max_kv_len == m->max_kv_len &&
          m->row_batch.max_rows == m->max_rows, "row_batch");
    CHECK(m->row_batch.max_q_len == (m->max_rows > 0), "row_batch.max_q_len = %d", m->row_batch.max_q_len);
}

/* Makes the metadata into the buffer as it is and compares all of it with the image. */
static int check(step *s) {
    size_t total = s->bytes + 2 * GUARD, next = GUARD;
    unsigned char *image = (unsigned char *)malloc(total);
    shape a[ARRAYS];
    int i, good, status;
    memcpy(image, s->buffer, total);
    memset(&s->meta, POISON, sizeof s->meta);
    status = attn_meta_make(&s->meta, &s->batch, &s->in, s->want, memory_of(s), s->bytes, &s->error);
    CHECK(!status, "%s", s->error.text);
    if (status) {
        free(image);
        return 0;
    }
    check_fields(s);
    shapes(s, &s->meta, a);
    for (i = 0; i < ARRAYS; i++) {
        size_t offset;
        if (!(s->want & a[i].want)) {
            CHECK(!a[i].at, "array %d is not wanted", i);
            continue;
        }
        offset = (size_t)((const unsigned char *)a[i].at - s->buffer);
        CHECK(offset == next, "array %d stands at %d, not %d", i, (int)offset, (int)next);
        if (offset != next) {
            free(image);
            return 0;
        }
        expect_array(s, i, (int32_t *)(void *)(image + offset), s->meta.table_row);
        next += (size_t)(a[i].extent * 4 + 15) / 16 * 16;
    }
    CHECK(next + GUARD == total || (next == GUARD && s->bytes == 16), "%d bytes used of %d", (int)(next - GUARD),
          (int)s->bytes);
    good = !memcmp(image, s->buffer, total);
    CHECK(good, "the buffer differs from the definitions");
    free(image);
    return good;
}

/* Sizes, makes and compares. */
static int make(step *s) {
    add_buffer(s);
    return check(s);
}

static void expect_values(const char *name, const int32_t *got, const int32_t *wanted, int count) {
    int i;
    for (i = 0; i < count; i++) CHECK(got[i] == wanted[i], "%s[%d] = %d, not %d", name, i, got[i], wanted[i]);
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

static void test_vectors(void) {
    static const int32_t e[] = { 3, 2 }, kv[] = { 10, 4 }, expand[] = { 8, 9, 10, 3, 4 };
    static const int32_t ks[] = { 0, 0, 0, 10, 10 }, ke[] = { 8, 9, 10, 13, 14 }, position[] = { 7, 8, 9, 2, 3 };
    static const int32_t cu_q[] = { 0, 3, 5 }, cu_k[] = { 0, 10, 14 }, request[] = { 0, 0, 0, 1, 1 };
    static const int32_t pad[] = { 0, 1, 2, 3, 4, -1 }, unpad[] = { 0, 1, 2, 3, 4 }, pad_len[] = { 10, 5 };
    static const int32_t sparse[] = { 8, 9, 9, 3, 4 }, cu_sparse[] = { 0, 8, 17, 26, 29, 33 };
    step s;
    open_step(&s, 2);
    set_lengths(&s, e, kv);
    s.in.topk = 9;
    if (make(&s)) {
        expect_values("seqlens_expand", s.meta.seqlens_expand, expand, 5);
        expect_values("indexer_ks", s.meta.indexer_ks, ks, 5);
        expect_values("indexer_ke", s.meta.indexer_ke, ke, 5);
        expect_values("topk_offset", s.meta.topk_offset, ks, 5);
        expect_values("positions", s.meta.positions, position, 5);
        expect_values("row_request", s.meta.row_request, request, 5);
        expect_values("cu_seqlens_q", s.meta.cu_seqlens_q, cu_q, 3);
        expect_values("cu_seqlens_k", s.meta.cu_seqlens_k, cu_k, 3);
        expect_values("pad_row", s.meta.pad_row, pad, 6);
        expect_values("unpad_row", s.meta.unpad_row, unpad, 5);
        expect_values("pad_len", s.meta.pad_len, pad_len, 2);
        expect_values("sparse_len", s.meta.sparse_len, sparse, 5);
        expect_values("cu_sparse", s.meta.cu_sparse, cu_sparse, 6);
    }
    close_step(&s);
}

/* Decode, verify, draft extend and extend as an engine derives them: prefix sums, and one list a row. */
static void test_modes(void) {
    static const struct {
        attn_mode mode;
        int32_t n, d, seq[3], extend[3], cu_q[4], cu_k[4], expand[9];
    } cases[] = {
        { ATTN_MODE_DECODE, 3, 0, { 5, 1, 9 }, { 0 }, { 0, 1, 2, 3 }, { 0, 5, 6, 15 }, { 5, 1, 9 } },
        { ATTN_MODE_TARGET_VERIFY, 3, 3, { 5, 0, 9 }, { 0 }, { 0, 3, 6, 9 }, { 0, 8, 11, 23 },
          { 6, 7, 8, 1, 2, 3, 10, 11, 12 } },
        { ATTN_MODE_DRAFT_EXTEND_V2, 3, 3, { 8, 3, 12 }, { 0 }, { 0, 3, 6, 9 }, { 0, 8, 11, 23 },
          { 6, 7, 8, 1, 2, 3, 10, 11, 12 } },
        { ATTN_MODE_DRAFT_EXTEND, 3, 3, { 8, 3, 12 }, { 1, 3, 2 }, { 0, 1, 4, 6 }, { 0, 8, 11, 23 },
          { 8, 1, 2, 3, 11, 12 } },
        { ATTN_MODE_EXTEND, 2, 0, { 4, 3 }, { 2, 3 }, { 0, 2, 5 }, { 0, 4, 7 }, { 3, 4, 1, 2, 3 } },
        { ATTN_MODE_IDLE, 3, 0, { 0 }, { 0 }, { 0, 0, 0, 0 }, { 0, 0, 0, 0 }, { 0 } },
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        attn_mode_input in;
        int32_t lengths[9];
        step s;
        memset(&in, 0, sizeof in);
        in.n = cases[i].n;
        in.seq_lens = cases[i].seq;
        in.extend_lens = cases[i].extend;
        in.draft_tokens = cases[i].d;
        open_step(&s, 0);
        CHECK(!attn_batch_from_mode(&s.batch, cases[i].mode, &in, lengths, 9, &s.error), "%s", s.error.text);
        set_lengths(&s, s.batch.q_len, s.batch.kv_len);
        if (make(&s)) {
            expect_values("cu_seqlens_q", s.meta.cu_seqlens_q, cases[i].cu_q, cases[i].n + 1);
            expect_values("cu_seqlens_k", s.meta.cu_seqlens_k, cases[i].cu_k, cases[i].n + 1);
            expect_values("seqlens_expand", s.meta.seqlens_expand, cases[i].expand, s.meta.rows);
        }
        close_step(&s);
    }
}

/* ---- traps ------------------------------------------------------------------------------------------------------- */

/* The same request by verify(prefix, D) and by draft-extend-v2(total): identical metadata. */
static void test_trap_1(void) {
    test_rng r = { 11 };
    int round, i;
    for (round = 0; round < 50; round++) {
        attn_mode_input in[2];
        int32_t seq[2][MAX_N], lengths[2][3 * MAX_N], n = test_range(&r, 1, 20), d = test_range(&r, 1, 8);
        step s[2];
        for (i = 0; i < n; i++) {
            seq[0][i] = test_range(&r, 0, 300);
            seq[1][i] = seq[0][i] + d;
        }
        for (i = 0; i < 2; i++) {
            test_rng same = { 12 };
            memset(&in[i], 0, sizeof in[i]);
            in[i].n = n;
            in[i].seq_lens = seq[i];
            in[i].draft_tokens = d;
            open_step(&s[i], 0);
            CHECK(!attn_batch_from_mode(&s[i].batch, i ? ATTN_MODE_DRAFT_EXTEND_V2 : ATTN_MODE_TARGET_VERIFY, &in[i],
                                        lengths[i], 3 * MAX_N, &s[i].error), "%s", s[i].error.text);
            set_lengths(&s[i], s[i].batch.q_len, s[i].batch.kv_len);
            add_tokens(&s[i], &same, n, 320, 9000, 0);
            s[i].in.page_size = 16;
            make(&s[i]);
        }
        CHECK(s[0].bytes == s[1].bytes && !memcmp(s[0].buffer, s[1].buffer, s[0].bytes + 2 * GUARD), "round %d",
              round);
        close_step(&s[0]);
        close_step(&s[1]);
    }
}

/* More rows than keys: clamped at 0, never a huge unsigned length; KV of the others stays. */
static void test_trap_2(void) {
    static const int32_t e[] = { 6, 4, 2 }, kv[] = { 1, 1, 5 };
    static const int32_t expand[] = { 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 4, 5 };
    static const int32_t positions[] = { -5, -4, -3, -2, -1, 0, -3, -2, -1, 0, 3, 4 };
    step s;
    int i;
    open_step(&s, 3);
    set_lengths(&s, e, kv);
    if (make(&s)) {
        expect_values("seqlens_expand", s.meta.seqlens_expand, expand, 12);
        expect_values("positions", s.meta.positions, positions, 12);
        for (i = 0; i < 12; i++) CHECK((uint32_t)s.meta.seqlens_expand[i] <= 5u, "row %d as unsigned", i);
    }
    close_step(&s);
}

/* Nothing to do writes nothing: check() compares every byte, the tail up to the capacities included. */
static void test_trap_3(void) {
    static const int32_t e[] = { 0, 2, 0, 1 }, kv[] = { 5, 2, 9, 1 }, expand[] = { 1, 2, 1 };
    int n;
    for (n = 0; n <= 4; n += 2) {
        int some;
        for (some = 0; some < 2; some++) {
            test_rng r = { 3 };
            step s;
            open_step(&s, n);
            set_lengths(&s, e, kv);
            if (!some) memset(s.q_len, 0, sizeof s.q_len);
            s.batch.max_q_len = 5;
            s.batch.max_kv_len = 12;
            s.batch.max_rows = 17;
            add_tokens(&s, &r, 4, 12, 100, 0);
            if (make(&s) && some && n == 4) {
                expect_values("seqlens_expand", s.meta.seqlens_expand, expand, 3);
                CHECK(s.meta.seqlens_expand[3] == 0x5a5a5a5a, "the tail was written");
            }
            close_step(&s);
        }
    }
}

static void expect_error(step *s, int status, int request, const char *words);

/* A row count that the capacities do not hold would lose or overwrite rows: refused, nothing written. */
static void test_trap_4(void) {
    static const int32_t e[] = { 1, 4, 2 }, kv[] = { 9, 9, 9 };
    step s;
    open_step(&s, 3);
    set_lengths(&s, e, kv);
    s.batch.max_q_len = 3;
    expect_error(&s, ATTN_E_BATCH, 1, "q_len[1] = 4 is more than batch.max_q_len = 3");
    s.batch.max_q_len = 4;
    s.batch.max_rows = 6;
    expect_error(&s, ATTN_E_BATCH, -1, "sum of q_len = 7 is more than batch.max_rows = 6");
    s.batch.max_rows = 7;
    make(&s);
    s.batch.max_rows = 70;
    make(&s);
    close_step(&s);
}

static void test_trap_5(void) {
    static const int32_t e[] = { 4, 1 }, kv[] = { 2050, 2048 };
    static const int32_t expand[] = { 2047, 2048, 2049, 2050, 2048 }, sparse[] = { 2047, 2048, 2048, 2048, 2048 };
    static const int32_t sums[] = { 0, 2047, 4095, 6143, 8191, 10239 };
    step s;
    open_step(&s, 2);
    set_lengths(&s, e, kv);
    if (make(&s)) {
        expect_values("seqlens_expand", s.meta.seqlens_expand, expand, 5);
        expect_values("sparse_len", s.meta.sparse_len, sparse, 5);
        expect_values("cu_sparse", s.meta.cu_sparse, sums, 6);
    }
    close_step(&s);
}

/* The drafts' columns at the end of the context are there, and hold the drafts' pages. */
static void test_trap_6(void) {
    enum { CONTEXT = 202752 };
    static const int32_t sizes[] = { 1, 16, 64, 128 };
    int d, p;
    for (d = 2; d <= 4; d++) {
        for (p = 0; p < 4; p++) {
            test_rng r = { 6 };
            int32_t seq[2] = { 100, CONTEXT }, lengths[6];
            attn_mode_input in;
            step s;
            memset(&in, 0, sizeof in);
            in.n = 2;
            in.seq_lens = seq;
            in.draft_tokens = d;
            in.max_q_len = d;
            in.max_kv_len = CONTEXT + d;
            in.max_rows = 2 * d;
            open_step(&s, 0);
            CHECK(!attn_batch_from_mode(&s.batch, ATTN_MODE_TARGET_VERIFY, &in, lengths, 6, &s.error), "%s",
                  s.error.text);
            set_lengths(&s, s.batch.q_len, s.batch.kv_len);
            add_tokens(&s, &r, 2, CONTEXT + d, 1 << 20, 0);
            s.want = ATTN_META_PAGE_TABLE;
            s.in.page_size = sizes[p];
            make(&s);
            CHECK(s.meta.table_row == (CONTEXT + d + sizes[p] - 1) / sizes[p], "%d columns", (int)s.meta.table_row);
            s.batch.max_kv_len = CONTEXT;
            expect_error(&s, ATTN_E_BATCH, 1, "is more than batch.max_kv_len = 202752");
            s.batch.max_kv_len = CONTEXT + d;
            s.in.req_to_token_row = CONTEXT;
            expect_error(&s, ATTN_E_BATCH, 1, "is more than input.req_to_token_row = 202752");
            close_step(&s);
        }
    }
}

/* A batch of 12 slots that holds 10 requests: the counts are those of the 10. */
static void test_trap_11(void) {
    static const int32_t seq[] = { 30, 31, -1, 33, 34, 35, 36, 37, -1, 39, 40, 41 };
    attn_mode_input in;
    int32_t lengths[36];
    test_rng r = { 4 };
    step s, real;
    int i, at = 0;
    memset(&in, 0, sizeof in);
    in.n = 12;
    in.seq_lens = seq;
    in.draft_tokens = 3;
    open_step(&s, 0);
    CHECK(!attn_batch_from_mode(&s.batch, ATTN_MODE_TARGET_VERIFY, &in, lengths, 36, &s.error), "%s", s.error.text);
    set_lengths(&s, s.batch.q_len, s.batch.kv_len);
    add_tokens(&s, &r, 12, 64, 100, 0);
    open_step(&real, 10);
    r.state = 4;
    add_tokens(&real, &r, 12, 64, 100, 0);
    for (i = 0; i < 12; i++) {
        if (seq[i] < 0) continue;
        real.q_len[at] = 3;
        real.kv_len[at] = seq[i] + 3;
        real.index[at++] = i;
    }
    real.in.req_index = real.index;
    if (make(&s) && make(&real)) {
        CHECK(s.meta.rows == 30 && s.meta.keys == real.meta.keys, "%d rows", s.meta.rows);
        CHECK(s.meta.cu_seqlens_q[2] == 6 && s.meta.cu_seqlens_q[3] == 6, "a pad has rows");
        expect_values("seqlens_expand", s.meta.seqlens_expand, real.meta.seqlens_expand, 30);
        expect_values("indexer_ke", s.meta.indexer_ke, real.meta.indexer_ke, 30);
        expect_values("row_table", s.meta.row_table, real.meta.row_table, 30 * (int)s.meta.table_row);
    }
    close_step(&s);
    close_step(&real);
}

/* Captured with 4 requests, replayed with 1 .. 4 and other lengths in the same buffer, never cleared: addresses stay,
   and what is in use equals that of a fresh buffer. */
static void test_trap_12(void) {
    test_rng r = { 12 };
    step s;
    attn_meta captured;
    shape a[ARRAYS], b[ARRAYS];
    int round, i;
    open_step(&s, 4);
    s.batch.max_q_len = 6;
    s.batch.max_kv_len = 4096;
    s.batch.max_rows = 24;
    for (i = 0; i < 4; i++) s.q_len[i] = s.kv_len[i] = 1;
    add_tokens(&s, &r, 9, 4096, 100000, 0);
    s.in.req_index = s.index;
    s.in.page_size = 64;
    make(&s);
    memset(memory_of(&s), 0xff, s.bytes);
    captured = s.meta;
    for (round = 0; round < 60; round++) {
        int live = 1 + round % 4;
        for (i = 0; i < 4; i++) {
            s.kv_len[i] = i < live ? test_range(&r, 1, round % 3 ? 4096 : 70) : 0;
            s.q_len[i] = i < live ? test_range(&r, 0, s.kv_len[i] < 6 ? s.kv_len[i] : 6) : 0;
            s.index[i] = i < live ? test_range(&r, 0, 8) : -99; /* pads: whatever was there */
        }
        CHECK(attn_meta_bytes(&s.batch, &s.in, s.want) == s.bytes, "another size");
        if (!check(&s)) break;
        shapes(&s, &captured, a);
        shapes(&s, &s.meta, b);
        for (i = 0; i < ARRAYS; i++) CHECK(a[i].at == b[i].at, "array %d moved", i);
        CHECK(captured.table_row == s.meta.table_row, "another stride");
    }
    close_step(&s);
}

/* The stride of a padded q is the captured one, whatever this step's lengths are. */
static void test_trap_13(void) {
    static const int32_t e[][3] = { { 6, 6, 6 }, { 1, 3, 2 }, { 1, 1, 1 }, { 2, 2, 2 }, { 0, 5, 0 } };
    static const int32_t kv[] = { 50, 60, 70 };
    int i, j;
    for (i = 0; i < 5; i++) {
        step s;
        open_step(&s, 3);
        set_lengths(&s, e[i], kv);
        s.batch.max_q_len = 6;
        if (make(&s)) {
            for (j = 0; j < s.meta.rows; j++) {
                int request = s.meta.row_request[j];
                CHECK(s.meta.unpad_row[j] == 6 * request + j - s.meta.cu_seqlens_q[request], "row %d", j);
            }
        }
        close_step(&s);
    }
}

/* Sums at and above the limit of int32 are exact or refused. */
static void test_trap_18(void) {
    int32_t kv[3] = { 1 << 30, (1 << 30) - 1, 0 }, e[3] = { 2, 1, 0 };
    step s;
    open_step(&s, 3);
    set_lengths(&s, e, kv);
    if (make(&s)) CHECK(s.meta.cu_seqlens_k[3] == INT32_MAX && s.meta.keys == INT32_MAX, "%d", s.meta.keys);
    s.kv_len[2] = 1;
    expect_error(&s, ATTN_E_BATCH, 2, "kv_len[2] = 1: the sum is above 2^31-1");
    s.kv_len[0] = s.kv_len[1] = s.kv_len[2] = INT32_MAX;
    expect_error(&s, ATTN_E_BATCH, 1, "the sum is above 2^31-1");
    close_step(&s);

    open_step(&s, 2);               /* the rows' sum, without a byte of memory for so many */
    s.q_len[0] = INT32_MAX;
    s.q_len[1] = 1;
    s.want = ATTN_META_CU_SEQLENS;
    expect_error(&s, ATTN_E_BATCH, 1, "q_len[1] = 1: the sum is above 2^31-1");
    s.q_len[1] = 0;
    s.want |= ATTN_META_SPARSE;
    s.kv_len[0] = 65536;
    s.q_len[0] = 65536;
    s.in.topk = 65536;
    expect_error(&s, ATTN_E_BATCH, 0, "the sum of sparse_len is above 2^31-1");
    s.in.topk = 32768;
    make(&s);
    s.kv_len[0] = 65535;
    s.q_len[0] = 65535;
    s.in.topk = 65535;
    make(&s);
    CHECK(s.meta.cu_sparse[65535] == 2147450880, "%d", s.meta.cu_sparse[65535]);
    s.q_len[1] = 1;
    s.kv_len[1] = 32767;            /* to the limit itself */
    make(&s);
    CHECK(s.meta.cu_sparse[65536] == INT32_MAX, "%d", s.meta.cu_sparse[65536]);
    s.kv_len[1] = 32768;
    expect_error(&s, ATTN_E_BATCH, 1, "q_len[1] = 1: the sum of sparse_len is above 2^31-1");
    close_step(&s);
}

/* Ragged rows into equal ones and back, heads and all. A plain view is wrong even where the sum is a multiple of n. */
static void round_trip(const int32_t *e, int n, int heads, int dim) {
    step s;
    int64_t row = (int64_t)heads * dim, x;
    int i, j, wrong_view = 0;
    open_step(&s, n);
    for (i = 0; i < n; i++) {
        s.q_len[i] = e[i];
        s.kv_len[i] = 20 + 7 * i;
    }
    if (make(&s)) {
        int max_q = s.meta.max_q_len;
        float *q = (float *)malloc((size_t)(s.meta.rows * row + 1) * sizeof(float));
        float *padded = (float *)calloc((size_t)(n * max_q * row + 1), sizeof(float));
        for (x = 0; x < s.meta.rows * row; x++) q[x] = (float)(x % 9973) + 1.0f;
        for (i = 0; i < n * max_q; i++) {
            int from = s.meta.pad_row[i];
            if (from >= 0) memcpy(padded + i * row, q + from * row, (size_t)row * sizeof(float));
        }
        for (i = 0; i < n; i++) {
            for (j = 0; j < max_q; j++) {
                const float *at = padded + ((int64_t)i * max_q + j) * row;
                int64_t source = s.meta.cu_seqlens_q[i] + j;
                int same = j < e[i] ? !memcmp(at, q + source * row, (size_t)row * sizeof(float)) : at[0] == 0;
                CHECK(same, "request %d, row %d", i, j);
                wrong_view |= j < e[i] && source != (int64_t)i * max_q + j;
            }
            CHECK(s.meta.pad_len[i] == s.kv_len[i] - e[i] + max_q, "pad_len[%d]", i);
        }
        for (i = 0; i < s.meta.rows; i++) {
            CHECK(!memcmp(padded + s.meta.unpad_row[i] * row, q + i * row, (size_t)row * sizeof(float)), "row %d", i);
        }
        CHECK(wrong_view, "a plain view would have done");
        free(q);
        free(padded);
    }
    close_step(&s);
}

static void test_trap_19(void) {
    static const int32_t ragged[] = { 0, 3, 1, 5 }, multiple[] = { 1, 5, 2, 4 }, skewed[] = { 7, 0, 0, 1 };
    static const int32_t nine[] = { 2, 1, 4, 3, 1, 1, 4, 2, 2 };
    round_trip(ragged, 4, 4, 8);
    round_trip(multiple, 4, 4, 8);  /* 12 rows, 4 requests */
    round_trip(skewed, 4, 4, 8);    /* 8 rows, 4 requests */
    round_trip(nine, 9, 32, 576);   /* 20 rows */
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

static void test_random(void) {
    test_rng r = { 21 };
    int round, i, negative = 0, empty = 0;
    for (round = 0; round < test_draws(4000); round++) {
        int n = test_range(&r, 0, 12), rows = test_range(&r, 1, 15);
        step s;
        open_step(&s, n);
        s.in.topk = test_range(&r, 1, 70);
        for (i = 0; i < n; i++) {
            s.kv_len[i] = test_range(&r, 0, 5) ? test_range(&r, 0, 60) : 0;
            s.q_len[i] = test_range(&r, 0, 9);
            if (test_range(&r, 0, 3) && s.q_len[i] > s.kv_len[i]) s.q_len[i] = s.kv_len[i];
            s.index[i] = test_range(&r, 0, rows - 1);
            negative += s.q_len[i] > s.kv_len[i];
            empty += !s.q_len[i];
        }
        if (!test_range(&r, 0, 4)) s.batch.q_len = NULL;
        if (test_range(&r, 0, 1)) s.batch.max_q_len = (int32_t)largest(&s, 0) + test_range(&r, 0, 5);
        if (test_range(&r, 0, 1)) s.batch.max_kv_len = (int32_t)largest(&s, 1) + test_range(&r, 0, 50);
        if (test_range(&r, 0, 1)) s.batch.max_rows = rows_before(&s, n) + test_range(&r, 0, 20);
        add_tokens(&s, &r, n > rows ? n : rows, 60 + test_range(&r, 0, 9), 4000, round % 2);
        if (test_range(&r, 0, 1)) s.in.req_index = s.index;
        s.in.page_size = test_range(&r, 1, 17);
        s.want = test_range(&r, 0, ATTN_META_ALL);
        make(&s);
        close_step(&s);
    }
    CHECK(negative > 1000 && empty > 1000, "%d, %d", negative, empty);
}

/* Page table: contexts x page sizes x batches, with columns past the length. */
static void test_page_tables(void) {
    static const int32_t contexts[] = { 2048, 4096, 131072 }, sizes[] = { 1, 32, 64, 128, 256 };
    static const int32_t counts[] = { 1, 7, 32 };
    int c, p, b, i;
    for (c = 0; c < 3; c++) {
        for (p = 0; p < 5; p++) {
            for (b = 0; b < 3; b++) {
                test_rng r = { (uint64_t)(c * 100 + p * 10 + b) };
                step s;
                open_step(&s, counts[b]);
                s.batch.q_len = NULL;
                s.batch.max_kv_len = contexts[c];
                for (i = 0; i < counts[b]; i++) s.kv_len[i] = test_range(&r, 1, c < 2 ? contexts[c] : 9000);
                s.kv_len[counts[b] - 1] = contexts[c];
                s.kv_len[0] = counts[b] > 1 ? 1 : contexts[c] - 1;
                add_tokens(&s, &r, 33, contexts[c], 1 << 22, 0);
                for (i = 0; i < counts[b]; i++) s.index[i] = 32 - i;
                s.in.req_index = s.index;
                s.in.page_size = sizes[p];
                s.want = ATTN_META_PAGE_TABLE;
                make(&s);
                CHECK(s.meta.table_row == contexts[c] / sizes[p], "%d columns", (int)s.meta.table_row);
                if (sizes[p] < contexts[c] && counts[b] > 1) CHECK(s.meta.page_table[1] == -1, "column 1 of 1 key");
                close_step(&s);
            }
        }
    }
}

/* Decode with a lead of 0, 2, 3, 5 tokens and a second pool whose old slots are gone. */
static void test_decode_metadata(void) {
    static const int32_t lengths[] = { 10, 50, 100, 200, 300, 450, 500, 512 }, deltas[] = { 0, 2, 3, 5 };
    int page, n, d, pool, i, t;
    for (page = 1; page <= 128; page *= 2) {
        for (n = 1; n <= 64; n = n < 8 ? n + 1 : n * 2) {
            for (d = 0; d < 4; d++) {
                for (pool = 0; pool < 2; pool++) {
                    test_rng r = { (uint64_t)(page + n) };
                    attn_mode_input in;
                    int32_t seq[MAX_N], mem[3 * MAX_N];
                    step s;
                    for (i = 0; i < n; i++) seq[i] = n % 2 ? lengths[i % 8] : 1 + i % 5; /* tiny ones too */
                    memset(&in, 0, sizeof in);
                    in.n = n;
                    in.seq_lens = seq;
                    in.draft_step = deltas[d] - 1;
                    if (!deltas[d]) in.draft_step = 0;
                    open_step(&s, 0);
                    CHECK(!attn_batch_from_mode(&s.batch, deltas[d] ? ATTN_MODE_DRAFT_DECODE : ATTN_MODE_DECODE, &in,
                                                mem, 3 * MAX_N, &s.error), "%s", s.error.text);
                    set_lengths(&s, s.batch.q_len, s.batch.kv_len);
                    add_tokens(&s, &r, n, 520, 1 << 20, 0);
                    for (i = 0; pool && i < n; i++) { /* the window's pool: outside it nothing is left */
                        for (t = 0; t < s.kv_len[i] - 128; t++) s.tokens[i * 520 + t] = -1;
                    }
                    s.in.page_size = page;
                    s.want = ATTN_META_CU_SEQLENS | ATTN_META_PAGE_TABLE | ATTN_META_EXPAND;
                    if (make(&s)) {
                        for (i = 0; i < n; i++) CHECK(s.meta.seqlens_expand[i] == seq[i] + deltas[d], "row %d", i);
                        CHECK(s.meta.max_kv_len == largest(&s, 1), "max_kv_len");
                    }
                    close_step(&s);
                }
            }
        }
    }
}

/* Batches x leads x shapes of q, on one buffer: lengths change, the captured arrays follow. */
static void test_graph_metadata(void) {
    static const int32_t counts[] = { 0, 1, 3, 8, 17 }, leads[] = { 0, 1, 4 };
    int b, l, shape_of_q, round, i;
    for (b = 0; b < 5; b++) {
        for (l = 0; l < 3; l++) {
            for (shape_of_q = 0; shape_of_q < 3; shape_of_q++) {
                test_rng r = { (uint64_t)(b * 9 + l * 3 + shape_of_q) };
                step s;
                open_step(&s, counts[b]);
                s.batch.max_q_len = 4;
                s.batch.max_kv_len = 600;
                s.batch.max_rows = counts[b] ? 4 * counts[b] : 1;
                add_tokens(&s, &r, 20, 600, 1 << 16, 1);
                s.in.req_index = s.index;
                s.in.page_size = 32;
                if (shape_of_q == 0) s.batch.q_len = NULL;
                add_buffer(&s);
                for (round = 0; round < 4; round++) {
                    for (i = 0; i < counts[b]; i++) {
                        s.kv_len[i] = test_range(&r, 4, 500) + leads[l];
                        s.q_len[i] = shape_of_q == 1 ? 4 : test_range(&r, 0, 4);
                        s.index[i] = test_range(&r, 0, 19);
                    }
                    check(&s);
                }
                close_step(&s);
            }
        }
    }
}

/* Rows of sparse attention: their own lengths, clamped, with prefix sums; extend whole, in halves, near-full prefix. */
static void test_sparse_lengths(void) {
    static const int32_t counts[] = { 1, 3, 8 }, lengths[] = { 1, 64, 256, 512 };
    int b, l, i, j;
    for (b = 0; b < 3; b++) {
        for (l = 0; l < 4; l++) {
            step s;
            open_step(&s, counts[b]);
            s.in.topk = 256;
            for (i = 0; i < counts[b]; i++) {
                s.kv_len[i] = lengths[l];
                s.q_len[i] = l < 2 ? lengths[l] : lengths[l] / (1 + i % 3);
            }
            if (make(&s)) {
                for (j = 0; j < s.meta.rows; j++) {
                    int last = j + 1 == s.meta.rows || s.meta.row_request[j + 1] != s.meta.row_request[j];
                    int32_t seen = s.meta.seqlens_expand[j];
                    CHECK(last ? seen == lengths[l] : s.meta.seqlens_expand[j + 1] == seen + 1, "row %d", j);
                    CHECK(s.meta.sparse_len[j] == (seen < 256 ? seen : 256), "row %d", j);
                }
            }
            close_step(&s);
        }
    }
    for (i = 0; i < 4; i++) {
        static const int32_t e[] = { 360, 180, 180, 1 }, kv[] = { 360, 180, 360, 200 };
        step s;
        open_step(&s, 1);
        s.in.topk = 256;
        s.q_len[0] = e[i];
        s.kv_len[0] = kv[i];
        if (make(&s)) CHECK(s.meta.seqlens_expand[0] == kv[i] - e[i] + 1, "%d", s.meta.seqlens_expand[0]);
        close_step(&s);
    }
}

/* Four requests of six rows in a table of 131,072 keys: rounds of other lengths on the same addresses. */
static void test_rounds(void) {
    static const int32_t rounds[][4] = { { 64, 128, 2048, 65530 }, { 63, 129, 65539, 100001 },
                                         { 128, 61, 2051, 1023 }, { 6, 131072, 7, 131067 }, { 64, 128, 2048, 65530 } };
    test_rng r = { 31 };
    const int32_t *row_table = NULL;
    step s;
    int i, j;
    open_step(&s, 4);
    s.batch.max_q_len = 6;
    s.batch.max_kv_len = 131072;
    s.batch.max_rows = 24;
    add_tokens(&s, &r, 4, 131072, 1 << 22, 0);
    s.in.page_size = 64;
    for (j = 0; j < 4; j++) s.q_len[j] = 6;
    add_buffer(&s);
    memset(memory_of(&s), 0xff, s.bytes);
    for (i = 0; i < 5; i++) {
        memcpy(s.kv_len, rounds[i], sizeof rounds[i]);
        if (!check(&s)) break;
        CHECK(!row_table || row_table == s.meta.row_table, "the table moved");
        row_table = s.meta.row_table;
        CHECK(s.meta.rows == 24 && s.meta.table_row == 2048, "shape");
        for (j = 0; j < 24; j++) {
            int32_t seen = rounds[i][j / 6] - 5 + j % 6;
            CHECK(s.meta.seqlens_expand[j] == seen && s.meta.sparse_len[j] == (seen < 2048 ? seen : 2048), "row %d", j);
        }
    }
    close_step(&s);
}

/* The page table of any page size from the table of slots, by stride. */
static void test_stride(void) {
    static const int32_t kv[] = { 300, 1, 0, 257 };
    int page;
    for (page = 2; page <= 128; page *= 2) {
        test_rng r = { 41 };
        step slots, strided, direct;
        int i;
        open_step(&slots, 4);
        slots.batch.q_len = NULL;
        memcpy(slots.kv_len, kv, sizeof kv);
        add_tokens(&slots, &r, 9, 400, 1 << 16, 1);
        for (i = 0; i < 4; i++) slots.index[i] = 8 - 2 * i;
        direct = slots;
        slots.in.req_index = slots.index;
        slots.want = ATTN_META_PAGE_TABLE;
        direct.batch.kv_len = direct.kv_len;
        direct.in.req_index = direct.index;
        direct.in.page_size = page;
        direct.want = ATTN_META_PAGE_TABLE;
        strided = direct;
        strided.batch.kv_len = strided.kv_len;
        if (make(&slots) && make(&direct)) {
            strided.in.req_to_token = slots.meta.page_table;
            strided.in.req_to_token_row = slots.meta.table_row;
            strided.in.requests = 4;
            strided.in.req_index = NULL;
            make(&strided);
            expect_values("page_table", strided.meta.page_table, direct.meta.page_table,
                          4 * (int)direct.meta.table_row);
        }
        direct.tokens = NULL;
        strided.tokens = NULL;
        close_step(&direct);
        close_step(&strided);
        close_step(&slots);
    }
}

/* 128k and 1M keys, and the largest that int32 holds. */
static void test_long(void) {
    static const int32_t kv[] = { 131072, 1048576, 1000003, 5, 2000000000 }, e[] = { 1000, 7, 4096, 5, 3 };
    test_rng r = { 51 };
    step s;
    open_step(&s, 5);
    set_lengths(&s, e, kv);
    if (make(&s)) {
        CHECK(s.meta.keys == 131072 + 1048576 + 1000003 + 5 + 2000000000, "keys");
        CHECK(s.meta.indexer_ke[s.meta.rows - 1] == s.meta.keys, "the last row sees the last key");
    }
    close_step(&s);
    open_step(&s, 2);
    set_lengths(&s, e, kv);
    s.q_len[0] = 2;
    s.q_len[1] = 3;
    add_tokens(&s, &r, 2, 1048576, 1 << 24, 0);
    s.in.page_size = 64;
    make(&s);
    close_step(&s);
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

/* Neither the memory nor the struct nor an input changes, with and without an attn_error. */
static void expect_error(step *s, int status, int request, const char *words) {
    static unsigned char memory[4096], clean[4096];
    step before;
    int got;
    memset(memory, POISON, sizeof memory);
    memset(clean, POISON, sizeof clean);
    memset(&s->meta, POISON, sizeof s->meta);
    before = *s;
    got = attn_meta_make(&s->meta, &s->batch, &s->in, s->want, memory, (size_t)-1 / 2, &s->error);
    CHECK(got == status, "%s: status %d", words, got);
    CHECK(strstr(s->error.text, words) != NULL, "\"%s\" is not in \"%s\"", words, s->error.text);
    CHECK(s->error.request == request && s->error.slot == -1, "%s: request %d", words, s->error.request);
    before.error = s->error;
    CHECK(!memcmp(&before, s, sizeof before) && !memcmp(memory, clean, sizeof memory), "%s: written", words);
    if (!got) return;
    CHECK(attn_meta_make(&s->meta, &s->batch, &s->in, s->want, memory, (size_t)-1 / 2, NULL) == status, "%s", words);
}

static void valid(step *s) {
    static const int32_t e[] = { 2, 1, 0, 3 }, kv[] = { 10, 20, 0, 30 };
    test_rng r = { 61 };
    int i;
    open_step(s, 4);
    set_lengths(s, e, kv);
    add_tokens(s, &r, 6, 32, 900, 0);
    for (i = 0; i < 4; i++) s->index[i] = 5 - i;
    s->in.req_index = s->index;
    s->in.page_size = 4;
}

/* One field after the other is broken; the size query gives 0 where it must know. */
static void test_errors(void) {
    static const struct {
        size_t offset;
        int32_t value;
        int size_too, status, request;
        const char *words;
    } cases[] = {
        { offsetof(step, want), 512, 1, ATTN_E_ARGUMENT, -1, "want = 512 has unknown bits" },
        { offsetof(step, want), -1, 1, ATTN_E_ARGUMENT, -1, "want = -1 has unknown bits" },
        { offsetof(step, in.topk), 0, 1, ATTN_E_ARGUMENT, -1, "input.topk = 0, but it must be at least 1" },
        { offsetof(step, in.page_size), 0, 1, ATTN_E_ARGUMENT, -1, "input.page_size = 0, but it must be at least 1" },
        { offsetof(step, in.page_size), -4, 1, ATTN_E_ARGUMENT, -1, "input.page_size = -4" },
        { offsetof(step, in.requests), 4, 0, ATTN_E_BATCH, 0, "req_index[0] = 5, but input.requests = 4" },
        { offsetof(step, index) + 4, -1, 0, ATTN_E_BATCH, 1, "req_index[1] = -1, but input.requests = 6" },
        { offsetof(step, index) + 12, 6, 0, ATTN_E_BATCH, 3, "req_index[3] = 6, but input.requests = 6" },
        { offsetof(step, kv_len) + 4, 33, 0, ATTN_E_BATCH, 1, "kv_len[1] = 33 is more than input.req_to_token_row" },
        { offsetof(step, kv_len) + 4, -1, 1, ATTN_E_BATCH, 1, "kv_len[1] = -1 is negative" },
        { offsetof(step, q_len) + 12, -1, 1, ATTN_E_BATCH, 3, "q_len[3] = -1 is negative" },
        { offsetof(step, batch.n), -1, 1, ATTN_E_BATCH, -1, "batch.n = -1 is negative" },
        { offsetof(step, batch.max_q_len), -1, 1, ATTN_E_BATCH, -1, "batch.max_q_len = -1 is negative" },
        { offsetof(step, batch.max_q_len), 2, 1, ATTN_E_BATCH, 3, "q_len[3] = 3 is more than batch.max_q_len = 2" },
        { offsetof(step, batch.max_kv_len), 29, 1, ATTN_E_BATCH, 3, "kv_len[3] = 30 is more than batch.max_kv_len" },
    };
    size_t i;
    step s;
    valid(&s);
    CHECK(make(&s), "the unbroken step");
    close_step(&s);
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t bytes;
        valid(&s);
        memcpy((char *)&s + cases[i].offset, &cases[i].value, 4);
        expect_error(&s, cases[i].status, cases[i].request, cases[i].words);
        bytes = attn_meta_bytes(&s.batch, &s.in, s.want);
        CHECK(cases[i].size_too ? !bytes : bytes > 0, "%s: %d bytes", cases[i].words, (int)bytes);
        close_step(&s);
    }
}

static void test_pointer_errors(void) {
    step s;
    int32_t phase[4] = { 0, 1, 0, 7 };
    valid(&s);
    s.in.req_to_token = NULL;
    expect_error(&s, ATTN_E_ARGUMENT, -1, "input.req_to_token is NULL");
    s.in.req_to_token = s.tokens;
    s.batch.kv_len = NULL;
    expect_error(&s, ATTN_E_BATCH, -1, "batch.kv_len is NULL");
    s.batch.kv_len = s.kv_len;
    s.batch.phase = phase;
    expect_error(&s, ATTN_E_BATCH, 3, "phase[3] = 7 is no attn_phase");
    s.batch.phase = NULL;
    s.batch.max_rows = 5;
    expect_error(&s, ATTN_E_BATCH, -1, "sum of q_len = 6 is more than batch.max_rows = 5");
    s.batch.max_rows = (int64_t)1 << 31;
    expect_error(&s, ATTN_E_BATCH, -1, "batch.max_rows = 2147483648");
    s.batch.max_rows = 0;
    s.in.requests = 3;
    s.in.req_index = NULL;
    expect_error(&s, ATTN_E_BATCH, 3, "req_index[3] = 3, but input.requests = 3");
    s.in.requests = 6;
    CHECK(attn_meta_make(NULL, &s.batch, &s.in, s.want, &s, 1 << 20, &s.error) == ATTN_E_ARGUMENT &&
          strstr(s.error.text, "meta is NULL"), "%s", s.error.text);
    CHECK(attn_meta_make(&s.meta, NULL, &s.in, s.want, &s, 1 << 20, &s.error) == ATTN_E_ARGUMENT &&
          strstr(s.error.text, "batch is NULL"), "%s", s.error.text);
    CHECK(attn_meta_make(&s.meta, &s.batch, NULL, s.want, &s, 1 << 20, &s.error) == ATTN_E_ARGUMENT &&
          strstr(s.error.text, "input is NULL"), "%s", s.error.text);
    CHECK(!attn_meta_bytes(NULL, &s.in, s.want) && !attn_meta_bytes(&s.batch, NULL, s.want), "sizes of nothing");
    CHECK(attn_meta_bytes(&s.batch, NULL, ATTN_META_EXPAND | ATTN_META_PAD) > 0, "no input is needed for these");
    s.batch.n = 1;
    s.kv_len[0] = -1;
    CHECK(!attn_meta_bytes(&s.batch, &s.in, s.want), "the size of one wrong request");
    s.batch.max_q_len = 2;
    s.batch.max_kv_len = 30;
    s.batch.max_rows = 2;
    CHECK(attn_meta_bytes(&s.batch, &s.in, s.want) > 0, "with all capacities no length is read");
    close_step(&s);
}

static void test_memory_errors(void) {
    step s;
    unsigned char *memory;
    valid(&s);
    add_buffer(&s);
    memory = (unsigned char *)memory_of(&s);
    memset(&s.meta, POISON, sizeof s.meta);
    CHECK(attn_meta_make(&s.meta, &s.batch, &s.in, s.want, NULL, s.bytes, &s.error) == ATTN_E_MEMORY &&
          strstr(s.error.text, "mem is NULL"), "%s", s.error.text);
    CHECK(attn_meta_make(&s.meta, &s.batch, &s.in, s.want, memory, s.bytes - 1, &s.error) == ATTN_E_MEMORY &&
          strstr(s.error.text, "but it needs"), "%s", s.error.text);
    CHECK(attn_meta_make(&s.meta, &s.batch, &s.in, s.want, memory + 2, s.bytes + 4, &s.error) == ATTN_E_MEMORY &&
          strstr(s.error.text, "not aligned"), "%s", s.error.text);
    CHECK(memory[0] == POISON && memory[s.bytes - 1] == POISON && s.meta.n == 0x5a5a5a5a, "something was written");
    CHECK(check(&s), "the exact size is enough");
    close_step(&s);
}

/* Capacities whose arrays no memory holds, or whose padded index is no int32. */
static void test_huge(void) {
    attn_batch batch;
    attn_meta_input in;
    memset(&batch, 0, sizeof batch);
    memset(&in, 0, sizeof in);
    batch.n = INT32_MAX;
    batch.max_q_len = 1;
    batch.max_kv_len = INT32_MAX;
    batch.max_rows = INT32_MAX;
    in.page_size = 1;
    in.topk = 1;
    CHECK(!attn_meta_bytes(&batch, &in, ATTN_META_PAGE_TABLE | ATTN_META_ROW_TABLE), "2^63 words");
    batch.n = 65536;
    batch.max_q_len = 32767;
    batch.max_kv_len = 1048576;
    CHECK(attn_meta_bytes(&batch, &in, ATTN_META_PAD) > 0 || sizeof(size_t) == 4, "2^31 - 65536 padded rows");
    batch.max_q_len = 32768;
    CHECK(!attn_meta_bytes(&batch, &in, ATTN_META_PAD), "2^31 padded rows");
    batch.max_q_len = 8;
    batch.n = 1024;
    batch.max_rows = 8192;
    if (sizeof(size_t) > 4) {
        CHECK(attn_meta_bytes(&batch, &in, ATTN_META_ROW_TABLE) == (size_t)8192 * (1048576 + 2) * 4, "32 GiB");
    }
}

/* A padded length above int32 names its request. */
static void test_padded_length(void) {
    static const int32_t e[] = { 3, 0 }, kv[] = { 100, INT32_MAX - 101 };
    step s;
    open_step(&s, 2);
    set_lengths(&s, e, kv);
    s.want = ATTN_META_PAD;
    CHECK(make(&s), "100 + 3 fit");
    s.batch.max_q_len = 102;
    expect_error(&s, ATTN_E_BATCH, 1, "kv_len[1] = 2147483546: padded it is above 2^31-1");
    close_step(&s);
}

/* ---- attention over these arrays --------------------------------------------------------------------------------- */

enum { HEADS = 16, KV_HEADS = 2, DIM = 16, PAGE = 16, CONTEXT = 1024, POOL = 8 * CONTEXT / PAGE, MAX_ROWS = 64 };

static float q[MAX_ROWS * HEADS * DIM], k[POOL * PAGE * KV_HEADS * DIM], v[POOL * PAGE * KV_HEADS * DIM];
static float sinks[HEADS];

typedef struct output {
    float o[MAX_ROWS * HEADS * DIM], lse[MAX_ROWS * HEADS];
} output;

static output ragged, rows, padded;

static void fill(float *x, int count, test_rng *r) {
    int i;
    for (i = 0; i < count; i++) x[i] = test_uniform(r);
}

/* Every request owns CONTEXT slots in pages of random order. */
static void fill_pool(step *s) {
    test_rng r = { 71 };
    int32_t pages[POOL];
    int i, t;
    fill(q, MAX_ROWS * HEADS * DIM, &r);
    fill(k, POOL * PAGE * KV_HEADS * DIM, &r);
    fill(v, POOL * PAGE * KV_HEADS * DIM, &r);
    fill(sinks, HEADS, &r);
    add_tokens(s, &r, 8, CONTEXT, 1, 0);
    for (i = 0; i < POOL; i++) pages[i] = i;
    for (i = POOL - 1; i > 0; i--) {
        int j = test_range(&r, 0, i), page = pages[i];
        pages[i] = pages[j];
        pages[j] = page;
    }
    for (i = 0; i < 8; i++) {
        for (t = 0; t < CONTEXT; t++) {
            s->tokens[i * CONTEXT + t] = pages[(i * CONTEXT + t) / PAGE] * PAGE + t % PAGE;
        }
    }
    s->in.page_size = PAGE;
}

static void set_layer(attn_layer *layer, int variant, int isa) {
    memset(layer, 0, sizeof *layer);
    layer->heads = HEADS;
    layer->kv_heads = KV_HEADS;
    layer->head_dim = DIM;
    layer->page_size = PAGE;
    layer->row_tile = 16;
    layer->workers = 13;
    layer->isa = isa;
    if (variant == 1) layer->window_left = 600;
    if (variant == 2) layer->softcap = 3.0f;
    if (variant == 3) layer->sink_keys = 4;
    if (variant == 3) layer->window_left = 520;
    if (variant == 4) layer->chunk = 700;
}

/* Plans and runs; NULL mem: memory of its own. big: the plan must have >= 3 units in a strip, cut between workers,
   and two row tiles of one head. */
static void forward(const attn_batch *batch, const attn_layer *layer, const int32_t *table, int64_t table_row,
                    output *out, void *mem, size_t bytes, int big) {
    attn_plan plan;
    attn_error error;
    attn_io io;
    attn_exec exec;
    size_t needed = attn_plan_bytes(batch, layer);
    void *own = mem ? NULL : malloc(needed);
    int i, units = 0, tiles = 0;
    memset(out, 0x77, sizeof *out);
    memset(&io, 0, sizeof io);
    memset(&exec, 0, sizeof exec);
    io.q = q;
    io.k = k;
    io.v = v;
    io.o = out->o;
    io.lse = out->lse;
    io.sinks = sinks;
    io.page_table = table;
    io.page_table_row = table_row;
    io.pages = POOL;
    CHECK(!mem || bytes >= needed, "%d bytes, but %d are needed", (int)bytes, (int)needed);
    if (attn_plan_make(&plan, batch, layer, mem ? mem : own, mem ? bytes : needed, &error)) {
        CHECK(0, "%s", error.text);
        free(own);
        return;
    }
    for (i = 0; i < plan.strips; i++) {
        const int32_t *strip = plan.words + plan.words[13] + 8 * i;
        units |= strip[7] >= 3;
        tiles |= strip[3] > 0;
    }
    CHECK(!big || (units && tiles && plan.merges > 0), "units %d, tiles %d, merges %d", units, tiles, plan.merges);
    exec.bytes = attn_exec_bytes(&plan, 1);
    exec.mem = malloc(exec.bytes);
    CHECK(!attn_forward(&plan, layer, &io, &exec, &error), "%s", error.text);
    free(exec.mem);
    free(own);
}

/* Each row as a request of its own gives the bits of the ragged batch in the decode family. */
static void test_expanded_plan(void) {
    static const int32_t e[] = { 5, 1, 0, 3, 8, 0, 1 }, kv[] = { 900, 257, 40, 640, 8, 0, 256 };
    int32_t phase[7];
    step s;
    int variant, isa, i;
    open_step(&s, 7);
    set_lengths(&s, e, kv);
    for (i = 0; i < 7; i++) phase[i] = ATTN_DECODE;
    s.batch.phase = phase;
    fill_pool(&s);
    if (make(&s)) {
        for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
            for (variant = 0; variant < 5; variant++) {
                attn_layer layer;
                set_layer(&layer, variant, isa);
                forward(&s.batch, &layer, s.meta.page_table, s.meta.table_row, &ragged, NULL, 0, 1);
                forward(&s.meta.row_batch, &layer, s.meta.row_table, s.meta.table_row, &rows, NULL, 0, 0);
                CHECK(!memcmp(&ragged, &rows, sizeof rows), "isa %d, variant %d", isa, variant);
                forward(&s.meta.row_batch, &layer, s.meta.row_table, 0, &rows, NULL, 0, 0);
                CHECK(!memcmp(&ragged, &rows, sizeof rows), "isa %d, variant %d, table_row 0", isa, variant);
            }
        }
    }
    close_step(&s);
}

/* Lengths grow over 256 and 512 step by step in buffers sized once: metadata and plan follow, the bits are those of
   buffers of their own, and of the batch whose rows share a request. */
static void test_refresh(void) {
    static const int32_t e[] = { 4, 1, 3, 2 }, start[] = { 250, 254, 510, 700 };
    int32_t phase[4] = { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };
    attn_layer layer;
    step s, fresh;
    size_t bytes;
    void *mem;
    int t, i;
    open_step(&s, 4);
    set_lengths(&s, e, start);
    fill_pool(&s);
    s.batch.phase = phase;
    s.batch.max_q_len = 6;
    s.batch.max_kv_len = CONTEXT;
    s.batch.max_rows = 24;
    add_buffer(&s);
    memset(memory_of(&s), 0xff, s.bytes);
    set_layer(&layer, 0, 0);
    check(&s);
    bytes = attn_plan_bytes(&s.meta.row_batch, &layer);
    mem = malloc(bytes);
    memset(mem, 0xff, bytes);
    for (t = 0; t < 12; t++) {
        for (i = 0; i < 4; i++) s.kv_len[i] = start[i] + t;
        s.q_len[0] = 1 + t % 4;
        if (!check(&s)) break;
        forward(&s.meta.row_batch, &layer, s.meta.row_table, s.meta.table_row, &rows, mem, bytes, 0);
        fresh = s;
        fresh.buffer = NULL;
        fresh.batch.q_len = fresh.q_len;
        fresh.batch.kv_len = fresh.kv_len;
        fresh.batch.max_q_len = fresh.batch.max_kv_len = 0;
        fresh.batch.max_rows = 0;
        make(&fresh);
        forward(&fresh.batch, &layer, fresh.meta.page_table, fresh.meta.table_row, &ragged, NULL, 0, 1);
        CHECK(!memcmp(&ragged, &rows, sizeof rows), "step %d: the batch of its own", t);
        forward(&fresh.meta.row_batch, &layer, fresh.meta.row_table, 0, &ragged, NULL, 0, 0);
        CHECK(!memcmp(&ragged, &rows, sizeof rows), "step %d: rows of their own", t);
        fresh.tokens = NULL;
        close_step(&fresh);
    }
    free(mem);
    close_step(&s);
}

/* The batch captured with 4 requests runs 1 .. 4 of them, pads in any place: their rows as without pads. */
static void test_replay_numbers(void) {
    int32_t phase[4] = { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };
    test_rng r = { 81 };
    attn_layer layer;
    step s, real;
    int live, i;
    set_layer(&layer, 1, 0);
    open_step(&s, 4);
    fill_pool(&s);
    s.batch.phase = phase;
    s.batch.max_q_len = 5;
    s.batch.max_kv_len = CONTEXT;
    s.batch.max_rows = 20;
    add_buffer(&s);
    for (live = 1; live < 16; live++) {
        open_step(&real, 0);
        for (i = 0; i < 4; i++) {
            s.q_len[i] = s.kv_len[i] = 0;
            if (!(live >> i & 1)) continue;
            s.kv_len[i] = test_range(&r, 770, CONTEXT);
            s.q_len[i] = test_range(&r, 3, 5);
            real.q_len[real.batch.n] = s.q_len[i];
            real.kv_len[real.batch.n] = s.kv_len[i];
            real.index[real.batch.n++] = i;
        }
        real.batch.phase = phase;
        real.in = s.in;
        real.in.req_index = real.index;
        real.want = ATTN_META_ALL;
        if (!check(&s) || !make(&real)) break;
        forward(&s.batch, &layer, s.meta.page_table, s.meta.table_row, &rows, NULL, 0, 1);
        forward(&real.batch, &layer, real.meta.page_table, real.meta.table_row, &ragged, NULL, 0, 1);
        CHECK(!memcmp(&ragged, &rows, sizeof rows), "requests %d", live);
        forward(&s.meta.row_batch, &layer, s.meta.row_table, s.meta.table_row, &rows, NULL, 0, 0);
        CHECK(!memcmp(&ragged, &rows, sizeof rows), "rows of requests %d", live);
        close_step(&real);
    }
    close_step(&s);
}

/* Padded to the longest request, with pad_len as lengths and pages for the keys past the end, the real rows keep their
   bits. */
static void test_padded_numbers(void) {
    static const int32_t e[] = { 0, 3, 1, 5 }, kv[] = { 600, 900, 511, 770 };
    static float packed[MAX_ROWS * HEADS * DIM];
    int32_t phase[4] = { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE, ATTN_DECODE }, uniform[4];
    attn_layer layer;
    attn_batch batch;
    step s, longer;
    int i, row = HEADS * DIM;
    set_layer(&layer, 0, 0);
    open_step(&s, 4);
    set_lengths(&s, e, kv);
    s.batch.phase = phase;
    fill_pool(&s);
    if (make(&s)) {
        forward(&s.batch, &layer, s.meta.page_table, s.meta.table_row, &ragged, NULL, 0, 1);
        longer = s;
        longer.buffer = NULL;
        longer.batch.q_len = longer.q_len;
        longer.batch.kv_len = s.meta.pad_len;
        memcpy(longer.kv_len, s.meta.pad_len, sizeof kv);
        longer.want = ATTN_META_PAGE_TABLE;
        make(&longer);
        memset(&batch, 0, sizeof batch);
        for (i = 0; i < 4; i++) uniform[i] = s.meta.max_q_len;
        batch.n = 4;
        batch.q_len = uniform;
        batch.kv_len = s.meta.pad_len;
        batch.phase = phase;
        memcpy(packed, q, sizeof q);
        memset(q, 0, sizeof q);
        for (i = 0; i < 4 * s.meta.max_q_len; i++) {
            int from = s.meta.pad_row[i];
            if (from >= 0) memcpy(q + i * row, packed + from * row, (size_t)row * sizeof(float));
        }
        forward(&batch, &layer, longer.meta.page_table, longer.meta.table_row, &padded, NULL, 0, 1);
        for (i = 0; i < s.meta.rows; i++) {
            int from = s.meta.unpad_row[i];
            CHECK(!memcmp(ragged.o + i * row, padded.o + from * row, (size_t)row * sizeof(float)), "o of row %d", i);
            CHECK(!memcmp(ragged.lse + i * HEADS, padded.lse + from * HEADS, HEADS * sizeof(float)), "lse of %d", i);
        }
        longer.tokens = NULL;
        close_step(&longer);
    }
    close_step(&s);
}

/* Rows without a key in attention: o = 0 and lse = the sink, no fault; the row with one key gets its value. */
static void test_trap_2_numbers(void) {
    static const int32_t e[] = { 6, 4 }, kv[] = { 1, 1 };
    attn_layer layer;
    step s;
    int i, h, d;
    open_step(&s, 2);
    set_lengths(&s, e, kv);
    fill_pool(&s);
    set_layer(&layer, 0, 0);
    layer.mask = ATTN_FULL;
    if (make(&s)) {
        forward(&s.meta.row_batch, &layer, s.meta.row_table, s.meta.table_row, &rows, NULL, 0, 0);
        for (i = 0; i < 10; i++) {
            for (h = 0; h < HEADS; h++) {
                const float *o = rows.o + (i * HEADS + h) * DIM;
                float lse = rows.lse[i * HEADS + h];
                int filled = 0;
                for (d = 0; d < DIM; d++) filled += o[d] != 0;
                if (i == 5 || i == 9) {
                    CHECK(filled == DIM && lse > sinks[h], "row %d sees a key", i);
                } else {
                    CHECK(!filled && lse == sinks[h], "row %d sees none", i);
                }
            }
        }
    }
    close_step(&s);
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    test_run("vectors", test_vectors);
    test_run("each mode's sums and lists", test_modes);
    test_run("trap 1: verify and draft-extend-v2 give the same bytes", test_trap_1);
    test_run("trap 2: more rows than keys", test_trap_2);
    test_run("trap 2: attention of rows without keys", test_trap_2_numbers);
    test_run("trap 3: no rows, no requests, tails untouched", test_trap_3);
    test_run("trap 4: row counts above the capacities", test_trap_4);
    test_run("trap 5: the clamp at topk", test_trap_5);
    test_run("trap 6: table width at the end of the context", test_trap_6);
    test_run("trap 11: a batch with pads counts its requests", test_trap_11);
    test_run("trap 12: replay smaller than the capture", test_trap_12);
    test_run("trap 12: attention of a replay", test_replay_numbers);
    test_run("trap 13: strides stay the captured ones", test_trap_13);
    test_run("trap 18: sums above int32", test_trap_18);
    test_run("trap 19: pad and unpad", test_trap_19);
    test_run("trap 19: attention of a padded batch", test_padded_numbers);
    test_run("random steps against the definitions", test_random);
    test_run("page tables: contexts, page sizes, batches", test_page_tables);
    test_run("decode metadata: page sizes, batches, leads, pools", test_decode_metadata);
    test_run("graph metadata: batches, leads, shapes of q", test_graph_metadata);
    test_run("sparse lengths", test_sparse_lengths);
    test_run("rounds on the same addresses", test_rounds);
    test_run("a page table by stride", test_stride);
    test_run("128k and 1M keys", test_long);
    test_run("errors name the argument or request", test_errors);
    test_run("errors: pointers, capacities", test_pointer_errors);
    test_run("errors: memory", test_memory_errors);
    test_run("errors: sizes that cannot be", test_huge);
    test_run("errors: a padded length", test_padded_length);
    test_run("rows as requests give the bits of the batch", test_expanded_plan);
    test_run("trap 16: refreshed from 256 to 257", test_refresh);
    return test_close("meta");
}
