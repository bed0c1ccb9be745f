/* compare.c - a recording beside another one, case by case. */
#include "conformance.h"

#include "../sim/form_kernel.h"

#include <math.h>
#include <stdlib.h>

typedef struct comparison {
    conf_summary sum;
    void (*say)(void *user, const char *line);
    void *user;
} comparison;

static void say(const comparison *c, const char *name, const char *what) {
    char line[1000];
    if (!c->say) return;
    snprintf(line, sizeof line, "%s: %.800s", name, what);
    c->say(c->user, line);
}

/* ---- when two results of a form agree -------------------------------------------------------------------------- */

static float float_of(uint64_t bits) {
    uint32_t u = (uint32_t)bits;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static int is_nan(uint64_t bits, int width) {
    if (width == 8) return (bits & 0x7FFFFFFFFFFFFFFFu) > 0x7FF0000000000000u;
    return width == 4 && (bits & 0x7FFFFFFFu) > 0x7F800000u;
}

/* What the manual promises of an approximation: relative and absolute errors, and for which operands. */
typedef struct bound {
    const char *name;
    double relative, absolute, least, most;
} bound;

static const bound *bound_of(const char *name) {
    static const bound bounds[] = {
        { "rcp.approx", 0x1p-23, 0, 0, INFINITY },       { "sqrt.approx", 0x1p-23, 0, 0, INFINITY },
        { "rsqrt.approx", 0x1.2p-23, 0, 0, INFINITY },   { "ex2.approx", 0x1p-22, 0, 0, INFINITY },
        { "lg2.approx", 0x1p-22, 0x1p-22, 0, INFINITY }, { "tanh.approx", 0x1p-10, 0, 0, INFINITY },
        { "sin.approx", 0, 0x1.7p-21, 0, 3.1415927 },    { "cos.approx", 0, 0x1.7p-21, 0, 3.1415927 },
        { "div.approx", 0x1p-22, 0, 0x1p-126, 0x1p126 }, { "div.full", 0x1p-22, 0, 0x1p-126, 0x1p126 },
    };
    size_t i;
    for (i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        if (!strncmp(name, bounds[i].name, strlen(bounds[i].name))) return &bounds[i];
    }
    return NULL;
}

/* Outside of them nothing is promised but for zero, infinity and NaN. */
static int is_promised(const bound *b, double operand) {
    double size = fabs(operand);
    return (size >= b->least && size <= b->most) || size == 0 || !isfinite(size);
}

static int is_within(const bound *b, int ftz, double gpu, double simulated) {
    double tiny = ftz ? 0x1p-126 : 0x1p-148;
    if (isinf(gpu) && isinf(simulated)) return signbit(gpu) == signbit(simulated);
    if (isinf(gpu)) gpu = copysign(0x1p128, gpu);
    if (isinf(simulated)) simulated = copysign(0x1p128, simulated);
    return fabs(gpu - simulated) <= (b->relative + 0x1p-24) * fabs(gpu) + b->absolute + tiny;
}

/* Where the manual leaves the bits of a NaN open. */
static int has_open_nan(const char *name) {
    int signs = !strncmp(name, "neg.", 4) || !strncmp(name, "abs.", 4) || !strncmp(name, "copysign.", 9);
    if (!strncmp(name, "mov.", 4) || !strncmp(name, "selp.", 5)) return 0;
    return strstr(name, ".f64") != NULL || (signs && strstr(name, ".f32/"));
}

/* The last operand decides whether a bound holds: the divisor, or the only one there is. */
static int agrees(const conf_case *c, const uint64_t *operands, uint64_t gpu, uint64_t simulated) {
    int width = form_width(c->operands[0]);
    const bound *b = bound_of(c->name);
    if (gpu == simulated) return 1;
    if (b && !is_promised(b, (double)float_of(operands[conf_sources(c) - 1]))) return 1;
    if (is_nan(gpu, width) || is_nan(simulated, width)) {
        return is_nan(gpu, width) && is_nan(simulated, width) && (b || has_open_nan(c->name));
    }
    return b && is_within(b, strstr(c->name, ".ftz") != NULL, (double)float_of(gpu), (double)float_of(simulated));
}

/* ---- results --------------------------------------------------------------------------------------------------- */

static uint64_t result_of(const conf_case *c, const uint8_t *out, int t) {
    uint64_t v = 0;
    size_t width = (size_t)form_width(c->operands[0]);
    if (c->operands[0] == 'p') return out[t / 8] >> t % 8 & 1;
    memcpy(&v, out + (size_t)t * width, width);
    return v;
}

/* Says the first thread that differs, and how many do. */
static int compare_form(comparison *k, const conf_case *c, const uint8_t *gpu, const uint8_t *simulated) {
    size_t bytes;
    uint64_t *in = conf_inputs(c, &bytes);
    int sources = conf_sources(c), t, i, bad = 0;
    char first[300] = "", line[400];
    for (t = 0; t < CONF_THREADS; t++) {
        uint64_t g = result_of(c, gpu, t), s = result_of(c, simulated, t), a[4] = { 0, 0, 0, 0 };
        size_t n = 0;
        for (i = 0; i < sources; i++) a[i] = in[i * CONF_THREADS + t];
        if (agrees(c, a, g, s) || bad++) continue;
        for (i = 0; i < sources; i++) {
            n += (size_t)snprintf(first + n, sizeof first - n, "%s%llx", i ? ", " : "(", (unsigned long long)a[i]);
        }
        snprintf(first + n, sizeof first - n, "): the GPU gives %llx, the simulator %llx", (unsigned long long)g,
                 (unsigned long long)s);
    }
    free(in);
    if (!bad) return 1;
    snprintf(line, sizeof line, "%d of %d threads differ, the first of %s", bad, (int)CONF_THREADS, first);
    say(k, c->name, line);
    return 0;
}

static int compare_bytes(comparison *k, const conf_case *c, const conf_entry *gpu, const conf_entry *simulated) {
    size_t width = c->misuse ? 4 : 1, i, first = 0, bad = 0;
    int g = 0, s = 0;
    char line[300];
    if (gpu->bytes != simulated->bytes) {
        snprintf(line, sizeof line, "%lu bytes of the GPU, %lu of the simulator", (unsigned long)gpu->bytes,
                 (unsigned long)simulated->bytes);
        say(k, c->name, line);
        return 0;
    }
    for (i = 0; i < gpu->bytes; i += width) {
        if (!memcmp(gpu->out + i, simulated->out + i, width)) continue;
        if (!bad++) first = i;
    }
    if (!bad) return 1;
    memcpy(&g, gpu->out + first, width);
    memcpy(&s, simulated->out + first, width);
    snprintf(line, sizeof line, "%lu of %lu %s differ, the first is number %lu: the GPU gives %d, the simulator %d",
             (unsigned long)bad, (unsigned long)(gpu->bytes / width), c->misuse ? "codes" : "bytes",
             (unsigned long)(first / width), g, s);
    say(k, c->name, line);
    return 0;
}

/* ---- entries --------------------------------------------------------------------------------------------------- */

static const conf_entry *find(const conf_recording *r, const char *name) {
    int i;
    for (i = 0; i < r->count; i++) {
        if (!strcmp(r->entry[i].name, name)) return &r->entry[i];
    }
    return NULL;
}

/* What a driver refuses to load is absent, and tells nothing of the results; what it cannot finish is a result. */
static int is_absent(const conf_entry *e) {
    return e->code > 0 && e->message && !strncmp(e->message, "load:", 5);
}

static void compare_outcome(comparison *k, const conf_case *c, const conf_entry *gpu, const conf_entry *simulated) {
    char line[900];
    int same;
    if (is_absent(gpu)) {
        k->sum.absent++;
        return;
    }
    if (gpu->code || simulated->code) {
        same = gpu->code == simulated->code;
        snprintf(line, sizeof line, "the GPU: %d %.350s; the simulator: %d %.350s", gpu->code,
                 gpu->message ? gpu->message : "", simulated->code, simulated->message ? simulated->message : "");
        if (!same) say(k, c->name, line);
    } else if (c->operands && gpu->bytes == c->out_bytes && simulated->bytes == c->out_bytes) {
        same = compare_form(k, c, gpu->out, simulated->out);
    } else {
        same = compare_bytes(k, c, gpu, simulated);
    }
    k->sum.same += same;
    k->sum.different += !same;
}

static void compare_case(comparison *k, const conf_case *c, const conf_recording *gpu,
                         const conf_recording *simulated) {
    const conf_entry *g = find(gpu, c->name), *s = find(simulated, c->name);
    if (!g) {
        k->sum.missing++;
        say(k, c->name, "the recording does not have it");
    } else if (g->hash != conf_hash(c)) {
        k->sum.stale++;
        say(k, c->name, "the kernel or its inputs have changed since the recording");
    } else if (!s) {
        k->sum.different++;
        say(k, c->name, "the simulator did not run it");
    } else {
        compare_outcome(k, c, g, s);
    }
}

static int is_listed(const conf_list *list, const char *name) {
    int i;
    for (i = 0; i < list->count && strcmp(list->item[i].name, name) != 0; i++) {}
    return i < list->count;
}

conf_summary conf_compare(const conf_list *list, const conf_recording *gpu, const conf_recording *simulator,
                          void (*line)(void *user, const char *line), void *user) {
    comparison k;
    int i;
    memset(&k, 0, sizeof k);
    k.say = line;
    k.user = user;
    for (i = 0; i < list->count; i++) compare_case(&k, &list->item[i], gpu, simulator);
    for (i = 0; i < gpu->count; i++) k.sum.extra += !is_listed(list, gpu->entry[i].name);
    return k.sum;
}
