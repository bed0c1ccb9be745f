/* cuda_compile.c - every kernel compiles for real devices. Needs NVRTC, no driver.
   By default PTX for compute_90a and compute_120, the two back ends of NVRTC: what falls to them of the pairwise set.
   ATTN_CUDA_ARCHS="75 80 90a": code for these devices, the whole pairwise set for each, and nothing spilled.
   ATTN_CUDA_VARIANTS=all: all sets of types. ATTN_CUDA_KEEP: a folder for the PTX. */
#define _POSIX_C_SOURCE 200809L
#include "attn_cuda.h"

#include "cuda_pairs.h"
#include "test.h"
#include "threads.h"

#include <dlfcn.h>
#include <unistd.h>

enum { VARIANTS = 108, ARCHS = 16, LOG = 20000 };

/* One module for one device, and what came of it. */
typedef struct job {
    const char *arch;               /* as NVRTC has it: "90a" */
    int is_code, index;             /* index: of attn_cuda_image */
    attn_layer layer;
    int status, kernels, is_right, is_lost;
    char name[64], log[LOG];
    attn_error error;
} job;

static struct {
    int (*compile)(void *program, int count, const char *const *options);
    int (*log_size)(void *program, size_t *bytes);
    int (*log)(void *program, char *text);
    job *jobs;
    int count, next;
    pthread_mutex_t lock;
} work = { NULL, NULL, NULL, NULL, 0, 0, PTHREAD_MUTEX_INITIALIZER };

static __thread job *now;           /* what this thread compiles */

/* As the header asks, but for the letter behind the number of the device; and ptxas tells what it used. */
static int talkative(void *program, int count, const char *const *options) {
    const char *more[20];
    char arch[60];
    size_t bytes = 0;
    int status, i;
    for (i = 0; i < count && i < 19; i++) more[i] = options[i];
    snprintf(arch, sizeof arch, "--gpu-architecture=%s_%s", now->is_code ? "sm" : "compute", now->arch);
    if (!strncmp(arch, options[0], strlen(options[0]))) more[0] = arch;
    if (now->is_code) more[i++] = "--ptxas-options=-v";
    status = work.compile(program, i, more);
    if (!work.log_size(program, &bytes) && bytes < sizeof now->log) work.log(program, now->log);
    return status;
}

static void *find_symbol(void *user, void *library, const char *name) {
    void *p = dlsym(library, name);
    int (*function)(void *, int, const char *const *) = talkative;
    (void)user;
    pthread_mutex_lock(&work.lock);
    if (!strcmp(name, "nvrtcGetProgramLogSize")) memcpy(&work.log_size, &p, sizeof p);
    if (!strcmp(name, "nvrtcGetProgramLog")) memcpy(&work.log, &p, sizeof p);
    if (!strcmp(name, "nvrtcCompileProgram") && p) {
        memcpy(&work.compile, &p, sizeof p);
        memcpy(&p, &function, sizeof p);
    }
    pthread_mutex_unlock(&work.lock);
    return p;
}

static int count_of(const char *text, const char *word) {
    int count = 0;
    for (text = strstr(text, word); text; text = strstr(text + 1, word)) count++;
    return count;
}

/* Writes PTX into the folder that wants it; 0: could not. */
static int keep(const char *folder, const attn_cuda_image_data *image, const char *ptx) {
    char path[600];
    FILE *file;
    int good;
    snprintf(path, sizeof path, "%s/%s.ptx", folder, image->name);
    file = fopen(path, "w");
    if (!file) return 0;
    good = fputs(ptx, file) >= 0;
    return !fclose(file) && good;
}

/* Looks at the code while the handle is open: an ELF file, or PTX of the architecture that was asked for. */
static void look_at(job *j, const attn_cuda_image_data *image) {
    const char *code = (const char *)image->data + 64, *folder = getenv("ATTN_CUDA_KEEP");
    char target[40];
    snprintf(target, sizeof target, ".target sm_%s\n", j->arch);
    memcpy(j->name, image->name, sizeof j->name);
    j->is_lost = folder && !j->is_code && !keep(folder, image, code);
    j->is_right = j->is_code ? !memcmp(code, "\x7f" "ELF", 4) : strstr(code, target) != NULL;
    j->kernels = j->is_code ? count_of(j->log, "Compiling entry function '") : count_of(code, ".entry attn_cu_");
}

static void compile_one(job *j) {
    attn_cuda_desc desc;
    attn_cuda_image_data image;
    attn_cuda *cuda = NULL;
    memset(&desc, 0, sizeof desc);
    desc.arch = atoi(j->arch);
    desc.flags = j->is_code ? 0 : ATTN_CUDA_PTX;
    desc.find_symbol = find_symbol;
    now = j;
    j->status = attn_cuda_open(&cuda, &desc, &j->error);
    if (!j->status) j->status = attn_cuda_image(cuda, &j->layer, 1, j->index, &image, &j->error);
    if (!j->status) look_at(j, &image);
    attn_cuda_close(cuda);
}

static void compile_all(void *ctx, int lane) {
    (void)ctx;
    (void)lane;
    for (;;) {
        int i;
        pthread_mutex_lock(&work.lock);
        i = work.next++;
        if (i < work.count && i > 0 && work.jobs[0].status == ATTN_E_NO_NVRTC) i = work.count;
        pthread_mutex_unlock(&work.lock);
        if (i >= work.count) return;
        compile_one(&work.jobs[i]);
    }
}

