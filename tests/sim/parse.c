/* parse.c - tokens, symbols and operands of PTX. */
#include "parse.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int parse_fail(parser *p, const char *format, ...) {
    char what[200];
    va_list list;
    if (p->error[0]) return -1;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    snprintf(p->error, p->error_bytes, "line %u: %s%s%s",
             (unsigned)(p->at < p->count ? p->tokens[p->at].line : 0), what, p->kernel ? ", in the kernel " : "",
             p->kernel ? p->kernel->name : "");
    return -1;
}

/* ---- tokens ---------------------------------------------------------------------------------------------------- */

static int is_word(int c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '$' ||
           c == '%' || c == '.';
}

/* White space and comments; counts the lines. */
static const char *skip_blank(const char *s, uint32_t *line) {
    for (;;) {
        if (*s == '\n') (*line)++;
        if (*s == ' ' || *s == '\t' || *s == '\r' || *s == '\n') {
            s++;
        } else if (s[0] == '/' && s[1] == '/') {
            while (*s && *s != '\n') s++;
        } else if (s[0] == '/' && s[1] == '*') {
            while (*s && !(s[0] == '*' && s[1] == '/')) *line += *s++ == '\n';
            s += *s ? 2 : 0;
        } else {
            return s;
        }
    }
}

static const char *end_of_token(const char *s) {
    if (*s == '"') {
        s++;
        while (*s && *s != '"') s++;
        return *s ? s + 1 : s;
    }
    if (!is_word(*s)) return s + 1;
    while (is_word(*s) || (s[0] == ':' && s[1] == ':')) s += *s == ':' ? 2 : 1;
    return s;
}

void parse_split(parser *p, const char *text) {
    uint32_t line = 1;
    const char *s = skip_blank(text, &line);
    while (*s) {
        const char *end = end_of_token(s);
        p->tokens = (token *)sim_grow(p->tokens, &p->capacity, p->count + 1, sizeof *p->tokens);
        p->tokens[p->count].text = s;
        p->tokens[p->count].length = (int)(end - s);
        p->tokens[p->count++].line = line;
        s = skip_blank(end, &line);
    }
    /* one more, which nothing takes for a word */
    p->tokens = (token *)sim_grow(p->tokens, &p->capacity, p->count + 1, sizeof *p->tokens);
    p->tokens[p->count].text = s;
    p->tokens[p->count].length = 0;
    p->tokens[p->count].line = line;
}

int parse_token_is(const token *t, const char *word) {
    return (size_t)t->length == strlen(word) && !memcmp(t->text, word, (size_t)t->length);
}

int parse_is(const parser *p, const char *word) {
    return p->at < p->count && parse_token_is(&p->tokens[p->at], word);
}

int parse_eat(parser *p, const char *word) {
    int found = parse_is(p, word);
    p->at += found;
    return found;
}

/* ---- symbols --------------------------------------------------------------------------------------------------- */

symbol *parse_declare(parser *p, const token *name, symbol_kind kind) {
    symbol *s;
    p->symbols = (symbol *)sim_grow(p->symbols, &p->symbol_capacity, p->symbol_count + 1, sizeof *p->symbols);
    s = &p->symbols[p->symbol_count++];
    memset(s, 0, sizeof *s);
    s->name = name->text;
    s->length = name->length;
    s->kind = kind;
    s->depth = p->depth;
    return s;
}

static int names(const symbol *s, const token *t, int length) {
    return s->length == length && !memcmp(s->name, t->text, (size_t)length);
}

/* The innermost symbol of this name; of a family of registers when the name ends in digits. */
static symbol *lookup(parser *p, const token *name) {
    int stem = name->length, i;
    while (stem > 0 && name->text[stem - 1] >= '0' && name->text[stem - 1] <= '9') stem--;
    for (i = p->symbol_count - 1; i >= 0; i--) {
        symbol *s = &p->symbols[i];
        if (s->count ? names(s, name, stem) && stem < name->length : names(s, name, name->length)) return s;
    }
    return NULL;
}

