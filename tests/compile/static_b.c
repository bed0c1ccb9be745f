/* static_b.c - the second private copy of one program. */
#define ATTN_STATIC
#define ATTN_IMPLEMENTATION
#include "use.h"

int static_b(void);

int static_b(void) {
    return use_attn();
}
