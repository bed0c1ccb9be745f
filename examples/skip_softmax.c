/* skip_softmax.c - a long context in which most keys hardly matter: leaving them out, and knowing what that costs.

   Shows   the three ways to ask for it (a calibrated factor for each phase; eps, a promise that needs no calibration;
           a lambda per request), for a chunk of a prompt and for a decode step over 32,768 keys: the share of key
           tiles whose values were not read, the certificate of each row beside what was really lost, the curve of
           sparsity over lambda out of one run, and a map of what was left out.
   Build   cc -I. examples/skip_softmax.c -o skip_softmax
   Use     skip_softmax [file], skip_map.svg if not given
   Result  exit status 0 if no error of o exceeds certificate * (vmax - vmin), no row lost more than its certificate
           says, eps is kept, every needle is found that dense attention finds, something was skipped in every setting
           but not all, and curve and map agree with the counters, else 1. */
#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    KEYS = 32768,
    CHUNK = 48, /* rows of the prompt that come now: its last ones */
    HEADS = 8,
    KV_HEADS = 2,
    GROUP = HEADS / KV_HEADS,
    HEAD_DIM = 64,
    Q_WIDTH = HEADS * HEAD_DIM,
    KV_WIDTH = KV_HEADS * HEAD_DIM,
    TILE = 64, /* keys that are kept or left out together: the default of layer.key_tile while skipping */
    TILES = KEYS / TILE,
    NEEDLES = 8,
    PASSAGE = 160, /* keys about one topic */
    TOPICS = 16,
    REPEAT = 3 /* of the measurements; 1 where they are slow */
};

/* What the elements of queries and keys mean. The rest of a head's elements is noise. */
enum { TOPIC_AT = 0, SINK_AT = TOPIC_AT + TOPICS, NEEDLE_AT = SINK_AT + 1, NOISE_AT = NEEDLE_AT + NEEDLES };

enum { PREFILL, DECODE, PHASES };

static const char *const phase_names[PHASES] = { "prefill", "decode" };
static const int32_t phases[PHASES] = { ATTN_PREFILL, ATTN_DECODE };
static const int32_t phase_rows[PHASES] = { CHUNK, 1 };
static const int32_t kv_len = KEYS;

static float k_cache[KEYS * KV_WIDTH], v_cache[KEYS * KV_WIDTH];
static float q[PHASES][CHUNK * Q_WIDTH];
static float v_range[KV_HEADS][HEAD_DIM]; /* vmax - vmin */

/* What a call returns. */
typedef struct output {
    float o[CHUNK * Q_WIDTH], lse[CHUNK * HEADS], certificate[CHUNK * HEADS];
    attn_counters counters;
} output;

static output dense[PHASES], skipping;

static void *need(size_t bytes) {
    void *p = malloc(bytes);
    if (p) return p;
    printf("out of memory\n");
    exit(1);
}

/* ---- data: a sink, topics that drift, needles ------------------------------------------------------------------- */

/* Roughly normal: mean 0, variance 1. */
static float normal(uint32_t *seed) {
    float sum = 0;
    for (int i = 0; i < 12; i++) {
        *seed = *seed * 1664525u + 1013904223u;
        sum += (float)(*seed >> 8) / 16777216.0f;
    }
    return sum - 6;
}

static int needle(int n) {
    return 2500 + n * 3800 + n * n * 37;
}

/* The first keys draw the attention of every head. Each passage has a topic, near to that of the one before it. A
   needle's value says which needle it is. */
static void fill_keys(void) {
    uint32_t seed = 1;
    float topic[KV_HEADS][TOPICS];
    for (int key = 0; key < KEYS; key++) {
        for (int h = 0; h < KV_HEADS; h++) {
            float *k = k_cache + key * KV_WIDTH + h * HEAD_DIM, *v = v_cache + key * KV_WIDTH + h * HEAD_DIM;
            for (int t = 0; t < TOPICS && key % PASSAGE == 0; t++) {
                topic[h][t] = key ? 0.8f * topic[h][t] + 0.6f * normal(&seed) : normal(&seed);
            }
            memcpy(k + TOPIC_AT, topic[h], sizeof topic[h]);
            if (key < 4) k[SINK_AT] = 1;
            for (int x = NOISE_AT; x < HEAD_DIM; x++) k[x] = normal(&seed);
            for (int x = 0; x < HEAD_DIM; x++) v[x] = normal(&seed) / 8;
        }
    }
    for (int n = 0; n < NEEDLES; n++) {
        for (int h = 0; h < KV_HEADS; h++) {
            k_cache[needle(n) * KV_WIDTH + h * HEAD_DIM + NEEDLE_AT + n] = 1;
            v_cache[needle(n) * KV_WIDTH + h * HEAD_DIM + n] = 1;
        }
    }
}

