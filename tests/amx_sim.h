/* amx_sim.h - AMX's tiles in C, in place of the intrinsics that attn.h uses: see simulate.sh. Eight tiles of 16 rows of
   64 bytes, as attn.h configures them; a product adds even and odd elements of a pair apart and their sums to the tile,
   as the manual describes TDPBF16PS. Subnormals are not flushed. */
#ifndef AMX_SIM_H
#define AMX_SIM_H
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float amx_floats __attribute__((vector_size(64)));
typedef uint32_t amx_words __attribute__((vector_size(64)));

#ifdef AVX512_SIM_H
#define AMX_SIM static inline __attribute__((target("avx2,fma,f16c"), unused))
#else
#define AMX_SIM static inline __attribute__((target("avx512f"), unused))
#endif

static __thread union amx_tile {
    amx_words words[16];
    amx_floats floats[16];
} amx_tiles[8];

AMX_SIM void amx_zero(int tile) {
    memset(&amx_tiles[tile], 0, sizeof amx_tiles[tile]);
}

AMX_SIM void amx_load(int tile, const void *from, ptrdiff_t stride) {
    for (int i = 0; i < 16; i++) memcpy(&amx_tiles[tile].words[i], (const char *)from + i * stride, 64);
}

AMX_SIM void amx_store(int tile, void *to, ptrdiff_t stride) {
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride, &amx_tiles[tile].words[i], 64);
}

/* c[m][n] += a[m][k] * b[k][n], words of two bf16, which are the upper halves of floats */
AMX_SIM void amx_product(int c, int a, int b) {
    for (int m = 0; m < 16; m++) {
        amx_floats even = { 0 }, odd = { 0 };
        for (int k = 0; k < 16; k++) {
            amx_words left = (amx_words){ 0 } + amx_tiles[a].words[m][k], right = amx_tiles[b].words[k];
            even += (amx_floats)(left << 16) * (amx_floats)(right << 16);
            odd += (amx_floats)(left & 0xffff0000u) * (amx_floats)(right & 0xffff0000u);
        }
        amx_tiles[c].floats[m] += even + odd;
    }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_release
#define _tile_zero amx_zero
/* without parentheses, as in the first headers of gcc 11 and 12: a sum must bring its own */
#define _tile_loadd(tile, from, stride) amx_load(tile, (const void *)from, stride)
#define _tile_stored(tile, to, stride) amx_store(tile, (void *)to, stride)
#define _tile_dpbf16ps amx_product
#define _tile_release() ((void)0)
#endif
