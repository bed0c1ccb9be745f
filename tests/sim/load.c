/* load.c - modules: declarations of variables, bodies of kernels. */
#include "parse.h"

#include <stdio.h>
#include <stdlib.h>

/* .align 8 .b8 name[64] = { 1, 2 } */
typedef struct variable {
    token name;
    size_t alignment, item, bytes;
    int is_open, first_value;       /* name[]; the token behind {, 0: no values */
} variable;

static size_t type_bytes(const token *t) {
    static const struct {
        const char *name;
        size_t bytes;
    } types[] = {
        { ".b8", 1 },  { ".u8", 1 },  { ".s8", 1 },  { ".b16", 2 }, { ".u16", 2 }, { ".s16", 2 }, { ".f16", 2 },
        { ".b32", 4 }, { ".u32", 4 }, { ".s32", 4 }, { ".f32", 4 }, { ".b64", 8 }, { ".u64", 8 }, { ".s64", 8 },
        { ".f64", 8 },
    };
    size_t i;
    for (i = 0; i < sizeof types / sizeof *types; i++) {
        if (parse_token_is(t, types[i].name)) return types[i].bytes;
    }
    return 0;
}

static int skip_braces(parser *p) {
    int depth = 1;
    while (p->at < p->count && depth) {
        depth += parse_is(p, "{") - parse_is(p, "}");
        p->at++;
    }
    return depth ? parse_fail(p, "} is missing") : 0;
}

/* .ptr .global .align 16: what a parameter points at. */
static int skip_pointer(parser *p) {
    uint64_t ignored;
    if (!parse_eat(p, ".ptr")) return 0;
    while (parse_is(p, ".global") || parse_is(p, ".shared") || parse_is(p, ".const") || parse_is(p, ".local")) p->at++;
    return parse_eat(p, ".align") ? parse_integer(p, &ignored) : 0;
}

static int parse_variable(parser *p, variable *v) {
    uint64_t number = 0, items = 1;
    memset(v, 0, sizeof *v);
    if (parse_eat(p, ".align")) {
        if (parse_integer(p, &number)) return -1;
        v->alignment = (size_t)number;
    }
    v->item = p->at < p->count ? type_bytes(&p->tokens[p->at]) : 0;
    if (!v->item) return parse_fail(p, "the type of a variable is expected");
    p->at++;
    if (skip_pointer(p)) return -1;
    if (!v->alignment) v->alignment = v->item;
    if (p->at >= p->count) return parse_fail(p, "the name of a variable is expected");
    v->name = p->tokens[p->at++];
    while (parse_eat(p, "[")) {
        if (parse_eat(p, "]")) {
            v->is_open = 1;
            continue;
        }
        if (parse_integer(p, &number) || !parse_eat(p, "]")) return parse_fail(p, "the size of an array is expected");
        items *= number;
    }
    v->bytes = v->is_open ? 0 : v->item * (size_t)items;
    if (!parse_eat(p, "=")) return 0;
    v->first_value = p->at;
    if (parse_eat(p, "{")) return skip_braces(p);
    p->at++;
    return 0;
}

static size_t rounded_up(size_t n, size_t alignment) {
    return (n + alignment - 1) / alignment * alignment;
}

/* ---- variables ------------------------------------------------------------------------------------------------- */

static int write_values(parser *p, const variable *v, uint8_t *data) {
    size_t at = 0;
    int resume = p->at, list;
    uint64_t value;
    p->at = v->first_value;
    list = parse_eat(p, "{");
    do {
        if (parse_is(p, "}")) break;
        if (parse_integer(p, &value)) return -1;
        if (at + v->item > v->bytes) return parse_fail(p, "too many values");
        memcpy(data + at, &value, v->item);
        at += v->item;
    } while (list && parse_eat(p, ","));
    p->at = resume;
    return 0;
}

