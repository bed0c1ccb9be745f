/* job_system.c - attention as tasks of your own job system, and inside a frame budget.

   Shows   attn_check once per layer, then attn_task for every task, instead of attn_forward: (a) on a small thread
           pool, (b) on one thread, a few tasks a frame, as a game would. Both give the bits of attn_forward.
   Build   cc -I. examples/job_system.c -o job_system -lpthread
   Result  exit status 0 if the bits are the same, else 1. Times are printed, not judged. Under _WIN32 the pool is
           replaced by a plain loop. */
#ifndef _WIN32
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#endif
#include <time.h>

#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REQUESTS = 4,
    ROWS = 192 + 64 + 1 + 1,
    KEYS = 700 + 64 + 3000 + 1500,
    HEADS = 8,
    KV_HEADS = 2,
    HEAD_DIM = 64,
    Q_WIDTH = HEADS * HEAD_DIM,
    KV_WIDTH = KV_HEADS * HEAD_DIM,
    THREADS = 4
};

static const double frame_budget_ms = 4.0;

/* Two prompts and two decoding requests in one batch. */
static const int32_t q_len[REQUESTS] = { 192, 64, 1, 1 };
static const int32_t kv_len[REQUESTS] = { 700, 64, 3000, 1500 };
static const int32_t phase[REQUESTS] = { ATTN_PREFILL, ATTN_PREFILL, ATTN_DECODE, ATTN_DECODE };

static float q[ROWS * Q_WIDTH], k[KEYS * KV_WIDTH], v[KEYS * KV_WIDTH];

typedef struct output {
    float o[ROWS * Q_WIDTH];
    float lse[ROWS * HEADS];
} output;

static output expected, pooled, framed;

/* What a task needs, and the next one to hand out. */
typedef struct job {
    const attn_plan *plan;
    const attn_io *io;
    const attn_exec *exec;
    attn_stage stage;
    int32_t next, count;
} job;

static double now_ms(void) {
#ifdef _WIN32
    return 1e3 * (double)clock() / CLOCKS_PER_SEC; /* wall time there */
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
#endif
}

/* ---- (a) a thread pool: each thread takes the next task until none is left -------------------------------------- */

#ifdef _WIN32

static int run_pool(job *j) {
    for (int s = ATTN_COMPUTE; s <= ATTN_MERGE; s++) {
        for (int32_t i = 0; i < attn_task_count(j->plan, (attn_stage)s); i++) {
            attn_task(j->plan, j->io, j->exec, (attn_stage)s, i, 0);
        }
    }
    return 0;
}

#else

typedef struct pool {
    pthread_t thread[THREADS];
    pthread_mutex_t mutex;
    pthread_cond_t start, finished;
    job *work;    /* NULL: nothing to do */
    int busy;     /* threads inside a task */
    int quit;
    int done[THREADS]; /* tasks of each thread, for the report */
} pool;

typedef struct worker {
    pool *owner;
    int lane; /* the scratch of this thread: two tasks at the same time never share one */
} worker;

