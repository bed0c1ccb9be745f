/* ref.h - the oracle: attention in double for every (query, key) pair, straight from the definitions, and conversions
   of its own for the types of 16 and 8 bits. It includes nothing of the library under test. */
#ifndef REF_H
#define REF_H

#include <stddef.h>
#include <stdint.h>

/* One request. Arrays are packed: q, o [row][head][dim], k, v [key][kv_head][dim], lse and bounds [row][head]. */
typedef struct ref_problem {
    int q_len, kv_len, heads, kv_heads, head_dim, v_dim;
    int causal;                     /* 0: every key is a candidate, but see tree */
    int chunk;                      /* causal: only keys of the row's own chunk of so many positions; 0: any */
    int prefix_lm, prefix;          /* causal, but every row sees the first `prefix` keys */
    int block;                      /* rows come in blocks of so many and see their whole block; 0: no blocks */
    const uint32_t *tree;           /* [row][tree_words] bits, lowest first: which of the q_len new keys; or NULL */
    int tree_words;
    const int32_t *list;            /* causal: [row][list_keys] of what it may see, below 0: nothing; or NULL */
    int list_keys;
    int window_left, window_right;  /* keys at or before / at or after the query, itself included; 0: no limit */
    int sink_keys;                  /* keys below this stay visible outside the window */
    double scale, softcap;          /* softcap 0: off */
    int fast_int8;                  /* each row of a head of q counts as int8 times the largest |q| / 127 */
    const double *q, *k, *v;
    const double *k_scale, *v_scale;  /* [key][kv_head] what an element of k or v is worth; NULL: 1 */
    const double *sinks;            /* [head] or NULL */
    const double *alibi;            /* [head] slope of key - position, or NULL */
    double *o, *lse;
    double *reach;                  /* by how many roundoffs a logit of the row may be off: scales * sum |q[d] k[d]| */
    double *v_max;                  /* the largest |v| a row sees */
} ref_problem;

void ref_attention(const ref_problem *p);

/* sees[key] = 1 if row `row` of p sees the key, else 0, for all kv_len keys */
void ref_row(const ref_problem *p, int row, unsigned char *sees);

/* The same for one key */
int ref_sees(const ref_problem *p, int row, int key);

/* E4M3 has no infinities and only S.1111.111 as NaN; E5M2 is cut off an f16; INT8 is -127 .. 127. */
enum { REF_F32 = 0, REF_F16, REF_BF16, REF_E4M3, REF_E5M2, REF_INT8 };

size_t ref_size(int type);
double ref_decode(int type, const void *at);

/* To nearest, ties to even. Overflow: an infinity in the 16-bit types, the largest finite value in the 8-bit types.
   NaN: 0x7F in E4M3 and E5M2, 0 in INT8. Not for several threads at once. */
void ref_encode(int type, float value, void *at);

/* Half an ulp of the type, one of 16 or 32 bits, at |value|: the rounding of a stored output. */
double ref_rounding(int type, double value);

#endif