/* Branches of the scope find their labels; the others may find theirs in the scope around it. */
void parse_close_scope(parser *p) {
    int i, j, open = 0;
    for (i = 0; i < p->branch_count; i++) {
        branch *b = &p->branches[i];
        for (j = p->symbol_count - 1; j >= 0 && p->symbols[j].depth >= p->depth; j--) {
            symbol *s = &p->symbols[j];
            if (s->kind == LABEL && names(s, &b->label, b->label.length)) break;
        }
        if (b->depth == p->depth && j >= 0 && p->symbols[j].depth == p->depth) {
            p->kernel->code[b->instruction].target = p->symbols[j].offset;
            continue;
        }
        if (b->depth == p->depth) b->depth--;
        p->branches[open++] = *b;
    }
    p->branch_count = open;
    while (p->symbol_count && p->symbols[p->symbol_count - 1].depth >= p->depth) p->symbol_count--;
    p->depth--;
}

int32_t parse_new_register(sim_kernel *k, int width) {
    int32_t at = k->register_bytes;
    k->register_at = (int32_t *)sim_grow(k->register_at, &k->register_capacity, k->register_count + 1,
                                         sizeof *k->register_at);
    k->register_at[k->register_count++] = at;
    k->register_bytes += width * LANES;
    return at;
}

/* A constant is an array of 32 equal 64-bit values; narrower operations need narrower arrays, so each width has its
   own: the slot holds 8, 4 and 2-byte copies behind each other. */
enum { SLOT_64 = 0, SLOT_32 = 8 * LANES, SLOT_16 = 12 * LANES, SLOT = 16 * LANES };

static void fill_slot(uint8_t *slot, uint64_t value) {
    uint32_t low = (uint32_t)value;
    uint16_t lowest = (uint16_t)value;
    int i;
    for (i = 0; i < LANES; i++) {
        memcpy(slot + SLOT_64 + 8 * i, &value, 8);
        memcpy(slot + SLOT_32 + 4 * i, &low, 4);
        memcpy(slot + SLOT_16 + 2 * i, &lowest, 2);
    }
}

static int32_t slot_of(sim_kernel *k, uint64_t value) {
    int at;
    uint8_t *grown;
    for (at = 0; at < k->constant_bytes; at += SLOT) {
        if (!memcmp(k->constants + at, &value, 8)) return at;
    }
    if (at + SLOT > k->constant_capacity) {
        k->constant_capacity = k->constant_capacity ? 2 * k->constant_capacity : 64 * SLOT;
        grown = (uint8_t *)sim_allocate_aligned((size_t)k->constant_capacity);
        memset(grown, 0, (size_t)k->constant_capacity);
        if (at) memcpy(grown, k->constants, (size_t)at);
        free(k->constants);
        k->constants = grown;
    }
    fill_slot(k->constants + at, value);
    k->constant_bytes = at + SLOT;
    return at;
}

int32_t parse_constant(sim_kernel *k, uint64_t value, int width) {
    int32_t slot = slot_of(k, value);
    return ~(slot + (width == 8 ? SLOT_64 : width == 4 ? SLOT_32 : SLOT_16));
}

/* ---- operands -------------------------------------------------------------------------------------------------- */

static int is_digit(int c) {
    return c >= '0' && c <= '9';
}

int parse_integer(parser *p, uint64_t *value) {
    const token *t = &p->tokens[p->at];
    int negative = parse_eat(p, "-");
    t += negative;
    if (p->at >= p->count || !is_digit(t->text[0])) return parse_fail(p, "a number is expected");
    *value = strtoull(t->text, NULL, 0);
    if (negative) *value = 0 - *value;
    p->at++;
    return 0;
}

/* 0f3F800000, 0d3FF0000000000000, 1.5, 42, 0x2A, 42U */
static int parse_immediate(parser *p, operand *o) {
    const token *t = &p->tokens[p->at];
    int i, has_point = 0;
    o->kind = IMMEDIATE;
    for (i = 0; i < t->length; i++) has_point |= t->text[i] == '.';
    if (t->text[0] == '0' && (t->text[1] == 'f' || t->text[1] == 'F')) {
        o->value = strtoull(t->text + 2, NULL, 16);
    } else if (t->text[0] == '0' && (t->text[1] == 'd' || t->text[1] == 'D')) {
        o->value = strtoull(t->text + 2, NULL, 16);
        memcpy(&o->number, &o->value, 8);
        o->is_number = 1;
    } else if (has_point) {
        o->number = strtod(t->text, NULL);
        memcpy(&o->value, &o->number, 8);
        o->is_number = 1;
    } else {
        o->value = strtoull(t->text, NULL, 0);
    }
    p->at++;
    return 0;
}

static int32_t special_register(parser *p, int which) {
    sim_kernel *k = p->kernel;
    int i;
    for (i = 0; i < k->specials; i++) {
        if (k->special[i].which == which) return k->special[i].offset;
    }
    k->special[i].which = which;
    k->special[i].offset = parse_new_register(k, 4);
    k->specials++;
    return k->special[i].offset;
}