static void *work(void *argument) {
    worker *w = (worker *)argument;
    pool *p = w->owner;
    pthread_mutex_lock(&p->mutex);
    while (!p->quit) {
        job *j = p->work;
        if (!j || j->next == j->count) {
            pthread_cond_wait(&p->start, &p->mutex);
            continue;
        }
        int32_t index = j->next++;
        p->busy++;
        pthread_mutex_unlock(&p->mutex);
        attn_task(j->plan, j->io, j->exec, j->stage, index, w->lane);
        pthread_mutex_lock(&p->mutex);
        p->done[w->lane]++;
        p->busy--;
        if (p->busy == 0 && j->next == j->count) pthread_cond_signal(&p->finished);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

/* One stage; waiting for its last task is the barrier between the stages. */
static void run_stage(pool *p, job *j, attn_stage stage) {
    pthread_mutex_lock(&p->mutex);
    j->stage = stage;
    j->next = 0;
    j->count = attn_task_count(j->plan, stage);
    p->work = j;
    pthread_cond_broadcast(&p->start);
    while (p->busy > 0 || j->next < j->count) {
        pthread_cond_wait(&p->finished, &p->mutex);
    }
    p->work = NULL;
    pthread_mutex_unlock(&p->mutex);
}

static int run_pool(job *j) {
    static pool p;
    worker workers[THREADS];
    int started = 0;
    pthread_mutex_init(&p.mutex, NULL);
    pthread_cond_init(&p.start, NULL);
    pthread_cond_init(&p.finished, NULL);
    for (int i = 0; i < THREADS; i++) {
        workers[i].owner = &p;
        workers[i].lane = i;
        if (pthread_create(&p.thread[started], NULL, work, &workers[i])) continue;
        started++;
    }
    if (started) {
        run_stage(&p, j, ATTN_COMPUTE);
        run_stage(&p, j, ATTN_MERGE);
    }
    pthread_mutex_lock(&p.mutex);
    p.quit = 1;
    pthread_cond_broadcast(&p.start);
    pthread_mutex_unlock(&p.mutex);
    for (int i = 0; i < started; i++) {
        pthread_join(p.thread[i], NULL);
    }
    printf("tasks of each thread:");
    for (int i = 0; i < THREADS; i++) {
        printf(" %d", p.done[i]);
    }
    printf("\n");
    return started == 0;
}

#endif

/* ---- (b) a frame budget: tasks until the time is used, the rest in the next frame -------------------------------- */

/* The job between two frames: which stage, which task; plus what was learnt about the length of a task. */
typedef struct budget {
    job *work;
    double longest_task;
} budget;

/* Runs tasks of one frame, at least one, so that even a tiny budget gets ahead. A task is not begun if the longest one
   so far would not fit any more. Returns the number of tasks; 0 means that everything is done. */
static int run_frame(budget *b, double limit_ms) {
    job *j = b->work;
    int tasks = 0;
    double start = now_ms();
    double last = start;
    for (;;) {
        if (j->next == j->count) {
            if (j->stage == ATTN_MERGE) return tasks;
            j->stage = ATTN_MERGE; /* one thread: all tasks before have returned, so no barrier is needed */
            j->next = 0;
            j->count = attn_task_count(j->plan, ATTN_MERGE);
            continue;
        }
        if (tasks > 0 && last - start + b->longest_task > limit_ms) return tasks;
        attn_task(j->plan, j->io, j->exec, j->stage, j->next++, 0);
        tasks++;
        double end = now_ms();
        if (end - last > b->longest_task) b->longest_task = end - last;
        last = end;
    }
}

static void run_frames(job *j) {
    budget b = { j, 0.0 };
    double longest_frame = 0;
    j->stage = ATTN_COMPUTE;
    j->next = 0;
    j->count = attn_task_count(j->plan, ATTN_COMPUTE);
    printf("tasks of each frame:");
    for (;;) {
        double start = now_ms();
        int tasks = run_frame(&b, frame_budget_ms);
        double ms = now_ms() - start;
        if (tasks == 0) break;
        if (ms > longest_frame) longest_frame = ms;
        printf(" %d", tasks);
    }
    printf("\nlongest frame %.2f ms, longest task %.2f ms, budget %.2f ms\n", longest_frame, b.longest_task,
           frame_budget_ms);
}

/* ---- one layer, three times ------------------------------------------------------------------------------------- */

static void fill(float *x, int n, uint32_t *state) {
    for (int i = 0; i < n; i++) {
        *state = *state * 1664525u + 1013904223u;
        x[i] = (float)(*state >> 8) / 4194304.0f - 2.0f;
    }
}

static attn_io io_of(output *out) {
    attn_io io = { .q = q, .k = k, .v = v, .o = out->o, .lse = out->lse };
    memset(out, 0xFF, sizeof *out); /* NaN: a task that is forgotten shows */
    return io;
}

static int same_bits(const char *name, const output *out) {
    int same = memcmp(out, &expected, sizeof expected) == 0;
    printf("%s: same bits as attn_forward: %s\n\n", name, same ? "yes" : "NO");
    return same;
}

static int run_three(const attn_plan *plan, const attn_layer *layer, attn_exec *exec) {
    attn_error err;
    attn_io io = io_of(&expected);
    double start = now_ms();
    if (attn_forward(plan, layer, &io, exec, &err)) {
        printf("forward: %s\n", err.text);
        return 1;
    }
    printf("attn_forward, one thread: %.2f ms\n", now_ms() - start);
    printf("%d compute tasks, %d merge tasks, the largest has %.1f %% of the work\n\n", (int)plan->tasks,
           (int)plan->merges, 100.0 * (double)plan->largest_task / (double)plan->work);

    io = io_of(&pooled);
    job j = { .plan = plan, .io = &io, .exec = exec };
    if (attn_check(plan, layer, &io, exec, &err)) {
        printf("check: %s\n", err.text);
        return 1;
    }
    start = now_ms();
    if (run_pool(&j)) return 1;
    printf("%.2f ms on the pool, its start and end included\n", now_ms() - start);
    int good = same_bits("thread pool", &pooled);

    io = io_of(&framed);
    if (attn_check(plan, layer, &io, exec, &err)) {
        printf("check: %s\n", err.text);
        return 1;
    }
    run_frames(&j);
    good &= same_bits("frames", &framed);
    return !good;
}

int main(void) {
    uint32_t state = 1;
    fill(q, ROWS * Q_WIDTH, &state);
    fill(k, KEYS * KV_WIDTH, &state);
    fill(v, KEYS * KV_WIDTH, &state);
    attn_batch batch = { .n = REQUESTS, .q_len = q_len, .kv_len = kv_len, .phase = phase };
    attn_layer layer = { .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM };
    layer.row_tile = 32; /* small tasks fill a frame better */
    layer.isa = (int32_t)attn_isa_detect();
    attn_plan plan;
    attn_error err;
    size_t bytes = attn_plan_bytes(&batch, &layer);
    void *plan_mem = malloc(bytes);
    if (attn_plan_make(&plan, &batch, &layer, plan_mem, bytes, &err)) {
        printf("plan: %s\n", err.text);
        return 1;
    }
    attn_exec exec = { .lanes = THREADS };
    exec.bytes = attn_exec_bytes(&plan, exec.lanes);
    exec.mem = malloc(exec.bytes);
    int failed = run_three(&plan, &layer, &exec);
    free(exec.mem);
    free(plan_mem);
    return failed;
}
