/* mask_picture.c - draws the masks of a few batches, and the schedule of a plan, as one SVG.

   Shows   attn_visible and attn_mask_bits (the definition of every mask), a ragged batch with chunked prefill, and
           how a plan cuts a mixed batch into tasks.
   Build   cc -I. examples/mask_picture.c -o mask_picture
   Use     mask_picture [file], mask.svg if not given
   Result  exit status 0 if both functions agree on every cell, the counts are those computed by hand and the tasks of
           the plan cover every strip exactly once, else 1. */
#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { WIDTH = 1240, MARGIN = 40, CELL = 15, MAX_KEYS = 32 };

static FILE *svg;
static int failures;

/* Readable for the colour-blind: blue against orange, and light against dark. */
static const char *const ink = "#1f2933";
static const char *const soft_ink = "#5f6b7a";
static const char *const hidden_fill = "#eceff3";
static const char *const window_fill = "#7fb2e5";
static const char *const self_fill = "#1d4e89";
static const char *const sink_fill = "#f0a03c";
static const char *const cached_fill = "#c9d1da";
static const char *const new_fill = "#5f6b7a";

static void expect(int condition, const char *what) {
    if (condition) return;
    printf("wrong: %s\n", what);
    failures++;
}

/* ---- SVG -------------------------------------------------------------------------------------------------------- */

static void rect(double x, double y, double w, double h, const char *fill) {
    fprintf(svg, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"/>\n", x, y, w, h, fill);
}

static void put_escaped(const char *s) {
    for (; *s; s++) {
        if (*s == '&') {
            fputs("&amp;", svg);
        } else if (*s == '<') {
            fputs("&lt;", svg);
        } else if (*s == '>') {
            fputs("&gt;", svg);
        } else {
            fputc(*s, svg);
        }
    }
}

/* style: "title", "head", "code" or "note", see the style sheet in begin(). anchor: "start", "middle" or "end". */
static void text(double x, double y, const char *style, const char *anchor, const char *format, ...) {
    char line[400];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fprintf(svg, "<text x=\"%.2f\" y=\"%.2f\" class=\"%s\" text-anchor=\"%s\" xml:space=\"preserve\">", x, y, style,
            anchor);
    put_escaped(line);
    fputs("</text>\n", svg);
}

static void begin(double height) {
    fprintf(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\">\n",
            WIDTH, height, WIDTH, height);
    fprintf(svg, "<style>text{font-family:Helvetica,Arial,'DejaVu Sans',sans-serif;fill:%s}", ink);
    fprintf(svg, ".title{font-size:22px;font-weight:bold}.head{font-size:14px;font-weight:bold}");
    fprintf(svg, ".code{font-size:12px;font-family:Menlo,Consolas,'DejaVu Sans Mono',monospace}");
    fprintf(svg, ".note{font-size:11px;fill:%s}.light{font-size:11px;fill:#ffffff}</style>\n", soft_ink);
    rect(0, 0, WIDTH, height, "#ffffff");
}

static void legend_entry(double *x, double y, const char *fill, const char *label, double width) {
    rect(*x, y - 11, 14, 14, fill);
    text(*x + 20, y, "note", "start", "%s", label);
    *x += width;
}

/* ---- masks ------------------------------------------------------------------------------------------------------ */

/* Cross attention reads the keys of another sequence: none is the query's own. */
static int has_positions(const attn_layer *layer) {
    return layer->mask == ATTN_CAUSAL || layer->window_left || layer->window_right;
}

/* Why a cell is visible decides its colour: the sink keys are what a layer without sink_keys does not see. */
static const char *cell_fill(const attn_batch *batch, const attn_layer *layer, int request, int row, int key) {
    attn_layer no_sinks = *layer;
    no_sinks.sink_keys = 0;
    if (!attn_visible(batch, layer, NULL, request, row, key)) return hidden_fill;
    if (!attn_visible(batch, &no_sinks, NULL, request, row, key)) return sink_fill;
    if (!has_positions(layer)) return window_fill;
    return key == batch->kv_len[request] - batch->q_len[request] + row ? self_fill : window_fill;
}

