/* ptxsim.h - what the simulated CUDA driver offers to tests beyond the driver API.

   build/sim/libcuda.so.1 is a CUDA driver without a GPU: it loads PTX, runs it warp by warp on the CPU and checks
   every memory access. A program finds it with LD_LIBRARY_PATH=build/sim and needs no change. Tests may look these
   functions up with dlsym: a real driver has none of them.

   Settings, read from the environment by the first cuInit, or given to ptxsim_set at any time:
     PTXSIM_DEVICES  number of devices (1); 0: cuInit says that there is none
     PTXSIM_CC       compute capability, major * 10 + minor (90)
     PTXSIM_SMS      multiprocessors (8)
     PTXSIM_MEM      bytes of memory of a device (4 GiB)
     PTXSIM_DRIVER   version of the driver (13090: reads what any CUDA 13 writes); newer PTX is refused
     PTXSIM_SEED     0: blocks and warps run in order, else in an order and with time slices drawn from the seed
     PTXSIM_CHECK    0: only bounds and alignment, 1: uninitialised reads and races, too (1)
     PTXSIM_STRICT   1: a report makes the launch fail with CUDA_ERROR_LAUNCH_FAILED (1); 0: it only counts
     PTXSIM_PERTURB  1: results of the .approx instructions are off by up to 2 units in the last place
     PTXSIM_STEPS    warp instructions of a launch before it counts as hanging (2^31)
     PTXSIM_QUIET    1: no line on stderr at the start, no reports on stderr
     PTXSIM_FAIL     entry:k:code: the k-th call of this entry point returns code; * counts the calls of all */
#ifndef PTXSIM_H
#define PTXSIM_H

#include <stddef.h>
#include <stdint.h>

typedef enum ptxsim_kind {
    PTXSIM_BOUNDS,          /* an access outside of every allocation, or to freed memory */
    PTXSIM_MISALIGNED,
    PTXSIM_UNINITIALISED,
    PTXSIM_SHARED_RACE,
    PTXSIM_GLOBAL_RACE,
    PTXSIM_READ_ONLY,       /* ld.global.nc of data written in the same launch, or a store to constant memory */
    PTXSIM_CONVERGENCE,     /* a .sync instruction whose lanes do not fit */
    PTXSIM_DEADLOCK,        /* nobody can go on, or the launch does not end */
    PTXSIM_ASYNC,           /* an asynchronous copy that was not waited for, or is misused */
    PTXSIM_TRAP,
    PTXSIM_HOST,            /* the host touches memory of the device that is gone */
    PTXSIM_LEAK,
    PTXSIM_KINDS
} ptxsim_kind;

/* Everything since the start or the last ptxsim_reset_counters. */
typedef struct ptxsim_counters {
    uint64_t api_calls, launches, synchronisations;
    uint64_t copies_to_device, copies_to_host, copies_on_device, fills, allocations;
    uint64_t bytes_to_device, bytes_to_host, bytes_on_device;
    uint64_t instructions, lanes, divergent_branches;       /* lanes / instructions: occupancy, at most 32 */
    uint64_t integer, floating, special, conversion, move, control, warp_wide, memory, matrix;
    uint64_t global_loads, global_load_bytes, global_load_sectors;      /* a sector has 32 bytes */
    uint64_t global_stores, global_store_bytes, global_store_sectors;
    uint64_t shared_requests, shared_waves;                 /* waves / requests: 1 is free of bank conflicts */
    uint64_t local_bytes, atomics, barriers, async_copy_bytes;
} ptxsim_counters;

int ptxsim_set(const char *name, const char *value);        /* 0: done. Devices take effect with ptxsim_reset. */
void ptxsim_reset(void);                                    /* a new process: no context, no object, no report */
void ptxsim_recover(void);                                  /* forgets a sticky error and the reports */
int ptxsim_reports(int kind);                               /* kind < 0: of all kinds */
const char *ptxsim_last_report(void);
const char *ptxsim_kind_name(int kind);
int ptxsim_leaks(void);                                     /* live objects of the caller; says each on stderr */
void ptxsim_get_counters(ptxsim_counters *c);
void ptxsim_reset_counters(void);
uint64_t ptxsim_launches(const char *kernel);               /* launches that ran, of kernels with this name */

/* The instruction forms that are known: name and the widths of the operands, p: predicate, h: 16, w: 32, d: 64 bits,
   the destination first. NULL behind the last one. Memory, control and asynchronous forms are not in the list. */
const char *ptxsim_form(int index, const char **operands);

#endif
