/* cases.c - the cases: every form of the simulator's list with edge values, the programs and the misuses. */
#include "conformance.h"

#include "../sim/form_kernel.h"
#include "../sim/form_values.h"
#include "../test.h"

/* ---- the list -------------------------------------------------------------------------------------------------- */

conf_case *conf_add(conf_list *list, const char *name) {
    conf_case *c;
    int i;
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 256;
        list->item = (conf_case *)realloc(list->item, (size_t)list->capacity * sizeof *list->item);
        if (!list->item) abort();
    }
    c = &list->item[list->count++];
    memset(c, 0, sizeof *c);
    snprintf(c->name, sizeof c->name, "%s", name);
    for (i = 0; i < 3; i++) c->grid[i] = c->block[i] = 1;
    return c;
}

/* Bits of predicates, or the bytes of the destination. */
static size_t packed_bytes(const conf_case *c) {
    char letter = c->operands[0];
    return letter == 'p' ? CONF_THREADS / 8 : CONF_THREADS * (size_t)form_width(letter);
}

/* Forms that look at other lanes, or name them: programs.c has those. */
static int is_lane_wise(const char *name, const char *operands) {
    return !strpbrk(operands, "nP") && strlen(operands) > 1 && !strstr(name, ".sync");
}

static void add_forms(conf_list *list, conf_forms *forms) {
    const char *name, *operands;
    char full[80];
    int i;
    for (i = 0; (name = forms(i, &operands)) != NULL; i++) {
        conf_case *c;
        if (!is_lane_wise(name, operands)) continue;
        snprintf(full, sizeof full, "%s/%s", name, operands);
        c = conf_add(list, full);
        c->operands = operands;
        c->immediate = 0xCA;
        c->level = form_level_of(name, operands);
        c->grid[0] = CONF_THREADS / CONF_BLOCK;
        c->block[0] = CONF_BLOCK;
        c->out_bytes = packed_bytes(c);
    }
}

void conf_list_open(conf_list *list, conf_forms *forms) {
    memset(list, 0, sizeof *list);
    add_forms(list, forms);
    conf_add_programs(list);
    conf_add_misuses(list);
}

void conf_list_close(conf_list *list) {
    int i;
    for (i = 0; i < list->count; i++) {
        free(list->item[i].variables);
        free(list->item[i].code);
    }
    free(list->item);
    memset(list, 0, sizeof *list);
}

/* ---- kernels --------------------------------------------------------------------------------------------------- */

static char *form_text(const conf_case *c, const char *entry) {
    enum { BYTES = 3000 };
    char *text = (char *)malloc(BYTES), name[80];
    size_t head;
    if (!text) abort();
    memcpy(name, c->name, sizeof name);
    name[strcspn(name, "/")] = 0;
    head = form_head(text, BYTES, form_level_at(c->level));
    form_kernel(text + head, BYTES - head, entry, name, c->operands, c->immediate);
    return text;
}

/* Variables of programs are called $name: with the entry in front, they may stand together in one file. */
static char *name_variables(const char *text, const char *entry) {
    size_t n = strlen(entry), bytes = strlen(text) + 1, i;
    char *named, *to;
    for (i = 0; text[i]; i++) bytes += text[i] == '$' ? n : 0;
    named = to = (char *)malloc(bytes);
    if (!named) abort();
    for (i = 0; text[i]; i++) {
        if (text[i] != '$') {
            *to++ = text[i];
            continue;
        }
        memcpy(to, entry, n);
        to += n;
    }
    *to = 0;
    return named;
}

/* Programs find d0 = in, d1 = out, r0 = thread, r2 = CONF_MAGIC, d3 = in + 4 * thread, d4 = out + 4 * thread; free are
   p, h, f, r from 3 and d from 5. */
