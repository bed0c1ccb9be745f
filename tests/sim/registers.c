/* registers.c - PTX has a new register for nearly every value, thousands of them. Values that are never needed at the
   same time share a place here, so that the registers of a warp stay in the cache and a block has few to poison.

   Liveness is that of one thread. It holds for a warp, because an instruction writes the lanes that run it alone. */
#include "sim.h"

#include <stdlib.h>

enum { UNIT = 2 * LANES, WIDTHS = 5 };      /* the bytes of the narrowest register; others have 2 or 4 times as many */

/* Instructions that run one after the other. */
typedef struct stretch {
    int first, last, next[2];               /* next: -1 for none */
} stretch;

/* What one register of the program holds, and from which instruction to which. */
typedef struct value {
    int32_t units, place;
    int first, last;
    int next_start, next_end;               /* lists: values that begin, or end, at the same instruction */
} value;

typedef struct liveness {
    sim_kernel *kernel;
    int *value_at;                          /* of the register at offset UNIT * i */
    value *values;
    int count;
    stretch *stretches;
    int stretch_count;
    size_t words;                           /* of a set of values */
    uint64_t *read, *written, *live;        /* sets of a stretch: read before it is written; live: at its start */
} liveness;

static int *ints(int count, int each) {
    int *p = (int *)sim_allocate((size_t)count * sizeof *p), i;
    for (i = 0; i < count; i++) p[i] = each;
    return p;
}

/* ---- the flow of control --------------------------------------------------------------------------------------- */

static int falls_through(const sim_instruction *in) {
    return (in->flow != BRANCH && in->flow != EXIT) || in->predicate >= 0;
}

static void find_stretches(liveness *l) {
    const sim_instruction *code = l->kernel->code;
    int n = l->kernel->count, *starts = ints(n + 1, 0), i;
    starts[0] = 1;
    for (i = 0; i < n; i++) {
        if (code[i].flow == BRANCH) starts[code[i].target] = 1;
        if (code[i].flow == BRANCH || code[i].flow == EXIT) starts[i + 1] = 1;
    }
    l->stretches = (stretch *)sim_allocate((size_t)n * sizeof *l->stretches);
    for (i = 0; i < n; i++) {
        if (starts[i]) l->stretches[l->stretch_count++].first = i;
        l->stretches[l->stretch_count - 1].last = i;
        starts[i] = l->stretch_count - 1;
    }
    for (i = 0; i < l->stretch_count; i++) {
        const sim_instruction *in = &code[l->stretches[i].last];
        l->stretches[i].next[0] = falls_through(in) && i + 1 < l->stretch_count ? i + 1 : -1;
        l->stretches[i].next[1] = in->flow == BRANCH ? starts[in->target] : -1;
    }
    free(starts);
}

/* ---- sets ------------------------------------------------------------------------------------------------------ */

static void include(uint64_t *set, int v) {
    set[v / 64] |= (uint64_t)1 << v % 64;
}

static void exclude(uint64_t *set, int v) {
    set[v / 64] &= ~((uint64_t)1 << v % 64);
}

/* The value of an operand, -1: it is a constant or nothing. */
static int value_of(const liveness *l, int32_t operand) {
    return operand < 0 ? -1 : l->value_at[operand / UNIT];
}

/* Backwards over a stretch. What a guarded instruction does not write stays, as if it read it. */
static void summarize(const liveness *l, const stretch *s, uint64_t *read, uint64_t *written) {
    int i, k, v;
    for (i = s->last; i >= s->first; i--) {
        const sim_instruction *in = &l->kernel->code[i];
        int results = in->predicate < 0 ? in->results : 0;
        for (k = 0; k < results; k++) {
            v = value_of(l, in->operand[k]);
            if (v < 0) continue;
            include(written, v);
            exclude(read, v);
        }
        for (k = results; k < in->operands; k++) {
            v = value_of(l, in->operand[k]);
            if (v >= 0) include(read, v);
        }
        v = value_of(l, in->predicate);
        if (v >= 0) include(read, v);
    }
}

static uint64_t live_behind(const liveness *l, const stretch *s, size_t word) {
    uint64_t behind = 0;
    int k;
    for (k = 0; k < 2; k++) {
        if (s->next[k] >= 0) behind |= l->live[(size_t)s->next[k] * l->words + word];
    }
    return behind;
}

static void find_live(liveness *l) {
    size_t bytes = (size_t)l->stretch_count * l->words * 8, w;
    int s, changed = 1;
    l->read = (uint64_t *)sim_allocate(bytes);
    l->written = (uint64_t *)sim_allocate(bytes);
    l->live = (uint64_t *)sim_allocate(bytes);
    for (s = 0; s < l->stretch_count; s++) {
        summarize(l, &l->stretches[s], l->read + (size_t)s * l->words, l->written + (size_t)s * l->words);
    }
    while (changed) {
        changed = 0;
        for (s = l->stretch_count - 1; s >= 0; s--) {
            for (w = 0; w < l->words; w++) {
                size_t at = (size_t)s * l->words + w;
                uint64_t live = l->read[at] | (live_behind(l, &l->stretches[s], w) & ~l->written[at]);
                changed |= live != l->live[at];
                l->live[at] = live;
            }
        }
    }
}

