/* parse.h - between the files that read PTX: parse.c, load.c and forms.c. */
#ifndef SIM_PARSE_H
#define SIM_PARSE_H

#include "sim.h"

typedef struct token {
    const char *text;
    int length;
    uint32_t line;
} token;

typedef enum symbol_kind { REGISTERS, ADDRESS_OF, PARAMETER, LABEL, MODULE_SHARED, DYNAMIC_SHARED } symbol_kind;

/* REGISTERS with count > 0 is a family: name0 .. name(count - 1). */
typedef struct symbol {
    const char *name;
    int length, count, depth, width;
    symbol_kind kind;
    int32_t offset;             /* of the first register, or the instruction behind a label */
    uint64_t address;
    size_t alignment, bytes;
} symbol;

typedef enum operand_kind { NOTHING, REGISTER, IMMEDIATE, VECTOR, ADDRESS, LABEL_NAME } operand_kind;

enum { MAX_OPERANDS = 8, MAX_ELEMENTS = 16 };

typedef struct operand {
    operand_kind kind;
    token where;
    int width;                  /* bytes of a register, also the one that an address starts from */
    int32_t reg;                /* of an address: NO_OPERAND without a register */
    uint64_t value;             /* of an immediate; what is added to an address */
    double number;              /* of an immediate written with a point or as 0d.. */
    int is_number, negated, has_sum, has_pair, elements;
    int32_t pair;               /* of d|p; NO_OPERAND for _ */
    struct element {
        operand_kind kind;
        int width;
        int32_t reg;
        uint64_t value;
    } element[MAX_ELEMENTS];
} operand;

typedef struct branch {
    int instruction, depth;
    token label;
} branch;

typedef struct parser {
    token *tokens;
    int count, capacity, at;
    sim_module *module;
    sim_kernel *kernel;
    symbol *symbols;
    int symbol_count, symbol_capacity, depth;
    branch *branches;
    int branch_count, branch_capacity;
    uint32_t source_line;
    int error_code;
    char *error;
    size_t error_bytes;
} parser;

/* parse.c. Functions that return int give 0, or -1 after parse_fail. */
void parse_split(parser *p, const char *text);
int parse_fail(parser *p, const char *format, ...);
int parse_is(const parser *p, const char *word);
int parse_eat(parser *p, const char *word);
int parse_token_is(const token *t, const char *word);
int parse_integer(parser *p, uint64_t *value);
int parse_operand(parser *p, operand *o);
symbol *parse_declare(parser *p, const token *name, symbol_kind kind);
void parse_close_scope(parser *p);
int32_t parse_new_register(sim_kernel *k, int width);
int32_t parse_constant(sim_kernel *k, uint64_t value, int width);

/* forms.c */
int parse_decode(parser *p, const token *opcode, const operand *o, int count, sim_instruction *in);

#endif
