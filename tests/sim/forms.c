/* forms.c - from the text of an instruction to the function that runs it. Arithmetic is looked up in tables by its full
   name; memory, synchronisation and control have modifiers that combine, so their names are taken apart. What is not
   known here is refused, never guessed. */
#include "parse.h"

#include <stdlib.h>

static const sim_form *const tables[] = { sim_integer_forms, sim_float_forms, sim_convert_forms, sim_warp_forms };

enum { TABLES = sizeof tables / sizeof *tables };

const char *ptxsim_form(int index, const char **operands) {
    int t;
    const sim_form *f;
    for (t = 0; t < TABLES; t++) {
        for (f = tables[t]; f->name; f++) {
            if (index-- == 0) {
                *operands = f->operands;
                return f->name;
            }
        }
    }
    return NULL;
}

/* ---- operands of an instruction -------------------------------------------------------------------------------- */

static void add_operand(sim_kernel *k, sim_instruction *in, int32_t value) {
    k->operands = (int32_t *)sim_grow(k->operands, &k->operand_capacity, k->operand_count + 1, sizeof *k->operands);
    if (!in->operands) in->first_operand = k->operand_count;
    k->operands[k->operand_count++] = value;
    in->operands++;
}

/* A decimal constant takes the type of the operation. */
static uint64_t immediate(const operand *o, int width) {
    if (o->is_number && width == 4) return sim_as_bits((float)o->number);
    return o->value;
}

static int fits_source(const operand *o, int width) {
    return o->kind == IMMEDIATE || (o->kind == REGISTER && o->width == width);
}

static int32_t source(sim_kernel *k, const operand *o, int width) {
    return o->kind == REGISTER ? o->reg : parse_constant(k, immediate(o, width), width);
}

static int add_source(parser *p, sim_instruction *in, const operand *o, int width) {
    if (!fits_source(o, width)) {
        return parse_fail(p, "`%.*s' is not an operand of %d bits", o->where.length, o->where.text, 8 * width);
    }
    add_operand(p->kernel, in, source(p->kernel, o, width));
    return 0;
}

static int width_of(char c) {
    return c == 'd' ? 8 : c == 'h' ? 2 : 4;
}

/* The letters of a form: p h w d as in ptxsim.h, i: an immediate, n: a predicate that may be negated, P: w or w|p. */
static int fits(const sim_form *f, const operand *o, int count) {
    int i, n = (int)strlen(f->operands);
    if (n != count) return 0;
    for (i = 0; i < n; i++) {
        char c = f->operands[i];
        int width = width_of(c);
        if (o[i].negated && c != 'n') return 0;
        if (o[i].has_pair && c != 'P') return 0;
        if (c == 'i' ? o[i].kind != IMMEDIATE : i == 0 && f->run != sim_sync_lanes
                ? o[i].kind != REGISTER || o[i].width != width
                : !fits_source(&o[i], width)) {
            return 0;
        }
    }
    return 1;
}

static void take(parser *p, const sim_form *f, const operand *o, int count, sim_instruction *in) {
    sim_kernel *k = p->kernel;
    int i;
    in->run = f->run;
    in->class_ = f->class_;
    in->option = f->option;
    in->results = f->run == sim_sync_lanes ? 0 : 1 + (f->operands[0] == 'P');
    for (i = 0; i < count; i++) {
        char c = f->operands[i];
        if (c == 'i') {
            in->immediate = o[i].value;
            continue;
        }
        if ((c == 'p' || c == 'n') && o[i].kind == IMMEDIATE) {
            add_operand(k, in, parse_constant(k, o[i].value ? ~(uint64_t)0 : 0, 4));
        } else {
            add_operand(k, in, source(k, &o[i], width_of(c)));
        }
        if (c == 'P') add_operand(k, in, o[i].has_pair ? o[i].pair : NO_OPERAND);
        if (c == 'n') in->negated_source = (uint8_t)o[i].negated;
    }
    if (f->class_ == WARP_WIDE && f->option != NO_MASK) {
        in->flow = WARP_SYNC;
        in->mask = in->operands - 1;
    }
}

