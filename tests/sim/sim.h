/* sim.h - the simulator inside: a module of decoded PTX, a launch that runs, and the functions between the files.

     report.c   what went wrong, where              memory.c   memory of a device
     parse.c    tokens, symbols, operands           load.c     modules and kernels
     forms.c    names of instructions to functions  registers.c   places for registers
     integer.c float.c convert.c warp.c             the instructions
     access.c   loads, stores, atomics              order.c    happens-before, shared and global
     async.c    cp.async                            run.c      fragments of warps, barriers, blocks
     driver.c stream.c buffer.c program.c graph.c   the CUDA driver API on top of it

   A warp runs in lock-step: one instruction is one loop over 32 lanes. Registers are arrays of 32 values. */
#ifndef SIM_H
#define SIM_H

#include "ptxsim.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    LANES = 32,
    MAX_WARPS = 32,
    MAX_BARRIERS = 16,
    SECTOR = 32,
    SHARED_FIRST = 1024,        /* the first bytes of the shared window belong to the system, as on sm_90 */
    RED_ZONE = 64,              /* between static shared variables: touching it is out of bounds */
    SHARED_LIMIT = 232448,      /* bytes of shared memory of a block, with the opt-in */
    SHARED_PER_SM = 233472,
    STATIC_LIMIT = 49152
};

/* Codes of cuda.h that the simulator returns. */
enum {
    CU_OK = 0,
    CU_INVALID_VALUE = 1,
    CU_OUT_OF_MEMORY = 2,
    CU_NOT_INITIALIZED = 3,
    CU_NO_DEVICE = 100,
    CU_INVALID_DEVICE = 101,
    CU_INVALID_IMAGE = 200,
    CU_INVALID_CONTEXT = 201,
    CU_NO_BINARY = 209,
    CU_INVALID_PTX = 218,
    CU_UNSUPPORTED_PTX = 222,
    CU_INVALID_HANDLE = 400,
    CU_NOT_FOUND = 500,
    CU_NOT_READY = 600,
    CU_ILLEGAL_ADDRESS = 700,
    CU_LAUNCH_RESOURCES = 701,
    CU_LAUNCH_TIMEOUT = 702,
    CU_ILLEGAL_INSTRUCTION = 715,
    CU_MISALIGNED = 716,
    CU_LAUNCH_FAILED = 719,
    CU_NOT_SUPPORTED = 801,
    CU_CAPTURE_UNSUPPORTED = 900,
    CU_CAPTURE_INVALIDATED = 901,
    CU_CAPTURE_UNMATCHED = 903,
    CU_CAPTURE_UNJOINED = 904,
    CU_CAPTURE_ISOLATION = 905,
    CU_CAPTURE_IMPLICIT = 906,
    CU_CAPTURED_EVENT = 907,
    CU_CAPTURE_WRONG_THREAD = 908
};

/* Generic addresses: three windows, everything else is global. No address is one of the host's, so that the host
   crashes when it follows a device pointer, as it does on a machine with a GPU. */
#define WINDOW_BITS 40
#define SHARED_WINDOW ((uint64_t)0x6100 << 32)
#define LOCAL_WINDOW ((uint64_t)0x6300 << 32)
#define PARAM_WINDOW ((uint64_t)0x6500 << 32)
#define DEVICE_WINDOW ((uint64_t)0x7000 << 32)

typedef enum sim_space { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONSTANT } sim_space;

/* ---- memory of a device ---------------------------------------------------------------------------------------- */

/* What accesses left at 4 bytes of global memory: an epoch, and in the low bits a mask of bytes and a mark. An epoch is
   a warp between two ticks of its clock; its number tells the launch, too. */
typedef struct global_cell {
    uint32_t write, read;
} global_cell;

enum { EPOCH_SHIFT = 5, CELL_MARK = 16, CELL_BYTES = 15, MAX_EPOCHS = 1 << 26 };

enum { CELL_PAGE = 1024 };      /* cells are made for 4 KiB at a time, when somebody writes there */

typedef struct sim_buffer {
    uint64_t base;
    size_t bytes;
    uint8_t *data;
    uint8_t *written;           /* one byte for each byte: 0 as long as nothing was stored there */
    global_cell **cells;        /* a page of cells for each 4 KiB, or NULL */
    int freed, constant, of_module;
} sim_buffer;