/* The number in front of `word`, from `at` on; -1: none. */
static long number_before(const char *at, const char *word) {
    const char *p = strstr(at, word);
    if (!p) return -1;
    while (p > at && p[-1] >= '0' && p[-1] <= '9') p--;
    return strtol(p, NULL, 10);
}

/* What ptxas tells of the kernels: nothing was spilled. */
static void check_log(const job *j) {
    const char *at = j->log;
    while ((at = strstr(at, "Compiling entry function '")) != NULL) {
        char name[64];
        at += strlen("Compiling entry function '");
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at, "'"), at);
        CHECK(number_before(at, " bytes spill stores") == 0 && number_before(at, " bytes spill loads") == 0,
              "%s of %s spills %ld bytes", name, j->name, number_before(at, " bytes spill stores"));
        CHECK(number_before(at, " registers") > 0, "%s: no registers?", name);
        printf("  %-50s %-20s %3ld registers, %4ld bytes of stack\n", j->name, name, number_before(at, " registers"),
               number_before(at, " bytes stack frame"));
    }
}

static void check_job(const job *j) {
    static const int kernels[] = { 3, 7, 2 };
    const attn_layer *l = &j->layer;
    CHECK(!j->status, "%s: %s", j->arch, j->error.text);
    if (j->status) return;
    if (!j->is_code) printf("  %s\n", j->name);
    CHECK(!j->is_lost, "%s could not be written", j->name);
    CHECK(j->is_right, "%s is no %s for %s", j->name, j->is_code ? "code" : "PTX", j->arch);
    CHECK(j->kernels == kernels[j->index], "%s, types %d, %d, %d: %d kernels", j->name, (int)l->q_type, (int)l->kv_type,
          (int)l->o_type, j->kernels);
    check_log(j);
}

static attn_layer layer_of(int q_type, int kv_type, int o_type, int skips) {
    attn_layer l;
    memset(&l, 0, sizeof l);
    l.heads = 1;
    l.head_dim = 64;
    l.q_type = (attn_type)q_type;
    l.kv_type = (attn_type)kv_type;
    l.o_type = (attn_type)o_type;
    l.skip.mode = skips ? ATTN_SKIP_LAMBDA : ATTN_SKIP_OFF;
    return l;
}

static void add_job(const char *arch, int is_code, int index, attn_layer layer) {
    job *j = &work.jobs[work.count++];
    j->arch = arch;
    j->is_code = is_code;
    j->index = index;
    j->layer = layer;
}

static void list_jobs(const char *archs) {
    static char one[ARCHS][12] = { "90a", "120" };
    const char *which = getenv("ATTN_CUDA_VARIANTS");
    int all = which && !strcmp(which, "all"), count = archs ? 0 : 2, length, a, i;
    const char *rest = archs;
    for (; rest && count < ARCHS && sscanf(rest, " %11s%n", one[count], &length) == 1; rest += length) count++;
    for (a = 0; a < count; a++) {
        for (i = 0; i < 2; i++) add_job(one[a], archs != NULL, i, layer_of(0, 0, 0, 0));
        for (i = 0; i < (all ? VARIANTS : PAIRS); i++) {
            kernel_pair p = pair_at(i);
            attn_layer l = layer_of(p.q_type, p.kv_type, p.o_type, p.skips);
            if (all) l = layer_of(i / 36, i / 6 % 6, i / 2 % 3, i % 2);
            if (!all && !archs && p.device != a + 1) continue;
            add_job(one[a], archs != NULL, 2, l);
        }
    }
}

/* The set holds every pair of values of two of its columns. */
static void pairs(void) {
    static const int values[] = { 3, 6, 3, 2, 3 };
    int a, b, i;
    for (a = 0; a < 5; a++) {
        for (b = 0; b < a; b++) {
            char seen[36] = { 0 };
            int count = 0;
            for (i = 0; i < PAIRS; i++) {
                kernel_pair p = pair_at(i);
                const int column[] = { p.q_type, p.kv_type, p.o_type, p.skips, p.device };
                char *s = &seen[column[a] * values[b] + column[b]];
                count += !*s;
                *s = 1;
            }
            CHECK(count == values[a] * values[b], "columns %d and %d: %d pairs", a, b, count);
        }
    }
}

static void compiles(void) {
    const char *archs = getenv("ATTN_CUDA_ARCHS");
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int i;
    work.jobs = (job *)calloc(ARCHS * (VARIANTS + 2), sizeof(job));
    list_jobs(archs);
    /* beside other programs of `make test` one thread is enough */
    thread_lanes(NULL, archs && processors > 1 ? (processors < 8 ? (int)processors : 8) : 1, compile_all, NULL);
    if (work.jobs[0].status == ATTN_E_NO_NVRTC) {
        test_skip("no NVRTC");
    } else {
        for (i = 0; i < work.count; i++) check_job(&work.jobs[i]);
    }
    free(work.jobs);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("cuda_compile: the set is pairwise", pairs);
    test_run("cuda_compile: every kernel for real devices", compiles);
    return test_close("cuda_compile");
}
