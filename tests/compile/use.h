/* use.h - a caller in the common subset of C99 and C++11: two rows over three keys, answers known by hand. */
#ifndef USE_H
#define USE_H

#include "../../attn.h"

#define USE_HEADS 2
#define USE_DIM 4

/* q = k = 0, so each row is the mean of the values it sees: 0.5 and 1. Returns 0 when all is right. */
static int use_attn(void) {
    static double memory[1 << 16];
    float q[2 * USE_HEADS * USE_DIM], k[3 * USE_HEADS * USE_DIM], v[3 * USE_HEADS * USE_DIM];
    float o[2 * USE_HEADS * USE_DIM];
    attn_layer layer;
    attn_io io;
    attn_error error;
    int i;
    memset(&layer, 0, sizeof layer);
    memset(&io, 0, sizeof io);
    memset(q, 0, sizeof q);
    memset(k, 0, sizeof k);
    memset(o, 0, sizeof o);
    for (i = 0; i < 3 * USE_HEADS * USE_DIM; i++) v[i] = (float)(i / (USE_HEADS * USE_DIM));
    layer.heads = USE_HEADS;
    layer.head_dim = USE_DIM;
    layer.row_tile = 16;
    layer.workers = 2;
    io.q = q;
    io.k = k;
    io.v = v;
    io.o = o;
    if (attn_dense_bytes(&layer, 2, 3) > sizeof memory) return 1;
    if (attn_dense(&layer, 2, 3, &io, memory, sizeof memory, &error) != ATTN_OK) return 2;
    for (i = 0; i < USE_HEADS * USE_DIM; i++) {
        if (o[i] < 0.49999f || o[i] > 0.50001f) return 3;
        if (o[USE_HEADS * USE_DIM + i] < 0.99999f || o[USE_HEADS * USE_DIM + i] > 1.00001f) return 4;
    }
    layer.heads = 0;
    if (attn_dense(&layer, 2, 3, &io, memory, sizeof memory, &error) != ATTN_E_LAYER) return 5;
    return 0;
}

#endif
