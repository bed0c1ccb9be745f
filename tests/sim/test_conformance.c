/* test_conformance.c - replays on the simulator what GPUs gave (tests/conformance, made by `make conformance-record`),
   and tests the recorder with recordings of the simulator itself: they prove nothing of a GPU and are thrown away.

     conformance --compare [FILE]   prints where the simulator differs from a recording, or from all that are kept */
#define _DEFAULT_SOURCE
#include "../conformance/conformance.h"
#include "../conformance/driver.h"
#include "form_kernel.h"
#include "sim_test.h"

#include <dirent.h>
#include <signal.h>
#include <unistd.h>

/* Milliseconds until a case hangs; a compute capability that has all forms. */
enum { PATIENCE = 60000, EVERYTHING = 120 };

static const char *program;
static conf_list list;

/* What the simulator gives as a device of this compute capability. */
static void record_simulator(conf_recording *r, const conf_list *cases, int capability, int patience) {
    char text[20], why[300] = "";
    fresh_process();
    snprintf(text, sizeof text, "%d", capability);
    ptxsim_set("PTXSIM_CC", text);
    ptxsim_set("PTXSIM_DRIVER", "13090");
    CHECK(!conf_record(r, cases, patience, why, sizeof why), "%s", why);
}

static void scratch_path(char *path, size_t bytes) {
    snprintf(path, bytes, "%s.recording", program);
}

/* What the simulator gives with all forms, made once: as it is, and as a copy to be spoiled. */
static conf_recording simulated;

static void open_copy(conf_recording *copy) {
    char path[300], why[300] = "";
    if (!simulated.count) record_simulator(&simulated, &list, EVERYTHING, PATIENCE);
    scratch_path(path, sizeof path);
    CHECK(!conf_save(&simulated, path) && !conf_load(copy, path, why, sizeof why), "%s", why);
    remove(path);
}

static int is_exact(const conf_case *c) {
    static const char *const others[] = { "approx", "div.full", ".f64", "neg.f32", "neg.ftz.f32", "abs.f32",
                                          "abs.ftz.f32", "copysign" };
    size_t i;
    if (!strncmp(c->name, "mov.", 4) || !strncmp(c->name, "selp.", 5)) return 1;
    for (i = 0; i < sizeof others / sizeof *others; i++) {
        if (c->operands && strstr(c->name, others[i])) return 0;
    }
    return 1;
}

/* ---- the list -------------------------------------------------------------------------------------------------- */

/* 1: a program has this instruction. */
static int is_used(const char *form) {
    size_t n = strlen(form);
    int i;
    for (i = 0; i < list.count; i++) {
        const char *at = list.item[i].code;
        while (at && (at = strstr(at, form)) != NULL) {
            if (at[n] == ' ') return 1;
            at++;
        }
    }
    return 0;
}

static void every_form(void) {
    const char *name, *operands;
    char full[80];
    int i, k, forms = 0;
    for (i = 0; (name = ptxsim_form(i, &operands)) != NULL; i++) {
        int found = 0;
        snprintf(full, sizeof full, "%s/%s", name, operands);
        for (k = 0; k < list.count; k++) found |= !strcmp(list.item[k].name, full);
        CHECK(found || is_used(name), "%s has no case", full);
        forms++;
    }
    CHECK(forms >= 430, "%d forms", forms);
    for (i = 0; i < list.count; i++) {
        for (k = 0; k < i; k++) CHECK(strcmp(list.item[i].name, list.item[k].name), "%s twice", list.item[i].name);
    }
}

/* ---- recording, saving, loading, comparing --------------------------------------------------------------------- */

static void say_line(void *user, const char *line) {
    int *lines = (int *)user;
    if ((*lines)++ < 5) printf("  %s\n", line);
}

