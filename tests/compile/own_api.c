/* own_api.c - ATTN_API is the caller's: hidden symbols for a plug-in, or a dllexport. */
#if defined(__GNUC__)
#define ATTN_API __attribute__((visibility("hidden"))) extern
#endif
#define ATTN_IMPLEMENTATION
#include "use.h"

int main(void) {
    return use_attn();
}