static char *program_text(const conf_case *c, const char *entry) {
    size_t bytes = strlen(c->code) + strlen(c->variables) + 1000, n;
    char *text = (char *)malloc(bytes), *named;
    if (!text) abort();
    n = form_head(text, bytes, form_level_at(c->level));
    snprintf(text + n, bytes - n,
             "%s\n.visible .entry %s(.param .u64 in, .param .u64 out, .param .u32 n)\n{\n.reg .pred p<8>;\n"
             ".reg .b16 h<8>;\n.reg .b32 r<40>;\n.reg .f32 f<8>;\n.reg .b64 d<40>;\n"
             "ld.param.u64 d0, [in];\nld.param.u64 d1, [out];\nld.param.u32 r2, [n];\nmov.u32 r0, %%tid.x;\n"
             "mul.wide.u32 d2, r0, 4;\nadd.u64 d3, d0, d2;\nadd.u64 d4, d1, d2;\n%s\nret;\n}\n", c->variables, entry,
             c->code);
    named = name_variables(text, entry);
    free(text);
    return named;
}

char *conf_text(const conf_case *c, const char *entry) {
    if (c->misuse) return NULL;
    return c->operands ? form_text(c, entry) : program_text(c, entry);
}

/* ---- inputs ---------------------------------------------------------------------------------------------------- */

/* A float that lies in the middle between two numbers of a smaller format. Those between subnormal numbers of e4m3,
   e5m2 and f16, units of 2^-9, 2^-16 and 2^-24, are too rare to be left to chance. */
static uint32_t tie32(test_rng *rng) {
    static const uint32_t subnormal[] = { 0x3B000000u, 0x37800000u, 0x33800000u };
    static const uint32_t halves[] = { 0x00A00000u, 0x01100000u, 0x01500000u };     /* 2.5, 4.5 and 6.5 units */
    static const int kept[] = { 0, 2, 3, 7, 10 };
    int bits = kept[test_range(rng, 0, 4)];
    uint32_t random = (uint32_t)test_next(rng), exponent = (uint32_t)test_range(rng, 101, 144);
    if (random % 4 == 0) return (random & 0x80000000u) | (subnormal[random / 4 % 3] + halves[random / 16 % 3]);
    uint32_t mantissa = (random & 0x7FFFFF & ~0u << (23 - bits)) | 1u << (22 - bits);
    return (random & 0x80000000u) | exponent << 23 | mantissa;
}

/* Two halves that are ties of e4m3 or of e5m2, or a double that is one of float. */
static uint64_t narrowing_tie(uint64_t random, char letter) {
    if (letter == 'd') return (random & ~(uint64_t)0x1FFFFFFF) | 0x10000000u;
    if (letter == 'h') return random;
    return random >> 40 & 1 ? (random & 0xFF80FF80u) | 0x00400040u : (random & 0xFF00FF00u) | 0x00800080u;
}

static uint64_t random_value(test_rng *rng, char letter) {
    uint64_t random = test_next(rng);
    switch (test_range(rng, 0, 4)) {
        case 0: return random % 70;
        case 1: return letter == 'w' ? 0x3F000000u + random % 0x2000000u : random;
        case 2: return letter == 'w' ? tie32(rng) : random;
        case 3: return narrowing_tie(random, letter);
        default: return random;
    }
}

static uint64_t edge_value(char letter, int i) {
    if (letter == 'd') return edges64[i % EDGES_64];
    return letter == 'h' ? edges16[i % EDGES_16] : edges32[i % EDGES_32];
}

/* All pairs of the first 12 edge values, then every edge value once, in turns in every place, then random numbers and
   ties of roundings. The only operand of 16 bits takes all values of a byte, low or high. */
static uint64_t draw_operand(test_rng *rng, char letter, int operand, int operands, int t) {
    enum { CORE = 12, PAIRS = CORE * CORE };
    uint64_t random = random_value(rng, letter);
    int other = test_range(rng, 0, CORE - 1), single = operands > 1 ? t - PAIRS : t;
    if (letter == 'p') return random >> 1 & 1;
    if (operands == 1 && letter == 'h' && t >= EDGES_16) return (uint64_t)(t | (255 - t) << 8);
    if (letter == 'w' && single >= EDGES_32 && t % 2) return tie32(rng);
    if (single < 0) return edge_value(letter, operand == 0 ? t % CORE : operand == 1 ? t / CORE : other);
    return single < EDGES_32 && single % operands == operand ? edge_value(letter, single) : random;
}