typedef struct sim_memory {
    sim_buffer **buffer;        /* ascending addresses, freed ones stay so that reports can name them */
    int count, capacity;
    uint64_t next, end;
    size_t used, limit;
    uint32_t epochs;            /* numbers given so far */
} sim_memory;

/* ---- programs -------------------------------------------------------------------------------------------------- */

typedef struct sim_machine sim_machine;
typedef struct sim_instruction sim_instruction;
typedef void sim_run(sim_machine *, const sim_instruction *);

typedef enum sim_class {
    INTEGER,
    FLOATING,
    SPECIAL,
    CONVERSION,
    MOVE,
    CONTROL,
    WARP_WIDE,
    MEMORY,
    MATRIX,
    CLASSES
} sim_class;

/* What the loop of run.c must know of an instruction. */
typedef enum sim_flow {
    PLAIN,
    BRANCH,
    EXIT,
    BARRIER,
    WARP_SYNC,                  /* waits for the lanes that its mask operand names */
    WARP_ALIGNED                /* all 32 lanes must be here */
} sim_flow;

enum { NO_OPERAND = INT32_MIN };

/* What sim_instruction.option says of some instructions. */
enum {
    ATOMIC_ADD,
    ATOMIC_EXCH,
    ATOMIC_CAS,
    ATOMIC_MIN,
    ATOMIC_MAX,
    ATOMIC_AND,
    ATOMIC_OR,
    ATOMIC_XOR,
    ATOMIC_INC,
    ATOMIC_DEC
};
enum { BARRIER_SYNC, BARRIER_ARRIVE, BARRIER_POPC, BARRIER_AND, BARRIER_OR };
enum { NO_MASK = 255 };         /* a form of warp.c that does not name lanes */

struct sim_instruction {
    sim_run *run;
    const int32_t *operand;     /* offset into the registers, or ~offset into the constants, or NO_OPERAND */
    int first_operand, operands, results;   /* results: so many operands, the first, are written and not read */
    int32_t predicate;          /* offset of the guard, or -1 */
    int32_t target;             /* of a branch */
    int32_t mask;               /* WARP_SYNC: the operand that names the lanes, -1: those that are here */
    int64_t offset, offset2;    /* of the addresses */
    uint64_t immediate;
    uint8_t flow, class_, negated, negated_source, option;
    uint8_t space, vector, bytes, register_bytes, address_bytes, address_bytes2, is_signed, is_float;
    uint8_t strong, acquire, release, block_scope, read_only;
    uint32_t line, source_line;
    const char *text;
    int text_length;
};

typedef struct sim_special {
    int32_t offset;
    int which;
} sim_special;

typedef struct sim_kernel {
    char *name;
    struct sim_module *module;
    sim_instruction *code;
    int count, capacity;
    int32_t *operands;          /* of all instructions */
    int operand_count, operand_capacity;
    int params;
    size_t param_offset[64], param_size[64], param_bytes;
    int register_bytes;
    int32_t *register_at;       /* offsets of the registers, until they share places */
    int register_count, register_capacity;
    uint8_t *constants;
    int constant_bytes, constant_capacity;
    sim_special special[32];
    int specials;
    size_t static_shared;       /* bytes as the program counts them */
    size_t shared_layout;       /* and with the red zones */
    size_t dynamic_offset;      /* where dynamic shared memory begins */
    size_t local_bytes;
    uint32_t red_zone[64][2];   /* offsets from, to */
    int red_zones;
    int max_threads, registers;
} sim_kernel;

typedef struct sim_module {
    char *text;                 /* instructions point into it */
    sim_kernel **kernel;
    int kernels;
    int kernel_capacity;
    struct sim_variable {
        char *name;
        sim_buffer *buffer;
    } *variable;
    int variables, variable_capacity;
    sim_memory *memory;
} sim_module;

/* One line of a table of instructions. */
typedef struct sim_form {
    const char *name, *operands;
    sim_run *run;
    uint8_t class_, option;
} sim_form;

/* ---- a launch that runs ---------------------------------------------------------------------------------------- */