/* One request at x, y: a strip that tells cached keys from new ones, then rows of cells. Returns the visible cells. */
static int draw_request(double x, double y, const attn_batch *batch, const attn_layer *layer, int request,
                        double cell) {
    int q_len = batch->q_len[request], kv_len = batch->kv_len[request];
    int cached = has_positions(layer) ? kv_len - q_len : kv_len;
    uint32_t bits[MAX_KEYS]; /* at most 32 keys: one word a row */
    attn_error err;
    int count = 0;
    if (attn_mask_bits(batch, layer, NULL, request, bits, MAX_KEYS, &err)) {
        expect(0, err.text);
        return 0;
    }
    for (int key = 0; key < kv_len; key++) {
        rect(x + key * cell, y - 6, cell - 1, 4, key < cached ? cached_fill : new_fill);
    }
    for (int row = 0; row < q_len; row++) {
        for (int key = 0; key < kv_len; key++) {
            int seen = attn_visible(batch, layer, NULL, request, row, key);
            expect(seen == (int)(bits[row] >> key & 1), "attn_visible and attn_mask_bits differ");
            count += seen;
            rect(x + key * cell, y + row * cell, cell - 1, cell - 1, cell_fill(batch, layer, request, row, key));
        }
    }
    return count;
}

/* A single request. `expected` was counted by hand from the words of the header. */
typedef struct panel {
    const char *title, *settings;
    int32_t q_len, kv_len;
    attn_mask mask;
    int32_t window_left, window_right, sink_keys;
    int expected;
} panel;

static const panel panels[] = {
    { "A whole prompt", "causal", 12, 12, ATTN_CAUSAL, 0, 0, 0, 78 },
    { "A later chunk: 8 keys cached", "causal", 6, 14, ATTN_CAUSAL, 0, 0, 0, 69 },
    { "Sliding window", "causal, window_left = 4", 12, 12, ATTN_CAUSAL, 4, 0, 0, 42 },
    { "Window with sink keys", "causal, window_left = 4, sink_keys = 2", 12, 12, ATTN_CAUSAL, 4, 0, 2, 57 },
    { "Cross attention", "full", 6, 12, ATTN_FULL, 0, 0, 0, 72 },
    { "Window on the right", "full, window_right = 3", 12, 12, ATTN_FULL, 0, 3, 0, 99 },
    { "Window on both sides", "full, window_left = 4, window_right = 3", 12, 12, ATTN_FULL, 4, 3, 0, 63 },
    { "Both sides with sink keys", "full, windows as before, sink_keys = 2", 12, 12, ATTN_FULL, 4, 3, 2, 78 },
};

static void draw_panel(double x, double y, const panel *p) {
    attn_batch batch = { .n = 1, .q_len = &p->q_len, .kv_len = &p->kv_len };
    attn_layer layer = { .heads = 1, .head_dim = 16, .mask = p->mask };
    layer.window_left = p->window_left;
    layer.window_right = p->window_right;
    layer.sink_keys = p->sink_keys;
    text(x, y, "head", "start", "%s", p->title);
    text(x, y + 17, "note", "start", "%s", p->settings);
    int count = draw_request(x, y + 38, &batch, &layer, 0, CELL);
    text(x, y + 38 + p->q_len * CELL + 15, "note", "start", "%d of %d pairs visible", count,
         (int)(p->q_len * p->kv_len));
    expect(count == p->expected, p->title);
}

static double draw_masks(double y) {
    double x = MARGIN;
    text(x, y, "title", "start", "Masks: which keys a query row sees");
    y += 24;
    text(x, y, "note", "start", "Rows are the new queries, columns the keys of the request. Row j stands at position "
         "kv_len - q_len + j.");
    y += 26;
    legend_entry(&x, y, self_fill, "the query's own position", 185);
    legend_entry(&x, y, window_fill, "visible", 85);
    legend_entry(&x, y, sink_fill, "visible only as a sink key", 185);
    legend_entry(&x, y, hidden_fill, "not visible", 110);
    legend_entry(&x, y, cached_fill, "bar above: key was cached before", 225);
    legend_entry(&x, y, new_fill, "bar above: key of a new row", 200);
    y += 42;
    int n = (int)(sizeof panels / sizeof *panels);
    for (int i = 0; i < n; i++) {
        draw_panel(MARGIN + i % 4 * 295, y + i / 4 * 275, &panels[i]);
    }
    return y + (n + 3) / 4 * 275;
}

