/* form_kernel.h - a tiny kernel for one instruction form: thread t loads its operands, runs the instruction once and
   stores the result. Works on a real driver, too: so expectations can be recorded there. */
#ifndef FORM_KERNEL_H
#define FORM_KERNEL_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

static inline int form_width(char letter) {
    return letter == 'd' ? 8 : letter == 'h' ? 2 : 4;
}

/* What the PTX of a form has to say at least: an older .version or .target does not have it. */
typedef struct form_level {
    const char *version, *target;
} form_level;

enum {
    LEVEL_FIRST,
    LEVEL_70,
    LEVEL_74,
    LEVEL_77,
    LEVEL_78,
    LEVEL_AMPERE,
    LEVEL_AMPERE_71,
    LEVEL_AMPERE_74,
    LEVEL_ADA,
    LEVEL_BLACKWELL,
    LEVELS
};

static inline const form_level *form_level_at(int level) {
    static const form_level levels[LEVELS] = {
        { "6.3", "sm_75" }, { "7.0", "sm_75" }, { "7.4", "sm_75" }, { "7.7", "sm_75" }, { "7.8", "sm_75" },
        { "7.0", "sm_80" }, { "7.1", "sm_80" }, { "7.4", "sm_80" }, { "8.1", "sm_89" }, { "8.8", "sm_100" },
    };
    return &levels[level];
}

static inline int form_level_of(const char *name, const char *operands) {
    int is_extreme = !strncmp(name, "max.", 4) || !strncmp(name, "min.", 4);
    if (strstr(name, "e4m3") || strstr(name, "e5m2")) return LEVEL_ADA;
    if (is_extreme && !strcmp(operands, "wwww")) return LEVEL_BLACKWELL;
    if (is_extreme && strstr(name, ".NaN")) return LEVEL_AMPERE;
    if (!strcmp(name, "cvt.f32.bf16")) return LEVEL_AMPERE_71;
    if (strstr(name, "cvt.") && (strstr(name, ".bf16") || strstr(name, ".f16x2"))) return LEVEL_AMPERE;
    return strstr(name, "tanh") ? LEVEL_70 : LEVEL_FIRST;
}

static inline size_t form_head(char *text, size_t bytes, const form_level *level) {
    return (size_t)snprintf(text, bytes, ".version %s\n.target %s\n.address_size 64\n", level->version, level->target);
}

/* The kernel `entry`. Operand k of thread t is the 8 bytes at in[k * threads + t]; its result the 8 bytes at out[t]. */
static inline void form_kernel(char *text, size_t bytes, const char *entry, const char *name, const char *operands,
                               uint32_t immediate) {
    size_t n = (size_t)snprintf(text, bytes,
        ".visible .entry %s(.param .u64 in, .param .u64 out, .param .u32 threads)\n{\n"
        ".reg .pred p<6>;\n.reg .b16 h<6>;\n.reg .b32 w<6>, t, n, x;\n.reg .b64 d<6>, a, o, s;\n"
        "ld.param.u64 a, [in];\nld.param.u64 o, [out];\nld.param.u32 n, [threads];\n"
        "mov.u32 t, %%ctaid.x;\nmov.u32 x, %%ntid.x;\nmul.lo.u32 t, t, x;\nmov.u32 x, %%tid.x;\nadd.u32 t, t, x;\n"
        "mul.wide.u32 s, t, 8;\nadd.u64 a, a, s;\nadd.u64 o, o, s;\nmul.wide.u32 s, n, 8;\n", entry);
    int i, count = (int)strlen(operands);
    for (i = 1; i < count && operands[i] != 'i'; i++) {
        char c = operands[i];
        if (c == 'p') n += (size_t)snprintf(text + n, bytes - n, "ld.global.u32 x, [a];\nsetp.ne.u32 p%d, x, 0;\n", i);
        else n += (size_t)snprintf(text + n, bytes - n, "ld.global.b%d %c%d, [a];\n", 8 * form_width(c), c, i);
        n += (size_t)snprintf(text + n, bytes - n, "add.u64 a, a, s;\n");
    }
    n += (size_t)snprintf(text + n, bytes - n, "%s %c0", name, operands[0]);
    for (i = 1; i < count; i++) {
        if (operands[i] == 'i') n += (size_t)snprintf(text + n, bytes - n, ", %u", (unsigned)immediate);
        else n += (size_t)snprintf(text + n, bytes - n, ", %c%d", operands[i], i);
    }
    n += (size_t)snprintf(text + n, bytes - n, ";\n");
    if (operands[0] == 'p') n += (size_t)snprintf(text + n, bytes - n, "selp.u32 w0, 1, 0, p0;\n");
    snprintf(text + n, bytes - n, "st.global.b%d [o], %c0;\nret;\n}\n", 8 * form_width(operands[0]),
             operands[0] == 'p' ? 'w' : operands[0]);
}

#endif
