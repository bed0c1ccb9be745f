/* llm_ref.h - the oracle of examples/llm.c: writes small random checkpoints of both formats, reads them, and computes
   logits in double, straight from the definitions. It includes nothing of the library and nothing of llm.c. */
#ifndef LLM_REF_H
#define LLM_REF_H

#include <stdint.h>

enum { LLM_LM = 0, LLM_LLAMA2C };          /* formats */
enum { LLM_F32 = 0, LLM_F16, LLM_INT8 };   /* types of the matrices of an .lm */
enum { LLM_LAYERS = 4 };                   /* of a model that is written, at most */

typedef struct llm_shape {
    int format, weights, shared;           /* shared: the classifier is the embedding */
    int dim, hidden, layers, heads, kv_heads, head_dim, vocab, max_len;
    int window[LLM_LAYERS], rotary[LLM_LAYERS];
    double theta, eps;
    double sharp;                          /* wq is multiplied by it: attention to few keys; 0: 1 */
} llm_shape;

/* Returns the bytes written; 0: the file could not be written. */
long llm_ref_write(const llm_shape *shape, uint64_t seed, const char *path);

typedef struct llm_ref_layer {
    int window, rotary;
    double *norm_att, *wq, *wk, *wv, *wo, *norm_ffn, *w1, *w2, *w3;
} llm_ref_layer;

typedef struct llm_ref {
    int dim, hidden, layers, heads, kv_heads, head_dim, vocab, max_len, shared;
    double theta, eps;
    llm_ref_layer *layer;
    double *embedding, *norm_final, *classifier;
} llm_ref;

/* Aborts if the file is not what llm_ref_write writes. */
void llm_ref_open(llm_ref *m, const char *path);
void llm_ref_close(llm_ref *m);

typedef struct llm_ref_pass {
    int kv_type;                           /* REF_F16 .. of ref.h: K and V as such a cache holds them; 0: exact */
    int relative;                          /* 1: by other formulas, which must give the same */
    double noise;                          /* roundoff of the arithmetic to be imitated, 0: none; draws from `seed` */
    uint64_t seed;
} llm_ref_pass;

/* logits[n][vocab] of the tokens at positions 0 .. n - 1 */
void llm_ref_logits(const llm_ref *m, const llm_ref_pass *pass, const int32_t *token, int n, double *logits);

#endif
