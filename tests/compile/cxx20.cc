// cxx20.cc - designated initialisers, as a C++20 user would write them: zero is the default of the rest.
#define ATTN_IMPLEMENTATION
#include "use.h"

int main() {
    attn_layer layer = { .heads = 1, .head_dim = 8 };
    attn_batch batch = { .n = 0, .max_q_len = 1, .max_kv_len = 1, .max_rows = 1 };
    return use_attn() != 0 || attn_plan_bytes(&batch, &layer) == 0;
}
