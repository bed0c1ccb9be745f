/* graph.c - capture and graphs. Nodes keep the order in which they were captured, which is one of those that their
   dependencies allow. While a stream is captured, calls that could wait or allocate fail and spoil the capture. */
#include "driver.h"

#include <stdlib.h>

/* ---- captures -------------------------------------------------------------------------------------------------- */

void sim_invalidate(capture *c) {
    c->invalid = 1;
}

static int disturbs(const capture *c) {
    int mode = *sim_thread_capture_mode();
    if (mode == CU_CAPTURE_RELAXED || c->mode == CU_CAPTURE_RELAXED) return 0;
    if (mode == CU_CAPTURE_THREAD_LOCAL || c->mode == CU_CAPTURE_THREAD_LOCAL) return c->thread == sim_thread();
    return 1;
}

CUresult sim_not_while_capturing(void) {
    sim_stream *s;
    CUresult r = CU_OK;
    for (s = sim_driver.streams; s; s = s->next) {
        if (!s->capture || !disturbs(s->capture)) continue;
        sim_invalidate(s->capture);
        r = CU_CAPTURE_UNSUPPORTED;
    }
    return r;
}

static sim_graph *new_graph(sim_context *c) {
    sim_graph *g = (sim_graph *)sim_allocate(sizeof *g);
    g->context = c;
    g->end = &g->first;
    return g;
}

static void free_graph(sim_graph *g) {
    sim_free_operations(g->first);
    free(g);
}

static operation *duplicate(const operation *o) {
    operation *copy = sim_operation(o->kind);
    *copy = *o;
    copy->next = NULL;
    if (o->params) {
        copy->params = (uint8_t *)sim_allocate(o->param_bytes);
        memcpy(copy->params, o->params, o->param_bytes);
    }
    return copy;
}

static void add_node(sim_graph *g, operation *o) {
    *g->end = o;
    g->end = &o->next;
    g->nodes++;
}

static void add_copies(sim_graph *g, const operation *o) {
    for (; o; o = o->next) add_node(g, duplicate(o));
}

CUresult sim_capture_operation(sim_stream *s, operation *o) {
    if (s->capture->invalid) {
        sim_free_operations(o);
        return CU_CAPTURE_INVALIDATED;
    }
    if (s->joined) s->unjoined = o->number;
    if (o->kind == GRAPH) {
        add_copies(s->capture->graph, o->exec->first);
        sim_free_operations(o);
    } else {
        add_node(s->capture->graph, o);
    }
    return CU_OK;
}

/* Events carry a capture from stream to stream. wait 0: the event is recorded in s, 1: s waits for it. */
CUresult sim_capture_event(sim_stream *s, sim_event *e, int wait) {
    if (!wait) {
        if (s->capture->invalid) return CU_CAPTURE_INVALIDATED;
        e->captured = s->capture;
        e->captured_number = ++sim_driver.numbers;
        e->stream = s;
        return CU_OK;
    }
    if (s->capture && e->captured != s->capture) {
        sim_invalidate(s->capture);
        return CU_CAPTURE_ISOLATION;
    }
    if (e->captured->invalid) return CU_CAPTURE_INVALIDATED;
    if (!s->capture) {
        if (s == &s->context->null_stream) return CU_CAPTURE_ISOLATION;
        s->capture = e->captured;
        s->joined = 1;
        s->unjoined = ++sim_driver.numbers;
    }
    if (e->stream && e->stream != s && e->stream->joined && e->captured_number >= e->stream->unjoined) {
        e->stream->unjoined = 0;
    }
    return CU_OK;
}

static CUresult begin_capture(CUstream stream, int mode) {
    sim_stream *s = sim_find_stream(stream);
    if (!s) return CU_INVALID_HANDLE;
    if (mode < CU_CAPTURE_GLOBAL || mode > CU_CAPTURE_RELAXED) return CU_INVALID_VALUE;
    if (s == &s->context->null_stream) return CU_CAPTURE_UNSUPPORTED;
    if (s->capture) return CU_INVALID_VALUE;
    s->capture = (capture *)sim_allocate(sizeof *s->capture);
    s->capture->origin = s;
    s->capture->graph = new_graph(s->context);
    s->capture->mode = mode;
    s->capture->thread = sim_thread();
    return CU_OK;
}

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    CUresult r = sim_enter("cuStreamBeginCapture_v2", NEEDS_CONTEXT);
    if (!r) r = begin_capture(stream, mode);
    return sim_leave(r);
}

/* Takes the capture out of all streams and events; 1 when some stream did not come back. */
static int dissolve(const capture *c) {
    sim_stream *s;
    sim_event *e;
    int unjoined = 0;
    for (s = sim_driver.streams; s; s = s->next) {
        if (s->capture != c) continue;
        unjoined |= s->joined && s->unjoined;
        s->capture = NULL;
        s->joined = 0;
        s->unjoined = 0;
    }
    for (e = sim_driver.events; e; e = e->next) {
        if (e->captured != c) continue;
        e->captured = NULL;
        e->recorded = e->done = 0;
    }
    return unjoined;
}

/* The stream is closed: its capture ends without a graph. */
void sim_drop_capture(sim_stream *s) {
    capture *c = s->capture;
    if (!c || c->origin != s) return;
    dissolve(c);
    free_graph(c->graph);
    free(c);
}

