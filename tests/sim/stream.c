/* stream.c - streams and events. Streams are lazy: work runs when somebody waits for it, and only the work that is
   waited for, so that a missing synchronisation gives wrong results here, every time. */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"

#include <stdlib.h>
#include <time.h>

/* ---- operations ------------------------------------------------------------------------------------------------ */

operation *sim_operation(operation_kind kind) {
    operation *o = (operation *)sim_allocate(sizeof *o);
    o->kind = kind;
    return o;
}

void sim_free_operations(operation *o) {
    while (o) {
        operation *next = o->next;
        free(o->params);
        free(o->snapshot);
        free(o);
        o = next;
    }
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static sim_event *find_event(CUevent event) {
    sim_event *e;
    for (e = sim_driver.events; e && e != event; e = e->next) {}
    return e;
}

/* After an error the context runs nothing more, but events count as done. */
void sim_run_operation(sim_context *c, operation *o) {
    if (o->kind == RECORD && find_event(o->event)) {
        o->event->done = o->number;
        o->event->time = seconds();
    }
    if (o->kind == GRAPH) sim_run_graph(c, o->exec);
    if (c->sticky) return;
    if (o->kind == LAUNCH) sim_run_launch(c, o);
    else if (o->kind == COPY) sim_run_copy(c, o);
    else if (o->kind == FILL) sim_run_fill(c, o);
}

/* ---- order among streams --------------------------------------------------------------------------------------- */

static int is_alive(const sim_stream *stream) {
    const sim_stream *s = sim_driver.streams;
    while (s && s != stream) s = s->next;
    return s != NULL || (stream && stream == &stream->context->null_stream);
}

/* The legacy stream and the blocking ones run in the order of submission. */
static void run_what_precedes(sim_stream *s, const operation *o) {
    sim_context *c = s->context;
    sim_stream *other;
    if (o->kind == WAIT && is_alive(o->event_stream)) sim_run_until(o->event_stream, o->event_number);
    if (s->flags & CU_STREAM_NON_BLOCKING) return;
    if (s != &c->null_stream) {
        sim_run_until(&c->null_stream, o->number);
        return;
    }
    for (other = sim_driver.streams; other; other = other->next) {
        if (other->context == c && !(other->flags & CU_STREAM_NON_BLOCKING)) sim_run_until(other, o->number);
    }
}

void sim_run_until(sim_stream *s, uint64_t number) {
    while (s->first && s->first->number <= number) {
        operation *o = s->first;
        s->first = o->next;
        if (!s->first) s->end = &s->first;
        o->next = NULL;
        run_what_precedes(s, o);
        sim_run_operation(s->context, o);
        sim_free_operations(o);
    }
}

void sim_run_all(sim_context *c) {
    sim_stream *s;
    if (!c->null_stream.end) return;
    sim_run_until(&c->null_stream, UINT64_MAX);
    for (s = sim_driver.streams; s; s = s->next) {
        if (s->context == c) sim_run_until(s, UINT64_MAX);
    }
}

/* NULL and the handles 1 and 2 are the default stream. */
sim_stream *sim_find_stream(CUstream stream) {
    sim_stream *s;
    if ((uintptr_t)stream <= 2) return &sim_current()->null_stream;
    for (s = sim_driver.streams; s && s != stream; s = s->next) {}
    return s && s->context == sim_current() ? s : NULL;
}

/* Work of the default stream would have to wait for blocking streams that are being captured. */
static CUresult refuse_implicit(const sim_stream *s) {
    sim_stream *other;
    if (s != &s->context->null_stream) return CU_OK;
    for (other = sim_driver.streams; other; other = other->next) {
        if (other->context == s->context && other->capture && !(other->flags & CU_STREAM_NON_BLOCKING)) {
            sim_invalidate(other->capture);
            return CU_CAPTURE_IMPLICIT;
        }
    }
    return CU_OK;
}

CUresult sim_submit(CUstream stream, operation *o) {
    sim_stream *s = sim_find_stream(stream);
    CUresult r = s ? refuse_implicit(s) : CU_INVALID_HANDLE;
    if (r) {
        sim_free_operations(o);
        return r;
    }
    o->number = ++sim_driver.numbers;
    if (s->capture) return sim_capture_operation(s, o);
    if (o->kind == GRAPH) o->exec->pending++;
    *s->end = o;
    s->end = &o->next;
    return CU_OK;
}

/* ---- streams --------------------------------------------------------------------------------------------------- */

static CUresult create_stream(CUstream *stream, unsigned flags) {
    sim_stream *s;
    if (flags > CU_STREAM_NON_BLOCKING) return CU_INVALID_VALUE;
    s = (sim_stream *)sim_allocate(sizeof *s);
    s->context = sim_current();
    s->flags = flags;
    s->end = &s->first;
    s->next = sim_driver.streams;
    sim_driver.streams = s;
    *stream = s;
    return CU_OK;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    CUresult r = sim_enter("cuStreamCreate", NEEDS_CONTEXT);
    if (!r) r = create_stream(stream, flags);
    return sim_leave(r);
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority) {
    CUresult r = sim_enter("cuStreamCreateWithPriority", NEEDS_CONTEXT);
    (void)priority;
    if (!r) r = create_stream(stream, flags);
    return sim_leave(r);
}

static void remove_stream(sim_stream *s) {
    sim_stream **at = &sim_driver.streams;
    sim_event *e;
    sim_run_until(s, UINT64_MAX);
    if (s->capture) sim_invalidate(s->capture);
    for (e = sim_driver.events; e; e = e->next) {
        if (e->stream == s) e->stream = NULL;
    }
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    free(s);
}

/* What was submitted still runs. A stream that is being captured cannot be destroyed. */
CUresult cuStreamDestroy_v2(CUstream stream) {
    CUresult r = sim_enter("cuStreamDestroy_v2", NEEDS_CONTEXT);
    sim_stream *s = r ? NULL : sim_find_stream(stream);
    if (!r && (!s || s == &s->context->null_stream)) r = CU_INVALID_HANDLE;
    if (!r && s->capture) {
        sim_invalidate(s->capture);
        r = CU_CAPTURE_UNSUPPORTED;
    }
    if (!r) remove_stream(s);
    return sim_leave(r);
}

void sim_close_streams(sim_context *c) {
    sim_stream *s, *next;
    sim_event **at = &sim_driver.events;
    for (s = sim_driver.streams; s; s = next) {
        next = s->next;
        if (s->context != c) continue;
        sim_drop_capture(s);
        remove_stream(s);
    }
    while (*at) {
        sim_event *e = *at;
        if (e->context != c) {
            at = &e->next;
            continue;
        }
        *at = e->next;
        free(e);
    }
}

/* A stream that a call wants to wait for. */
static CUresult waitable(CUstream stream, sim_stream **found) {
    sim_stream *s = sim_find_stream(stream);
    if (!s) return CU_INVALID_HANDLE;
    *found = s;
    if (!s->capture) return refuse_implicit(s);
    sim_invalidate(s->capture);
    return CU_CAPTURE_UNSUPPORTED;
}

CUresult cuStreamSynchronize(CUstream stream) {
    CUresult r = sim_enter("cuStreamSynchronize", NEEDS_CONTEXT);
    sim_stream *s = NULL;
    if (!r) r = waitable(stream, &s);
    if (!r) {
        sim_driver.counters.synchronisations++;
        sim_run_until(s, UINT64_MAX);
        r = s->context->sticky;
    }
    return sim_leave(r);
}

/* A query makes one operation run, so that a loop of queries ends. */
CUresult cuStreamQuery(CUstream stream) {
    CUresult r = sim_enter("cuStreamQuery", NEEDS_CONTEXT);
    sim_stream *s = NULL;
    if (!r) r = waitable(stream, &s);
    if (!r && s->first) {
        sim_run_until(s, s->first->number);
        r = s->context->sticky ? s->context->sticky : CU_NOT_READY;
    }
    return sim_leave(r);
}

CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    CUresult r = sim_enter("cuStreamGetCtx", NEEDS_CONTEXT);
    if (!r && !sim_find_stream(stream)) r = CU_INVALID_HANDLE;
    if (!r) *context = sim_find_stream(stream)->context;
    return sim_leave(r);
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

CUresult cuEventCreate(CUevent *event, unsigned flags) {
    CUresult r = sim_enter("cuEventCreate", NEEDS_CONTEXT);
    if (!r && flags > 3) r = CU_INVALID_VALUE;
    if (!r) {
        sim_event *e = (sim_event *)sim_allocate(sizeof *e);
        e->context = sim_current();
        e->flags = flags;
        e->next = sim_driver.events;
        sim_driver.events = e;
        *event = e;
    }
    return sim_leave(r);
}

CUresult cuEventDestroy_v2(CUevent event) {
    CUresult r = sim_enter("cuEventDestroy_v2", NEEDS_CONTEXT);
    sim_event **at = &sim_driver.events;
    if (!r && !find_event(event)) r = CU_INVALID_HANDLE;
    if (!r) {
        while (*at != event) at = &(*at)->next;
        *at = event->next;
        free(event);
    }
    return sim_leave(r);
}

static CUresult record(CUevent event, CUstream stream) {
    sim_event *e = find_event(event);
    sim_stream *s = sim_find_stream(stream);
    operation *o;
    CUresult r;
    if (!e || !s) return CU_INVALID_HANDLE;
    if (s->capture) return sim_capture_event(s, e, 0);
    o = sim_operation(RECORD);
    o->event = e;
    r = sim_submit(stream, o);
    if (r) return r;
    e->captured = NULL;
    e->stream = s;
    e->recorded = sim_driver.numbers;
    return CU_OK;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    CUresult r = sim_enter("cuEventRecord", NEEDS_CONTEXT);
    if (!r) r = record(event, stream);
    return sim_leave(r);
}

static CUresult wait_event(CUstream stream, CUevent event, unsigned flags) {
    sim_event *e = find_event(event);
    sim_stream *s = sim_find_stream(stream);
    operation *o;
    if (!e || !s) return CU_INVALID_HANDLE;
    if (flags) return CU_INVALID_VALUE;
    if (s->capture || e->captured) return sim_capture_event(s, e, 1);
    if (!e->recorded) return CU_OK;
    o = sim_operation(WAIT);
    o->event_stream = e->stream;
    o->event_number = e->recorded;
    return sim_submit(stream, o);
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    CUresult r = sim_enter("cuStreamWaitEvent", NEEDS_CONTEXT);
    if (!r) r = wait_event(stream, event, flags);
    return sim_leave(r);
}

static CUresult usable_event(CUevent event) {
    const sim_event *e = find_event(event);
    if (!e) return CU_INVALID_HANDLE;
    if (!e->captured) return CU_OK;
    sim_invalidate(e->captured);
    return CU_CAPTURED_EVENT;
}

CUresult cuEventQuery(CUevent event) {
    CUresult r = sim_enter("cuEventQuery", NEEDS_CONTEXT);
    if (!r) r = usable_event(event);
    if (!r && event->done < event->recorded) {
        if (event->stream && event->stream->first) sim_run_until(event->stream, event->stream->first->number);
        r = CU_NOT_READY;
    }
    return sim_leave(r);
}

CUresult cuEventSynchronize(CUevent event) {
    CUresult r = sim_enter("cuEventSynchronize", NEEDS_CONTEXT);
    if (!r) r = usable_event(event);
    if (!r) {
        sim_driver.counters.synchronisations++;
        if (event->stream) sim_run_until(event->stream, event->recorded);
        r = event->context->sticky;
    }
    return sim_leave(r);
}

/* The time of the machine that simulates: it says nothing about a GPU. */
CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    CUresult r = sim_enter("cuEventElapsedTime", NEEDS_CONTEXT);
    if (!r) r = usable_event(start);
    if (!r) r = usable_event(end);
    if (!r && ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING)) r = CU_INVALID_HANDLE;
    if (!r && (!start->recorded || !end->recorded)) r = CU_INVALID_HANDLE;
    if (!r && (start->done < start->recorded || end->done < end->recorded)) r = CU_NOT_READY;
    if (!r) *milliseconds = (float)(1e3 * (end->time - start->time));
    return sim_leave(r);
}
