/* header_then_impl.c - another header brought attn.h in before the implementation was asked for. */
#include "use.h"
#define ATTN_IMPLEMENTATION
#include "../../attn.h"

int main(void) {
    return use_attn();
}