/* ---- from where to where --------------------------------------------------------------------------------------- */

static void extend(value *v, int instruction) {
    if (v->first < 0 || instruction < v->first) v->first = instruction;
    if (instruction > v->last) v->last = instruction;
}

static void extend_set(liveness *l, uint64_t set, size_t word, int instruction) {
    int i;
    for (i = 0; set; i++, set >>= 1) {
        if (set & 1) extend(&l->values[word * 64 + (size_t)i], instruction);
    }
}

static void find_ranges(liveness *l) {
    const sim_kernel *kernel = l->kernel;
    size_t w;
    int i, k;
    for (i = 0; i < l->stretch_count; i++) {
        const stretch *s = &l->stretches[i];
        for (w = 0; w < l->words; w++) {
            extend_set(l, l->live[(size_t)i * l->words + w], w, s->first);
            extend_set(l, live_behind(l, s, w), w, s->last);
        }
    }
    for (i = 0; i < kernel->count; i++) {
        const sim_instruction *in = &kernel->code[i];
        for (k = 0; k < in->operands; k++) {
            if (in->operand[k] >= 0) extend(&l->values[value_of(l, in->operand[k])], i);
        }
        if (in->predicate >= 0) extend(&l->values[value_of(l, in->predicate)], i);
    }
    for (i = 0; i < kernel->specials; i++) extend(&l->values[value_of(l, kernel->special[i].offset)], 0);
}

/* ---- places ---------------------------------------------------------------------------------------------------- */

/* Returns the units in all. A value that ends where another begins does not give it its place yet: some instructions
   write a result before they have read everything. */
static int32_t find_places(liveness *l) {
    int n = l->kernel->count, *starts = ints(n, -1), *ends = ints(n, -1);
    int *free_place[WIDTHS], free_count[WIDTHS] = { 0 };
    int32_t units = 0;
    int i, v;
    for (i = 0; i < WIDTHS; i++) free_place[i] = ints(l->count, 0);
    for (v = 0; v < l->count; v++) {
        value *it = &l->values[v];
        if (it->first < 0) continue;
        it->next_start = starts[it->first];
        starts[it->first] = v;
        it->next_end = ends[it->last];
        ends[it->last] = v;
    }
    for (i = 0; i < n; i++) {
        for (v = starts[i]; v >= 0; v = l->values[v].next_start) {
            int width = l->values[v].units;
            if (free_count[width]) {
                l->values[v].place = free_place[width][--free_count[width]];
            } else {
                l->values[v].place = units;
                units += width;
            }
        }
        for (v = ends[i]; v >= 0; v = l->values[v].next_end) {
            int width = l->values[v].units;
            free_place[width][free_count[width]++] = l->values[v].place;
        }
    }
    for (i = 0; i < WIDTHS; i++) free(free_place[i]);
    free(starts);
    free(ends);
    return units;
}

static void move_register(const liveness *l, int32_t *offset) {
    int v = value_of(l, *offset);
    if (v >= 0) *offset = l->values[v].place * UNIT;
}

static void list_values(liveness *l) {
    const sim_kernel *kernel = l->kernel;
    int units = kernel->register_bytes / UNIT, v;
    l->count = kernel->register_count;
    l->words = (size_t)(l->count + 63) / 64;
    l->value_at = ints(units, -1);
    l->values = (value *)sim_allocate((size_t)l->count * sizeof *l->values);
    for (v = 0; v < l->count; v++) {
        int at = kernel->register_at[v] / UNIT, end = v + 1 < l->count ? kernel->register_at[v + 1] / UNIT : units;
        l->value_at[at] = v;
        l->values[v].units = end - at;
        l->values[v].first = -1;
    }
}

void sim_share_registers(sim_kernel *kernel) {
    liveness l;
    int i;
    memset(&l, 0, sizeof l);
    l.kernel = kernel;
    list_values(&l);
    find_stretches(&l);
    find_live(&l);
    find_ranges(&l);
    kernel->register_bytes = find_places(&l) * UNIT;
    for (i = 0; i < kernel->operand_count; i++) move_register(&l, &kernel->operands[i]);
    for (i = 0; i < kernel->count; i++) move_register(&l, &kernel->code[i].predicate);
    for (i = 0; i < kernel->specials; i++) move_register(&l, &kernel->special[i].offset);
    free(l.value_at);
    free(l.values);
    free(l.stretches);
    free(l.read);
    free(l.written);
    free(l.live);
}
