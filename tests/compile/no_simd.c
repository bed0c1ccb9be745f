/* no_simd.c - ATTN_NO_SIMD leaves the scalar path alone: the vector ones can no longer be asked for, by name. */
#define ATTN_NO_SIMD
#define ATTN_IMPLEMENTATION
#include "use.h"

static int refused(int32_t isa, const char *text) {
    static const int32_t one = 1;
    double mem[256];
    attn_batch batch;
    attn_layer layer;
    attn_plan plan;
    attn_error error;
    memset(&batch, 0, sizeof batch);
    memset(&layer, 0, sizeof layer);
    batch.n = 1;
    batch.kv_len = &one;
    layer.heads = 1;
    layer.head_dim = 8;
    layer.isa = isa;
    if (attn_plan_bytes(&batch, &layer) != 0) return 0;
    if (attn_plan_make(&plan, &batch, &layer, mem, sizeof mem, &error) != ATTN_E_LAYER) return 0;
    return strncmp(error.text, text, strlen(text)) == 0;
}

int main(void) {
    if (attn_isa_detect() != ATTN_ISA_SCALAR) return 32;
    if (!refused(ATTN_ISA_AVX2, "layer.isa = 2")) return 33;
    if (!refused(ATTN_ISA_AVX512, "layer.isa = 3")) return 34;
    if (!refused(ATTN_ISA_AVX512_VNNI, "layer.isa = 4")) return 35;
    return use_attn();
}
