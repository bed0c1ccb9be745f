/* grid.cu - how the blocks of a grid divide the rows or keys of all requests, and agree on the first fault. */
#ifndef ATTN_GRID_CU
#define ATTN_GRID_CU

#include "spans.cu"

/* Pieces of at most `size` rows (starts: q_start) or keys (kv_start), none of two requests. Those of request i have the
   numbers from starts[i] / size + i on, of which the last may be of an empty piece: so they are found without a sum
   over requests. A block has a run of them, so that it searches for a request only once. */
struct walk {
    const int *starts;
    int size, request;
    i64 at, end;
};

DEVICE i64 first_piece(const int *starts, int size, int request) { return (i64)(starts[request] / size) + request; }

/* The last request with starts[i] <= x. */
DEVICE int request_at(const int *starts, int n, i64 x) {
    int low = 0;
    int high = n;
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (starts[middle] <= x) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

DEVICE walk walk_open(const int *starts, int n, int size) {
    u32 pieces = (u32)first_piece(starts, size, n); /* below 2^32, and a division of 64 bits is a long one */
    u32 share = pieces / gridDim.x;
    u32 rest = pieces % gridDim.x;
    i64 begin = (i64)share * blockIdx.x + min_(rest, blockIdx.x);
    walk w = { starts, size, 0, begin, begin + share + (blockIdx.x < rest) };
    int high = n;
    while (high - w.request > 1) {
        int middle = w.request + (high - w.request) / 2;
        if (first_piece(starts, size, middle) <= w.at) {
            w.request = middle;
        } else {
            high = middle;
        }
    }
    return w;
}

/* The next piece: [first, last) of w->request. */
DEVICE bool walk_next(walk *w, int *first, int *last) {
    while (w->at < w->end) {
        while (first_piece(w->starts, w->size, w->request + 1) <= w->at) w->request++;
        i64 begin = (w->at++ - first_piece(w->starts, w->size, w->request)) * w->size;
        int length = w->starts[w->request + 1] - w->starts[w->request];
        if (begin >= length) continue;
        *first = (int)begin;
        *last = (int)min_((i64)length, begin + w->size);
        return true;
    }
    return false;
}

#define NO_FAULT ~0ull

/* The smallest number that any block found, NO_FAULT if none found one. Called by one thread of each block, which gives
   its block's; true in the block that is the last to come, which then has the smallest of all. */
DEVICE bool agree(attn_cu_verdict *verdict, u64 *least) {
    u64 *first = (u64 *)&verdict->first;
    if (*least != NO_FAULT) atomicMax(first, ~*least);
    __threadfence();
    if (atomicAdd(&verdict->blocks, 1) != (int)gridDim.x - 1) return false;
    __threadfence();
    *least = ~atomicMax(first, 0ull);
    return true;
}

#endif
