/* cost.c - what a unit of work costs over lengths, page sizes, batches and head dims: bench/cost.csv, bench/cost.svg.
   Build and run: make bench-cost, some minutes. A curve that falls would show a size that programs had better avoid;
   the lowest steps are printed. Processor time of one thread, medians of interleaved rounds. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define ATTN_IMPLEMENTATION
#include "bench.h"

enum { ROUNDS = 5, MAX_POINTS = 16, SHARED_KEYS = 65536 };

/* One curve: the case, and what of it varies over the points. */
typedef enum cost_over { PROMPT, KEYS, READ, REQUESTS, PROMPT_PAGE, DECODE_PAGE, PROMPT_DIM, DECODE_DIM } cost_over;

typedef struct curve {
    int panel;
    cost_over over;
    const char *name;
    bench_case c;
    double rate[MAX_POINTS];        /* 0: not measured */
} curve;

typedef struct panel {
    const char *title, *axis, *unit;
    int points, logarithmic;
    int32_t at[MAX_POINTS];
} panel;

enum { F32 = ATTN_F32, F16 = ATTN_F16, INT8 = ATTN_INT8, PRE = ATTN_PREFILL, DEC = ATTN_DECODE };

static const panel panels[] = {
    { "Prompts, causal", "rows", "GFLOP/s", 9, 1, { 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768 } },
    { "Decoding", "keys", "GB/s", 11, 1,
      { 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576 } },
    { "Decoding, 65,536 keys shared out raggedly", "requests", "GB/s", 9, 1, { 1, 2, 4, 8, 16, 32, 64, 128, 256 } },
    { "Pages in random order, prompts of 1,024 rows", "slots a page, 1024: contiguous", "GFLOP/s", 6, 1,
      { 1, 4, 16, 64, 256, 1024 } },
    { "Pages in random order, decoding 16,384 keys", "slots a page, 1024: contiguous", "GB/s", 6, 1,
      { 1, 4, 16, 64, 256, 1024 } },
    { "Head dims, prompts of 1,024 rows", "head_dim", "GFLOP/s", 14, 0,
      { 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 512, 576 } },
    { "Head dims, decoding 16,384 keys", "head_dim", "GB/s", 14, 0,
      { 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 512, 576 } }
};
enum { PANELS = sizeof panels / sizeof panels[0], COLUMNS = 2, CONTIGUOUS = 1024 };

static curve curves[] = {
    { 0, PROMPT, "f32", { PRE, 0, F32, 2, 1, 128, 0, 0, 0, 0, 0 }, { 0 } },
    { 0, PROMPT, "f16", { PRE, 0, F16, 2, 1, 128, 0, 0, 0, 0, 0 }, { 0 } },
    { 0, PROMPT, "int8", { PRE, 0, INT8, 2, 1, 128, 0, 0, 0, 0, 0 }, { 0 } },
    { 1, KEYS, "f32", { DEC, 0, F32, 8, 2, 128, 1, 0, 0, 0, 0 }, { 0 } },
    { 1, KEYS, "f16", { DEC, 0, F16, 8, 2, 128, 1, 0, 0, 0, 0 }, { 0 } },
    { 1, KEYS, "int8", { DEC, 0, INT8, 8, 2, 128, 1, 0, 0, 0, 0 }, { 0 } },
    { 1, READ, "plain read of the f32 cache", { DEC, 0, F32, 8, 2, 128, 1, 0, 0, 0, 0 }, { 0 } },
    { 2, REQUESTS, "f32", { DEC, 0, F32, 32, 8, 128, 1, 0, 0, 0, 16 }, { 0 } },
    { 2, REQUESTS, "f16", { DEC, 0, F16, 32, 8, 128, 1, 0, 0, 0, 16 }, { 0 } },
    { 2, REQUESTS, "int8", { DEC, 0, INT8, 32, 8, 128, 1, 0, 0, 0, 16 }, { 0 } },
    { 3, PROMPT_PAGE, "f32", { PRE, 0, F32, 8, 2, 128, 1024, 1024, 0, 0, 0 }, { 0 } },
    { 3, PROMPT_PAGE, "f16", { PRE, 0, F16, 8, 2, 128, 1024, 1024, 0, 0, 0 }, { 0 } },
    { 3, PROMPT_PAGE, "int8", { PRE, 0, INT8, 8, 2, 128, 1024, 1024, 0, 0, 0 }, { 0 } },
    { 4, DECODE_PAGE, "f32", { DEC, 0, F32, 32, 8, 128, 1, 16384, 0, 0, 0 }, { 0 } },
    { 4, DECODE_PAGE, "f16", { DEC, 0, F16, 32, 8, 128, 1, 16384, 0, 0, 0 }, { 0 } },
    { 4, DECODE_PAGE, "int8", { DEC, 0, INT8, 32, 8, 128, 1, 16384, 0, 0, 0 }, { 0 } },
    { 5, PROMPT_DIM, "f32", { PRE, 0, F32, 4, 2, 0, 1024, 1024, 0, 0, 0 }, { 0 } },
    { 5, PROMPT_DIM, "f16", { PRE, 0, F16, 4, 2, 0, 1024, 1024, 0, 0, 0 }, { 0 } },
    { 6, DECODE_DIM, "f32", { DEC, 0, F32, 8, 2, 0, 1, 16384, 0, 0, 0 }, { 0 } },
    { 6, DECODE_DIM, "f16", { DEC, 0, F16, 8, 2, 0, 1, 16384, 0, 0, 0 }, { 0 } },
    { 6, DECODE_DIM, "int8", { DEC, 0, INT8, 8, 2, 0, 1, 16384, 0, 0, 0 }, { 0 } }
};
enum { CURVES = sizeof curves / sizeof curves[0], LEGEND_AT = 3, LEGEND = 4 }; /* decoding has one of each */

