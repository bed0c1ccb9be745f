/* count.c - a few calls of attn.h for a program that counts instructions; see tests/instructions.sh. Each case is a
   function, by whose name its instructions are found; prints `case units` lines: multiply-adds, or requests. valgrind
   has no AVX-512, so the AVX2 and the portable leaves are what is counted. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bench.h"

#define COUNTED __attribute__((noinline))

static COUNTED void counted_prompt_avx2(bench_run *r) {
    run_once(r);
}

static COUNTED void counted_decode_avx2(bench_run *r) {
    run_once(r);
}

static COUNTED void counted_verify_avx2(bench_run *r) {
    run_once(r);
}

static COUNTED void counted_prompt_scalar(bench_run *r) {
    run_once(r);
}

static COUNTED void counted_decode_scalar(bench_run *r) {
    run_once(r);
}

static COUNTED void counted_plan(bench_run *r) {
    attn_error error;
    must(attn_plan_make(&r->plan, &r->batch, &r->layer, r->plan_mem, attn_plan_bytes(&r->batch, &r->layer), &error),
         &error);
}

typedef struct counted {
    const char *name;
    void (*run)(bench_run *r);
    bench_case c;
    int32_t requests;
} counted;

int main(void) {
    enum { AVX2 = ATTN_ISA_AVX2, SCALAR = ATTN_ISA_SCALAR };
    static const counted cases[] = {
        { "prompt_avx2", counted_prompt_avx2, { ATTN_PREFILL, 0, ATTN_F32, 1, 1, 128, 768, 768, AVX2, 0, 0 }, 1 },
        { "decode_avx2", counted_decode_avx2, { ATTN_DECODE, 0, ATTN_F16, 8, 2, 128, 1, 2048, AVX2, 0, 0 }, 1 },
        { "verify_avx2", counted_verify_avx2, { ATTN_DECODE, 0, ATTN_BF16, 8, 2, 64, 8, 512, AVX2, 0, 0 }, 1 },
        { "prompt_scalar", counted_prompt_scalar, { ATTN_PREFILL, 0, ATTN_F32, 1, 1, 64, 64, 64, SCALAR, 0, 0 }, 1 },
        { "decode_scalar", counted_decode_scalar, { ATTN_DECODE, 0, ATTN_F32, 4, 1, 64, 1, 512, SCALAR, 0, 0 }, 1 },
        { "plan", counted_plan, { ATTN_DECODE, 0, ATTN_F32, 32, 8, 16, 1, 64, SCALAR, 0, 16 }, 256 }
    };
    pool *threads = pool_start(1);
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const counted *c = &cases[i];
        bench_run *r;
        if (c->c.isa > (int32_t)attn_isa_detect()) continue;
        r = run_open(&c->c, c->requests, NULL, threads);
        r->copies = 1;
        c->run(r);
        printf("%s %.0f\n", c->name, c->requests > 1 ? c->requests : 2.0 * c->c.dim * c->c.heads *
               pairs_of(&c->c, c->c.kv_len));
        run_close(r);
    }
    return 0;
}
