/* test_shipped.c - the instruction forms of the kernels that attn_cuda.h ships, as NVRTC makes them: the simulator must
   know each, and each must have a case that a GPU can record (tests/conformance). cuda_compile leaves the PTX of its
   kernels in the folder that ATTN_CUDA_KEEP names.

     shipped --list   prints every form, how often it stands in the kernels, and those of the simulator that none has.
                      These are kept: which of many equal forms NVRTC takes changes from version to version */
#define _DEFAULT_SOURCE
#include "../conformance/conformance.h"
#include "sim_test.h"

#include <dirent.h>

enum { MOST_FORMS = 2000 };

/* An opcode with all that belongs to its name. */
typedef struct form {
    char name[60];
    int count;
} form;

typedef struct form_set {
    form item[MOST_FORMS];
    int count;
} form_set;

static form *find_form(form_set *set, const char *name, size_t length) {
    int i;
    for (i = 0; i < set->count; i++) {
        if (strlen(set->item[i].name) == length && !memcmp(set->item[i].name, name, length)) return &set->item[i];
    }
    return NULL;
}

static void add_form(form_set *set, const char *name, size_t length) {
    form *f = find_form(set, name, length);
    if (!f && set->count < MOST_FORMS && length < sizeof f->name) {
        f = &set->item[set->count++];
        memcpy(f->name, name, length);
        f->name[length] = 0;
        f->count = 0;
    }
    CHECK(f, "no room for %.*s", (int)length, name);
    if (f) f->count++;
}

/* ---- the opcodes of PTX ---------------------------------------------------------------------------------------- */

static const char *skip_space(const char *at) {
    return at + strspn(at, " \t\n");
}

/* The bytes of an opcode, or of a label with its colon. */
static size_t word_length(const char *at) {
    return strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$.:");
}

/* Adds what stands at the start of a statement, behind its guard, unless that is a directive. */
static void add_statement(form_set *set, const char *at) {
    if (*at == '@') at = skip_space(at + strcspn(at, " \t"));
    if (*at != '.') add_form(set, at, word_length(at));
}

/* Instructions stand inside of braces, and so do the values of variables, which an = comes before. */
static void scan(form_set *set, const char *at) {
    int depth = 0;
    while (*(at = skip_space(at))) {
        size_t word = word_length(at);
        if (*at == '{' || *at == '}') {
            depth += *at++ == '{' ? 1 : -1;
        } else if (!strncmp(at, "//", 2) || !strncmp(at, ".loc", 4) || !strncmp(at, ".pragma", 7)) {
            at += strcspn(at, "\n");
        } else if (!depth) {
            at += strcspn(at, "={\n");
            if (*at == '=') at += strcspn(at, ";");
        } else if (word && at[word - 1] == ':') {
            at += word;
        } else {
            add_statement(set, at);
            at += strcspn(at, ";");
            at += *at == ';';
        }
    }
}

/* ---- what is tested -------------------------------------------------------------------------------------------- */

/* Forms of the simulator's list have a unit test and a case each (test_forms.c, test_lanes.c, test_conformance.c hold
   that); of all others the programs among the cases must have one. */
static void list_tested(form_set *tested) {
    conf_list list;
    const char *name, *operands;
    int i;
    tested->count = 0;
    for (i = 0; (name = ptxsim_form(i, &operands)) != NULL; i++) add_form(tested, name, strlen(name));
    conf_list_open(&list, ptxsim_form);
    for (i = 0; i < list.count; i++) {
        char *text = conf_text(&list.item[i], "k");
        if (text) scan(tested, text);
        free(text);
    }
    conf_list_close(&list);
}

/* ---- what is shipped ------------------------------------------------------------------------------------------- */

static char *read_text(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    long size = 0;
    if (f && !fseek(f, 0, SEEK_END) && (size = ftell(f)) >= 0 && !fseek(f, 0, SEEK_SET)) {
        text = (char *)calloc((size_t)size + 1, 1);
        if (text && fread(text, 1, (size_t)size, f) != (size_t)size) text[0] = 0;
    }
    if (f) fclose(f);
    return text;
}

/* Modules that skip softmax, and those of the same kernels that do not: of the former nothing may be left in these, no
   memory for votes and no counters. */
static int skipping[2];

static void look_for_skipping(const char *name, const char *text) {
    int votes = strstr(text, "attn_cu_forwardE5skips") != NULL, counters = strstr(text, "atom.global.add.u64") != NULL;
    if (!strstr(text, ".entry attn_cu_forward(")) return;
    CHECK(votes == counters, "%s: counters without votes, or votes without counters", name);
    skipping[votes]++;
}

/* Into a device of the capability that the module is for. */
static void take_module(form_set *shipped, const char *name, const char *text) {
    const char *target = strstr(text, ".target sm_");
    char capability[20];
    CUmodule module;
    CHECK(target, "%s is no PTX", name);
    if (!target) return;
    snprintf(capability, sizeof capability, "%d", atoi(target + strlen(".target sm_")));
    open_device_of(capability);
    ptxsim_set("PTXSIM_DRIVER", "13090");
    CHECK(!load_text(&module, text), "%s: %s", name, test_log);
    scan(shipped, text);
    look_for_skipping(name, text);
}

/* Returns how many modules there are. */
static int list_shipped(form_set *shipped) {
    const char *folder = getenv("ATTN_CUDA_KEEP");
    DIR *d = folder ? opendir(folder) : NULL;
    struct dirent *e;
    int modules = 0;
    shipped->count = 0;
    while (d && (e = readdir(d)) != NULL) {
        char path[600], *text;
        size_t n = strlen(e->d_name);
        if (n < 5 || strcmp(e->d_name + n - 4, ".ptx") != 0) continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        text = read_text(path);
        CHECK(text, "%s", path);
        if (text) take_module(shipped, e->d_name, text);
        free(text);
        modules++;
    }
    if (d) closedir(d);
    return modules;
}

static form_set tested, shipped;

static void forms_of_kernels(void) {
    int i;
    if (!list_shipped(&shipped)) {
        test_skip("no PTX of cuda_compile, which needs NVRTC");
        return;
    }
    CHECK(skipping[0] && skipping[1], "%d modules that skip, %d that do not", skipping[1], skipping[0]);
    list_tested(&tested);
    CHECK(shipped.count > 100, "%d forms", shipped.count);
    for (i = 0; i < shipped.count; i++) {
        const char *name = shipped.item[i].name;
        CHECK(find_form(&tested, name, strlen(name)), "%s has no case in tests/conformance", name);
    }
}

static void print_forms(void) {
    const char *name, *operands;
    int i, unused = 0;
    list_shipped(&shipped);
    for (i = 0; i < shipped.count; i++) printf("%7d %s\n", shipped.item[i].count, shipped.item[i].name);
    for (i = 0; (name = ptxsim_form(i, &operands)) != NULL; i++) {
        if (find_form(&shipped, name, strlen(name))) continue;
        printf("unused  %s %s\n", name, operands);
        unused++;
    }
    printf("%d forms in the kernels; of %d in the list of the simulator %d in none\n", shipped.count, i, unused);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--list")) {
        print_forms();
        return test.bad != 0;
    }
    if (argc > 1) test.only = argv[1];
    test_run("kernels: every form of the shipped ones has a case", forms_of_kernels);
    return test_close("sim_shipped");
}
