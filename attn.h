/* attn.h - v0.1.0-dev - attention for LLM inference in one C header - licence at the end of the file

   DO THIS
      #define ATTN_IMPLEMENTATION     in exactly one .c or .cpp file, before
      #include "attn.h"               elsewhere include it plainly.
      No flags, no libraries, no build step: cc prog.c is enough. AVX2, AVX-512 or AMX is picked at run time (AArch64:
      NEON); do not pass -mavx2 or -march=native for our sake, it would only raise the minimum CPU of your program.

   CONTENTS (search for the anchor)
      >>example  >>concepts  >>layouts  >>masks  >>score  >>numerics  >>memory  >>threads  >>errors  >>options
      >>engines  >>does_not  >>types  >>api; implementation: >>platform  >>text  >>defaults  >>spans  >>plan  >>convert
      >>maths  >>leaves  >>leaves_scalar  >>leaves_vec  >>leaves_avx512  >>leaves_amx  >>dispatch  >>explain
      >>state  >>tiles  >>check  >>skip  >>prefill  >>decode  >>run  >>tools  >>sparse  >>rope  >>modes  >>meta

   >>example  Three new query rows over five keys, causal, two heads. A complete program:

      #define ATTN_IMPLEMENTATION
      #include "attn.h"
      #include <stdio.h>
      #include <stdlib.h>
      int main(void) {
          enum { ROWS = 3, KEYS = 5, HEADS = 2, D = 4 };          // two keys were there before, three are new
          static float q[ROWS * HEADS * D], k[KEYS * HEADS * D], v[KEYS * HEADS * D], o[ROWS * HEADS * D];
          for (int i = 0; i < KEYS * HEADS * D; i++) v[i] = (float)(i / (HEADS * D)); // q = k = 0: o is the mean of v
          int32_t q_len = ROWS, kv_len = KEYS;
          attn_batch batch = { .n = 1, .q_len = &q_len, .kv_len = &kv_len };
          attn_layer layer = { .heads = HEADS, .head_dim = D };
          attn_io io = { .q = q, .k = k, .v = v, .o = o };
          attn_plan plan;
          attn_error err;
          size_t bytes = attn_plan_bytes(&batch, &layer);
          void *plan_mem = malloc(bytes);
          if (attn_plan_make(&plan, &batch, &layer, plan_mem, bytes, &err)) { puts(err.text); return 1; }
          attn_exec exec = { .bytes = attn_exec_bytes(&plan, 1) };
          exec.mem = malloc(exec.bytes);
          if (attn_forward(&plan, &layer, &io, &exec, &err)) { puts(err.text); return 1; }
          for (int r = 0; r < ROWS; r++) printf("row %d sees keys 0..%d: %g\n", r, KEYS - ROWS + r, o[r * HEADS * D]);
          free(exec.mem); free(plan_mem);                         // prints: row 0 sees keys 0..2: 1
          return 0;                                               // prints: row 1 sees keys 0..3: 1.5
      }                                                           // prints: row 2 sees keys 0..4: 2

   >>concepts  A step of an inference program runs every layer of a model over a batch of requests.
      batch  who: for each request how many new query rows (q_len = E) and how many keys (kv_len = KV, the new ones
             included, already in the cache). A decode step has E = 1, a prompt E = KV, a chunk of a prompt E < KV.
      layer  what: heads, dims, types, mask, window, scale. Layers that agree in all of it are one class.
      plan   made once per step and class by attn_plan_make: copies the lengths and cuts the work into tasks. Every
             layer of the class runs with the same plan; the length arrays are not read again.
      io     where: pointers and strides of one layer's q, k, v and o.
      exec   how: scratch memory, and threads if there are any.
      Per step: fill batch, make a plan per class; per layer: attn_append the new keys, attn_forward.
      Phases: PREFILL rows are computed many at a time, DECODE rows few at a time with the keys streamed once. Each
      request has a phase (batch.phase; without it: DECODE if batch.q_len is NULL, else PREFILL). Any E works in both:
      drafts that a target model verifies run as DECODE with E = 2, 3, ..., to get the bits of plain decoding.

   >>layouts  All strides count elements; 0 means packed.
      q, o    [row][head][dim], the rows of all requests one after another in request order; lse [row][head]
      k, v    contiguous  [key][kv_head][dim]; request i at i * k_page (padded) or, k_page being 0, end to end (ragged)
              paged       [page][slot][kv_head][dim]; key p of request i in page page_table[i][p / page_size],
                          slot p % page_size. Pages in any order, also shared; entries that no row needs are never read
              head-major  k_head = capacity * head_dim, k_row = head_dim
              latent      flag ATTN_V_IN_K: V is the first v_dim elements of K's row (absorbed MLA: 576 and 512).
                          kv_heads is 1; io.v, v strides and new_v stay 0; scale must be given: not 1 / sqrt(head_dim)
              ring        layer.ring = R slots per request, at i * k_page (0: R rows) or in the first R / page_size
                          pages of the table row; key p in slot p mod R. Needs window_left and
                          R >= window_left - 1 + max_q_len; then up to max_q_len appended rows can be taken back exactly

   >>masks  Row j of a request has position P + j, P = KV - E (bottom-right aligned). attn_visible is all of it in code.
      CAUSAL        keys 0 .. P + j.
      FULL          all keys: encoders and cross attention. Any E and KV; the other masks need E <= KV.
      PREFIX        prefix-LM: keys below max(batch.prefix[i], P + j + 1).
      BLOCK         block diffusion, layer.chunk = L: keys below min(KV, P + L * (j / L + 1)).
      TREE, TOPK    drafts that see their ancestors, lists of keys: see >>engines.
      chunk         n with CAUSAL: only the keys with key / n = (P + j) / n (chunked local attention).
      window_left   n: only the n keys up to the row's own position, itself included; 1 is the row itself, 0 no limit.
                    Engines that speak of a radius (sliding_window_size): attn_window_from_radius.
      window_right  n: only the n keys from the row's own position on. CAUSAL ignores it.
      sink_keys     n: keys 0 .. n - 1 stay visible outside the window.

   >>score  logit = scale * q.k, or softcap * tanh(scale * q.k / softcap); + io.alibi[head] * (key - position); then
      the mask; o = sum of exp(logit - lse) * v over the visible keys; lse = ln(sum of exp(logit)), with io.sinks[head]
      as one more logit that has no value (unscaled, uncapped). Without a visible key: o = 0, lse = the sink or -inf.

   >>numerics  Sums are f32. A row's bits depend on its q, its visible keys and values, the layer, the phase and the
      instruction set, and on nothing else: not on the other requests or their order, on threads, on how a prompt is
      chunked, on E, on the page layout, strides, capacities, row_tile or workers. So a verified draft row equals the
      decode row, and a chunked prompt the whole one, byte for byte. key_tile and split_keys do belong to the layer and
      change bits. Between phases and instruction sets results agree within rounding. A NaN or inf among a row's visible
      inputs may spoil that row, never another; what lies past a length or in unused pages is not looked at.
      AMX: where q, KV and o are all bf16 (head_dim and v_dim multiples of 32) prompts (PREFILL) round weights to bf16.
      Types of q, o and KV: f32, f16, bf16, in any mixture, KV also of 8 bits; stores round to nearest even. The host's
      fast-math flags do not reach our code (gcc, MSVC, clang on x86-64). On 32-bit x86 the bits need SSE, not x87.

   >>memory  The library allocates nothing. Plan memory: attn_plan_bytes. Scratch: attn_exec_bytes(plan, lanes): one
      block per lane, and for requests in phase DECODE room for the partial results of split rows, bounded by
      layer.workers, not by n. (split_keys keeps one partial result per row tile and split.) Both follow from the layer,
      n, max_q_len, max_kv_len, max_rows and which of q_len and phase are NULL: set these, and buffers serve every step.

   >>threads  None are started. With lanes > 1 attn_forward calls exec.parallel_for with a function that pulls tasks;
      or run the tasks in your own job system, some now and some in the next frame: attn_check, attn_task_count,
      attn_task. plan.largest_task says how coarse they are; layer.workers (DECODE), row_tile and split_keys (PREFILL)
      make them smaller. Calls share nothing: any number of threads may use one plan, each with its own exec.

   >>errors  Functions return 0 or an attn_status; an optional attn_error names argument, request and slot in words
      ("page_table[3][12] = 4096, but there are 2048 pages"). All checks come before the first store: on an error
      nothing is written but that sentence. n = 0 and zero lengths are no errors.

   >>engines  Chapter 2, for inference engines. Prototypes need none of it.
      Forward modes. An engine's seq_lens counts something else in each mode; attn_batch_from_mode takes the number as
      it is and makes E, KV and phase of it, once. D = draft_tokens, s = draft_step; P = KV - E as everywhere.
         mode               seq_lens counts           E               KV                 phase
         EXTEND             prefix and new tokens     extend_lens     seq_lens           PREFILL   prompts, chunks
         MIXED (with decoding requests), SPLIT_PREFILL (layers in parts), DLLM_EXTEND (diffusion blocks): as EXTEND
         DECODE             the new token too         1               seq_lens           DECODE
         DRAFT_DECODE       tokens before step 0      1               seq_lens + s + 1   DECODE    a draft model's loop
         TARGET_VERIFY      the prefix only           D               seq_lens + D       DECODE    drafts are scored
         DRAFT_EXTEND       the accepted tokens too   extend_lens     seq_lens           DECODE    draft takes accepted
         DRAFT_EXTEND_V2    all D drafts too          D               seq_lens           DECODE    draft takes all D
         IDLE               not read                  0               0                  PREFILL   pads only
      seq_lens[i] = -1 is a pad (E = KV = 0), so that a captured batch replays a smaller one. batch.prefix is left NULL.

      Metadata. attn_meta_make writes the index arrays that kernels and other libraries ask for, all int32, from a
      batch; i is a request, j one of its rows, r = cu_seqlens_q[i] + j:
         cu_seqlens_q, cu_seqlens_k [n + 1]   sum of E, sum of KV of the requests before i
         positions, row_request [rows]     P + j, below 0 where E > KV; i
         seqlens_expand   [rows]           keys of a causal row: max(0, P + j + 1)
         sparse_len       [rows]           min(seqlens_expand, topk)
         cu_sparse        [rows + 1]       sum of the sparse_len before r
         indexer_ks, indexer_ke [rows]     cu_seqlens_k[i], its first key of all laid end to end; that + seqlens_expand
         topk_offset      [rows]           cu_seqlens_k[i]: added to the row's own key numbers in ragged top-k lists
         page_table       [n][table_row]   req_to_token[req_index[i]][p * page_size] / page_size for the columns
                                           p < ceil(KV / page_size); -1 in the others and for evicted slots
         row_table        [rows][table_row]   page_table[i] again for each of its rows
         row_q_len, row_kv_len [max_rows]  1 and seqlens_expand, 0 and 0 past the last row: row_batch has them
         pad_row          [n][max_q_len]   r for j < E, else -1: q_padded[i][j] = q[pad_row]
         unpad_row        [rows]           i * max_q_len + j: o[r] = o_padded[unpad_row]
         pad_len          [n]              KV - E + max_q_len: real rows keep their keys, padding looks past KV
      A pad writes no row, adds 0 to the sums and has -1 in all its columns. With page_size 1, page_table lists slots;
      given back as req_to_token without req_index it yields the page table of any page_size by stride. A second cache
      (a sliding-window pool) takes a second call with its own req_to_token. Strides are the capacities: with these set,
      an array has the same address and stride in every step. Entries past n, rows or rows + 1 are not written.

      Rows as requests. meta.row_batch has n = max_rows: first the rows, with E = 1, KV = seqlens_expand, phase DECODE,
      then pads; so one captured graph serves all steps. With row_table as the page table a plan of it gives the bits
      of the batch in phase DECODE. For kernels that take one row a request: attn_forward does better with the batch,
      whose keys it reads once. Only CAUSAL (windows, sinks, chunks) and TOPK: with other masks rows see keys past their
      position. The cache must be paged, without scales per request. Rows without keys (E > KV) need ATTN_FULL there.

      Trees of drafts, mask TREE. Row j sees the cached keys 0 .. P - 1 and draft P + b where bit b of its io.tree row
      is set: its ancestors and itself (its own bit is a must). Its position is P + depth, depth = its set bits - 1; a
      draft's key has the position of its row. Windows and ALiBi compare these positions. A chain (row j: bits 0 .. j)
      gives the bits of CAUSAL. After verification copy the accepted keys to P, P + 1, ...; the next kv_len counts them.

      Sparse rows, mask TOPK. Row r sees those of its causal keys (and window) that io.topk[r] lists, in any order, -1
      anywhere; later keys are masked, repeated ones an error. Keys count by their rank among those seen: bits depend on
      the set alone; a list of all keys, without a window, gives those of CAUSAL. Per layer: attn_index_score, the
      scores of a small indexer (kv_heads 1, DECODE, an own K cache written by attn_append with ATTN_V_IN_K); attn_topk,
      the lists, from columns 0 .. seqlens_expand, or indexer_ks .. indexer_ke of a matrix over all keys; attn_forward,
      which reads only the listed K and V. It pays for lists far shorter than the context: rows share no reads.

      KV of 8 bits. The cache holds x / scale; k_scale goes into the logit (inside the softcap), v_scale into o. Their
      shapes: attn_scale; NULL is 1, which int8 refuses. The 8-bit types saturate (int8 at 127), NaN becomes 0x7F, in
      int8 0. PER_KEY (int8): attn_append finds the scales; beside a padded or ring cache of C slots a request (C =
      k_page / k_row or, head-major, k_head / k_row; v as k) request i's start at key i * C. With ATTN_V_IN_K k_scale
      serves both. f16, bf16 and f32 caches take scales, too. ATTN_FAST_INT8 rounds each head's row of q to int8: s *
      round(q / s), s = largest |q| / 127. PREFILL gains a third with AVX-512 VNNI; elsewhere it only costs exactness.

      Skip-softmax, layer.skip. Where all logits of a key tile lie far below what rows have seen, its softmax and V (not
      K) are left out; DECODE does not read that V. EPS needs no calibration: a row loses at most eps / (1 + eps) of its
      softmax; start with .01. FACTOR takes an engine's calibrated factors (lambda = factor / kv_len), LAMBDA a
      threshold per request: exp(tile's largest logit - reference) < lambda goes. Factors belong to a tile geometry:
      ours is key_tile (64) keys by a kv head's rows (DECODE) or the rows in the vector lanes (PREFILL, 16 or 64).
      lambda >= 1 would drop nearly all, so requests run dense (dense_tiles). io.certificate bounds each row's loss,
      relative to the logits of this call: |o - dense o| <= certificate * (largest - smallest v of the row's keys, 0
      among them if it has a sink); the dense lse is at most -ln(1 - certificate) larger. The histogram (lambda = 1e-30)
      tells what lambda = e^(-i / 2), i > 0, would skip: its entries from i on, but for ties. Skipping makes bits depend
      on E, chunks and row_tile (rows decide together), not on lanes, neighbours, pages or workers. Not for TOPK.

   >>options  #define before the implementation:
      ATTN_API        how functions are declared, e.g. __declspec(dllexport);  ATTN_STATIC: all static
      ATTN_ASSERT(x)  for the library's own invariants; default nothing;  ATTN_NO_SIMD: only the portable leaves

   >>does_not  load models, tokenize, start threads, allocate, print, abort, read files or environment, keep state. */
#ifndef ATTN_H
#define ATTN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ATTN_VERSION 100 /* major * 10000 + minor * 100 + patch */

#if defined(ATTN_API) /* the host's own */
#elif defined(ATTN_STATIC) && (defined(__GNUC__) || defined(__clang__))
#define ATTN_API static __attribute__((unused))
#elif defined(ATTN_STATIC)
#define ATTN_API static
#elif defined(__cplusplus)
#define ATTN_API extern "C"
#else
#define ATTN_API extern
#endif

/* ---- >>types ---------------------------------------------------------------------------------------------------- */

/* What is wrong. ARGUMENT: a pointer, size, stride or list. BATCH, LAYER: a field, or fields that do not go together.
   PLAN: layer or memory are not the plan's. MEMORY: none, misaligned or too small. PAGE: an id that would be read. */
typedef enum attn_status { ATTN_OK = 0, ATTN_E_ARGUMENT, ATTN_E_BATCH, ATTN_E_LAYER, ATTN_E_PLAN, ATTN_E_MEMORY,
                           ATTN_E_PAGE } attn_status;

/* Of K and V only: E4M3 (up to 448, no infinities: OCP FN), E5M2 (up to 57344), INT8 (-127 .. 127). */
typedef enum attn_type { ATTN_F32 = 0, ATTN_F16, ATTN_BF16, ATTN_E4M3, ATTN_E5M2, ATTN_INT8 } attn_type;
typedef enum attn_mask { ATTN_CAUSAL = 0, ATTN_FULL, ATTN_PREFIX, ATTN_BLOCK, ATTN_TREE, ATTN_TOPK } attn_mask;

/* The shape of scales: [1]; [kv_head]; [n][kv_head]; int8, by attn_append: [key][kv_head] or [page][slot][kv_head]. */
typedef enum attn_scale { ATTN_SCALE_PER_TENSOR = 0, ATTN_SCALE_PER_HEAD, ATTN_SCALE_PER_REQUEST,
                          ATTN_SCALE_PER_KEY } attn_scale;
typedef enum attn_isa { ATTN_ISA_AUTO = 0, ATTN_ISA_SCALAR, ATTN_ISA_AVX2, ATTN_ISA_AVX512, ATTN_ISA_AVX512_VNNI,
                        ATTN_ISA_AMX, ATTN_ISA_NEON } attn_isa;
typedef enum attn_phase { ATTN_PREFILL = 0, ATTN_DECODE = 1 } attn_phase; /* of a request: >>concepts */
typedef enum attn_stage { ATTN_COMPUTE = 0, ATTN_MERGE = 1 } attn_stage;  /* of a plan's tasks, see attn_check */

/* TRUSTED: page ids and top-k lists, known to be right, are not checked. V_IN_K: >>layouts. FAST_INT8: >>engines. */
typedef enum attn_flag { ATTN_TRUSTED = 1, ATTN_V_IN_K = 2, ATTN_FAST_INT8 = 4 } attn_flag;

/* Skip-softmax: how key tiles are found that weigh next to nothing and are left out; see >>engines. */
typedef enum attn_skip_mode { ATTN_SKIP_OFF = 0, ATTN_SKIP_FACTOR, ATTN_SKIP_LAMBDA, ATTN_SKIP_EPS } attn_skip_mode;

typedef struct attn_skip {
    int32_t mode;                   /* attn_skip_mode */
    float prefill, decode;          /* FACTOR: the factor of either phase, EPS: eps; 0: skips nothing in that phase */
} attn_skip;

/* What one lane did; a tile counts once per vote unit that sees it. The caller zeroes, calls add. OFF: nothing. */
typedef struct attn_counters {
    int64_t tiles;
    int64_t v_skipped;              /* tiles whose V was not needed, */
    int64_t softmax_skipped;        /* and of these the ones without exp, too (PREFILL, FACTOR and LAMBDA) */
    int64_t dense_tiles;            /* tiles of requests with lambda >= 1, which run dense */
    int64_t histogram[64];          /* tiles whose distance below the reference is in [i / 2, (i + 1) / 2), 63: open */
} attn_counters;

/* Optional last argument of what can fail. request, slot: the index that is wrong, or -1. */
typedef struct attn_error {
    int32_t request, slot;
    char text[240];
} attn_error;

/* WHO: the requests of one step. Arrays hold n int32 in host memory; a made plan has copies. */
typedef struct attn_batch {
    int32_t n;                      /* requests; a pad is q_len = kv_len = 0 */
    const int32_t *q_len, *kv_len;  /* of each: new query rows, NULL: 1; keys, the new ones included */
    const int32_t *phase;           /* attn_phase of each; NULL: DECODE if q_len is NULL, else PREFILL */
    const int32_t *prefix;          /* keys that every row of a request sees; read for mask PREFIX only */
    int32_t max_q_len, max_kv_len;  /* capacities: every buffer is sized by them, so one buffer serves later steps; */
    int64_t max_rows;               /* 0: what the arrays say now */
} attn_batch;

/* WHAT: a class of layers, the key of a plan. All zero but heads and head_dim is valid. */
typedef struct attn_layer {
    int32_t heads, kv_heads;        /* query heads, key/value heads (GQA; 0: heads) */
    int32_t head_dim, v_dim;        /* of q and k, of v and o (0: head_dim) */
    attn_type q_type, kv_type, o_type;
    attn_mask mask;                 /* which keys a row sees: >>masks */
    int32_t window_left, window_right, sink_keys, chunk; /* in keys, the query's own included; 0: none; see >>masks */
    int32_t page_size, ring;        /* keys per page, 0: contiguous; R: key p lies in slot p mod R, 0: in slot p */
    int32_t topk, scale_kind;       /* TOPK: entries of each row's list; attn_scale */
    int32_t split_keys;             /* 0: a prefill row is one unit; else a multiple of 256: units of that many keys */
    int32_t row_tile, key_tile;     /* tile sizes, see >>numerics; 0: 256 (AMX, AVX2 up to 512), the family's own */
    int32_t workers;                /* decode work is cut into this many equal runs; 0: 64. Never the core count */
    float scale, softcap;           /* see >>score; scale 0: 1 / sqrt(head_dim); softcap 0: off */
    attn_skip skip;
    int32_t isa, flags;             /* attn_isa, 0: detect now (35 us in a VM), others are unchecked; attn_flag bits */
} attn_layer;

/* WHERE: the data of one layer. Strides count elements, 0: packed. */
typedef struct attn_io {
    const void *q;                  /* shapes of q, k, v and o: >>layouts */
    void *k, *v, *o;
    float *lse;                     /* [row][head] natural log of the softmax denominator; NULL: not wanted */
    int64_t q_row, q_head, o_row, o_head;
    int64_t k_page, k_row, k_head;  /* k_page with page_size 0: request i starts at i * k_page (padded cache); */
    int64_t v_page, v_row, v_head;  /* 0 there: request i starts after the kv_len keys before it (ragged cache) */
    const int32_t *page_table;      /* [n][page_table_row]: page of key p is entry p / page_size */
    int64_t page_table_row;         /* 0: ceil(max_kv_len / page_size) */
    int32_t pages;                  /* pages in k and v; table entries that are read must be below */
    const float *sinks;             /* [head]: a logit added once to each row's denominator; NULL: none */
    const float *alibi;             /* [head]: slope * (key - position) is added to each logit; NULL: none */
    float *k_scale, *v_scale;       /* a stored element means itself times this, see attn_scale; NULL: 1 */
    const uint32_t *tree;           /* TREE: [row][ceil(max_q_len / 32)], bit j, least significant first: sees row j */
    const int32_t *topk;            /* TOPK: [row][layer.topk] positions in the request's own keys, -1: none */
    const float *lambda;            /* ATTN_SKIP_LAMBDA: [n] thresholds, read by attn_forward, not by the plan */
    float *certificate;             /* [row][head] upper bound of the share of the softmax that was skipped; NULL */
    attn_counters *counters;        /* [max(1, exec.lanes)]; NULL: not wanted */
} attn_io;

/* HOW: memory and threads of a call. */
typedef struct attn_exec {
    void *mem;                      /* attn_exec_bytes(plan, lanes) bytes, aligned as malloc does */
    size_t bytes;
    int32_t lanes;                  /* calls of fn that may overlap; 0: 1 */
    void *user;
    /* Runs fn(ctx, lane) once per lane 0 .. lanes - 1, in any order or at once; on return all writes are visible. */
    void (*parallel_for)(void *user, int lanes, void (*fn)(void *ctx, int lane), void *ctx); /* NULL: this thread */
    void *stream;                   /* of a device; the functions of this header do not look at it */
} attn_exec;

/* A plan: plain data, copyable; the arrays live in the caller's memory. Read-only to callers. */
typedef struct attn_plan {
    attn_layer layer, resolved;     /* as given, which attn_forward's must equal; with every default filled in */
    int32_t n, rows;                /* requests and query rows of this step */
    int32_t max_q_len, max_kv_len;  /* capacities, resolved */
    int64_t max_rows;
    int32_t families;               /* bit ATTN_PREFILL, bit ATTN_DECODE: which may occur */
    int32_t strips, tasks, merges, slots;  /* row blocks; tasks of the two stages; partial results kept in between */
    int64_t work, largest_task;     /* query-key-head triples of the step, and of its largest task */
    int32_t *words;                 /* the arrays, see >>plan; NULL if they lie in the memory of a device: */
    void *device;                   /* its address of them */
    size_t bytes;
} attn_plan;

/* ---- >>api ------------------------------------------------------------------------------------------------------ */

/* Thread safety, unless a comment says more: any thread, with exec memory and outputs of its own. */

/* The fastest instruction set of this CPU that was compiled in. Slow in virtual machines: keep it in attn_layer.isa.
   With AMX it asks Linux for the tile registers: alternate signal stacks then need AT_MINSIGSTKSZ (12 KB). */
ATTN_API attn_isa attn_isa_detect(void);

/* Bytes of plan memory for any batch within the capacities of `batch`; 0: invalid ones, attn_plan_make says why. */
ATTN_API size_t attn_plan_bytes(const attn_batch *batch, const attn_layer *layer);

/* Plans a step of one layer class: >>concepts. mem: attn_plan_bytes() bytes, aligned to 4. Threads may share a plan. */
ATTN_API int attn_plan_make(attn_plan *plan, const attn_batch *batch, const attn_layer *layer, void *mem, size_t bytes,
                            attn_error *error);

/* Writes the plan in words, one fact a line (on a device: its layer); returns the length of all, as snprintf does. */
ATTN_API size_t attn_plan_explain(const attn_plan *plan, char *text, size_t bytes);

/* Bytes of scratch memory for attn_exec.mem; 0 if the arguments are invalid. What they follow from: >>memory. */
ATTN_API size_t attn_exec_bytes(const attn_plan *plan, int32_t lanes);

/* o = softmax(mask(softcap(scale * q k^T))) v for all rows of the step, and lse. `layer` must equal the plan's. */
ATTN_API int attn_forward(const attn_plan *plan, const attn_layer *layer, const attn_io *io, const attn_exec *exec,
                          attn_error *error);

/* Stores the new rows' keys and values into the cache, before attention runs: new_k, new_v are [row][kv_head][dim],
   packed, of q_type; row j of a request goes to key kv_len - q_len + j. ATTN_SCALE_PER_KEY: the scales, too: largest
   |x| of key and head / 127. Errors: as attn_forward, and q_len > kv_len. Thread safety: any thread, one per cache. */
ATTN_API int attn_append(const attn_plan *plan, const attn_layer *layer, const attn_io *io, const void *new_k,
                         const void *new_v, attn_error *error);

/* For prototypes: plan and forward of one sequence, q_len rows over kv_len contiguous keys. mem: attn_dense_bytes(). */
ATTN_API size_t attn_dense_bytes(const attn_layer *layer, int32_t q_len, int32_t kv_len);
ATTN_API int attn_dense(const attn_layer *layer, int32_t q_len, int32_t kv_len, const attn_io *io, void *mem,
                        size_t bytes, attn_error *error);

/* Own job systems: call attn_check once per layer (all checks of attn_forward; resets the task counter of
   exec->mem), then attn_task for every index below attn_task_count(plan, ATTN_COMPUTE), in any order, on any thread,
   now or over several frames; then, after a barrier, the same for ATTN_MERGE. `lane` < exec->lanes names the scratch:
   two tasks that overlap in time need different lanes. attn_task checks nothing. Stack: below 16 KiB if optimised. */
ATTN_API int attn_check(const attn_plan *plan, const attn_layer *layer, const attn_io *io, const attn_exec *exec,
                        attn_error *error);
ATTN_API int32_t attn_task_count(const attn_plan *plan, attn_stage stage);
ATTN_API void attn_task(const attn_plan *plan, const attn_io *io, const attn_exec *exec, attn_stage stage,
                        int32_t index, int32_t lane);

/* Joins attention over two disjoint key sets, [rows][heads][v_dim] of o_type and [rows][heads]: o and lse become what
   one call over both sets gives. o may be a_o or b_o, lse a_lse or b_lse; lse may be NULL. `layer` gives heads, v_dim
   and o_type. Pass sinks to exactly one of the two calls. Source: log-sum-exp algebra; lse = -inf is identity. */
ATTN_API int attn_merge(const attn_layer *layer, int64_t rows, const void *a_o, const float *a_lse, const void *b_o,
                        const float *b_lse, void *o, float *lse, attn_error *error);

/* The definition of every mask: 1 if row `row` of `request` sees key `key`. Reads the host arrays of batch and, for
   TREE and TOPK, io->tree and io->topk; else io may be NULL. Out-of-range indices give 0. */
ATTN_API int attn_visible(const attn_batch *batch, const attn_layer *layer, const attn_io *io, int32_t request,
                          int32_t row, int32_t key);

/* attn_visible of a request: bit key % 32 of bits[row * w + key / 32], w = ceil(kv_len / 32); count >= q_len * w. */
ATTN_API int attn_mask_bits(const attn_batch *batch, const attn_layer *layer, const attn_io *io, int32_t request,
                            uint32_t *bits, size_t count, attn_error *error);

/* attn_layer.window_left from an engine's sliding_window_size, which is a radius: W means W keys before the query and
   the query itself, -1 means off. Engines apply W to causal self-attention only; the result is 0 (off) for the rest. */
ATTN_API int32_t attn_window_from_radius(int32_t radius, int causal, int cross);

typedef struct attn_rope_input {
    void *x;                        /* [row][head][head_dim], rotated in place */
    attn_type type;                 /* f32, f16 or bf16 */
    int64_t rows, x_row, x_head;    /* rows; strides in elements, 0: packed */
    int32_t heads, head_dim, rotary_dim; /* the first rotary_dim elements of a head turn; even; 0: head_dim */
    int32_t interleaved;            /* 0: i pairs with i + rotary_dim / 2 (GPT-NeoX, Llama); 1: 2i pairs with 2i + 1 */
    const int32_t *positions;       /* [row] */
    const float *inv_freq;          /* [rotary_dim / 2] angles, to 65536; NULL: base^(-2i / rotary_dim) as f32 */
    float base, magnitude;          /* base 0: 10000; the result is multiplied by magnitude (YaRN), 0: 1 */
} attn_rope_input;

/* Rotary position embedding: (a, b) -> (a cos t - b sin t, a sin t + b cos t), t = position * inv_freq[i], in double,
   rounded to f32, then to the type. For q and new_k. Source: Su et al., RoFormer. */
ATTN_API int attn_rope(const attn_rope_input *input, attn_error *error);

/* Fills in *skip from the environment: mode FACTOR with ATTN_SKIP_SOFTMAX_PREFILL_THRESHOLD_SCALE_FACTOR and
   ATTN_SKIP_SOFTMAX_DECODE_THRESHOLD_SCALE_FACTOR; an unset one is 0, both 0: OFF. get: the C library's getenv or a
   function like it. A malformed or negative number is an error that names the variable, and *skip stays as it was. */
ATTN_API int attn_skip_from_env(attn_skip *skip, char *(*get)(const char *name), attn_error *error);

/* ---- for inference engines: forward modes and metadata; the tables are under >>engines --------------------------- */

/* What an engine is doing in this step, and so what its seq_lens counts: the table of >>engines. */
typedef enum attn_mode { ATTN_MODE_EXTEND = 0, ATTN_MODE_DECODE, ATTN_MODE_MIXED, ATTN_MODE_IDLE,
                         ATTN_MODE_TARGET_VERIFY, ATTN_MODE_DRAFT_EXTEND, ATTN_MODE_DRAFT_EXTEND_V2,
                         ATTN_MODE_SPLIT_PREFILL, ATTN_MODE_DLLM_EXTEND, ATTN_MODE_DRAFT_DECODE } attn_mode;

/* An engine's lengths, as they are. Arrays hold n int32; in every mode seq_lens[i] = -1 marks a pad. */
typedef struct attn_mode_input {
    int32_t n;                      /* requests, pads included */
    const int32_t *seq_lens;        /* see the table; IDLE does not read it */
    const int32_t *extend_lens;     /* new rows E: EXTEND, MIXED, DRAFT_EXTEND, SPLIT_PREFILL, DLLM_EXTEND only */
    const int32_t *prefix_lens;     /* what KV - E must be, as a check; NULL: not checked */
    const int32_t *phase;           /* attn_phase of each, MIXED may hold both; NULL: the mode's */
    int32_t draft_tokens, draft_step; /* D of TARGET_VERIFY and DRAFT_EXTEND_V2, from 1; s of DRAFT_DECODE, from 0 */
    int32_t max_q_len, max_kv_len;  /* capacities, passed on to the batch, 0: none. max_kv_len counts the drafts: */
    int64_t max_rows;               /* the longest context plus D */
} attn_mode_input;

/* attn_meta_make's `want`: the arrays with these words in their names; row_request goes with POSITIONS, row_q_len,
   row_kv_len and row_batch with ROW_TABLE. SPARSE needs input.topk, either table needs req_to_token and page_size. */
typedef enum attn_meta_want { ATTN_META_CU_SEQLENS = 1, ATTN_META_EXPAND = 2, ATTN_META_POSITIONS = 4,
                              ATTN_META_SPARSE = 8, ATTN_META_INDEXER = 16, ATTN_META_TOPK_OFFSET = 32,
                              ATTN_META_PAGE_TABLE = 64, ATTN_META_ROW_TABLE = 128, ATTN_META_PAD = 256,
                              ATTN_META_ALL = 511 } attn_meta_want;

/* Where each token of each request lies, for the page tables. */
typedef struct attn_meta_input {
    const int32_t *req_to_token;    /* [requests][req_to_token_row]: the cache slot of token t; below 0: evicted */
    int64_t req_to_token_row;       /* int32s from row to row */
    int32_t requests;               /* rows in it */
    const int32_t *req_index;       /* [n]: row of request i; NULL: row i, as for a table that has one row a request */
    int32_t page_size, topk;        /* slots per page, 1: the table lists slots; keys that a sparse row may use */
} attn_meta_input;

/* The arrays of a step, in the caller's memory, NULL where not wanted. Read-only to callers; plain data, copyable. */
typedef struct attn_meta {
    int32_t n, rows, keys;          /* requests, sums of E and KV */
    int32_t max_q_len, max_kv_len;  /* capacities, resolved */
    int64_t max_rows;
    int64_t table_row;              /* columns of page_table and row_table: ceil(max_kv_len / page_size) */
    int32_t *cu_seqlens_q, *cu_seqlens_k, *seqlens_expand, *positions, *row_request, *sparse_len, *cu_sparse;
    int32_t *indexer_ks, *indexer_ke, *topk_offset, *page_table, *row_table, *pad_row, *unpad_row, *pad_len;
    int32_t *row_q_len, *row_kv_len; /* their shapes: >>engines */
    attn_batch row_batch;           /* every row a request of its own; goes with row_table */
    size_t bytes;                   /* of memory used */
} attn_meta;

/* Turns an engine's lengths into a batch. mem: its q_len, kv_len and phase, count >= 3 * n int32 that live as long
   as it does and overlap no input. Errors name the request that breaks 0 <= E <= KV. Source: SGLang's ForwardMode. */
ATTN_API int attn_batch_from_mode(attn_batch *batch, attn_mode mode, const attn_mode_input *input, int32_t *mem,
                                  size_t count, attn_error *error);

/* Bytes for the arrays in `want`, at least 16; 0: invalid arguments, attn_meta_make says why. Reads the lengths only
   where a capacity is 0. `input` may be NULL if no table and no sparse length is wanted. */
ATTN_API size_t attn_meta_bytes(const attn_batch *batch, const attn_meta_input *input, int32_t want);

/* Writes the arrays in `want` (bits of attn_meta_want) to mem, attn_meta_bytes() bytes, aligned to 4. Each array starts
   at a multiple of 16 bytes from mem. E > KV is allowed. Errors name the request. */
ATTN_API int attn_meta_make(attn_meta *meta, const attn_batch *batch, const attn_meta_input *input, int32_t want,
                            void *mem, size_t bytes, attn_error *error);

/* Indexer scores of sparse attention: scores[r * score_row + ks[r] + key] = sum over heads of weights[r][head] *
   relu(scale * q.k) for every key that row r sees, -inf for keys below its horizon that a window hides; what lies
   above is not written. ks [rows]: column of a row's key 0 (indexer_ks for one matrix over all keys), NULL: 0. weights
   [row][head] f32. The plan must hold DECODE requests only; layer and io as in attn_forward, kv_heads 1, without v and
   o; a softcap, sinks and alibi are not applied. Masks TREE and TOPK are refused. Source: DeepSeek-V3.2's indexer. */
ATTN_API int attn_index_score(const attn_plan *plan, const attn_layer *layer, const attn_io *io, const float *weights,
                              const int32_t *ks, float *scores, int64_t score_row, const attn_exec *exec,
                              attn_error *error);

/* indices[r][topk]: the topk largest of scores[r * score_row + c], ks[r] <= c < ke[r], as c - ks[r], ascending, then
   -1, as io.topk. Of equals the smaller index wins; -inf and NaN never do. ks NULL: 0. */
ATTN_API int attn_topk(const float *scores, int64_t score_row, int64_t rows, const int32_t *ks, const int32_t *ke,
                       int32_t topk, int32_t *indices, attn_error *error);

#endif /* ATTN_H ---- end of header ------------------------------------------------------------------------------- */

#if defined(__INTELLISENSE__) || defined(__JETBRAINS_IDE__) || defined(Q_CREATOR_RUN) || defined(__CDT_PARSER__)
#define ATTN_IMPLEMENTATION /* so that editors colour the implementation */
#endif

#if defined(ATTN_IMPLEMENTATION) && !defined(ATTN_IMPLEMENTED)
#define ATTN_IMPLEMENTED

/* ---- >>platform ------------------------------------------------------------------------------------------------- */

#ifndef ATTN_ASSERT
#define ATTN_ASSERT(condition) ((void)0) /* our own invariants; bad input never reaches one */
#endif

#if defined(_MSC_VER)
#include <intrin.h>
#endif
#if !defined(ATTN_NO_SIMD) && !defined(__TINYC__) && (defined(_M_X64) || (defined(__x86_64__) && defined(__GNUC__)))
#define ATTN__X86 1
#define ATTN__NEON 0
#include <immintrin.h>
#if defined(__clang__) && defined(_MSC_VER) /* clang-cl includes these only when the flags of the file allow them */
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>
#include <avx512fintrin.h>
#include <avx512bwintrin.h>
#include <avx512dqintrin.h>
#endif
#define ATTN__FETCH_L1(at) _mm_prefetch(at, _MM_HINT_T0)
#define ATTN__FETCH_L2(at) _mm_prefetch(at, _MM_HINT_T1)
#elif !defined(ATTN_NO_SIMD) && defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
#define ATTN__X86 0
#define ATTN__NEON 1 /* not with MSVC itself: some of its versions lack half floats */
#include <arm_neon.h>
#define ATTN__FETCH_L1(at) __builtin_prefetch(at, 0, 3)
#define ATTN__FETCH_L2(at) __builtin_prefetch(at, 0, 2)
#else
#define ATTN__X86 0
#define ATTN__NEON 0
#define ATTN__FETCH_L1(at) ((void)(at))
#endif

#if ATTN__X86 && defined(__linux__) && defined(__LP64__) && (defined(__clang__) ? __clang_major__ : __GNUC__) > 10
#define ATTN__HAS_AMX 1 /* Linux lends the tile registers on request: attn_isa_detect */
#else
#define ATTN__HAS_AMX 0
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define ATTN__INLINE static __forceinline
#define ATTN__COLD static
#define ATTN__TARGET(features)
#elif defined(__GNUC__) || defined(__clang__)
#define ATTN__INLINE static inline __attribute__((always_inline))
#define ATTN__COLD static __attribute__((noinline, cold)) /* checks, texts, seeds: small code, not fast code */
#define ATTN__TARGET(features) __attribute__((target(features)))
#else
#define ATTN__INLINE static inline
#define ATTN__COLD static
#endif

#define ATTN__PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define ATTN__UNROLL _Pragma("clang loop unroll(full)") /* plain "unroll" acts before bounds are inlined */
#define ATTN__TIMES(n) ATTN__PRAGMA(clang loop unroll_count(n))
#elif defined(__GNUC__) && __GNUC__ >= 8
#define ATTN__UNROLL _Pragma("GCC unroll 16") /* -O2 alone leaves the accumulators in memory */
#define ATTN__TIMES(n) ATTN__PRAGMA(GCC unroll n) /* n steps of a loop at a time: 2 to 6 % of prompts on shared cores */
#else
#define ATTN__UNROLL
#define ATTN__TIMES(n)
#endif

/* The host's flags compile our code: fast-math would delete the order of sums and tests of -inf, contraction make bits
   depend on -mfma. So IEEE rules, and only our own FMAs, from here on. Always: -funsafe-math-... defines no macro. */
#if defined(__clang__)
#if defined(__x86_64__) /* elsewhere clang 14 warns that it ignores the pragma */
#pragma float_control(precise, on, push)
#if defined(__FAST_MATH__) && defined(__FMA__) /* then clang contracts all the same, but for what might trap */
#pragma float_control(except, on)
#endif
#endif
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__) && !defined(__TINYC__)
#pragma GCC push_options
#pragma GCC optimize("no-fast-math", "fp-contract=off")
#elif defined(_MSC_VER)
#pragma float_control(precise, on, push)
#pragma fp_contract(off)
#endif

/* The one counter that lanes share. Without atomics each lane takes a fixed stripe of the tasks. */
#if defined(__GCC_ATOMIC_INT_LOCK_FREE) && __GCC_ATOMIC_INT_LOCK_FREE == 2 && !defined(__TINYC__)
#define ATTN__FETCH_ADD(counter) __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)
#elif defined(_MSC_VER)
#define ATTN__FETCH_ADD(counter) _InterlockedExchangeAdd((volatile long *)(counter), 1)
#endif

#define ATTN__UNIT 256               /* keys of a decode unit */
#define ATTN__GROUP_KEYS 2048        /* with skipping, runs of units start at multiples of this */
#define ATTN__COUNT(array) ((int)(sizeof array / sizeof array[0]))
#define ATTN__LOWEST (-340282346638528859811704183484516925440.0f) /* all digits: x87 and s390x keep more */

ATTN__INLINE uint32_t attn__bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

ATTN__INLINE float attn__float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

ATTN__INLINE int attn__is_finite(float x) { return (attn__bits_of(x) & 0x7f800000u) != 0x7f800000u; }
ATTN__INLINE int32_t attn__min(int32_t a, int32_t b) { return a < b ? a : b; }
ATTN__INLINE int32_t attn__max(int32_t a, int32_t b) { return a > b ? a : b; }
ATTN__INLINE int64_t attn__min64(int64_t a, int64_t b) { return a < b ? a : b; }
ATTN__INLINE int64_t attn__max64(int64_t a, int64_t b) { return a > b ? a : b; }
ATTN__INLINE int32_t attn__ceil(int32_t a, int32_t b) { return a / b + (a % b > 0); }
ATTN__INLINE int64_t attn__ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ATTN__INLINE int64_t attn__round_up(int64_t a, int64_t b) { return attn__ceil_div(a, b) * b; }
ATTN__INLINE int32_t attn__whole(int32_t keys) { return (keys + 31) & -32; } /* AMX: blocks, at absolute multiples */

/* ---- >>text ----------------------------------------------------------------------------------------------------- */
/* Builds a text in a caller's buffer; counts on when it is full, as snprintf does. */
typedef struct attn__text {
    char *text;
    size_t capacity, length;
} attn__text;

static void attn__put_char(attn__text *t, char c) {
    const char end[2] = { c, 0 };
    if (t->length + 1 < t->capacity) memcpy(t->text + t->length, end, sizeof end);
    t->length++;
}
static void attn__put(attn__text *t, const char *s) { for (; *s; s++) attn__put_char(t, *s); }

static void attn__put_int(attn__text *t, int64_t value) {
    int64_t tens = value / 10, digit = value % 10; /* both have the sign of the value */
    if (value < 0) attn__put_char(t, '-');
    if (tens) attn__put_int(t, tens < 0 ? -tens : tens);
    attn__put_char(t, (char)('0' + (digit < 0 ? -digit : digit)));
}

/* Six digits if they give the same float, else nine, without zeros at the end of a fraction; far from 1 an exponent. */
static void attn__put_float(attn__text *t, float value) {
    if (value == 0 || !attn__is_finite(value)) {
        attn__put(t, value == 0 ? "0" : attn__bits_of(value) & 0x7fffffu ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    double x = value < 0 ? -value : value, unit = 1;
    int exponent = 0;
    for (; x / unit >= 9.999999995; unit *= 10) exponent++;
    for (; x / unit < 0.9999999995; unit /= 10) exponent--;
    int64_t digits = (int64_t)(x / unit * 1e5 + 0.5) * 1000; /* nine, the first of them worth 10^exponent */
    if ((float)((double)digits * unit / 1e8) != (float)x) digits = (int64_t)(x / unit * 1e8 + 0.5);
    for (; digits >= 1000000000; digits /= 10) exponent++;
    if (value < 0) attn__put_char(t, '-');
    int first = exponent >= -4 && exponent < 6 ? exponent : 0;
    for (int place = first > 0 ? first : 0; place >= 0 || digits; place--) {
        if (place == -1) attn__put_char(t, '.');
        attn__put_char(t, (char)('0' + (place > first ? 0 : digits / 100000000)));
        if (place <= first) digits = digits % 100000000 * 10;
    }
    if (first != exponent) attn__put_char(t, 'e');
    if (first != exponent) attn__put_int(t, exponent);
}

/* %a .. %d in format stand for the values, %A .. %D for the floats of which they are the bits. */
static void attn__put_format(attn__text *t, const char *format, int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t values[4] = { a, b, c, d };
    for (; *format; format++) {
        char letter = *format == '%' ? *++format : 0;
        if (!letter) attn__put_char(t, *format);
        if (letter >= 'a') attn__put_int(t, values[letter - 'a']);
        if (letter && letter < 'a') attn__put_float(t, attn__float_of((uint32_t)values[letter - 'A']));
    }
}

/* Errors that start with the name of an argument; of the whole call; of one request, %d, and one slot of it, or -1. */
ATTN__COLD int attn__fail_name(attn_error *error, int status, const char *name, const char *format, int64_t a,
                               int64_t b, int64_t c, int64_t d) {
    attn__text t = { error ? error->text : NULL, sizeof error->text, 0 };
    if (!error) return status;
    error->request = error->slot = -1;
    error->text[0] = 0;
    attn__put(&t, name);
    attn__put_format(&t, format, a, b, c, d);
    return status;
}

ATTN__COLD int attn__fail(attn_error *error, int status, const char *format, int64_t a, int64_t b) {
    return attn__fail_name(error, status, "", format, a, b, 0, 0);
}
static int attn__succeed(attn_error *error) { return attn__fail(error, ATTN_OK, "", 0, 0); }

ATTN__COLD int attn__fail_at(attn_error *error, int status, int32_t request, int32_t slot, const char *format,
                             int64_t a, int64_t b, int64_t c) {
    attn__fail_name(error, status, "", format, a, b, c, request);
    if (error) error->request = request;
    if (error) error->slot = slot;
    return status;
}

typedef struct attn__rule {
    int broken;
    const char *text;               /* %d is the request */
    int64_t a, b;
} attn__rule;

/* The first broken rule becomes an error of a request, or, with -1, of the whole call. */
ATTN__COLD int attn__check_rules(attn_error *error, int status, int32_t request, const attn__rule *rules, int count) {
    for (const attn__rule *r = rules; r < rules + count; r++) {
        if (r->broken) return attn__fail_at(error, status, request, -1, r->text, r->a, r->b, 0);
    }
    return ATTN_OK;
}

/* ---- >>defaults: what zero means, and which layers are valid ---------------------------------------------------- */
ATTN__INLINE int32_t attn__type_bytes(attn_type type) { return type == ATTN_F32 ? 4 : type <= ATTN_BF16 ? 2 : 1; }
static int attn__is_share(float x, int mode) { return x >= 0 && (mode == ATTN_SKIP_EPS ? x < 1 : attn__is_finite(x)); }

/* Fields of attn_layer, for checks and comparisons: integers and their range, then floats, which have rules. */
typedef struct attn__field {
    const char *name;
    int32_t offset, low, high;
} attn__field;

#define ATTN__FIELD(name, low, high) { "layer." #name, offsetof(attn_layer, name), low, high }
static const attn__field attn__layer_fields[] = {
    ATTN__FIELD(heads, 1, 65536), ATTN__FIELD(kv_heads, 0, 65536), ATTN__FIELD(head_dim, 1, 65536),
    ATTN__FIELD(v_dim, 0, 65536), ATTN__FIELD(q_type, 0, ATTN_BF16), ATTN__FIELD(kv_type, 0, ATTN_INT8),
    ATTN__FIELD(o_type, 0, ATTN_BF16), ATTN__FIELD(mask, 0, ATTN_TOPK), ATTN__FIELD(window_left, 0, INT32_MAX),
    ATTN__FIELD(window_right, 0, INT32_MAX), ATTN__FIELD(sink_keys, 0, INT32_MAX), ATTN__FIELD(chunk, 0, INT32_MAX),
    ATTN__FIELD(page_size, 0, INT32_MAX), ATTN__FIELD(ring, 0, INT32_MAX), ATTN__FIELD(topk, 0, INT32_MAX),
    ATTN__FIELD(scale_kind, 0, ATTN_SCALE_PER_KEY), ATTN__FIELD(split_keys, 0, INT32_MAX),
    ATTN__FIELD(row_tile, 0, 256), ATTN__FIELD(key_tile, 0, 128), ATTN__FIELD(workers, 0, 65536),
    ATTN__FIELD(isa, 0, ATTN_ISA_NEON), ATTN__FIELD(flags, 0, ATTN_TRUSTED | ATTN_V_IN_K | ATTN_FAST_INT8),
    ATTN__FIELD(skip.mode, 0, ATTN_SKIP_EPS), ATTN__FIELD(scale, 0, 0), ATTN__FIELD(softcap, 0, 0),
    ATTN__FIELD(skip.prefill, 0, 0), ATTN__FIELD(skip.decode, 0, 0)
};
#define ATTN__LAYER_INTEGERS (ATTN__COUNT(attn__layer_fields) - 4)
typedef char attn__enums_are_int32[sizeof(attn_type) == 4 && sizeof(attn_mask) == 4 ? 1 : -1];

static int32_t attn__field_value(const attn_layer *layer, int field) {
    int32_t value;
    memcpy(&value, (const char *)layer + attn__layer_fields[field].offset, sizeof value);
    return value;
}

/* 1 / sqrt(x) by Newton's iteration in double: no libm, the same bits everywhere. */
static float attn__rsqrt(int32_t x) {
    double y = 1.0 / x;
    for (int i = 0; i < 24; i++) y = y * (1.5 - 0.5 * x * y * y);
    return (float)y;
}

static int attn__check_mask(const attn_layer *l, attn_error *error) {
    const attn__rule rules[] = {
        { l->topk > 0 && l->mask != ATTN_TOPK, "layer.topk = %a needs mask TOPK", l->topk, 0 },
        { l->topk <= 0 && l->mask == ATTN_TOPK, "layer.topk = 0, but mask TOPK needs the length of a list", 0, 0 },
        { l->mask == ATTN_BLOCK && !l->chunk, "layer.chunk = 0, but mask BLOCK needs the rows of a block", 0, 0 },
        { l->chunk && l->mask != ATTN_CAUSAL && l->mask != ATTN_BLOCK,
          "layer.chunk = %a needs mask CAUSAL or BLOCK", l->chunk, 0 },
        { l->chunk && l->mask == ATTN_CAUSAL && l->sink_keys,
          "layer.chunk = %a cannot be combined with layer.sink_keys = %b", l->chunk, l->sink_keys }
    };
    return attn__check_rules(error, ATTN_E_LAYER, -1, rules, ATTN__COUNT(rules));
}

/* Numbers and combinations of fields that cannot work. given: the layer before the defaults. */
static int attn__check_combinations(const attn_layer *l, const attn_layer *given, attn_error *error) {
    int latent = (l->flags & ATTN_V_IN_K) != 0, valued = l->skip.prefill != 0 || l->skip.decode != 0;
    int32_t int8 = l->kv_type == ATTN_INT8, fast = (l->flags & ATTN_FAST_INT8) != 0, v_dim = l->v_dim, d = l->head_dim;
    int32_t skip = l->skip.mode, split = l->split_keys, ring = l->ring, page = l->page_size, kind = l->scale_kind;
    const attn__rule rules[] = {
        { !attn__is_finite(given->scale), "layer.scale is not finite", 0, 0 },
        { !attn__is_finite(l->softcap) || !(l->softcap == 0 || l->softcap >= 1e-30f),
          "layer.softcap must be 0 or 1e-30 or more, and finite", 0, 0 },
        { !attn__is_share(l->skip.prefill, skip) || !attn__is_share(l->skip.decode, skip),
          "layer.skip.prefill = %A and decode = %B must be 0 or more, finite, and with EPS below 1",
          attn__bits_of(l->skip.prefill), attn__bits_of(l->skip.decode) },
        { ring && !l->window_left, "layer.ring = %a needs a window: layer.window_left = 0", ring, 0 },
        { ring && l->sink_keys, "layer.ring = %a cannot be combined with layer.sink_keys = %b", ring, l->sink_keys },
        { ring && page && ring % page, "layer.ring = %a is not a multiple of layer.page_size = %b", ring, page },
        { latent && l->kv_heads != 1, "layer.kv_heads = %a, but ATTN_V_IN_K needs 1", given->kv_heads, 0 },
        { latent && v_dim > d, "layer.v_dim = %a with ATTN_V_IN_K is more than layer.head_dim = %b", v_dim, d },
        { kind == ATTN_SCALE_PER_KEY && !int8, "layer.scale_kind = %a, a scale per key, needs kv_type int8", kind, 0 },
        { fast && !int8, "layer.flags = %a has ATTN_FAST_INT8, which needs kv_type int8", l->flags, 0 },
        { latent && given->scale == 0, "layer.scale = 0, but ATTN_V_IN_K needs the scale", 0, 0 },
        { l->heads % l->kv_heads, "layer.heads = %a is not a multiple of layer.kv_heads = %b", l->heads, l->kv_heads },
        { l->row_tile % 16, "layer.row_tile = %a is not a multiple of 16", l->row_tile, 0 },
        { l->key_tile % 32, "layer.key_tile = %a is not 32, 64, 96 or 128", l->key_tile, 0 },
        { split % ATTN__UNIT, "layer.split_keys = %a is not a multiple of 256", split, 0 },
        { split && l->key_tile == 96, "layer.key_tile = 96 does not divide layer.split_keys = %a", split, 0 },
        { valued && (skip == ATTN_SKIP_OFF || skip == ATTN_SKIP_LAMBDA),
          "layer.skip.mode = %a takes no layer.skip.prefill or layer.skip.decode", skip, 0 },
        { skip && l->mask == ATTN_TOPK, "layer.skip.mode = %a cannot be combined with mask TOPK", skip, 0 },
        { skip && l->key_tile == 96, "layer.key_tile = 96 cannot be combined with layer.skip.mode = %a", skip, 0 },
        { skip && split % ATTN__GROUP_KEYS,
          "layer.split_keys = %a is not a multiple of 2048, but layer.skip.mode = %b", split, skip },
        { l->isa >= ATTN_ISA_AVX2 && !(l->isa == ATTN_ISA_NEON ? ATTN__NEON : ATTN__X86),
          "layer.isa = %a was not compiled in", l->isa, 0 }
    };
    return attn__check_rules(error, ATTN_E_LAYER, -1, rules, ATTN__COUNT(rules));
}

/* Checks a layer and fills in every default but isa. */
static int attn__resolve(const attn_layer *layer, attn_layer *out, attn_error *error) {
    if (!layer) return attn__fail(error, ATTN_E_ARGUMENT, "layer is NULL", 0, 0);
    for (int i = 0; i < ATTN__LAYER_INTEGERS; i++) {
        const attn__field *f = &attn__layer_fields[i];
        int32_t value = attn__field_value(layer, i);
        const char *text = f->high < INT32_MAX ? " = %a, but it must be %b .. %c" : " = %a, but it must be %b or more";
        if (value >= f->low && value <= f->high) continue;
        return attn__fail_name(error, ATTN_E_LAYER, f->name, text, value, f->low, f->high, 0);
    }
    if (attn__check_mask(layer, error)) return ATTN_E_LAYER;
    *out = *layer;
    if (!out->kv_heads) out->kv_heads = out->heads;
    if (!out->v_dim) out->v_dim = out->head_dim;
    if (!out->row_tile) out->row_tile = 256;
    if (!out->key_tile) out->key_tile = out->split_keys || out->skip.mode ? 64 : 96;
    if (!out->workers) out->workers = 64;
    if (out->scale == 0) out->scale = attn__rsqrt(out->head_dim);
    return attn__check_combinations(out, layer, error);
}

/* Does AMX serve a layer? All types must be bf16, so that the prompts' weights in bf16 lose no more than o does. */
ATTN__INLINE int attn__in_bf16(const attn_layer *l) {
    int all = l->q_type == ATTN_BF16 && l->kv_type == ATTN_BF16 && l->o_type == ATTN_BF16;
    return ATTN__HAS_AMX && l->isa == ATTN_ISA_AMX && all && l->head_dim % 32 == 0 && l->v_dim % 32 == 0;
}

/* 96 is the default: it does not divide a unit of DECODE, and tiles of AMX, which adds to o slowly, may be larger. */
ATTN__INLINE int32_t attn__key_tile(const attn_layer *resolved, int phase) {
    if (resolved->key_tile != 96) return resolved->key_tile;
    return phase == ATTN_DECODE ? 64 : attn__in_bf16(resolved) ? 128 : 96;
}

ATTN__INLINE int32_t attn__unit_keys(const attn_layer *resolved, int phase) {
    return phase == ATTN_DECODE ? ATTN__UNIT : resolved->split_keys ? resolved->split_keys : INT32_MAX; /* one unit */
}

/* ---- >>spans: which keys a row sees ------------------------------------------------------------------------------ */
/* Keys [0, lead) and [lo, hi); all grow with the row. TREE: what its bits may take from. TOPK: ranks of seen keys. */
typedef struct attn__span {
    int32_t lead, lo, hi;
} attn__span;

typedef struct attn__lengths {
    int32_t q_len, kv_len, prefix; /* prefix: 0 unless the mask is PREFIX */
} attn__lengths;

/* Keys below the horizon are what the mask alone lets a row see. */
static int32_t attn__horizon(const attn_layer *layer, const attn__lengths *n, int32_t row) {
    int64_t past = (int64_t)n->kv_len - n->q_len, own = past + row + 1;
    if (layer->mask == ATTN_FULL || layer->mask == ATTN_TREE) return n->kv_len;
    if (layer->mask == ATTN_BLOCK) own = attn__min64(n->kv_len, past + row - row % layer->chunk + layer->chunk);
    return (int32_t)attn__max64(n->prefix, own);
}

/* Out by address: a span returned in registers is put together in memory, which costs more than all else here. */
static void attn__find_span(attn__span *out, const attn_layer *l, const attn__lengths *n, int32_t row) {
    int64_t position = (int64_t)n->kv_len - n->q_len + (l->mask == ATTN_TREE ? 0 : row);
    int right = l->mask != ATTN_CAUSAL && l->mask != ATTN_TREE && l->window_right;
    int32_t horizon = attn__horizon(l, n, row);
    attn__span s = { 0, 0, horizon };
    if (right) s.hi = (int32_t)attn__max64(0, attn__min64(horizon, position + l->window_right));
    if (l->window_left) s.lo = (int32_t)attn__max64(0, position - l->window_left + 1);
    if (l->mask == ATTN_CAUSAL && l->chunk) s.lo = (int32_t)attn__max64(s.lo, position - position % l->chunk);
    if (l->window_left || right) s.lead = attn__min(l->sink_keys, horizon);
    *out = s;
}

ATTN__INLINE attn__span attn__key_span(const attn_layer *layer, const attn__lengths *n, int32_t row) {
    attn__span s;
    attn__find_span(&s, layer, n, row);
    return s;
}

ATTN__INLINE attn__span attn__row_span(const attn_layer *layer, const attn__lengths *n, int32_t row) {
    attn__span s = attn__key_span(layer, n, row);
    attn__span ranks = { 0, 0, attn__min(layer->topk, attn__min(s.lead, s.lo) + s.hi - s.lo) };
    return layer->mask == ATTN_TOPK ? ranks : s;
}

/* TREE: what the bits of one row say. A row's depth in the tree is its position behind the cached keys. */
ATTN__INLINE int attn__tree_bit(const uint32_t *bits, int32_t row) { return (int)(bits[row / 32] >> (row % 32) & 1u); }

static int32_t attn__tree_depth(const uint32_t *bits, int32_t q_len) {
    int32_t depth = -1, row;
    for (row = 0; row < q_len; row += 32) {
        uint32_t left = bits[row / 32] << (32 - attn__min(32, q_len - row));
        for (; left; left &= left - 1) depth++;
    }
    return depth;
}

ATTN__INLINE attn__span attn__union_span(const attn_layer *layer, const attn__lengths *n, int32_t first, int32_t last) {
    attn__span s = attn__row_span(layer, n, last);
    if (first < last) s.lo = attn__row_span(layer, n, first).lo;
    s.hi = attn__max(attn__max(s.hi, s.lo), s.lead);
    if (s.lead >= s.lo) s.lead = s.lo = 0;
    return s;
}

/* The keys of [first, last) from the first one to the last one seen, as a range; empty if none is. */
static void attn__clip(attn__span s, int32_t first, int32_t last, int32_t *begin, int32_t *end) {
    int32_t e = attn__min(last, s.hi > s.lo ? s.hi : s.lead);
    *begin = first >= s.lead && first < s.lo ? s.lo : first;
    *end = attn__max(*begin, e > s.lead && e <= s.lo ? s.lead : e);
}

/* ---- >>plan: from lengths to tasks ------------------------------------------------------------------------------
   A *strip* is a block of query rows of one request that one kernel call works on: PREFILL, up to row_tile packed
   rows (row = token * group + head of the group) of one kv head; DECODE, the same, or, while the rows of a head fill
   less than a tile, several kv heads with all their rows, so that token-major K and V are read as one stream.
   A *unit* is a range of keys at absolute multiples of its size: DECODE 256, PREFILL split_keys or everything. Each
   unit is computed from a fresh state, and the units of a row are merged by an aligned binary tree: unit pairs
   (2i, 2i+1), then pairs of pairs, an absent half leaving the other unchanged. The tree depends on key positions
   only, so any worker may compute any run of units without changing a bit.
   A *task* is a run of units of one strip. DECODE strips are laid end to end and cut into `workers` equal runs; a
   PREFILL task is one unit. A run that is not a whole strip leaves the tree's nodes that are complete inside it as
   partial results in *slots* (at most two per level of the tree), and a *merge* task finishes the strip.

   Words, all int32, in this order, sizes from the capacities:
     header[32]    version, n, rows, strips, tasks, merges, slots, row_tile, key_tile, workers, max_q_len, max_kv_len,
                   families, the word where strips, tasks and merges start, the class of the layer; the rest is 0
                   (where a device makes the plan: what is wrong with its lengths)
     q_start[n + 1], kv_start[n + 1]   rows, keys of the requests before;  phase[n];  prefix[n], 0 without mask PREFIX
     strips[][8]   request, kv head, kv heads, first packed row, rows, lead, unit, units: 0 .. lead - 1, unit, ...
     tasks[][5]    strip, first unit (index in the strip's list), end unit, first slot or -1, slots
     merges[][2]   strip, first task */
enum { ATTN__HEADER = 32, ATTN__STRIP = 8, ATTN__TASK = 5, ATTN__MERGE = 2 };

typedef struct attn__strip {
    int32_t request, head, heads, row, rows, lead, unit, units;
} attn__strip;
typedef struct attn__task {
    int32_t strip, begin, end, slot, slots;
} attn__task;

/* Upper bounds from the capacities alone. rows: (row, kv head) pairs of a strip; depth: states of a run at once. */
typedef struct attn__capacity {
    int64_t strips, tasks, merges, slots, words, rows;
    int32_t depth;
} attn__capacity;

typedef struct attn__view {
    int32_t *q_start, *kv_start, *phase, *prefix, *merges;
    attn__strip *strips;
    attn__task *tasks;
} attn__view;

static attn__view attn__view_of(int32_t *words, int32_t n, const attn__capacity *c) {
    int32_t *q_start = words + ATTN__HEADER, *kv_start = q_start + n + 1, *phase = kv_start + n + 1;
    attn__strip *strips = (attn__strip *)(phase + n + n);
    attn__task *tasks = (attn__task *)(strips + c->strips);
    attn__view v = { q_start, kv_start, phase, phase + n, (int32_t *)(tasks + c->tasks), strips, tasks };
    return v;
}

ATTN__INLINE attn__lengths attn__lengths_of(const attn__view *v, int32_t request) {
    const int32_t *q = v->q_start + request, *kv = v->kv_start + request;
    attn__lengths n = { q[1] - q[0], kv[1] - kv[0], v->prefix[request] };
    return n;
}

/* Keys that any of `rows` packed rows of a strip sees, from row `row` on. */
ATTN__INLINE attn__span attn__strip_span(const attn_layer *layer, const attn__view *v, const attn__strip *s,
                                         int32_t row, int32_t rows) {
    int32_t group = layer->heads / layer->kv_heads, first = s->row + row, last = first + rows - 1;
    attn__lengths n = attn__lengths_of(v, s->request);
    int one = last < group; /* divisions are most of what a plan takes */
    return attn__union_span(layer, &n, one ? 0 : first / group, one ? 0 : last / group);
}

/* Unit number of entry i of a strip's list; -1 in front of it. */
ATTN__INLINE int32_t attn__unit_at(const attn__strip *s, int32_t i) { return i < s->lead ? i : s->unit - s->lead + i; }

/* Is the tree node above units a and b higher than that above b and c: the highest bit in which they differ? */
ATTN__INLINE int attn__higher(int32_t a, int32_t b, int32_t c) {
    uint32_t ab = (uint32_t)a ^ (uint32_t)b, bc = (uint32_t)b ^ (uint32_t)c;
    return bc < ab && bc < (ab ^ bc);
}

/* The merge tree as a stack: units are pushed left to right, and two neighbours merge as soon as no further unit can
   belong to their node. before: the unit left of the run, -1 if the run starts the strip. The caller has the states. */
typedef struct attn__fold {
    int32_t before, depth, unit[72];
} attn__fold;

/* Must the two topmost states merge before `next` (-1: nothing follows) is pushed? If so, pops one. */
static int attn__fold_step(attn__fold *f, int32_t next) {
    if (f->depth < 2) return 0;
    int32_t left = f->unit[f->depth - 2], right = f->unit[f->depth - 1];
    if (next >= 0 && !attn__higher(next, right, left)) return 0;
    if (f->before >= 0 && !attn__higher(f->before, left, right)) return 0;
    f->depth--;
    return 1;
}

/* The stack after the units begin .. end - 1 of a strip, whole nodes at once: what a task leaves in its slots. */
static void attn__fold_run(attn__fold *f, const attn__strip *s, int32_t begin, int32_t end) {
    f->before = attn__unit_at(s, begin - 1);
    f->depth = 0;
    for (int32_t i = begin, n; i < end; i += n) {
        int32_t unit = attn__unit_at(s, i);
        n = 1;
        while (unit % (2 * n) == 0 && i + 2 * n <= end && attn__unit_at(s, i + 2 * n - 1) == unit + 2 * n - 1) n *= 2;
        f->unit[f->depth++] = unit;
        while (attn__fold_step(f, i + n < s->units ? attn__unit_at(s, i + n) : -1)) continue;
    }
}

static int attn__phase_of(const attn_batch *batch, int32_t i) {
    return batch->phase ? batch->phase[i] : batch->q_len ? ATTN_PREFILL : ATTN_DECODE;
}
ATTN__INLINE int32_t attn__q_len(const attn_batch *batch, int32_t i) { return batch->q_len ? batch->q_len[i] : 1; }

ATTN__COLD int attn__check_capacity(const attn_batch *b, attn_error *error) {
    if (!b) return attn__fail(error, ATTN_E_ARGUMENT, "batch is NULL", 0, 0);
    const attn__rule rules[] = {
        { b->n < 0, "batch.n = %a is negative", b->n, 0 },
        { b->max_q_len < 0, "batch.max_q_len = %a is negative", b->max_q_len, 0 },
        { b->max_kv_len < 0, "batch.max_kv_len = %a is negative", b->max_kv_len, 0 },
        { b->max_rows >> 31 != 0, "batch.max_rows = %a, but it must be 0 .. 2^31-1", b->max_rows, 0 }
    };
    return attn__check_rules(error, ATTN_E_BATCH, -1, rules, ATTN__COUNT(rules));
}

/* Every length, before anything is written. An attn__rule for each would take a quarter of a plan's time. */
ATTN__COLD int attn__check_lengths(const attn_batch *batch, attn_mask mask, attn_error *error) {
    static const char *const texts[] = {
        "q_len[%d] = %a is negative", "kv_len[%d] = %a is negative", "phase[%d] = %a is no attn_phase",
        "prefix[%d] = %a, but it must be 0 .. kv_len", "kv_len[%d] = %a is less than q_len[%d] = %b",
        "q_len[%d] = %a is more than batch.max_q_len = %b", "kv_len[%d] = %a is more than batch.max_kv_len = %b",
        "q_len[%d] = %a: the sum is above 2^31-1", "kv_len[%d] = %a: the sum is above 2^31-1"
    };
    int32_t max_e = batch->max_q_len, max_kv = batch->max_kv_len, i;
    int64_t rows = 0, keys = 0;
    if (batch->n > 0 && !batch->kv_len) return attn__fail(error, ATTN_E_BATCH, "batch.kv_len is NULL", 0, 0);
    const char *text = "batch.prefix is NULL, but the mask is PREFIX";
    if (batch->n > 0 && mask == ATTN_PREFIX && !batch->prefix) return attn__fail(error, ATTN_E_BATCH, text, 0, 0);
    for (i = 0; i < batch->n; i++) {
        int32_t e = attn__q_len(batch, i), kv = batch->kv_len[i], phase = attn__phase_of(batch, i);
        int32_t prefix = mask == ATTN_PREFIX ? batch->prefix[i] : 0;
        int bad = e < 0 ? 0 : kv < 0 ? 1 : phase != ATTN_PREFILL && phase != ATTN_DECODE ? 2 :
                  prefix < 0 || prefix > kv ? 3 : mask != ATTN_FULL && e > kv ? 4 : max_e && e > max_e ? 5 :
                  max_kv && kv > max_kv ? 6 : (rows += e) > INT32_MAX ? 7 : (keys += kv) > INT32_MAX ? 8 : -1;
        if (bad < 0) continue;
        const int64_t a[] = { e, kv, phase, prefix, kv, e, kv, e, kv }, b[] = { 0, 0, 0, 0, e, max_e, max_kv, 0, 0 };
        return attn__fail_at(error, ATTN_E_BATCH, i, -1, texts[bad], a[bad], b[bad], 0);
    }
    if (!batch->max_rows || rows <= batch->max_rows) return ATTN_OK;
    return attn__fail(error, ATTN_E_BATCH, "sum of q_len = %a is more than batch.max_rows = %b", rows, batch->max_rows);
}

/* Capacities of a batch; checks and reads its arrays only where a capacity is 0. */
static int attn__measure(const attn_batch *batch, attn_mask mask, int32_t *max_q_len, int32_t *max_kv_len,
                         int64_t *max_rows, attn_error *error) {
    int reads = batch->n > 0 && (!batch->max_q_len || !batch->max_kv_len || !batch->max_rows);
    if (reads && attn__check_lengths(batch, mask, error)) return ATTN_E_BATCH;
    *max_q_len = batch->max_q_len;
    *max_kv_len = batch->max_kv_len;
    *max_rows = batch->max_rows;
    for (int32_t i = 0; i < batch->n && reads; i++) {
        *max_q_len = attn__max(*max_q_len, attn__q_len(batch, i));
        *max_kv_len = attn__max(*max_kv_len, batch->kv_len[i]);
        if (!batch->max_rows) *max_rows += attn__q_len(batch, i);
    }
    return ATTN_OK;
}

static int64_t attn__unit_bound(const attn_plan *p, int32_t unit_keys) {
    const attn_layer *l = &p->resolved;
    int64_t units = attn__ceil_div(p->max_kv_len, unit_keys), sinks = attn__ceil_div(l->sink_keys, unit_keys);
    if (l->mask == ATTN_TOPK) return attn__min64(units, attn__ceil_div(l->topk, unit_keys));
    if ((l->mask != ATTN_CAUSAL && l->mask != ATTN_TREE) || !l->window_left) return units;
    return attn__min64(units, ((int64_t)l->window_left - 1 + p->max_q_len) / unit_keys + 2 + sinks);
}

/* The bounds that follow from the layer, n, max_q_len, max_kv_len, max_rows and families of a plan. */
static void attn__capacity_of_plan(attn__capacity *c, const attn_plan *p) {
    const attn_layer *l = &p->resolved;
    int64_t group = l->heads / l->kv_heads, units = attn__unit_bound(p, ATTN__UNIT), left;
    int64_t splits = l->split_keys ? attn__unit_bound(p, l->split_keys) : 1;
    int32_t levels = l->window_left > 0;
    for (left = units; left > 0; left /= 2) levels++;
    c->strips = p->max_rows * group / l->row_tile + p->n;
    if (l->mask == ATTN_TOPK) c->strips = p->max_rows * attn__ceil_div(group, l->row_tile);
    c->strips = attn__min64(l->kv_heads * c->strips, (int64_t)1 << 31); /* a plan of so many is refused: no overflow */
    c->tasks = c->strips * attn__max64(1, splits) + l->workers;
    c->merges = l->split_keys ? c->strips : attn__min64(c->strips, l->workers);
    c->depth = (2 * levels + 1) * (l->sink_keys > 0 && (l->window_left || l->window_right) ? 2 : 1) + 1;
    c->rows = attn__min64(l->row_tile, p->max_q_len * group * l->kv_heads);
    c->slots = p->families & 1 << ATTN_DECODE ? attn__min64(c->strips * units, l->workers * (c->depth - 1)) : 0;
    if (p->families & 1 << ATTN_PREFILL && l->split_keys) c->slots += c->strips * splits;
    c->words = ATTN__HEADER + 2 + (int64_t)4 * p->n;
    c->words += c->strips * ATTN__STRIP + c->tasks * ATTN__TASK + c->merges * ATTN__MERGE;
}

static attn__view attn__view_of_plan(const attn_plan *plan) {
    attn__capacity c;
    attn__capacity_of_plan(&c, plan);
    return attn__view_of(plan->words, plan->n, &c);
}

typedef struct attn__planner {
    attn_plan plan;
    attn__view view;
    int64_t decode_total, decode_cost; /* cost of all decode strips, and of those that have their tasks */
    int64_t quota, run_end;         /* cost of one worker's run, and where the run at hand ends */
} attn__planner;

/* Cost of one unit of a strip: reading the keys weighs as much as four rows' arithmetic. */
ATTN__INLINE int64_t attn__unit_cost(const attn__strip *s) { return (int64_t)s->heads * (4 + s->rows); }

/* keys / unit_keys, rounded up; no division where it can be helped. */
ATTN__INLINE int32_t attn__units_of(int32_t keys, int32_t unit_keys) {
    return keys <= 0 ? 0 : unit_keys == ATTN__UNIT ? (keys - 1) / ATTN__UNIT + 1 : (keys - 1) / unit_keys + 1;
}

/* Strips of a request's packed rows from `first` on, with the units they see. PREFILL: the last, longest tile first. */
static void attn__add_rows(attn__planner *p, int32_t request, int32_t first, int32_t rows) {
    const attn_layer *l = &p->plan.resolved;
    int32_t tile = l->row_tile, phase = p->view.phase[request], unit_keys = attn__unit_keys(l, phase), head, i;
    int32_t tiles = rows <= tile ? 1 : attn__ceil(rows, tile), heads = phase == ATTN_PREFILL ? 1 : l->kv_heads;
    if ((int64_t)rows * heads > tile) heads = attn__ceil(heads, attn__ceil(heads, attn__max(1, tile / rows)));
    for (head = 0; head < l->kv_heads; head += heads) {
        for (i = 0; i < tiles; i++) {
            int32_t row = (phase == ATTN_PREFILL ? tiles - 1 - i : i) * tile, n = attn__min(tile, rows - row);
            attn__strip s = { request, head, attn__min(heads, l->kv_heads - head), first + row, n, 0, 0, 0 };
            attn__span u = attn__strip_span(l, &p->view, &s, 0, n);
            s.lead = attn__units_of(u.lead, unit_keys);
            s.unit = attn__max(s.lead, attn__units_of(u.lo - unit_keys + 1, unit_keys));
            s.units = s.lead + attn__max(0, (u.hi > u.lo ? attn__units_of(u.hi, unit_keys) : 0) - s.unit);
            if (phase == ATTN_DECODE) p->decode_total += attn__unit_cost(&s) * s.units;
            p->view.strips[p->plan.strips++] = s;
        }
    }
}

static void attn__add_task(attn__planner *p, const attn__strip *s, attn__task t, attn__span seen) {
    int64_t keys = (int64_t)(t.end - t.begin) * attn__unit_keys(&p->plan.resolved, p->view.phase[s->request]);
    int64_t work = attn__min64(keys, seen.lead + (seen.hi - seen.lo)) * s->rows * s->heads;
    if (t.end - t.begin < s->units) {
        attn__fold f;
        attn__fold_run(&f, s, t.begin, t.end);
        t.slot = p->plan.slots;
        t.slots = f.depth;
        p->plan.slots += f.depth;
        const int32_t merge[ATTN__MERGE] = { t.strip, p->plan.tasks };
        if (t.begin == 0) memcpy(p->view.merges + (int64_t)p->plan.merges++ * ATTN__MERGE, merge, sizeof merge);
    }
    p->plan.work += work;
    p->plan.largest_task = attn__max64(p->plan.largest_task, work);
    p->view.tasks[p->plan.tasks++] = t;
}

/* Does entry `index` of a strip's list start a group of 2,048 keys? Its number differs from bit 3 on. */
ATTN__INLINE int attn__new_group(const attn__strip *s, int32_t index) {
    return (attn__unit_at(s, index) ^ attn__unit_at(s, index - 1)) >= ATTN__GROUP_KEYS / ATTN__UNIT;
}

/* Where the DECODE task from `begin` on ends. The unit at cost c is worker c / quota's; skipping keeps groups whole. */
static int32_t attn__cut(attn__planner *p, const attn__strip *s, int32_t begin) {
    int64_t cost = attn__unit_cost(s), left = (s->units - begin) * cost;
    int32_t end = s->units;
    while (p->run_end <= p->decode_cost) p->run_end += p->quota;
    if (p->run_end - p->decode_cost < left) end = begin + (int32_t)attn__ceil_div(p->run_end - p->decode_cost, cost);
    while (p->plan.resolved.skip.mode && end < s->units && !attn__new_group(s, end)) end++;
    p->decode_cost += (end - begin) * cost;
    return end;
}

static void attn__add_tasks(attn__planner *p) {
    p->quota = attn__max64(1, attn__ceil_div(p->decode_total, p->plan.resolved.workers));
    for (int32_t i = 0; i < p->plan.strips; i++) {
        attn__strip s = p->view.strips[i];
        attn__span seen = attn__strip_span(&p->plan.resolved, &p->view, &s, 0, s.rows);
        int decode = p->view.phase[s.request] == ATTN_DECODE;
        attn__task t = { i, 0, 0, -1, 0 };
        do {
            t.begin = t.end;
            t.end = decode ? attn__cut(p, &s, t.begin) : attn__min(t.begin + 1, s.units);
            attn__add_task(p, &s, t, seen);
        } while (t.end < s.units);
    }
}

static void attn__add_strips(attn__planner *p) {
    const attn_layer *l = &p->plan.resolved;
    int32_t group = l->heads / l->kv_heads, phase, i, first;
    for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
        for (i = 0; i < p->plan.n; i++) {
            int32_t rows = p->view.phase[i] == phase ? attn__lengths_of(&p->view, i).q_len * group : 0;
            int32_t step = l->mask == ATTN_TOPK ? group : rows; /* each token has keys, so strips, of its own */
            for (first = 0; first < rows; first += step) attn__add_rows(p, i, first, step);
        }
    }
}

/* Bytes as size_t; what a 32-bit machine cannot address becomes a size that no buffer has. */
static size_t attn__to_size(int64_t bytes) { return (uint64_t)bytes > (uint64_t)SIZE_MAX ? SIZE_MAX : (size_t)bytes; }

/* Checks all that the sizes depend on; fills in the layer, the capacities and bytes of *p. */
static int attn__plan_check(attn_plan *p, const attn_batch *batch, const attn_layer *layer, attn_error *error) {
    attn_layer *l = &p->resolved;
    attn__capacity c;
    int status = attn__check_capacity(batch, error);
    memset(p, 0, sizeof *p);
    if (!status) status = attn__resolve(layer, l, error);
    if (!status) status = attn__measure(batch, l->mask, &p->max_q_len, &p->max_kv_len, &p->max_rows, error);
    if (status) return status;
    p->n = batch->n;
    p->families = batch->phase ? 3 : 1 << (batch->q_len ? ATTN_PREFILL : ATTN_DECODE); /* 3: both */
    p->layer = *layer;
    attn__capacity_of_plan(&c, p);
    p->bytes = attn__to_size(c.words * 4);
    int64_t ring = l->ring ? (int64_t)l->window_left - 1 + p->max_q_len : 0;
    const attn__rule rules[] = {
        { l->ring < ring, "layer.ring = %a is less than window_left - 1 + max_q_len = %b", l->ring, ring },
        { p->max_q_len * (int64_t)l->heads > INT32_MAX,
          "batch.max_q_len = %a gives more than 2^31-1 rows with layer.heads = %b", p->max_q_len, l->heads },
        { c.words > INT32_MAX || c.slots > INT32_MAX,
          "batch.max_rows = %a: the plan would have more than 2^31-1 words", p->max_rows, 0 }
    };
    return attn__check_rules(error, l->ring < ring ? ATTN_E_LAYER : ATTN_E_BATCH, -1, rules, ATTN__COUNT(rules));
}

ATTN_API size_t attn_plan_bytes(const attn_batch *batch, const attn_layer *layer) {
    attn_plan plan;
    return attn__plan_check(&plan, batch, layer, NULL) ? 0 : plan.bytes;
}

ATTN__COLD int attn__check_memory(const char *name, const void *mem, size_t bytes, size_t needed, size_t alignment,
                              attn_error *error) {
    const char *rule = !mem ? " is NULL; it needs %b bytes"
                            : bytes < needed ? ": bytes = %a, but it needs %b" : " is not aligned to %c";
    if (mem && bytes >= needed && (uintptr_t)mem % alignment == 0) return ATTN_OK;
    return attn__fail_name(error, ATTN_E_MEMORY, name, rule, (int64_t)bytes, (int64_t)needed, (int64_t)alignment, 0);
}

ATTN__COLD int32_t attn__class_of(const attn_layer *layer) {
    attn_layer l = *layer;
    uint32_t hash = 1;
    l.isa = 0; /* whatever runs it */
    for (int i = 0; i < ATTN__COUNT(attn__layer_fields); i++) hash = hash * 31 + (uint32_t)attn__field_value(&l, i);
    return (int32_t)hash;
}

/* What depends on the processor. Row tiles twice as large, where that leaves 32, halve the copies of K and V: with AVX2
   1 to 4 % of a prompt, with AMX, whose products are fast, 7 to 11 % of the rest. DECODE would cut its rows alike. */
static void attn__resolve_isa(attn_plan *p) {
    attn_layer *l = &p->resolved;
    int many = p->families == 1 << ATTN_PREFILL && p->max_rows * l->heads >= 32 * 512;
    if (!l->isa) l->isa = (int32_t)attn_isa_detect();
    if (!p->layer.row_tile && many && (attn__in_bf16(l) || l->isa == ATTN_ISA_AVX2)) l->row_tile = 512;
}

ATTN_API int attn_plan_make(attn_plan *plan, const attn_batch *batch, const attn_layer *layer, void *mem, size_t bytes,
                            attn_error *error) {
    attn__capacity c;
    attn__planner p;
    if (!plan) return attn__fail(error, ATTN_E_ARGUMENT, "plan is NULL", 0, 0);
    memset(&p, 0, sizeof p);
    int status = attn__plan_check(&p.plan, batch, layer, error);
    if (!status) status = attn__check_lengths(batch, layer->mask, error);
    if (!status) status = attn__check_memory("mem", mem, bytes, p.plan.bytes, 4, error);
    if (status) return status;
    attn__resolve_isa(&p.plan);
    p.plan.words = (int32_t *)mem;
    attn__capacity_of_plan(&c, &p.plan);
    attn__view v = p.view = attn__view_of(p.plan.words, p.plan.n, &c);
    v.q_start[0] = v.kv_start[0] = 0;
    for (int32_t i = 0; i < batch->n; i++) {
        v.q_start[i + 1] = v.q_start[i] + attn__q_len(batch, i);
        v.kv_start[i + 1] = v.kv_start[i] + batch->kv_len[i];
        v.phase[i] = attn__phase_of(batch, i);
        v.prefix[i] = layer->mask == ATTN_PREFIX ? batch->prefix[i] : 0;
    }
    p.plan.rows = v.q_start[p.plan.n];
    attn__add_strips(&p);
    attn__add_tasks(&p);
    ATTN_ASSERT(p.plan.strips <= c.strips && p.plan.tasks <= c.tasks);
    ATTN_ASSERT(p.plan.merges <= c.merges && p.plan.slots <= c.slots);
    *plan = p.plan;
    const int32_t header[ATTN__HEADER] = {
        ATTN_VERSION, plan->n, plan->rows, plan->strips, plan->tasks, plan->merges, plan->slots,
        plan->resolved.row_tile, plan->resolved.key_tile, plan->resolved.workers, plan->max_q_len, plan->max_kv_len,
        plan->families, (int32_t)((int32_t *)v.strips - plan->words), (int32_t)((int32_t *)v.tasks - plan->words),
        (int32_t)(v.merges - plan->words), attn__class_of(&plan->resolved)
    };
    memcpy(plan->words, header, sizeof header);
    return attn__succeed(error);
}

/* ---- >>convert: small types, round to nearest even --------------------------------------------------------------- */
static float attn__from_f16(uint32_t h) {
    uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
    if (exponent) return attn__float_of(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13);
    return attn__float_of(sign | attn__bits_of((float)(int32_t)mantissa * 5.9604644775390625e-8f)); /* 2^-24 */
}

/* Rounds the bits of an f32 |x| to a format of so many mantissa bits, to `most` what is too large. */
static uint32_t attn__round_bits(uint32_t x, int32_t mantissa, int32_t bias, uint32_t most) {
    int32_t exponent = (int32_t)(x >> 23) - 127 + bias, shift = 23 - mantissa + (exponent < 1 ? 1 - exponent : 0);
    uint32_t all = (x & 0x7fffffu) | 0x800000u;
    if (shift > 24) return 0;
    uint32_t code = (all + (1u << (shift - 1)) - 1 + (all >> shift & 1u)) >> shift;
    if (exponent > 1) code += (uint32_t)(exponent - 1) << mantissa;
    return code < most ? code : most;
}

static uint16_t attn__to_f16(float x) {
    uint32_t sign = attn__bits_of(x) >> 16 & 0x8000u, a = attn__bits_of(x) & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x1ffu)); /* NaN, kept quiet */
    return (uint16_t)(sign | attn__round_bits(a, 10, 15, 0x7c00u));
}

static uint16_t attn__to_bf16(float x) {
    uint32_t u = attn__bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* e5m2 is the upper half of an f16, e4m3 has the bits of one that is 2^8 times smaller: that is in attn__head_scale. */
static float attn__from_f8(uint32_t b, attn_type type) {
    if (type == ATTN_E5M2) return attn__from_f16(b << 8);
    if ((b & 0x7fu) == 0x7fu) return attn__float_of(0x7fc00000u);
    return attn__from_f16((b & 0x80u) << 8 | (b & 0x7fu) << 7);
}

static uint8_t attn__to_f8(float x, attn_type type) {
    uint32_t sign = attn__bits_of(x) >> 24 & 0x80u, a = attn__bits_of(x) & 0x7fffffffu;
    if (a > 0x7f800000u) return 0x7f;
    return (uint8_t)(sign | attn__round_bits(a, type == ATTN_E4M3 ? 3 : 2, 15, type == ATTN_E4M3 ? 0x7eu : 0x7bu));
}

/* The integer nearest to |x| < 2^22, ties to even: what a sum with 1.5 * 2^23 ends in. */
ATTN__INLINE int32_t attn__nearest(float x) { return (int32_t)(attn__bits_of(x + 12582912.0f) - 0x4b400000u); }

static int8_t attn__to_int8(float x) {
    if ((attn__bits_of(x) & 0x7fffffffu) > 0x7f800000u) return 0;
    return (int8_t)attn__nearest(x > 127.0f ? 127.0f : x < -127.0f ? -127.0f : x);
}

static float attn__load(const char *src, int32_t x, attn_type type) {
    uint16_t half;
    if (type == ATTN_F32) return ((const float *)(const void *)src)[x];
    if (type == ATTN_INT8) return (float)((const signed char *)src)[x];
    if (type >= ATTN_E4M3) return attn__from_f8(((const unsigned char *)src)[x], type);
    memcpy(&half, src + (ptrdiff_t)x * 2, sizeof half);
    return type == ATTN_F16 ? attn__from_f16(half) : attn__float_of((uint32_t)half << 16);
}

static void attn__store(void *dst, int32_t x, attn_type type, float value) {
    if (type == ATTN_F32) ((float *)dst)[x] = value;
    if (type == ATTN_F16) ((uint16_t *)dst)[x] = attn__to_f16(value);
    if (type == ATTN_BF16) ((uint16_t *)dst)[x] = attn__to_bf16(value);
    if (type == ATTN_INT8) ((int8_t *)dst)[x] = attn__to_int8(value);
    if (type == ATTN_E4M3 || type == ATTN_E5M2) ((uint8_t *)dst)[x] = attn__to_f8(value, type);
}

/* FAST_INT8: x becomes round(x / s); returns s = largest |x| / 127, at least 2^-126; NaN and inf top all and spoil it.
   n: whole sixteens, which become vectors. start: NULL, or x becomes int8 and *start the bits of -128 * their sum. */
static float attn__quantise(float *x, int32_t n, float *start) {
    int32_t top[16] = { 0x03fe0000 /* 127 * 2^-126 */ };
    uint32_t sum = 0;
    for (int32_t i = 0; i < n; i += 16) {
        for (int32_t c = 0; c < 16; c++) top[c] = attn__max(top[c], (int32_t)(attn__bits_of(x[i + c]) & 0x7fffffffu));
    }
    for (int32_t c = 1; c < 16; c++) top[0] = attn__max(top[0], top[c]);
    float scale = attn__float_of((uint32_t)top[0]) / 127.0f;
    for (int32_t i = 0; i < n; i += 16) {
        int8_t bytes[16];
        for (int32_t c = 0; c < 16; c++) {
            int32_t y = attn__nearest(x[i + c] / scale);
            x[i + c] = (float)y;
            bytes[c] = (int8_t)y;
            sum -= 128u * (uint32_t)y;
        }
        if (start) memcpy((char *)x + i, bytes, 16);
    }
    if (start) *start = attn__float_of(sum);
    return scale;
}

/* ---- >>maths: exp, log and tanh without libm --------------------------------------------------------------------
   exp(x) = 2^n * 2^f, n = round(x / ln 2): minimax polynomial of degree 5 for 2^f - 1 over f in -0.5 .. 0.5, constant
   term exactly 1, so exp(0) = 1. Relative error 1.6e-7, and |x| * 7.4e-8 from rounding x / ln 2: weights far below the
   largest one need no more. Below 2^-126 the result is 0. The same in every leaf. */
#define ATTN__LOG2E 1.44269504f
static const float attn__exp_terms[] = { 0.0013264727f, 0.009671513f, 0.055507336f, 0.24022242f, 0.693147f, 1.0f };

/* tanh(x) = x + x^3 P(x^2) for |x| < 0.6 (minimax, relative error 8e-8), else (1 - e) / (1 + e), e = exp(-2|x|), with
   the reciprocal of 0.5 .. 1 by Newton's iteration: under fast-math clang turns a vector division into an estimate. */
#define ATTN__TANH_SMALL 0.6f
static const float attn__tanh_terms[] = { 0.0156404656f, -0.0522310982f, 0.133135206f, -0.333326216f };
#define ATTN__RECIPROCAL0 2.82352941f /* 48/17 - 32/17 y: within 1/17 of 1/y */
#define ATTN__RECIPROCAL1 (-1.88235294f)

/* For x <= 0; NaN stays NaN. */
static float attn__exp(float x) {
    float t = x * ATTN__LOG2E, f, p = attn__exp_terms[0];
    if (!(t >= -126.0f)) return t < -126.0f ? 0.0f : t;
    int32_t n = (int32_t)(t - 0.5f);
    f = t - (float)n;
    ATTN__UNROLL for (int32_t i = 1; i < 6; i++) p = p * f + attn__exp_terms[i];
    return p * attn__float_of((uint32_t)(n + 127) << 23);
}

/* For finite x > 0: x = m * 2^e with m in 0.7 .. 1.4, ln m = 2 atanh((m - 1) / (m + 1)). */
static double attn__log(float x) {
    int tiny = attn__bits_of(x) < 0x00800000u;
    uint32_t u = attn__bits_of(tiny ? x * 16777216.0f : x), mantissa = u & 0x7fffffu;
    int32_t large = mantissa > 0x3504f3u /* that of sqrt(2) */, e = (int32_t)(u >> 23) - (tiny ? 151 : 127) + large;
    double m = attn__float_of(mantissa | (large ? 0x3f000000u : 0x3f800000u)), s = (m - 1.0) / (m + 1.0), z = s * s;
    s = 2.0 * s * (1.0 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11))))));
    return s + e * 0.693147180559945309;
}

static float attn__tanh(float x) {
    float a = x < 0 ? -x : x, y = x * x, p = attn__tanh_terms[0];
    ATTN__UNROLL for (int i = 1; i < 4; i++) p = p * y + attn__tanh_terms[i];
    if (a < ATTN__TANH_SMALL) return x + x * y * p;
    float e = attn__exp(-2.0f * a), half = 0.5f + 0.5f * e, r = ATTN__RECIPROCAL0 + ATTN__RECIPROCAL1 * half;
    for (int i = 0; i < 3; i++) r = r + r * (1.0f - half * r);
    return (0.5f - 0.5f * e) * (x < 0 ? -r : r);
}

/* ---- >>leaves: what an instruction set must supply ---------------------------------------------------------------
   lane_*: PREFILL; with chain_* DECODE of many rows. A panel's rows stand in the lanes of vectors: q[d][lanes],
   s[key][lanes], o[v_dim][lanes]; K and V are read as scalars from their natural rows. All operations are vertical: a
   row never meets its neighbours. used: rows of the panel that matter.
   row_*: DECODE. d and v_dim stand in the lanes. The sum of a dot product is fixed: lane x adds d = x, x + L, ... in
   order, then the lanes are added as a tree (AMX: its own); so a row gets the same bits however many share the call.
   masks: bit r of mask[key] (lane_*) or bit key of mask[] (row_*) set: visible. Masked weights become 0 as integers.
   k, v: one pointer per key; the list is padded with valid pointers to a multiple of 16. */

/* What scores and values are computed from; ld: floats from row to row (row_*). ahead: rows of ahead_bytes that are
   read next, a row per key, NULL: none. Fetching them while the arithmetic runs is what brings DECODE to the memory's
   rate, and takes the wait for K and V out of PREFILL. mask: NULL: all visible. */
typedef struct attn__dots {
    float *s;                       /* [row][key]; lane_*: [key][lanes], with room for 8 keys more than n */
    const float *q;                 /* [row][d]; lane_*: [d][lanes]; chain_*: [][chain][d / row_lanes][chain_lanes] */
    const char *const *k;
    const float *factors;           /* lane_*, chain_*: scores are multiplied by that of their key; NULL: 1 */
    attn_type type;                 /* of k: f32, or another where attn__is_direct */
    int32_t lds, ldq, rows, n, d, ahead_bytes;
    const char *const *ahead;
    const uint64_t *mask;           /* lane_*: masked scores may be left as they are */
    int bytes;                      /* lane_*: q[d][lanes][4], k[d][4] are bytes, k without a sign. Behind q: [lanes] */
                                    /* the bits that sums start with, [lanes] what they are worth, beside factors */
    float scale, *top;              /* AMX, q[d][lanes][2] (row_*: [][d][16][2]), k[d][2], lane_*: no gaps: worth; */
                                    /* if leaves->tops divides n, for each lane's largest score, seen or not; or NULL */
} attn__dots;

typedef struct attn__sums {
    float *o;                       /* [row][v_dim], lane_*: [v_dim][lanes]: o * alpha[row] + p v */
    const float *p, *alpha;         /* p: [row][key], lane_*: [key][lanes] */
    const char *const *v;           /* lane_*: evenly apart */
    attn_type type;
    int32_t ldo, ldp, rows, n, v_dim, ahead_bytes;
    const char *const *ahead;
    const uint64_t *mask;           /* lane_*: weights are 0 where it says so */
    int strict;                     /* lane_*: masked lanes do not even see 0 * v, for V with NaN or inf */
    const char *packed;             /* AMX: what pack made of v, ldp bytes a row; p are pairs of keys in bf16 */
} attn__sums;

typedef struct attn__leaves {
    const char *name;
    int32_t lanes, direct, tops;    /* direct: bits of types, see attn__is_direct; tops: see attn__dots, 0: never */
    /* rows of d elements to f32, ld floats apart */
    void (*widen)(float *dst, int32_t ld, const char *const *src, int32_t rows, int32_t d, attn_type type);
    /* Rounds to type, first times *factor, -0 becoming +0; NULL: no arithmetic, where a host may flush subnormals */
    void (*narrow)(void *dst, const float *src, int32_t n, attn_type type, const float *factor);
    void (*softcap)(float *x, int32_t n, float cap);
    void (*blend)(float *a, const float *b, float wa, float wb, int32_t n); /* a = a * wa + b * wb */
    /* dst[x][row] = src[row][x] */
    void (*turn)(float *dst, int64_t ldd, const float *src, int64_t lds, int32_t rows, int32_t d);
    /* s[row][x] *= factors[by_row ? row : x]; there is room for 15 more in each row, and factors */
    void (*multiply)(float *s, int32_t ld, int32_t rows, int32_t n, const float *factors, int by_row);
    void (*lane_scores)(const attn__dots *a);
    /* top = largest visible score of each row, ATTN__LOWEST: none. mask NULL: all visible */
    void (*lane_max)(const float *s, int32_t n, const uint64_t *mask, float *top, int32_t used);
    /* m rises to top where that is larger, alpha = exp(old m - m); s -> exp(s - m), sum = their sums: one for every
       chains-th key, then the tree of row_weights, so they are the same wherever the keys start in their tile */
    void (*lane_weights)(float *s, int32_t n, const uint64_t *mask, const float *top, float *m, float *alpha,
                         float *sum, int32_t used, int32_t chains);
    void (*lane_values)(const attn__sums *a);
    void (*row_scores)(const attn__dots *a);
    float (*row_max)(const float *s, int32_t n, const uint64_t *mask); /* one row of n scores, as lane_max */
    float (*row_weights)(float *s, int32_t n, const uint64_t *mask, float m); /* s -> exp(s - m); returns the sum */
    void (*row_values)(const attn__sums *a);
    int32_t row_lanes, chain_lanes; /* of row_*: so many chains; rows that chain_scores takes at a time, 0: no such */
    void (*chain_scores)(const attn__dots *a); /* lane_scores with the sums of row_scores; d: whole sixteens */
    /* Are n rows in f32 free of NaN and infinity, which spoil a sum even with a weight of 0? */
    int (*finite)(const char *const *rows, int32_t n, int32_t d);
    /* AMX: n rows of v as [v_dim][whole blocks], dst has room for two; NaN and infinity become 0: are there none? */
    int (*pack)(float *dst, const char *const *rows, int32_t n, int32_t v_dim);
} attn__leaves;

/* ---- >>leaves_scalar: plain C, the reference --------------------------------------------------------------------- */
enum { ATTN__LANES_SCALAR = 16, ATTN__CHAINS_SCALAR = 8 };

/* Row i of a list of f32 rows */
ATTN__INLINE const float *attn__row(const char *const *rows, int32_t i) { return (const float *)(const void *)rows[i]; }

static void attn__widen_scalar(float *dst, int32_t ld, const char *const *src, int32_t rows, int32_t d,
                               attn_type type) {
    for (int32_t i = 0; i < rows; i++) {
        for (int32_t x = 0; x < d; x++) dst[(ptrdiff_t)i * ld + x] = attn__load(src[i], x, type);
    }
}

static void attn__narrow_scalar(void *dst, const float *src, int32_t n, attn_type type, const float *factor) {
    for (int32_t i = 0; i < n; i++) attn__store(dst, i, type, factor ? src[i] * *factor + 0.0f : src[i]);
}

static void attn__softcap_scalar(float *x, int32_t n, float cap) {
    float inverse = 1.0f / cap;
    for (int32_t i = 0; i < n; i++) x[i] = cap * attn__tanh(x[i] * inverse);
}

static void attn__blend_scalar(float *a, const float *b, float wa, float wb, int32_t n) {
    for (int32_t i = 0; i < n; i++) a[i] = a[i] * wa + b[i] * wb;
}

static void attn__turn_scalar(float *dst, int64_t ldd, const float *src, int64_t lds, int32_t rows, int32_t d) {
    for (int32_t i = 0; i < rows; i++) {
        for (int32_t x = 0; x < d; x++) dst[x * ldd + i] = src[i * lds + x];
    }
}

/* Sixteen elements at a time, of which compilers make vectors, wider ones where the caller has them. */
ATTN__INLINE int attn__finite_scalar(const char *const *rows, int32_t n, int32_t d) {
    uint32_t worst[16] = { 0 }, any = 0; /* the sign: an exponent was all ones */
    for (int32_t i = 0, x; i < n; i++) {
        const float *row = attn__row(rows, i);
        for (x = 0; x + 16 <= d; x += 16) {
            for (int32_t c = 0; c < 16; c++) worst[c] |= (attn__bits_of(row[x + c]) & 0x7f800000u) + 0x00800000u;
        }
        for (; x < d; x++) any |= (attn__bits_of(row[x]) & 0x7f800000u) + 0x00800000u;
    }
    for (int32_t c = 0; c < 16; c++) any |= worst[c];
    return !(any >> 31);
}

static void attn__multiply_scalar(float *s, int32_t ld, int32_t rows, int32_t n, const float *factors, int by_row) {
    for (int32_t at = 0; at < rows * n; at++) s[at / n * ld + at % n] *= factors[by_row ? at / n : at % n];
}

static void attn__lane_scores_scalar(const attn__dots *a) {
    for (int32_t j = 0; j < a->n; j++) {
        float sum[ATTN__LANES_SCALAR] = { 0 };
        for (int32_t x = 0; x < a->d; x++) {
            const float *q = a->q + x * ATTN__LANES_SCALAR;
            for (int32_t r = 0; r < ATTN__LANES_SCALAR; r++) sum[r] += attn__row(a->k, j)[x] * q[r];
        }
        for (int32_t r = 0; r < ATTN__LANES_SCALAR && a->factors; r++) sum[r] *= a->factors[j];
        memcpy(a->s + j * ATTN__LANES_SCALAR, sum, sizeof sum);
    }
}

static void attn__lane_max_scalar(const float *s, int32_t n, const uint64_t *mask, float *top, int32_t used) {
    for (int32_t r = 0; r < used; r++) {
        top[r] = ATTN__LOWEST;
        for (int32_t j = 0; j < n; j++) {
            float x = s[j * ATTN__LANES_SCALAR + r];
            if ((!mask || (mask[j] >> r & 1)) && x > top[r]) top[r] = x;
        }
    }
}

static void attn__lane_weights_scalar(float *s, int32_t n, const uint64_t *mask, const float *top, float *m,
                                      float *alpha, float *sum, int32_t used, int32_t chains) {
    (void)chains;
    for (int32_t r = 0; r < used; r++) {
        float old = m[r];
        if (top[r] > old) m[r] = top[r];
        alpha[r] = attn__exp(old - m[r]);
        sum[r] = 0;
        for (int32_t j = 0; j < n; j++) {
            float *x = &s[j * ATTN__LANES_SCALAR + r];
            *x = !mask || (mask[j] >> r & 1) ? attn__exp(*x - m[r]) : 0.0f;
            sum[r] += *x;
        }
    }
}

static void attn__lane_values_scalar(const attn__sums *a) {
    const uint64_t *mask = a->strict ? a->mask : NULL;
    for (int32_t x = 0; x < a->v_dim; x++) {
        float *o = a->o + x * ATTN__LANES_SCALAR;
        for (int32_t r = 0; r < a->rows; r++) o[r] *= a->alpha[r];
        for (int32_t j = 0; j < a->n; j++) {
            float value = attn__row(a->v, j)[x];
            for (int32_t r = 0; r < a->rows; r++) {
                if (!mask || (mask[j] >> r & 1)) o[r] += a->p[j * ATTN__LANES_SCALAR + r] * value;
            }
        }
    }
}

static void attn__row_scores_scalar(const attn__dots *a) {
    for (int32_t at = 0, x, i; at < a->rows * a->n; at++) {
        const float *q = a->q + (ptrdiff_t)(at / a->n) * a->ldq, *k = attn__row(a->k, at % a->n);
        float c[ATTN__CHAINS_SCALAR] = { 0 };
        for (x = 0; x + ATTN__CHAINS_SCALAR <= a->d; x += ATTN__CHAINS_SCALAR) {
            for (i = 0; i < ATTN__CHAINS_SCALAR; i++) c[i] += q[x + i] * k[x + i];
        }
        for (i = 0; x + i < a->d; i++) c[i] += q[x + i] * k[x + i];
        c[0] = ((c[0] + c[2]) + (c[1] + c[3])) + ((c[4] + c[6]) + (c[5] + c[7]));
        a->s[at / a->n * a->lds + at % a->n] = c[0];
    }
}

static float attn__row_max_scalar(const float *s, int32_t n, const uint64_t *mask) {
    float top = ATTN__LOWEST;
    for (int32_t j = 0; j < n; j++) {
        if ((mask[j >> 6] >> (j & 63) & 1) && s[j] > top) top = s[j];
    }
    return top;
}

static float attn__row_weights_scalar(float *s, int32_t n, const uint64_t *mask, float m) {
    float sum = 0;
    for (int32_t j = 0; j < n; j++) {
        s[j] = mask[j >> 6] >> (j & 63) & 1 ? attn__exp(s[j] - m) : 0.0f;
        sum += s[j];
    }
    return sum;
}

static void attn__row_values_scalar(const attn__sums *a) {
    for (int32_t r = 0; r < a->rows; r++) {
        float *row = a->o + (ptrdiff_t)r * a->ldo;
        for (int32_t x = 0; x < a->v_dim; x++) row[x] *= a->alpha[r];
        for (int32_t j = 0; j < a->n; j++) {
            float w = a->p[r * a->ldp + j];
            for (int32_t x = 0; x < a->v_dim; x++) row[x] += w * attn__row(a->v, j)[x];
        }
    }
}

#if ATTN__X86 || ATTN__NEON
/* ---- >>leaves_vec: AVX2 (with FMA and F16C) or NEON; 16 rows in the lanes -----------------------------------------
   First the operations in which the two differ, on vectors of ATTN__W floats; a mask has all bits of a lane, or none.
   ATTN__KEYS keys or columns by the ATTN__N vectors of 16 rows fill the registers. */

#if ATTN__X86
#define ATTN__VEC ATTN__TARGET("avx2,fma,f16c")
#define ATTN__OP ATTN__VEC ATTN__INLINE
enum { ATTN__W = 8, ATTN__N = 16 / ATTN__W, ATTN__KEYS = 6, ATTN__SUMS = ATTN__KEYS * ATTN__N };
typedef __m256 attn__vec;
typedef __m256i attn__ints;
typedef __m128i attn__halves; /* f16 or bf16 of a vector */

ATTN__OP attn__vec attn__set_vec(float x) { return _mm256_set1_ps(x); }
ATTN__OP attn__vec attn__load_vec(const float *at) { return _mm256_loadu_ps(at); }
ATTN__OP void attn__store_vec(float *at, attn__vec a) { _mm256_storeu_ps(at, a); }
ATTN__OP attn__vec attn__add_vec(attn__vec a, attn__vec b) { return _mm256_add_ps(a, b); }
ATTN__OP attn__vec attn__sub_vec(attn__vec a, attn__vec b) { return _mm256_sub_ps(a, b); }
ATTN__OP attn__vec attn__mul_vec(attn__vec a, attn__vec b) { return _mm256_mul_ps(a, b); }
ATTN__OP attn__vec attn__fma_vec(attn__vec a, attn__vec b, attn__vec c) { return _mm256_fmadd_ps(a, b, c); }
ATTN__OP attn__vec attn__max_vec(attn__vec a, attn__vec b) { return _mm256_max_ps(a, b); } /* b where one is NaN */
ATTN__OP attn__vec attn__and_vec(attn__vec a, attn__vec b) { return _mm256_and_ps(a, b); }
ATTN__OP attn__vec attn__or_vec(attn__vec a, attn__vec b) { return _mm256_or_ps(a, b); }
ATTN__OP attn__vec attn__select_vec(attn__vec mask, attn__vec a, attn__vec b) { return _mm256_blendv_ps(b, a, mask); }
ATTN__OP attn__vec attn__not_less_vec(attn__vec a, attn__vec b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }
ATTN__OP attn__vec attn__zip_low_vec(attn__vec a, attn__vec b) { return _mm256_unpacklo_ps(a, b); }
ATTN__OP attn__vec attn__zip_high_vec(attn__vec a, attn__vec b) { return _mm256_unpackhi_ps(a, b); }
ATTN__OP attn__ints attn__to_int_vec(attn__vec a) { return _mm256_cvtps_epi32(a); } /* the nearest */
ATTN__OP attn__vec attn__from_int_vec(attn__ints a) { return _mm256_cvtepi32_ps(a); }
ATTN__OP attn__halves attn__to_f16_vec(attn__vec a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
ATTN__OP float attn__first_vec(attn__vec a) { return _mm256_cvtss_f32(a); }

ATTN__OP attn__vec attn__scale_vec(attn__vec p, attn__ints n) { /* p * 2^n */
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(n, 23)));
}

ATTN__OP attn__vec attn__mask_vec(uint64_t bits) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int32_t)bits), bit), bit));
}

/* The first n lanes, n >= ATTN__W: all; what is not loaded is 0. */
ATTN__OP attn__vec attn__load_first_vec(const float *at, int32_t n) {
    if (n >= ATTN__W) return _mm256_loadu_ps(at);
    return _mm256_maskload_ps(at, _mm256_castps_si256(attn__mask_vec((1u << n) - 1)));
}

ATTN__OP void attn__store_first_vec(float *at, int32_t n, attn__vec a) {
    if (n < ATTN__W) _mm256_maskstore_ps(at, _mm256_castps_si256(attn__mask_vec((1u << n) - 1)), a);
    if (n >= ATTN__W) _mm256_storeu_ps(at, a);
}

/* Four floats of a row, and with eight lanes as many of the fourth row after it */
ATTN__OP attn__vec attn__load_rows_vec(const float *at, int64_t ld) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at)), _mm_loadu_ps(at + 4 * ld), 1);
}

/* Lanes that are i apart change places; i: a power of 2. */
ATTN__OP attn__vec attn__swap_vec(attn__vec a, int i) {
    return i == 4 ? _mm256_permute2f128_ps(a, a, 1) : i == 2 ? _mm256_permute_ps(a, 0x4e) : _mm256_permute_ps(a, 0xb1);
}

ATTN__OP attn__vec attn__fold_vec(attn__vec a, attn__vec b) {
    return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
}

/* The lanes of ATTN__W vectors added up: ((0 + 2) + (1 + 3)) in each half, then the halves */
ATTN__OP attn__vec attn__sums_vec(const attn__vec *a) {
    attn__vec low = attn__fold_vec(attn__fold_vec(a[0], a[2]), attn__fold_vec(a[1], a[3]));
    attn__vec high = attn__fold_vec(attn__fold_vec(a[4], a[6]), attn__fold_vec(a[5], a[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

/* NaN is found by its bits: fast-math would drop x != x. */
ATTN__OP attn__halves attn__to_bf16_vec(attn__vec a) {
    __m256i u = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_cmpgt_epi32(_mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff)), _mm256_set1_epi32(0x7f800000));
    u = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
}

/* A vector of a row, from x on. For the 8 bits see attn__from_f8; seven ones, NaN, carry. */
ATTN__OP attn__vec attn__read_vec(const char *src, int32_t x, attn_type type) {
    const void *at = src + (ptrdiff_t)x * attn__type_bytes(type);
    if (type == ATTN_F32) return _mm256_loadu_ps((const float *)at);
    __m128i raw = type <= ATTN_BF16 ? _mm_loadu_si128((const __m128i *)at) : _mm_loadl_epi64((const __m128i *)at);
    if (type == ATTN_F16) return _mm256_cvtph_ps(raw);
    if (type == ATTN_BF16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
    if (type == ATTN_INT8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw));
    raw = _mm_cvtepi8_epi16(raw);
    if (type == ATTN_E5M2) return _mm256_cvtph_ps(_mm_slli_epi16(raw, 8));
    raw = _mm_slli_epi16(raw, 7);
    raw = _mm_xor_si128(raw, _mm_and_si128(_mm_add_epi16(raw, _mm_set1_epi16(0x80)), _mm_set1_epi16(0x4000)));
    return _mm256_cvtph_ps(raw);
}

#else /* NEON */
#define ATTN__VEC
#define ATTN__OP ATTN__INLINE
enum { ATTN__W = 4, ATTN__N = 16 / ATTN__W, ATTN__KEYS = 4, ATTN__SUMS = ATTN__KEYS * ATTN__N };
typedef float32x4_t attn__vec;
typedef int32x4_t attn__ints;
typedef uint16x4_t attn__halves;
ATTN__OP attn__vec attn__set_vec(float x) { return vdupq_n_f32(x); }
ATTN__OP attn__vec attn__load_vec(const float *at) { return vld1q_f32(at); }
ATTN__OP void attn__store_vec(float *at, attn__vec a) { vst1q_f32(at, a); }
ATTN__OP attn__vec attn__add_vec(attn__vec a, attn__vec b) { return vaddq_f32(a, b); }
ATTN__OP attn__vec attn__sub_vec(attn__vec a, attn__vec b) { return vsubq_f32(a, b); }
ATTN__OP attn__vec attn__mul_vec(attn__vec a, attn__vec b) { return vmulq_f32(a, b); }
ATTN__OP attn__vec attn__fma_vec(attn__vec a, attn__vec b, attn__vec c) { return vfmaq_f32(c, a, b); }
ATTN__OP attn__vec attn__max_vec(attn__vec a, attn__vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
ATTN__OP attn__vec attn__and_vec(attn__vec a, attn__vec b) { return (attn__vec)((uint32x4_t)a & (uint32x4_t)b); }
ATTN__OP attn__vec attn__or_vec(attn__vec a, attn__vec b) { return (attn__vec)((uint32x4_t)a | (uint32x4_t)b); }
ATTN__OP attn__vec attn__select_vec(attn__vec m, attn__vec a, attn__vec b) { return vbslq_f32((uint32x4_t)m, a, b); }
ATTN__OP attn__vec attn__not_less_vec(attn__vec a, attn__vec b) { return (attn__vec)~vcltq_f32(a, b); }
ATTN__OP attn__vec attn__zip_low_vec(attn__vec a, attn__vec b) { return vzip1q_f32(a, b); }
ATTN__OP attn__vec attn__zip_high_vec(attn__vec a, attn__vec b) { return vzip2q_f32(a, b); }
ATTN__OP attn__halves attn__to_f16_vec(attn__vec a) { return vreinterpret_u16_f16(vcvt_f16_f32(a)); }
ATTN__OP attn__ints attn__to_int_vec(attn__vec a) { return vcvtnq_s32_f32(a); }
ATTN__OP attn__vec attn__from_int_vec(attn__ints a) { return vcvtq_f32_s32(a); }
ATTN__OP attn__vec attn__load_rows_vec(const float *at, int64_t ld) { return (void)ld, vld1q_f32(at); }
ATTN__OP attn__vec attn__scale_vec(attn__vec p, attn__ints n) { return (attn__vec)((int32x4_t)p + vshlq_n_s32(n, 23)); }
ATTN__OP attn__vec attn__swap_vec(attn__vec a, int i) { return i == 2 ? vextq_f32(a, a, 2) : vrev64q_f32(a); }
ATTN__OP float attn__first_vec(attn__vec a) { return vgetq_lane_f32(a, 0); }

ATTN__OP attn__vec attn__mask_vec(uint64_t bits) {
    static const uint32_t bit[] = { 1, 2, 4, 8 };
    return (attn__vec)vtstq_u32(vdupq_n_u32((uint32_t)bits), vld1q_u32(bit));
}

ATTN__OP attn__vec attn__load_first_vec(const float *at, int32_t n) {
    float first[ATTN__W] = { 0 };
    if (n < ATTN__W) memcpy(first, at, (size_t)n * sizeof *at);
    return vld1q_f32(n < ATTN__W ? first : at);
}

ATTN__OP void attn__store_first_vec(float *at, int32_t n, attn__vec a) {
    float first[ATTN__W];
    vst1q_f32(n < ATTN__W ? first : at, a);
    if (n < ATTN__W) memcpy(at, first, (size_t)n * sizeof *at);
}

ATTN__OP attn__vec attn__sums_vec(const attn__vec *a) { /* here (0 + 1) + (2 + 3) */
    return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));
}

ATTN__OP attn__halves attn__to_bf16_vec(attn__vec a) {
    uint32x4_t u = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t nan = vcgtq_u32(vandq_u32(u, vdupq_n_u32(0x7fffffff)), vdupq_n_u32(0x7f800000));
    return vshrn_n_u32(vbslq_u32(nan, vorrq_u32(u, vdupq_n_u32(0x400000)), rounded), 16);
}

ATTN__OP attn__vec attn__read_vec(const char *src, int32_t x, attn_type type) {
    const char *at = src + (ptrdiff_t)x * attn__type_bytes(type);
    int32_t word;
    if (type == ATTN_F32) return vld1q_f32((const float *)(const void *)at);
    if (type == ATTN_F16) return vcvt_f32_f16((float16x4_t)vld1_u16((const uint16_t *)(const void *)at));
    if (type == ATTN_BF16) return (attn__vec)vshll_n_u16(vld1_u16((const uint16_t *)(const void *)at), 16);
    memcpy(&word, at, sizeof word);
    int16x4_t raw = vget_low_s16(vmovl_s8((int8x8_t)vdup_n_s32(word)));
    if (type == ATTN_INT8) return vcvtq_f32_s32(vmovl_s16(raw));
    if (type == ATTN_E5M2) return vcvt_f32_f16((float16x4_t)vshl_n_s16(raw, 8));
    raw = vshl_n_s16(raw, 7);
    raw = veor_s16(raw, vand_s16(vadd_s16(raw, vdup_n_s16(0x80)), vdup_n_s16(0x4000)));
    return vcvt_f32_f16((float16x4_t)raw);
}
#endif

/* Where element x of d is in a row to ask for; a guess if that wraps. Dividing 64 bits took .7 % of prompts. */
ATTN__INLINE int32_t attn__ahead_at(int32_t x, int32_t d, int32_t bytes) {
    return (int32_t)((uint32_t)x * (uint32_t)bytes / (uint32_t)d);
}

/* Asks for elements x .. end - 1, of `size` bytes, of n rows: at best line by line, which is 2 to 10 % of decoding. */
ATTN__INLINE void attn__fetch(const char *const *rows, int n, int32_t x, int32_t end, int32_t size) {
    for (; x < end; x += 64 / size) {
        ATTN__UNROLL for (int i = 0; i < n; i++) ATTN__FETCH_L2(rows[i] + (ptrdiff_t)x * size);
    }
}

/* Calls f, inlined, with the type as a constant: its loops have no branches. types: bits of those that need code. */
#define ATTN__BY_TYPE(types, type, f, ...)                                             \
    if ((types) >> ATTN_F32 & 1 && (type) == ATTN_F32) f(__VA_ARGS__, ATTN_F32);       \
    if ((types) >> ATTN_F16 & 1 && (type) == ATTN_F16) f(__VA_ARGS__, ATTN_F16);       \
    if ((types) >> ATTN_BF16 & 1 && (type) == ATTN_BF16) f(__VA_ARGS__, ATTN_BF16);    \
    if ((types) >> ATTN_E4M3 & 1 && (type) == ATTN_E4M3) f(__VA_ARGS__, ATTN_E4M3);    \
    if ((types) >> ATTN_E5M2 & 1 && (type) == ATTN_E5M2) f(__VA_ARGS__, ATTN_E5M2);    \
    if ((types) >> ATTN_INT8 & 1 && (type) == ATTN_INT8) f(__VA_ARGS__, ATTN_INT8);

enum { ATTN__LANES_VEC = 16, ATTN__DIRECT_VEC = ATTN__X86 ? 63 : 1 << ATTN_F32 | 1 << ATTN_F16 };

ATTN__OP attn__vec attn__exp_vec(attn__vec x) {
    const attn__vec least = attn__set_vec(-126.0f);
    attn__vec t = attn__mul_vec(x, attn__set_vec(ATTN__LOG2E)), keep = attn__not_less_vec(t, least);
    t = attn__max_vec(least, t); /* NaN, the second operand, passes */
    attn__ints n = attn__to_int_vec(t);
    attn__vec f = attn__sub_vec(t, attn__from_int_vec(n)), p = attn__set_vec(attn__exp_terms[0]);
    ATTN__UNROLL for (int i = 1; i < 6; i++) p = attn__fma_vec(p, f, attn__set_vec(attn__exp_terms[i]));
    return attn__and_vec(keep, attn__scale_vec(p, n));
}

ATTN__OP void attn__expand_vec(float *dst, int32_t ld, const char *const *src, int32_t rows, int32_t d,
                               attn_type type) {
    for (int32_t i = 0, x; i < rows; i++, dst += ld) {
        for (x = 0; x + ATTN__W <= d; x += ATTN__W) attn__store_vec(dst + x, attn__read_vec(src[i], x, type));
        for (; x < d; x++) dst[x] = attn__load(src[i], x, type);
    }
}

ATTN__VEC static void attn__widen_vec(float *dst, int32_t ld, const char *const *src, int32_t rows, int32_t d,
                                      attn_type type) {
    ATTN__BY_TYPE(63, type, attn__expand_vec, dst, ld, src, rows, d)
}

ATTN__VEC static void attn__narrow_vec(void *dst, const float *src, int32_t n, attn_type type, const float *factor) {
    int32_t x = 0;
    for (; x + ATTN__W <= n && type <= ATTN_BF16; x += ATTN__W) {
        attn__vec y = attn__load_vec(src + x);
        if (factor) y = attn__fma_vec(y, attn__set_vec(*factor), attn__set_vec(0.0f));
        attn__halves half = type == ATTN_F16 ? attn__to_f16_vec(y) : attn__to_bf16_vec(y);
        if (type == ATTN_F32) attn__store_vec((float *)dst + x, y);
        else memcpy((uint16_t *)dst + x, &half, sizeof half);
    }
    attn__narrow_scalar((char *)dst + (ptrdiff_t)x * attn__type_bytes(type), src + x, n - x, type, factor);
}

ATTN__VEC static void attn__softcap_vec(float *x, int32_t n, float cap) {
    const attn__vec one = attn__set_vec(1.0f), half = attn__set_vec(0.5f), minus = attn__set_vec(-0.5f);
    const attn__vec sign = attn__set_vec(-0.0f), magnitude = attn__set_vec(attn__float_of(0x7fffffffu));
    for (int32_t i = 0; i < n; i += ATTN__W) {
        attn__vec t = attn__mul_vec(attn__load_first_vec(x + i, n - i), attn__set_vec(1.0f / cap));
        attn__vec a = attn__and_vec(magnitude, t), y = attn__mul_vec(t, t), small = attn__set_vec(attn__tanh_terms[0]);
        attn__vec e = attn__exp_vec(attn__mul_vec(a, attn__set_vec(-2.0f))), divisor = attn__fma_vec(e, minus, minus);
        attn__vec big = attn__fma_vec(divisor, attn__set_vec(-ATTN__RECIPROCAL1), attn__set_vec(ATTN__RECIPROCAL0));
        ATTN__UNROLL for (int j = 0; j < 3; j++) big = attn__fma_vec(big, attn__fma_vec(divisor, big, one), big);
        big = attn__or_vec(attn__mul_vec(attn__fma_vec(e, minus, half), big), attn__and_vec(sign, t));
        ATTN__UNROLL for (int j = 1; j < 4; j++) small = attn__fma_vec(small, y, attn__set_vec(attn__tanh_terms[j]));
        small = attn__fma_vec(attn__mul_vec(t, y), small, t);
        t = attn__select_vec(attn__not_less_vec(a, attn__set_vec(ATTN__TANH_SMALL)), big, small);
        attn__store_first_vec(x + i, n - i, attn__mul_vec(t, attn__set_vec(cap)));
    }
}

ATTN__VEC static void attn__blend_vec(float *a, const float *b, float wa, float wb, int32_t n) {
    const attn__vec va = attn__set_vec(wa), vb = attn__set_vec(wb);
    for (int32_t i = 0; i < n; i += ATTN__W) {
        attn__vec y = attn__mul_vec(attn__load_first_vec(a + i, n - i), va);
        attn__store_first_vec(a + i, n - i, attn__fma_vec(attn__load_first_vec(b + i, n - i), vb, y));
    }
}

ATTN__VEC static void attn__multiply_vec(float *s, int32_t ld, int32_t rows, int32_t n, const float *factors,
                                         int by_row) {
    for (int32_t i = 0, j; i < rows; i++, s += ld) {
        for (j = 0; j < n; j += ATTN__W) {
            attn__vec factor = by_row ? attn__set_vec(factors[i]) : attn__load_vec(factors + j);
            attn__store_vec(s + j, attn__mul_vec(attn__load_vec(s + j), factor));
        }
    }
}

ATTN__VEC static int attn__finite_vec(const char *const *rows, int32_t n, int32_t d) {
    return attn__finite_scalar(rows, n, d);
}

ATTN__VEC static void attn__turn_vec(float *dst, int64_t ldd, const float *src, int64_t lds, int32_t rows, int32_t d) {
    int32_t n = 0, x, i;
    for (; n + ATTN__W <= rows; n += ATTN__W, dst += ATTN__W, src += ATTN__W * lds) {
        for (x = 0; x + 4 <= d; x += 4) {
            attn__vec a[4], b[4];
            ATTN__UNROLL for (i = 0; i < 4; i++) a[i] = attn__load_rows_vec(src + i * lds + x, lds);
            ATTN__UNROLL for (i = 0; i < 2; i++) {
                b[i] = attn__zip_low_vec(a[i], a[i + 2]);
                b[i + 2] = attn__zip_high_vec(a[i], a[i + 2]);
            }
            ATTN__UNROLL for (i = 0; i < 4; i += 2) {
                attn__store_vec(dst + (x + i) * ldd, attn__zip_low_vec(b[i], b[i + 1]));
                attn__store_vec(dst + (x + i + 1) * ldd, attn__zip_high_vec(b[i], b[i + 1]));
            }
        }
        attn__turn_scalar(dst + x * ldd, ldd, src + x, lds, ATTN__W, d - x);
    }
    attn__turn_scalar(dst, ldd, src, lds, rows - n, d);
}

/* A key's vectors are neighbours, in sum as in s. chains: 1, or ATTN__W, which add up as in attn__dots_vec: d = x,
   x + ATTN__W, ..., one after the other in the order of its tree, whose nodes wait in `part`. */
ATTN__OP void attn__panel_scores_vec(const attn__dots *a, int chains) {
    for (int32_t j = 0, c, x, i, level; j < a->n; j += ATTN__KEYS) {
        attn__vec sum[ATTN__SUMS], part[4][ATTN__SUMS], query[ATTN__N];
        const float *row[ATTN__KEYS];
        float *s = a->s + j * ATTN__LANES_VEC, *top = a->top;
        if (a->ahead) attn__fetch(a->ahead + j, ATTN__KEYS, 0, a->ahead_bytes, 1);
        ATTN__UNROLL for (i = 0; i < ATTN__KEYS; i++) row[i] = attn__row(a->k, j + i);
        for (c = 0; c < chains; c++) {
            x = ATTN__X86 ? (c & 4) + (c & 1) * 2 + (c >> 1 & 1) : c;
            const float *q = a->q + x * (a->d / chains) * ATTN__LANES_VEC;
            ATTN__UNROLL for (i = 0; i < ATTN__SUMS; i++) sum[i] = attn__set_vec(0.0f);
            ATTN__TIMES(4) for (; x < a->d; x += chains, q += ATTN__LANES_VEC) {
                ATTN__UNROLL for (i = 0; i < ATTN__N; i++) query[i] = attn__load_vec(q + i * ATTN__W);
                ATTN__UNROLL for (i = 0; i < ATTN__SUMS; i++) {
                    sum[i] = attn__fma_vec(attn__set_vec(row[i / ATTN__N][x]), query[i % ATTN__N], sum[i]);
                }
            }
            for (level = 0; c >> level & 1; level++) {
                ATTN__UNROLL for (i = 0; i < ATTN__SUMS; i++) sum[i] = attn__add_vec(part[level][i], sum[i]);
            }
            ATTN__UNROLL for (i = 0; i < ATTN__SUMS; i++) part[level][i] = sum[i];
        }
        if (a->factors) {
            ATTN__UNROLL for (i = 0; i < ATTN__SUMS; i++) {
                sum[i] = attn__mul_vec(sum[i], attn__set_vec(a->factors[j + i / ATTN__N]));
            }
        }
        ATTN__UNROLL for (i = 0; i < ATTN__SUMS; i++) attn__store_vec(s + i * ATTN__W, sum[i]);
        ATTN__UNROLL for (i = 0; i < ATTN__N; i++) { /* 3 % of prompts; lane_max reads all scores */
            attn__vec most = top && j ? attn__load_vec(top + i * ATTN__W) : attn__set_vec(ATTN__LOWEST);
            ATTN__UNROLL for (x = i; x < ATTN__SUMS; x += ATTN__N) most = attn__max_vec(sum[x], most);
            if (top) attn__store_vec(top + i * ATTN__W, most);
        }
    }
}

ATTN__VEC static void attn__lane_scores_vec(const attn__dots *a) { attn__panel_scores_vec(a, 1); }
ATTN__VEC static void attn__chain_scores_vec(const attn__dots *a) { attn__panel_scores_vec(a, ATTN__W); }

ATTN__VEC static void attn__lane_max_vec(const float *s, int32_t n, const uint64_t *mask, float *top, int32_t used) {
    for (int32_t c = 0; c < used; c += ATTN__W) {
        attn__vec most = attn__set_vec(ATTN__LOWEST);
        for (int32_t j = 0; j < n; j++) {
            attn__vec y = attn__max_vec(attn__load_vec(s + j * ATTN__LANES_VEC + c), most);
            most = mask ? attn__select_vec(attn__mask_vec(mask[j] >> c), y, most) : y;
        }
        attn__store_vec(top + c, most);
    }
}

ATTN__VEC static void attn__lane_weights_vec(float *s, int32_t n, const uint64_t *mask, const float *top, float *m,
                                             float *alpha, float *sum, int32_t used, int32_t chains) {
    for (int32_t c = 0, i, j; c < used; c += ATTN__W) {
        attn__vec old = attn__load_vec(m + c), most = attn__max_vec(attn__load_vec(top + c), old);
        attn__vec total[ATTN__W] = { attn__set_vec(0.0f) };
        for (i = 0; i < chains; i++) {
            for (j = i; j < n; j += chains) {
                float *x = s + j * ATTN__LANES_VEC + c;
                attn__vec p = attn__exp_vec(attn__sub_vec(attn__load_vec(x), most));
                if (mask) p = attn__and_vec(p, attn__mask_vec(mask[j] >> c));
                total[i] = attn__add_vec(total[i], p);
                attn__store_vec(x, p);
            }
        }
        for (j = chains / 2; j > 0; j /= 2) {
            for (i = 0; i < j; i++) total[i] = attn__add_vec(total[i], total[i + j]);
        }
        attn__store_vec(m + c, most);
        attn__store_vec(alpha + c, attn__exp_vec(attn__sub_vec(old, most)));
        attn__store_vec(sum + c, total[0]);
    }
}

/* lines x vectors of o: columns from x on of 16 rows (lane), or rows from r on and their columns from x on, of which a
   single vector may be partial. fetch asks for what is read next, a line with each key (loops without are 5 % of
   prompts), 1: byte `at` of each row, 2: rows from row `at` on, each whole: up to 20 % of decoding with few kv heads */
ATTN__OP void attn__outer_vec(int lane, int lines, int vectors, const attn__sums *a, int32_t r, int32_t x,
                              const uint64_t *mask, attn_type type, int fetch, int32_t at) {
    attn__vec sum[ATTN__SUMS], part[ATTN__N];
    const char *line = NULL, *stop = NULL;
    const float *first = lane && a->n ? attn__row(a->v, 0) + x : NULL;
    ptrdiff_t step = lane && a->n ? attn__row(a->v, 1) + x - first : 0, start = 0;
    ptrdiff_t ld = lane ? ATTN__LANES_VEC : a->ldo, ldp = a->ldp;
    float *o = a->o + (lane ? x * ld : r * ld + x);
    const float *p = a->p + (lane ? 0 : r * ldp), *alpha = a->alpha + r;
    int32_t used = vectors > 1 ? ATTN__W : a->v_dim - x, bytes = (a->ahead_bytes + 63) & -64, i;
    ATTN__UNROLL for (i = 0; i < lines * vectors; i++) {
        attn__vec y = attn__load_first_vec(o + i / vectors * ld + i % vectors * ATTN__W, used);
        sum[i] = lane ? attn__load_vec(alpha + i % vectors * ATTN__W) : attn__set_vec(alpha[i / vectors]);
        sum[i] = attn__mul_vec(y, sum[i]);
    }
    ATTN__TIMES(2) for (int32_t j = 0, n = a->n; j < n; j++, p += lane ? ATTN__LANES_VEC : 1, start += step) {
        const float *v = lane ? first + start : attn__row(a->v, j) + x;
        if (fetch == 2 && line == stop && at < a->n) stop = (line = a->ahead[at++]) + bytes;
        if (fetch) ATTN__FETCH_L2(fetch == 2 ? line : a->ahead[j] + at);
        if (fetch == 2) line += 64;
        ATTN__UNROLL for (i = 0; i < vectors; i++) {
            part[i] = type != ATTN_F32 ? attn__read_vec(a->v[j], x + i * ATTN__W, type)
                                       : attn__load_first_vec((lane ? p : v) + i * ATTN__W, used);
        }
        ATTN__UNROLL for (i = 0; i < lines * vectors; i++) {
            attn__vec factor = attn__set_vec(lane ? v[i / vectors] : p[i / vectors * ldp]);
            attn__vec y = attn__fma_vec(factor, part[i % vectors], sum[i]);
            sum[i] = mask ? attn__select_vec(attn__mask_vec(mask[j] >> i % vectors * ATTN__W), y, sum[i]) : y;
        }
    }
    ATTN__UNROLL for (i = 0; i < lines * vectors; i++) {
        attn__store_first_vec(o + i / vectors * ld + i % vectors * ATTN__W, used, sum[i]);
    }
}

/* The first rows ask for a line of what is next beside each line of their own. gcc 12 lacks registers for it on ARM. */
ATTN__OP void attn__asking_vec(int lane, int lines, const attn__sums *a, int32_t r, int32_t x, attn_type type) {
    int32_t bytes = a->ahead && r == 0 ? a->ahead_bytes : 0, at = attn__ahead_at(x, a->v_dim, bytes);
    int fetch = lane ? bytes > 0 : at % 64 < attn__ahead_at(16, a->v_dim, bytes);
    for (int32_t j = 0; ATTN__NEON && fetch && j < a->n; j++) ATTN__FETCH_L2(a->ahead[j] + at);
    if (lines == 4 && !lane) at = attn__ahead_at(x, a->v_dim, a->n);
    if (ATTN__X86 && fetch) attn__outer_vec(lane, lines, ATTN__N, a, r, x, NULL, type, lines == 4 && !lane ? 2 : 1, at);
    else attn__outer_vec(lane, lines, ATTN__N, a, r, x, NULL, type, 0, 0);
}

ATTN__VEC static void attn__lane_values_vec(const attn__sums *a) {
    int32_t x = 0, end = a->strict ? 0 : a->v_dim;
    for (; x + ATTN__KEYS <= end && x + 8 != end; x += ATTN__KEYS) attn__asking_vec(1, ATTN__KEYS, a, 0, x, ATTN_F32);
    for (; x + 4 <= end; x += 4) attn__outer_vec(1, 4, ATTN__N, a, 0, x, NULL, ATTN_F32, 0, 0);
    for (; x < a->v_dim; x++) attn__outer_vec(1, 1, ATTN__N, a, 0, x, a->strict ? a->mask : NULL, ATTN_F32, 0, 0);
}

/* One step of a vector of elements of d; only the last one may be partial. */
ATTN__OP void attn__dots_step_vec(int rows, int keys, attn__vec *sum, const float *q, ptrdiff_t ldq,
                                  const char *const *row, int32_t x, int32_t left, attn_type type) {
    attn__vec key[8];
    ATTN__UNROLL for (int i = 0; i < keys; i++) {
        key[i] = type == ATTN_F32 ? attn__load_first_vec(attn__row(row, i) + x, left)
                                  : attn__read_vec(row[i], x, type);
    }
    ATTN__UNROLL for (int r = 0; r < rows; r++, sum += keys) {
        attn__vec query = attn__load_vec(q + r * ldq);
#if ATTN__X86 && defined(__GNUC__) /* GCC would read it for each key: 15 to 25 % of the scores of 16 rows and more */
        if (rows > 1) __asm__("" : "+x"(query));
#endif
        ATTN__UNROLL for (int i = 0; i < keys; i++) sum[i] = attn__fma_vec(query, key[i], sum[i]);
    }
}

/* Dot products of the rows from r on and all keys, `keys` at a time */
ATTN__OP void attn__dots_vec(int rows, int keys, const attn__dots *a, int32_t r, attn_type type) {
    ptrdiff_t ldq = a->ldq;
    for (int32_t j = 0, x, i; j < a->n; j += keys) {
        attn__vec sum[16];
        const float *q = a->q + r * ldq;
        const char *row[8];
        float *s = a->s + r * a->lds + j, out[16];
        for (i = 0; a->ahead && r == 0 && i < keys; i++) attn__fetch(a->ahead + j + i, 1, 0, a->ahead_bytes, 1);
        ATTN__UNROLL for (i = 0; i < 16; i++) sum[i] = attn__set_vec(0.0f);
        ATTN__UNROLL for (i = 0; i < keys; i++) row[i] = a->k[j + i];
        for (x = 0; x + ATTN__W <= a->d; x += ATTN__W) {
            attn__dots_step_vec(rows, keys, sum, q + x, ldq, row, x, ATTN__W, type);
        }
        if (type == ATTN_F32 && x < a->d) {
            attn__dots_step_vec(rows, keys, sum, q + x, ldq, row, x, a->d - x, type);
        }
        ATTN__UNROLL for (i = 0; i < rows * keys; i += ATTN__W) attn__store_vec(out + i, attn__sums_vec(sum + i));
        ATTN__UNROLL for (i = 0; i < rows; i++) memcpy(s + i * a->lds, out + i * keys, (size_t)keys * sizeof(float));
    }
}

ATTN__OP void attn__score_rows_vec(const attn__dots *a, attn_type type) {
    int32_t r = 0, wide = ATTN__KEYS > 4 && type <= ATTN_F16 ? a->rows : 0;
    for (; r + ATTN__KEYS <= wide && r + 8 != wide; r += ATTN__KEYS) attn__dots_vec(ATTN__KEYS, ATTN__N, a, r, type);
    for (; r + 4 <= a->rows; r += 4) attn__dots_vec(4, ATTN__N, a, r, type);
    for (; type == ATTN_F32 && r + 2 <= a->rows; r += 2) attn__dots_vec(2, 4, a, r, type);
    for (; r < a->rows; r++) attn__dots_vec(1, 8, a, r, type);
}

ATTN__VEC static void attn__row_scores_vec(const attn__dots *a) {
    ATTN__BY_TYPE(ATTN__DIRECT_VEC, a->type, attn__score_rows_vec, a)
}

ATTN__VEC static float attn__row_max_vec(const float *s, int32_t n, const uint64_t *mask) {
    attn__vec top = attn__set_vec(ATTN__LOWEST);
    for (int32_t j = 0; j < n; j += ATTN__W) {
        attn__vec visible = attn__mask_vec(mask[j >> 6] >> (j & 63));
        top = attn__select_vec(visible, attn__max_vec(attn__load_vec(s + j), top), top);
    }
    ATTN__UNROLL for (int i = 1; i < ATTN__W; i *= 2) top = attn__max_vec(top, attn__swap_vec(top, ATTN__W / 2 / i));
    return attn__first_vec(top);
}

ATTN__VEC static float attn__row_weights_vec(float *s, int32_t n, const uint64_t *mask, float m) {
    attn__vec sum = attn__set_vec(0.0f);
    for (int32_t j = 0; j < n; j += ATTN__W) {
        attn__vec visible = attn__mask_vec(mask[j >> 6] >> (j & 63));
        attn__vec p = attn__and_vec(visible, attn__exp_vec(attn__sub_vec(attn__load_vec(s + j), attn__set_vec(m))));
        sum = attn__add_vec(sum, p);
        attn__store_vec(s + j, p);
    }
    ATTN__UNROLL for (int i = 1; i < ATTN__W; i *= 2) sum = attn__add_vec(sum, attn__swap_vec(sum, ATTN__W / 2 / i));
    return attn__first_vec(sum);
}

ATTN__OP void attn__weigh_rows_vec(const attn__sums *a, attn_type type) {
    int32_t x = 0, most = type <= ATTN_F16 ? ATTN__KEYS : 4, r, lines;
    for (; x + 16 <= a->v_dim; x += 16) {
        for (r = 0; r < a->rows; r += lines) {
            lines = a->rows - r < 4 ? 1 : r == 0 || a->rows - r < most || (a->rows - r) / 2 == 4 ? 4 : most;
            if (lines > 4) attn__outer_vec(0, most, ATTN__N, a, r, x, NULL, type, 0, 0);
            else if (lines > 1) attn__asking_vec(0, 4, a, r, x, type);
            else attn__asking_vec(0, 1, a, r, x, type);
        }
    }
    for (; x < a->v_dim; x += ATTN__W) {
        for (r = 0; r < a->rows; r++) attn__outer_vec(0, 1, 1, a, r, x, NULL, type, 0, 0);
    }
}

ATTN__VEC static void attn__row_values_vec(const attn__sums *a) {
    ATTN__BY_TYPE(ATTN__DIRECT_VEC, a->type, attn__weigh_rows_vec, a)
}
#endif

#if ATTN__X86
/* ---- >>leaves_avx512: F, BW, DQ and VL; 64 rows in the lanes (4 registers), 6 keys at a time --------------------- */
#if defined(__GNUC__) && !defined(__clang__) && defined(__cplusplus)
/* GCC bug 105593: g++ warns of the deliberately uninitialised variable inside its own _mm512_undefined_ps. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define ATTN__AVX512 ATTN__TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

enum { ATTN__LANES_AVX512 = 64, ATTN__DIRECT_AVX512 = 63 /* all */ };

/* The first n lanes; n >= 16 is all. */
ATTN__AVX512 ATTN__INLINE __mmask16 attn__first_avx512(int32_t n) { return (__mmask16)(n > 15 ? ~0u : (1u << n) - 1u); }

ATTN__AVX512 ATTN__INLINE __m512 attn__exp_avx512(__m512 x) {
    __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(ATTN__LOG2E)), f = _mm512_reduce_ps(t, 8); /* 8: t - nearest integer */
    __m512 p = _mm512_set1_ps(attn__exp_terms[0]);
    ATTN__UNROLL for (int i = 1; i < 6; i++) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(attn__exp_terms[i]));
    return _mm512_scalef_ps(p, _mm512_sub_ps(t, f));
}

/* Vector c of `vectors` from x on. Only f32 has rows of which one is partial; masks for all cost up to 30 %. f8: as
   attn__read_vec, but two at a time, of which one is kept in *odd: 13 % of decoding e4m3. */
ATTN__AVX512 ATTN__INLINE __m512 attn__load_avx512(int c, int vectors, const char *src, int32_t x, __mmask16 first,
                                                   attn_type type, __m512i *odd) {
    const __m256i *at = (const __m256i *)(const void *)(src + (ptrdiff_t)(x + 16 * c) * attn__type_bytes(type));
    if (type == ATTN_F32) return _mm512_maskz_loadu_ps(first, at);
    if (type == ATTN_INT8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
    int wide = vectors * attn__type_bytes(type) > 1;
    if (type > ATTN_BF16 && c % 2) return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(*odd, 1));
    __m256i raw = wide ? _mm256_loadu_si256(at) : _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)at));
    if (type == ATTN_F16) return _mm512_cvtph_ps(raw);
    if (type == ATTN_BF16) return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
    __m512i half = _mm512_cvtepi8_epi16(raw);
    half = type == ATTN_E5M2 ? _mm512_slli_epi16(half, 8) : _mm512_slli_epi16(half, 7);
    __m512i sum = _mm512_add_epi16(half, _mm512_set1_epi16(0x80));
    *odd = type == ATTN_E5M2 ? half : _mm512_ternarylogic_epi32(half, sum, _mm512_set1_epi16(0x4000), 0x78);
    return _mm512_cvtph_ps(_mm512_castsi512_si256(*odd));
}

/* Half the instructions of AVX2's, which takes partial vectors: 2 % of verifying and of short prompts */
ATTN__AVX512 ATTN__INLINE void attn__expand_avx512(float *to, const char *src, int32_t d, attn_type type) {
    __m512i odd;
    for (int32_t x = 0; x < d; x += 16) {
        _mm512_storeu_ps(to + x, attn__load_avx512(0, 1, src, x, (__mmask16)0xffff, type, &odd));
    }
}

ATTN__AVX512 static void attn__widen_avx512(float *dst, int32_t ld, const char *const *src, int32_t rows, int32_t d,
                                            attn_type type) {
    if (d % 16) attn__widen_vec(dst, ld, src, rows, d, type);
    for (int32_t i = 0; i < rows && d % 16 == 0; i++, dst += ld) {
        ATTN__BY_TYPE(63, type, attn__expand_avx512, dst, src[i], d)
    }
}

/* VNNI: sum += a * b, four bytes a lane, a without a sign. Half as fast with GCC 12's intrinsic: sums in memory. */
ATTN__AVX512 ATTN__INLINE __m512 attn__dot4(__m512 sum, __m512 a, __m512 b) {
#if defined(__GNUC__) || defined(__clang__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
    sum = _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sum), _mm512_castps_si512(a),
                                                  _mm512_castps_si512(b)));
#endif
    return sum;
}

/* keys x (16 * vectors) scores, from key j and vector c on: what elements x .. end - 1 add to them */
ATTN__AVX512 ATTN__INLINE void attn__lane_dots_avx512(int keys, int vectors, int bytes, const attn__dots *a, int32_t j,
                                                      int32_t c, int32_t x, int32_t end) {
    __m512 sum[8][4];
    const float *row[8], *q = a->q + x * ATTN__LANES_AVX512 + 16 * c, *extra = q + (ptrdiff_t)a->d * ATTN__LANES_AVX512;
    const float *factors = end == a->d ? a->factors : NULL;
    float *s = a->s + j * ATTN__LANES_AVX512 + 16 * c;
    int old = bytes || x > 0;
    ATTN__UNROLL for (int32_t i = 0; i < keys; i++) {
        const float *at = bytes ? extra : s + i * ATTN__LANES_AVX512;
        row[i] = attn__row(a->k, j + i);
        ATTN__UNROLL for (c = 0; c < vectors; c++) sum[i][c] = old ? _mm512_loadu_ps(at + 16 * c) : _mm512_setzero_ps();
    }
    if (a->ahead) attn__fetch(a->ahead + j, keys, attn__ahead_at(x, a->d, a->ahead_bytes),
                              attn__ahead_at(end, a->d, a->ahead_bytes), 1);
    ATTN__TIMES(2) for (; x < end; x++, q += ATTN__LANES_AVX512) {
        __m512 query[4];
        ATTN__UNROLL for (c = 0; c < vectors; c++) query[c] = _mm512_loadu_ps(q + 16 * c);
        ATTN__UNROLL for (int32_t i = 0; i < keys; i++) {
            __m512 key = _mm512_set1_ps(row[i][x]);
            ATTN__UNROLL for (c = 0; c < vectors; c++) {
                sum[i][c] = bytes ? attn__dot4(sum[i][c], key, query[c]) : _mm512_fmadd_ps(key, query[c], sum[i][c]);
            }
        }
    }
    ATTN__UNROLL for (int32_t i = 0; i < keys; i++) {
        __m512 factor = _mm512_set1_ps(factors ? factors[j + i] : 1.0f);
        ATTN__UNROLL for (c = 0; c < vectors; c++) {
            if (bytes) sum[i][c] = _mm512_cvtepi32_ps(_mm512_castps_si512(sum[i][c]));
            if (bytes || factors) sum[i][c] = _mm512_mul_ps(sum[i][c], factor);
            if (bytes) sum[i][c] = _mm512_mul_ps(sum[i][c], _mm512_loadu_ps(extra + ATTN__LANES_AVX512 + 16 * c));
            _mm512_storeu_ps(s + i * ATTN__LANES_AVX512 + 16 * c, sum[i][c]);
        }
    }
}

/* The first vector of a panel of which some row sees one of the keys first .. last - 1; none: 4 */
static int32_t attn__first_vector(const uint64_t *mask, int32_t first, int32_t last) {
    uint64_t any = mask ? 0 : 1;
    int32_t c = 0;
    for (; mask && first < last; first++) any |= mask[first];
    while (c < 4 && !(any >> 16 * c & 0xffffu)) c++;
    return c;
}

/* Where one or two vectors of rows see the keys, those above the diagonal are left out. At most 64 elements of q and K
   at a time: their 16 KB of q stay in the first-level cache for all keys (2 % of the time where it has 32 KB). */
ATTN__AVX512 static void attn__lane_scores_avx512(const attn__dots *a) {
    int32_t vectors = (a->rows + 15) / 16, step = attn__ceil(a->d, attn__ceil(a->d, 64)), x, end, j, c, keys;
    for (x = 0; !a->bytes && x < a->d; x = end) {
        end = attn__min(x + step, a->d);
        for (j = 0; j < a->n; j += keys) {
            c = attn__first_vector(a->mask, j, attn__min(a->n, j + 8));
            keys = vectors - c > 2 ? 6 : 8;
            if (vectors - c == 1) attn__lane_dots_avx512(8, 1, 0, a, j, c, x, end);
            if (vectors - c == 2) attn__lane_dots_avx512(8, 2, 0, a, j, c, x, end);
            if (vectors - c > 2) attn__lane_dots_avx512(6, 4, 0, a, j, 0, x, end);
        }
    }
    for (j = 0; a->bytes && j < a->n; j += 6) attn__lane_dots_avx512(6, 4, 1, a, j, 0, 0, a->d);
}

/* NaN is found by its class, which fast-math cannot drop. */
ATTN__AVX512 static void attn__narrow_avx512(void *to, const float *x, int32_t n, attn_type type, const float *factor) {
    int32_t i = 0;
    for (; i + 16 <= n && (type == ATTN_F16 || type == ATTN_BF16); i += 16) {
        __m512 y = _mm512_loadu_ps(x + i);
        if (factor) y = _mm512_fmadd_ps(y, _mm512_set1_ps(*factor), _mm512_setzero_ps());
        __m512i u = _mm512_castps_si512(y), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
        rounded = _mm512_mask_or_epi32(rounded, _mm512_fpclass_ps_mask(y, 0x81), u, _mm512_set1_epi32(0x400000));
        __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
        if (type == ATTN_F16) half = _mm512_maskz_cvtps_ph(0xffff, y, _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256((__m256i *)(void *)((uint16_t *)to + i), half);
    }
    attn__narrow_vec((char *)to + (ptrdiff_t)i * attn__type_bytes(type), x + i, n - i, type, factor);
}

ATTN__AVX512 static void attn__lane_max_avx512(const float *s, int32_t n, const uint64_t *mask, float *top,
                                               int32_t used) {
    __m512 most[4];
    (void)used;
    ATTN__UNROLL for (int32_t c = 0; c < 4; c++) most[c] = _mm512_set1_ps(ATTN__LOWEST);
    for (int32_t j = 0; j < n; j++, s += ATTN__LANES_AVX512) {
        uint64_t visible = mask ? mask[j] : ~(uint64_t)0;
        ATTN__UNROLL for (int32_t c = 0; c < 4; c++) {
            __mmask16 seen = (__mmask16)(visible >> 16 * c);
            most[c] = _mm512_mask_max_ps(most[c], seen, _mm512_loadu_ps(s + 16 * c), most[c]);
        }
    }
    ATTN__UNROLL for (int32_t c = 0; c < 4; c++) _mm512_storeu_ps(top + 16 * c, most[c]);
}

ATTN__AVX512 static void attn__lane_weights_avx512(float *s, int32_t n, const uint64_t *mask, const float *top,
                                                   float *m, float *alpha, float *sum, int32_t used, int32_t chains) {
    for (int32_t c = 0, i, j; c < used; c += 16) {
        __m512 old = _mm512_loadu_ps(m + c), most = _mm512_max_ps(_mm512_loadu_ps(top + c), old);
        __m512 total[16] = { _mm512_setzero_ps() };
        for (i = 0; i < chains; i++) {
            ATTN__TIMES(2) for (j = i; j < n; j += chains) {
                float *x = s + j * ATTN__LANES_AVX512 + c;
                __m512 p = attn__exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(x), most));
                if (mask) p = _mm512_maskz_mov_ps((__mmask16)(mask[j] >> c), p);
                total[i] = _mm512_add_ps(total[i], p);
                _mm512_storeu_ps(x, p);
            }
        }
        for (j = chains / 2; j > 0; j /= 2) {
            for (i = 0; i < j; i++) total[i] = _mm512_add_ps(total[i], total[i + j]);
        }
        _mm512_storeu_ps(m + c, most);
        _mm512_storeu_ps(alpha + c, attn__exp_avx512(_mm512_sub_ps(old, most)));
        _mm512_storeu_ps(sum + c, total[0]);
    }
}

/* lines (columns) x (16 * vectors) rows of o, from column x and vector c on, keys first .. last - 1 */
ATTN__AVX512 ATTN__INLINE void attn__lane_sums_avx512(int lines, int vectors, int fetch, const attn__sums *a, int32_t x,
                                                      int32_t c, int32_t first, int32_t last, int fresh, int strict) {
    __m512 sum[8][4];
    const float *row = first < last ? attn__row(a->v, first) + x : NULL, *p = a->p + 16 * c, *alpha = a->alpha + 16 * c;
    ptrdiff_t ld = first < last ? attn__row(a->v, first + 1) + x - row : 0, start = 0;
    float *o = a->o + (ptrdiff_t)x * ATTN__LANES_AVX512 + 16 * c;
    int32_t at = attn__ahead_at(x, a->v_dim, a->ahead_bytes), shift = 16 * c, j, i;
    ATTN__UNROLL for (i = 0; i < lines; i++) {
        ATTN__UNROLL for (c = 0; c < vectors; c++) {
            sum[i][c] = _mm512_loadu_ps(o + i * ATTN__LANES_AVX512 + 16 * c);
            if (fresh) sum[i][c] = _mm512_mul_ps(sum[i][c], _mm512_loadu_ps(alpha + 16 * c));
        }
    }
    ATTN__TIMES(2) for (j = first; j < last; j++, start += ld) {
        __m512 weight[4];
        if (fetch && a->ahead) ATTN__FETCH_L2(a->ahead[j] + at);
        ATTN__UNROLL for (c = 0; c < vectors; c++) weight[c] = _mm512_loadu_ps(p + j * ATTN__LANES_AVX512 + 16 * c);
        ATTN__UNROLL for (i = 0; i < lines; i++) {
            __m512 value = _mm512_set1_ps(row[start + i]);
            ATTN__UNROLL for (c = 0; c < vectors; c++) {
                __mmask16 seen = (__mmask16)(strict ? a->mask[j] >> (shift + 16 * c) : 0xffffu);
                sum[i][c] = strict ? _mm512_mask3_fmadd_ps(value, weight[c], sum[i][c], seen)
                                   : _mm512_fmadd_ps(value, weight[c], sum[i][c]);
            }
        }
    }
    ATTN__UNROLL for (i = 0; i < lines; i++) {
        ATTN__UNROLL for (c = 0; c < vectors; c++) _mm512_storeu_ps(o + i * ATTN__LANES_AVX512 + 16 * c, sum[i][c]);
    }
}

/* Keys first .. end - 1, seen from vector c on. Loops that ask for nothing: 3 % of prompts where slots are few. */
ATTN__AVX512 static void attn__lane_keys_avx512(const attn__sums *a, int32_t c, int32_t first, int32_t end, int fresh) {
    int32_t vectors = (a->rows + 15) / 16 - c, x = 0;
    for (; a->strict && x < a->v_dim; x++) attn__lane_sums_avx512(1, 4, 0, a, x, 0, first, end, fresh, 1);
    for (; vectors == 1 && x + 8 <= a->v_dim; x += 8) attn__lane_sums_avx512(8, 1, 1, a, x, c, first, end, fresh, 0);
    for (; vectors == 2 && x + 8 <= a->v_dim; x += 8) attn__lane_sums_avx512(8, 2, 1, a, x, c, first, end, fresh, 0);
    for (; a->ahead && x + 6 <= a->v_dim; x += 6) attn__lane_sums_avx512(6, 4, 1, a, x, 0, first, end, fresh, 0);
    for (; x + 6 <= a->v_dim; x += 6) attn__lane_sums_avx512(6, 4, 0, a, x, 0, first, end, fresh, 0);
    for (; x + 2 <= a->v_dim; x += 2) attn__lane_sums_avx512(2, 4, 0, a, x, 0, first, end, fresh, 0);
    for (; x < a->v_dim; x++) attn__lane_sums_avx512(1, 4, 0, a, x, 0, first, end, fresh, 0);
}

/* At most 64 keys at a time: their weights stay in a first-level cache of 32 KB (2 % of the time of prompts). */
ATTN__AVX512 static void attn__lane_values_avx512(const attn__sums *a) {
    const uint64_t *mask = a->n ? a->mask : NULL;
    int32_t step = attn__ceil(a->n, a->n / 65 + 1), first = 0, last = 0, c;
    do {
        c = attn__first_vector(mask, first, first + 1);
        last = mask ? first : attn__min(first + step, a->n);
        while (last < attn__min(first + step, a->n) && attn__first_vector(mask, last, last + 1) == c) last++;
        if (first == 0 && c > 0) attn__lane_keys_avx512(a, 0, 0, 0, 1);
        if (16 * c < a->rows) attn__lane_keys_avx512(a, c, first, last, first == 0 && c == 0);
        first = last;
    } while (first < a->n);
}

/* Six keys x 32 rows, each sum as attn__dots_avx512 adds it: chains d = x, x + 16, ..., x and x + 2 at a time, then its
   tree; nodes wait in `part`. A chain's q lies together, or rows would share sets of the first-level cache (10 %). */
ATTN__AVX512 static void attn__chains_avx512(const attn__dots *a, int32_t j, int32_t c) {
    enum { SUMS = 6 * 2, LD = ATTN__LANES_AVX512, ROWS = 32 };
    __m512 sum[2][SUMS], part[4][SUMS];
    const float *row[6];
    float *s = a->s + j * LD + 16 * c;
    int32_t pair, i, h;
    ATTN__UNROLL for (i = 0; i < 6; i++) row[i] = attn__row(a->k, j + i);
    for (pair = 0; pair < 8; pair++) {
        int32_t x = pair / 2 * 4 + pair % 2, level = 0;
        const float *q = a->q + 16 * c * a->d + x * (a->d / 16) * ROWS;
        for (i = 0; i < 6 && a->ahead && c == 0; i++) ATTN__FETCH_L2(a->ahead[j + i] + pair * a->ahead_bytes / 8);
        ATTN__UNROLL for (i = 0; i < SUMS; i++) sum[0][i] = sum[1][i] = _mm512_setzero_ps();
        for (; x < a->d; x += 16, q += ROWS) {
            ATTN__UNROLL for (h = 0; h < 2; h++) {
                const float *at = q + 2 * h * (a->d / 16) * ROWS;
                __m512 low = _mm512_loadu_ps(at), high = _mm512_loadu_ps(at + 16);
                ATTN__UNROLL for (i = 0; i < SUMS; i += 2) {
                    __m512 key = _mm512_set1_ps(row[i / 2][x + 2 * h]);
                    sum[h][i] = _mm512_fmadd_ps(key, low, sum[h][i]);
                    sum[h][i + 1] = _mm512_fmadd_ps(key, high, sum[h][i + 1]);
                }
            }
        }
        ATTN__UNROLL for (i = 0; i < SUMS; i++) sum[0][i] = _mm512_add_ps(sum[0][i], sum[1][i]);
        for (; pair >> level & 1; level++) {
            ATTN__UNROLL for (i = 0; i < SUMS; i++) sum[0][i] = _mm512_add_ps(part[level][i], sum[0][i]);
        }
        ATTN__UNROLL for (i = 0; i < SUMS; i++) part[level][i] = sum[0][i];
    }
    ATTN__UNROLL for (i = 0; i < SUMS; i++) {
        if (a->factors) part[3][i] = _mm512_mul_ps(part[3][i], _mm512_set1_ps(a->factors[j + i / 2]));
        _mm512_storeu_ps(s + i / 2 * LD + i % 2 * 16, part[3][i]);
    }
}

ATTN__AVX512 static void attn__chain_scores_avx512(const attn__dots *a) {
    for (int32_t c = 0; 16 * c < a->rows; c += 2) {
        for (int32_t j = 0; j < a->n; j += 6) attn__chains_avx512(a, j, c);
    }
}

/* Sixteen sums: (0 + 2) + (1 + 3) in each quarter, then (0 + 1) + (2 + 3) of these. Blends: shuffles have one port. */
ATTN__AVX512 ATTN__INLINE __m512 attn__sums_avx512(const __m512 *a) {
    __m512 b[8], c[4], d[2];
    ATTN__UNROLL for (int i = 0; i < 8; i++) {
        b[i] = _mm512_add_ps(_mm512_mask_mov_ps(a[2 * i], (__mmask16)0xCCCC, a[2 * i + 1]),
                             _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x4E));
    }
    ATTN__UNROLL for (int i = 0; i < 8; i += 2) {
        c[i / 2] = _mm512_add_ps(_mm512_shuffle_ps(b[i], b[i + 1], 0x88), _mm512_shuffle_ps(b[i], b[i + 1], 0xDD));
    }
    ATTN__UNROLL for (int i = 0; i < 2; i++) {
        d[i] = _mm512_add_ps(_mm512_shuffle_f32x4(c[2 * i], c[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(c[2 * i], c[2 * i + 1], 0xDD));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(d[0], d[1], 0x88), _mm512_shuffle_f32x4(d[0], d[1], 0xDD));
}

/* One step of one or two vectors of d; only the last one may be partial. */
ATTN__AVX512 ATTN__INLINE void attn__dots_step_avx512(int rows, int keys, int vectors, __m512 *sum, const float *q,
                                                      int32_t ldq, const char *const *row, int32_t x,
                                                      __mmask16 first, attn_type type) {
    __m512i odd = _mm512_setzero_si512();
    __m512 key[16];
    ATTN__UNROLL for (int i = 0; i < keys * vectors; i++) {
        key[i] = attn__load_avx512(i % vectors, vectors, row[i / vectors], x, first, type, &odd);
    }
    ATTN__UNROLL for (int r = 0; r < rows * vectors; r++, q += r % vectors ? 16 : ldq - 16 * (vectors - 1)) {
        __m512 query = _mm512_loadu_ps(q + x), *to = sum + r / vectors * keys, *k = key + r % vectors;
        ATTN__UNROLL for (int i = 0; i < keys; i++) to[i] = _mm512_fmadd_ps(query, k[i * vectors], to[i]);
    }
}

/* Dot products of the rows from r on and all keys, `keys` at a time, sixteen in all */
ATTN__AVX512 ATTN__INLINE void attn__dots_avx512(int rows, int keys, const attn__dots *a, int32_t r, attn_type type) {
    const int vectors = rows == 4 && (type == ATTN_E4M3 || type == ATTN_E5M2) ? 2 : 1, step = 16 * vectors;
    const float *q = a->q + (ptrdiff_t)r * a->ldq;
    int32_t size = attn__type_bytes(type), wanted = a->ahead && r == 0 ? a->ahead_bytes / size : 0;
    for (int32_t j = 0, x, i; j < a->n; j += keys) {
        __m512 sum[16];
        const char *row[16];
        float *s = a->s + r * a->lds + j, out[16];
        ATTN__UNROLL for (i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
        ATTN__UNROLL for (i = 0; i < keys; i++) row[i] = a->k[j + i];
        for (x = 0; x < (a->d & -step); x += step) {
            if (x < wanted && x % (64 / size) == 0) attn__fetch(a->ahead + j, keys, x, x + 1, size);
            attn__dots_step_avx512(rows, keys, vectors, sum, q, a->ldq, row, x, 0xffff, type);
        }
        if ((type == ATTN_F32 || vectors > 1) && x < a->d) {
            attn__dots_step_avx512(rows, keys, 1, sum, q, a->ldq, row, x, attn__first_avx512(a->d - x), type);
        }
        _mm512_storeu_ps(out, attn__sums_avx512(sum));
        ATTN__UNROLL for (i = 0; i < rows; i++) memcpy(s + i * a->lds, out + i * keys, (size_t)keys * sizeof(float));
    }
}

ATTN__AVX512 ATTN__INLINE void attn__score_rows_avx512(const attn__dots *a, attn_type type) {
    int32_t r = 0;
    for (; r + 4 <= a->rows; r += 4) attn__dots_avx512(4, 4, a, r, type);
    for (; type == ATTN_F32 && r + 2 <= a->rows; r += 2) attn__dots_avx512(2, 8, a, r, type);
    for (; r < a->rows; r++) attn__dots_avx512(1, 16, a, r, type);
}

ATTN__AVX512 static void attn__row_scores_avx512(const attn__dots *a) {
    ATTN__BY_TYPE(ATTN__DIRECT_AVX512, a->type, attn__score_rows_avx512, a)
}

ATTN__AVX512 static float attn__row_max_avx512(const float *s, int32_t n, const uint64_t *mask) {
    __m512 top = _mm512_set1_ps(ATTN__LOWEST);
    for (int32_t j = 0; j < n; j += 16) {
        __mmask16 visible = (__mmask16)(mask[j >> 6] >> (j & 63));
        top = _mm512_mask_max_ps(top, visible, _mm512_loadu_ps(s + j), top);
    }
    return _mm512_reduce_max_ps(top);
}

ATTN__AVX512 static float attn__row_weights_avx512(float *s, int32_t n, const uint64_t *mask, float m) {
    __m512 sum = _mm512_setzero_ps();
    for (int32_t j = 0; j < n; j += 16) {
        __mmask16 visible = (__mmask16)(mask[j >> 6] >> (j & 63));
        __m512 p = attn__exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(s + j), _mm512_set1_ps(m)));
        p = _mm512_maskz_mov_ps(visible, p);
        sum = _mm512_add_ps(sum, p);
        _mm512_storeu_ps(s + j, p);
    }
    sum = _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0x4E));
    sum = _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0xB1));
    sum = _mm512_add_ps(sum, _mm512_shuffle_ps(sum, sum, 0x4E));
    return _mm512_cvtss_f32(_mm512_add_ps(sum, _mm512_shuffle_ps(sum, sum, 0xB1)));
}

/* rows x (16 * vectors) columns of o, from row r and column x on; a single vector may be partial */
ATTN__AVX512 ATTN__INLINE void attn__weigh_avx512(int rows, int vectors, const attn__sums *a, int32_t r, int32_t x,
                                                  attn_type type, int fetch) {
    __m512 sum[4][8];
    __mmask16 used = vectors > 1 ? (__mmask16)0xffff : attn__first_avx512(a->v_dim - x);
    ptrdiff_t ldp = a->ldp, ldo = a->ldo;
    float *o = a->o + r * ldo + x;
    const float *p = a->p + r * ldp;
    int32_t size = attn__type_bytes(type), ask = a->ahead && x * size < a->ahead_bytes;
    ATTN__UNROLL for (int32_t i = 0; i < rows; i++) {
        ATTN__UNROLL for (int32_t c = 0; c < vectors; c++) {
            __m512 y = _mm512_maskz_loadu_ps(used, o + i * ldo + 16 * c);
            sum[i][c] = _mm512_mul_ps(y, _mm512_set1_ps(a->alpha[r + i]));
        }
    }
    for (int32_t j = 0; j < a->n; j++, p++) {
        __m512i odd = _mm512_setzero_si512();
        __m512 value[8];
        if (fetch && ask) attn__fetch(a->ahead + j, 1, x, x + 16 * vectors, size);
        ATTN__UNROLL for (int32_t c = 0; c < vectors; c++) {
            value[c] = attn__load_avx512(c, vectors, a->v[j], x, used, type, &odd);
        }
        ATTN__UNROLL for (int32_t i = 0; i < rows; i++) {
            __m512 w = _mm512_set1_ps(p[i * ldp]);
            ATTN__UNROLL for (int32_t c = 0; c < vectors; c++) sum[i][c] = _mm512_fmadd_ps(w, value[c], sum[i][c]);
        }
    }
    ATTN__UNROLL for (int32_t i = 0; i < rows; i++) {
        ATTN__UNROLL for (int32_t c = 0; c < vectors; c++) _mm512_mask_storeu_ps(o + i * ldo + 16 * c, used, sum[i][c]);
    }
}

/* The first rows ask for what is read next; the others are a tenth faster without that branch. */
ATTN__AVX512 ATTN__INLINE void attn__weigh_rows_avx512(const attn__sums *a, attn_type type) {
    int32_t r = 0, x = 0;
    for (; a->rows >= 4 && x + 64 <= a->v_dim; x += 64) attn__weigh_avx512(4, 4, a, 0, x, type, 1);
    for (; r + 4 <= a->rows; r += 4, x = 0) {
        for (; x + 64 <= a->v_dim; x += 64) attn__weigh_avx512(4, 4, a, r, x, type, 0);
        for (; x < a->v_dim; x += 16) attn__weigh_avx512(4, 1, a, r, x, type, r == 0);
    }
    for (; r < a->rows; r++) {
        for (x = 0; x + 128 <= a->v_dim; x += 128) attn__weigh_avx512(1, 8, a, r, x, type, r == 0);
        for (; x < a->v_dim; x += 16) attn__weigh_avx512(1, 1, a, r, x, type, r == 0);
    }
}

ATTN__AVX512 static void attn__row_values_avx512(const attn__sums *a) {
    ATTN__BY_TYPE(ATTN__DIRECT_AVX512, a->type, attn__weigh_rows_avx512, a)
}

#if ATTN__HAS_AMX
/* ---- >>leaves_amx: bf16, sums in f32; PREFILL rounds weights to bf16 as q, the cache and o are ---------------------
   A product of tiles takes 16 rows of 32 bf16 and 16 columns of 32, in pairs: K and q, V turned and weights. In PREFILL
   keys come in blocks of 32 at absolute positions, since what meets in a product with V decides the rounding. */

#define ATTN__AMX ATTN__TARGET("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

/* c[rows][lanes] = a[rows][words] * b[words][lanes] * scale or, with alpha, c * alpha[lanes] + a * b; a word is two
   bf16. rows: a multiple of 32, words: of 16; lda: bytes; halves: of the lanes; top, n rows ahead: as attn__dots. */
typedef struct attn__product {
    float *c;
    const char *a;
    const float *b, *alpha;
    float scale, *top;
    int32_t lda, rows, words, halves, n, ahead_bytes;
    const char *const *ahead;
} attn__product;

static const uint8_t attn__tiles_amx[64] = { /* eight of 16 rows of 64 bytes */
    1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16
};

/* Scales 32 rows of 32 lanes; top: the largest so far. */
ATTN__AMX ATTN__INLINE void attn__scale_amx(float *c, __m512 low, __m512 high, float *top) {
    __m512 x[2], most[2] = { _mm512_loadu_ps(top), _mm512_loadu_ps(top + 16) };
    for (int32_t i = 0; i < 32; i++, c += ATTN__LANES_AVX512) {
        ATTN__UNROLL for (int32_t j = 0; j < 2; j++) {
            x[j] = _mm512_mul_ps(_mm512_loadu_ps(c + 16 * j), j ? high : low);
            most[j] = _mm512_max_ps(x[j], most[j]);
            _mm512_storeu_ps(c + 16 * j, x[j]);
        }
    }
    ATTN__UNROLL for (int32_t j = 0; j < 2; j++) _mm512_storeu_ps(top + 16 * j, most[j]);
}

/* 32 rows and columns, while near: tiles 0 to 3 are sums, 4, 5 of a, 6, 7 of b. Without () gcc < 12.3 would cast c. */
ATTN__AMX static void attn__multiply_amx(const attn__product *p) {
    const ptrdiff_t lanes = ATTN__LANES_AVX512, ld = 4 * lanes, lda = p->lda;
    const __m512 one = _mm512_set1_ps(1.0f), scale = _mm512_set1_ps(p->scale);
    int32_t halves = p->halves, blocks = p->rows / 32 * halves, asked = 0, i;
    float top[ATTN__LANES_AVX512];
    for (i = 0; i < ATTN__LANES_AVX512; i++) top[i] = ATTN__LOWEST;
    __asm__ volatile("ldtilecfg %0" : : "m"(attn__tiles_amx) : "memory");
    for (i = 0; i < blocks; i++) {
        int32_t half = i % halves * 32, wanted = p->ahead ? p->n * (i + 1) / blocks : 0;
        const char *a = p->a + i / halves * 32 * lda;
        const float *b = p->b + half;
        float *c = p->c + i / halves * 32 * lanes + half, *d = c + 16 * lanes;
        for (; asked < wanted; asked++) attn__fetch(p->ahead + asked, 1, 0, p->ahead_bytes, 1);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        if (p->alpha) {
            __m512 low = _mm512_loadu_ps(p->alpha + half), high = _mm512_loadu_ps(p->alpha + half + 16);
            if (_mm512_cmpneq_ps_mask(low, one) | _mm512_cmpneq_ps_mask(high, one)) attn__scale_amx(c, low, high, top);
            __asm__ volatile("" : : : "memory"); /* gcc does not know that tiles are loaded from memory */
            _tile_loadd(0, c, ld);
            _tile_loadd(1, (c + 16), ld);
            _tile_loadd(2, d, ld);
            _tile_loadd(3, (d + 16), ld);
        }
        for (int32_t x = 0; x < p->words; x += 16, a += 64, b += 16 * lanes) {
            _tile_loadd(4, a, lda);
            _tile_loadd(6, b, ld);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, (b + 16), ld);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, (a + 16 * lda), lda);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, ld);
        _tile_stored(1, (c + 16), ld);
        _tile_stored(2, d, ld);
        _tile_stored(3, (d + 16), ld);
        if (!p->alpha) attn__scale_amx(c, scale, scale, top + half);
    }
    if (p->top) memcpy(p->top, top, sizeof top);
    _tile_release();
}

/* Pairs of keys, even columns before odd ones, are turned. */
ATTN__AMX static int attn__pack_amx(float *dst, const char *const *rows, int32_t n, int32_t v_dim) {
    const __m512i most = _mm512_set1_epi16(0x7f80);
    const __mmask32 even = 0x55555555u;
    int32_t pairs = attn__whole(n) / 2, half = v_dim / 2, finite = 1;
    float *room = dst + (ptrdiff_t)pairs * v_dim, *to = room;
    for (int32_t j = 0; j < 2 * pairs; j += 2, to += v_dim) {
        for (int32_t x = 0; x < v_dim; x += 32) {
            __m512i two[2];
            ATTN__UNROLL for (int32_t i = 0; i < 2; i++) {
                two[i] = j + i < n ? _mm512_loadu_si512(rows[j + i] + 2 * x) : _mm512_setzero_si512();
                __mmask32 wild = _mm512_cmpeq_epi16_mask(_mm512_and_si512(two[i], most), most);
                if (wild) two[i] = _mm512_maskz_mov_epi16(~wild, two[i]);
                if (wild) finite = 0;
            }
            _mm512_storeu_si512(to + x / 2, _mm512_mask_mov_epi16(_mm512_slli_epi32(two[1], 16), even, two[0]));
            two[0] = _mm512_srli_epi32(two[0], 16);
            _mm512_storeu_si512(to + half + x / 2, _mm512_mask_mov_epi16(two[1], even, two[0]));
        }
    }
    for (int i = 0; i < 2; i++) attn__turn_vec(dst + i * pairs, 2 * pairs, room + i * half, v_dim, pairs, half);
    return finite;
}

ATTN__AMX static void attn__lane_scores_amx(const attn__dots *a) {
    const attn__product p = { a->s, a->k[0], a->q, NULL, a->scale, a->top, 4 * a->d, attn__whole(a->n), a->d,
                              a->rows > 32 ? 2 : 1, a->n, a->ahead_bytes, a->ahead };
    attn__multiply_amx(&p);
}

/* DECODE: 32 keys, in place where evenly apart, by 16 rows. By 32 rows 64 keys and 4 rows took .41 us, AVX-512 .77. */
ATTN__AMX static void attn__row_scores_amx(const attn__dots *a) {
    const __m512 scale = _mm512_set1_ps(a->scale);
    int32_t wanted = a->ahead ? a->ahead_bytes / 4 : 0, keys, even, j, r, x, i;
    float c[32 * 16], copy[32 * 16];
    __asm__ volatile("ldtilecfg %0" : : "m"(attn__tiles_amx) : "memory");
    for (j = 0; (keys = attn__min(32, a->n - j)) > 0; j += 32) {
        const char *const *row = a->k + j;
        ptrdiff_t ld = row[1] - row[0];
        for (even = 1; even < keys && row[even] - row[even - 1] == ld; even++) continue;
        if (even < 32) ld = 64;
        for (r = 0; r < a->rows; r += 16) {
            _tile_zero(0);
            _tile_zero(1);
            for (x = 0; x < a->d; x += 16) {
                const char *k = even < 32 ? (const char *)copy : row[0] + 4 * x;
                for (i = even / 32 * 32; i < 32; i++) memcpy(copy + 16 * i, row[attn__min(i, keys - 1)] + 4 * x, 64);
                if (r == 0 && x < wanted) attn__fetch(a->ahead + j, keys, 4 * x, 4 * x + 64, 1);
                __asm__ volatile("" : : : "memory"); /* as above */
                _tile_loadd(6, (a->q + r * a->ldq + 16 * x), 64);
                _tile_loadd(4, k, ld);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, (k + 16 * ld), ld);
                _tile_dpbf16ps(1, 5, 6);
            }
            _tile_stored(0, c, 64);
            _tile_stored(1, (c + 256), 64);
            for (x = 0; x < 512; x += 16) _mm512_storeu_ps(c + x, _mm512_mul_ps(_mm512_loadu_ps(c + x), scale));
            attn__turn_vec(a->s + r * a->lds + j, a->lds, c, 16, keys, attn__min(16, a->rows - r));
        }
    }
    _tile_release();
}

/* Weights of 16 lanes from c on become pairs, 0 up to whole blocks. all: no masks in the loop, 5 to 8 % of the rest. */
ATTN__AMX ATTN__INLINE __m512 attn__weigh_amx(float *s, int32_t n, const uint64_t *mask, __m512 m, int32_t c, int all) {
    __m512 total[2] = { _mm512_setzero_ps(), _mm512_setzero_ps() };
    float *to = s;
    for (int32_t j = 0; j < attn__whole(n); j += 2, to += ATTN__LANES_AVX512) {
        __m512i two[2];
        ATTN__UNROLL for (int32_t i = 0; i < 2; i++, s += ATTN__LANES_AVX512) {
            __m512 p = attn__exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(s), m));
            __mmask16 seen = (__mmask16)(j + i >= n ? 0 : mask ? mask[j + i] >> c : 0xffff);
            if (!all) p = _mm512_maskz_mov_ps(seen, p);
            total[i] = _mm512_add_ps(total[i], p);
            two[i] = _mm512_add_epi32(_mm512_castps_si512(p), _mm512_set1_epi32(0x8000));
        }
        _mm512_storeu_si512(to, _mm512_mask_mov_epi16(_mm512_srli_epi32(two[0], 16), 0xAAAAAAAAu, two[1]));
    }
    return _mm512_add_ps(total[0], total[1]);
}

ATTN__AMX static void attn__lane_weights_amx(float *s, int32_t n, const uint64_t *mask, const float *top, float *m,
                                             float *alpha, float *sum, int32_t used, int32_t chains) {
    (void)chains;
    for (int32_t c = 0; c < (used > 32 ? 64 : 32); c += 16) {
        __m512 old = _mm512_loadu_ps(m + c), most = _mm512_max_ps(_mm512_loadu_ps(top + c), old), total;
        if (mask || n % 32) total = attn__weigh_amx(s + c, n, mask, most, c, 0);
        else total = attn__weigh_amx(s + c, n, NULL, most, c, 1);
        _mm512_storeu_ps(m + c, most);
        _mm512_storeu_ps(alpha + c, attn__exp_avx512(_mm512_sub_ps(old, most)));
        _mm512_storeu_ps(sum + c, total);
    }
}

ATTN__AMX static void attn__lane_values_amx(const attn__sums *a) {
    const attn__product p = { a->o, a->packed, a->p, a->alpha, 1, NULL, a->ldp, a->v_dim, attn__whole(a->n) / 2,
                              a->rows > 32 ? 2 : 1, a->n, a->ahead_bytes, a->ahead };
    attn__multiply_amx(&p);
    for (int32_t j = 0; a->strict && j < a->n; j++) { /* NaN and infinities, packed as 0, for those who see them */
        for (int32_t x = 0; x < a->v_dim; x++) {
            float value = attn__load(a->v[j], x, ATTN_BF16);
            for (int32_t r = 0; r < a->rows && !attn__is_finite(value); r++) {
                if (!a->mask || (a->mask[j] >> r & 1)) a->o[x * ATTN__LANES_AVX512 + r] += value;
            }
        }
    }
}
#endif
#if defined(__GNUC__) && !defined(__clang__) && defined(__cplusplus)
#pragma GCC diagnostic pop
#endif
#endif

/* ---- >>dispatch -------------------------------------------------------------------------------------------------- */
static const attn__leaves attn__leaves_scalar = {
    "scalar", ATTN__LANES_SCALAR, 1 << ATTN_F32, 0, attn__widen_scalar, attn__narrow_scalar, attn__softcap_scalar,
    attn__blend_scalar, attn__turn_scalar, attn__multiply_scalar, attn__lane_scores_scalar, attn__lane_max_scalar,
    attn__lane_weights_scalar, attn__lane_values_scalar, attn__row_scores_scalar, attn__row_max_scalar,
    attn__row_weights_scalar, attn__row_values_scalar, ATTN__CHAINS_SCALAR, 0, NULL, attn__finite_scalar, NULL
};

#if ATTN__X86 || ATTN__NEON
static const attn__leaves attn__leaves_vec = {
    ATTN__X86 ? "avx2" : "neon", ATTN__LANES_VEC, ATTN__DIRECT_VEC, ATTN__KEYS, attn__widen_vec, attn__narrow_vec,
    attn__softcap_vec, attn__blend_vec, attn__turn_vec, attn__multiply_vec, attn__lane_scores_vec, attn__lane_max_vec,
    attn__lane_weights_vec, attn__lane_values_vec, attn__row_scores_vec, attn__row_max_vec, attn__row_weights_vec,
    attn__row_values_vec, ATTN__W, ATTN__LANES_VEC, attn__chain_scores_vec, attn__finite_vec, NULL
};
#endif

#if ATTN__X86
/* Much of what works element by element is AVX2's: the vectors' width does not reach the bits. */
static const attn__leaves attn__leaves_avx512 = {
    "avx512", ATTN__LANES_AVX512, ATTN__DIRECT_AVX512, 0, attn__widen_avx512, attn__narrow_avx512, attn__softcap_vec,
    attn__blend_vec, attn__turn_vec, attn__multiply_vec, attn__lane_scores_avx512, attn__lane_max_avx512,
    attn__lane_weights_avx512, attn__lane_values_avx512, attn__row_scores_avx512, attn__row_max_avx512,
    attn__row_weights_avx512, attn__row_values_avx512, 16, 32, attn__chain_scores_avx512, attn__finite_vec, NULL
};

#if ATTN__HAS_AMX
static const attn__leaves attn__leaves_amx = {
    "amx", ATTN__LANES_AVX512, ATTN__DIRECT_AVX512, 32, attn__widen_avx512, attn__narrow_avx512, attn__softcap_vec,
    attn__blend_vec, attn__turn_vec, attn__multiply_vec, attn__lane_scores_amx, attn__lane_max_avx512,
    attn__lane_weights_amx, attn__lane_values_amx, attn__row_scores_amx, attn__row_max_avx512,
    attn__row_weights_avx512, attn__row_values_avx512, 16, 0, NULL, attn__finite_vec, attn__pack_amx
};
#endif

static void attn__cpuid(uint32_t leaf, uint32_t *r) {
#if defined(_MSC_VER)
    __cpuidex((int *)r, (int)leaf, 0);
#else
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
#endif
}
#endif

ATTN_API attn_isa attn_isa_detect(void) {
#if ATTN__X86
    const uint32_t base = 1u << 12 | 1u << 27 | 1u << 29, avx2 = 1u << 5; /* FMA, OSXSAVE, F16C; AVX2 */
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    uint32_t one[4], seven[4], state; /* state: of the registers, what the operating system saves */
    attn__cpuid(0, one);
    if (one[0] < 7) return ATTN_ISA_SCALAR;
    attn__cpuid(1, one);
    if ((one[2] & base) != base) return ATTN_ISA_SCALAR;
    attn__cpuid(7, seven);
#if defined(_MSC_VER)
    state = (uint32_t)_xgetbv(0);
#else
    __asm__ volatile("xgetbv" : "=a"(state) : "c"(0) : "edx");
#endif
    if (!(seven[1] & avx2) || (state & 6u) != 6u) return ATTN_ISA_SCALAR;
    if ((seven[1] & avx512) != avx512 || (state & 0xe6u) != 0xe6u) return ATTN_ISA_AVX2;
    if (!(seven[2] >> 11 & 1u)) return ATTN_ISA_AVX512;
#if ATTN__HAS_AMX
    const uint32_t amx = 1u << 22 | 1u << 24; /* products of bf16, tiles */
    long refused; /* does Linux lend the registers? arch_prctl, ARCH_REQ_XCOMP_PERM */
    if ((seven[3] & amx) != amx || (state & 0x60000u) != 0x60000u) return ATTN_ISA_AVX512_VNNI;
    __asm__ volatile("syscall" : "=a"(refused) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    if (!refused) return ATTN_ISA_AMX;
#endif
    return ATTN_ISA_AVX512_VNNI;
#else
    return ATTN__NEON ? ATTN_ISA_NEON : ATTN_ISA_SCALAR;
#endif
}

static const attn__leaves *attn__leaves_of(const attn_layer *l) {
#if ATTN__HAS_AMX
    if (attn__in_bf16(l)) return &attn__leaves_amx;
#endif
#if ATTN__X86
    if (l->isa >= ATTN_ISA_AVX512) return &attn__leaves_avx512;
#endif
#if ATTN__X86 || ATTN__NEON
    if (l->isa != ATTN_ISA_SCALAR) return &attn__leaves_vec;
#endif
    (void)l;
    return &attn__leaves_scalar;
}

/* Are PREFILL's scores products of bytes? Keys are copied in steps of eight. */
ATTN__INLINE int attn__by_bytes(const attn_layer *l) {
    return ATTN__X86 && l->flags & ATTN_FAST_INT8 && l->isa >= ATTN_ISA_AVX512_VNNI && l->head_dim % 8 == 0;
}

/* Elements of q and k in a word of a panel */
ATTN__INLINE int32_t attn__per_word(const attn_layer *l) { return attn__by_bytes(l) ? 4 : attn__in_bf16(l) ? 2 : 1; }

/* ---- >>explain --------------------------------------------------------------------------------------------------- */
ATTN__COLD void attn__explain_layer(attn__text *t, const attn_layer *l) {
    static const char *const type[] = { "f32", "f16", "bf16", "e4m3", "e5m2", "int8" };
    static const char *const mask[] = { "; causal", "; full", "; prefix", "; block", "; tree", "; topk" };
    const uint32_t prefill = attn__bits_of(l->skip.prefill), decode = attn__bits_of(l->skip.decode);
    const char *const words[] = { type[l->q_type], ", kv ", type[l->kv_type], ", o ", type[l->o_type], mask[l->mask] };
    attn__put_format(t, "layer: %a heads on %b kv heads, head_dim %c, v_dim %d, q ", l->heads, l->kv_heads,
                     l->head_dim, l->v_dim);
    for (int i = 0; i < ATTN__COUNT(words); i++) attn__put(t, words[i]);
    if (l->chunk) attn__put_format(t, ", chunk %a", l->chunk, 0, 0, 0);
    if (l->topk) attn__put_format(t, " of %a", l->topk, 0, 0, 0);
    if (l->window_left) attn__put_format(t, ", window_left %a", l->window_left, 0, 0, 0);
    if (l->window_right && l->mask != ATTN_CAUSAL) attn__put_format(t, ", window_right %a", l->window_right, 0, 0, 0);
    if (l->sink_keys) attn__put_format(t, ", sink_keys %a", l->sink_keys, 0, 0, 0);
    if (l->skip.mode) attn__put_format(t, "; skip mode %a, prefill %B, decode %C", l->skip.mode, prefill, decode, 0);
    attn__put_format(t, "; scale %A", attn__bits_of(l->scale), 0, 0, 0);
    if (l->softcap > 0) attn__put_format(t, ", softcap %A", attn__bits_of(l->softcap), 0, 0, 0);
    if (l->page_size) attn__put_format(t, "; pages of %a keys", l->page_size, 0, 0, 0);
    if (l->ring) attn__put_format(t, "; ring of %a keys", l->ring, 0, 0, 0);
    if (l->flags & ATTN_FAST_INT8) attn__put(t, "; int8 queries");
    attn__put(t, l->flags & ATTN_V_IN_K ? "; V in K\n" : "\n");
}

ATTN_API size_t attn_plan_explain(const attn_plan *plan, char *text, size_t bytes) {
    attn__text t = { text, text ? bytes : 0, 0 };
    if (t.capacity) text[0] = 0;
    if (!plan || !plan->words) {
        attn__put(&t, plan && plan->device ? "on a device\n" : "no plan\n");
        if (plan && plan->device) attn__explain_layer(&t, &plan->resolved);
        return t.length;
    }
    const attn_layer *l = &plan->resolved;
    attn__view v = attn__view_of_plan(plan);
    int64_t strips[2] = { 0, 0 }, tasks[2] = { 0, 0 }, one_lane = (int64_t)attn_exec_bytes(plan, 1);
    for (int32_t i = 0; i < plan->strips; i++) strips[v.phase[v.strips[i].request]]++;
    for (int32_t i = 0; i < plan->tasks; i++) tasks[v.phase[v.strips[v.tasks[i].strip].request]]++;
    attn__put(&t, "isa: ");
    attn__put(&t, attn__leaves_of(l)->name);
    if (attn__by_bytes(l)) attn__put(&t, " with vnni");
    attn__put_format(&t, ", %a requests, %b rows\n", plan->n, plan->rows, 0, 0);
    attn__explain_layer(&t, l);
    attn__put_format(&t, "prefill: %a strips of up to %b rows, key tile %c, %d tasks", strips[ATTN_PREFILL],
                     l->row_tile, attn__key_tile(l, ATTN_PREFILL), tasks[ATTN_PREFILL]);
    if (l->split_keys) attn__put_format(&t, " of %a keys", l->split_keys, 0, 0, 0);
    attn__put_format(&t, "\ndecode: %a strips, key tile %b, units of 256 keys, %c tasks in %d equal runs\n",
                     strips[ATTN_DECODE], attn__key_tile(l, ATTN_DECODE), tasks[ATTN_DECODE], l->workers);
    attn__put_format(&t, "merge: %a tasks over %b partial results\nwork: ", plan->merges, plan->slots, 0, 0);
    attn__put_format(&t, "%a row-key-head triples, the largest task has %b\n", plan->work, plan->largest_task, 0, 0);
    attn__put_format(&t, "memory: plan %a bytes, exec %b bytes for one lane and %c for each further one\n",
                     (int64_t)plan->bytes, one_lane, (int64_t)attn_exec_bytes(plan, 2) - one_lane, 0);
    return t.length;
}

/* ---- >>state: partial results and memory ------------------------------------------------------------------------
   A state holds, per (kv head, row) of a strip: v_dim sums of weighted values, then l, the sum of weights, then the sum
   of the weights that were skipped, then m, the largest logit; weights are exp(logit - m). Both sums 0: no key yet. */

ATTN__INLINE int32_t attn__state_stride(const attn_layer *l) { return (int32_t)attn__round_up(l->v_dim + 3, 16); }
ATTN__INLINE int64_t attn__or(int64_t given, int64_t packed) { return given ? given : packed; }
ATTN__INLINE int32_t attn__slot_of(const attn_layer *l, int32_t key) { return l->ring ? key % l->ring : key; }

ATTN__COLD int attn__check_plan(const attn_plan *plan, attn_error *error) {
    if (!plan) return attn__fail(error, ATTN_E_ARGUMENT, "plan is NULL", 0, 0);
    const int32_t header[] = { ATTN_VERSION, plan->n, plan->rows, plan->strips, plan->tasks };
    if (plan->words && !memcmp(plan->words, header, sizeof header)) return ATTN_OK;
    return attn__fail(error, ATTN_E_PLAN, "plan was not made by attn_plan_make, or its memory was reused", 0, 0);
}

/* Keys that decode widens at a time, few enough to stay near; rows of q that prefill turns; rows of q, o asked for */
enum { ATTN__WIDE = 64, ATTN__TURN = 16, ATTN__ROWS_AHEAD = 8 };

/* Do `rows` rows of a kv head stand in the vector lanes? In DECODE, with the same bits, where that is faster: from 57
   (AVX2: 29) on, unless many lanes stay empty. Votes of skipping count a head's rows, so they have row_* only. */
static int attn__in_panels(const attn_layer *l, int phase, int64_t rows) {
    int32_t lanes = attn__leaves_of(l)->chain_lanes;
    int able = lanes && l->head_dim % 16 == 0 && !l->skip.mode && !attn__by_bytes(l);
    return phase == ATTN_PREFILL || (able && rows > 2 * lanes - 8 && 8 * attn__round_up(rows, lanes) <= 9 * rows);
}

/* Softmax mass of a row: kept and skipped sums of exp(logit - m). */
typedef struct attn__account {
    float m, kept, skipped;
} attn__account;
static const attn__account attn__unseen = { ATTN__LOWEST, 0, 0 };

/* EPS: the keys of a row, as attn__span, and how much of its softmax it may lose for each. */
typedef struct attn__budget {
    int32_t lead, lo, hi;
    float per_key;
} attn__budget;

/* What one lane needs, carved from exec.mem. */
typedef struct attn__scratch {
    const char **k_rows[2], **v_rows; /* a pointer per key of a tile, padded by 16; decode: of this step and the next */
    int64_t list;                   /* entries from there on: the keys' factors, attn__factors */
    const char **wide_k_rows, **wide_v_rows;
    float *wide_k, *wide_v;         /* copies of the keys in f32, and their addresses */
    float *q, *o, *m, *l, *sigma;   /* prefill: panels; decode: q only */
    float *top, *alpha, *sum;       /* one per row: of the tile at hand */
    attn__account *seed, *ref;      /* skipping: one per row of the strip */
    attn__budget *budget;
    float *scores, *row, *states;
    uint64_t *mask, *bits;          /* bits: TOPK: one per key */
    int32_t *needs;                 /* decode, per slot: what attn__panel_weights returns */
    int32_t *picked;                /* TOPK: how many keys the row sees, then these keys */
} attn__scratch;

ATTN__COLD void *attn__take(char *base, int64_t *used, int64_t bytes) {
    char *p = base ? base + *used : NULL;
    *used += attn__round_up(bytes, 64);
    return p;
}

/* Lays one lane's memory out from base; returns its bytes. With base NULL it only measures. */
static int64_t attn__carve(attn__scratch *s, char *base, const attn_plan *p, const attn__capacity *c) {
    const attn_layer *l = &p->resolved;
    int64_t group = l->heads / l->kv_heads, lanes = attn__leaves_of(l)->lanes, chains = attn__leaves_of(l)->chain_lanes;
    int64_t d = attn__round_up(l->head_dim, 16), v_dim = attn__round_up(l->v_dim, 16);
    int64_t decode_rows = p->families & 1 << ATTN_DECODE ? c->rows : 0, used = 0, rows, panel_rows, packed;
    rows = attn__min64(l->row_tile, p->max_q_len * group);
    packed = decode_rows * (attn__in_panels(l, ATTN_DECODE, attn__min64(rows, 2 * chains)) ? 2 : 1); /* empty lanes */
    panel_rows = p->families & 1 << ATTN_PREFILL || packed > decode_rows ? rows : 0;
    if (attn__in_bf16(l) && decode_rows) packed += 15 * attn__max64(1, decode_rows / group); /* whole sixteens */
    int64_t keys = panel_rows ? attn__key_tile(l, ATTN_PREFILL) : 0, depth = decode_rows ? c->depth : 1;
    int64_t wide = decode_rows && l->kv_type != ATTN_F32 ? ATTN__WIDE : 0;
    int64_t tile = attn__max(attn__key_tile(l, ATTN_DECODE), attn__key_tile(l, ATTN_PREFILL));
    int64_t addresses = (tile + 16) * (l->scale_kind == ATTN_SCALE_PER_KEY ? 2 : 1) * (int64_t)sizeof(char *);
    int64_t skip_rows = l->skip.mode ? attn__max64(panel_rows, decode_rows) : 0;
    panel_rows = attn__round_up(panel_rows, lanes);
    s->list = tile + 16;
    for (int i = 0; i < 2; i++) s->k_rows[i] = (const char **)attn__take(base, &used, addresses);
    s->v_rows = (const char **)attn__take(base, &used, addresses);
    s->wide_k_rows = (const char **)attn__take(base, &used, (tile + 16) * (int64_t)sizeof(char *));
    s->wide_v_rows = (const char **)attn__take(base, &used, (tile + 16) * (int64_t)sizeof(char *));
    s->wide_k = (float *)attn__take(base, &used, 4 * attn__max64(keys * (d + 16), wide * (attn__max64(d, v_dim) + 16)));
    s->wide_v = (float *)attn__take(base, &used, 4 * keys * (v_dim + 16));
    s->q = (float *)attn__take(base, &used, 4 * attn__max64(panel_rows, packed) * d);
    s->o = (float *)attn__take(base, &used, 4 * panel_rows * l->v_dim);
    s->m = (float *)attn__take(base, &used, 4 * panel_rows);
    s->l = (float *)attn__take(base, &used, 4 * panel_rows);
    s->sigma = (float *)attn__take(base, &used, 4 * panel_rows);
    s->top = (float *)attn__take(base, &used, 4 * attn__max64(lanes, decode_rows));
    s->alpha = (float *)attn__take(base, &used, 4 * attn__max64(lanes, 2 * decode_rows));
    s->sum = (float *)attn__take(base, &used, 4 * attn__max64(lanes, decode_rows));
    s->seed = (attn__account *)attn__take(base, &used, skip_rows * (int64_t)sizeof(attn__account));
    s->ref = (attn__account *)attn__take(base, &used, skip_rows * (int64_t)sizeof(attn__account));
    s->budget = (attn__budget *)attn__take(base, &used, skip_rows * (int64_t)sizeof(attn__budget));
    s->scores = (float *)attn__take(base, &used, 4 * attn__max64((tile + 8) * lanes, 2 * decode_rows * (tile + 16)));
    s->row = (float *)attn__take(base, &used, 4 * ATTN__TURN * d);
    s->mask = (uint64_t *)attn__take(base, &used, attn__max64(tile, 4 * decode_rows) * 8);
    s->needs = (int32_t *)attn__take(base, &used, 8 * decode_rows);
    s->states = (float *)attn__take(base, &used, 4 * depth * c->rows * attn__state_stride(l));
    s->bits = (uint64_t *)attn__take(base, &used, l->mask == ATTN_TOPK ? p->max_kv_len / 8 + 8 : 0);
    s->picked = (int32_t *)attn__take(base, &used, 4 * (attn__min64(l->topk, p->max_kv_len) + 1));
    return used;
}

/* exec.mem: the task counter in the first 64 bytes, the slots, the lanes; 64 bytes more to align the start. */
static int64_t attn__exec_size(const attn_plan *plan, int32_t lanes) {
    attn__capacity c;
    attn__scratch s;
    attn__capacity_of_plan(&c, plan);
    return 128 + attn__round_up(c.slots * c.rows * attn__state_stride(&plan->resolved) * 4, 64) +
           attn__max(1, lanes) * attn__carve(&s, NULL, plan, &c);
}

ATTN_API size_t attn_exec_bytes(const attn_plan *plan, int32_t lanes) {
    return attn__check_plan(plan, NULL) || lanes < 0 || lanes > 65536 ? 0 : attn__to_size(attn__exec_size(plan, lanes));
}

static char *attn__exec_start(const attn_exec *e) { return (char *)e->mem + (0 - (uintptr_t)e->mem) % 64; }

/* One of the caches, or its scales per key. Strides in bytes. */
typedef struct attn__cache {
    char *base;
    int64_t page, row, head;
    int32_t dim;
    int ragged;                     /* a request starts after the keys of those before it */
    const struct attn__cache *scale; /* NULL: none per key */
} attn__cache;

/* Everything a task needs, derived once per attn_task. */
typedef struct attn__run {
    const attn_plan *plan;
    const attn_layer *layer;
    const attn_io *io;
    const attn__leaves *leaves;
    attn__view view;
    attn_io strides;                /* io, none of those of q, o and page_table 0; k's and v's, in bytes: */
    attn__cache k, v, k_scales, v_scales;
    const float *v_scale;           /* unless there is one per key */
    attn__scratch scratch;
    float *slots;
    int32_t group, state_stride, strip, phase; /* strip: the one at hand, -1: none yet; phase: the strip's */
    int64_t slot_floats;            /* floats of one slot or state */
    attn_counters *counters;        /* this lane's, or NULL */
    int dense;                      /* skipping: lambda is 1 or more */
    float gap, eps;                 /* tiles fall further below the reference; softmax share a row may lose; 0: none */
} attn__run;

static void attn__open_cache(attn__cache *c, attn__cache *scales, const attn_layer *l, void *base, int32_t dim,
                             int64_t page, int64_t row, int64_t head, float *scale) {
    int64_t bytes = attn__type_bytes(l->kv_type), width = l->kv_heads * (int64_t)sizeof(float);
    int64_t room = l->page_size ? l->page_size : l->ring;
    head = attn__or(head, dim);
    row = attn__or(row, (int64_t)l->kv_heads * dim);
    if (room) page = attn__or(page, attn__max64(room * row, l->kv_heads * head));
    int64_t slots = l->page_size ? l->page_size : (l->kv_heads > 1 && head >= row ? head : page) / row;
    const attn__cache values = { (char *)base, page * bytes, row * bytes, head * bytes, dim, !page, NULL };
    const attn__cache factors = { (char *)scale, slots * width, width, (int64_t)sizeof(float), dim, !page, NULL };
    *c = values;
    *scales = factors;
    if (l->scale_kind == ATTN_SCALE_PER_KEY) c->scale = scales;
}

static void attn__open_caches(attn__run *r, const attn_plan *plan, const attn_io *io) {
    const attn_layer *l = &plan->resolved;
    attn_io *s = &r->strides;
    int own = !(l->flags & ATTN_V_IN_K); /* has V a cache of its own? */
    r->plan = plan;
    r->layer = l;
    r->io = io;
    r->leaves = attn__leaves_of(l);
    r->v_scale = own ? io->v_scale : io->k_scale;
    *s = *io;
    s->q_head = attn__or(io->q_head, l->head_dim);
    s->q_row = attn__or(io->q_row, (int64_t)l->heads * l->head_dim);
    s->o_head = attn__or(io->o_head, l->v_dim);
    s->o_row = attn__or(io->o_row, (int64_t)l->heads * l->v_dim);
    if (l->page_size) s->page_table_row = attn__or(io->page_table_row, attn__ceil_div(plan->max_kv_len, l->page_size));
    attn__open_cache(&r->k, &r->k_scales, l, io->k, l->head_dim, io->k_page, io->k_row, io->k_head, io->k_scale);
    r->v = r->k;
    r->v.dim = l->v_dim;
    if (own) attn__open_cache(&r->v, &r->v_scales, l, io->v, l->v_dim, io->v_page, io->v_row, io->v_head, io->v_scale);
}

/* The factor of one kv head of a cache, as it is read; those per key are attn__factors. */
static float attn__head_scale(const attn_layer *l, const float *scale, int32_t request, int32_t head) {
    float unit = l->kv_type == ATTN_E4M3 ? 256.0f : 1.0f;
    if (!scale || l->scale_kind == ATTN_SCALE_PER_KEY) return unit;
    if (l->scale_kind == ATTN_SCALE_PER_TENSOR) return unit * scale[0];
    return unit * scale[l->scale_kind == ATTN_SCALE_PER_HEAD ? head : (int64_t)request * l->kv_heads + head];
}

static void attn__open(attn__run *r, const attn_plan *plan, const attn_io *io, const attn_exec *exec, int32_t lane) {
    attn__capacity c;
    char *start = attn__exec_start(exec) + 64;
    attn__open_caches(r, plan, io);
    attn__capacity_of_plan(&c, plan);
    r->view = attn__view_of(plan->words, plan->n, &c);
    r->strip = -1;
    r->group = r->layer->heads / r->layer->kv_heads;
    r->state_stride = attn__state_stride(r->layer);
    r->slot_floats = c.rows * r->state_stride;
    r->slots = (float *)(void *)start;
    r->counters = io->counters ? io->counters + lane : NULL;
    int64_t slots = attn__round_up(c.slots * r->slot_floats * 4, 64), bytes = attn__carve(&r->scratch, NULL, plan, &c);
    attn__carve(&r->scratch, start + slots + lane * bytes, plan, &c);
}

static void attn__clear_state(const attn__run *r, const attn__strip *s, float *state) {
    int32_t rows = s->heads * s->rows, i;
    memset(state, 0, (size_t)rows * (size_t)r->state_stride * sizeof(float));
    for (i = 0; i < rows; i++) state[(int64_t)i * r->state_stride + r->layer->v_dim + 2] = ATTN__LOWEST;
}

/* a = a merged with b, row by row; a row that saw no key changes nothing. */
static void attn__merge_states(const attn__run *r, const attn__strip *s, float *a, const float *b) {
    int32_t v_dim = r->layer->v_dim, i;
    for (i = 0; i < s->heads * s->rows; i++, a += r->state_stride, b += r->state_stride) {
        if (b[v_dim] == 0 && b[v_dim + 1] == 0) continue;
        float top = a[v_dim + 2] > b[v_dim + 2] ? a[v_dim + 2] : b[v_dim + 2];
        if (a[v_dim] == 0 && a[v_dim + 1] == 0) memcpy(a, b, (size_t)(v_dim + 2) * sizeof(float));
        else r->leaves->blend(a, b, attn__exp(a[v_dim + 2] - top), attn__exp(b[v_dim + 2] - top), v_dim + 2);
        a[v_dim + 2] = top;
    }
}

/* How much too small, relatively, a sum of weights may have come out: every tile of a unit adds a few roundings. */
static float attn__drift(const attn__run *r, int32_t request) {
    int phase = r->view.phase[request];
    int32_t keys = attn__min(attn__lengths_of(&r->view, request).kv_len, attn__unit_keys(r->layer, phase));
    return 4e-6f + 2.5e-7f * (float)(keys / attn__key_tile(r->layer, phase));
}

/* From a row's last three numbers: the factor of its sums, lse, a bound of the share skipped, widened by `drift`. */
static float attn__finish_row(const float *tail, const float *sink, float drift, float *lse, float *certificate) {
    float m = tail[2];
    *certificate = 0;
    if (tail[0] == 0 && lse) *lse = sink ? *sink : attn__float_of(0xff800000u);
    if (tail[0] == 0) return 0.0f;
    float top = sink && *sink > m ? *sink : m, weight = top == m ? 1.0f : attn__exp(m - top), sum = tail[0] * weight;
    if (sink) sum += attn__exp(*sink - top);
    if (lse) *lse = attn__is_finite(sum) ? top + (float)attn__log(sum) : sum;
    if (tail[1] != 0) *certificate = (1 + drift) * tail[1] * weight / (sum + tail[1] * weight);
    if (*certificate > 1) *certificate = 1;
    return weight / sum;
}

/* Elements from the first one of q or o to a packed row of a strip. */
static int64_t attn__row_offset(const attn__run *r, const attn__strip *s, int32_t head, int32_t row, int64_t of_row,
                                int64_t of_head) {
    int32_t at = s->row + row, token = r->group > 1 ? at / r->group : at; /* a division is 1 % of prompts of 512 */
    int64_t q_head = (int64_t)(s->head + head - token) * r->group + at; /* at - token * group: which of its kv head */
    return (r->view.q_start[s->request] + (int64_t)token) * of_row + q_head * of_head;
}

/* Asks for n bytes of q or o before they are needed: a head's rows lie pages apart. Prompts of 512 take 8 % less. */
static void attn__fetch_row(const char *at, int32_t n) { for (int32_t x = 0; x < n; x += 64) ATTN__FETCH_L1(at + x); }

/* Writes the finished rows of a strip to o and lse. */
static void attn__emit(const attn__run *r, const attn__strip *s, const float *state) {
    const attn_layer *l = r->layer;
    int64_t bytes = attn__type_bytes(l->o_type), of_row = r->strides.o_row * bytes, of_head = r->strides.o_head * bytes;
    float drift = attn__drift(r, s->request);
    char *o = (char *)r->io->o;
    for (int32_t h = 0; h < s->heads; h++) {
        float scale = attn__head_scale(l, r->v_scale, s->request, s->head + h);
        for (int32_t i = 0; i < s->rows; i++, state += r->state_stride) {
            int64_t at = attn__row_offset(r, s, h, i, l->heads, 1);
            int32_t later = attn__min(i + ATTN__ROWS_AHEAD, s->rows - 1);
            const float *sink = r->io->sinks ? r->io->sinks + at % l->heads : NULL;
            float *lse = r->io->lse ? r->io->lse + at : NULL, certificate;
            attn__fetch_row(o + attn__row_offset(r, s, h, later, of_row, of_head), l->v_dim * (int32_t)bytes);
            float factor = attn__finish_row(state + l->v_dim, sink, drift, lse, &certificate);
            if (factor != 0) factor *= scale; /* without a key o is 0, whatever the scale */
            r->leaves->narrow(o + attn__row_offset(r, s, h, i, of_row, of_head), state, l->v_dim, l->o_type, &factor);
            if (r->io->certificate) r->io->certificate[at] = certificate;
        }
    }
}

/* ---- >>tiles: keys to pointers, rows to masks -------------------------------------------------------------------- */
static char *attn__key_address(const attn__run *r, const attn__cache *c, int32_t request, int32_t head, int32_t key) {
    int32_t size = r->layer->page_size, slot = attn__slot_of(r->layer, key);
    int64_t page = size ? r->io->page_table[request * r->strides.page_table_row + slot / size] : request;
    if (size) slot %= size;
    if (size || !c->ragged) return c->base + page * c->page + slot * c->row + head * c->head;
    return c->base + ((int64_t)r->view.kv_start[request] + key) * c->row + head * c->head;
}

/* Addresses of the keys (TOPK: ranks) first .. first + n - 1, and their factors, see attn__factors. Keys in the gap
   between sink keys and window are nobody's: they get a neighbour's, since their page may not exist. */
static void attn__key_rows(const attn__run *r, const attn__cache *c, const attn__strip *s, int32_t head,
                           attn__span seen, int32_t first, int32_t n, const char **rows) {
    int32_t size = r->layer->page_size, ring = r->layer->ring, i, run, j;
    const int32_t *list = r->layer->mask == ATTN_TOPK ? r->scratch.picked + 1 : NULL;
    float *factors = (float *)(void *)(rows + r->scratch.list);
    for (i = 0; i < n; i += run) {
        int32_t key = list ? list[first + i] : first + i, gap = key >= seen.lead && key < seen.lo;
        run = list ? 1 : n - i;
        if (key < seen.lo) run = attn__min(run, (gap ? seen.lo : seen.lead) - key);
        if (gap) key = first < seen.lead ? seen.lead - 1 : seen.lo;
        if (size && !gap) run = attn__min(run, size - key % size);
        if (ring && !gap) run = attn__min(run, ring - key % ring);
        const char *at = attn__key_address(r, c, s->request, head, key);
        int64_t step = gap ? 0 : c->row;
        for (j = 0; j < run; j++, at += step) rows[i + j] = at;
        if (!c->scale) continue;
        at = attn__key_address(r, c->scale, s->request, head, key);
        step = gap ? 0 : c->scale->row;
        for (j = 0; j < run; j++, at += step) factors[i + j] = *attn__row(&at, 0);
    }
    for (i = 0; i < 15; i++) rows[n + i] = rows[n - 1]; /* leaves take up to 16 keys at a time */
    for (i = 0; i < 15 && c->scale; i++) factors[n + i] = 1;
}

/* What scores or weights are multiplied by, of rows[first] and so on; NULL: the cache has no scale per key. */
static const float *attn__factors(const attn__run *r, const attn__cache *c, const char *const *rows, int32_t first) {
    return c->scale ? (const float *)(const void *)(rows + r->scratch.list) + first : NULL;
}

/* Are n values free of NaN and infinity, which spoil a sum even with a weight of 0? rows: as they lie in the cache. */
static int attn__all_finite(const attn__run *r, const char *const *rows, const char *const *v, int32_t n) {
    const char *factors = (const char *)attn__factors(r, &r->v, rows, 0); /* scales of bytes */
    return r->leaves->finite(factors ? &factors : v, factors ? 1 : n, factors ? n : r->v.dim);
}

/* The same keys as a list of f32 rows: copies in `wide`, or, with wide NULL, themselves. */
static const char *const *attn__wide_rows(const attn__run *r, const attn__cache *c, const char *const *rows,
                                          int32_t n, float *wide, const char **list) {
    int32_t ld = (int32_t)attn__round_up(c->dim, 16) + 16, i;
    if (!wide) return rows;
    r->leaves->widen(wide, ld, rows, n, c->dim, r->layer->kv_type);
    for (i = 0; i < n + 15; i++) list[i] = (const char *)(wide + (int64_t)attn__min(i, n - 1) * ld);
    return list;
}

/* Keys that any of `rows` packed rows of a strip sees; TOPK: ranks, now that the list is known. */
static attn__span attn__seen(const attn__run *r, const attn__strip *s, int32_t row, int32_t rows) {
    attn__span listed = { 0, 0, r->layer->mask == ATTN_TOPK ? r->scratch.picked[0] : 0 };
    return r->layer->mask == ATTN_TOPK ? listed : attn__strip_span(r->layer, &r->view, s, row, rows);
}

static attn__span attn__packed_span(const attn__run *r, const attn__strip *s, int32_t row) {
    attn__lengths n = attn__lengths_of(&r->view, s->request);
    if (r->layer->mask == ATTN_TOPK) return attn__seen(r, s, row, 1);
    row = r->group > 1 ? (s->row + row) / r->group : s->row + row; /* a division is 1 % of prompts of 512 */
    return attn__row_span(r->layer, &n, row); /* attn__seen closes the gap after the sinks */
}

/* Do all of `rows` packed rows see all keys lo .. hi - 1? TREE: surely, whatever the bits. */
static int attn__all_seen(const attn__run *r, const attn__strip *s, int32_t row, int32_t rows, int32_t lo, int32_t hi) {
    attn__span top = attn__packed_span(r, s, row), bottom = attn__packed_span(r, s, row + rows - 1);
    if (r->layer->mask == ATTN_TREE) {
        attn__lengths n = attn__lengths_of(&r->view, s->request);
        top.hi = n.kv_len - n.q_len;
        top.lead = attn__min(top.lead, top.hi);
        if (r->layer->window_left) bottom.lo += n.q_len - 1;
    }
    return (top.hi >= hi && bottom.lo <= lo) || top.lead >= hi;
}

/* Bits 0 .. n - 1, first .. last - 1 of a word; all are clamped to 0 .. 64. */
static uint64_t attn__low_bits(int64_t n) { return n >= 64 ? ~(uint64_t)0 : n <= 0 ? 0 : ((uint64_t)1 << n) - 1; }
static uint64_t attn__range_bits(int64_t first, int64_t last) { return attn__low_bits(last) & ~attn__low_bits(first); }

static float attn__logit_scale(const attn__run *r, const attn__strip *s, int32_t head) {
    return r->layer->scale * attn__head_scale(r->layer, r->io->k_scale, s->request, s->head + head);
}

/* Row i of q times the scale, 0 up to a multiple of 16; two a word: bf16 as they are; four: bytes; extra: attn__dots */
static void attn__copy_q_row(const attn__run *r, const attn__strip *s, int32_t i, float *dst, int32_t per_word,
                             float *extra) {
    const attn_layer *l = r->layer;
    int32_t head = i < s->rows ? 0 : i / s->rows, row = i - head * s->rows, ld = (l->head_dim + 15) & -16;
    int64_t bytes = attn__type_bytes(l->q_type), of_row = r->strides.q_row * bytes, of_head = r->strides.q_head * bytes;
    const char *q = (const char *)r->io->q, *src = q + attn__row_offset(r, s, head, row, of_row, of_head);
    float scale = attn__logit_scale(r, s, head);
    row = attn__min(row + 2 * ATTN__ROWS_AHEAD, s->rows - 1);
    attn__fetch_row(q + attn__row_offset(r, s, head, row, of_row, of_head), l->head_dim * (int32_t)bytes);
    if (per_word == 2) memcpy(dst, src, (size_t)l->head_dim * 2);
    if (per_word == 2) return;
    int plain = l->q_type == ATTN_F32 && !(l->flags & ATTN_FAST_INT8);
    if (!plain) r->leaves->widen(dst, 0, &src, 1, l->head_dim, l->q_type);
    for (int32_t x = l->head_dim; x < ld; x++) dst[x] = 0;
    if (l->flags & ATTN_FAST_INT8) scale *= attn__quantise(dst, ld, per_word == 4 ? extra : NULL);
    if (per_word == 4) extra[r->leaves->lanes] = scale;
    else r->leaves->narrow(dst, plain ? (const float *)(const void *)src : dst, l->head_dim, ATTN_F32, &scale);
}

static const uint32_t *attn__tree_row(const attn__run *r, int32_t request, int32_t row) {
    return r->io->tree + (r->view.q_start[request] + (int64_t)row) * attn__ceil_div(r->plan->max_q_len, 32);
}

/* What windows and ALiBi compare: the position of a row, and that of a key (TOPK: of a rank). */
static int32_t attn__row_position(const attn__run *r, int32_t request, int32_t row) {
    attn__lengths n = attn__lengths_of(&r->view, request);
    if (r->layer->mask == ATTN_TREE) row = attn__tree_depth(attn__tree_row(r, request, row), n.q_len);
    return n.kv_len - n.q_len + row;
}

ATTN__INLINE int32_t attn__key_position(const attn__run *r, int32_t request, int32_t key) {
    attn__lengths n = attn__lengths_of(&r->view, request);
    int32_t draft = key - (n.kv_len - n.q_len);
    if (r->layer->mask == ATTN_TOPK) return r->scratch.picked[1 + key];
    return r->layer->mask == ATTN_TREE && draft >= 0 ? attn__row_position(r, request, draft) : key;
}

/* Does a row of a TREE, so deep in it, see a key? tree: the bits of the request's first row, `words` a row. */
ATTN__INLINE int attn__tree_sees(const attn_layer *l, const attn__lengths *n, const uint32_t *tree, int64_t words,
                                 int32_t row, int32_t depth, int32_t key) {
    int32_t draft = key - (n->kv_len - n->q_len);
    if (draft >= 0 && !attn__tree_bit(tree + row * words, draft)) return 0;
    int64_t past = (int64_t)depth - (draft < 0 ? draft : attn__tree_depth(tree + draft * words, n->q_len));
    if (key < l->sink_keys) return 1;
    return (!l->window_left || past < l->window_left) && (!l->window_right || -past < l->window_right);
}

/* Which of the keys at .. at + 63 a packed row of a TREE sees. */
static uint64_t attn__tree_bits(const attn__run *r, const attn__strip *s, int32_t packed, int64_t at) {
    const attn_layer *l = r->layer;
    const uint32_t *tree = attn__tree_row(r, s->request, 0);
    attn__lengths n = attn__lengths_of(&r->view, s->request);
    int32_t row = (s->row + packed) / r->group, past = n.kv_len - n.q_len;
    int64_t words = attn__ceil_div(r->plan->max_q_len, 32), key = attn__max64(past, at);
    int32_t depth = attn__tree_depth(tree + row * words, n.q_len);
    int64_t lo = l->window_left ? attn__max64(0, past + depth - l->window_left + 1) : 0;
    uint64_t bits = attn__range_bits(lo - at, past - at) | attn__range_bits(-at, attn__min(l->sink_keys, past) - at);
    for (; key < attn__min64(at + 64, n.kv_len); key++) {
        bits |= (uint64_t)attn__tree_sees(l, &n, tree, words, row, depth, (int32_t)key) << (key - at);
    }
    return bits;
}

/* TOPK: the listed keys that a row sees, in ascending order, whatever the order of the list. */
static void attn__pick(const attn__run *r, int32_t request, int32_t row) {
    const attn__scratch *t = &r->scratch;
    const int32_t *list = r->io->topk + (r->view.q_start[request] + (int64_t)row) * r->layer->topk;
    attn__lengths n = attn__lengths_of(&r->view, request);
    attn__span seen = attn__key_span(r->layer, &n, row);
    int32_t words = seen.hi / 64 + 1, count = 0, i;
    memset(t->bits, 0, (size_t)words * sizeof *t->bits);
    for (i = 0; i < r->layer->topk; i++) {
        int32_t key = list[i];
        if (key < 0 || key >= seen.hi || (key < seen.lo && key >= seen.lead)) continue;
        t->bits[key / 64] |= (uint64_t)1 << key % 64;
    }
    for (i = 0; i < words; i++) {
        for (uint64_t left = t->bits[i]; left; left &= left - 1) {
            float lowest = (float)(int64_t)(left & (0 - left)); /* the lowest bit set: as a float a power of two */
            t->picked[++count] = 64 * i + (int32_t)(attn__bits_of(lowest) >> 23 & 255u) - 127;
        }
    }
    t->picked[0] = count;
}

/* ---- >>check: a call's arguments, all of them before the first store --------------------------------------------- */
/* needed: -1: it must be NULL, V being a part of K. */
ATTN__COLD int attn__check_pointer(const char *name, const void *p, int needed, int32_t alignment, attn_error *error) {
    const char *rule = p ? " is not aligned to its elements" : " is NULL";
    if (p && needed < 0) rule = " is not NULL, but the layer has ATTN_V_IN_K";
    if (p ? needed >= 0 && (uintptr_t)p % (uintptr_t)alignment == 0 : needed <= 0) return ATTN_OK;
    return attn__fail_name(error, ATTN_E_ARGUMENT, name, rule, 0, 0, 0, 0);
}

/* Do no two rows or heads share memory? There may be gaps; the longer stride spans all of the shorter. */
static int attn__apart(int64_t rows, int64_t heads, int64_t row, int64_t head, int64_t dim) {
    int64_t inner = attn__min64(row, head), inners = row < head ? rows : heads;
    int64_t outer = attn__max64(row, head), outers = row < head ? heads : rows;
    if (inners > 1 && inner < dim) return 0;
    return outers < 2 || (outer >= dim && (inners < 2 || (outer - dim) / (inners - 1) >= inner));
}

enum { ATTN__READ, ATTN__WRITE, ATTN__SCORE }; /* what attn_forward, attn_append, attn_index_score do with the caches */

static int attn__check_pages(const attn__run *r, int32_t request, int32_t first, int32_t last, attn_error *error) {
    const int32_t size = r->layer->page_size, *table = r->io->page_table + request * r->strides.page_table_row;
    for (int64_t key = first; key < last; key += size - key % size) {
        int32_t p = attn__slot_of(r->layer, (int32_t)key) / size;
        if (table[p] >= 0 && table[p] < r->io->pages) continue;
        return attn__fail_at(error, ATTN_E_PAGE, request, p, "page_table[%d][%c] = %a, but there are %b pages",
                             table[p], r->io->pages, p);
    }
    return ATTN_OK;
}

/* TOPK: the list of one row, and the pages of the keys that the row sees. */
static int attn__check_list(const attn__run *r, int32_t request, int32_t row, attn_error *error) {
    int64_t at = r->view.q_start[request] + (int64_t)row;
    const int32_t *list = r->io->topk + at * r->layer->topk;
    attn__lengths n = attn__lengths_of(&r->view, request);
    attn__span seen = attn__key_span(r->layer, &n, row);
    int32_t slot, status = ATTN_OK;
    memset(r->scratch.bits, 0, (size_t)(n.kv_len / 64 + 1) * sizeof(uint64_t));
    for (slot = 0; slot < r->layer->topk && !status; slot++) {
        int32_t key = list[slot], exists = key >= 0 && key < n.kv_len;
        uint64_t *word = &r->scratch.bits[exists ? key / 64 : 0], bit = (uint64_t)exists << (key & 63);
        const char *text = key < 0 ? "topk[%a][%b] = %c is negative, but not -1"
                                   : "topk[%a][%b] = %c stands in the list twice";
        if (key < -1 || *word & bit) return attn__fail_at(error, ATTN_E_ARGUMENT, request, slot, text, at, slot, key);
        *word |= bit;
        if (!exists || !r->layer->page_size || key >= seen.hi || (key < seen.lo && key >= seen.lead)) continue;
        status = attn__check_pages(r, request, key, key + 1, error);
    }
    return status;
}

static int attn__check_table(const attn__run *r, int use, attn_error *error) {
    int listed = r->layer->mask == ATTN_TOPK && use == ATTN__READ; /* attn__check_list looks after those */
    int skipped = listed || (r->layer->flags & ATTN_TRUSTED), status = ATTN_OK;
    for (int32_t i = 0; i < r->plan->n; i++) {
        attn__lengths n = attn__lengths_of(&r->view, i);
        int32_t slots = r->layer->ring ? attn__min(n.kv_len, r->layer->ring) : n.kv_len;
        int64_t pages = attn__ceil_div(slots, r->layer->page_size), room = r->strides.page_table_row;
        const char *text = "io.page_table_row = %a is less than the %b pages of kv_len[%d] = %c";
        if (n.q_len && pages > room) return attn__fail_at(error, ATTN_E_ARGUMENT, i, -1, text, room, pages, n.kv_len);
    }
    for (int32_t i = 0; i < r->plan->n && !skipped && !status; i++) {
        attn__lengths n = attn__lengths_of(&r->view, i);
        attn__span u = { 0, n.kv_len - n.q_len, n.kv_len }; /* append touches the new keys, forward the seen ones */
        if (!n.q_len || !n.kv_len) continue;
        if (use != ATTN__WRITE) u = attn__union_span(r->layer, &n, 0, n.q_len - 1);
        status = attn__check_pages(r, i, 0, u.lead, error);
        if (!status) status = attn__check_pages(r, i, u.lo, u.hi, error);
    }
    return status;
}

static int attn__check_cache(const attn__run *r, int use, attn_error *error) {
    const attn_io *io = r->io;
    int32_t align = attn__type_bytes(r->layer->kv_type);
    int needed = r->plan->rows > 0 && r->view.kv_start[r->plan->n] > 0; /* any keys */
    int scaled = needed && r->layer->kv_type == ATTN_INT8, latent = (r->layer->flags & ATTN_V_IN_K) != 0;
    int values = latent || use != ATTN__SCORE, paged = needed && r->layer->page_size;
    int status = attn__check_pointer("io.k", io->k, needed, align, error);
    if (!status) status = attn__check_pointer("io.k_scale", io->k_scale, scaled, 4, error);
    if (!status && values) status = attn__check_pointer("io.v", io->v, latent ? -1 : needed, align, error);
    if (!status && values) status = attn__check_pointer("io.v_scale", io->v_scale, latent ? -1 : scaled, 4, error);
    if (!status && paged) status = attn__check_pointer("io.page_table", io->page_table, 1, 4, error);
    if (status || !paged) return status;
    if (io->pages < 0) return attn__fail(error, ATTN_E_ARGUMENT, "io.pages = %a is negative", io->pages, 0);
    return attn__check_table(r, use, error);
}

/* Every row of a tree must see itself: its position is counted from its bits. */
static int attn__check_trees(const attn__run *r, attn_error *error) {
    for (int32_t i = 0; i < r->plan->n; i++) {
        for (int32_t row = r->view.q_start[i], own = 0; row < r->view.q_start[i + 1]; row++, own++) {
            if (attn__tree_bit(attn__tree_row(r, i, own), own)) continue;
            return attn__fail_at(error, ATTN_E_ARGUMENT, i, own, "tree[%a] lacks bit %b, the row's own", row, own, 0);
        }
    }
    return ATTN_OK;
}

/* What every call looks at first: the layer must be the plan's, field by field. Opens *r but for exec. */
ATTN__COLD int attn__check_call(attn__run *r, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                                attn_error *error) {
    static const char *const names[] = { "io.q_row",  "io.q_head", "io.o_row",  "io.o_head", "io.k_page", "io.k_row",
                                         "io.k_head", "io.v_page", "io.v_row",  "io.v_head", "io.page_table_row" };
    int status = attn__check_plan(plan, error);
    if (!status && !layer) status = attn__fail(error, ATTN_E_ARGUMENT, "layer is NULL", 0, 0);
    for (int i = 0; i < ATTN__COUNT(attn__layer_fields) && !status; i++) {
        int32_t value = attn__field_value(layer, i), other = attn__field_value(&plan->layer, i);
        int real = i >= ATTN__LAYER_INTEGERS; /* of these 0 and -0 are equal */
        if (value == other || (real && attn__float_of((uint32_t)value) == attn__float_of((uint32_t)other))) continue;
        return attn__fail_name(error, ATTN_E_PLAN, attn__layer_fields[i].name,
                               real ? " = %A, the plan has %B" : " = %a, the plan has %b", value, other, 0, 0);
    }
    if (!status && !io) status = attn__fail(error, ATTN_E_ARGUMENT, "io is NULL", 0, 0);
    if (status) return status;
    const int64_t strides[] = { io->q_row,  io->q_head, io->o_row, io->o_head, io->k_page, io->k_row,
                                io->k_head, io->v_page, io->v_row, io->v_head, io->page_table_row };
    for (int i = 0; i < ATTN__COUNT(strides); i++) {
        const char *text = " = %a, but it must be 0 .. 2^40 - 1"; /* times page size or heads it must fit */
        if (strides[i] >> 40) return attn__fail_name(error, ATTN_E_ARGUMENT, names[i], text, strides[i], 0, 0, 0);
    }
    attn__open_caches(r, plan, io);
    r->view = attn__view_of_plan(plan);
    return ATTN_OK;
}

static int attn__check_rows(const attn__run *r, attn_error *error) {
    const attn_layer *l = r->layer;
    const attn_io *io = r->io, *s = &r->strides;
    int32_t needed = r->plan->rows > 0, mode = l->skip.mode, by_request = needed && mode == ATTN_SKIP_LAMBDA;
    int status = attn__check_pointer("io.q", io->q, needed, attn__type_bytes(l->q_type), error);
    if (!status) status = attn__check_pointer("io.o", io->o, needed, attn__type_bytes(l->o_type), error);
    if (!status) status = attn__check_pointer("io.lse", io->lse, 0, 4, error);
    if (!status) status = attn__check_pointer("io.sinks", io->sinks, 0, 4, error);
    if (!status) status = attn__check_pointer("io.alibi", io->alibi, 0, 4, error);
    if (!status) status = attn__check_pointer("io.tree", io->tree, needed && l->mask == ATTN_TREE, 4, error);
    if (!status) status = attn__check_pointer("io.topk", io->topk, needed && l->mask == ATTN_TOPK, 4, error);
    if (!status && l->mask == ATTN_TREE) status = attn__check_trees(r, error);
    if (!status) status = attn__check_pointer("io.lambda", io->lambda, by_request, 4, error);
    if (!status) status = attn__check_pointer("io.certificate", io->certificate, 0, 4, error);
    if (!status) status = attn__check_pointer("io.counters", io->counters, 0, 8, error);
    const char *text = "io.lambda is not NULL, but layer.skip.mode = %a";
    if (!status && mode != ATTN_SKIP_LAMBDA && io->lambda) return attn__fail(error, ATTN_E_ARGUMENT, text, mode, 0);
    for (int32_t i = 0; !status && by_request && i < r->plan->n; i++) {
        if (attn__is_share(io->lambda[i], ATTN_SKIP_LAMBDA)) continue;
        return attn__fail_at(error, ATTN_E_ARGUMENT, i, -1, "lambda[%d] = %A, but it must be 0 or more, and finite",
                             attn__bits_of(io->lambda[i]), 0, 0);
    }
    if (status || !needed || attn__apart(r->plan->rows, l->heads, s->o_row, s->o_head, l->v_dim)) return status;
    return attn__fail(error, ATTN_E_ARGUMENT, "io.o_row = %a makes rows of o overlap with io.o_head = %b", s->o_row,
                      s->o_head);
}

static int attn__check_exec(const attn_plan *plan, const attn_exec *exec, attn_error *error) {
    if (!exec) return attn__fail(error, ATTN_E_ARGUMENT, "exec is NULL", 0, 0);
    const char *text = "exec.lanes = %a, but it must be 0 .. 65536";
    if (exec->lanes < 0 || exec->lanes > 65536) return attn__fail(error, ATTN_E_ARGUMENT, text, exec->lanes, 0);
    return attn__check_memory("exec.mem", exec->mem, exec->bytes, attn_exec_bytes(plan, exec->lanes), 8, error);
}

/* ---- >>skip: which tiles weigh too little -------------------------------------------------------------------------
   A run is what a decision may depend on: the keys of a PREFILL row, or of its unit with split_keys; a group of 2,048
   keys of a DECODE row. A tile is skipped when all rows of the vote unit (a panel, or a kv head's rows) agree: FACTOR
   and LAMBDA, if its largest logit lies more than -ln lambda below the reference, the largest logit of the run so far
   and of key tile 0, which is always kept; EPS, if the mass skipped in the run stays within eps * the mass kept there
   and in tile 0 * the share of the row's keys that the run has passed. The shares of all runs add up to 1, and no run
   counts more mass than the row keeps, so a row loses at most eps / (1 + eps). Source: BLASST; paced budgets. */

static void attn__open_skip(attn__run *r, int32_t request) {
    const attn_skip *skip = &r->layer->skip;
    float value = r->view.phase[request] == ATTN_PREFILL ? skip->prefill : skip->decode;
    r->eps = skip->mode == ATTN_SKIP_EPS ? value * (0.9999f - attn__drift(r, request)) : 0; /* the rest: roundings */
    if (skip->mode == ATTN_SKIP_LAMBDA) value = r->io->lambda[request];
    int factor = skip->mode == ATTN_SKIP_FACTOR && value != 0, lambda = skip->mode == ATTN_SKIP_LAMBDA && value != 0;
    r->gap = factor || lambda ? -(float)attn__log(value) : 0;
    if (factor) r->gap += (float)attn__log((float)attn__lengths_of(&r->view, request).kv_len);
    r->dense = (factor || lambda) && r->gap <= 0;
}

/* How far each row's largest logit, top, lies below its reference (m, if given, and ref), at least; -1: no keys. */
static float attn__vote(const attn__run *r, const float *m, const attn__account *ref, int32_t rows) {
    float gap = -1.0f;
    for (int32_t i = 0; i < rows; i++) {
        float below = (m && m[i] > ref[i].m ? m[i] : ref[i].m) - r->scratch.top[i];
        if (r->scratch.top[i] == ATTN__LOWEST) continue;
        if (!(below > 0)) below = 0; /* NaN too */
        if (gap < 0 || below < gap) gap = below;
        if (!r->counters && (gap <= r->gap || r->eps > 0)) return gap; /* decided: only the histogram wants the rest */
    }
    return gap;
}

static void attn__count(const attn__run *r, float gap, int skip, int no_weights) {
    if (!r->counters || gap < 0) return;
    r->counters->tiles++;
    r->counters->dense_tiles += r->dense;
    r->counters->v_skipped += skip;
    r->counters->softmax_skipped += skip && no_weights;
    r->counters->histogram[gap < 31.5f ? (int)(gap * 2) : 63]++;
}

static void attn__open_budgets(const attn__run *r, const attn__strip *s) {
    attn__lengths n = attn__lengths_of(&r->view, s->request);
    attn_layer layer = *r->layer;
    if (layer.mask == ATTN_TREE) layer.mask = ATTN_CAUSAL; /* so that a chain gives its bits */
    for (int32_t i = 0; i < s->rows; i++) {
        int32_t position = attn__row_position(r, s->request, (s->row + i) / r->group);
        attn__span p = attn__key_span(&layer, &n, position - (n.kv_len - n.q_len));
        int32_t lead = attn__min(p.lead, p.lo);
        attn__budget b = { lead, p.lo, p.hi, r->eps / (float)attn__max(1, lead + p.hi - p.lo) };
        r->scratch.budget[i] = b;
    }
}

/* What the row may have lost when it has passed its keys in first .. last - 1. */
static float attn__allowance(const attn__run *r, int32_t row, int64_t first, int64_t last) {
    const attn__budget *b = &r->scratch.budget[row];
    int64_t seen = attn__max64(0, attn__min64(b->lead, last) - first);
    return b->per_key * (float)(seen + attn__max64(0, attn__min64(b->hi, last) - attn__max64(b->lo, first)));
}

/* EPS: does what `own` and `ref` skipped stay within that part of what they kept? */
static int attn__affordable(const attn__account *own, const attn__account *ref, float allowance) {
    float m = own->m > ref->m ? own->m : ref->m, a = attn__exp(own->m - m), b = attn__exp(ref->m - m);
    return own->skipped * a + ref->skipped * b <= allowance * (own->kept * a + ref->kept * b);
}

/* ---- >>prefill: many rows, in the vector lanes ------------------------------------------------------------------- */
/* Rows become columns: panel p holds rows p * lanes ... of the strip as attn__dots says; unused lanes are 0. */
static void attn__pack_panels(const attn__run *r, const attn__strip *s) {
    const attn__scratch *t = &r->scratch;
    int chains = r->phase == ATTN_DECODE;
    int32_t lanes = chains ? r->leaves->chain_lanes : r->leaves->lanes, d = r->layer->head_dim, i, n, x;
    int32_t ld = (int32_t)attn__round_up(d, 16), per_word = attn__per_word(r->layer), words = d / per_word;
    int32_t rows = (int32_t)attn__round_up(s->rows, lanes), step = chains ? r->leaves->row_lanes : words;
    for (i = 0; i < rows; i += ATTN__TURN) {
        float *q = t->q + (int64_t)(i / lanes * lanes) * d + i % lanes, *extra = q + (int64_t)words * lanes;
        for (n = 0; n < ATTN__TURN && i + n < s->rows; n++) {
            attn__copy_q_row(r, s, i + n, t->row + (int64_t)n * ld, per_word, extra + n);
        }
        memset(t->row + (int64_t)n * ld, 0, (size_t)(ATTN__TURN - n) * (size_t)ld * sizeof(float));
        for (x = 0; x < words; x += step) {
            r->leaves->turn(q + x / step * lanes, words / step * lanes, t->row + x, ld, ATTN__TURN, step);
        }
    }
}

static void attn__unpack_panels(const attn__run *r, const attn__strip *s, float *state) {
    const attn__scratch *t = &r->scratch;
    int32_t lanes = r->leaves->lanes, v_dim = r->layer->v_dim, i;
    for (i = 0; i < s->rows; i += lanes) {
        r->leaves->turn(state + i * (int64_t)r->state_stride, r->state_stride, t->o + i * (int64_t)v_dim, lanes, v_dim,
                        attn__min(lanes, s->rows - i));
    }
    for (i = 0; i < s->rows; i++, state += r->state_stride) {
        state[v_dim] = t->l[i];
        state[v_dim + 1] = t->sigma[i];
        state[v_dim + 2] = t->m[i];
    }
}

/* Rows row .. row + used - 1 of a strip over keys first .. last - 1. */
typedef struct attn__panel {
    int32_t row, used, first, last;
    int32_t at;                     /* of the keys at hand, where `first` is */
    const uint64_t *mask;           /* NULL: every row sees every key */
    int32_t chains;                 /* sums for a product and for the weights: 1, in DECODE leaves->row_lanes */
} attn__panel;

/* mask[key] = the rows of a panel that see the key. Spans grow with the row, so each key is seen by one range of rows,
   and as a sink by all rows from some row on; the bits of a TREE take some away. */
static void attn__mask_panel(const attn__run *r, const attn__strip *s, const attn__panel *p) {
    attn__span spans[64];
    uint64_t *mask = r->scratch.mask, bits = 0;
    int32_t used = p->used, i, key, begin = 0, end = 0, sink = 0;
    for (i = 0; i < used; i++) spans[i] = attn__packed_span(r, s, p->row + i);
    for (key = p->first; key < p->last; key++) {
        while (begin < used && spans[begin].hi <= key) begin++;
        while (end < used && spans[end].lo <= key) end++;
        while (sink < used && spans[sink].lead <= key) sink++;
        mask[key - p->first] = attn__range_bits(begin, end) | attn__range_bits(sink, used);
    }
    for (i = 0; i < used && r->layer->mask == ATTN_TREE; i++) {
        for (key = 0; key < p->last - p->first; key++) {
            bits = key % 64 ? bits >> 1 : attn__tree_bits(r, s, p->row + i, p->first + key);
            mask[key] &= ~((~bits & 1) << i);
        }
    }
}

static void attn__bias_panel(const attn__run *r, const attn__strip *s, const attn__panel *p) {
    float slope[64], *x = r->scratch.scores;
    int32_t position[64], i, key;
    for (i = 0; i < p->used; i++) {
        slope[i] = r->io->alibi[(int64_t)s->head * r->group + (s->row + p->row + i) % r->group];
        position[i] = attn__row_position(r, s->request, (s->row + p->row + i) / r->group);
    }
    for (key = p->first; key < p->last; key++, x += r->leaves->lanes) {
        int32_t at = attn__key_position(r, s->request, key);
        for (i = 0; i < p->used; i++) x[i] += slope[i] * (float)(at - position[i]);
    }
}

/* The n keys at hand as panels read them: in f32 (wide NULL: themselves), as they are, or as bytes, x + 128. */
static const char *const *attn__panel_keys(const attn__run *r, int32_t n, float *wide) {
    const attn__scratch *t = &r->scratch;
    int32_t per_word = attn__per_word(r->layer), bytes = 4 * (r->layer->head_dim / per_word);
    if (per_word == 1) return attn__wide_rows(r, &r->k, t->k_rows[0], n, wide, t->wide_k_rows);
    for (int32_t i = 0; i < n + 15; i++) {
        char *row = (char *)t->wide_k + attn__min(i, n - 1) * bytes;
        t->wide_k_rows[i] = row;
        if (i < n) memcpy(row, t->k_rows[0][i], (size_t)bytes);
        for (int32_t x = 0; x < bytes && i < n && per_word == 4; x += 8) {
            uint64_t eight;
            memcpy(&eight, row + x, 8);
            eight ^= 0x8080808080808080u;
            memcpy(row + x, &eight, 8);
        }
    }
    return t->wide_k_rows;
}

/* Logits of a panel, and the largest of each row. ahead: of V, as attn__dots. */
static void attn__panel_logits(const attn__run *r, const attn__strip *s, attn__panel *p, const char *const *k,
                               const char *const *ahead) {
    const attn__scratch *t = &r->scratch;
    const attn__leaves *f = r->leaves;
    int32_t d = r->layer->head_dim, n = p->last - p->first, by = attn__per_word(r->layer);
    int32_t v_bytes = r->layer->v_dim * attn__type_bytes(r->layer->kv_type);
    const float *factors = attn__factors(r, &r->k, t->k_rows[0], p->at);
    p->mask = attn__all_seen(r, s, p->row, p->used, p->first, p->last) ? NULL : t->mask;
    if (p->mask) attn__mask_panel(r, s, p);
    int with_top = !p->mask && f->tops && n % f->tops == 0 && !(r->layer->softcap > 0) && !r->io->alibi;
    attn__dots a = { t->scores, t->q + (int64_t)p->row * d, k + p->at, factors, ATTN_F32, 0, 0, p->used, n, d / by,
                     v_bytes, ahead, p->mask, by == 4, attn__logit_scale(r, s, 0), with_top ? t->top : NULL };
    (p->chains > 1 ? f->chain_scores : f->lane_scores)(&a);
    if (r->layer->softcap > 0) f->softcap(t->scores, n * f->lanes, r->layer->softcap);
    if (r->io->alibi) attn__bias_panel(r, s, p);
    if (!a.top) f->lane_max(t->scores, n, p->mask, t->top, p->used);
}

/* EPS: can every row afford to lose the tile? Its weights are known. */
static int attn__panel_affordable(const attn__run *r, const attn__panel *p) {
    const attn__scratch *t = &r->scratch;
    int64_t unit_keys = attn__unit_keys(r->layer, r->phase), start = p->first / unit_keys * unit_keys;
    int32_t i, row = p->row;
    for (i = 0; i < p->used; i++, row++) {
        attn__account own = { t->m[row], t->l[row] * t->alpha[i], t->sigma[row] * t->alpha[i] + t->sum[i] };
        if (t->top[i] == ATTN__LOWEST) continue;
        if (!attn__affordable(&own, &t->seed[row], attn__allowance(r, row, start, p->last))) return 0;
    }
    return 1;
}

/* Logits to weights. Returns 0 if V and o are not needed, 1 if o only follows a larger m, 2 if the tile counts. */
static int attn__panel_weights(const attn__run *r, const attn__panel *p) {
    const attn__scratch *t = &r->scratch;
    float *m = t->m + p->row, *l = t->l + p->row, *sigma = t->sigma + p->row;
    float gap = r->layer->skip.mode ? attn__vote(r, m, t->seed + p->row, p->used) : -1.0f;
    int32_t n = p->last - p->first, no_weights = r->gap > 0 && gap > r->gap, skip = no_weights, moved = 0, i;
    if (no_weights) { /* the largest logit bounds the tile's mass */
        for (i = 0; i < p->used; i++) {
            float old = m[i];
            if (t->top[i] > old) m[i] = t->top[i];
            t->alpha[i] = attn__exp(old - m[i]);
            t->sum[i] = t->top[i] == ATTN__LOWEST ? 0.0f : (float)n * attn__exp(t->top[i] - m[i]);
        }
    } else {
        const float *factors = attn__factors(r, &r->v, t->v_rows, p->at);
        r->leaves->lane_weights(t->scores, n, p->mask, t->top, m, t->alpha, t->sum, p->used, p->chains);
        if (factors) r->leaves->multiply(t->scores, r->leaves->lanes, n, r->leaves->lanes, factors, 1);
        skip = r->eps > 0 && gap >= 0 && attn__panel_affordable(r, p);
    }
    attn__count(r, gap, skip, no_weights);
    for (i = 0; i < p->used && skip; i++) moved |= l[i] != 0 && t->alpha[i] != 1.0f;
    for (i = 0; i < p->used; i++) l[i] = l[i] * t->alpha[i] + (skip ? 0.0f : t->sum[i]);
    for (i = 0; i < p->used && r->layer->skip.mode; i++) sigma[i] = sigma[i] * t->alpha[i] + (skip ? t->sum[i] : 0.0f);
    return skip ? moved : 2;
}

/* Split rows that start behind key tile 0: its largest logits and mass, as a reference. */
ATTN__COLD void attn__prefill_seed(const attn__run *r, const attn__strip *s, attn__span seen, int32_t unit) {
    const attn__scratch *t = &r->scratch;
    int32_t lanes = r->leaves->lanes, row, i, first, last;
    attn__clip(seen, 0, attn__key_tile(r->layer, r->phase), &first, &last);
    for (i = 0; i < s->rows; i++) t->seed[i] = attn__unseen;
    if (unit == 0 || first == last) return;
    attn__key_rows(r, &r->k, s, s->head, seen, first, last - first, t->k_rows[0]);
    const char *const *k = attn__panel_keys(r, last - first, t->wide_k);
    for (row = 0; row < s->rows; row += lanes) {
        attn__panel p = { row, attn__min(lanes, s->rows - row), first, last, 0, NULL, 1 };
        attn__panel_logits(r, s, &p, k, NULL);
        r->leaves->lane_weights(t->scores, last - first, p.mask, t->top, t->m + row, t->alpha, t->sum, p.used, 1);
        for (i = 0; i < p.used; i++) {
            attn__account seed = { t->top[i], t->top[i] == ATTN__LOWEST ? 0.0f : t->sum[i], 0 };
            t->seed[row + i] = seed;
            t->m[row + i] = ATTN__LOWEST;
        }
    }
}

/* Their values; finite: no row need be kept from NaN or infinity times 0. */
static const char *const *attn__panel_values(const attn__run *r, const attn__strip *s, int32_t first, int32_t n,
                                             int32_t *finite) {
    const attn__scratch *t = &r->scratch;
    int packed = attn__in_bf16(r->layer);
    const char *const *v = attn__wide_rows(r, &r->v, t->v_rows, n, packed ? NULL : t->wide_v, t->wide_v_rows);
    if (packed) *finite = r->leaves->pack(t->wide_v, v, n, r->v.dim);
    else *finite = attn__all_seen(r, s, 0, s->rows, first, first + n) || attn__all_finite(r, t->v_rows, v, n);
    return v;
}

/* AMX: keys come in whole blocks; the first may begin with keys that nobody sees. */
ATTN__INLINE int32_t attn__block_start(const attn_layer *l, int32_t key) { return attn__in_bf16(l) ? key & -32 : key; }

/* Keys tile[0] .. tile[1] - 1; the first panel asks for their values and for the keys of the next tile, which the
   other panels then leave time to arrive: 2 to 5 % of the time of a prompt of 2,048. */
static void attn__prefill_tile(const attn__run *r, const attn__strip *s, attn__span seen, const int32_t *tile,
                               const int32_t *next) {
    const attn__scratch *t = &r->scratch;
    const char *const *k, *const *v = NULL, *const *ahead = t->v_rows, *const *later = NULL;
    int32_t lanes = r->leaves->lanes, v_dim = r->layer->v_dim, first = tile[0], n = tile[1] - first, row, i;
    int32_t k_bytes = r->layer->head_dim * attn__type_bytes(r->layer->kv_type), finite = 1;
    int32_t chains = r->phase == ATTN_DECODE ? r->leaves->row_lanes : 1;
    int in_place = lanes < 64 && r->layer->kv_type == ATTN_F32;
    attn__key_rows(r, &r->k, s, s->head, seen, first, n, t->k_rows[0]);
    attn__key_rows(r, &r->v, s, s->head, seen, first, n, t->v_rows);
    if (next[0] < next[1]) {
        later = t->k_rows[1];
        attn__key_rows(r, &r->k, s, s->head, seen, next[0], next[1] - next[0], t->k_rows[1]);
        for (i = next[1] - next[0]; i < n; i++) t->k_rows[1][i] = t->k_rows[1][0];
    }
    /* f32, too: rows 4 KiB apart share few cache sets. AVX2's first panel reads them first, and waits less: 3 to 4 % */
    k = attn__panel_keys(r, n, in_place ? NULL : t->wide_k);
    for (row = 0; row < s->rows; row += lanes) {
        attn__panel p = { row, attn__min(lanes, s->rows - row), 0, 0, 0, NULL, chains };
        attn__clip(attn__seen(r, s, row, p.used), first, tile[1], &p.first, &p.last);
        if (p.first == p.last) continue;
        p.first = attn__block_start(r->layer, p.first);
        p.at = p.first - first;
        attn__panel_logits(r, s, &p, k, ahead);
        int32_t needs = attn__panel_weights(r, &p);
        if (ahead && in_place && row + lanes < s->rows) k = attn__panel_keys(r, n, t->wide_k);
        if (needs == 2 && !v) v = attn__panel_values(r, s, first, n, &finite);
        attn__sums a = { t->o + (int64_t)row * v_dim, t->scores, t->alpha, v ? v + p.at : NULL, ATTN_F32, 0,
                         2 * attn__whole(n), p.used, needs == 2 ? p.last - p.first : 0, v_dim, k_bytes, later, p.mask,
                         !finite && (p.mask || attn__in_bf16(r->layer)), (char *)t->wide_v + 2 * p.at };
        if (needs) r->leaves->lane_values(&a);
        ahead = later = NULL;
    }
}

/* First tile at or after `tile` that holds a seen key. */
static int64_t attn__next_tile(attn__span seen, int64_t tile, int32_t keys) {
    return tile >= seen.lead && tile < seen.lo ? attn__max64(tile, seen.lo / keys * (int64_t)keys) : tile;
}

/* The seen keys of the next key tile at or after tile[1] that holds any; none: an empty range. */
static void attn__step_tile(const attn__run *r, attn__span seen, int64_t end, int32_t *tile) {
    int32_t keys = attn__key_tile(r->layer, r->phase);
    int64_t first = attn__round_up(tile[1], keys);
    do {
        first = attn__next_tile(seen, first, keys);
        attn__clip(seen, (int32_t)attn__min64(first, end), (int32_t)attn__min64(first + keys, end), &tile[0], &tile[1]);
        first += keys;
    } while (tile[0] == tile[1] && first < end);
    if (tile[0] < tile[1]) tile[0] = attn__block_start(r->layer, tile[0]);
}

static void attn__prefill_unit(const attn__run *r, const attn__strip *s, int32_t unit, float *state) {
    const attn__scratch *t = &r->scratch;
    attn__span seen = attn__seen(r, s, 0, s->rows);
    int64_t unit_keys = attn__unit_keys(r->layer, r->phase), rows = attn__round_up(s->rows, r->leaves->lanes), i;
    int64_t end = attn__min64((unit + 1) * unit_keys, attn__max(seen.lead, seen.hi));
    int32_t tile[2], next[2];
    memset(t->o, 0, (size_t)(rows * r->layer->v_dim) * sizeof(float));
    for (i = 0; i < rows; i++) t->l[i] = t->sigma[i] = 0.0f;
    for (i = 0; i < rows; i++) t->m[i] = ATTN__LOWEST;
    if (r->layer->skip.mode) attn__prefill_seed(r, s, seen, unit);
    next[1] = (int32_t)attn__min64(unit * unit_keys, end);
    attn__step_tile(r, seen, end, next);
    while (next[0] < next[1]) {
        memcpy(tile, next, sizeof tile);
        attn__step_tile(r, seen, end, next);
        attn__prefill_tile(r, s, seen, tile, next);
    }
    attn__unpack_panels(r, s, state);
}

/* ---- >>decode: few rows, keys streamed once ---------------------------------------------------------------------- */
/* AMX: the rows of a head as attn__row_scores_amx reads them, sixteen side by side; the last ones may be missing. */
static void attn__pack_rows(const attn__run *r, const attn__strip *s) {
    int64_t ld = attn__round_up(r->layer->head_dim, 16), whole = attn__round_up(s->rows, 16), row;
    int32_t pairs = attn__in_bf16(r->layer), i;
    float *q = r->scratch.q, *words = r->scratch.row;
    for (i = 0; i < s->heads * s->rows; i++) {
        attn__copy_q_row(r, s, i, pairs ? words : q + i * ld, 1 + pairs, NULL);
        row = i / s->rows * whole + i % s->rows;
        if (pairs) r->leaves->turn(q + row / 16 * 16 * ld + row % 16, 16, words, ld, 1, r->layer->head_dim / 2);
    }
}

/* Keys begin .. last - 1 of the key tile that starts at `first`. */
typedef struct attn__tile {
    int32_t first, begin, last;
} attn__tile;

/* Some keys of a tile and one kv head: their scores or, later, the sums of their values. */
typedef struct attn__step {
    int32_t tile, h, key, n;        /* of the unit's tiles; head of the strip; keys from `key` of the tile on */
    int32_t most;                   /* n of all steps but a tile's last */
    int32_t slot, needs;            /* of two tiles at a time, per head: where scores, alpha and needs are */
    int values, all;                /* V, not K? does every row see every key of the tile? */
    const char **rows;
    int32_t bytes, ahead_bytes;     /* of a row */
    const char *const *ahead;       /* rows of the next step, NULL: none; as attn__dots */
} attn__step;

static uint64_t *attn__masks_of(const attn__run *r, const attn__strip *s, int32_t slot) {
    return r->scratch.mask + slot / s->heads * 2 * (int64_t)s->rows;
}

/* mask[2 * row] = keys that a row sees, bit 0: `first`. Resets needs from slot, of head 0, on. Returns: all see all? */
static int attn__open_tile(const attn__run *r, const attn__strip *s, const attn__tile *tile, int32_t slot) {
    uint64_t *masks = attn__masks_of(r, s, slot);
    int same = attn__all_seen(r, s, 0, s->rows, tile->begin, tile->last), all = 1;
    for (int32_t i = 0; i < 2 * s->rows; i++) {
        int64_t base = (int64_t)tile->first + 64 * (i % 2);
        uint64_t wanted = masks[i] = attn__range_bits(tile->begin - base, tile->last - base);
        if (same) continue;
        attn__span p = attn__packed_span(r, s, i / 2);
        masks[i] &= attn__range_bits(p.lo - base, p.hi - base) | attn__range_bits(-base, p.lead - base);
        if (r->layer->mask == ATTN_TREE) masks[i] &= attn__tree_bits(r, s, i / 2, base);
        all &= masks[i] == wanted;
    }
    for (int32_t h = 0; h < s->heads; h++) r->scratch.needs[slot + h] = 2; /* V, for all that is known */
    return all;
}

/* One row, only its visible keys, the first of them bit `bit`: for V with NaN or inf in keys that other rows see. */
static void attn__decode_visible(const attn__run *r, attn__sums a, int32_t row, const uint64_t *mask, int32_t bit) {
    const float one = 1.0f;
    int32_t end = bit + a.n;
    a.o += (ptrdiff_t)row * a.ldo;
    a.p += (ptrdiff_t)row * a.ldp;
    a.alpha += row;
    a.rows = 1;
    a.n = 0;
    r->leaves->row_values(&a);
    a.alpha = &one;
    a.n = 1;
    for (; bit < end; bit++, a.p++, a.v++) {
        if (mask[bit >> 6] >> (bit & 63) & 1) r->leaves->row_values(&a);
    }
}

/* Do the leaves read the cache as it is? With one row a head that takes 22 to 45 % less time than a copy in f32 (AVX2 9
   to 30 %); with 64 rows, which share the copies, 7 % more, with 16 of e4m3, too, and with AVX2 of all but f16. */
static int attn__is_direct(const attn__run *r, const attn__strip *s, int32_t dim) {
    const attn__leaves *f = r->leaves;
    attn_type type = r->layer->kv_type;
    int32_t most = type == ATTN_F16 ? 16 : f->lanes < 64 ? 4 : type == ATTN_E4M3 ? 8 : 16;
    int able = f->direct >> type & 1 && (dim & (f->row_lanes - 1)) == 0; /* no partial vectors */
    return type == ATTN_F32 || (able && s->rows <= most && s->rows % 4 < 2);
}

/* The scores of a slot, and floats from row to row. */
ATTN__INLINE int32_t attn__scores_row(const attn_layer *l) { return attn__key_tile(l, ATTN_DECODE) + 16; }

static float *attn__scores_of(const attn__run *r, const attn__strip *s, int32_t slot) {
    return r->scratch.scores + (int64_t)slot * s->rows * attn__scores_row(r->layer);
}

static void attn__decode_scores(const attn__run *r, const attn__strip *s, const attn__step *p) {
    const attn__scratch *t = &r->scratch;
    const attn_layer *l = r->layer;
    float *scores = attn__scores_of(r, s, p->slot) + p->key;
    int32_t pairs = attn__in_bf16(l), direct = pairs || attn__is_direct(r, s, l->head_dim), d = l->head_dim;
    int32_t ldq = (int32_t)attn__round_up(d, 16), rows = (int32_t)attn__round_up(s->rows, pairs ? 16 : 1);
    ATTN_ASSERT(p->n <= ATTN__WIDE && p->key + p->n <= attn__key_tile(l, ATTN_DECODE));
    const char *const *k = attn__wide_rows(r, &r->k, p->rows, p->n, direct ? NULL : t->wide_k, t->wide_k_rows);
    const float *factors = attn__factors(r, &r->k, p->rows, 0);
    attn__dots a = { scores, t->q + (int64_t)p->h * rows * ldq, k, NULL, direct ? l->kv_type : ATTN_F32,
                     attn__scores_row(l), ldq, s->rows, p->n, pairs ? d / 2 : d, p->ahead_bytes, p->ahead, NULL, 0,
                     pairs ? attn__logit_scale(r, s, p->h) : 1, NULL };
    r->leaves->row_scores(&a);
    if (factors) r->leaves->multiply(scores, a.lds, s->rows, p->n, factors, 0);
}

/* n 0: o only follows a larger m. V may hold a NaN that only some rows see. */
static void attn__decode_sums(const attn__run *r, const attn__strip *s, const attn__step *p, float *state) {
    const attn__scratch *t = &r->scratch;
    const attn_layer *l = r->layer;
    int direct = l->kv_type == ATTN_F32 || (p->all && attn__is_direct(r, s, l->v_dim));
    float *o = state + (int64_t)p->h * s->rows * r->state_stride, *alpha = t->alpha + p->slot * s->rows;
    float *weights = attn__scores_of(r, s, p->slot) + p->key;
    const char *const *v = attn__wide_rows(r, &r->v, p->rows, p->n, direct || !p->n ? NULL : t->wide_k, t->wide_k_rows);
    const float *factors = attn__factors(r, &r->v, p->rows, 0);
    attn__sums a = { o, weights, alpha, v, direct ? l->kv_type : ATTN_F32, r->state_stride, attn__scores_row(l),
                     s->rows, p->n, l->v_dim, p->ahead_bytes, p->ahead, NULL, 0, NULL };
    const uint64_t *masks = attn__masks_of(r, s, p->slot);
    int clean = p->all || attn__all_finite(r, p->rows, v, p->n), row;
    if (factors) r->leaves->multiply(weights, a.ldp, s->rows, p->n, factors, 0);
    if (clean) r->leaves->row_values(&a);
    for (row = 0; row < s->rows && !clean; row++) attn__decode_visible(r, a, row, masks + 2 * row, p->key);
    for (row = 0; row < s->rows; row++) alpha[row] = 1.0f;
}

/* ALiBi for one row's scores. */
static void attn__bias_row(const attn__run *r, const attn__strip *s, const attn__tile *tile, int32_t h, int32_t row,
                           float *x) {
    float slope = r->io->alibi[(int64_t)(s->head + h) * r->group + (s->row + row) % r->group];
    int32_t position = attn__row_position(r, s->request, (s->row + row) / r->group), key = tile->begin;
    for (; key < tile->last; key++) *x++ += slope * (float)(attn__key_position(r, s->request, key) - position);
}

/* Logits to weights: each row's m, one every `apart` floats, rises to its largest; top, alpha, sum: attn__leaves. */
static void attn__decode_weights(const attn__run *r, const attn__strip *s, const attn__tile *tile, const attn__step *p,
                                 float *m, int64_t apart) {
    const attn__scratch *t = &r->scratch;
    const uint64_t one = 1, *mask = attn__masks_of(r, s, p->slot);
    int32_t skipped = tile->begin - tile->first, n = tile->last - tile->first, i;
    float past[16] = { 0 }, *alpha = t->alpha + p->slot * s->rows; /* alpha comes from the leaf's exp, as in lanes */
    for (i = 0; i < s->rows; i++, m += apart, mask += 2) {
        float *x = attn__scores_of(r, s, p->slot) + (int64_t)i * attn__scores_row(r->layer), old = *m;
        if (r->layer->softcap > 0) r->leaves->softcap(x + skipped, n - skipped, r->layer->softcap);
        if (r->io->alibi) attn__bias_row(r, s, tile, p->h, i, x + skipped);
        t->top[i] = r->leaves->row_max(x, n, mask);
        if (t->top[i] > old) *m = t->top[i];
        past[0] = old;
        alpha[i] = *m == old ? 1.0f : old == ATTN__LOWEST ? 0.0f : r->leaves->row_weights(past, 1, &one, *m);
        t->sum[i] = r->leaves->row_weights(x, n, mask, *m);
    }
}

/* Shall the tile be skipped? The weights are known in any case: only V and its sums are saved. */
static int attn__decode_skips(const attn__run *r, const attn__strip *s, const attn__tile *tile, int32_t h,
                              const float *m) {
    const attn__scratch *t = &r->scratch;
    attn__account *ref = t->ref + h * s->rows;
    float gap = attn__vote(r, NULL, ref, s->rows);
    int64_t start = tile->first / ATTN__GROUP_KEYS * (int64_t)ATTN__GROUP_KEYS;
    int skip = r->gap > 0 ? gap > r->gap : r->eps > 0 && gap >= 0;
    for (int32_t i = 0; i < s->rows && r->eps > 0 && skip; i++) {
        const attn__account own = { m[(int64_t)i * r->state_stride], 0, t->sum[i] };
        skip = t->top[i] == ATTN__LOWEST || attn__affordable(&own, &ref[i], attn__allowance(r, i, start, tile->last));
    }
    attn__count(r, gap, skip, 0);
    for (int32_t i = 0; i < s->rows; i++) {
        float unit = m[(int64_t)i * r->state_stride], most = unit > ref[i].m ? unit : ref[i].m;
        if (t->top[i] == ATTN__LOWEST) continue;
        if (r->eps > 0) {
            float a = attn__exp(ref[i].m - most), b = t->sum[i] * attn__exp(unit - most);
            ref[i].kept = ref[i].kept * a + (skip ? 0.0f : b);
            ref[i].skipped = ref[i].skipped * a + (skip ? b : 0.0f);
        }
        ref[i].m = most;
    }
    return skip;
}

/* Weights of a kv head over a tile, whose last scores the step brought; returns what attn__panel_weights does. */
static int attn__decode_tile(const attn__run *r, const attn__strip *s, const attn__tile *tile, const attn__step *p,
                             float *state) {
    const float *sum = r->scratch.sum, *alpha = r->scratch.alpha + p->slot * s->rows;
    float *l = state + (int64_t)p->h * s->rows * r->state_stride + r->layer->v_dim;
    attn__decode_weights(r, s, tile, p, l + 2, r->state_stride);
    int skip = r->layer->skip.mode && attn__decode_skips(r, s, tile, p->h, l + 2), moved = 0;
    for (int32_t i = 0; i < s->rows; i++, l += r->state_stride) {
        moved |= l[0] != 0 && alpha[i] != 1.0f;
        l[0] = l[0] * alpha[i] + (skip ? 0.0f : sum[i]);
        l[1] = l[1] * alpha[i] + (skip ? sum[i] : 0.0f);
    }
    return skip ? moved : 2;
}

/* The tiles of a unit that hold seen keys. */
static int32_t attn__unit_tiles(const attn__run *r, attn__span seen, int32_t unit, attn__tile *tiles) {
    int32_t keys = attn__key_tile(r->layer, ATTN_DECODE), count = 0;
    int64_t end = attn__min64((int64_t)(unit + 1) * ATTN__UNIT, attn__max(seen.lead, seen.hi)), first;
    for (first = (int64_t)unit * ATTN__UNIT; first < end; first += keys) {
        attn__tile *t = &tiles[count];
        t->first = (int32_t)first;
        attn__clip(seen, t->first, (int32_t)attn__min64(first + keys, end), &t->begin, &t->last);
        if (t->begin < t->last) count++;
    }
    return count;
}

/* Behind this comes the first step. A head's keys are read 16 KB at a time (AMX: whole blocks). */
static void attn__first_step(const attn__run *r, const attn__tile *tiles, attn__step *p) {
    const attn_layer *l = r->layer;
    int32_t bytes = attn__max(l->head_dim, l->v_dim) * attn__type_bytes(l->kv_type), least = attn__in_bf16(l) ? 32 : 16;
    const attn__step first = { 0, -1, tiles->begin - tiles->first, 0, 0, 0, 0, 0, 0, r->scratch.k_rows[0], 0, 0, NULL };
    *p = first;
    p->most = attn__max(least, attn__min(16384 / bytes & -least, ATTN__WIDE));
}

/* From K or V of a tile to the next: K 0, K 1, V 0, K 2, V 1, ..., K last, V last - 1, V last. */
static void attn__next_keys(const attn__tile *tiles, int32_t count, attn__step *p) {
    int32_t next_k = p->values ? p->tile + 2 : 1, next_v = p->values ? p->tile + 1 : attn__max(0, p->tile - 1);
    p->values = (!p->values && p->tile > 0) || next_k >= count;
    p->tile = p->values ? next_v : next_k;
    if (p->tile < count) p->key = tiles[p->tile].begin - tiles[p->tile].first;
}

/* The step after *p: some keys of every head, the next ones, and so on, as far as the weights need V: a token-major
   cache in the order of memory (K and V of a head in turn: 33 to 50 % more). Returns needs; 1: no keys, 0: no step. */
static int attn__next_step(const attn__run *r, const attn__strip *s, const attn__tile *tiles, int32_t count,
                           attn__step *p) {
    p->needs = 0;
    while (p->tile < count && !p->needs) {
        if (++p->h == s->heads) p->key += p->most;
        if (p->h == s->heads) p->h = 0;
        if (p->key >= tiles[p->tile].last - tiles[p->tile].first) attn__next_keys(tiles, count, p);
        p->slot = (p->tile & 1) * s->heads + p->h;
        if (p->tile < count) p->needs = p->values ? r->scratch.needs[p->slot] : 2;
    }
    p->n = p->needs < 2 ? 0 : attn__min(p->most, tiles[p->tile].last - tiles[p->tile].first - p->key);
    p->bytes = (p->values ? r->v.dim : r->k.dim) * attn__type_bytes(r->layer->kv_type);
    return p->needs;
}

static void attn__step_rows(const attn__run *r, const attn__strip *s, attn__span seen, const attn__tile *tile,
                            const attn__step *p) {
    attn__key_rows(r, p->values ? &r->v : &r->k, s, s->head + p->h, seen, tile->first + p->key, p->n, p->rows);
}

static void attn__decode_unit(attn__run *r, const attn__strip *s, int32_t unit, float *state) {
    const attn__scratch *t = &r->scratch;
    attn__span seen = attn__seen(r, s, 0, s->rows);
    attn__tile tiles[ATTN__UNIT / 32];
    int32_t count = attn__unit_tiles(r, seen, unit, tiles), all[2] = { 0, 0 };
    attn__step now, next;
    attn__clear_state(r, s, state);
    if (!count) return;
    attn__first_step(r, tiles, &next);
    if (attn__next_step(r, s, tiles, count, &next)) attn__step_rows(r, s, seen, tiles, &next);
    while (next.needs) {
        const attn__tile *tile = &tiles[next.tile];
        now = next;
        int opens = !now.values && now.h == 0 && now.key == tile->begin - tile->first;
        if (opens) all[now.tile % 2] = attn__open_tile(r, s, tile, now.slot);
        now.all = all[now.tile % 2];
        next.rows = t->k_rows[now.rows == t->k_rows[0]];
        if (attn__next_step(r, s, tiles, count, &next) == 2) attn__step_rows(r, s, seen, &tiles[next.tile], &next);
        if (next.n >= now.n) now.ahead = next.rows;
        now.ahead_bytes = next.bytes;
        if (now.values && t->needs[now.slot] < 2) now.n = 0; /* known only now */
        if (now.values && t->needs[now.slot]) attn__decode_sums(r, s, &now, state);
        if (now.values) continue;
        attn__decode_scores(r, s, &now);
        if (now.key + now.n < tile->last - tile->first) continue;
        t->needs[now.slot] = attn__decode_tile(r, s, tile, &now, state);
    }
}

/* What key tile 0 gives to the runs that start behind it: for every row its largest logit there and its mass. */
ATTN__COLD void attn__decode_seed(const attn__run *r, const attn__strip *s) {
    const attn__scratch *t = &r->scratch;
    attn__span seen = attn__seen(r, s, 0, s->rows);
    attn__tile tile = { 0, 0, 0 };
    attn__step p;
    attn__clip(seen, 0, attn__key_tile(r->layer, ATTN_DECODE), &tile.begin, &tile.last);
    attn__first_step(r, &tile, &p);
    for (int32_t i = 0; i < s->heads * s->rows; i++) t->seed[i] = attn__unseen;
    if (tile.begin == tile.last) return;
    attn__open_tile(r, s, &tile, 0);
    while (attn__next_step(r, s, &tile, 1, &p) && !p.values) {
        attn__account *seed = t->seed + p.h * s->rows;
        attn__step_rows(r, s, seen, &tile, &p);
        attn__decode_scores(r, s, &p);
        if (p.key + p.n < tile.last) continue;
        attn__decode_weights(r, s, &tile, &p, &seed->m, sizeof *seed / sizeof(float));
        for (int32_t j = 0; j < s->rows; j++) seed[j].kept = seed[j].m == ATTN__LOWEST ? 0.0f : t->sum[j];
    }
}

/* ---- >>run: tasks, stages, forward ------------------------------------------------------------------------------- */
/* A unit of a strip in panels, one kv head after the other; state NULL: q becomes panels. */
static void attn__panel_heads(attn__run *r, const attn__strip *s, int32_t unit, float *state) {
    int64_t floats = attn__round_up(s->rows, r->leaves->lanes) * r->layer->head_dim;
    attn__strip one = *s;
    for (one.heads = 1; one.head < s->head + s->heads; one.head++, r->scratch.q += floats) {
        if (!state) attn__pack_panels(r, &one);
        if (state) attn__prefill_unit(r, &one, unit, state + (one.head - s->head) * s->rows * (int64_t)r->state_stride);
    }
    r->scratch.q -= s->heads * floats;
}

/* A run of units of one strip: merged as far as the tree allows, then written out or left in slots. */
static void attn__compute(attn__run *r, int32_t index) {
    attn__task t = r->view.tasks[index];
    const attn__strip *s = &r->view.strips[t.strip];
    r->phase = r->view.phase[s->request];
    int panels = attn__in_panels(r->layer, r->phase, s->rows), groups = r->phase == ATTN_DECODE && r->layer->skip.mode;
    attn__fold f = { attn__unit_at(s, t.begin - 1), 0, { 0 } };
    float *stack[72] = { r->scratch.states };
    if (t.strip != r->strip) { /* what all tasks of a strip need: most lanes find it done by their last task */
        r->strip = t.strip;
        if (r->layer->mask == ATTN_TOPK) attn__pick(r, s->request, s->row / r->group);
        if (s->units && panels) attn__panel_heads(r, s, 0, NULL);
        if (s->units && !panels) attn__pack_rows(r, s);
        attn__open_skip(r, s->request);
        if (r->eps > 0) attn__open_budgets(r, s);
    }
    if (!s->units) attn__clear_state(r, s, stack[0]);
    if (groups && attn__unit_at(s, t.end - 1) >= ATTN__GROUP_KEYS / ATTN__UNIT) attn__decode_seed(r, s);
    for (int32_t i = t.begin; i < t.end; i++) {
        int32_t unit = attn__unit_at(s, i), next = i + 1 < s->units ? attn__unit_at(s, i + 1) : -1;
        int fresh = groups && (i == t.begin || attn__new_group(s, i)), first = unit < ATTN__GROUP_KEYS / ATTN__UNIT;
        for (int32_t j = 0; fresh && j < s->heads * s->rows; j++) { /* a group's reference: tile 0, if not in it */
            r->scratch.ref[j] = first ? attn__unseen : r->scratch.seed[j];
        }
        stack[f.depth] = r->scratch.states + f.depth * r->slot_floats;
        (panels ? attn__panel_heads : attn__decode_unit)(r, s, unit, stack[f.depth]);
        f.unit[f.depth++] = unit;
        while (attn__fold_step(&f, next)) attn__merge_states(r, s, stack[f.depth - 1], stack[f.depth]);
    }
    if (t.slot < 0) attn__emit(r, s, stack[0]);
    ATTN_ASSERT(t.slot < 0 || f.depth == t.slots);
    size_t bytes = (size_t)(s->heads * s->rows) * (size_t)r->state_stride * sizeof(float);
    for (int32_t i = 0; i < t.slots; i++) memcpy(r->slots + (t.slot + i) * r->slot_floats, stack[i], bytes);
}

/* Finishes a strip from the slots of its tasks, in place. */
static void attn__merge(attn__run *r, int32_t index) {
    const int32_t *m = r->view.merges + (int64_t)index * ATTN__MERGE;
    attn__strip s = r->view.strips[m[0]];
    float *stack[72];
    attn__fold f = { -1, 0, { 0 } }, part;
    for (int32_t task = m[1]; task < r->plan->tasks && r->view.tasks[task].strip == m[0]; task++) {
        attn__task t = r->view.tasks[task];
        attn__fold_run(&part, &s, t.begin, t.end);
        for (int32_t i = 0; i < t.slots; i++) {
            while (attn__fold_step(&f, part.unit[i])) attn__merge_states(r, &s, stack[f.depth - 1], stack[f.depth]);
            stack[f.depth] = r->slots + (t.slot + i) * r->slot_floats;
            f.unit[f.depth++] = part.unit[i];
        }
    }
    while (attn__fold_step(&f, -1)) attn__merge_states(r, &s, stack[f.depth - 1], stack[f.depth]);
    attn__emit(r, &s, stack[0]);
}

ATTN_API int32_t attn_task_count(const attn_plan *plan, attn_stage stage) {
    return !plan ? 0 : stage == ATTN_COMPUTE ? plan->tasks : stage == ATTN_MERGE ? plan->merges : 0;
}

ATTN_API void attn_task(const attn_plan *plan, const attn_io *io, const attn_exec *exec, attn_stage stage,
                        int32_t index, int32_t lane) {
    attn__run r;
    attn__open(&r, plan, io, exec, lane);
    (stage == ATTN_COMPUTE ? attn__compute : attn__merge)(&r, index);
}

ATTN_API int attn_check(const attn_plan *plan, const attn_layer *layer, const attn_io *io, const attn_exec *exec,
                        attn_error *error) {
    attn__run r;
    int32_t status = attn__check_call(&r, plan, layer, io, error), i, j;
    if (!status) status = attn__check_rows(&r, error);
    if (!status) status = attn__check_cache(&r, ATTN__READ, error);
    if (!status) status = attn__check_exec(plan, exec, error);
    int listed = !status && layer->mask == ATTN_TOPK && !(layer->flags & ATTN_TRUSTED);
    if (listed) attn__open(&r, plan, io, exec, 0);
    for (i = 0; listed && i < plan->n; i++) {
        for (j = 0; j < attn__lengths_of(&r.view, i).q_len && !status; j++) status = attn__check_list(&r, i, j, error);
    }
    if (status) return status;
    memset(attn__exec_start(exec), 0, sizeof(int32_t));
    return attn__succeed(error);
}

/* What the lanes of one stage share, or those of attn_index_score. */
typedef struct attn__job {
    const attn_plan *plan;
    const attn_io *io;
    const attn_exec *exec;
    attn_stage stage;
    const float *weights;
    const int32_t *ks;
    float *scores;
    int64_t score_row;
} attn__job;

static void attn__run_lanes(attn__job *job, void (*fn)(void *job, int lane)) {
    const attn_exec *e = job->exec;
    if (e->parallel_for && e->lanes > 1) e->parallel_for(e->user, e->lanes, fn, job);
    else for (int lane = 0; lane < attn__max(1, e->lanes); lane++) fn(job, lane);
}

static void attn__lane(void *job, int lane) {
    const attn__job *c = (const attn__job *)job;
    int32_t count = attn_task_count(c->plan, c->stage), i;
    void (*run)(attn__run *, int32_t) = c->stage == ATTN_COMPUTE ? attn__compute : attn__merge;
    attn__run r;
    attn__open(&r, c->plan, c->io, c->exec, lane);
#ifdef ATTN__FETCH_ADD
    int32_t *counter = (int32_t *)(void *)attn__exec_start(c->exec);
    while ((i = (int32_t)ATTN__FETCH_ADD(counter)) < count) run(&r, i);
#else
    for (i = lane; i < count; i += attn__max(1, c->exec->lanes)) run(&r, i);
#endif
}

ATTN_API int attn_forward(const attn_plan *plan, const attn_layer *layer, const attn_io *io, const attn_exec *exec,
                          attn_error *error) {
    attn__job job = { plan, io, exec, ATTN_COMPUTE, NULL, NULL, NULL, 0 };
    int status = attn_check(plan, layer, io, exec, error);
    if (status) return status;
    if (plan->tasks > 0) attn__run_lanes(&job, attn__lane);
    job.stage = ATTN_MERGE;
    memset(attn__exec_start(exec), 0, sizeof(int32_t)); /* the task counter, as attn_check does */
    if (plan->merges > 0) attn__run_lanes(&job, attn__lane);
    return ATTN_OK;
}

/* ---- >>tools: append, dense, merge, masks ------------------------------------------------------------------------ */
/* Largest |x| of a vector / 127. The bits of |x| grow with it, and NaN and inf top them all: the key stays spoilt. */
static float attn__int8_scale(const char *src, int32_t dim, attn_type type) {
    int32_t top = 0, x;
    for (x = 0; x < dim; x++) top = attn__max(top, (int32_t)(attn__bits_of(attn__load(src, x, type)) & 0x7fffffffu));
    return attn__float_of((uint32_t)top) / 127.0f;
}

static void attn__append_row(const attn__run *r, const attn__cache *c, const float *scale, const void *from,
                             int64_t index, int32_t request, int32_t key) {
    const attn_layer *l = r->layer;
    int32_t q_bytes = attn__type_bytes(l->q_type), kv_bytes = attn__type_bytes(l->kv_type), head, x, i;
    for (head = 0; head < l->kv_heads; head++) {
        const char *src = (const char *)from + (index * l->kv_heads + head) * c->dim * q_bytes;
        char *dst = attn__key_address(r, c, request, head, key);
        float factor = attn__head_scale(l, scale, request, head);
        if (c->scale) {
            factor = attn__int8_scale(src, c->dim, l->q_type);
            memcpy(attn__key_address(r, c->scale, request, head, key), &factor, sizeof factor);
        }
        int same = l->q_type == l->kv_type && factor == 1.0f;
        if (same) memcpy(dst, src, (size_t)c->dim * (size_t)kv_bytes);
        for (x = 0; x < c->dim && !same; x += 256) {
            float wide[256];
            int32_t n = attn__min(256, c->dim - x);
            const char *at = src + (int64_t)x * q_bytes;
            r->leaves->widen(wide, 0, &at, 1, n, l->q_type);
            for (i = 0; i < n && factor != 1.0f; i++) wide[i] /= factor;
            r->leaves->narrow(dst + (int64_t)x * kv_bytes, wide, n, l->kv_type, NULL);
        }
    }
}

static int attn__check_append(const attn_plan *plan, const void *new_k, const void *new_v, attn_error *error) {
    attn__view v = attn__view_of_plan(plan);
    int32_t align = attn__type_bytes(plan->resolved.q_type);
    int needed = plan->rows > 0, latent = (plan->resolved.flags & ATTN_V_IN_K) != 0;
    int status = attn__check_pointer("new_k", new_k, needed, align, error);
    if (!status) status = attn__check_pointer("new_v", new_v, latent ? -1 : needed, align, error);
    for (int32_t i = 0; i < plan->n && !status; i++) {
        int32_t e = attn__lengths_of(&v, i).q_len, kv = attn__lengths_of(&v, i).kv_len;
        const attn__rule rule = { kv < e, "kv_len[%d] = %a is less than q_len[%d] = %b", kv, e };
        status = attn__check_rules(error, ATTN_E_BATCH, i, &rule, 1);
    }
    return status;
}

ATTN_API int attn_append(const attn_plan *plan, const attn_layer *layer, const attn_io *io, const void *new_k,
                         const void *new_v, attn_error *error) {
    attn__run r;
    int status = attn__check_call(&r, plan, layer, io, error);
    if (!status) status = attn__check_append(plan, new_k, new_v, error);
    if (!status) status = attn__check_cache(&r, ATTN__WRITE, error);
    if (status) return status;
    for (int32_t i = 0; i < plan->n; i++) {
        attn__lengths n = attn__lengths_of(&r.view, i);
        for (int32_t j = 0; j < n.q_len; j++) {
            int32_t row = r.view.q_start[i] + j, key = n.kv_len - n.q_len + j;
            attn__append_row(&r, &r.k, io->k_scale, new_k, row, i, key);
            if (new_v) attn__append_row(&r, &r.v, io->v_scale, new_v, row, i, key);
        }
    }
    return attn__succeed(error);
}

ATTN_API size_t attn_dense_bytes(const attn_layer *layer, int32_t q_len, int32_t kv_len) {
    attn_batch batch = { 1, &q_len, &kv_len, NULL, NULL, 0, 0, 0 };
    attn_plan plan;
    if (attn__plan_check(&plan, &batch, layer, NULL) || layer->page_size) return 0;
    attn__resolve_isa(&plan);
    return attn__to_size(attn__round_up((int64_t)plan.bytes, 64) + attn__exec_size(&plan, 1));
}

ATTN_API int attn_dense(const attn_layer *layer, int32_t q_len, int32_t kv_len, const attn_io *io, void *mem,
                        size_t bytes, attn_error *error) {
    attn_batch batch = { 1, &q_len, &kv_len, NULL, NULL, 0, 0, 0 };
    size_t plan_bytes = (attn_plan_bytes(&batch, layer) + 63) / 64 * 64;
    attn_plan plan;
    int status = attn__plan_check(&plan, &batch, layer, error);
    const char *text = "layer.page_size = %a: attn_dense takes no pages";
    if (!status && layer->page_size) return attn__fail(error, ATTN_E_LAYER, text, layer->page_size, 0);
    if (!status) status = attn__check_memory("mem", mem, bytes, attn_dense_bytes(layer, q_len, kv_len), 8, error);
    if (!status) status = attn_plan_make(&plan, &batch, layer, mem, plan_bytes, error);
    if (status) return status;
    const attn_exec exec = { (char *)mem + plan_bytes, bytes - plan_bytes, 0, NULL, NULL, NULL };
    return attn_forward(&plan, layer, io, &exec, error);
}

/* Joins one row of two results; returns its lse. */
static float attn__merge_row(const attn_layer *l, const char *a, float a_lse, const char *b, float b_lse, char *o) {
    const attn__leaves *f = attn__leaves_of(l);
    const float one = 1.0f;
    int32_t bytes = attn__type_bytes(l->o_type), take_b = attn__bits_of(a_lse) == 0xff800000u, x;
    float top = a_lse > b_lse ? a_lse : b_lse, wa = attn__exp(a_lse - top), wb = attn__exp(b_lse - top);
    if (take_b || attn__bits_of(b_lse) == 0xff800000u) {
        memmove(o, take_b ? b : a, (size_t)l->v_dim * (size_t)bytes);
        return take_b ? b_lse : a_lse;
    }
    for (x = 0; x < l->v_dim; x += 256) {
        float wide[2 * 256];
        int32_t n = attn__min(256, l->v_dim - x);
        const char *at[] = { a + (int64_t)x * bytes, b + (int64_t)x * bytes };
        f->widen(wide, 256, at, 2, n, l->o_type);
        f->blend(wide, wide + 256, wa / (wa + wb), wb / (wa + wb), n);
        f->narrow(o + (int64_t)x * bytes, wide, n, l->o_type, &one);
    }
    return attn__is_finite(wa + wb) ? top + (float)attn__log(wa + wb) : wa + wb;
}

static int attn__check_merge(attn_layer *l, const attn_layer *layer, int64_t rows, const void *const *arrays,
                             attn_error *error) {
    static const char *const names[] = { "a_o", "a_lse", "b_o", "b_lse", "o", "lse" };
    int status = attn__resolve(layer, l, error), i;
    if (!status && rows < 0) status = attn__fail(error, ATTN_E_ARGUMENT, "rows = %a is negative", rows, 0);
    for (i = 0; i < 6 && !status; i++) {
        int align = i % 2 ? 4 : attn__type_bytes(l->o_type);
        status = attn__check_pointer(names[i], arrays[i], rows > 0 && i < 5, align, error);
    }
    return status;
}

ATTN_API int attn_merge(const attn_layer *layer, int64_t rows, const void *a_o, const float *a_lse, const void *b_o,
                        const float *b_lse, void *o, float *lse, attn_error *error) {
    const void *const arrays[] = { a_o, a_lse, b_o, b_lse, o, lse };
    attn_layer l;
    int status = attn__check_merge(&l, layer, rows, arrays, error);
    if (status) return status;
    if (!l.isa) l.isa = (int32_t)attn_isa_detect();
    for (int64_t i = 0; i < rows * l.heads; i++) {
        int64_t at = i * l.v_dim * attn__type_bytes(l.o_type);
        const char *a = (const char *)a_o + at, *b = (const char *)b_o + at;
        float joined = attn__merge_row(&l, a, a_lse[i], b, b_lse[i], (char *)o + at);
        if (lse) lse[i] = joined;
    }
    return attn__succeed(error);
}

ATTN_API int attn_visible(const attn_batch *batch, const attn_layer *layer, const attn_io *io, int32_t request,
                          int32_t row, int32_t key) {
    if (!batch || !layer || !batch->kv_len || request < 0 || request >= batch->n || row < 0 || key < 0) return 0;
    if (row >= attn__q_len(batch, request) || key >= batch->kv_len[request]) return 0;
    if (attn__check_mask(layer, NULL) || (layer->mask == ATTN_PREFIX && !batch->prefix)) return 0;
    if (layer->mask >= ATTN_TREE && !(io && (layer->mask == ATTN_TREE ? (const void *)io->tree : io->topk))) return 0;
    const attn__lengths n = { attn__q_len(batch, request), batch->kv_len[request],
                              layer->mask == ATTN_PREFIX ? batch->prefix[request] : 0 };
    int32_t longest = batch->max_q_len, listed = layer->topk;
    int64_t before = 0; /* rows of the requests before, by which the arrays per row are indexed */
    for (int32_t i = 0; i < batch->n && layer->mask >= ATTN_TREE; i++) {
        if (i < request) before += attn__q_len(batch, i);
        if (!batch->max_q_len) longest = attn__max(longest, attn__q_len(batch, i));
    }
    int64_t words = attn__ceil_div(longest, 32);
    const uint32_t *tree = layer->mask == ATTN_TREE ? io->tree + before * words : NULL;
    if (tree) return attn__tree_sees(layer, &n, tree, words, row, attn__tree_depth(tree + row * words, n.q_len), key);
    while (listed > 0 && io->topk[(before + row) * layer->topk + listed - 1] != key) listed--;
    attn__span s = attn__key_span(layer, &n, row);
    return (!layer->topk || listed) && (key < s.lead || (key >= s.lo && key < s.hi));
}

ATTN_API int attn_mask_bits(const attn_batch *batch, const attn_layer *layer, const attn_io *io, int32_t request,
                            uint32_t *bits, size_t count, attn_error *error) {
    attn_layer resolved;
    int status = attn__check_capacity(batch, error);
    if (!status) status = attn__resolve(layer, &resolved, error);
    if (!status) status = attn__check_lengths(batch, layer->mask, error);
    if (status) return status;
    const char *text = "request = %a, but there are %b requests";
    if (request < 0 || request >= batch->n) return attn__fail(error, ATTN_E_ARGUMENT, text, request, batch->n);
    const int32_t q_len = attn__q_len(batch, request), kv_len = batch->kv_len[request];
    const int64_t words = attn__ceil_div(kv_len, 32), all = q_len * words;
    const attn__rule rules[] = {
        { layer->mask == ATTN_TREE && !(io && io->tree), "io.tree is NULL, but the mask is TREE", 0, 0 },
        { layer->mask == ATTN_TOPK && !(io && io->topk), "io.topk is NULL, but the mask is TOPK", 0, 0 },
        { all > 0 && !bits, "bits is NULL", 0, 0 },
        { (int64_t)count < all, "count = %a is less than q_len * words = %b", (int64_t)count, all }
    };
    if (attn__check_rules(error, ATTN_E_ARGUMENT, -1, rules, ATTN__COUNT(rules))) return ATTN_E_ARGUMENT;
    if (all) memset(bits, 0, (size_t)all * sizeof *bits);
    for (int32_t row = 0; row < q_len; row++, bits += words) {
        for (int32_t key = 0; key < kv_len; key++) {
            bits[key / 32] |= (uint32_t)attn_visible(batch, layer, io, request, row, key) << (key % 32);
        }
    }
    return attn__succeed(error);
}

ATTN_API int32_t attn_window_from_radius(int32_t radius, int causal, int cross) {
    return radius < 0 || !causal || cross ? 0 : radius < INT32_MAX ? radius + 1 : INT32_MAX;
}

/* ---- >>sparse: indexer scores and the keys they choose ----------------------------------------------------------- */
/* Some heads of one row over one tile of n keys: adds weight * relu(score). */
static void attn__index_tile(const attn__run *r, const attn__strip *s, attn__span seen, int32_t first, int32_t n,
                             const float *weights, float *out) {
    const float *score = attn__scores_of(r, s, 0);
    const attn__step p = { 0, 0, 0, n, 0, 0, 0, 0, 0, r->scratch.k_rows[0], 0, 0, NULL };
    attn__key_rows(r, &r->k, s, 0, seen, first, n, p.rows);
    attn__decode_scores(r, s, &p);
    for (int32_t i = 0; i < s->rows; i++, score += attn__scores_row(r->layer)) { /* a NaN stays one */
        for (int32_t j = 0; j < n; j++) out[first + j] += weights[i] * (score[j] < 0 ? 0.0f : score[j]);
    }
}

static void attn__index_row(const attn__run *r, int32_t request, int32_t row, const float *weights, float *out) {
    attn__lengths n = attn__lengths_of(&r->view, request);
    attn__span seen = attn__union_span(r->layer, &n, row, row);
    int32_t end = attn__max(seen.lead, seen.hi), keys = attn__min(ATTN__WIDE, attn__key_tile(r->layer, ATTN_DECODE));
    int32_t head, key, first, last, heads = r->layer->heads, horizon = attn__horizon(r->layer, &n, row);
    for (key = 0; key < end; key++) out[key] = 0.0f;
    for (head = 0; head < heads; head += r->layer->row_tile) {
        attn__strip s = { request, 0, 1, row * heads + head, attn__min(r->layer->row_tile, heads - head), 0, 0, 0 };
        attn__pack_rows(r, &s);
        for (int64_t at = attn__next_tile(seen, 0, keys); at < end; at = attn__next_tile(seen, at + keys, keys)) {
            attn__clip(seen, (int32_t)at, (int32_t)attn__min64(at + keys, end), &first, &last);
            if (first < last) attn__index_tile(r, &s, seen, first, last - first, weights + head, out);
        }
    }
    for (key = seen.lead; key < horizon; key++) {
        if (key < seen.lo || key >= seen.hi) out[key] = attn__float_of(0xff800000u);
    }
}

static void attn__index_lane(void *job, int lane) {
    const attn__job *c = (const attn__job *)job;
    int32_t lanes = attn__max(1, c->exec->lanes), row, i = 0;
    attn__run r;
    attn__open(&r, c->plan, c->io, c->exec, lane);
    for (row = lane; row < c->plan->rows; row += lanes) {
        while (row >= r.view.q_start[i + 1]) i++;
        attn__index_row(&r, i, row - r.view.q_start[i], c->weights + (int64_t)row * r.layer->heads,
                        c->scores + row * c->score_row + (c->ks ? c->ks[row] : 0));
    }
}

static int attn__index_check(const attn__job *c, attn_error *error) {
    const attn_layer *l = &c->plan->resolved;
    attn__view v = attn__view_of_plan(c->plan);
    const attn__rule rules[] = {
        { l->kv_heads != 1, "layer.kv_heads = %a, but indexer scores need 1", l->kv_heads, 0 },
        { l->skip.mode, "layer.skip.mode = %a, but indexer scores skip nothing", l->skip.mode, 0 },
        { l->mask >= ATTN_TREE, "layer.mask = %a: indexer scores take no TREE and no TOPK", l->mask, 0 }
    };
    int status = attn__check_rules(error, ATTN_E_LAYER, -1, rules, ATTN__COUNT(rules));
    for (int32_t i = 0; i < c->plan->n && !status; i++) {
        attn__lengths n = attn__lengths_of(&v, i);
        int phase = n.q_len ? v.phase[i] : ATTN_DECODE;
        const attn__rule rule = { phase != ATTN_DECODE, "phase[%d] = %a, but indexer scores need DECODE", phase, 0 };
        status = attn__check_rules(error, ATTN_E_PLAN, i, &rule, 1);
        for (int32_t j = 0; j < n.q_len && !status; j++) {
            int32_t row = v.q_start[i] + j, first = c->ks ? c->ks[row] : 0, last = attn__horizon(l, &n, j);
            if (first >= 0 && (int64_t)first + last <= c->score_row) continue;
            return attn__fail_at(error, ATTN_E_ARGUMENT, i, j, "ks[%a] = %b: the row's keys do not fit score_row = %c",
                                 row, first, c->score_row);
        }
    }
    return status;
}

ATTN_API int attn_index_score(const attn_plan *plan, const attn_layer *layer, const attn_io *io, const float *weights,
                              const int32_t *ks, float *scores, int64_t score_row, const attn_exec *exec,
                              attn_error *error) {
    attn__job job = { plan, io, exec, ATTN_COMPUTE, weights, ks, scores, score_row };
    attn__run r;
    int status = attn__check_call(&r, plan, layer, io, error);
    if (!status) status = attn__check_pointer("io.q", io->q, plan->rows > 0, attn__type_bytes(layer->q_type), error);
    if (!status) status = attn__check_pointer("weights", weights, plan->rows > 0, 4, error);
    if (!status) status = attn__check_pointer("ks", ks, 0, 4, error);
    if (!status) status = attn__check_pointer("scores", scores, plan->rows > 0, 4, error);
    if (!status) status = attn__index_check(&job, error);
    if (!status) status = attn__check_cache(&r, ATTN__SCORE, error);
    if (!status) status = attn__check_exec(plan, exec, error);
    if (status) return status;
    attn__run_lanes(&job, attn__index_lane);
    return attn__succeed(error);
}

/* Orders floats as integers; 0 for what is never taken. */
static uint32_t attn__rank_of(float x) {
    uint32_t u = attn__bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u || u == 0xff800000u) return 0;
    if (u == 0x80000000u) u = 0;
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* Rank of the topk-th largest score, found eight bits at a time, 1 if there are fewer; *ties: how many of it count. */
static uint32_t attn__topk_bound(const float *x, int32_t n, int32_t topk, int32_t *ties) {
    uint32_t bound = 0, rank;
    int32_t left = topk, shift, i;
    for (shift = 24; shift >= 0; shift -= 8) {
        int32_t count[256] = { 0 }, bin = 255;
        for (i = 0; i < n; i++) {
            rank = attn__rank_of(x[i]);
            if (rank && (rank & 0xffffff00u << shift) == bound) count[rank >> shift & 255u]++;
        }
        while (bin >= 0 && count[bin] < left) left -= count[bin--];
        *ties = bin < 0 ? topk : left;
        if (bin < 0) return 1;
        bound |= (uint32_t)bin << shift;
    }
    return bound;
}

ATTN_API int attn_topk(const float *scores, int64_t score_row, int64_t rows, const int32_t *ks, const int32_t *ke,
                       int32_t topk, int32_t *indices, attn_error *error) {
    if (rows < 0) return attn__fail(error, ATTN_E_ARGUMENT, "rows = %a is negative", rows, 0);
    if (topk < 1) return attn__fail(error, ATTN_E_ARGUMENT, "topk = %a, but it must be at least 1", topk, 0);
    int status = attn__check_pointer("scores", scores, rows > 0, 4, error);
    if (!status) status = attn__check_pointer("ks", ks, 0, 4, error);
    if (!status) status = attn__check_pointer("ke", ke, rows > 0, 4, error);
    if (!status) status = attn__check_pointer("indices", indices, rows > 0, 4, error);
    for (int64_t r = 0; r < rows && !status; r++) {
        int32_t first = ks ? ks[r] : 0;
        if (first >= 0 && ke[r] >= first && ke[r] <= score_row) continue;
        status = attn__fail_name(error, ATTN_E_ARGUMENT, "", "ke[%a] = %b must be ks[%a] = %c .. score_row = %d", r,
                                 ke[r], first, score_row);
    }
    if (status) return status;
    for (int64_t r = 0; r < rows; r++, indices += topk) {
        int32_t first = ks ? ks[r] : 0, n = ke[r] - first, count = 0, ties;
        const float *x = scores + r * score_row + first;
        uint32_t bound = attn__topk_bound(x, n, topk, &ties);
        for (int32_t i = 0; i < n; i++) {
            uint32_t rank = attn__rank_of(x[i]);
            if (rank > bound || (rank == bound && ties-- > 0)) indices[count++] = i;
        }
        while (count < topk) indices[count++] = -1;
    }
    return attn__succeed(error);
}

/* ---- >>rope: rotary position embedding --------------------------------------------------------------------------- */
/* e^x for -64 <= x <= 0: 2^n by squaring, the rest by its series. */
static double attn__exp_double(double x) {
    int32_t n = (int32_t)(0.5 - x * 1.44269504088896341), i;
    double f = x + n * 0.693147180559945309, y = 1.0;
    for (i = 13; i > 0; i--) y = 1.0 + y * f / i;
    while (n--) y *= 0.5;
    return y;
}

/* Quarter turns are taken off in two steps, the first of them exact; then the series of both. */
static void attn__turn(double angle, double *cosine, double *sine) {
    double turns = angle * 0.636619772367581343;
    int64_t n = (int64_t)(turns + (turns < 0 ? -0.5 : 0.5));
    double x = angle - (double)n * 1.57079632673412561417 - (double)n * 6.07710050650619224932e-11, c = 1.0, s = 1.0;
    for (int i = 14; i > 0; i -= 2) {
        c = 1.0 - c * x * x / (i * (i - 1));
        s = 1.0 - s * x * x / (i * (i + 1));
    }
    c = n & 2 ? -c : c;
    s = n & 2 ? -s * x : s * x;
    *cosine = n & 1 ? -s : c;
    *sine = n & 1 ? c : s;
}

static int attn__rope_check(const attn_rope_input *in, attn_error *error) {
    int32_t rotary = in->rotary_dim ? in->rotary_dim : in->head_dim, i;
    int64_t head = attn__or(in->x_head, in->head_dim), row = attn__or(in->x_row, in->heads * (int64_t)in->head_dim);
    const attn__rule rules[] = {
        { (int)in->type < 0 || in->type > ATTN_BF16, "input.type = %a, but it must be f32, f16 or bf16", in->type, 0 },
        { in->heads < 1 || in->heads > 65536 || in->head_dim < 1 || in->head_dim > 65536,
          "input.heads = %a and input.head_dim = %b must be 1 .. 65536", in->heads, in->head_dim },
        { in->rotary_dim < 0 || in->rotary_dim > in->head_dim || rotary % 2,
          "input.rotary_dim = %a must be even and at most input.head_dim = %b", rotary, in->head_dim },
        { in->rows < 0, "input.rows = %a is negative", in->rows, 0 },
        { in->x_row < 0 || in->x_row >> 40 || in->x_head < 0 || in->x_head >> 40,
          "input.x_row = %a and input.x_head = %b must be 0 .. 2^40 - 1", in->x_row, in->x_head },
        { in->rows < INT64_MAX >> 20 && !attn__apart(in->rows, in->heads, row, head, in->head_dim),
          "input.x_row = %a makes rows overlap with input.x_head = %b", row, head },
        { !(in->base >= 0) || (in->base > 0 && in->base < 1) || !attn__is_finite(in->base) ||
          !attn__is_finite(in->magnitude), "input.base must be 0 or at least 1, and finite, as magnitude", 0, 0 }
    };
    int status = attn__check_rules(error, ATTN_E_ARGUMENT, -1, rules, ATTN__COUNT(rules));
    if (!status) status = attn__check_pointer("input.x", in->x, in->rows > 0, attn__type_bytes(in->type), error);
    if (!status) status = attn__check_pointer("input.positions", in->positions, in->rows > 0, 4, error);
    if (!status) status = attn__check_pointer("input.inv_freq", in->inv_freq, 0, 4, error);
    for (i = 0; in->inv_freq && !status && i < rotary / 2; i++) {
        if (in->inv_freq[i] <= 65536.0f && in->inv_freq[i] >= -65536.0f) continue;
        status = attn__fail(error, ATTN_E_ARGUMENT, "input.inv_freq[%a] = %B, but it must be -65536 .. 65536", i,
                            attn__bits_of(in->inv_freq[i]));
    }
    return status;
}

ATTN_API int attn_rope(const attn_rope_input *in, attn_error *error) {
    int status = in ? attn__rope_check(in, error) : attn__fail(error, ATTN_E_ARGUMENT, "input is NULL", 0, 0);
    if (status) return status;
    int32_t half = (in->rotary_dim ? in->rotary_dim : in->head_dim) / 2;
    int64_t head_step = attn__or(in->x_head, in->head_dim) * attn__type_bytes(in->type);
    int64_t row_step = attn__or(in->x_row, (int64_t)in->heads * in->head_dim) * attn__type_bytes(in->type);
    double slope = -attn__log(in->base != 0 ? in->base : 10000.0f) / half;
    double magnitude = in->magnitude != 0 ? in->magnitude : 1.0;
    for (int32_t i = 0; i < half; i++) {
        int32_t first = in->interleaved ? 2 * i : i, second = in->interleaved ? 2 * i + 1 : i + half;
        float frequency = in->inv_freq ? in->inv_freq[i] : (float)attn__exp_double(slope * i);
        for (int64_t row = 0; row < in->rows; row++) {
            double c, s;
            attn__turn((double)in->positions[row] * frequency, &c, &s);
            for (int32_t h = 0; h < in->heads; h++) {
                char *x = (char *)in->x + row * row_step + h * head_step;
                double a = attn__load(x, first, in->type), b = attn__load(x, second, in->type);
                attn__store(x, first, in->type, (float)((a * c - b * s) * magnitude));
                attn__store(x, second, in->type, (float)((a * s + b * c) * magnitude));
            }
        }
    }
    return attn__succeed(error);
}

/* Decimal digits with an optional point and exponent to a float >= 0; -1 if it is anything else. */
ATTN__COLD float attn__parse(const char *text) {
    double x = 0;
    int32_t exponent = 0, digits = 0;
    for (; *text >= '0' && *text <= '9'; text++, digits++) x = x * 10 + (*text - '0');
    for (text += *text == '.'; *text >= '0' && *text <= '9'; text++, digits++, exponent--) x = x * 10 + (*text - '0');
    if (digits && (*text == 'e' || *text == 'E')) {
        int32_t e = 0, sign = text[1] == '-' ? -1 : 1;
        text += text[1] == '-' || text[1] == '+' ? 2 : 1;
        if (!*text) return -1.0f;
        for (; *text >= '0' && *text <= '9'; text++) e = attn__min(1000, e * 10 + (*text - '0'));
        exponent += sign * e;
    }
    for (; exponent > 0 && x < 1e40; exponent--) x *= 10;
    for (; exponent < 0 && x > 0; exponent++) x /= 10;
    return digits && !*text && x < 3e38 ? (float)x : -1.0f;
}

ATTN_API int attn_skip_from_env(attn_skip *skip, char *(*get)(const char *name), attn_error *error) {
    static const char *const names[2] = { "ATTN_SKIP_SOFTMAX_PREFILL_THRESHOLD_SCALE_FACTOR",
                                          "ATTN_SKIP_SOFTMAX_DECODE_THRESHOLD_SCALE_FACTOR" };
    float values[2];
    if (!skip || !get) return attn__fail(error, ATTN_E_ARGUMENT, "skip or get is NULL", 0, 0);
    for (int i = 0; i < 2; i++) {
        const char *text = get(names[i]);
        values[i] = text ? attn__parse(text) : 0;
        if (values[i] >= 0) continue;
        return attn__fail_name(error, ATTN_E_ARGUMENT, names[i], " is not a number of 0 or more", 0, 0, 0, 0);
    }
    const attn_skip read = { values[0] > 0 || values[1] > 0 ? ATTN_SKIP_FACTOR : ATTN_SKIP_OFF, values[0], values[1] };
    *skip = read;
    return attn__succeed(error);
}

/* ---- >>modes: what an engine's lengths count --------------------------------------------------------------------- */
enum { ATTN__PAD, ATTN__ONE, ATTN__GIVEN, ATTN__DRAFTS }; /* E is 0, 1, extend_lens or draft_tokens */
ATTN__COLD int attn__mode_rows(attn_mode mode) {
    if (mode == ATTN_MODE_IDLE) return ATTN__PAD;
    if (mode == ATTN_MODE_DECODE || mode == ATTN_MODE_DRAFT_DECODE) return ATTN__ONE;
    return mode == ATTN_MODE_TARGET_VERIFY || mode == ATTN_MODE_DRAFT_EXTEND_V2 ? ATTN__DRAFTS : ATTN__GIVEN;
}

/* E and KV of one request, none of a pad; returns its phase. */
static int32_t attn__mode_lengths(attn_mode mode, const attn_mode_input *in, int32_t i, int32_t *rows, int64_t *keys) {
    int from = attn__mode_rows(mode), pad = from == ATTN__PAD || in->seq_lens[i] == -1;
    int decode = from == ATTN__ONE || from == ATTN__DRAFTS || mode == ATTN_MODE_DRAFT_EXTEND;
    *rows = pad ? 0 : from == ATTN__ONE ? 1 : from == ATTN__GIVEN ? in->extend_lens[i] : in->draft_tokens;
    *keys = pad ? 0 : in->seq_lens[i];
    if (!pad && mode == ATTN_MODE_TARGET_VERIFY) *keys += in->draft_tokens;
    if (!pad && mode == ATTN_MODE_DRAFT_DECODE) *keys += (int64_t)in->draft_step + 1;
    return in->phase ? in->phase[i] : decode ? ATTN_DECODE : ATTN_PREFILL;
}

static int attn__mode_check(attn_mode mode, const attn_mode_input *in, attn_error *error) {
    int32_t from = attn__mode_rows(mode), drafts = in->draft_tokens;
    const attn__rule rules[] = {
        { (uint32_t)mode > ATTN_MODE_DRAFT_DECODE, "mode = %a is no attn_mode", (int64_t)mode, 0 },
        { in->n < 0, "input.n = %a is negative", in->n, 0 },
        { from == ATTN__DRAFTS && drafts < 1, "input.draft_tokens = %a, but this mode needs 1 or more", drafts, 0 },
        { drafts < 0, "input.draft_tokens = %a is negative", drafts, 0 },
        { in->draft_step < 0, "input.draft_step = %a is negative", in->draft_step, 0 },
        { in->max_q_len < 0, "input.max_q_len = %a is negative", in->max_q_len, 0 },
        { in->max_kv_len < 0, "input.max_kv_len = %a is negative", in->max_kv_len, 0 },
        { in->max_rows < 0, "input.max_rows = %a is negative", in->max_rows, 0 },
        { in->n > 0 && from != ATTN__PAD && !in->seq_lens, "input.seq_lens is NULL", 0, 0 },
        { in->n > 0 && from == ATTN__GIVEN && !in->extend_lens, "input.extend_lens is NULL", 0, 0 }
    };
    int status = attn__check_rules(error, ATTN_E_ARGUMENT, -1, rules, ATTN__COUNT(rules));
    for (int32_t i = 0; i < in->n && !status; i++) {
        int64_t keys, prefix;
        int32_t rows, phase = attn__mode_lengths(mode, in, i, &rows, &keys);
        int32_t seq_len = from == ATTN__PAD ? -1 : in->seq_lens[i];
        prefix = in->prefix_lens && seq_len != -1 ? in->prefix_lens[i] : keys - rows;
        const attn__rule request[] = {
            { phase != ATTN_PREFILL && phase != ATTN_DECODE, "phase[%d] = %a is no attn_phase", phase, 0 },
            { seq_len < -1, "seq_lens[%d] = %a is negative; a pad has -1", seq_len, 0 },
            { rows < 0, "extend_lens[%d] = %a is negative", rows, 0 },
            { keys > INT32_MAX, "seq_lens[%d] = %a: with the draft tokens it is above 2^31-1", seq_len, 0 },
            { rows > keys, "seq_lens[%d] = %a, but in this mode it counts the %b new rows too", seq_len, rows }
        };
        status = attn__check_rules(error, ATTN_E_BATCH, i, request, ATTN__COUNT(request));
        const char *text = "prefix_lens[%d] = %a, but with seq_lens[%d] = %b this mode has a prefix of %c";
        if (status || prefix == keys - rows) continue;
        return attn__fail_at(error, ATTN_E_BATCH, i, -1, text, prefix, seq_len, keys - rows);
    }
    return status;
}

ATTN_API int attn_batch_from_mode(attn_batch *batch, attn_mode mode, const attn_mode_input *input, int32_t *mem,
                                  size_t count, attn_error *error) {
    if (!batch || !input) return attn__fail(error, ATTN_E_ARGUMENT, batch ? "input is NULL" : "batch is NULL", 0, 0);
    int status = attn__mode_check(mode, input, error);
    if (status) return status;
    int64_t keys, n = input->n;
    if (n > 0 && !mem) return attn__fail(error, ATTN_E_MEMORY, "mem is NULL", 0, 0);
    const char *text = "count = %a is less than 3 * n = %b";
    if (count / 3 < (size_t)n) return attn__fail(error, ATTN_E_MEMORY, text, (int64_t)count, 3 * n);
    for (int32_t i = 0; i < n; i++) {
        mem[2 * n + i] = attn__mode_lengths(mode, input, i, &mem[i], &keys);
        mem[n + i] = (int32_t)keys;
    }
    memset(batch, 0, sizeof *batch);
    batch->n = input->n;
    batch->q_len = mem;
    batch->kv_len = n ? mem + n : mem;
    batch->phase = n ? mem + 2 * n : mem;
    batch->max_q_len = input->max_q_len;
    batch->max_kv_len = input->max_kv_len;
    batch->max_rows = input->max_rows;
    return attn__succeed(error);
}

/* ---- >>meta: the index arrays of a step -------------------------------------------------------------------------- */
enum { ATTN__PER_REQUEST, ATTN__PER_ROW, ATTN__PER_Q, ATTN__PER_COLUMN, ATTN__PER_ROW_COLUMN };

typedef struct attn__meta_array {
    int32_t offset, want, shape, extra; /* of its pointer in attn_meta; bit that asks for it; ...; entries beyond it */
} attn__meta_array;

#define ATTN__ARRAY(name, want, shape, extra) { offsetof(attn_meta, name), ATTN_META_##want, ATTN__PER_##shape, extra }
static const attn__meta_array attn__meta_arrays[] = {
    ATTN__ARRAY(cu_seqlens_q, CU_SEQLENS, REQUEST, 1), ATTN__ARRAY(cu_seqlens_k, CU_SEQLENS, REQUEST, 1),
    ATTN__ARRAY(seqlens_expand, EXPAND, ROW, 0), ATTN__ARRAY(positions, POSITIONS, ROW, 0),
    ATTN__ARRAY(row_request, POSITIONS, ROW, 0), ATTN__ARRAY(sparse_len, SPARSE, ROW, 0),
    ATTN__ARRAY(cu_sparse, SPARSE, ROW, 1), ATTN__ARRAY(indexer_ks, INDEXER, ROW, 0),
    ATTN__ARRAY(indexer_ke, INDEXER, ROW, 0), ATTN__ARRAY(topk_offset, TOPK_OFFSET, ROW, 0),
    ATTN__ARRAY(page_table, PAGE_TABLE, COLUMN, 0), ATTN__ARRAY(row_table, ROW_TABLE, ROW_COLUMN, 0),
    ATTN__ARRAY(pad_row, PAD, Q, 0), ATTN__ARRAY(unpad_row, PAD, ROW, 0), ATTN__ARRAY(pad_len, PAD, REQUEST, 0),
    ATTN__ARRAY(row_q_len, ROW_TABLE, ROW, 0), ATTN__ARRAY(row_kv_len, ROW_TABLE, ROW, 0)
};

static int64_t attn__meta_count(const attn_meta *m, int32_t shape) {
    int64_t requests = m->n, rows = m->max_rows;
    const int64_t counts[] = { requests, rows, requests * m->max_q_len, requests * m->table_row, rows * m->table_row };
    return counts[shape];
}

/* Places the wanted arrays at `words`, if not NULL; returns the int32s used. Counts are capped: their sum fits. */
static int64_t attn__meta_place(attn_meta *m, int32_t want, int32_t *words) {
    int64_t used = 0;
    for (int i = 0; i < ATTN__COUNT(attn__meta_arrays); i++) {
        const attn__meta_array *a = &attn__meta_arrays[i];
        int32_t *at = words ? words + used : NULL;
        if (!(want & a->want)) continue;
        if (at) memcpy((char *)m + a->offset, &at, sizeof at);
        used += attn__round_up(attn__min64(attn__meta_count(m, a->shape) + a->extra, (int64_t)1 << 58), 4);
    }
    if (m->row_q_len) {
        attn_batch rows = { (int32_t)m->max_rows, m->row_q_len, m->row_kv_len, m->row_q_len, NULL, m->max_rows > 0,
                            m->max_kv_len, m->max_rows }; /* a row's phase, DECODE, is 1 as its E */
        m->row_batch = rows;
    }
    return attn__max64(4, used);
}

/* All that the size depends on: n, capacities, table_row and bytes of *m. As for a FULL mask, so that E may be > KV. */
ATTN__COLD int attn__meta_check(attn_meta *m, const attn_batch *batch, const attn_meta_input *in, int32_t want,
                            attn_error *error) {
    int tables = (want & (ATTN_META_PAGE_TABLE | ATTN_META_ROW_TABLE)) != 0, sparse = (want & ATTN_META_SPARSE) != 0;
    int32_t topk = in ? in->topk : 0, page_size = in ? in->page_size : 0;
    const attn__rule inputs[] = {
        { (want & ~ATTN_META_ALL) != 0, "want = %a has unknown bits", want, 0 },
        { (tables || sparse) && !in, "input is NULL", 0, 0 },
        { sparse && topk < 1, "input.topk = %a, but it must be at least 1", topk, 0 },
        { tables && page_size < 1, "input.page_size = %a, but it must be at least 1", page_size, 0 }
    };
    int status = attn__check_capacity(batch, error);
    memset(m, 0, sizeof *m);
    if (!status) status = attn__check_rules(error, ATTN_E_ARGUMENT, -1, inputs, ATTN__COUNT(inputs));
    if (!status) status = attn__measure(batch, ATTN_FULL, &m->max_q_len, &m->max_kv_len, &m->max_rows, error);
    if (status) return status;
    m->n = batch->n;
    if (tables) m->table_row = attn__ceil(m->max_kv_len, page_size);
    int64_t words = attn__meta_place(m, want, NULL);
    m->bytes = (size_t)words * sizeof(int32_t);
    const attn__rule rules[] = {
        { words >= (int64_t)1 << 58 || (uint64_t)words > SIZE_MAX / sizeof(int32_t),
          "batch.max_rows = %a: the arrays would not fit into any memory", m->max_rows, 0 },
        { want & ATTN_META_PAD && attn__meta_count(m, ATTN__PER_Q) > INT32_MAX,
          "batch.n = %a gives more than 2^31-1 padded rows with batch.max_q_len = %b", m->n, m->max_q_len }
    };
    return attn__check_rules(error, ATTN_E_BATCH, -1, rules, ATTN__COUNT(rules));
}

/* Sum of min(max(0, x), topk) over x <= last. */
static int64_t attn__clamped_sum(int64_t last, int64_t topk) {
    int64_t x = attn__min64(last, topk);
    return last <= 0 ? 0 : x * (x + 1) / 2 + (last - x) * topk;
}

static int attn__meta_check_requests(const attn_meta *m, const attn_batch *batch, const attn_meta_input *in,
                                     int32_t want, attn_error *error) {
    int64_t sparse = 0, tokens = in ? in->req_to_token_row : 0;
    int32_t requests = in ? in->requests : 0, i, status = ATTN_OK;
    for (i = 0; i < batch->n && !status; i++) {
        int64_t e = attn__q_len(batch, i), kv = batch->kv_len[i], padded = kv - e + m->max_q_len;
        int32_t listed = m->table_row && kv > 0, row = listed && in->req_index ? in->req_index[i] : i;
        if (want & ATTN_META_SPARSE) sparse += attn__clamped_sum(kv, in->topk) - attn__clamped_sum(kv - e, in->topk);
        if (listed && !in->req_to_token) return attn__fail(error, ATTN_E_ARGUMENT, "input.req_to_token is NULL", 0, 0);
        const attn__rule rules[] = {
            { want & ATTN_META_PAD && padded > INT32_MAX, "kv_len[%d] = %a: padded it is above 2^31-1", kv, 0 },
            { sparse > INT32_MAX, "q_len[%d] = %a: the sum of sparse_len is above 2^31-1", e, 0 },
            { listed && (row < 0 || row >= requests), "req_index[%d] = %a, but input.requests = %b", row, requests },
            { listed && kv > tokens, "kv_len[%d] = %a is more than input.req_to_token_row = %b", kv, tokens }
        };
        status = attn__check_rules(error, ATTN_E_BATCH, i, rules, ATTN__COUNT(rules));
    }
    return status;
}

static void attn__meta_row(const attn_meta *m, int32_t row, int32_t request, int32_t position, int32_t topk) {
    int32_t first = m->keys, seen = attn__max(-1, position) + 1; /* its request's first key of all; keys it sees */
    if (m->seqlens_expand) m->seqlens_expand[row] = seen;
    if (m->positions) m->positions[row] = position;
    if (m->row_request) m->row_request[row] = request;
    if (m->indexer_ks) m->indexer_ks[row] = first;
    if (m->indexer_ke) m->indexer_ke[row] = first + seen;
    if (m->topk_offset) m->topk_offset[row] = first;
    if (m->row_q_len) m->row_q_len[row] = 1;
    if (m->row_kv_len) m->row_kv_len[row] = seen;
    if (!m->sparse_len) return;
    m->sparse_len[row] = attn__min(seen, topk);
    m->cu_sparse[row + 1] = m->cu_sparse[row] + m->sparse_len[row];
}

/* The pages of one request. Columns without a key become -1: no page, so reading one is caught. */
static void attn__meta_pages(int32_t *to, int64_t columns, const attn_meta_input *in, int32_t row, int32_t kv_len) {
    int64_t pages = attn__ceil_div(kv_len, in->page_size);
    for (int64_t p = 0; p < columns; p++) {
        int32_t slot = p < pages ? in->req_to_token[row * in->req_to_token_row + p * in->page_size] : -1;
        to[p] = slot < 0 ? -1 : slot / in->page_size;
    }
}

static void attn__meta_fill(attn_meta *m, const attn_batch *batch, const attn_meta_input *in) {
    int64_t width = m->table_row;
    if (m->cu_seqlens_q) m->cu_seqlens_q[0] = m->cu_seqlens_k[0] = 0;
    if (m->cu_sparse) m->cu_sparse[0] = 0;
    for (int32_t i = 0; i < batch->n; i++) {
        int32_t e = attn__q_len(batch, i), kv = batch->kv_len[i];
        int32_t *padded = m->pad_row ? m->pad_row + i * m->max_q_len : NULL;
        if (m->pad_len) m->pad_len[i] = (int32_t)((int64_t)kv - e + m->max_q_len);
        for (int32_t j = 0; padded && j < m->max_q_len; j++) padded[j] = j < e ? m->rows + j : -1;
        for (int32_t j = 0; padded && j < e; j++) m->unpad_row[m->rows + j] = i * m->max_q_len + j;
        for (int32_t j = 0; j < e; j++) attn__meta_row(m, m->rows + j, i, kv - e + j, m->sparse_len ? in->topk : 0);
        int32_t from = width && in->req_index ? in->req_index[i] : i;
        int32_t *to = m->row_table ? m->row_table + m->rows * width : NULL;
        if (m->page_table) attn__meta_pages(m->page_table + i * width, width, in, from, kv);
        if (to && e > 0) attn__meta_pages(to, width, in, from, kv);
        for (int32_t j = 1; to && j < e; j++) memcpy(to + j * width, to, (size_t)width * sizeof *to);
        m->rows += e;
        m->keys += kv;
        if (m->cu_seqlens_q) m->cu_seqlens_q[i + 1] = m->rows;
        if (m->cu_seqlens_k) m->cu_seqlens_k[i + 1] = m->keys;
    }
    for (int32_t i = m->rows; m->row_q_len && i < m->max_rows; i++) m->row_q_len[i] = m->row_kv_len[i] = 0;
}

ATTN_API size_t attn_meta_bytes(const attn_batch *batch, const attn_meta_input *input, int32_t want) {
    attn_meta m;
    return attn__meta_check(&m, batch, input, want, NULL) ? 0 : m.bytes;
}

ATTN_API int attn_meta_make(attn_meta *meta, const attn_batch *batch, const attn_meta_input *input, int32_t want,
                            void *mem, size_t bytes, attn_error *error) {
    attn_meta m;
    if (!meta) return attn__fail(error, ATTN_E_ARGUMENT, "meta is NULL", 0, 0);
    int status = attn__meta_check(&m, batch, input, want, error);
    if (!status) status = attn__check_lengths(batch, ATTN_FULL, error);
    if (!status) status = attn__meta_check_requests(&m, batch, input, want, error);
    if (!status) status = attn__check_memory("mem", mem, bytes, m.bytes, 4, error);
    if (status) return status;
    attn__meta_place(&m, want, (int32_t *)mem);
    attn__meta_fill(&m, batch, input);
    *meta = m;
    return attn__succeed(error);
}

#if defined(__clang__)
#pragma STDC FP_CONTRACT DEFAULT
#if defined(__x86_64__)
#pragma float_control(pop)
#endif
#elif defined(__GNUC__) && !defined(__TINYC__)
#pragma GCC pop_options
#elif defined(_MSC_VER)
#pragma float_control(pop)
#pragma fp_contract(on)
#endif

#endif /* ATTN_IMPLEMENTED */

/* MIT License, copyright (c) 2026 the attn.h authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
   documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
   rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
   permit persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright
   notice and this permission notice shall be included in all copies or substantial portions of the Software.
   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
   WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
   OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
   OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE. */
