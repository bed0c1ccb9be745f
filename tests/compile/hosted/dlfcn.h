/* dlfcn.h - for targets without a C library. */
#ifndef HOSTED_DLFCN_H
#define HOSTED_DLFCN_H
#ifdef __cplusplus
extern "C" {
#endif
#define RTLD_NOW 2
#define RTLD_LOCAL 0
void *dlopen(const char *name, int flags);
void *dlsym(void *library, const char *name);
char *dlerror(void);
#ifdef __cplusplus
}
#endif
#endif
