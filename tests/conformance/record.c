/* record.c - makes a recording of the GPU of this machine.

     conformance SIMULATOR [FILE]

   SIMULATOR is build/sim/libcuda.so.1: it knows the list of forms and is closed before the driver opens. FILE is
   tests/conformance/sm_NN.txt by default; on the simulator a file must be named, so that nobody takes it for one of a
   GPU. */
#include "conformance.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATIENCE = 60000 };     /* milliseconds: drivers compile slowly */

/* The operands of the forms are texts inside the library, so they are copied before it goes. */
typedef struct known_form {
    char name[80], operands[8];
} known_form;

static known_form *known;

static const char *known_at(int index, const char **operands) {
    if (!known[index].name[0]) return NULL;
    *operands = known[index].operands;
    return known[index].name;
}

static int read_forms(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    conf_forms *forms;
    const char *name, *operands;
    int count = 0, i;
    if (!library) {
        fprintf(stderr, "conformance: %s\n", dlerror());
        return -1;
    }
    *(void **)&forms = dlsym(library, "ptxsim_form");
    if (!forms) {
        fprintf(stderr, "conformance: %s is not the simulator\n", path);
        return -1;
    }
    while (forms(count, &operands)) count++;
    known = (known_form *)calloc((size_t)count + 1, sizeof *known);
    if (!known) abort();
    for (i = 0; i < count; i++) {
        name = forms(i, &operands);
        snprintf(known[i].name, sizeof known[i].name, "%s", name);
        snprintf(known[i].operands, sizeof known[i].operands, "%s", operands);
    }
    dlclose(library);
    return 0;
}

static void print_absent(const conf_recording *r) {
    int i, ran = 0;
    for (i = 0; i < r->count; i++) {
        const conf_entry *e = &r->entry[i];
        ran += !e->code;
        if (e->code) printf("  %s: %d %.200s\n", e->name, e->code, e->message ? e->message : "");
    }
    printf("%d cases, %d with results, %d without (above)\n", r->count, ran, r->count - ran);
}

static int record(const char *file) {
    conf_list list;
    conf_recording r;
    char why[300], path[300];
    int bad;
    conf_list_open(&list, known_at);
    bad = conf_record(&r, &list, PATIENCE, why, sizeof why);
    if (bad) {
        fprintf(stderr, "conformance: %s\n", why);
        conf_list_close(&list);
        return 1;
    }
    printf("%s, compute capability %d.%d, driver %d%s\n", r.device, r.capability / 10, r.capability % 10, r.driver,
           r.simulated ? " (simulated: this proves nothing of a GPU)" : "");
    print_absent(&r);
    snprintf(path, sizeof path, "tests/conformance/sm_%d.txt", r.capability);
    if (r.simulated && !file) {
        fprintf(stderr, "conformance: this is the simulator; name a file to keep what it gives\n");
        bad = 1;
    } else {
        bad = conf_save(&r, file ? file : path);
        if (bad) perror(file ? file : path);
        else printf("written: %s\n", file ? file : path);
    }
    conf_recording_close(&r);
    conf_list_close(&list);
    return bad != 0;
}

int main(int argc, char **argv) {
    int bad;
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: conformance SIMULATOR [FILE]\n");
        return 2;
    }
    if (read_forms(argv[1])) return 1;
    bad = record(argc > 2 ? argv[2] : NULL);
    free(known);
    return bad;
}
