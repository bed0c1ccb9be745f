/* twice.c - header twice, implementation twice: the guards must leave one of each. */
#include "../../attn.h"
#include "../../attn.h"
#define ATTN_IMPLEMENTATION
#include "../../attn.h"
#include "../../attn.h"
#include "use.h"

int main(void) {
    return use_attn();
}