/* ---- measuring --------------------------------------------------------------------------------------------------- */

/* Request i of n gets between a half and three halves of its share. */
static void share_out(int32_t *kv_len, int32_t n) {
    int32_t share = SHARED_KEYS / n, i, left = SHARED_KEYS;
    for (i = 0; i < n; i++) {
        int32_t more = (int32_t)((uint32_t)i * 2654435761u >> 16) % share - share / 2;
        kv_len[i] = i + 1 == n ? left : i % 2 ? 2 * share - kv_len[i - 1] : share + more;
        left -= kv_len[i];
    }
}

static bench_run *open_point(const curve *k, int32_t at, pool *threads) {
    bench_case c = k->c;
    int32_t kv_len[256], requests = 1;
    if (k->over == PROMPT) c.q_len = c.kv_len = at;
    if (k->over == KEYS || k->over == READ) c.kv_len = at;
    if (k->over == PROMPT_PAGE || k->over == DECODE_PAGE) c.page = at == CONTIGUOUS ? 0 : at;
    if (k->over == PROMPT_DIM || k->over == DECODE_DIM) c.dim = at;
    if (k->over == REQUESTS) {
        requests = at;
        share_out(kv_len, at);
    }
    return run_open(&c, requests, requests > 1 || k->over == REQUESTS ? kv_len : NULL, threads);
}

/* GFLOP/s of prompts, GB/s of what decoding reads. */
static double rate_of(const bench_run *r, double seconds) {
    const bench_case *c = &r->c;
    double bytes = 2.0 * r->keys * c->kv_heads * c->dim * (double)type_bytes(c->type);
    double work = c->phase == PRE ? 4 * pairs_of(c, c->kv_len) * c->dim * c->heads : bytes;
    return work / seconds * 1e-9;
}

/* The curves of a panel take turns, so that a bad moment of the machine is not that of one of them. */
static void measure_point(int p, int point, pool *threads) {
    bench_run *run[CURVES] = { NULL };
    double time[CURVES][ROUNDS];
    int i, round, rounds = ROUNDS;
    for (i = 0; i < (int)CURVES; i++) {
        if (curves[i].panel == p) run[i] = open_point(&curves[i], panels[p].at[point], threads);
    }
    for (round = 0; round < rounds; round++) {
        for (i = 0; i < (int)CURVES; i++) {
            if (!run[i]) continue;
            if (!round) run_once(run[i]);
            time[i][round] = curves[i].over == READ ? run_read(run[i], 1, 0.03) : run_time(run[i], 1, 0.03);
            if (time[i][round] > 0.5) rounds = 3;
        }
    }
    for (i = 0; i < (int)CURVES; i++) {
        if (!run[i]) continue;
        curves[i].rate[point] = rate_of(run[i], median(time[i], rounds));
        run_close(run[i]);
    }
}

