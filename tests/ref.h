/* ref.h - the oracle: attention in double for every (query, key) pair, straight from the definitions, and conversions
   of its own for the 16-bit types. It includes nothing of the library under test. */
#ifndef REF_H
#define REF_H

#include <stddef.h>

/* One request. Arrays are packed: q, o [row][head][dim], k, v [key][kv_head][dim], lse and bounds [row][head]. */
typedef struct ref_problem {
    int q_len, kv_len, heads, kv_heads, head_dim, v_dim;
    int causal;                     /* 0: every key is a candidate */
    int chunk;                      /* causal: only keys of the row's own chunk of so many positions; 0: any */
    int prefix_lm, prefix;          /* causal, but every row sees the first `prefix` keys */
    int block;                      /* rows come in blocks of so many and see their whole block; 0: no blocks */
    int window_left, window_right;  /* keys at or before / at or after the query, itself included; 0: no limit */
    int sink_keys;                  /* keys below this stay visible outside the window */
    double scale, softcap;          /* softcap 0: off */
    const double *q, *k, *v;
    const double *sinks;            /* [head] or NULL */
    const double *alibi;            /* [head] slope of key - position, or NULL */
    double *o, *lse;
    double *reach;                  /* by how many roundoffs a logit of the row may be off: |scale| * sum |q[d] k[d]| */
    double *v_max;                  /* the largest |v| a row sees */
} ref_problem;

void ref_attention(const ref_problem *p);

/* 1 if row `row` of p sees key `key` */
int ref_sees(const ref_problem *p, int row, int key);

enum { REF_F32 = 0, REF_F16 = 1, REF_BF16 = 2 };

size_t ref_size(int type);
double ref_decode(int type, const void *at);
void ref_encode(int type, float value, void *at);  /* to nearest, ties to even; overflow becomes an infinity */

/* Half an ulp of the type at |value|: the rounding of a stored output. */
double ref_rounding(int type, double value);

#endif