typedef struct sim_config {
    int check, perturb;
    uint32_t seed;
    uint64_t steps;
    int sms;
} sim_config;

/* Lanes of a warp that stand at the same instruction. */
typedef struct fragment {
    uint32_t pc, lanes;
    int waits;
} fragment;

/* What a warp knows of other blocks: of every synchronising address, how many of the releases there. */
typedef struct knowledge {
    struct known_releases {
        uint32_t object, count;
    } *item;
    int count, capacity;
} knowledge;

typedef enum warp_state { RUNNING, AT_BARRIER, DONE } warp_state;

typedef struct sim_warp {
    int index;
    uint8_t *registers, *local, *local_written;
    fragment part[LANES];
    int parts, current;
    uint32_t turns;                     /* steps in which there were several fragments */
    uint32_t live;
    warp_state state;
    uint32_t clock, lane_clock;         /* lane_clock counts what orders the lanes of a warp */
    uint32_t epoch;                     /* at this clock; 0: it has no number yet */
    uint32_t seen[MAX_WARPS];           /* the clock of every warp of the block that this one is behind */
    uint32_t fenced[MAX_WARPS];         /* seen, at its last fence */
    knowledge known, observed, published;
    uint32_t barrier_lanes;             /* AT_BARRIER: who takes the result */
    const sim_instruction *barrier;
    struct async_queue *async;
} sim_warp;

typedef struct sim_barrier {
    uint32_t waiting, arrived;          /* warps */
    uint32_t threads, needed;           /* needed 0: every warp that is left */
    uint32_t population, any, none;     /* of bar.red: lanes whose predicate holds, whether one does, whether one not */
    uint32_t seen[MAX_WARPS], fenced[MAX_WARPS];
    knowledge known, observed, published;
} sim_barrier;

typedef struct shared_cell {
    uint32_t write_clock, write_lane_clock, read_lane_clock, read_lanes;
    uint32_t readers;                   /* warps that read since the last write of all four bytes */
    uint8_t write_warp, write_lane, write_bytes, write_atomic, read_warp, in_flight;
} shared_cell;

struct sim_machine {
    const sim_config *config;
    const sim_kernel *kernel;
    sim_memory *memory;
    ptxsim_counters *counters;
    const uint8_t *params;

    uint32_t active;                    /* lanes that run the instruction; also as masks and as one flag */
    uint32_t on[LANES];
    int all;
    sim_warp *warp;                     /* the one that runs */
    uint8_t *registers;

    uint32_t grid[3], block[3], block_index[3], linear_block;
    sim_warp *warps;
    int warp_count;
    uint32_t threads;
    sim_barrier barrier[MAX_BARRIERS];
    uint32_t random;

    uint8_t *shared, *shared_written;
    uint32_t shared_bytes, cells;
    shared_cell *cell;
    uint32_t *read_clock;               /* [warp][cell] */
    uint8_t *read_bytes;

    sim_buffer *last_buffer;
    struct release_log *releases;
    struct epoch_table *epochs;
    uint64_t steps, by_class[CLASSES];
    int error;                          /* what the launch returns */
};

/* ---- report.c -------------------------------------------------------------------------------------------------- */
void sim_report(sim_machine *m, const sim_instruction *in, int lane, ptxsim_kind kind, int error, const char *format,
                ...);
void sim_report_host(ptxsim_kind kind, const char *format, ...);
void sim_report_clear(void);
void sim_report_forget_places(void);
void sim_report_quiet(int quiet);

/* ---- memory.c -------------------------------------------------------------------------------------------------- */
void sim_memory_open(sim_memory *s, int device, size_t limit);
void sim_memory_close(sim_memory *s);
sim_buffer *sim_buffer_make(sim_memory *s, size_t bytes);
void sim_buffer_free(sim_memory *s, sim_buffer *b);
void sim_memory_forget_cells(sim_memory *s);
sim_buffer *sim_buffer_find(const sim_memory *s, uint64_t address, size_t bytes);      /* NULL: not inside one */
sim_buffer *sim_buffer_below(const sim_memory *s, uint64_t address);
void *sim_allocate(size_t bytes);                                                       /* zeroed, or the end */
void *sim_allocate_aligned(size_t bytes);
void *sim_grow(void *p, int *capacity, int needed, size_t item);
char *sim_copy_text(const char *s, size_t n);

