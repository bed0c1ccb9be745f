/* hello.c - the smallest complete program: three new query rows over five keys, causal, two heads.
   Build: cc -I. examples/hello.c -o hello        prints 1, 1.5, 2: the mean of the values that each row sees */
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
