/* threads.h - a parallel_for on real threads, for the test programs. */
#ifndef TESTS_THREADS_H
#define TESTS_THREADS_H

#include <pthread.h>
#include <stdlib.h>

enum { THREAD_LANES = 16 };

typedef struct lane_call {
    void (*fn)(void *ctx, int lane);
    void *ctx;
    int lane;
} lane_call;

static void *lane_main(void *user) {
    lane_call *call = (lane_call *)user;
    call->fn(call->ctx, call->lane);
    return NULL;
}

/* attn_exec.parallel_for: every lane is a thread. */
static void thread_lanes(void *user, int lanes, void (*fn)(void *ctx, int lane), void *ctx) {
    pthread_t threads[THREAD_LANES];
    lane_call calls[THREAD_LANES];
    int i;
    (void)user;
    if (lanes > THREAD_LANES) abort();
    for (i = 0; i < lanes; i++) {
        calls[i].fn = fn;
        calls[i].ctx = ctx;
        calls[i].lane = i;
        if (pthread_create(&threads[i], NULL, lane_main, &calls[i]) != 0) abort();
    }
    for (i = 0; i < lanes; i++) pthread_join(threads[i], NULL);
}

#endif