/* 1: found, 0: no form has this name, -1: one has, but other operands. */
static int find_in_tables(parser *p, const token *opcode, const operand *o, int count, sim_instruction *in) {
    int t, named = 0;
    const sim_form *f;
    for (t = 0; t < TABLES; t++) {
        for (f = tables[t]; f->name; f++) {
            if (!parse_token_is(opcode, f->name)) continue;
            named = 1;
            if (!fits(f, o, count)) continue;
            take(p, f, o, count, in);
            return 1;
        }
    }
    return named ? parse_fail(p, "%.*s with other operands than are known", opcode->length, opcode->text) : 0;
}

/* ---- modifiers ------------------------------------------------------------------------------------------------- */

/* The parts of ld.global.v4.f32, without the points. */
typedef struct parts {
    struct {
        const char *text;
        int length;
    } part[12];
    int count, at;
} parts;

static int split_name(const token *t, parts *s) {
    const char *from = t->text, *end = t->text + t->length, *to;
    s->count = s->at = 0;
    while (from <= end) {
        for (to = from; to < end && *to != '.'; to++) {}
        if (s->count == (int)(sizeof s->part / sizeof *s->part)) return 0;
        s->part[s->count].text = from;
        s->part[s->count++].length = (int)(to - from);
        from = to + 1;
    }
    return 1;
}

static int next_is(const parts *s, const char *word) {
    return s->at < s->count && (size_t)s->part[s->at].length == strlen(word) &&
           !memcmp(s->part[s->at].text, word, strlen(word));
}

static int eat(parts *s, const char *word) {
    int found = next_is(s, word);
    s->at += found;
    return found;
}

/* The index of the next part in a list that ends with NULL, or -1. */
static int eat_one(parts *s, const char *const *list) {
    int i;
    for (i = 0; list[i]; i++) {
        if (eat(s, list[i])) return i;
    }
    return -1;
}

static int at_end(const parts *s) {
    return s->at == s->count;
}

static int eat_type(parts *s, sim_instruction *in) {
    static const char *const types[] = { "b8",  "u8",  "s8",  "b16", "u16", "s16", "b32", "u32",
                                         "s32", "f32", "b64", "u64", "s64", "f64", NULL };
    static const uint8_t bytes[] = { 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8 };
    int t = eat_one(s, types);
    if (t < 0) return 0;
    in->bytes = bytes[t];
    in->is_signed = types[t][0] == 's';
    in->is_float = types[t][0] == 'f';
    return 1;
}

static int eat_space(parts *s) {
    static const char *const names[] = { "global", "shared::cta", "shared", "local", "param", "const", NULL };
    static const sim_space spaces[] = { GLOBAL, SHARED, SHARED, LOCAL, PARAM, CONSTANT };
    int i = eat_one(s, names);
    return (int)(i < 0 ? GENERIC : spaces[i]);
}

/* .relaxed.gpu and the like: what the access does for the order of others. */
static int eat_semantics(parts *s, sim_instruction *in) {
    static const char *const scopes[] = { "cta", "gpu", "sys", NULL };
    int scope;
    if (eat(s, "weak")) return 1;
    if (eat(s, "volatile")) {
        in->strong = 1;
        return 1;
    }
    in->acquire = next_is(s, "acquire") || next_is(s, "acq_rel");
    in->release = next_is(s, "release") || next_is(s, "acq_rel");
    if (!in->acquire && !in->release && !next_is(s, "relaxed")) return 1;
    s->at++;
    in->strong = 1;
    scope = eat_one(s, scopes);
    in->block_scope = scope == 0;
    return 1;
}

