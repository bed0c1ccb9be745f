/* two_use.c - includes plainly, links with two_impl.c. */
#include "use.h"

int main(void) {
    return use_attn();
}