static void write_csv(void) {
    FILE *csv = fopen("bench/cost.csv", "w");
    int i, point;
    if (!csv) stop("bench/cost.csv cannot be written");
    fputs("panel,type,axis,at,rate,unit\n", csv);
    for (i = 0; i < (int)CURVES; i++) {
        const panel *p = &panels[curves[i].panel];
        for (point = 0; point < p->points; point++) {
            fprintf(csv, "\"%s\",%s,\"%s\",%d,%.2f,%s\n", p->title, curves[i].name, p->axis, (int)p->at[point],
                    curves[i].rate[point], p->unit);
        }
    }
    if (fclose(csv)) stop("bench/cost.csv cannot be written");
}

/* The largest fall of a curve from a point to the next. */
static void report(void) {
    int i, point;
    for (i = 0; i < (int)CURVES; i++) {
        const panel *p = &panels[curves[i].panel];
        const double *rate = curves[i].rate;
        int worst = 1;
        for (point = 2; point < p->points; point++) {
            if (rate[point] / rate[point - 1] < rate[worst] / rate[worst - 1]) worst = point;
        }
        printf("%-46s %-5s %7.1f .. %7.1f %-8s lowest step %.2f, to %d\n", p->title, curves[i].name, rate[0],
               rate[p->points - 1], p->unit, rate[worst] / rate[worst - 1], (int)p->at[worst]);
    }
}

/* ---- the picture ------------------------------------------------------------------------------------------------- */

enum { LEFT = 62, TOP = 92, WIDE = 430, HIGH = 210, GAP_X = 78, GAP_Y = 82 };

/* A panel on the page. */
typedef struct frame {
    const panel *p;
    double x, y, top;
} frame;

static double place(const frame *f, double at) {
    return f->p->logarithmic ? log(at) : at;
}

static double page_x(const frame *f, double at) {
    double low = place(f, f->p->at[0]), high = place(f, f->p->at[f->p->points - 1]);
    return f->x + WIDE * (0.03 + 0.94 * (place(f, at) - low) / (high - low));
}

static double page_y(const frame *f, double rate) {
    return f->y + HIGH * (1 - rate / f->top);
}