static void round_trip(void) {
    static const int capabilities[] = { 75, EVERYTHING };
    static const int absent_at_most[] = { 70, 0 };
    conf_recording first, loaded, again;
    conf_summary s;
    char path[300], why[300] = "";
    int i, k, lines = 0;
    scratch_path(path, sizeof path);
    for (i = 0; i < 2; i++) {
        record_simulator(&first, &list, capabilities[i], PATIENCE);
        CHECK(first.count == list.count && first.simulated && first.capability == capabilities[i], "%d", first.count);
        CHECK(!strcmp(first.device, "ptxsim (simulated)") && first.driver == 13090, "%s", first.device);
        CHECK(!conf_save(&first, path) && !conf_load(&loaded, path, why, sizeof why), "%s", why);
        CHECK(loaded.count == first.count && loaded.simulated, "%d entries", loaded.count);
        for (k = 0; k < loaded.count; k++) {
            const conf_entry *a = &first.entry[k], *b = &loaded.entry[k];
            CHECK(!strcmp(a->name, b->name) && a->hash == b->hash && a->code == b->code && a->bytes == b->bytes &&
                  !memcmp(a->out, b->out, a->bytes) && !strcmp(a->message ? a->message : "",
                                                                b->message ? b->message : ""), "%s", a->name);
            CHECK(!a->code || (a->code == 218 && strstr(a->message, "does not run on a device")), "%s: %d %s", a->name,
                  a->code, a->message);
        }
        record_simulator(&again, &list, capabilities[i], PATIENCE);
        s = conf_compare(&list, &loaded, &again, say_line, &lines);
        CHECK(s.same + s.absent == list.count && !s.different && !s.missing && !s.stale && !s.extra, "%d same", s.same);
        CHECK((s.absent > 0) == (absent_at_most[i] > 0) && s.absent <= absent_at_most[i], "%d absent", s.absent);
        conf_recording_close(&first);
        conf_recording_close(&loaded);
        conf_recording_close(&again);
    }
    remove(path);
}

/* A seed and a second kind of warp scheduling change nothing that a recording holds. */
static void other_order(void) {
    conf_recording in_order, seeded;
    conf_summary s;
    char why[300] = "", capability[20];
    int lines = 0;
    open_copy(&in_order);
    fresh_process();
    snprintf(capability, sizeof capability, "%d", EVERYTHING);
    ptxsim_set("PTXSIM_CC", capability);
    ptxsim_set("PTXSIM_SEED", "4711");
    CHECK(!conf_record(&seeded, &list, PATIENCE, why, sizeof why), "%s", why);
    s = conf_compare(&list, &in_order, &seeded, say_line, &lines);
    CHECK(s.same == list.count, "%d of %d", s.same, list.count);
    conf_recording_close(&in_order);
    conf_recording_close(&seeded);
    fresh_process();
}

/* ---- what must be noticed -------------------------------------------------------------------------------------- */

/* Names of what differs, one behind the other. */
typedef struct names {
    char text[1 << 17];
    size_t length;
} names;

static void take_name(void *user, const char *line) {
    names *n = (names *)user;
    size_t bytes = strlen(line);
    if (n->length + bytes + 2 > sizeof n->text) return;
    memcpy(n->text + n->length, line, bytes);
    n->text[n->length += bytes] = 0;
    memcpy(n->text + n->length++, "\n", 2);
}

static void forget_names(names *n) {
    n->length = 0;
    n->text[0] = 0;
}

static int differs(const names *n, const conf_case *c) {
    char start[100];
    const char *at;
    snprintf(start, sizeof start, "%s: ", c->name);
    at = strstr(n->text, start);
    while (at && at != n->text && at[-1] != '\n') at = strstr(at + 1, start);
    return at != NULL;
}

/* One bit of each entry, wherever it lies, differs in each of them, but where the bits of a result are left open. */
static void one_bit(void) {
    static names n;
    conf_recording gpu;
    conf_summary s;
    test_rng rng = { 3 };
    int i, exact = 0, round;
    for (round = 0; round < 2; round++) {
        open_copy(&gpu);
        for (i = 0; i < gpu.count; i++) {
            gpu.entry[i].out[test_next(&rng) % gpu.entry[i].bytes] ^= (uint8_t)(1 << test_range(&rng, 0, 7));
        }
        forget_names(&n);
        s = conf_compare(&list, &gpu, &simulated, take_name, &n);
        for (i = 0, exact = 0; i < list.count; i++) {
            exact += is_exact(&list.item[i]);
            CHECK(differs(&n, &list.item[i]) || !is_exact(&list.item[i]), "%s: a bit unnoticed", list.item[i].name);
        }
        CHECK(s.same + s.different == list.count && s.different >= exact && exact > 800, "%d differ", s.different);
        conf_recording_close(&gpu);
    }
}