static int is_special(const token *t) {
    int i;
    for (i = 0; sim_special_name(i); i++) {
        if (parse_token_is(t, sim_special_name(i))) return i;
    }
    return -1;
}

static int parse_name(parser *p, operand *o) {
    const token *t = &p->tokens[p->at];
    const symbol *s = lookup(p, t);
    int which = is_special(t);
    if (!s && t->text[0] == '%') {
        if (which < 0) return parse_fail(p, "%.*s is not known", t->length, t->text);
        o->kind = REGISTER;
        o->width = 4;
        o->reg = special_register(p, which);
    } else if (!s || s->kind == LABEL) {
        o->kind = LABEL_NAME;
    } else if (s->kind == REGISTERS) {
        int number = s->count ? atoi(t->text + s->length) : 0;
        if (s->count && number >= s->count) return parse_fail(p, "%.*s is not declared", t->length, t->text);
        o->kind = REGISTER;
        o->width = s->width;
        o->reg = s->offset + number * s->width * LANES;
    } else {
        o->kind = IMMEDIATE;
        o->value = s->address;
    }
    p->at++;
    return 0;
}

/* a, 5, -5, name+8 */
static int parse_simple(parser *p, operand *o) {
    uint64_t more;
    o->where = p->tokens[p->at];
    o->reg = NO_OPERAND;
    if (parse_eat(p, "_")) {
        o->kind = NOTHING;
        return 0;
    }
    if (parse_eat(p, "-")) {
        if (parse_immediate(p, o)) return -1;
        if (o->is_number) return parse_fail(p, "a negative decimal number");
        o->value = 0 - o->value;
    } else if (is_digit(p->tokens[p->at].text[0])) {
        if (parse_immediate(p, o)) return -1;
    } else if (is_word(p->tokens[p->at].text[0])) {
        if (parse_name(p, o)) return -1;
    } else {
        return parse_fail(p, "`%.*s' is not an operand", o->where.length, o->where.text);
    }
    while ((o->kind == IMMEDIATE || o->kind == REGISTER) && (parse_is(p, "+") || parse_is(p, "-"))) {
        parse_eat(p, "+");
        if (parse_integer(p, &more)) return -1;
        o->has_sum = 1;
        o->value += more;
    }
    return 0;
}

static int parse_vector(parser *p, operand *o) {
    operand e;
    o->kind = VECTOR;
    while (!parse_eat(p, "}")) {
        memset(&e, 0, sizeof e);
        if (o->elements == MAX_ELEMENTS || parse_simple(p, &e)) return parse_fail(p, "a vector that is too long");
        if (e.kind == LABEL_NAME || (e.kind == REGISTER && e.has_sum)) {
            return parse_fail(p, "a bad element of a vector");
        }
        o->element[o->elements].kind = e.kind;
        o->element[o->elements].width = e.width;
        o->element[o->elements].reg = e.reg;
        o->element[o->elements++].value = e.value;
        parse_eat(p, ",");
    }
    return 0;
}

/* the q of p|q */
static int parse_pair(parser *p, operand *o) {
    operand second;
    memset(&second, 0, sizeof second);
    if (parse_simple(p, &second)) return -1;
    if (second.kind != NOTHING && second.kind != REGISTER) return parse_fail(p, "a bad pair of destinations");
    o->has_pair = 1;
    o->pair = second.kind == NOTHING ? NO_OPERAND : second.reg;
    return 0;
}

int parse_operand(parser *p, operand *o) {
    memset(o, 0, sizeof *o);
    o->where = p->tokens[p->at];
    o->reg = NO_OPERAND;
    if (parse_eat(p, "{")) return parse_vector(p, o);
    if (parse_eat(p, "[")) {
        if (parse_simple(p, o)) return -1;
        if (o->kind != REGISTER && o->kind != IMMEDIATE) return parse_fail(p, "a bad address");
        o->kind = ADDRESS;
        return parse_eat(p, "]") ? 0 : parse_fail(p, "] is expected");
    }
    o->negated = parse_eat(p, "!");
    if (parse_simple(p, o)) return -1;
    if (o->kind == REGISTER && o->has_sum) return parse_fail(p, "a sum that is not an address");
    if (o->kind != REGISTER || !parse_eat(p, "|")) return 0;
    return parse_pair(p, o);
}
