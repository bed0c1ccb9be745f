/* conformance.h - what GPUs really give for each instruction form, recorded once and compared with the simulator.

     make conformance-record     on a machine with an NVIDIA GPU: writes tests/conformance/sm_NN.txt, which is to be
                                 committed, and says where the simulator of tests/sim differs
     make test                   its part sim_conformance replays every recording on the simulator

   One tiny kernel per form: the arithmetic of ptxsim_form (cases.c), then loads, stores, atomics, copies, lanes,
   barriers, control flow and special registers (programs.c), and what calls return that are wrong (misuse.c). Each case
   claims the lowest .version and .target that have the form, so that drivers of CUDA 12.0 and later load all that their
   device can run; what a driver refuses is recorded as absent, with its words. The cases run in child processes: one
   that hangs, crashes or spoils its context costs itself and nothing else.

   A recording is text: a head that names the device, then the entries. Inputs are not stored, they follow from a seed;
   a hash of kernel and inputs tells when a recording is older than its case. The last line has a sum over all of it.

     exact          integers, moves, conversions, comparisons, memory, lanes, codes of the driver, f32 arithmetic
     any NaN        f64, and neg, abs, copysign of f32: the bits of a NaN are left open
     within bounds  the .approx instructions: bounds of the manual plus half a unit for the simulator's own rounding

   A recording of the simulator can be made, too (the test of this machinery does); it says so and proves nothing. */
#ifndef CONFORMANCE_H
#define CONFORMANCE_H

#include <stddef.h>
#include <stdint.h>

typedef struct conf_driver conf_driver;

/* A wrong use of the driver: runs in a process of its own and writes down the code of each step. */
typedef void conf_misuse(const conf_driver *d, void (*code)(void *user, int result), void *user);

typedef struct conf_case {
    char name[80];
    const char *operands;       /* a form of the list: the letters of ptxsim_form; NULL: a program */
    conf_misuse *misuse;        /* not NULL: this, and nothing of what follows */
    uint32_t immediate;
    int level;                  /* of form_level_at */
    char *variables, *code;     /* of a program, owned */
    unsigned grid[3], block[3], shared;
    size_t out_bytes;
} conf_case;

typedef struct conf_list {
    conf_case *item;
    int count, capacity;
} conf_list;

/* Codes of an entry beyond those of the driver. */
enum { CONF_DIED = -1, CONF_HUNG = -2 };

typedef struct conf_entry {
    char name[80];
    uint64_t hash;
    int code;                   /* 0: it ran; else there are no results, but a message */
    char *message;
    uint8_t *out;
    size_t bytes;
} conf_entry;

typedef struct conf_recording {
    char device[120], date[16];
    int capability, driver, simulated;
    conf_entry *entry;
    int count, capacity;
} conf_recording;

typedef struct conf_summary {
    int same, different, missing, stale, absent, extra;
} conf_summary;

/* cases.c */
typedef const char *conf_forms(int index, const char **operands);
void conf_list_open(conf_list *list, conf_forms *forms);
void conf_list_close(conf_list *list);
conf_case *conf_add(conf_list *list, const char *name);
char *conf_text(const conf_case *c, const char *entry);     /* the PTX, to be freed; NULL for a misuse */
uint64_t *conf_inputs(const conf_case *c, size_t *bytes);   /* to be freed */
size_t conf_device_bytes(const conf_case *c);               /* of the results as the kernel writes them */
void conf_pack(const conf_case *c, const uint8_t *written, uint8_t *out);
uint64_t conf_hash_bytes(uint64_t hash, const void *data, size_t bytes);
uint64_t conf_hash(const conf_case *c);
int conf_sources(const conf_case *c);
enum { CONF_THREADS = 256, CONF_BLOCK = 64, CONF_WORDS = 1024, CONF_MAGIC = (int)0x01FF7F81 };

/* programs.c, misuse.c */
void conf_add_programs(conf_list *list);
void conf_add_misuses(conf_list *list);

/* run.c: 0, or -1 and why there is no recording at all. A case without an end by then hangs. */
int conf_record(conf_recording *r, const conf_list *list, int milliseconds, char *why, size_t why_bytes);

/* recording.c */
conf_entry *conf_new_entry(conf_recording *r);
void conf_drop_entry(conf_recording *r);                    /* the last one */
void conf_recording_close(conf_recording *r);
int conf_save(const conf_recording *r, const char *path);                           /* 0: done */
int conf_load(conf_recording *r, const char *path, char *why, size_t why_bytes);    /* 0, -1: bad, 1: no such file */

/* compare.c: each difference as a line to `say`, which may be NULL. */
conf_summary conf_compare(const conf_list *list, const conf_recording *gpu, const conf_recording *simulator,
                          void (*say)(void *user, const char *line), void *user);

#endif