/* Where data may stay in the caches changes nothing here. */
static void eat_cache_hints(parts *s) {
    static const char *const hints[] = {
        "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_normal", "L1::evict_first", "L1::evict_last",
        "L1::evict_unchanged", "L1::no_allocate", "L2::64B", "L2::128B", "L2::256B", NULL,
    };
    while (eat_one(s, hints) >= 0) {}
}

static void eat_vector(parts *s, sim_instruction *in) {
    in->vector = (uint8_t)(eat(s, "v2") ? 2 : eat(s, "v4") ? 4 : eat(s, "v8") ? 8 : 1);
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static int add_address(parser *p, sim_instruction *in, const operand *o, int64_t *offset) {
    if (o->kind != ADDRESS) return parse_fail(p, "an address is expected");
    if (o->reg != NO_OPERAND && o->width != 8 && !(o->width == 4 && (in->space == SHARED || in->space == LOCAL ||
                                                                     in->space == PARAM || in->space == CONSTANT))) {
        return parse_fail(p, "an address of %d bits", 8 * o->width);
    }
    *offset = (int64_t)o->value;
    in->address_bytes = (uint8_t)o->width;
    add_operand(p->kernel, in, o->reg);
    return 0;
}

/* Registers may be wider than what is loaded or stored, not narrower; a byte lives in 16 bits or more. */
static int fits_data(const sim_instruction *in, int width) {
    int least = in->bytes < 2 ? 2 : in->bytes;
    return width >= least && (!in->is_float || width == in->bytes) &&
           (!in->register_bytes || width == in->register_bytes);
}

static int add_data(parser *p, sim_instruction *in, const operand *o, int is_load) {
    struct element single;
    const struct element *e = o->kind == VECTOR ? o->element : &single;
    int i, count = o->kind == VECTOR ? o->elements : 1;
    single.kind = o->kind;
    single.width = o->width;
    single.reg = o->reg;
    single.value = immediate(o, in->bytes);
    if (count != in->vector) return parse_fail(p, "%d values, the name says %d", count, in->vector);
    for (i = 0; i < count; i++) {
        if (e[i].kind != REGISTER) continue;
        if (!fits_data(in, e[i].width)) return parse_fail(p, "a register of %d bits", 8 * e[i].width);
        in->register_bytes = (uint8_t)e[i].width;
    }
    if (!in->register_bytes) in->register_bytes = in->bytes < 2 ? 2 : in->bytes;
    for (i = 0; i < count; i++) {
        if (e[i].kind == REGISTER) add_operand(p->kernel, in, e[i].reg);
        else if (e[i].kind == NOTHING && is_load) add_operand(p->kernel, in, NO_OPERAND);
        else if (e[i].kind == IMMEDIATE && !is_load) {
            add_operand(p->kernel, in, parse_constant(p->kernel, e[i].value, in->register_bytes));
        } else {
            return parse_fail(p, "a bad value to %s", is_load ? "load" : "store");
        }
    }
    return 0;
}

static int decode_load(parser *p, parts *s, const operand *o, int count, sim_instruction *in) {
    s->at = 1;
    eat_semantics(s, in);
    in->space = (uint8_t)eat_space(s);
    eat_cache_hints(s);
    in->read_only = (uint8_t)eat(s, "nc");
    eat_cache_hints(s);
    eat_vector(s, in);
    if (!eat_type(s, in) || !at_end(s) || count != 2) return 0;
    if (in->read_only && in->space != GLOBAL) return parse_fail(p, ".nc is for global memory");
    in->run = sim_load;
    in->class_ = MEMORY;
    in->results = in->vector;
    return add_data(p, in, &o[0], 1) || add_address(p, in, &o[1], &in->offset) ? -1 : 1;
}

static int decode_store(parser *p, parts *s, const operand *o, int count, sim_instruction *in) {
    s->at = 1;
    eat_semantics(s, in);
    in->space = (uint8_t)eat_space(s);
    eat_cache_hints(s);
    eat_vector(s, in);
    if (!eat_type(s, in) || !at_end(s) || count != 2) return 0;
    if (in->space == PARAM || in->space == CONSTANT) return 0;
    in->run = sim_store;
    in->class_ = MEMORY;
    return add_data(p, in, &o[1], 0) || add_address(p, in, &o[0], &in->offset) ? -1 : 1;
}

/* atom has a destination in front, red has none. Both are relaxed for the whole GPU when nothing is said. */
static int decode_atomic(parser *p, parts *s, const operand *o, int count, sim_instruction *in) {
    static const char *const names[] = { "add", "exch", "cas", "min", "max", "and", "or", "xor", "inc", "dec", NULL };
    static const char *const scopes[] = { "cta", "gpu", "sys", NULL };
    int returns = s->part[0].text[0] == 'a', values, i, operation;
    s->at = 1;
    eat_semantics(s, in);
    if (!in->strong) in->block_scope = eat_one(s, scopes) == 0;
    in->strong = 1;
    in->space = (uint8_t)eat_space(s);
    if (in->space != GLOBAL && in->space != SHARED && in->space != GENERIC) return 0;
    operation = eat_one(s, names);
    if (operation < 0 || !eat_type(s, in) || !at_end(s) || in->bytes < 4) return 0;
    if (in->is_float && (operation != ATOMIC_ADD || in->bytes != 4)) return 0;
    values = operation == ATOMIC_CAS ? 2 : 1;
    if (count != returns + 1 + values) return 0;
    in->option = (uint8_t)operation;
    in->run = sim_atomic;
    in->class_ = MEMORY;
    in->vector = 1;
    in->register_bytes = in->bytes;
    in->results = 1;
    if (!returns || o[0].kind == NOTHING) add_operand(p->kernel, in, NO_OPERAND);
    else if (o[0].kind == REGISTER && o[0].width == in->bytes) add_operand(p->kernel, in, o[0].reg);
    else return parse_fail(p, "a bad destination");
    if (add_address(p, in, &o[returns], &in->offset)) return -1;
    for (i = 0; i < values; i++) {
        if (add_source(p, in, &o[returns + 1 + i], in->bytes)) return -1;
    }
    return 1;
}

/* cp.async: 4, 8 or 16 bytes from global to shared memory. */
static int decode_async(parser *p, parts *s, const operand *o, int count, sim_instruction *in) {
    int through_l1;
    s->at = 1;
    in->class_ = MEMORY;
    if (!eat(s, "async")) return 0;
    if (eat(s, "commit_group")) {
        in->run = sim_async_commit;
        return at_end(s) && count == 0;
    }
    if (next_is(s, "wait_group") || next_is(s, "wait_all")) {
        int all = next_is(s, "wait_all");
        s->at++;
        in->run = sim_async_wait;
        in->option = (uint8_t)all;
        in->immediate = count ? o[0].value : 0;
        return at_end(s) && (all ? count == 0 : count == 1 && o[0].kind == IMMEDIATE);
    }
    through_l1 = next_is(s, "ca");
    if (!eat(s, "ca") && !eat(s, "cg")) return 0;
    if (eat_space(s) != (int)SHARED || eat_space(s) != (int)GLOBAL) return 0;
    eat_cache_hints(s);
    if (!at_end(s) || count < 3 || count > 4 || o[2].kind != IMMEDIATE) return 0;
    if (o[2].value != 16 && (!through_l1 || (o[2].value != 4 && o[2].value != 8))) return 0;
    in->run = sim_async_copy;
    in->bytes = (uint8_t)o[2].value;
    in->space = SHARED;
    if (add_address(p, in, &o[0], &in->offset)) return -1;
    in->space = GLOBAL;
    in->address_bytes2 = in->address_bytes;
    if (add_address(p, in, &o[1], &in->offset2)) return -1;
    if (count == 4 && add_source(p, in, &o[3], 4)) return -1;
    return 1;
}

/* ---- moves that need more than a table ------------------------------------------------------------------------- */

static int add_elements(parser *p, sim_instruction *in, const operand *o, int width, int is_target) {
    int i;
    in->vector = (uint8_t)o->elements;
    in->register_bytes = (uint8_t)width;
    for (i = 0; i < o->elements; i++) {
        const struct element *e = &o->element[i];
        if (e->kind == NOTHING && is_target) add_operand(p->kernel, in, NO_OPERAND);
        else if (e->kind == REGISTER && e->width == width) add_operand(p->kernel, in, e->reg);
        else if (e->kind == IMMEDIATE && !is_target) {
            add_operand(p->kernel, in, parse_constant(p->kernel, e->value, width));
        } else {
            return parse_fail(p, "an element that is not of %d bits", 8 * width);
        }
    }
    return 0;
}

/* mov.b32 %r, {%lo, %hi} and back. */
static int decode_pack(parser *p, parts *s, const operand *o, int count, sim_instruction *in) {
    int width;
    s->at = 1;
    if (count != 2 || !eat_type(s, in) || !at_end(s)) return 0;
    in->class_ = MOVE;
    if (o[0].kind == VECTOR && o[0].elements) {
        width = in->bytes / o[0].elements;
        in->run = sim_unpack;
        in->results = o[0].elements;
        return width < 2 || width * o[0].elements != in->bytes || add_elements(p, in, &o[0], width, 1) ||
               add_source(p, in, &o[1], in->bytes) ? -1 : 1;
    }
    if (o[1].kind == VECTOR && o[1].elements && o[0].kind == REGISTER && o[0].width == in->bytes) {
        width = in->bytes / o[1].elements;
        in->run = sim_pack;
        in->results = 1;
        add_operand(p->kernel, in, o[0].reg);
        return width < 2 || width * o[1].elements != in->bytes || add_elements(p, in, &o[1], width, 0) ? -1 : 1;
    }
    return 0;
}

/* cvta.to.global.u64: from a generic address to one of the window; without .to the other way. */
static int decode_address(parser *p, parts *s, const operand *o, int count, sim_instruction *in) {
    uint64_t window;
    int to, space;
    s->at = 1;
    to = eat(s, "to");
    space = eat_space(s);
    window = space == (int)SHARED ? SHARED_WINDOW : space == (int)LOCAL ? LOCAL_WINDOW :
             space == (int)PARAM ? PARAM_WINDOW : 0;
    if (space == (int)GENERIC || !eat(s, "u64") || !at_end(s) || count != 2) return 0;
    if (o[0].kind != REGISTER || o[0].width != 8 || !fits_source(&o[1], 8)) return 0;
    in->run = sim_add_window;
    in->class_ = INTEGER;
    in->results = 1;
    add_operand(p->kernel, in, o[0].reg);
    add_operand(p->kernel, in, source(p->kernel, &o[1], 8));
    in->immediate = to ? 0 - window : window;
    return 1;
}

/* ---- control --------------------------------------------------------------------------------------------------- */

/* bar.sync, bar.arrive, bar.red and their long names. Operands: id, number of threads, destination, predicate. */
static int decode_barrier(parser *p, parts *s, const operand *o, int count, sim_instruction *in) {
    static const char *const kinds[] = { "sync", "arrive", "red", NULL };
    static const char *const reductions[] = { "popc", "and", "or", NULL };
    int kind, reduction = 0, first = 0, threads;
    s->at = 1;
    eat(s, "cta");
    kind = eat_one(s, kinds);
    if (kind == 2) reduction = eat_one(s, reductions);
    eat(s, "aligned");
    if (kind == 2 && (reduction < 0 || !eat(s, reduction ? "pred" : "u32"))) return 0;
    if (kind < 0 || !at_end(s)) return 0;
    first = kind == 2;
    threads = count - first - (kind == 2) - 1;
    if (threads < 0 || threads > 1 || (kind == 1 && !threads)) return 0;
    in->flow = BARRIER;
    in->class_ = CONTROL;
    in->option = (uint8_t)(kind == 2 ? BARRIER_POPC + reduction : kind);
    if (add_source(p, in, &o[first], 4)) return -1;
    if (!threads) add_operand(p->kernel, in, NO_OPERAND);
    else if (add_source(p, in, &o[first + 1], 4)) return -1;
    if (kind != 2) return 1;
    if (o[0].kind != REGISTER || o[0].width != 4) return 0;
    add_operand(p->kernel, in, o[0].reg);
    in->negated_source = (uint8_t)o[count - 1].negated;
    return add_source(p, in, &o[count - 1], 4) ? -1 : 1;
}

static int decode_fence(parts *s, int count, sim_instruction *in) {
    static const char *const scopes[] = { "gl", "gpu", "sys", "cta", NULL };
    int scope;
    s->at = 1;
    if (s->part[0].text[0] == 'f' && !eat(s, "acq_rel") && !eat(s, "sc")) return 0;
    scope = eat_one(s, scopes);
    if (scope < 0 || !at_end(s) || count) return 0;
    in->run = scope == 3 ? sim_fence_block : sim_fence;
    in->class_ = CONTROL;
    return 1;
}

static int decode_control(const token *opcode, const operand *o, int count, sim_instruction *in) {
    in->class_ = CONTROL;
    if (parse_token_is(opcode, "bra") || parse_token_is(opcode, "bra.uni")) {
        in->flow = BRANCH;
        return count == 1 && o[0].kind == LABEL_NAME;
    }
    if (parse_token_is(opcode, "ret") || parse_token_is(opcode, "exit")) {
        in->flow = EXIT;
        return count == 0;
    }
    if (parse_token_is(opcode, "trap")) {
        in->run = sim_trap;
        return count == 0;
    }
    if (parse_token_is(opcode, "nanosleep.u32") || parse_token_is(opcode, "prefetch.global.L1") ||
        parse_token_is(opcode, "prefetch.global.L2")) {
        in->run = sim_nothing;
        return count == 1;
    }
    return 0;
}

static int is_part(const parts *s, const char *word) {
    return (size_t)s->part[0].length == strlen(word) && !memcmp(s->part[0].text, word, strlen(word));
}

static int decode_modified(parser *p, const token *opcode, const operand *o, int count, sim_instruction *in) {
    parts s;
    if (!split_name(opcode, &s)) return 0;
    if (is_part(&s, "ld") || is_part(&s, "ldu")) return decode_load(p, &s, o, count, in);
    if (is_part(&s, "st")) return decode_store(p, &s, o, count, in);
    if (is_part(&s, "atom") || is_part(&s, "red")) return decode_atomic(p, &s, o, count, in);
    if (is_part(&s, "cp")) return decode_async(p, &s, o, count, in);
    if (is_part(&s, "mov")) return decode_pack(p, &s, o, count, in);
    if (is_part(&s, "cvta")) return decode_address(p, &s, o, count, in);
    if (is_part(&s, "bar") || is_part(&s, "barrier")) return decode_barrier(p, &s, o, count, in);
    if (is_part(&s, "fence") || is_part(&s, "membar")) return decode_fence(&s, count, in);
    return decode_control(opcode, o, count, in);
}

static int is_pack(const token *opcode, const operand *o, int count) {
    return opcode->length > 4 && !memcmp(opcode->text, "mov.", 4) && count == 2 &&
           (o[0].kind == VECTOR || o[1].kind == VECTOR);
}

int parse_decode(parser *p, const token *opcode, const operand *o, int count, sim_instruction *in) {
    int found = is_pack(opcode, o, count) ? 0 : find_in_tables(p, opcode, o, count, in);
    if (!found) found = decode_modified(p, opcode, o, count, in);
    if (!found) {
        return parse_fail(p, "`%.*s' is not a form that the simulator knows", in->text_length, in->text);
    }
    return found < 0 ? parse_fail(p, "`%.*s' has bad operands", in->text_length, in->text) : 0;
}
