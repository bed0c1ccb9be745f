/* async.c - cp.async: copies arrive at the wait, as late as they may, and their bytes are in flight until then. */
#include "sim.h"

#include <stdlib.h>

typedef struct copy {
    uint64_t from;
    uint32_t to, bytes, zeros;      /* offset in shared memory; zeros fill the rest */
    int group, lane;
    const sim_instruction *in;
} copy;

struct async_queue {
    copy *item;
    int count, capacity;
    int group[LANES];               /* the group that the next copy of a lane belongs to */
};

void sim_async_open(sim_warp *w) {
    w->async = (struct async_queue *)sim_allocate(sizeof *w->async);
}

int sim_async_reset(sim_warp *w) {
    int left = w->async->count != 0;
    w->async->count = 0;
    memset(w->async->group, 0, sizeof w->async->group);
    return left;
}

void sim_async_close(sim_warp *w) {
    free(w->async->item);
    free(w->async);
}

static uint64_t address_of(const sim_machine *m, const sim_instruction *in, int operand, int bytes, int64_t offset,
                           int lane) {
    const void *base;
    if (in->operand[operand] == NO_OPERAND) return (uint64_t)offset;
    base = sim_operand(m, in, operand);
    return (bytes == 4 ? ((const uint32_t *)base)[lane] : ((const uint64_t *)base)[lane]) + (uint64_t)offset;
}

static int start_copy(sim_machine *m, const sim_instruction *in, int lane, uint64_t to, uint64_t from,
                      uint32_t bytes) {
    struct async_queue *q = m->warp->async;
    sim_buffer *b;
    uint8_t *p;
    copy *c;
    if (bytes > in->bytes) {
        sim_report(m, in, lane, PTXSIM_ASYNC, CU_LAUNCH_FAILED, "cp.async of %u bytes with a source of %u", in->bytes,
                   bytes);
        return 0;
    }
    if (!sim_shared(m, in, lane, to, in->bytes, 1)) return 0;
    if (from & (uint64_t)(in->bytes - 1)) {
        sim_report(m, in, lane, PTXSIM_MISALIGNED, CU_MISALIGNED, "cp.async of %u bytes from 0x%llx", in->bytes,
                   (unsigned long long)from);
        return 0;
    }
    p = bytes ? sim_global(m, in, lane, from, 1, 0, &b) : NULL;
    if (bytes && (!p || !sim_global(m, in, lane, from + bytes - 1, 1, 0, &b))) return 0;
    if (bytes) {
        sim_check_written(m, in, lane, b, (size_t)(p - b->data), bytes);
        sim_global_read(m, in, lane, b, (size_t)(p - b->data), bytes);
    }
    sim_shared_write(m, in, lane, (uint32_t)(to - SHARED_FIRST), in->bytes, ASYNC_START, NULL);
    q->item = (copy *)sim_grow(q->item, &q->capacity, q->count + 1, sizeof *q->item);
    c = &q->item[q->count++];
    c->from = from;
    c->to = (uint32_t)(to - SHARED_FIRST);
    c->bytes = bytes;
    c->zeros = in->bytes - bytes;
    c->group = q->group[lane];
    c->lane = lane;
    c->in = in;
    return 1;
}

void sim_async_copy(sim_machine *m, const sim_instruction *in) {
    const uint32_t *size = in->operands > 2 ? (const uint32_t *)sim_operand(m, in, 2) : NULL;
    uint64_t from[LANES];
    int i;
    for (i = 0; i < LANES; i++) {
        uint64_t to = address_of(m, in, 0, in->address_bytes2, in->offset, i);
        uint32_t bytes = size ? size[i] : in->bytes;
        from[i] = address_of(m, in, 1, in->address_bytes, in->offset2, i);
        if (!sim_active(m, i)) continue;
        if (!start_copy(m, in, i, to, from[i], bytes)) return;
        m->counters->async_copy_bytes += bytes;
        m->counters->global_load_bytes += bytes;
    }
    m->counters->global_loads++;
    m->counters->global_load_sectors += sim_count_sectors(from, m->active, in->bytes);
}

void sim_async_commit(sim_machine *m, const sim_instruction *in) {
    int i;
    (void)in;
    for (i = 0; i < LANES; i++) m->warp->async->group[i] += sim_active(m, i);
}

static void arrive(sim_machine *m, const copy *c) {
    sim_buffer *b;
    const uint8_t *from = c->bytes ? sim_global(m, c->in, c->lane, c->from, 1, 0, &b) : NULL;
    if (c->bytes && !from) return;
    sim_shared_write(m, c->in, c->lane, c->to, c->bytes + c->zeros, ASYNC_END, NULL);
    if (c->bytes) memcpy(m->shared + c->to, from, c->bytes);
    memset(m->shared + c->to + c->bytes, 0, c->zeros);
    memset(m->shared_written + c->to, 1, c->bytes + c->zeros);
}

/* All but the last N groups of a lane arrive; wait_all: those without a group, too. */
void sim_async_wait(sim_machine *m, const sim_instruction *in) {
    struct async_queue *q = m->warp->async;
    int i, kept = 0;
    for (i = 0; i < q->count; i++) {
        const copy *c = &q->item[i];
        int newest = q->group[c->lane] - (int)in->immediate;
        if (sim_active(m, c->lane) && (in->option || c->group < newest)) arrive(m, c);
        else q->item[kept++] = *c;
    }
    q->count = kept;
}

void sim_async_exit(sim_machine *m, const sim_instruction *in, uint32_t lanes) {
    struct async_queue *q = m->warp->async;
    int i;
    for (i = 0; i < q->count; i++) {
        if (!(lanes >> q->item[i].lane & 1)) continue;
        sim_report(m, in, q->item[i].lane, PTXSIM_ASYNC, 0, "a lane ends with a cp.async that it never waited for");
        return;
    }
}