/* .global and .const: memory of the device, zero where no value is given. */
static int declare_global(parser *p, int constant) {
    sim_module *m = p->module;
    variable v;
    symbol *s;
    sim_buffer *b;
    if (parse_variable(p, &v)) return -1;
    if (!v.bytes) return parse_fail(p, "a variable without a size");
    b = sim_buffer_make(p->module->memory, v.bytes);
    if (!b) return parse_fail(p, "no memory for %.*s", v.name.length, v.name.text);
    b->of_module = 1;
    b->constant = constant;
    memset(b->data, 0, v.bytes);
    memset(b->written, 1, v.bytes);
    m->variable = (struct sim_variable *)sim_grow(m->variable, &m->variable_capacity, m->variables + 1,
                                                  sizeof *m->variable);
    m->variable[m->variables].name = sim_copy_text(v.name.text, (size_t)v.name.length);
    m->variable[m->variables++].buffer = b;
    s = parse_declare(p, &v.name, ADDRESS_OF);
    s->address = b->base;
    return v.first_value ? write_values(p, &v, b->data) : 0;
}

/* The next static shared variable, with a red zone in front of it; gives its address. */
static uint64_t place_shared(sim_kernel *k, size_t alignment, size_t bytes) {
    size_t end = k->shared_layout, start = rounded_up(end ? end + RED_ZONE : 0, alignment);
    if (end) {
        k->red_zone[k->red_zones][0] = (uint32_t)end;
        k->red_zone[k->red_zones++][1] = (uint32_t)start;
    }
    k->static_shared = rounded_up(k->static_shared, alignment) + bytes;
    k->shared_layout = start + bytes;
    return SHARED_FIRST + start;
}

static int declare_shared(parser *p) {
    sim_kernel *k = p->kernel;
    variable v;
    symbol *s;
    if (parse_variable(p, &v)) return -1;
    if (!v.bytes) return parse_fail(p, "a shared variable without a size");
    if (k && k->red_zones + 1 == (int)(sizeof k->red_zone / sizeof *k->red_zone)) {
        return parse_fail(p, "too many shared variables");
    }
    s = parse_declare(p, &v.name, k ? ADDRESS_OF : MODULE_SHARED);
    s->alignment = v.alignment;
    s->bytes = v.bytes;
    s->address = k ? place_shared(k, v.alignment, v.bytes) : 0;
    return 0;
}

/* .extern .shared: its address is known when the static variables of a kernel are. */
static int declare_dynamic(parser *p) {
    variable v;
    symbol *s;
    if (parse_variable(p, &v)) return -1;
    s = parse_declare(p, &v.name, DYNAMIC_SHARED);
    s->alignment = v.alignment < 16 ? 16 : v.alignment;
    return 0;
}

static int declare_local(parser *p) {
    variable v;
    symbol *s;
    if (parse_variable(p, &v)) return -1;
    s = parse_declare(p, &v.name, ADDRESS_OF);
    p->kernel->local_bytes = rounded_up(p->kernel->local_bytes, v.alignment);
    s->address = p->kernel->local_bytes;
    p->kernel->local_bytes += v.bytes;
    return 0;
}

static int declare_param(parser *p) {
    sim_kernel *k = p->kernel;
    variable v;
    symbol *s;
    if (!parse_eat(p, ".param") || parse_variable(p, &v)) return parse_fail(p, "a parameter is expected");
    if (k->params == (int)(sizeof k->param_size / sizeof *k->param_size)) return parse_fail(p, "too many parameters");
    k->param_bytes = rounded_up(k->param_bytes, v.alignment);
    k->param_offset[k->params] = k->param_bytes;
    k->param_size[k->params++] = v.bytes;
    s = parse_declare(p, &v.name, PARAMETER);
    s->address = k->param_bytes;
    k->param_bytes += v.bytes;
    if (k->param_bytes > 4096) return parse_fail(p, "more than 4096 bytes of parameters");
    return 0;
}

/* .reg .b32 %r<9>, x, y; */
static int declare_registers(parser *p) {
    static const char *const types[] = { ".pred", ".b8", ".b16", ".u16", ".s16", ".f16", ".b32", ".u32", ".s32",
                                         ".f32", ".b64", ".u64", ".s64", ".f64" };
    static const uint8_t width[] = { 4, 2, 2, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8 };
    uint64_t count;
    size_t t, i;
    for (t = 0; t < sizeof width && !parse_is(p, types[t]); t++) {}
    if (t == sizeof width) return parse_fail(p, "this type of registers is not supported");
    p->at++;
    do {
        symbol *s = parse_declare(p, &p->tokens[p->at++], REGISTERS);
        count = 0;
        if (parse_eat(p, "<") && (parse_integer(p, &count) || !parse_eat(p, ">"))) return parse_fail(p, "> is missing");
        s->count = (int)count;
        s->width = width[t];
        s->offset = p->kernel->register_bytes;
        for (i = 0; i < (count ? count : 1); i++) parse_new_register(p->kernel, width[t]);
        p->kernel->registers += (int)(count ? count : 1) * (width[t] == 8 ? 2 : t != 0);
    } while (parse_eat(p, ","));
    return parse_eat(p, ";") ? 0 : parse_fail(p, "; is missing");
}

