/* stdio.h - for targets without a C library. */
#ifndef HOSTED_STDIO_H
#define HOSTED_STDIO_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
typedef struct hosted_file FILE;
FILE *fopen(const char *path, const char *mode);
int fopen_s(FILE **file, const char *path, const char *mode);
size_t fread(void *to, size_t size, size_t count, FILE *file);
size_t fwrite(const void *from, size_t size, size_t count, FILE *file);
int fclose(FILE *file);
int rename(const char *from, const char *to);
int remove(const char *path);
#ifdef __cplusplus
}
#endif
#endif
