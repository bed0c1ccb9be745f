/* buffer.c - memory: allocations, copies, fills. */
#include "driver.h"

#include <stdlib.h>

/* ---- allocations ----------------------------------------------------------------------------------------------- */

static CUresult allocate(CUdeviceptr *address, size_t bytes) {
    sim_buffer *b;
    if (!address || !bytes) return CU_INVALID_VALUE;
    b = sim_buffer_make(&sim_current()->memory, bytes);
    if (!b) return CU_OUT_OF_MEMORY;
    sim_driver.counters.allocations++;
    *address = b->base;
    return CU_OK;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    CUresult r = sim_enter("cuMemAlloc_v2", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = allocate(address, bytes);
    return sim_leave(r);
}

/* Waits for everything that was submitted, as the real one does. */
static CUresult give_back(CUdeviceptr address) {
    sim_context *c = sim_current();
    sim_buffer *b = sim_buffer_find(&c->memory, address, 1);
    if (!address) return CU_OK;
    if (!b || b->base != address || b->of_module) return CU_INVALID_VALUE;
    sim_driver.counters.synchronisations++;
    sim_run_all(c);
    sim_buffer_free(&c->memory, b);
    return c->sticky;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    CUresult r = sim_enter("cuMemFree_v2", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = give_back(address);
    return sim_leave(r);
}

CUresult cuMemAllocHost_v2(void **p, size_t bytes) {
    CUresult r = sim_enter("cuMemAllocHost_v2", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r && !bytes) r = CU_INVALID_VALUE;
    if (!r) {
        host_block *h = (host_block *)sim_allocate(sizeof *h);
        h->p = *p = sim_allocate(bytes);
        h->bytes = bytes;
        h->next = sim_driver.host_blocks;
        sim_driver.host_blocks = h;
    }
    return sim_leave(r);
}

static void free_host_block(host_block **at) {
    host_block *h = *at;
    *at = h->next;
    free(h->p);
    free(h);
}

CUresult cuMemFreeHost(void *p) {
    CUresult r = sim_enter("cuMemFreeHost", NEEDS_CONTEXT);
    host_block **at = &sim_driver.host_blocks;
    if (!r) r = sim_not_while_capturing();
    while (*at && (*at)->p != p) at = &(*at)->next;
    if (!r && p && !*at) r = CU_INVALID_VALUE;
    if (!r && p) {
        sim_run_all(sim_current());
        free_host_block(at);
    }
    return sim_leave(r);
}

void sim_close_host_blocks(void) {
    while (sim_driver.host_blocks) free_host_block(&sim_driver.host_blocks);
}

static const host_block *pinned(const void *p) {
    const host_block *h = sim_driver.host_blocks;
    while (h && ((const char *)p < (const char *)h->p || (const char *)p >= (const char *)h->p + h->bytes)) h = h->next;
    return h;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CUresult r = sim_enter("cuMemGetInfo_v2", NEEDS_CONTEXT);
    if (!r) {
        const sim_memory *s = &sim_current()->memory;
        *free_bytes = s->limit - s->used;
        *total = s->limit;
    }
    return sim_leave(r);
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr address) {
    CUresult r = sim_enter("cuMemGetAddressRange_v2", NEEDS_CONTEXT);
    const sim_buffer *b = r ? NULL : sim_buffer_find(&sim_current()->memory, address, 1);
    if (!r && !b) r = CU_NOT_FOUND;
    if (!r && base) *base = b->base;
    if (!r && bytes) *bytes = b->bytes;
    return sim_leave(r);
}

/* Attributes of CUpointer_attribute: context, memory type, device pointer, ordinal, start and size of the range. */
static CUresult pointer_attribute(void *value, int attribute, CUdeviceptr address) {
    sim_context *c = NULL;
    const sim_buffer *b = NULL;
    const host_block *h = pinned((const void *)(uintptr_t)address);
    int i;
    for (i = 0; i < sim_driver.settings.devices && !b; i++) {
        c = &sim_driver.context[i];
        b = sim_buffer_find(&c->memory, address, 1);
    }
    if (!b && !h) return CU_INVALID_VALUE;
    switch (attribute) {
        case 1: *(CUcontext *)value = b ? c : sim_current(); break;
        case 2: *(unsigned *)value = b ? 2 : 1; break;
        case 3: *(CUdeviceptr *)value = address; break;
        case 9: *(int *)value = b ? c->device : 0; break;
        case 11: *(CUdeviceptr *)value = b ? b->base : (CUdeviceptr)(uintptr_t)h->p; break;
        case 12: *(size_t *)value = b ? b->bytes : h->bytes; break;
        default: return CU_INVALID_VALUE;
    }
    return CU_OK;
}

CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr address) {
    CUresult r = sim_enter("cuPointerGetAttribute", NEEDS_INIT);
    if (!r) r = pointer_attribute(value, attribute, address);
    return sim_leave(r);
}

/* ---- copies ---------------------------------------------------------------------------------------------------- */

void sim_run_copy(sim_context *c, const operation *o) {
    sim_buffer *to = o->to ? sim_buffer_find(&c->memory, o->to, o->bytes) : NULL;
    sim_buffer *from = o->from ? sim_buffer_find(&c->memory, o->from, o->bytes) : NULL;
    const uint8_t *source = o->snapshot ? o->snapshot : (const uint8_t *)o->host_from;
    if ((o->to && !to) || (o->from && !from)) {
        sim_report_host(PTXSIM_HOST, "a copy of %lu bytes touches memory that was freed before it ran",
                        (unsigned long)o->bytes);
        c->sticky = CU_ILLEGAL_ADDRESS;
        return;
    }
    if (from) source = from->data + (o->from - from->base);
    memmove(to ? to->data + (o->to - to->base) : (uint8_t *)o->host_to, source, o->bytes);
    if (!to) {
        sim_driver.counters.copies_to_host++;
        sim_driver.counters.bytes_to_host += o->bytes;
    } else if (from) {
        memmove(to->written + (o->to - to->base), from->written + (o->from - from->base), o->bytes);
        sim_driver.counters.copies_on_device++;
        sim_driver.counters.bytes_on_device += o->bytes;
    } else {
        memset(to->written + (o->to - to->base), 1, o->bytes);
        sim_driver.counters.copies_to_device++;
        sim_driver.counters.bytes_to_device += o->bytes;
    }
}

static int is_bad_range(CUdeviceptr address, size_t bytes) {
    return !sim_buffer_find(&sim_current()->memory, address, bytes);
}

/* The source of a copy from ordinary host memory may be reused at once; pinned memory is read when the copy runs, and
   in a graph it is read at each replay, whatever it is. */
static CUresult copy(CUdeviceptr to, void *host_to, CUdeviceptr from, const void *host_from, size_t bytes,
                     CUstream stream) {
    operation *o;
    sim_stream *s = sim_find_stream(stream);
    if (!bytes) return CU_OK;
    if (!s) return CU_INVALID_HANDLE;
    if (!host_to && is_bad_range(to, bytes)) return CU_INVALID_VALUE;
    if (!host_from && is_bad_range(from, bytes)) return CU_INVALID_VALUE;
    o = sim_operation(COPY);
    o->to = to;
    o->from = from;
    o->host_to = host_to;
    o->host_from = host_from;
    o->bytes = bytes;
    if (host_from && !pinned(host_from) && !s->capture) {
        o->snapshot = (uint8_t *)sim_allocate(bytes);
        memcpy(o->snapshot, host_from, bytes);
    }
    return sim_submit(stream, o);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    CUresult r = sim_enter("cuMemcpyHtoDAsync_v2", NEEDS_CONTEXT);
    if (!r) r = from ? copy(to, NULL, 0, from, bytes, stream) : CU_INVALID_VALUE;
    return sim_leave(r);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CUresult r = sim_enter("cuMemcpyDtoHAsync_v2", NEEDS_CONTEXT);
    if (!r) r = to ? copy(0, to, from, NULL, bytes, stream) : CU_INVALID_VALUE;
    return sim_leave(r);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CUresult r = sim_enter("cuMemcpyDtoDAsync_v2", NEEDS_CONTEXT);
    if (!r) r = copy(to, NULL, from, NULL, bytes, stream);
    return sim_leave(r);
}

/* The synchronous ones: the legacy stream, and a wait for it, which is none for non-blocking streams. */
static CUresult finish(CUresult r) {
    if (r) return r;
    sim_driver.counters.synchronisations++;
    sim_run_until(&sim_current()->null_stream, UINT64_MAX);
    return sim_current()->sticky;
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    CUresult r = sim_enter("cuMemcpyHtoD_v2", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = from ? finish(copy(to, NULL, 0, from, bytes, NULL)) : CU_INVALID_VALUE;
    return sim_leave(r);
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    CUresult r = sim_enter("cuMemcpyDtoH_v2", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = to ? finish(copy(0, to, from, NULL, bytes, NULL)) : CU_INVALID_VALUE;
    return sim_leave(r);
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    CUresult r = sim_enter("cuMemcpyDtoD_v2", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = finish(copy(to, NULL, from, NULL, bytes, NULL));
    return sim_leave(r);
}

/* ---- fills ----------------------------------------------------------------------------------------------------- */

void sim_run_fill(sim_context *c, const operation *o) {
    sim_buffer *b = sim_buffer_find(&c->memory, o->to, o->bytes * o->width);
    size_t i;
    if (!b) {
        sim_report_host(PTXSIM_HOST, "a fill touches memory that was freed before it ran");
        c->sticky = CU_ILLEGAL_ADDRESS;
        return;
    }
    for (i = 0; i < o->bytes; i++) memcpy(b->data + (o->to - b->base) + i * o->width, &o->value, o->width);
    memset(b->written + (o->to - b->base), 1, o->bytes * o->width);
    sim_driver.counters.fills++;
}

static CUresult fill(CUdeviceptr to, uint32_t value, size_t count, size_t width, CUstream stream) {
    operation *o;
    if (to % width) return CU_INVALID_VALUE;
    if (!count) return CU_OK;
    if (!sim_find_stream(stream)) return CU_INVALID_HANDLE;
    if (is_bad_range(to, count * width)) return CU_INVALID_VALUE;
    o = sim_operation(FILL);
    o->to = to;
    o->value = value;
    o->bytes = count;
    o->width = width;
    return sim_submit(stream, o);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    CUresult r = sim_enter("cuMemsetD8Async", NEEDS_CONTEXT);
    if (!r) r = fill(to, value, count, 1, stream);
    return sim_leave(r);
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    CUresult r = sim_enter("cuMemsetD32Async", NEEDS_CONTEXT);
    if (!r) r = fill(to, value, count, 4, stream);
    return sim_leave(r);
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    CUresult r = sim_enter("cuMemsetD8_v2", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = fill(to, value, count, 1, NULL);
    return sim_leave(r);
}

CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    CUresult r = sim_enter("cuMemsetD32_v2", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = fill(to, value, count, 4, NULL);
    return sim_leave(r);
}