static void flip_signs(conf_entry *e, size_t width) {
    size_t i;
    for (i = width - 1; i < e->bytes; i += width) e->out[i] ^= 0x80;
}

static void move_all(conf_entry *e, int units) {
    size_t i;
    uint32_t u;
    for (i = 0; i < e->bytes; i += 4) {
        memcpy(&u, e->out + i, 4);
        if ((u & 0x7FFFFFFF) < 0x7F000000u && (u & 0x7FFFFFFF) > 0x01000000u) u += (uint32_t)units;
        memcpy(e->out + i, &u, 4);
    }
}

/* Forms that are not compared bit by bit: a wrong sign is seen, a NaN's sign is not; approximations may be off by a
   unit, not by many. */
static void inexact(void) {
    static names n;
    conf_recording gpu;
    int i, k, forms = 0;
    for (k = 0; k < 3; k++) {
        open_copy(&gpu);
        for (i = 0; i < list.count; i++) {
            const conf_case *c = &list.item[i];
            if (is_exact(c)) continue;
            if (k == 0) flip_signs(&gpu.entry[i], (size_t)form_width(c->operands[0]));
            else if (strstr(c->name, "tanh")) move_all(&gpu.entry[i], k == 1 ? 2000 : 40000);
            else if (strstr(c->name, "approx") || strstr(c->name, "div.full")) move_all(&gpu.entry[i], k == 1 ? 1 : 64);
        }
        forget_names(&n);
        conf_compare(&list, &gpu, &simulated, take_name, &n);
        for (i = 0; i < list.count; i++) {
            const conf_case *c = &list.item[i];
            int approximate = strstr(c->name, "approx") || strstr(c->name, "div.full");
            if (is_exact(c)) CHECK(!differs(&n, c), "%s was not touched", c->name);
            else if (k == 0) CHECK(differs(&n, c), "%s: wrong signs unnoticed", c->name);
            else CHECK(differs(&n, c) == (approximate && k == 2), "%s, %d units off", c->name, k == 1 ? 1 : 64);
            forms += k == 0 && !is_exact(c);
        }
        conf_recording_close(&gpu);
    }
    CHECK(forms > 30, "%d forms", forms);
}

static void open_nan(void) {
    static const struct {
        const char *name;
        int letter, differs;
    } cases[] = { { "add.f64/ddd", 8, 0 }, { "neg.f32/ww", 4, 0 }, { "add.f32/www", 4, 1 } };
    conf_recording gpu;
    static names n;
    size_t i, at;
    int k;
    open_copy(&gpu);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (k = 0; strcmp(list.item[k].name, cases[i].name) != 0; k++) {}
        for (at = 0; at < gpu.entry[k].bytes; at += (size_t)cases[i].letter) {
            uint64_t u = 0;
            memcpy(&u, gpu.entry[k].out + at, (size_t)cases[i].letter);
            if (cases[i].letter == 8 ? (u & ~(uint64_t)0 >> 1) > 0x7FF0000000000000u : (u & 0x7FFFFFFF) > 0x7F800000u) {
                gpu.entry[k].out[at] ^= 2;
            }
        }
    }
    forget_names(&n);
    conf_compare(&list, &gpu, &simulated, take_name, &n);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (k = 0; strcmp(list.item[k].name, cases[i].name) != 0; k++) {}
        CHECK(differs(&n, &list.item[k]) == cases[i].differs, "%s", cases[i].name);
    }
    conf_recording_close(&gpu);
}

