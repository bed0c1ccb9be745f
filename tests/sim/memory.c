/* memory.c - the memory of a device: buffers far from each other, poisoned, with a flag for every byte written. */
#define _POSIX_C_SOURCE 200809L
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>

enum { GUARD = 1 << 20, POISON = 0xA5 };

/* The simulator is a test program's: without memory it cannot tell anything true. */
static void *or_die(void *p, size_t bytes) {
    if (p) return p;
    fprintf(stderr, "ptxsim: no memory for %lu bytes\n", (unsigned long)bytes);
    abort();
}

void *sim_allocate(size_t bytes) {
    return or_die(calloc(bytes ? bytes : 1, 1), bytes);
}

void *sim_allocate_aligned(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 64)) p = NULL;
    return or_die(p, bytes);
}

/* Room for `needed` items; new ones are zero. */
void *sim_grow(void *p, int *capacity, int needed, size_t item) {
    int old = *capacity, now = old ? old : 8;
    void *grown;
    if (needed <= old) return p;
    while (now < needed) now *= 2;
    grown = or_die(realloc(p, (size_t)now * item), (size_t)now * item);
    memset((char *)grown + (size_t)old * item, 0, (size_t)(now - old) * item);
    *capacity = now;
    return grown;
}

char *sim_copy_text(const char *s, size_t n) {
    char *copy = (char *)sim_allocate(n + 1);
    memcpy(copy, s, n);
    return copy;
}

/* Devices have ranges of their own, so that an address of one is wrong on the other. */
void sim_memory_open(sim_memory *s, int device, size_t limit) {
    memset(s, 0, sizeof *s);
    s->next = DEVICE_WINDOW + ((uint64_t)device << WINDOW_BITS);
    s->end = s->next + ((uint64_t)1 << WINDOW_BITS);
    s->limit = limit;
}

static void forget_cells(sim_buffer *b) {
    size_t i;
    for (i = 0; b->cells && i <= b->bytes / 4 / CELL_PAGE; i++) {
        free(b->cells[i]);
        b->cells[i] = NULL;
    }
}

void sim_memory_forget_cells(sim_memory *s) {
    int i;
    for (i = 0; i < s->count; i++) forget_cells(s->buffer[i]);
}

static void drop_contents(sim_buffer *b) {
    forget_cells(b);
    free(b->cells);
    free(b->data);
    free(b->written);
    b->cells = NULL;
    b->data = NULL;
    b->written = NULL;
}

void sim_memory_close(sim_memory *s) {
    int i;
    for (i = 0; i < s->count; i++) {
        drop_contents(s->buffer[i]);
        free(s->buffer[i]);
    }
    free(s->buffer);
    memset(s, 0, sizeof *s);
}

/* Addresses are never used twice: what was freed stays wrong. */
sim_buffer *sim_buffer_make(sim_memory *s, size_t bytes) {
    sim_buffer *b;
    if (!bytes || bytes > s->limit - s->used || s->end - s->next < bytes + 2 * (uint64_t)GUARD) return NULL;
    b = (sim_buffer *)sim_allocate(sizeof *b);
    b->base = s->next;
    b->bytes = bytes;
    b->data = (uint8_t *)sim_allocate_aligned(bytes);
    memset(b->data, POISON, bytes);
    b->written = (uint8_t *)sim_allocate(bytes);
    b->cells = (global_cell **)sim_allocate((bytes / 4 / CELL_PAGE + 1) * sizeof *b->cells);
    s->next += (bytes + GUARD - 1) / GUARD * GUARD + GUARD;
    s->buffer = (sim_buffer **)sim_grow(s->buffer, &s->capacity, s->count + 1, sizeof *s->buffer);
    s->buffer[s->count++] = b;
    s->used += bytes;
    return b;
}

void sim_buffer_free(sim_memory *s, sim_buffer *b) {
    drop_contents(b);
    b->freed = 1;
    s->used -= b->bytes;
}

/* The last buffer that begins at or below the address. */
sim_buffer *sim_buffer_below(const sim_memory *s, uint64_t address) {
    int low = 0, high = s->count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (s->buffer[middle]->base <= address) low = middle + 1;
        else high = middle;
    }
    return low ? s->buffer[low - 1] : NULL;
}

sim_buffer *sim_buffer_find(const sim_memory *s, uint64_t address, size_t bytes) {
    sim_buffer *b = sim_buffer_below(s, address);
    if (!b || b->freed || address - b->base > b->bytes || bytes > b->bytes - (address - b->base)) return NULL;
    return b;
}