/* ---- a ragged batch over three steps ---------------------------------------------------------------------------- */

enum { STEPS = 3, REQUESTS = 3 };

static const int32_t step_q[STEPS][REQUESTS] = { { 5, 4, 1 }, { 5, 1, 1 }, { 2, 1, 1 } };
static const int32_t step_kv[STEPS][REQUESTS] = { { 5, 4, 9 }, { 10, 5, 10 }, { 12, 6, 11 } };

static double draw_ragged(double y) {
    static const char *const names = "ABC";
    attn_layer layer = { .heads = 1, .head_dim = 16 };
    double x = MARGIN, cell = 13;
    text(MARGIN, y, "title", "start", "A ragged batch: three steps of three requests");
    text(MARGIN, y + 24, "note", "start", "A: a prompt of 12 tokens in chunks of 5. B: a prompt of 4, then it decodes. "
         "C decodes. Rows and keys are packed: what is not drawn is neither stored nor computed.");
    y += 62;
    int pairs = 0;
    for (int s = 0; s < STEPS; s++) {
        attn_batch batch = { .n = REQUESTS, .q_len = step_q[s], .kv_len = step_kv[s] };
        double block_x = x, block_y = y + 24;
        text(x, y, "head", "start", "Step %d", s);
        for (int i = 0; i < REQUESTS; i++) {
            pairs += draw_request(block_x, block_y, &batch, &layer, i, cell);
            text(block_x + step_kv[s][i] * cell + 5, block_y + 10, "note", "start", "%c", names[i]);
            block_x += step_kv[s][i] * cell + 18;
            block_y += step_q[s][i] * cell + 8;
        }
        x = block_x + 32;
    }
    expect(pairs == 78 + 21 + 30, "pairs of the three steps: whole triangles of A and B, three rows of C");
    return y + 24 + 10 * cell + 2 * 8 + 20;
}

/* ---- the schedule of a plan ------------------------------------------------------------------------------------- */

enum { LANES = 4, MAX_TASKS = 256, UNIT = 256 };

static const int32_t plan_q[] = { 96, 48, 1, 1, 1, 4 };
static const int32_t plan_kv[] = { 96, 1200, 5200, 2600, 900, 3100 };
static const int32_t plan_phase[] = { ATTN_PREFILL, ATTN_PREFILL, ATTN_DECODE, ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };

/* Entries of plan.words; attn.h describes them under >>plan. */
typedef struct strip {
    int request, head, heads, row, rows, lead, unit, units;
} strip;

typedef struct task {
    int strip, begin, end;
} task;

enum { STRIPS_AT = 13, TASKS_AT = 14, STRIP_WORDS = 8, TASK_WORDS = 5 };

static strip strip_at(const attn_plan *plan, int i) {
    const int32_t *w = plan->words + plan->words[STRIPS_AT] + i * STRIP_WORDS;
    strip s = { w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7] };
    return s;
}

static task task_at(const attn_plan *plan, int i) {
    const int32_t *w = plan->words + plan->words[TASKS_AT] + i * TASK_WORDS;
    task t = { w[0], w[1], w[2] };
    return t;
}

/* Keys of a unit start at this number times UNIT. */
static int unit_at(const strip *s, int index) {
    return index < s->lead ? index : s->unit + index - s->lead;
}

static const char *task_fill(int phase, int index) {
    static const char *const fills[2][2] = { { "#2a9d8f", "#1f776c" }, { "#4a86c5", "#2c5f96" } };
    return fills[phase][index & 1];
}