static int asked(int row, int head) {
    return (row + head) % NEEDLES;
}

/* A row asks for one needle, and cares for topics, some of all rows and some of its own. Logits: sink 12, needle 19,
   others of a variance above 5. */
static void fill_rows(void) {
    uint32_t seed = 2;
    for (int phase = 0; phase < PHASES; phase++) {
        for (int i = 0; i < phase_rows[phase] * HEADS; i++) {
            float *x = q[phase] + i * HEAD_DIM;
            for (int t = 0; t < TOPICS; t++) x[TOPIC_AT + t] = 8 * (t < 4 ? 1 : 0.15f * normal(&seed));
            for (int d = NOISE_AT; d < HEAD_DIM; d++) x[d] = 8 * 0.16f * normal(&seed);
            x[SINK_AT] = 8 * 12;
            x[NEEDLE_AT + asked(i / HEADS, i % HEADS)] = 8 * 19; /* 8: the scale is 1 / sqrt(64) */
        }
    }
}

static void find_ranges(void) {
    for (int h = 0; h < KV_HEADS; h++) {
        for (int x = 0; x < HEAD_DIM; x++) {
            float low = v_cache[h * HEAD_DIM + x], high = low;
            for (int key = 1; key < KEYS; key++) {
                float value = v_cache[key * KV_WIDTH + h * HEAD_DIM + x];
                if (value < low) low = value;
                if (value > high) high = value;
            }
            v_range[h][x] = high - low;
        }
    }
}

/* ---- one call --------------------------------------------------------------------------------------------------- */

typedef struct setting {
    const char *name;
    attn_skip skip;
    float lambda; /* of mode LAMBDA */
} setting;

/* The layer of a model differs from dense attention in one field. */
static attn_layer model_layer(attn_skip skip) {
    attn_layer layer = { .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM, .skip = skip };
    layer.isa = (int32_t)attn_isa_detect();
    return layer;
}

static attn_io model_io(int phase, const setting *s, output *out) {
    attn_io io = { .q = q[phase], .k = k_cache, .v = v_cache, .o = out->o, .lse = out->lse };
    if (s->skip.mode == ATTN_SKIP_LAMBDA) io.lambda = &s->lambda;
    if (s->skip.mode == ATTN_SKIP_OFF) return io; /* nothing to certify or to count */
    io.certificate = out->certificate;
    io.counters = &out->counters;
    return io;
}

/* Plans and runs one request; milliseconds of processor time of the run, or -1. */
static double forward(int phase, const attn_layer *layer, const attn_io *io) {
    attn_batch batch = { .n = 1, .q_len = &phase_rows[phase], .kv_len = &kv_len, .phase = &phases[phase] };
    attn_plan plan;
    attn_error err;
    size_t bytes = attn_plan_bytes(&batch, layer);
    void *mem = need(bytes);
    attn_exec exec = { 0 };
    double time = -1;
    int status = attn_plan_make(&plan, &batch, layer, mem, bytes, &err);
    if (!status) {
        exec.bytes = attn_exec_bytes(&plan, 1);
        exec.mem = need(exec.bytes);
        clock_t start = clock();
        status = attn_forward(&plan, layer, io, &exec, &err);
        time = 1000.0 * (double)(clock() - start) / CLOCKS_PER_SEC;
    }
    if (status) printf("refused: %s\n", err.text);
    free(exec.mem);
    free(mem);
    return status ? -1 : time;
}

static double run(int phase, const setting *s, output *out) {
    attn_layer layer = model_layer(s->skip);
    attn_io io = model_io(phase, s, out);
    memset(out, 0xFF, sizeof *out); /* NaN: a row that is not written cannot pass */
    memset(&out->counters, 0, sizeof out->counters);
    return forward(phase, &layer, &io);
}

/* ---- checks and report ------------------------------------------------------------------------------------------ */

/* e^x: the series of x / 1024, squared ten times. */
static double exponential(double x) {
    double t = x / 1024, y = 1 + t * (1 + t / 2 * (1 + t / 3 * (1 + t / 4)));
    for (int i = 0; i < 10; i++) {
        y *= y;
    }
    return y;
}

