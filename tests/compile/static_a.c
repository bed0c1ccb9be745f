/* static_a.c - ATTN_STATIC: a copy of its own, another one lives in static_b.c. */
#define ATTN_STATIC
#define ATTN_IMPLEMENTATION
#include "use.h"

int static_b(void);

int main(void) {
    return use_attn() + 16 * static_b();
}
