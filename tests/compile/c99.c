/* c99.c - the plain case. Also built as C11 and by every compiler at hand. */
#define ATTN_IMPLEMENTATION
#include "use.h"

int main(void) {
    return use_attn();
}