/* Keys first .. last - 1 that rows of the strip see between two keys: what its task has to read. */
static void seen_keys(const attn_batch *batch, const attn_layer *layer, const strip *s, int *first, int *last) {
    int group = layer->heads / layer->kv_heads;
    int row = (s->row + s->rows - 1) / group;
    int lo = *first, hi = *last;
    while (lo < hi && !attn_visible(batch, layer, NULL, s->request, s->row / group, lo)) lo++;
    while (hi > lo && !attn_visible(batch, layer, NULL, s->request, row, hi - 1)) hi--;
    *first = lo;
    *last = hi;
}

typedef struct drawn {
    int phase;
    double cost; /* row-key-head triples */
} drawn;

/* Chart 1: a line for each strip, its keys to the right, its tasks as boxes. */
static double draw_strips(double y, const attn_plan *plan, const attn_batch *batch, const attn_layer *layer,
                          drawn *out) {
    double x = MARGIN + 275, scale = (WIDTH - MARGIN - x) / 5200.0;
    int line = -1, covered = 0;
    for (int i = 0; i < plan->tasks; i++) {
        task t = task_at(plan, i);
        strip s = strip_at(plan, t.strip);
        int phase = plan_phase[s.request];
        int first = phase == ATTN_DECODE ? unit_at(&s, t.begin) * UNIT : 0;
        int last = plan_kv[s.request];
        if (phase == ATTN_DECODE && (unit_at(&s, t.end - 1) + 1) * UNIT < last) {
            last = (unit_at(&s, t.end - 1) + 1) * UNIT;
        }
        seen_keys(batch, layer, &s, &first, &last);
        if (t.strip != line) {
            expect(t.strip == line + 1 && t.begin == 0, "strips are in order and start at unit 0");
            covered = 0;
            line = t.strip;
            text(x - 10, y + line * 17 + 11, "note", "end", "%s request %d, kv heads %d..%d, rows %d..%d",
                 phase ? "decode" : "prefill", s.request, s.head, s.head + s.heads - 1, s.row, s.row + s.rows - 1);
        }
        expect(t.begin == covered, "tasks follow each other without a gap");
        covered = t.end;
        if (i + 1 == plan->tasks || task_at(plan, i + 1).strip != line) {
            expect(covered == s.units, "the tasks cover the strip");
        }
        double left = x + first * scale, width = (last - first) * scale;
        rect(left, y + line * 17, width > 3 ? width - 1 : 2, 14, task_fill(phase, i));
        if (width > 22) text(left + width / 2, y + line * 17 + 11, "light", "middle", "%d", i);
        out[i].phase = phase;
        out[i].cost = (double)(last - first) * s.rows * s.heads;
    }
    expect(line == plan->strips - 1, "every strip has a task");
    y += plan->strips * 17 + 4;
    rect(x, y, 5200 * scale, 1, soft_ink);
    for (int key = 0; key <= 5120; key += 1024) {
        rect(x + key * scale, y, 1, 5, soft_ink);
        text(x + key * scale, y + 18, "note", "middle", "%d", key);
    }
    text(x - 10, y + 18, "note", "end", "key");
    return y + 30;
}

/* Chart 2: the tasks as a thread pool takes them, each free lane the next one. Time is the count of triples. */
static double draw_lanes(double y, const attn_plan *plan, const drawn *tasks) {
    double end[LANES] = { 0 }, start[MAX_TASKS], total = 0, makespan = 0;
    int lane[MAX_TASKS];
    for (int i = 0; i < plan->tasks; i++) {
        int free_lane = 0;
        for (int l = 1; l < LANES; l++) {
            if (end[l] < end[free_lane]) free_lane = l;
        }
        lane[i] = free_lane;
        start[i] = end[free_lane];
        end[free_lane] += tasks[i].cost;
        total += tasks[i].cost;
        if (end[free_lane] > makespan) makespan = end[free_lane];
    }
    double x = MARGIN + 275, scale = (WIDTH - MARGIN - x) / makespan;
    for (int l = 0; l < LANES; l++) {
        text(x - 10, y + l * 25 + 15, "note", "end", "lane %d", l);
        rect(x, y + l * 25, makespan * scale, 22, hidden_fill);
    }
    for (int i = 0; i < plan->tasks; i++) {
        double left = x + start[i] * scale, width = tasks[i].cost * scale;
        rect(left, y + lane[i] * 25, width > 3 ? width - 1 : 2, 22, task_fill(tasks[i].phase, i));
        if (width > 22) text(left + width / 2, y + lane[i] * 25 + 15, "light", "middle", "%d", i);
    }
    y += LANES * 25 + 14;
    text(x, y, "note", "start", "time in row-key-head triples; %d lanes are busy %.0f %% of it. Then, after a barrier, "
         "%d merge tasks join %d partial results.", LANES, 100 * total / (makespan * LANES), (int)plan->merges,
         (int)plan->slots);
    return y + 20;
}