/* A case that the recording has not, one that has changed since, one that is gone, one that a device does not know. */
static void missing_forms(void) {
    conf_recording gpu;
    conf_summary s;
    static names n;
    open_copy(&gpu);
    strcpy(gpu.entry[7].name, "no.such.form");
    gpu.entry[8].hash++;
    gpu.entry[9].code = 218;
    gpu.entry[9].message = (char *)malloc(20);
    strcpy(gpu.entry[9].message, "load: too new");
    gpu.entry[10].code = 719;
    gpu.entry[10].message = (char *)malloc(20);
    strcpy(gpu.entry[10].message, "launch: failed");
    gpu.entry[11].bytes--;
    forget_names(&n);
    s = conf_compare(&list, &gpu, &simulated, take_name, &n);
    CHECK(s.missing == 1 && s.extra == 1 && s.stale == 1 && s.absent == 1 && s.different == 2, "%d %d %d %d %d",
          s.missing, s.extra, s.stale, s.absent, s.different);
    CHECK(differs(&n, &list.item[7]) && strstr(n.text, "the recording does not have it"), "%s", n.text);
    CHECK(differs(&n, &list.item[8]) && strstr(n.text, "have changed since the recording"), "%s", n.text);
    CHECK(!differs(&n, &list.item[9]) && differs(&n, &list.item[10]) && differs(&n, &list.item[11]), "%s", n.text);
    s = conf_compare(&list, &simulated, &gpu, NULL, NULL);
    CHECK(s.different == 4 && s.stale == 0, "%d differ the other way round", s.different);
    conf_recording_close(&gpu);
}

/* ---- damaged files --------------------------------------------------------------------------------------------- */

static char *read_file(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    char *data;
    CHECK(f, "%s", path);
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    data = (char *)malloc(*bytes + 1);
    CHECK(data && fread(data, 1, *bytes, f) == *bytes, "%s", path);
    fclose(f);
    return data;
}

static int loads(const char *path, const char *data, size_t bytes) {
    conf_recording r;
    char why[300];
    FILE *f = fopen(path, "wb");
    int bad;
    CHECK(f && fwrite(data, 1, bytes, f) == bytes, "%s", path);
    if (f) fclose(f);
    bad = conf_load(&r, path, why, sizeof why);
    CHECK(!bad || strstr(why, "damaged or cut short at line"), "%s", why);
    if (!bad) conf_recording_close(&r);
    return !bad;
}

/* A few entries of every kind: the file is small, so that each place in it can be tried. */
static void damaged_files(void) {
    conf_list few;
    conf_recording r;
    char path[300], why[300], *data;
    test_rng rng = { 5 };
    size_t bytes = 0, i;
    memset(&few, 0, sizeof few);
    for (i = 0; i < (size_t)list.count; i += 1 + (size_t)list.count / 12) {
        *conf_add(&few, "") = list.item[i];
    }
    record_simulator(&r, &few, 90, PATIENCE);
    scratch_path(path, sizeof path);
    r.entry[1].code = 218;
    r.entry[1].message = (char *)calloc(1, 1);
    CHECK(!conf_save(&r, path), "save");
    conf_recording_close(&r);
    free(few.item);
    data = read_file(path, &bytes);
    if (!data) return;
    CHECK(loads(path, data, bytes), "the whole file");
    for (i = 0; i < bytes; i += i < 200 || i > bytes - 200 ? 1 : 37) {
        char old = data[i], now = "0 -A\n\t\377z"[test_range(&rng, 0, 7)];
        CHECK(!loads(path, data, i), "cut to %lu bytes of %lu", (unsigned long)i, (unsigned long)bytes);
        data[i] = now;
        CHECK(!loads(path, data, bytes) || now == old, "byte %lu: %d instead of %d", (unsigned long)i, now, old);
        data[i] = old;
    }
    free(data);
    remove(path);
    CHECK(conf_load(&r, path, why, sizeof why) == 1 && strstr(why, "no such file"), "%s", why);
}

/* ---- what must not end a recording ----------------------------------------------------------------------------- */

static void dies(const conf_driver *d, void (*code)(void *user, int result), void *user) {
    (void)d;
    (void)code;
    (void)user;
    kill(getpid(), SIGKILL);
}

