/* test.h - a test is a function; a failed CHECK marks it and goes on. Included by every test program once. */
#ifndef ATTN_TEST_H
#define ATTN_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct test_state {
    int passed, failed, skipped, bad;
    const char *skip;
    const char *only;               /* first program argument: run the tests whose names with suffix contain it */
    const char *suffix;             /* of the names */
} test_state;

static test_state test = { 0, 0, 0, 0, NULL, NULL, "" };

/* CHECK(cond, format, ...): the message is printed for the first five failures of a test. */
#define CHECK(cond, ...)                                                                                              \
    do {                                                                                                              \
        if (!(cond) && test.bad++ < 5) {                                                                              \
            printf("  %s:%d: %s: ", __FILE__, __LINE__, #cond);                                                       \
            printf(__VA_ARGS__);                                                                                      \
            printf("\n");                                                                                             \
        }                                                                                                             \
    } while (0)

/* Call at the start of a test that this machine cannot run, then return. */
static inline void test_skip(const char *why) {
    test.skip = why;
}

static inline void test_run(const char *name, void (*fn)(void)) {
    if (test.only && !strstr(name, test.only) && !strstr(test.suffix, test.only)) return;
    test.bad = 0;
    test.skip = NULL;
    fn();
    if (test.skip) {
        test.skipped++;
        printf("skip %s%s: %s\n", name, test.suffix, test.skip);
    } else if (test.bad) {
        test.failed++;
        printf("FAIL %s%s (%d checks)\n", name, test.suffix, test.bad);
    } else {
        test.passed++;
        printf("ok   %s%s\n", name, test.suffix);
    }
    fflush(stdout);
}

/* The closing line of a program; the exit status of main. */
static inline int test_close(const char *program) {
    printf("%s: %d passed, %d failed, %d skipped\n", program, test.passed, test.failed, test.skipped);
    return test.failed != 0;
}

/* How often a test draws: n times, or as often as ATTN_TEST_TIMES says of that; longer runs than `make test` set it. */
static inline int test_draws(int n) {
    const char *times = getenv("ATTN_TEST_TIMES");
    return n * (times && atoi(times) > 0 ? atoi(times) : 1);
}

/* A 64-bit generator (splitmix64), so that every machine draws the same cases. */
typedef struct test_rng {
    uint64_t state;
} test_rng;

static inline uint64_t test_next(test_rng *r) {
    uint64_t z = r->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* lo .. hi, both included */
static inline int test_range(test_rng *r, int lo, int hi) {
    return lo + (int)(test_next(r) % (uint64_t)(hi - lo + 1));
}

/* -1 .. 1 */
static inline float test_uniform(test_rng *r) {
    return (float)((double)(test_next(r) >> 11) / 4503599627370496.0 - 1.0);
}

#endif