static double draw_explain(double y, const attn_plan *plan) {
    char words[2048];
    attn_plan_explain(plan, words, sizeof words);
    for (char *line = words; *line;) {
        char *end = line;
        while (*end && *end != '\n') end++;
        int more = *end == '\n';
        *end = 0;
        text(MARGIN, y, "code", "start", "%s", line);
        y += 17;
        line = end + more;
    }
    return y;
}

static double draw_schedule(double y) {
    attn_batch batch = { .n = 6, .q_len = plan_q, .kv_len = plan_kv, .phase = plan_phase };
    attn_layer layer = { .heads = 8, .kv_heads = 2, .head_dim = 64 };
    attn_plan plan;
    attn_error err;
    drawn tasks[MAX_TASKS];
    layer.workers = 12; /* few, so that the picture stays readable; 0 means 64 */
    text(MARGIN, y, "title", "start", "A plan: how one mixed batch becomes tasks");
    text(MARGIN, y + 24, "note", "start", "8 heads on 2 kv heads. The decode strips are laid end to end and cut into "
         "12 equal runs at multiples of 256 keys; a prefill task is one tile of rows. The cut changes no bit.");
    y += 50;
    size_t bytes = attn_plan_bytes(&batch, &layer);
    void *mem = malloc(bytes);
    if (attn_plan_make(&plan, &batch, &layer, mem, bytes, &err)) {
        expect(0, err.text);
        free(mem);
        return y;
    }
    expect(plan.tasks > 0 && plan.tasks <= MAX_TASKS, "the tasks fit into the picture");
    if (plan.tasks <= MAX_TASKS) {
        double x = MARGIN;
        legend_entry(&x, y, task_fill(ATTN_PREFILL, 0), "prefill tasks", 120);
        legend_entry(&x, y, task_fill(ATTN_DECODE, 0), "decode tasks", 120);
        text(x, y, "note", "start", "numbers: the index given to attn_task; light and dark only tell neighbours apart");
        y += 36;
        text(MARGIN, y, "head", "start", "Tasks over strips and keys");
        y = draw_strips(y + 14, &plan, &batch, &layer, tasks) + 26;
        text(MARGIN, y, "head", "start", "The same tasks on four lanes, in index order");
        y = draw_lanes(y + 14, &plan, tasks) + 26;
        text(MARGIN, y, "head", "start", "attn_plan_explain");
        y = draw_explain(y + 22, &plan);
    }
    free(mem);
    return y;
}

static double draw_all(void) {
    double y = draw_masks(50);
    y = draw_ragged(y + 10);
    return draw_schedule(y + 30) + 20;
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "mask.svg";
    svg = tmpfile(); /* the height is known only after drawing: once into nowhere, then into the file */
    if (!svg) svg = fopen(name, "w");
    if (!svg) {
        printf("cannot write %s\n", name);
        return 1;
    }
    double height = draw_all();
    fclose(svg);
    svg = fopen(name, "w");
    if (!svg) {
        printf("cannot write %s\n", name);
        return 1;
    }
    failures = 0; /* counted once, not twice */
    begin(height);
    draw_all();
    fputs("</svg>\n", svg);
    if (fclose(svg)) {
        printf("cannot write %s\n", name);
        return 1;
    }
    printf("%s: %d by %.0f, %d checks failed\n", name, WIDTH, height, failures);
    return failures != 0;
}