static void words(FILE *svg, double x, double y, const char *how, const char *text) {
    fprintf(svg, "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, how, text);
}

/* A round number of at least a fifth of the largest rate. */
static double step_of(double top) {
    double step = pow(10, floor(log10(top / 5)));
    return step * (top / 5 <= step ? 1 : top / 5 <= 2 * step ? 2 : top / 5 <= 5 * step ? 5 : 10);
}

static void draw_axes(FILE *svg, frame *f, double most) {
    double step = step_of(most), y, end = -99;
    char text[32];
    int i;
    f->top = step * ceil(1.02 * most / step);
    for (y = 0; y < f->top + step / 2; y += step) {
        snprintf(text, sizeof text, "%g", y);
        fprintf(svg, "<path d=\"M%.1f %.1fh%d\" stroke=\"#e3e7ec\"/>\n", f->x, page_y(f, y), (int)WIDE);
        words(svg, f->x - 6, page_y(f, y) + 4, "text-anchor=\"end\" class=\"s\"", text);
    }
    for (i = 0; i < f->p->points; i++) {
        int32_t at = f->p->at[i];
        double x = page_x(f, at);
        int large = at >= 1 << 20, thousands = at >= 1024 && at % 1024 == 0;
        snprintf(text, sizeof text, "%d%s", (int)(large ? at >> 20 : thousands ? at >> 10 : at),
                 large ? "M" : thousands ? "k" : "");
        if (x - end < 22) continue;
        words(svg, x, f->y + HIGH + 15, "text-anchor=\"middle\" class=\"s\"", text);
        end = x;
    }
    words(svg, f->x, f->y - 8, "class=\"b\"", f->p->title);
    words(svg, f->x + WIDE, f->y - 8, "text-anchor=\"end\" class=\"s\"", f->p->unit);
    words(svg, f->x + WIDE / 2.0, f->y + HIGH + 32, "text-anchor=\"middle\"", f->p->axis);
    fprintf(svg, "<path d=\"M%.1f %.1fh%dv%dh-%dz\" fill=\"none\" stroke=\"#9aa4b0\"/>\n", f->x, f->y, (int)WIDE,
            (int)HIGH, (int)WIDE);
}

static const char *colour_of(const curve *k) {
    if (k->over == READ) return "#8a94a0";
    return k->c.type == F32 ? "#1f6feb" : k->c.type == F16 ? "#c2410c" : "#15803d";
}

static void draw_curve(FILE *svg, const frame *f, const curve *k) {
    int i;
    fprintf(svg, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" d=\"", colour_of(k));
    for (i = 0; i < f->p->points; i++) {
        fprintf(svg, "%s%.1f %.1f", i ? "L" : "M", page_x(f, f->p->at[i]), page_y(f, k->rate[i]));
    }
    fputs("\"/>\n", svg);
    for (i = 0; i < f->p->points; i++) {
        fprintf(svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"/>\n", page_x(f, f->p->at[i]),
                page_y(f, k->rate[i]), colour_of(k));
    }
}

static void draw_panel(FILE *svg, int index) {
    frame f = { &panels[index], LEFT + index % COLUMNS * (WIDE + GAP_X), TOP + index / COLUMNS * (HIGH + GAP_Y), 0 };
    double most = 0;
    int i, point;
    for (i = 0; i < (int)CURVES; i++) {
        for (point = 0; curves[i].panel == index && point < f.p->points; point++) {
            most = fmax(most, curves[i].rate[point]);
        }
    }
    draw_axes(svg, &f, most);
    for (i = 0; i < (int)CURVES; i++) {
        if (curves[i].panel == index) draw_curve(svg, &f, &curves[i]);
    }
}

static void draw(void) {
    int rows = (PANELS + COLUMNS - 1) / COLUMNS, width = LEFT + COLUMNS * (WIDE + GAP_X) - GAP_X + 24;
    int height = TOP + rows * (HIGH + GAP_Y) - 30, i;
    FILE *svg = fopen("bench/cost.svg", "w");
    if (!svg) stop("bench/cost.svg cannot be written");
    fprintf(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\">\n", width, height);
    fputs("<style>text{font:12px Helvetica,Arial,'DejaVu Sans',sans-serif;fill:#1f2933}"
          ".s{font-size:10.5px;fill:#52606d}.b{font-weight:bold}.t{font-size:17px;font-weight:bold}</style>\n", svg);
    fprintf(svg, "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height);
    words(svg, LEFT, 28, "class=\"t\"", "What attn.h does in a second, over sizes; one thread");
    words(svg, LEFT, 48, "", "GFLOP/s of visible query-key pairs; GB/s of K and V. Colours: type of the cache.");
    for (i = 0; i < (int)LEGEND; i++) {
        const curve *k = &curves[LEGEND_AT + i];
        fprintf(svg, "<path d=\"M%d 62h22\" stroke=\"%s\" stroke-width=\"2.5\"/>\n", LEFT + 80 * i, colour_of(k));
        words(svg, LEFT + 80 * i + 28, 66, "", k->name);
    }
    for (i = 0; i < (int)PANELS; i++) draw_panel(svg, i);
    fputs("</svg>\n", svg);
    if (fclose(svg)) stop("bench/cost.svg cannot be written");
}

int main(void) {
    pool *threads = pool_start(1);
    int p, point;
    bench_clock = CLOCK_THREAD_CPUTIME_ID;
    for (p = 0; p < (int)PANELS; p++) {
        for (point = 0; point < panels[p].points; point++) measure_point(p, point, threads);
        fprintf(stderr, "%s: %.0f s of processor time so far\n", panels[p].title, now());
    }
    write_csv();
    draw();
    report();
    return 0;
}