/* What became of the rows of a phase. Rounding alone makes sums of a different order differ by some 1e-6. */
typedef struct result {
    double certificate, mean_certificate, lost; /* largest and mean certificate, largest share really lost */
    double error, of_bound;                     /* largest |o - dense|, largest share of its bound */
    int found, findable, ok;
} result;

static int is_found(const float *o, int n) {
    for (int i = 0; i < NEEDLES; i++) {
        if (i != n && !(o[i] < o[n])) return 0;
    }
    return o[n] > 0.25f;
}

/* The values left out have some mean between vmin and vmax, and so has o: with the share lost, delta,
   o - dense = delta * (o - mean). And lse is the log of what was kept. */
static void compare_head(int phase, int i, result *r) {
    const float *o = skipping.o + i * HEAD_DIM, *expected = dense[phase].o + i * HEAD_DIM;
    double certificate = (double)skipping.certificate[i];
    double lost = 1 - exponential((double)skipping.lse[i] - (double)dense[phase].lse[i]);
    int n = asked(i / HEADS, i % HEADS);
    for (int x = 0; x < HEAD_DIM; x++) {
        double d = (double)o[x] - (double)expected[x];
        double bound = certificate * (double)v_range[i % HEADS / GROUP][x] + 1e-5;
        if (d < 0) d = -d;
        r->ok &= d <= bound;
        if (d > r->error) r->error = d;
        if (d / bound > r->of_bound) r->of_bound = d / bound;
    }
    r->ok &= lost <= certificate + 1e-5;
    if (certificate > r->certificate) r->certificate = certificate;
    if (lost > r->lost) r->lost = lost;
    r->mean_certificate += certificate / (phase_rows[phase] * HEADS);
    r->findable += is_found(expected, n);
    r->found += is_found(o, n);
}

static double share(int64_t part, int64_t all) {
    return all ? (double)part / (double)all : 0;
}

/* Returns 1 if the setting keeps its promises in this phase. Dense and skipping runs take turns. */
static int try_setting(int phase, const setting *s) {
    const setting off = { "dense", { 0 }, 0 };
    double full = 1e30, less = 1e30, promise = 1;
    result r = { .ok = 1 };
    for (int n = 0; n < REPEAT && (!n || full < 200); n++) {
        double a = run(phase, &off, &dense[phase]), b = run(phase, s, &skipping);
        if (a < 0 || b < 0) return 0;
        if (a < full) full = a;
        if (b < less) less = b;
    }
    for (int i = 0; i < phase_rows[phase] * HEADS; i++) {
        compare_head(phase, i, &r);
    }
    if (s->skip.mode == ATTN_SKIP_EPS) {
        double eps = (double)(phase == PREFILL ? s->skip.prefill : s->skip.decode);
        promise = eps / (1 + eps);
    }
    const attn_counters *c = &skipping.counters;
    int ok = r.ok && r.certificate <= promise && r.found == r.findable && r.findable > 0 && c->v_skipped > 0 &&
             c->v_skipped < c->tiles;
    printf("%-22s %-7s %5.1f %%   %.4f %.4f  %.4f   %.4f %5.1f %%   %3d of %3d  %7.2f /%7.2f = %.2f%s\n", s->name,
           phase_names[phase], 100 * share(c->v_skipped, c->tiles), r.certificate, r.mean_certificate, r.lost, r.error,
           100 * r.of_bound, r.found, r.findable, full, less, full / (less > 0 ? less : 1e-3), ok ? "" : "  WRONG");
    return ok;
}

static int try_settings(const setting *settings, int n) {
    int ok = 1;
    printf("                                        certificate     really   |o - dense|\n");
    printf("                       phase   skipped  most   mean    lost     most  of bound   needles   ms dense / "
           "skipping\n");
    for (int i = 0; i < n; i++) {
        for (int phase = 0; phase < PHASES; phase++) {
            ok &= try_setting(phase, &settings[i]);
        }
    }
    return ok;
}

/* ---- sparsity over lambda --------------------------------------------------------------------------------------- */

/* Tiles that lambda = e^(-bin / 2) would leave out. */
static int64_t tiles_above(const attn_counters *c, int bin) {
    int64_t count = 0;
    for (int i = bin; i < 64; i++) {
        count += c->histogram[i];
    }
    return count;
}