static void leaves(const conf_driver *d, void (*code)(void *user, int result), void *user) {
    code(user, d->cuInit(0));
    _exit(5);
}

static void hangs(const conf_driver *d, void (*code)(void *user, int result), void *user) {
    code(user, d->cuInit(0));
    for (;;) pause();
}

static void add_kernel(conf_list *l, const char *name, const char *code) {
    conf_case *c = conf_add(l, name);
    c->variables = (char *)calloc(1, 1);
    c->code = (char *)malloc(strlen(code) + 1);
    strcpy(c->code, code);
    c->out_bytes = 4;
}

static void bad_cases(void) {
    static const int codes[] = { 0, 700, 0, CONF_DIED, CONF_DIED, 218, 0, 702 };
    static const char *const good = "st.global.u32 [d1], 42;";
    conf_list l;
    conf_recording r;
    char why[300];
    int i;
    memset(&l, 0, sizeof l);
    add_kernel(&l, "good", good);
    add_kernel(&l, "faults", "mov.u64 d5, 0;\nst.global.u32 [d5], 1;");
    add_kernel(&l, "good behind it", good);
    conf_add(&l, "dies")->misuse = dies;
    conf_add(&l, "leaves")->misuse = leaves;
    add_kernel(&l, "does not load", "add.v7.u32 r5, r6, r7;");
    add_kernel(&l, "good at the end", good);
    add_kernel(&l, "does not end", "L:\nbra L;");
    fresh_process();
    ptxsim_set("PTXSIM_STEPS", "10000");
    CHECK(!conf_record(&r, &l, PATIENCE, why, sizeof why), "%s", why);
    CHECK(r.count == l.count, "%d entries", r.count);
    for (i = 0; i < r.count; i++) {
        const conf_entry *e = &r.entry[i];
        CHECK(!strcmp(e->name, l.item[i].name) && e->code == codes[i], "%s: %d, not %d", e->name, e->code, codes[i]);
        CHECK(e->code ? e->message && !e->bytes : e->bytes == 4 && e->out[0] == 42, "%s", e->name);
    }
    CHECK(strstr(r.entry[3].message, "signal 9") && strstr(r.entry[4].message, "status 5"), "%s", r.entry[4].message);
    CHECK(strstr(r.entry[5].message, "add.v7.u32"), "%s", r.entry[5].message);
    conf_recording_close(&r);
    conf_list_close(&l);
}

/* What comes behind may hang, too, for so short a time on a busy machine; it has its entry. */
static void hanging_case(void) {
    conf_list l;
    conf_recording r;
    char why[300];
    memset(&l, 0, sizeof l);
    conf_add(&l, "hangs")->misuse = hangs;
    conf_add(&l, "dies")->misuse = dies;
    fresh_process();
    CHECK(!conf_record(&r, &l, 100, why, sizeof why), "%s", why);
    CHECK(r.count == 2 && r.entry[0].code == CONF_HUNG && strstr(r.entry[0].message, "did not end"), "%d", r.count);
    CHECK(!strcmp(r.entry[1].name, "dies") && r.entry[1].code < 0, "%d", r.entry[1].code);
    conf_recording_close(&r);
    conf_list_close(&l);
}

static void no_device(void) {
    conf_recording r;
    char why[300] = "";
    fresh_process();
    ptxsim_set("PTXSIM_DEVICES", "0");
    CHECK(conf_record(&r, &list, PATIENCE, why, sizeof why) == -1 && strstr(why, "error 100"), "%s", why);
    fresh_process();
}

/* ---- what the assembler says ----------------------------------------------------------------------------------- */

static int find_ptxas(char *ptxas, size_t bytes) {
    const char *home = getenv("CUDA_HOME");
    char command[400];
    snprintf(ptxas, bytes, "ptxas");
    if (!system("ptxas --version >/dev/null 2>&1")) return 1;
    snprintf(ptxas, bytes, "%s/bin/ptxas", home ? home : "/usr/local/cuda");
    snprintf(command, sizeof command, "%s --version >/dev/null 2>&1", ptxas);
    return !system(command);
}