/* ---- bodies ---------------------------------------------------------------------------------------------------- */

static void skip_line(parser *p) {
    uint32_t line = p->tokens[p->at].line;
    while (p->at < p->count && p->tokens[p->at].line == line) p->at++;
}

/* .loc file line column: reports name lines of the first file, the kernel's own. */
static void parse_location(parser *p) {
    uint64_t file, line;
    int start = p->at;
    p->at++;
    if (!parse_integer(p, &file) && !parse_integer(p, &line)) p->source_line = (uint32_t)line;
    p->at = start;
    skip_line(p);
}

static int parse_guard(parser *p, sim_instruction *in) {
    operand o;
    in->predicate = -1;
    if (!parse_eat(p, "@")) return 0;
    if (parse_operand(p, &o)) return -1;
    if (o.kind != REGISTER || o.width != 4) return parse_fail(p, "a bad guard");
    in->predicate = o.reg;
    in->negated = (uint8_t)o.negated;
    return 0;
}

static int parse_instruction(parser *p) {
    sim_kernel *k = p->kernel;
    sim_instruction in;
    operand o[MAX_OPERANDS];
    token opcode;
    int count = 0;
    memset(&in, 0, sizeof in);
    in.text = p->tokens[p->at].text;
    in.line = p->tokens[p->at].line;
    in.source_line = p->source_line;
    in.mask = -1;
    if (parse_guard(p, &in)) return -1;
    opcode = p->tokens[p->at++];
    while (!parse_eat(p, ";")) {
        if (count == MAX_OPERANDS || p->at >= p->count) return parse_fail(p, "; is missing");
        if (parse_operand(p, &o[count])) return -1;
        count++;
        parse_eat(p, ",");
    }
    in.text_length = (int)(p->tokens[p->at - 1].text - in.text);
    p->at--;
    if (parse_decode(p, &opcode, o, count, &in)) return -1;
    p->at++;
    if (in.flow == BRANCH) {
        p->branches = (branch *)sim_grow(p->branches, &p->branch_capacity, p->branch_count + 1, sizeof *p->branches);
        p->branches[p->branch_count].instruction = k->count;
        p->branches[p->branch_count].depth = p->depth;
        p->branches[p->branch_count++].label = o[0].where;
    }
    k->code = (sim_instruction *)sim_grow(k->code, &k->capacity, k->count + 1, sizeof *k->code);
    k->code[k->count++] = in;
    return 0;
}

static int parse_label(parser *p) {
    symbol *s = parse_declare(p, &p->tokens[p->at], LABEL);
    s->offset = p->kernel->count;
    p->at += 2;
    return 0;
}

static int parse_statement(parser *p) {
    if (parse_eat(p, ".reg")) return declare_registers(p);
    if (parse_eat(p, ".shared")) return declare_shared(p) ? -1 : !parse_eat(p, ";") ? parse_fail(p, "; is missing") : 0;
    if (parse_eat(p, ".local")) return declare_local(p) ? -1 : !parse_eat(p, ";") ? parse_fail(p, "; is missing") : 0;
    if (parse_is(p, ".loc")) {
        parse_location(p);
        return 0;
    }
    if (parse_is(p, ".pragma")) {
        skip_line(p);
        return 0;
    }
    if (p->tokens[p->at].text[0] == '.') {
        return parse_fail(p, "%.*s is not supported", p->tokens[p->at].length, p->tokens[p->at].text);
    }
    if (p->at + 1 < p->count && parse_token_is(&p->tokens[p->at + 1], ":")) return parse_label(p);
    return parse_instruction(p);
}

/* Shared variables of the module lie in front of those of the kernel. Those of the body are measured first, because
   dynamic memory lies behind them. */