/* A lambda that skips nothing collects the curve; one point of it is then tried. */
static int draw_curve(void) {
    enum { TRIED = 16 };
    const setting collect = { "collect", { .mode = ATTN_SKIP_LAMBDA }, 1e-30f };
    const setting point = { "point", { .mode = ATTN_SKIP_LAMBDA }, 3.3546263e-4f }; /* e^-8 */
    attn_counters counts[PHASES];
    int ok = 1;
    for (int phase = 0; phase < PHASES; phase++) {
        if (run(phase, &collect, &skipping) < 0) return 0;
        ok &= skipping.counters.v_skipped == 0;
        counts[phase] = skipping.counters;
        if (run(phase, &point, &skipping) < 0) return 0;
        ok &= skipping.counters.v_skipped == tiles_above(&counts[phase], TRIED);
    }
    printf("\nSparsity over lambda, from the histogram of one run each; factor = lambda * %d\n", KEYS);
    printf("      lambda      factor  prefill  decode\n");
    for (int bin = 4; bin <= 26; bin += 2) {
        double lambda = exponential(-bin / 2.0);
        double part = share(tiles_above(&counts[PREFILL], bin), counts[PREFILL].tiles);
        printf("  %10.2e  %10.4g  %5.1f %%  %5.1f %%  ", lambda, lambda * KEYS, 100 * part,
               100 * share(tiles_above(&counts[DECODE], bin), counts[DECODE].tiles));
        for (int i = 0; i < (int)(50 * part + 0.5); i++) {
            putchar('#');
        }
        putchar('\n');
    }
    return ok;
}

/* ---- the map ---------------------------------------------------------------------------------------------------- */

/* Decisions do not depend on V. So ask for the rows of kv head 0 again, with values that say in which tile a key lies:
   element t of o becomes the weight of tile t, and 0 where the tile was left out. */
static float *weights_of_tiles(int phase, const setting *s, const float *tile_of_key, attn_counters *counters) {
    attn_layer layer = model_layer(s->skip);
    attn_io io = { .q = q[phase], .q_row = Q_WIDTH, .k = k_cache, .k_row = KV_WIDTH, .counters = counters };
    float *weights = need(sizeof *weights * CHUNK * GROUP * TILES);
    layer.heads = GROUP;
    layer.kv_heads = 1;
    layer.v_dim = TILES;
    io.v = (void *)(uintptr_t)tile_of_key;
    io.o = weights;
    memset(counters, 0, sizeof *counters);
    if (forward(phase, &layer, &io) >= 0) return weights;
    free(weights);
    return NULL;
}

static int same_tiles(const float *a, const float *b) {
    for (int t = 0; t < TILES; t++) {
        if ((a[t] != 0) != (b[t] != 0)) return 0;
    }
    return 1;
}

/* Colours that the colour-blind can tell apart: light is left out, darker weighs more. */
static const char *fill_of(float weight) {
    if (weight == 0) return "#eceff3";
    if (weight < 1e-3f) return "#b9d6f2";
    return weight < 1e-2f ? "#5b95cf" : "#1d3f72";
}

static void rect(FILE *svg, double x, double y, double w, double h, const char *fill) {
    fprintf(svg, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y, w, h, fill);
}

static void text(FILE *svg, double x, double y, const char *words) {
    fprintf(svg, "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n", x, y, words);
}

enum { MARGIN = 30, CELL = 2, WIDTH = 2 * MARGIN + CELL * TILES, TOP = 72, TITLE = 27, BELOW = 14 };

/* A row of the prompt is one pixel high, the few of a decode step more. */
static int height_of(int phase) {
    return phase == PREFILL ? CHUNK * GROUP : 16;
}


/* Packed rows with the same kept tiles, most likely one vote unit; a tile's colour shows its largest weight there. */
static void draw_band(FILE *svg, double y, double height, const float *weights, int rows) {
    const char *fill = NULL;
    int start = 0;
    for (int t = 0; t <= TILES; t++) {
        const char *next = NULL;
        float most = 0;
        for (int i = 0; i < rows && t < TILES; i++) {
            if (weights[i * TILES + t] > most) most = weights[i * TILES + t];
        }
        if (t < TILES) next = fill_of(most);
        if (next == fill) continue;
        if (fill) rect(svg, MARGIN + start * CELL, y, (t - start) * CELL, height, fill);
        fill = next;
        start = t;
    }
}

static void draw_needles(FILE *svg, double y) {
    for (int n = 0; n < NEEDLES; n++) {
        rect(svg, MARGIN + (double)needle(n) / TILE * CELL - 1, y, 2, 7, "#e0701a");
    }
}