/* ---- load.c ---------------------------------------------------------------------------------------------------- */
/* 0, or a code of cuda.h and a text. driver: the version that decides which PTX is too new. */
int sim_module_load(sim_module **module, sim_memory *memory, const char *text, int capability, int driver,
                    char *error, size_t error_bytes);
void sim_module_free(sim_module *module);
sim_kernel *sim_module_kernel(sim_module *module, const char *name);

/* ---- registers.c ----------------------------------------------------------------------------------------------- */
void sim_share_registers(sim_kernel *kernel);

/* ---- the tables of instructions, and access.c, warp.c, async.c ------------------------------------------------- */
extern const sim_form sim_integer_forms[], sim_float_forms[], sim_convert_forms[], sim_warp_forms[];
void sim_pack(sim_machine *m, const sim_instruction *in);
void sim_unpack(sim_machine *m, const sim_instruction *in);
void sim_add_window(sim_machine *m, const sim_instruction *in);
void sim_nothing(sim_machine *m, const sim_instruction *in);
void sim_trap(sim_machine *m, const sim_instruction *in);
void sim_sync_lanes(sim_machine *m, const sim_instruction *in);
void sim_load(sim_machine *m, const sim_instruction *in);
void sim_store(sim_machine *m, const sim_instruction *in);
void sim_atomic(sim_machine *m, const sim_instruction *in);
uint8_t *sim_global(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, uint32_t bytes, int write,
                    sim_buffer **buffer);
int sim_shared(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, uint32_t bytes, int write);
int sim_check_written(sim_machine *m, const sim_instruction *in, int lane, const sim_buffer *b, size_t at,
                      uint32_t bytes);
uint64_t sim_count_sectors(const uint64_t *address, uint32_t active, uint32_t bytes);

void sim_async_copy(sim_machine *m, const sim_instruction *in);
void sim_async_commit(sim_machine *m, const sim_instruction *in);
void sim_async_wait(sim_machine *m, const sim_instruction *in);
void sim_async_open(sim_warp *w);
int sim_async_reset(sim_warp *w);           /* 1: copies were left */
void sim_async_exit(sim_machine *m, const sim_instruction *in, uint32_t lanes);
void sim_async_close(sim_warp *w);

/* ---- order.c --------------------------------------------------------------------------------------------------- */
typedef enum shared_access { ORDINARY, ATOMIC, ASYNC_START, ASYNC_END } shared_access;
void sim_shared_read(sim_machine *m, const sim_instruction *in, uint32_t lanes, const uint64_t *address,
                     uint32_t bytes);
void sim_shared_write(sim_machine *m, const sim_instruction *in, int lane, uint32_t offset, uint32_t bytes,
                      shared_access how, const uint8_t *data);
void sim_global_read(sim_machine *m, const sim_instruction *in, int lane, sim_buffer *b, size_t at, uint32_t bytes);
void sim_global_write(sim_machine *m, const sim_instruction *in, int lane, sim_buffer *b, size_t at, uint32_t bytes);
void sim_observe(sim_machine *m, uint64_t address);
void sim_publish(sim_machine *m, uint64_t address);
void sim_fence(sim_machine *m, const sim_instruction *in);
void sim_fence_block(sim_machine *m, const sim_instruction *in);
void sim_tick(sim_warp *w);
void sim_join_clocks(uint32_t *into, const uint32_t *from);
void sim_join_knowledge(knowledge *into, const knowledge *from);
void sim_order_open(sim_machine *m);
void sim_order_close(sim_machine *m);

/* ---- run.c ----------------------------------------------------------------------------------------------------- */
int sim_launch(sim_memory *memory, const sim_config *config, const sim_kernel *kernel, const uint32_t *grid,
               const uint32_t *block, size_t dynamic_shared, const void *params, ptxsim_counters *counters);
const char *sim_special_name(int which);

/* ---- access to operands ---------------------------------------------------------------------------------------- */

static inline void *sim_at(const sim_machine *m, int32_t operand) {
    return operand >= 0 ? m->registers + operand : m->kernel->constants + ~operand;
}

static inline void *sim_operand(const sim_machine *m, const sim_instruction *in, int k) {
    return sim_at(m, in->operand[k]);
}