static int place_dynamic(parser *p) {
    sim_kernel start;
    int resume = p->at, depth = 0, i, symbols = p->symbol_count;
    size_t alignment = 1;
    for (i = 0; i < symbols; i++) {
        symbol *s = &p->symbols[i];
        if (s->kind == DYNAMIC_SHARED && s->alignment > alignment) alignment = s->alignment;
        if (s->kind == MODULE_SHARED) s->address = place_shared(p->kernel, s->alignment, s->bytes);
    }
    start = *p->kernel;
    do {
        depth += parse_is(p, "{") - parse_is(p, "}");
        if (parse_eat(p, ".shared")) {
            if (declare_shared(p)) return -1;
        } else {
            p->at++;
        }
    } while (depth && p->at < p->count);
    start.dynamic_offset = p->kernel->shared_layout;
    if (start.dynamic_offset && alignment > 1) start.dynamic_offset += RED_ZONE;
    start.dynamic_offset = rounded_up(start.dynamic_offset, alignment);
    *p->kernel = start;
    p->at = resume;
    p->symbol_count = symbols;
    for (i = 0; i < symbols; i++) {
        symbol *s = &p->symbols[i];
        if (s->kind == DYNAMIC_SHARED) s->address = SHARED_FIRST + start.dynamic_offset;
    }
    return 0;
}

static int parse_body(parser *p) {
    sim_kernel *k = p->kernel;
    sim_instruction end;
    if (place_dynamic(p)) return -1;
    if (!parse_eat(p, "{")) return parse_fail(p, "the body of a kernel is expected");
    p->depth = 1;
    while (p->depth) {
        if (p->at >= p->count) return parse_fail(p, "} is missing");
        if (parse_eat(p, "{")) p->depth++;
        else if (parse_eat(p, "}")) parse_close_scope(p);
        else if (parse_statement(p)) return -1;
    }
    if (p->branch_count) {
        token *t = &p->branches[0].label;
        return parse_fail(p, "there is no label %.*s", t->length, t->text);
    }
    memset(&end, 0, sizeof end);
    end.flow = EXIT;
    end.predicate = end.mask = -1;
    end.text = "end of the kernel";
    end.text_length = 17;
    k->code = (sim_instruction *)sim_grow(k->code, &k->capacity, k->count + 1, sizeof *k->code);
    k->code[k->count++] = end;
    return 0;
}

/* .maxntid 128, 1, 1 .minnctapersm 2: a limit of threads, and advice that changes nothing here. */
static int parse_limits(parser *p) {
    uint64_t n, product;
    while (!parse_is(p, "{")) {
        int is_limit = parse_is(p, ".maxntid") || parse_is(p, ".reqntid");
        if (!is_limit && !parse_is(p, ".minnctapersm") && !parse_is(p, ".maxnreg")) {
            return parse_fail(p, "this directive is not supported");
        }
        p->at++;
        product = 1;
        do {
            if (parse_integer(p, &n)) return -1;
            product *= n;
        } while (parse_eat(p, ","));
        if (is_limit) p->kernel->max_threads = (int)product;
    }
    return 0;
}

static int parse_kernel(parser *p) {
    sim_module *m = p->module;
    sim_kernel *k = (sim_kernel *)sim_allocate(sizeof *k);
    int globals = p->symbol_count, i;
    m->kernel = (sim_kernel **)sim_grow(m->kernel, &m->kernel_capacity, m->kernels + 1, sizeof *m->kernel);
    m->kernel[m->kernels++] = k;
    k->module = m;
    k->name = sim_copy_text(p->tokens[p->at].text, (size_t)p->tokens[p->at].length);
    k->max_threads = 1024;
    p->at++;
    p->kernel = k;
    p->source_line = 0;
    if (parse_eat(p, "(")) {
        while (!parse_eat(p, ")")) {
            if (declare_param(p)) return -1;
            parse_eat(p, ",");
        }
    }
    if (parse_limits(p) || parse_body(p)) return -1;
    if (k->shared_layout && k->dynamic_offset > k->shared_layout) {
        k->red_zone[k->red_zones][0] = (uint32_t)k->shared_layout;
        k->red_zone[k->red_zones++][1] = (uint32_t)k->dynamic_offset;
    }
    for (i = 0; i < k->count; i++) k->code[i].operand = k->operands + k->code[i].first_operand;
    sim_share_registers(k);
    p->symbol_count = globals;
    p->kernel = NULL;
    return 0;
}

/* ---- modules --------------------------------------------------------------------------------------------------- */

