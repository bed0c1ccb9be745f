/* report.c - what went wrong, and where: kernel, line of the PTX and of the source, instruction, block and thread. */
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>

enum { MAX_PLACES = 256, MAX_PRINTED = 40 };

/* Reports are counted all, but told once for every place and kind. The lock of driver.c guards this. */
static struct {
    int count[PTXSIM_KINDS];
    char last[600];
    int quiet, printed;
    struct {
        const sim_instruction *in;
        ptxsim_kind kind;
    } told[MAX_PLACES];
    int places;
} reports;

static const char *const kind_names[PTXSIM_KINDS] = {
    "OUT OF BOUNDS", "MISALIGNED", "UNINITIALISED", "SHARED RACE", "GLOBAL RACE", "READ-ONLY",
    "CONVERGENCE",   "DEADLOCK",   "ASYNC",         "TRAP",        "HOST",        "LEAK",
};

const char *ptxsim_kind_name(int kind) {
    return kind >= 0 && kind < PTXSIM_KINDS ? kind_names[kind] : "";
}

int ptxsim_reports(int kind) {
    int i, sum = 0;
    if (kind >= 0) return kind < PTXSIM_KINDS ? reports.count[kind] : 0;
    for (i = 0; i < PTXSIM_KINDS; i++) sum += reports.count[i];
    return sum;
}

const char *ptxsim_last_report(void) {
    return reports.last;
}

void sim_report_clear(void) {
    int quiet = reports.quiet;
    memset(&reports, 0, sizeof reports);
    reports.quiet = quiet;
}

void sim_report_quiet(int quiet) {
    reports.quiet = quiet;
}

/* Instructions are freed: a new one may lie where an old one was. */
void sim_report_forget_places(void) {
    reports.places = 0;
}

static void say(void) {
    if (reports.quiet || reports.printed > MAX_PRINTED) return;
    if (reports.printed++ == MAX_PRINTED) fprintf(stderr, "ptxsim: more reports are counted, but not printed\n");
    else fprintf(stderr, "ptxsim: %s\n", reports.last);
}

static int is_told(const sim_instruction *in, ptxsim_kind kind) {
    int i;
    for (i = 0; i < reports.places; i++) {
        if (reports.told[i].in == in && reports.told[i].kind == kind) return 1;
    }
    if (reports.places < MAX_PLACES) {
        reports.told[reports.places].in = in;
        reports.told[reports.places++].kind = kind;
    }
    return 0;
}

/* in may be NULL. error 0: the launch goes on. */
void sim_report(sim_machine *m, const sim_instruction *in, int lane, ptxsim_kind kind, int error, const char *format,
                ...) {
    char what[280], where[160] = "";
    uint32_t thread = (uint32_t)(m->warp ? m->warp->index * LANES : 0) + (uint32_t)lane;
    va_list list;
    if (error && !m->error) m->error = error;
    reports.count[kind]++;
    if (is_told(in, kind)) return;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    if (in && in->source_line) snprintf(where, sizeof where, ", source line %u", (unsigned)in->source_line);
    snprintf(reports.last, sizeof reports.last,
             "%s: %s: %s; PTX line %u%s `%.*s`, block (%u,%u,%u), thread (%u,%u,%u)", kind_names[kind],
             m->kernel->name, what, in ? (unsigned)in->line : 0, where, in ? in->text_length : 0, in ? in->text : "",
             (unsigned)m->block_index[0], (unsigned)m->block_index[1], (unsigned)m->block_index[2],
             (unsigned)(thread % m->block[0]), (unsigned)(thread / m->block[0] % m->block[1]),
             (unsigned)(thread / m->block[0] / m->block[1]));
    say();
}

void sim_report_host(ptxsim_kind kind, const char *format, ...) {
    char what[400];
    va_list list;
    reports.count[kind]++;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    snprintf(reports.last, sizeof reports.last, "%s: %s", kind_names[kind], what);
    say();
}
