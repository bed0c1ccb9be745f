/* driver.h - the state behind the driver API, between driver.c, program.c, buffer.c, stream.c and graph.c. */
#ifndef SIM_DRIVER_H
#define SIM_DRIVER_H

#include "cuda_api.h"
#include "sim.h"

enum { MAX_DEVICES = 8 };

typedef enum operation_kind { LAUNCH, COPY, FILL, RECORD, WAIT, GRAPH } operation_kind;

/* Work of a stream. Host memory that a copy reads is a snapshot when the caller may change it at once. */
typedef struct operation {
    operation_kind kind;
    uint64_t number;                    /* of the submission, over all streams */
    CUfunction function;
    struct sim_program *program;
    uint32_t grid[3], block[3];
    size_t dynamic_shared;
    uint8_t *params;                    /* owned */
    size_t param_bytes;
    CUdeviceptr to, from;               /* of a copy: 0 when that side is the host */
    void *host_to;
    const void *host_from;
    uint8_t *snapshot;                  /* owned */
    size_t bytes, width;                /* of a fill: count of values of this width */
    uint32_t value;
    CUevent event;
    CUstream event_stream;              /* WAIT: where and what was recorded */
    uint64_t event_number;
    CUgraphExec exec;
    struct operation *next;
} operation;

typedef struct sim_graph {
    struct sim_graph *next;             /* graphs of the driver */
    struct sim_context *context;
    operation *first, **end;
    int nodes;
} sim_graph;

typedef struct sim_graph_exec {
    struct sim_graph_exec *next;
    struct sim_context *context;
    operation *first;
    int pending, destroyed;             /* launches that have not run; it lives until they have */
} sim_graph_exec;

/* A capture: one origin, and the streams that joined by events. */
typedef struct capture {
    struct sim_stream *origin;
    sim_graph *graph;
    int mode, invalid;
    unsigned long thread;
} capture;

typedef struct sim_stream {
    struct sim_stream *next;
    struct sim_context *context;
    unsigned flags;
    operation *first, **end;
    capture *capture;
    int joined;                         /* part of a capture that began in another stream */
    uint64_t unjoined;                  /* captured work that the origin does not wait for yet */
} sim_stream;

typedef struct sim_event {
    struct sim_event *next;
    struct sim_context *context;
    unsigned flags;
    sim_stream *stream;                 /* where it was recorded last */
    uint64_t recorded, done;            /* numbers of operations */
    capture *captured;                  /* recorded in this capture */
    uint64_t captured_number;
    double time;
} sim_event;

typedef struct sim_function {
    struct sim_function *next;
    struct sim_program *program;
    sim_kernel *kernel;
    int dynamic_limit;
} sim_function;

typedef struct sim_program {
    struct sim_program *next;
    struct sim_context *context;
    sim_module *module;
    sim_function *functions;
} sim_program;

/* The primary context of a device. */
typedef struct sim_context {
    int device, references, sticky;
    sim_memory memory;
    sim_stream null_stream;
} sim_context;

typedef struct host_block {
    struct host_block *next;
    void *p;
    size_t bytes;
} host_block;

typedef struct sim_settings {
    int devices, capability, sms, driver, strict, quiet;
    size_t memory;
    sim_config config;
    char fail_entry[64];
    uint64_t fail_call;
    int fail_code;
} sim_settings;

typedef struct driver_state {
    int ready;
    sim_settings settings;
    sim_context context[MAX_DEVICES];
    sim_program *programs;
    sim_stream *streams;
    sim_event *events;
    sim_graph *graphs;
    sim_graph_exec *execs;
    host_block *host_blocks;
    uint64_t numbers;                   /* operations submitted */
    uint64_t matching_calls;
    ptxsim_counters counters;
    struct launch_count {
        char *kernel;
        uint64_t count;
    } *launches;
    int launch_names, launch_capacity;
} driver_state;

extern driver_state sim_driver;

typedef enum needs { NEEDS_NOTHING, NEEDS_INIT, NEEDS_CONTEXT } needs;

/* Every entry point begins and ends with these: the lock, faults, initialisation, sticky errors. */
CUresult sim_enter(const char *name, needs what);
CUresult sim_leave(CUresult result);
sim_context *sim_current(void);
unsigned long sim_thread(void);
int *sim_thread_capture_mode(void);

/* stream.c */
sim_stream *sim_find_stream(CUstream stream);           /* NULL: no such stream */
void sim_run_until(sim_stream *s, uint64_t number);     /* everything up to this operation, and what it waits for */
void sim_run_all(sim_context *c);
operation *sim_operation(operation_kind kind);
CUresult sim_submit(CUstream stream, operation *o);
void sim_free_operations(operation *o);
void sim_run_operation(sim_context *c, operation *o);
CUresult sim_not_while_capturing(void);                 /* for calls that may wait or allocate */
void sim_close_streams(sim_context *c);

/* graph.c */
CUresult sim_capture_operation(sim_stream *s, operation *o);
void sim_invalidate(capture *c);
void sim_drop_capture(sim_stream *s);
void sim_run_graph(sim_context *c, CUgraphExec exec);
void sim_close_graphs(sim_context *c);
CUresult sim_capture_event(sim_stream *s, sim_event *e, int wait);

/* program.c */
void sim_close_programs(sim_context *c);
void sim_run_launch(sim_context *c, const operation *o);

/* buffer.c */
void sim_run_copy(sim_context *c, const operation *o);
void sim_run_fill(sim_context *c, const operation *o);
void sim_close_host_blocks(void);

#endif