/* One phase of one setting. Every row saw every tile: so the empty cells must be what was counted. */
static double draw_map(FILE *svg, double y, int phase, const setting *s, const float *tile_of_key, int *ok) {
    int rows = phase_rows[phase] * GROUP, first = 0;
    int64_t empty = 0, cells = (int64_t)rows * TILES;
    double row_height = (double)height_of(phase) / rows;
    char title[160];
    attn_counters c;
    float *weights = weights_of_tiles(phase, s, tile_of_key, &c);
    *ok &= weights != NULL;
    if (!weights) return y;
    for (int64_t i = 0; i < cells; i++) {
        empty += weights[i] == 0;
    }
    *ok &= empty * c.tiles == c.v_skipped * cells;
    snprintf(title, sizeof title, "%s, %s: %d rows of %d heads, %.1f %% left out", s->name, phase_names[phase],
             rows / GROUP, GROUP, 100 * share(empty, cells));
    text(svg, MARGIN, y + 12, title);
    draw_needles(svg, y + 18);
    y += TITLE;
    for (int i = 1; i <= rows; i++) {
        const float *band = weights + (size_t)first * TILES;
        if (i < rows && same_tiles(band, weights + (size_t)i * TILES)) continue;
        draw_band(svg, y + first * row_height, (i - first) * row_height, band, i - first);
        if (first) rect(svg, MARGIN, y + first * row_height - 1, CELL * TILES, 2, "#ffffff");
        first = i;
    }
    free(weights);
    return y + height_of(phase) + BELOW;
}

static int draw_maps(const char *name, const setting *settings, int n) {
    static const char *const words[] = { "left out", "below 0.1 %", "below 1 %", "1 % of a row or more", "needle" };
    static const char *const fills[] = { "#eceff3", "#b9d6f2", "#5b95cf", "#1d3f72", "#e0701a" };
    float *tile_of_key = need(sizeof *tile_of_key * KEYS * TILES);
    FILE *svg = fopen(name, "w");
    int height = TOP + n * (height_of(PREFILL) + height_of(DECODE) + 2 * (TITLE + BELOW)), ok = svg != NULL;
    double y = TOP;
    if (svg) {
        memset(tile_of_key, 0, sizeof *tile_of_key * KEYS * TILES);
        for (int key = 0; key < KEYS; key++) {
            tile_of_key[(size_t)key * TILES + (size_t)(key / TILE)] = 1;
        }
        fprintf(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\">\n", WIDTH, height);
        fprintf(svg, "<style>text{font:12px Helvetica,Arial,'DejaVu Sans',sans-serif;fill:#1f2933}</style>\n");
        rect(svg, 0, 0, WIDTH, height, "#ffffff");
        text(svg, MARGIN, 24, "Which key tiles weigh enough: the rows of one kv head downwards, 32,768 keys in tiles "
             "of 64 to the right. Rows between two gaps have the same tiles.");
        for (int i = 0; i < 5; i++) {
            rect(svg, MARGIN + 150 * i, 38, 12, 12, fills[i]);
            text(svg, MARGIN + 150 * i + 18, 48, words[i]);
        }
        for (int i = 0; i < n; i++) {
            y = draw_map(svg, y, PREFILL, &settings[i], tile_of_key, &ok);
            y = draw_map(svg, y, DECODE, &settings[i], tile_of_key, &ok);
        }
        fputs("</svg>\n", svg);
        ok &= !fclose(svg);
    }
    free(tile_of_key);
    printf("\n%s: what was left out by each setting%s\n", name, ok ? "" : "  WRONG");
    return ok;
}

int main(int argc, char **argv) {
    const setting settings[] = {
        { "factor 10, decode 4", { ATTN_SKIP_FACTOR, 10, 4 }, 0 },
        { "eps 0.01", { ATTN_SKIP_EPS, 0.01f, 0.01f }, 0 },
    };
    enum { SETTINGS = sizeof settings / sizeof *settings };
    fill_keys();
    fill_rows();
    find_ranges();
    printf("%d keys, %d heads on %d kv heads; a chunk of %d rows, and a decode step\n\n", KEYS, HEADS, KV_HEADS, CHUNK);
    int good = try_settings(settings, SETTINGS);
    int curve = draw_curve();
    int map = draw_maps(argc > 1 ? argv[1] : "skip_map.svg", settings, SETTINGS);
    printf("\nwithin every certificate and promise, needles found:   %s\n", good ? "yes" : "NO");
    printf("the curve and the map agree with the counters:         %s\n", curve && map ? "yes" : "NO");
    return !(good && curve && map);
}
