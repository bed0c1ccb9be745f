// cxx11.cc - the implementation inside a C++ file. Also built as C++20.
#define ATTN_IMPLEMENTATION
#include "use.h"

int main() {
    attn_layer layer = {};
    attn_batch batch = {};
    layer.heads = 1;
    layer.head_dim = 8;
    batch.max_q_len = 1;
    batch.max_kv_len = 1;
    batch.max_rows = 1;
    return use_attn() != 0 || attn_plan_bytes(&batch, &layer) == 0;
}
