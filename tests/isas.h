/* isas.h - the instruction sets that this machine and build have:
   for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa))
   Plain AVX-512 is left out where there is VNNI, too: the same code and more; AMX, which is AVX-512 but for
   layers in bf16: case_tiles. */
#ifndef ATTN_TEST_ISAS_H
#define ATTN_TEST_ISAS_H

#include "../attn.h"

static inline int next_isa(int isa) {
    int best = (int)attn_isa_detect();
    if (best == ATTN_ISA_AMX) best = ATTN_ISA_AVX512_VNNI;
    if (isa == best) return 0;
    if (best == ATTN_ISA_NEON) return best; /* those of x86-64 stand before it */
    return isa + 1 == ATTN_ISA_AVX512 && best > isa + 1 ? isa + 2 : isa + 1;
}

static inline int has_isa(int isa) {
    int i = ATTN_ISA_SCALAR;
    if (isa == ATTN_ISA_AMX) return attn_isa_detect() == ATTN_ISA_AMX;
    while (i && i != isa) i = next_isa(i);
    return i != 0;
}

static inline const char *isa_name(int isa) {
    static const char *const names[] = { "auto", "scalar", "avx2", "avx512", "avx512", "amx", "neon" };
    return isa >= 0 && isa < (int)(sizeof names / sizeof names[0]) ? names[isa] : "?";
}

#endif