int conf_sources(const conf_case *c) {
    int n = (int)strlen(c->operands) - 1;
    return n - (strchr(c->operands, 'i') != NULL);
}

/* The same for all forms with these operands, so that those that agree are stored once. */
static void form_inputs(const conf_case *c, uint64_t *in) {
    test_rng rng = { 20 };
    int sources = conf_sources(c), k, t;
    for (k = 0; k < sources; k++) {
        for (t = 0; t < CONF_THREADS; t++) {
            in[k * CONF_THREADS + t] = draw_operand(&rng, c->operands[k + 1], k, sources, t);
        }
    }
}

/* Words of programs: edge values, shifted from row to row, and random ones. */
static void program_inputs(uint64_t *in) {
    test_rng rng = { 21 };
    int i;
    for (i = 0; i < CONF_WORDS / 2; i++) {
        uint64_t random = test_next(&rng);
        uint32_t low = edges32[(i + i / 128) % EDGES_32], high = edges32[(5 * i + i / 64) % EDGES_32];
        in[i] = i % 128 < EDGES_32 ? (uint64_t)high << 32 | low : random;
    }
}

uint64_t *conf_inputs(const conf_case *c, size_t *bytes) {
    uint64_t *in;
    *bytes = c->operands ? 8 * CONF_THREADS * (size_t)conf_sources(c) : 4 * CONF_WORDS;
    in = (uint64_t *)calloc(*bytes, 1);
    if (!in) abort();
    if (c->operands) form_inputs(c, in);
    else program_inputs(in);
    return in;
}

/* ---- results --------------------------------------------------------------------------------------------------- */

size_t conf_device_bytes(const conf_case *c) {
    return c->operands ? 8 * CONF_THREADS : c->out_bytes;
}

/* Kernels of forms leave 8 bytes for each thread. */
void conf_pack(const conf_case *c, const uint8_t *written, uint8_t *out) {
    size_t width = c->operands ? (size_t)form_width(c->operands[0]) : 0;
    int t;
    if (!c->operands) {
        memcpy(out, written, c->out_bytes);
        return;
    }
    memset(out, 0, c->out_bytes);
    for (t = 0; t < CONF_THREADS; t++) {
        if (c->operands[0] == 'p') out[t / 8] |= (uint8_t)((written[8 * t] & 1) << t % 8);
        else memcpy(out + (size_t)t * width, written + 8 * t, width);
    }
}

/* ---- hashes ---------------------------------------------------------------------------------------------------- */

/* FNV-1a; begin with 0. */
uint64_t conf_hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    const uint8_t *p = (const uint8_t *)data;
    size_t i;
    if (!hash) hash = 0xCBF29CE484222325u;
    for (i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001B3u;
    return hash;
}

/* Of everything that the results follow from. The steps of a misuse are code: it has its name alone. */
uint64_t conf_hash(const conf_case *c) {
    uint64_t hash = conf_hash_bytes(0, c->name, strlen(c->name)), *in, shape[8];
    char *text = conf_text(c, "k");
    size_t bytes;
    int i;
    if (!text) return hash;
    in = conf_inputs(c, &bytes);
    for (i = 0; i < 3; i++) {
        shape[i] = c->grid[i];
        shape[3 + i] = c->block[i];
    }
    shape[6] = c->shared;
    shape[7] = c->out_bytes;
    hash = conf_hash_bytes(hash, text, strlen(text));
    hash = conf_hash_bytes(hash, in, bytes);
    hash = conf_hash_bytes(hash, shape, sizeof shape);
    free(text);
    free(in);
    return hash;
}