/* An sm_90a kernel runs on 9.0 only, an sm_80 one on 8.0 and everything later. */
static int check_target(parser *p, int capability) {
    const token *t = &p->tokens[p->at];
    int target = t->length > 3 ? atoi(t->text + 3) : 0, exact = t->length > 3 && t->text[t->length - 1] == 'a';
    if (target > capability || (exact && target != capability)) {
        p->error_code = CU_INVALID_PTX;
        return parse_fail(p, ".target %.*s does not run on a device of capability %d.%d", t->length, t->text,
                          capability / 10, capability % 10);
    }
    skip_line(p);
    return 0;
}

/* A driver of CUDA 12.x reads PTX 8.x, one of 13.x 9.x; but 12.6 brought no new PTX, so that 12.8 reads 8.7. */
static int check_version(parser *p, int driver) {
    double version = strtod(p->tokens[p->at].text, NULL);
    int major = driver / 1000, minor = driver % 1000 / 10;
    double newest = major - 4 + (minor - (major == 12 && minor > 5)) / 10.0;
    if (version > newest + 0.05) {
        p->error_code = CU_UNSUPPORTED_PTX;
        return parse_fail(p, "PTX %.1f is newer than this driver, which reads %.1f", version, newest);
    }
    p->at++;
    return 0;
}

static int parse_module(parser *p, int capability, int driver) {
    if (!parse_is(p, ".version")) return parse_fail(p, "this is not PTX");
    while (p->at < p->count) {
        int bad = 0;
        if (parse_eat(p, ".version")) {
            bad = check_version(p, driver);
        } else if (parse_eat(p, ".target")) {
            bad = check_target(p, capability);
        } else if (parse_is(p, ".address_size") || parse_is(p, ".file")) {
            skip_line(p);
        } else if (parse_eat(p, ".section")) {
            while (p->at < p->count && !parse_eat(p, "{")) p->at++;
            bad = skip_braces(p);
        } else if (parse_eat(p, ".extern")) {
            if (!parse_eat(p, ".shared")) return parse_fail(p, ".extern without .shared is not supported");
            bad = declare_dynamic(p);
        } else if (parse_eat(p, ".shared")) {
            bad = declare_shared(p);
        } else if (parse_is(p, ".visible") || parse_is(p, ".weak") || parse_is(p, ";")) {
            p->at++;
        } else if (parse_is(p, ".global") || parse_is(p, ".const")) {
            p->at++;
            bad = declare_global(p, parse_token_is(&p->tokens[p->at - 1], ".const"));
        } else if (parse_eat(p, ".entry")) {
            bad = parse_kernel(p);
        } else {
            return parse_fail(p, "`%.*s' is not supported here", p->tokens[p->at].length, p->tokens[p->at].text);
        }
        if (bad) return -1;
    }
    return 0;
}

int sim_module_load(sim_module **module, sim_memory *memory, const char *text, int capability, int driver,
                    char *error, size_t error_bytes) {
    sim_module *m = (sim_module *)sim_allocate(sizeof *m);
    parser p;
    memset(&p, 0, sizeof p);
    m->text = sim_copy_text(text, strlen(text));
    m->memory = memory;
    p.module = m;
    p.error = error;
    p.error_bytes = error_bytes;
    p.error_code = CU_INVALID_PTX;
    error[0] = 0;
    parse_split(&p, m->text);
    *module = m;
    if (parse_module(&p, capability, driver)) {
        sim_module_free(m);
        *module = NULL;
    } else {
        p.error_code = CU_OK;
    }
    free(p.tokens);
    free(p.symbols);
    free(p.branches);
    return p.error_code;
}

static void free_kernel(sim_kernel *k) {
    free(k->name);
    free(k->code);
    free(k->operands);
    free(k->register_at);
    free(k->constants);
    free(k);
}

void sim_module_free(sim_module *module) {
    int i;
    sim_report_forget_places();
    for (i = 0; i < module->kernels; i++) free_kernel(module->kernel[i]);
    for (i = 0; i < module->variables; i++) {
        free(module->variable[i].name);
        sim_buffer_free(module->memory, module->variable[i].buffer);
    }
    free(module->kernel);
    free(module->variable);
    free(module->text);
    free(module);
}

sim_kernel *sim_module_kernel(sim_module *module, const char *name) {
    int i;
    for (i = 0; i < module->kernels; i++) {
        if (!strcmp(module->kernel[i]->name, name)) return module->kernel[i];
    }
    return NULL;
}