/* The kernels of one level, or of all up to sm_90; the head of the first stands for all. */
static int write_kernels(const char *path, const form_level *head, int level) {
    char entry[20], text[200];
    FILE *f = fopen(path, "w");
    int i, k, written = 0;
    CHECK(f, "%s", path);
    if (!f) return 0;
    form_head(text, sizeof text, head);
    fputs(text, f);
    for (i = 0; i < list.count; i++) {
        const conf_case *c = &list.item[i];
        char *kernel, *body;
        if (c->misuse || (level < 0 ? c->level == LEVEL_BLACKWELL : c->level != level)) continue;
        snprintf(entry, sizeof entry, "k%d", i);
        body = kernel = conf_text(c, entry);
        for (k = 0; k < 3; k++) body = strchr(body, '\n') + 1;
        fputs(body, f);
        free(kernel);
        written++;
    }
    fclose(f);
    return written;
}

/* For a virtual architecture ptxas makes no code: it looks whether version and target have what stands there. */
static int assemble(const char *ptxas, const form_level *head, const char *architecture, int level) {
    char path[300], code[300], command[1200];
    int written;
    snprintf(command, sizeof command, "%s --help | grep -q %s", ptxas, architecture);
    if (system(command)) return 0;
    snprintf(path, sizeof path, "%s.ptx", program);
    snprintf(code, sizeof code, "%s.cubin", program); /* not /dev/null, which ptxas would replace if root runs it */
    written = write_kernels(path, head, level);
    snprintf(command, sizeof command, "%s -O0 -arch=%s -o %s %s 2>&1 | grep -v 'is deprecated'", ptxas, architecture,
             code, path);
    CHECK(system(command) != 0, "%s says something", command);
    remove(path);
    remove(code);
    return written;
}

static void assembling(void) {
    static const form_level hopper = { "8.1", "sm_90a" };
    char ptxas[300];
    char architecture[20];
    int level, written = 0;
    if (!find_ptxas(ptxas, sizeof ptxas)) {
        test_skip("no ptxas");
        return;
    }
    for (level = 0; level < LEVELS; level++) {
        snprintf(architecture, sizeof architecture, "compute_%s", form_level_at(level)->target + 3);
        written += assemble(ptxas, form_level_at(level), architecture, level);
    }
    CHECK(written >= 850, "%d kernels as what they claim to need", written);
    written = assemble(ptxas, &hopper, "sm_90a", -1);
    CHECK(written >= 850, "%d kernels for sm_90a", written);
}

/* ---- what GPUs gave -------------------------------------------------------------------------------------------- */

typedef void use_recording(const char *path, const conf_recording *gpu, const conf_summary *s);

/* A recording beside the simulator as a device of its kind. */
static void replay(const char *path, use_recording *use, void (*say)(void *user, const char *line)) {
    conf_recording gpu, ours;
    conf_summary s;
    char why[700] = "";
    int lines = 0, bad = conf_load(&gpu, path, why, sizeof why);
    CHECK(!bad, "%s", why);
    if (bad) return;
    record_simulator(&ours, &list, gpu.capability, PATIENCE);
    s = conf_compare(&list, &gpu, &ours, say, &lines);
    use(path, &gpu, &s);
    conf_recording_close(&gpu);
    conf_recording_close(&ours);
}

static int each_recording(use_recording *use, void (*say)(void *user, const char *line)) {
    static const char *const folder = "tests/conformance";
    DIR *d = opendir(folder);
    struct dirent *e;
    int found = 0;
    CHECK(d, "%s is not here", folder);
    if (!d) return 0;
    while ((e = readdir(d)) != NULL) {
        char path[600];
        size_t n = strlen(e->d_name);
        if (n < 5 || strcmp(e->d_name + n - 4, ".txt") != 0) continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        replay(path, use, say);
        found++;
    }
    closedir(d);
    return found;
}

