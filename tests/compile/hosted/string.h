/* string.h - for targets without a C library: what attn_cuda.h calls besides. */
#ifndef HOSTED_STRING_H
#define HOSTED_STRING_H
#include "../freestanding/string.h"
#ifdef __cplusplus
extern "C" {
#endif
char *strchr(const char *text, int c);
char *strstr(const char *text, const char *part);
#ifdef __cplusplus
}
#endif
#endif
