/* stdlib.h - for targets without a C library. */
#ifndef HOSTED_STDLIB_H
#define HOSTED_STDLIB_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
void *malloc(size_t bytes);
void free(void *p);
char *getenv(const char *name);
#ifdef __cplusplus
}
#endif
#endif