/* Why a recording does not confirm the simulator, or NULL. */
static const char *objection(const conf_recording *gpu, const conf_summary *s) {
    if (gpu->simulated) return "a recording of the simulator, not of a GPU";
    if (s->different) return "the simulator differs";
    return s->same ? NULL : "there is nothing to compare";
}

static void check_agreement(const char *path, const conf_recording *gpu, const conf_summary *s) {
    const char *why = objection(gpu, s);
    CHECK(!why, "%s (%s): %s", path, gpu->device, why);
}

static void objections(void) {
    conf_recording copy;
    conf_summary s = { 5, 0, 0, 0, 0, 0 };
    open_copy(&copy);
    CHECK(objection(&copy, &s), "the simulator counts as a GPU");
    copy.simulated = 0;
    CHECK(!objection(&copy, &s), "a GPU that agrees does not count");
    s.different = 1;
    CHECK(objection(&copy, &s), "a GPU that differs counts");
    s.same = s.different = 0;
    CHECK(objection(&copy, &s), "nothing counts");
    conf_recording_close(&copy);
}

static void what_gpus_gave(void) {
    if (!each_recording(check_agreement, say_line)) test_skip("no recording of a real GPU yet");
}

static int without_vector;

static void count_missing(const char *path, const conf_recording *gpu, const conf_summary *s) {
    (void)path;
    (void)gpu;
    if (without_vector < 0 || s->missing + s->stale < without_vector) without_vector = s->missing + s->stale;
}

/* Only a machine with a GPU can give a new form its vector, so this is told by name and does not fail. */
static void a_vector_for_each(void) {
    static char why[100];
    without_vector = -1;
    if (!each_recording(count_missing, NULL)) {
        test_skip("no recording of a real GPU yet");
    } else if (without_vector > 0) {
        snprintf(why, sizeof why, "%d cases are newer than every recording, make conformance-record", without_vector);
        test_skip(why);
    }
}

/* ---- by hand --------------------------------------------------------------------------------------------------- */

static void print_line(void *user, const char *line) {
    (void)user;
    printf("  %s\n", line);
}

static void print_summary(const char *path, const conf_recording *gpu, const conf_summary *s) {
    printf("%s: %s, compute capability %d.%d, driver %d, %s%s\n", path, gpu->device, gpu->capability / 10,
           gpu->capability % 10, gpu->driver, gpu->date, gpu->simulated ? ", simulated" : "");
    printf("%d cases agree, %d differ, %d are not recorded, %d have changed since, %d are absent on the device\n",
           s->same, s->different, s->missing, s->stale, s->absent);
}

static int compare_by_hand(const char *path) {
    if (path) replay(path, print_summary, print_line);
    else if (!each_recording(print_summary, print_line)) printf("there is no recording\n");
    return test.bad != 0;
}

static int run_tests(void) {
    test_run("conformance: every form has a case", every_form);
    test_run("conformance: recorded, saved, loaded, replayed", round_trip);
    test_run("conformance: recorded in another order", other_order);
    test_run("conformance: one bit", one_bit);
    test_run("conformance: results within bounds", inexact);
    test_run("conformance: open bits of NaN", open_nan);
    test_run("conformance: forms that are missing", missing_forms);
    test_run("conformance: damaged files", damaged_files);
    test_run("conformance: cases that crash", bad_cases);
    test_run("conformance: a case that hangs", hanging_case);
    test_run("conformance: no device", no_device);
    test_run("conformance: ptxas knows every kernel", assembling);
    test_run("conformance: which recordings count", objections);
    test_run("conformance: what GPUs gave", what_gpus_gave);
    test_run("conformance: a vector for every case", a_vector_for_each);
    return test_close("sim_conformance");
}

int main(int argc, char **argv) {
    int status;
    program = argv[0];
    conf_list_open(&list, ptxsim_form);
    if (argc > 1 && !strcmp(argv[1], "--compare")) {
        status = compare_by_hand(argc > 2 ? argv[2] : NULL);
    } else {
        if (argc > 1) test.only = argv[1];
        status = run_tests();
    }
    conf_recording_close(&simulated);
    conf_list_close(&list);
    return status;
}