static CUresult end_capture(CUstream stream, CUgraph *graph) {
    sim_stream *s = sim_find_stream(stream);
    capture *c = s ? s->capture : NULL;
    int invalid, unjoined;
    *graph = NULL;
    if (!s) return CU_INVALID_HANDLE;
    if (!c) return CU_INVALID_VALUE;
    if (c->origin != s) {
        sim_invalidate(c);
        return CU_CAPTURE_UNMATCHED;
    }
    if (c->mode != CU_CAPTURE_RELAXED && c->thread != sim_thread()) {
        sim_invalidate(c);
        return CU_CAPTURE_WRONG_THREAD;
    }
    invalid = c->invalid;
    unjoined = dissolve(c);
    if (invalid || unjoined) {
        free_graph(c->graph);
    } else {
        c->graph->next = sim_driver.graphs;
        sim_driver.graphs = c->graph;
        *graph = c->graph;
    }
    free(c);
    return invalid ? CU_CAPTURE_INVALIDATED : unjoined ? CU_CAPTURE_UNJOINED : CU_OK;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    CUresult r = sim_enter("cuStreamEndCapture", NEEDS_CONTEXT);
    if (!r) r = end_capture(stream, graph);
    return sim_leave(r);
}

/* 0: no, 1: yes, 2: yes, but it is spoiled */
CUresult cuStreamIsCapturing(CUstream stream, int *status) {
    CUresult r = sim_enter("cuStreamIsCapturing", NEEDS_CONTEXT);
    sim_stream *s = r ? NULL : sim_find_stream(stream);
    if (!r && !s) r = CU_INVALID_HANDLE;
    if (!r) *status = !s->capture ? 0 : s->capture->invalid ? 2 : 1;
    return sim_leave(r);
}

CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
    CUresult r = sim_enter("cuThreadExchangeStreamCaptureMode", NEEDS_NOTHING);
    int old = *sim_thread_capture_mode();
    if (!r && (*mode < CU_CAPTURE_GLOBAL || *mode > CU_CAPTURE_RELAXED)) r = CU_INVALID_VALUE;
    if (!r) {
        *sim_thread_capture_mode() = *mode;
        *mode = old;
    }
    return sim_leave(r);
}

/* ---- graphs ---------------------------------------------------------------------------------------------------- */

static sim_graph *find_graph(CUgraph graph) {
    sim_graph *g;
    for (g = sim_driver.graphs; g && g != graph; g = g->next) {}
    return g;
}

static sim_graph_exec *find_exec(CUgraphExec exec) {
    sim_graph_exec *x;
    for (x = sim_driver.execs; x && x != exec; x = x->next) {}
    return x && !x->destroyed ? x : NULL;
}

static void free_exec(sim_graph_exec *x) {
    sim_graph_exec **at = &sim_driver.execs;
    while (*at != x) at = &(*at)->next;
    *at = x->next;
    sim_free_operations(x->first);
    free(x);
}

void sim_run_graph(sim_context *c, CUgraphExec exec) {
    operation *o;
    for (o = exec->first; o; o = o->next) sim_run_operation(c, o);
    exec->pending--;
    if (exec->destroyed && !exec->pending) free_exec(exec);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    CUresult r = sim_enter("cuGraphInstantiateWithFlags", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r && flags) r = CU_INVALID_VALUE;
    if (!r && !find_graph(graph)) r = CU_INVALID_HANDLE;
    if (!r) {
        sim_graph list;
        sim_graph_exec *x = (sim_graph_exec *)sim_allocate(sizeof *x);
        memset(&list, 0, sizeof list);
        list.end = &list.first;
        add_copies(&list, graph->first);
        x->first = list.first;
        x->context = graph->context;
        x->next = sim_driver.execs;
        sim_driver.execs = x;
        *exec = x;
    }
    return sim_leave(r);
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    CUresult r = sim_enter("cuGraphLaunch", NEEDS_CONTEXT);
    if (!r && !find_exec(exec)) r = CU_INVALID_HANDLE;
    if (!r) {
        operation *o = sim_operation(GRAPH);
        o->exec = exec;
        r = sim_submit(stream, o);
    }
    return sim_leave(r);
}

CUresult cuGraphDestroy(CUgraph graph) {
    CUresult r = sim_enter("cuGraphDestroy", NEEDS_CONTEXT);
    sim_graph **at = &sim_driver.graphs;
    if (!r && !find_graph(graph)) r = CU_INVALID_HANDLE;
    if (!r) {
        while (*at != graph) at = &(*at)->next;
        *at = graph->next;
        free_graph(graph);
    }
    return sim_leave(r);
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
    CUresult r = sim_enter("cuGraphExecDestroy", NEEDS_CONTEXT);
    if (!r && !find_exec(exec)) r = CU_INVALID_HANDLE;
    if (!r) {
        exec->destroyed = 1;
        if (!exec->pending) free_exec(exec);
    }
    return sim_leave(r);
}

void sim_close_graphs(sim_context *c) {
    sim_graph **at = &sim_driver.graphs;
    sim_graph_exec *x, *next;
    while (*at) {
        sim_graph *g = *at;
        if (g->context != c) {
            at = &g->next;
            continue;
        }
        *at = g->next;
        free_graph(g);
    }
    for (x = sim_driver.execs; x; x = next) {
        next = x->next;
        if (x->context == c) free_exec(x);
    }
}
