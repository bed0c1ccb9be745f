/* isas.h - the instruction sets that this machine and build have:
   for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa))
   Plain AVX-512 is left out where there is VNNI, too: the same code and more. */
#ifndef ATTN_TEST_ISAS_H
#define ATTN_TEST_ISAS_H

#include "../attn.h"

static inline int next_isa(int isa) {
    int best = (int)attn_isa_detect();
    if (isa == best) return 0;
    if (best == ATTN_ISA_NEON) return best; /* those of x86-64 stand before it */
    return isa + 1 == ATTN_ISA_AVX512 && best > isa + 1 ? isa + 2 : isa + 1;
}

static inline int has_isa(int isa) {
    int i = ATTN_ISA_SCALAR;
    while (i && i != isa) i = next_isa(i);
    return i != 0;
}

static inline const char *isa_name(int isa) {
    static const char *const names[] = { "auto", "scalar", "avx2", "avx512", "avx512", "neon" };
    return isa >= 0 && isa < (int)(sizeof names / sizeof names[0]) ? names[isa] : "?";
}

#endif