static inline int sim_active(const sim_machine *m, int lane) {
    return (int)(m->active >> lane & 1);
}

static inline int sim_first_lane(uint32_t lanes) {
    int i = 0;
    while (!(lanes >> i & 1)) i++;
    return i;
}

/* The lanes that run take the result. */
static inline void sim_keep16(const sim_machine *m, void *to, const void *result) {
    uint16_t *d = (uint16_t *)to;
    const uint16_t *r = (const uint16_t *)result;
    int i;
    for (i = 0; i < LANES; i++) d[i] = m->on[i] ? r[i] : d[i];
}

static inline void sim_keep32(const sim_machine *m, void *to, const void *result) {
    uint32_t *d = (uint32_t *)to;
    const uint32_t *r = (const uint32_t *)result;
    int i;
    for (i = 0; i < LANES; i++) d[i] = m->on[i] ? r[i] : d[i];
}

static inline void sim_keep64(const sim_machine *m, void *to, const void *result) {
    uint64_t *d = (uint64_t *)to;
    const uint64_t *r = (const uint64_t *)result;
    int i;
    for (i = 0; i < LANES; i++) d[i] = m->on[i] ? r[i] : d[i];
}

static inline void sim_keep(const sim_machine *m, void *to, const void *result, size_t bytes) {
    if (m->all) memcpy(to, result, bytes * LANES);
    else if (bytes == 2) sim_keep16(m, to, result);
    else if (bytes == 4) sim_keep32(m, to, result);
    else sim_keep64(m, to, result);
}

static inline uint32_t sim_popcount(uint32_t v) {
    v -= v >> 1 & 0x55555555u;
    v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
    v = (v + (v >> 4)) & 0x0F0F0F0Fu;
    return v * 0x01010101u >> 24;
}

static inline float sim_as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t sim_as_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* ---- operations: one function for each, a loop over the lanes that the compiler turns into vectors --------------
   UNARY(name, D, A, e) defines the operation d = e(a) with a of type A and d of type D; BINARY and TERNARY have b and
   c, too. The result goes through an array of its own, so that a destination may be a source. */
#define UNARY(name, D, A, e)                                                                                          \
    static void name(sim_machine *m, const sim_instruction *in) {                                                     \
        const A *x = (const A *)sim_operand(m, in, 1);                                                                \
        D result[LANES];                                                                                              \
        int i;                                                                                                        \
        for (i = 0; i < LANES; i++) {                                                                                 \
            A a = x[i];                                                                                               \
            result[i] = (D)(e);                                                                                       \
        }                                                                                                             \
        sim_keep(m, sim_operand(m, in, 0), result, sizeof(D));                                                        \
    }

#define BINARY(name, D, A, B, e)                                                                                      \
    static void name(sim_machine *m, const sim_instruction *in) {                                                     \
        const A *x = (const A *)sim_operand(m, in, 1);                                                                \
        const B *y = (const B *)sim_operand(m, in, 2);                                                                \
        D result[LANES];                                                                                              \
        int i;                                                                                                        \
        for (i = 0; i < LANES; i++) {                                                                                 \
            A a = x[i];                                                                                               \
            B b = y[i];                                                                                               \
            result[i] = (D)(e);                                                                                       \
        }                                                                                                             \
        sim_keep(m, sim_operand(m, in, 0), result, sizeof(D));                                                        \
    }

#define TERNARY(name, D, A, B, C, e)                                                                                  \
    static void name(sim_machine *m, const sim_instruction *in) {                                                     \
        const A *x = (const A *)sim_operand(m, in, 1);                                                                \
        const B *y = (const B *)sim_operand(m, in, 2);                                                                \
        const C *z = (const C *)sim_operand(m, in, 3);                                                                \
        D result[LANES];                                                                                              \
        int i;                                                                                                        \
        for (i = 0; i < LANES; i++) {                                                                                 \
            A a = x[i];                                                                                               \
            B b = y[i];                                                                                               \
            C c = z[i];                                                                                               \
            result[i] = (D)(e);                                                                                       \
        }                                                                                                             \
        sim_keep(m, sim_operand(m, in, 0), result, sizeof(D));                                                        \
    }

#endif
