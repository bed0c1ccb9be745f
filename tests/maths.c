/* maths.c - the header's own exp, log, tanh and 1/sqrt against the C library, closer than attention could show. */
#define ATTN_IMPLEMENTATION
#include "../attn.h"
#include "test.h"
#include <math.h>

static void test_log(void) {
    double worst = 0;
    float x;
    for (x = 1e-30f; x < 1e30f; x *= 1.0007f) {
        double error = fabs((double)attn__log(x) - log((double)x)) / fmax(1, fabs(log((double)x)));
        if (error > worst) worst = error;
    }
    for (x = 0.7f; x < 1.5f; x += 0.0001f) {
        double error = fabs((double)attn__log(x) - log((double)x));
        if (error > worst) worst = error;
    }
    CHECK(worst < 6.5e-8, "error %g", worst); /* half an ulp, and a little for the series */
    CHECK(attn__log(1.0f) == 0, "log 1");
}

/* 1.6e-7 of the polynomial, and |x| * 7.4e-8 from rounding 1 / ln 2 and x / ln 2 */
static void test_exp(void) {
    double worst = 0;
    float x;
    for (x = 0; x > -87; x -= 0.00037f) {
        double wanted = exp((double)x);
        double error = fabs((double)attn__exp(x) - wanted) / wanted - 7.4e-8 * fabs((double)x);
        if (error > worst) worst = error;
    }
    CHECK(worst < 1.8e-7, "error %g", worst);
    CHECK(attn__exp(0) == 1 && attn__exp(-90) == 0 && attn__exp(-3e38f) == 0, "ends");
    CHECK(attn__exp((float)NAN) != attn__exp((float)NAN), "NaN");
}

static void test_tanh(void) {
    double worst = 0;
    float x;
    for (x = -20; x < 20; x += 0.00031f) {
        double wanted = tanh((double)x);
        double error = fabs((double)attn__tanh(x) - wanted) / fmax(fabs(wanted), 1e-30);
        if (error > worst) worst = error;
    }
    CHECK(worst < 4.5e-7, "error %g", worst);
    CHECK(attn__tanh(3e38f) == 1 && attn__tanh(-3e38f) == -1 && attn__tanh(0) == 0, "ends");
}

static void test_rsqrt(void) {
    int32_t d;
    for (d = 1; d <= 65536; d++) {
        CHECK(attn__rsqrt(d) == (float)(1 / sqrt((double)d)), "1 / sqrt(%d) = %.9g", d, (double)attn__rsqrt(d));
    }
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    test_run("log", test_log);
    test_run("exp", test_exp);
    test_run("tanh", test_tanh);
    test_run("1 / sqrt", test_rsqrt);
    return test_close("maths");
}
