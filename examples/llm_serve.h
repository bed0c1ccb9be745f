/* llm_serve.h - the bookkeeping of a server, in tokens and lengths: requests that wait, run and leave, the pages of a
   cache that they have or share, the next token, drafts, and the rows of a pass through a model. For a step: schedule
   says how many rows each request has, fill_rows lists them with drafts behind, end_rows says that they are in the
   cache, follow takes the logits row by row, leave makes room. A draft model's logits go to take_guesses before. */
#ifndef LLM_SERVE_H
#define LLM_SERVE_H

#include "llm_base.h"

enum { MAX_NODES = 32 }; /* rows of a request that speculates: they fit into one word of bits */

/* Its tokens: the prompt, what was generated (up to len), then guesses of what comes next; `hints` of them are good. */
typedef struct request {
    uint64_t key;                /* with the seed: the random numbers it draws; its number unless set otherwise */
    int32_t *token, len, prompt_len, max_len;
    const int32_t *forced;       /* the caller's: its first tokens after the prompt, instead of sampled ones */
    int32_t forced_len, all_logits; /* all_logits: each row of its prompt gets logits, and its prompt shares no pages */
    enum { WAITING, RUNNING, DONE } state;
    int32_t slot, pages, kept;   /* kept: its first pages, which others may share */
    int32_t cached, drafted;     /* tokens in the cache of the model, of the draft model */
    int32_t complete, hints, rows, outs, first_out; /* rows of this step, drafts apart; `outs` of them get logits */
    int32_t nodes, node[MAX_NODES], depth[MAX_NODES]; /* drafts; node 0 is the latest token */
    uint32_t bits[MAX_NODES];    /* the nodes that a node sees: those it descends from, and itself */
    int32_t shared, steps;       /* tokens found in shared pages; steps after the prompt */
    arena *mem;
} request;

/* A page of the cache in all layers. A kept one holds a piece of a prompt, parent (-1: none) the piece before. */
typedef struct page {
    int32_t users, kept, parent;
    int64_t used;                /* when a kept page had its last user; 0: it holds nothing */
} page;

typedef struct candidate {
    float p;
    int32_t token;
} candidate;

typedef struct serve_options {
    int32_t batch;               /* requests that run at the same time */
    int32_t chunk;               /* rows of prompts in a step */
    int32_t page, pages;         /* keys of a page, 0: a contiguous cache, which shares nothing; pages 0: enough */
    int32_t context;             /* tokens of the longest request; 0: the model's */
    int32_t spec, tree;          /* drafts verified in a step, below MAX_NODES; 1: as a tree */
    float temperature, top_p;
    int32_t seed, stop[2];       /* stop: tokens that end a text, -1: none */
} serve_options;

typedef struct server {
    serve_options o;
    int32_t vocab, has_drafter;
    request **request, **slot;   /* all in their order; [batch] those that run */
    int32_t requests;
    uint64_t submitted;
    page *page;
    int32_t *page_token, free_pages; /* [pages][page_size]; free: without a user */
    int32_t *table, columns;     /* [slot][columns]: their pages */
    int64_t clock;
    candidate *candidate;
    char *error;
} server;

/* The rows of a pass through a model. */
typedef struct step_rows {
    int32_t count, outs, is_tree;        /* outs: rows that get logits; is_tree: drafts have more than one branch */
    int32_t prompts, decoding, same;     /* requests; the rows of each that decodes, 0: they differ */
    int32_t *q_len, *kv_len, *decodes;   /* [slot]: new rows, keys with them; 0: a piece of a prompt */
    int32_t *token, *shift, *out_row;    /* [row]; shift: what a row's position in its text is later than its number */
} step_rows;

static int decodes(const request *r) {
    return r->len > r->prompt_len;
}

/* ---- pages: shared by requests that begin alike ------------------------------------------------------------------ */

static int32_t pages_of(const server *s, int32_t keys) {
    return s->o.page ? (keys + s->o.page - 1) / s->o.page : 0;
}

static int32_t *table_of(const server *s, const request *r) {
    return s->table + (int64_t)r->slot * s->columns;
}

/* The kept page that follows `parent` and holds these tokens, or -1. */
static int32_t find_page(const server *s, int32_t parent, const int32_t *token) {
    size_t bytes = (size_t)s->o.page * sizeof *token;
    for (int32_t p = 0; p < s->o.pages; p++) {
        if (!s->page[p].kept || s->page[p].parent != parent) continue;
        if (!memcmp(s->page_token + (int64_t)p * s->o.page, token, bytes)) return p;
    }
    return -1;
}

static int32_t use_page(server *s, int32_t p) {
    if (s->page[p].users++ == 0) s->free_pages--;
    return p;
}

static void drop_page(server *s, int32_t p) {
    if (--s->page[p].users > 0) return;
    s->page[p].used = s->page[p].kept ? ++s->clock : 0;
    s->free_pages++;
}

/* From the last to the first. So of two kept pages of a prompt without users the later one is older and thrown away
   first: a kept page's parent is always kept. */
static void drop_pages(server *s, request *r) {
    while (r->pages > 0) drop_page(s, table_of(s, r)[--r->pages]);
}

/* A page for new keys: an empty one, else the kept one that was used longest ago. One must be free. */
static int32_t take_page(server *s) {
    int32_t oldest = -1;
    for (int32_t p = 0; p < s->o.pages; p++) {
        if (!s->page[p].users && (oldest < 0 || s->page[p].used < s->page[oldest].used)) oldest = p;
    }
    s->page[oldest].kept = 0;
    return use_page(s, oldest);
}

/* All pages that a request can need: those that hold the beginning of its prompt, if there are any, then others. The
   last token of the prompt is always computed, to have its logits. Returns 0 if there are not enough. */
static int reserve_pages(server *s, request *r) {
    int32_t *table = table_of(s, r), all = pages_of(s, r->max_len + s->o.spec), p = -1;
    int32_t most = s->o.page && !r->all_logits ? (r->prompt_len - 1) / s->o.page : 0;
    while (r->pages < most && (p = find_page(s, p, r->token + r->pages * s->o.page)) >= 0) {
        table[r->pages++] = use_page(s, p);
    }
    if (all - r->pages > s->free_pages) {
        drop_pages(s, r);
        return 0;
    }
    r->kept = r->pages;
    r->shared = r->cached = r->drafted = r->pages * s->o.page;
    while (r->pages < all) table[r->pages++] = take_page(s);
    return 1;
}

/* The rows of this step are in the cache. From now on others find the pages that the prompt has filled. Where another
   request was faster its page replaces this one, which has the same bits. */
static void end_rows(server *s, request *r) {
    int32_t *table = table_of(s, r), size = s->o.page;
    r->cached += r->rows;
    if (!decodes(r)) r->drafted = r->cached;
    for (; size && (r->kept + 1) * size <= least(r->cached, r->prompt_len); r->kept++) {
        int32_t parent = r->kept ? table[r->kept - 1] : -1, p = table[r->kept];
        const int32_t *token = r->token + r->kept * size;
        int32_t twin = find_page(s, parent, token);
        if (twin >= 0) {
            table[r->kept] = use_page(s, twin);
            drop_page(s, p);
        } else {
            s->page[p].kept = 1;
            s->page[p].parent = parent;
            memcpy(s->page_token + (int64_t)p * size, token, (size_t)size * sizeof *token);
        }
    }
}

/* Forgets what is kept of prompts, so that a measurement starts cold; an error while a request is not done. */
int server_reset_prefixes(server *s) {
    *s->error = 0;
    for (int32_t i = 0; i < s->requests; i++) {
        if (s->request[i]->state != DONE) return fail(s->error, "request %d is live: shared pages stay", i);
    }
    memset(s->page, 0, (size_t)s->o.pages * sizeof *s->page);
    return 0;
}

/* ---- requests: they wait, run and leave -------------------------------------------------------------------------- */

/* A request that continues `prompt` by at most `count` tokens; NULL and s->error if it can never run. */
request *server_submit(server *s, const int32_t *prompt, int32_t prompt_len, int32_t count) {
    int32_t max_len = count < s->o.context - prompt_len ? prompt_len + count : s->o.context;
    *s->error = 0;
    if (prompt_len < 1 || count < 1 || prompt_len >= s->o.context) {
        fail(s->error, "a prompt of %d tokens, %d more: the context has %d", prompt_len, count, s->o.context);
    } else if (pages_of(s, max_len + s->o.spec) > s->o.pages) {
        fail(s->error, "%d tokens do not fit into %d pages", max_len, s->o.pages);
    }
    for (int32_t i = 0; i < prompt_len && !*s->error; i++) {
        if (prompt[i] < 0 || prompt[i] >= s->vocab) fail(s->error, "prompt[%d] is no token", i);
    }
    request **list = *s->error ? NULL : realloc(s->request, ((size_t)s->requests + 1) * sizeof *list);
    if (!list) fail(s->error, "out of memory");
    if (!list) return NULL;
    arena *mem = NULL;
    request *r = need(&mem, 1, sizeof *r);
    r->token = need(&mem, (int64_t)max_len + MAX_NODES, sizeof *r->token);
    r->mem = mem;
    r->key = s->submitted++;
    memcpy(r->token, prompt, (size_t)prompt_len * sizeof *prompt);
    r->len = r->prompt_len = prompt_len;
    r->max_len = max_len;
    s->request = list;
    s->request[s->requests++] = r;
    return r;
}

/* Frees the requests that are done. A program that runs on calls it now and then; s->request has fewer entries then. */
void server_forget_done(server *s) {
    int32_t left = 0;
    for (int32_t i = 0; i < s->requests; i++) {
        request *r = s->request[i];
        if (r->state == DONE) release(r->mem);
        else s->request[left++] = r;
    }
    s->requests = left;
}

/* Prints a text from token `from` on, without what ends it; returns the token to go on with. */
int32_t server_print(const server *s, const request *r, int32_t from, const tokenizer *t, FILE *file) {
    for (int32_t n = from ? from : 1; n < r->len; n++) { /* token 0 is no text */
        int ends = n >= r->prompt_len && (r->token[n] == s->o.stop[0] || r->token[n] == s->o.stop[1]);
        if (!ends) tokenizer_print(t, r->token[n], n == 1, file);
    }
    return r->len;
}

/* A number that tells texts apart. */
uint64_t server_hash(const server *s) {
    uint64_t hash = 1;
    for (int32_t i = 0; i < s->requests; i++) {
        const request *r = s->request[i];
        for (int32_t n = 0; n < r->len; n++) hash = (hash ^ (uint64_t)r->token[n]) * 0x100000001B3u;
    }
    return hash;
}

/* Who waits joins in order, when there is a slot and all pages that it can need: nobody who runs has to give way. */
static void join(server *s) {
    for (int32_t i = 0, slot = 0; i < s->requests; i++) {
        request *r = s->request[i];
        if (r->state != WAITING) continue;
        while (slot < s->o.batch && s->slot[slot]) slot++;
        r->slot = slot;
        if (slot == s->o.batch || !reserve_pages(s, r)) return;
        r->state = RUNNING;
        s->slot[slot] = r;
    }
}

static void leave(server *s, request *r) {
    drop_pages(s, r);
    r->state = DONE;
    s->slot[r->slot] = NULL;
}

enum { NOBODY = -1, WITH_PROMPTS, DECODING }; /* steps */

/* Decides on the rows of a step, apart from drafts: all that decode, and as much of the prompts, oldest first, as the
   chunk takes. Returns what kind of step it is. */
static int32_t schedule(server *s) {
    int32_t left = s->o.chunk, kind = NOBODY;
    join(s);
    for (int32_t i = 0; i < s->requests; i++) {
        request *r = s->request[i];
        if (r->state != RUNNING) continue;
        r->rows = decodes(r) ? 1 : least(left, r->prompt_len - r->cached);
        if (!decodes(r)) left -= r->rows;
        if (r->rows) kind = decodes(r) && kind != WITH_PROMPTS ? DECODING : WITH_PROMPTS;
    }
    return kind;
}

/* ---- the next token ---------------------------------------------------------------------------------------------- */

/* 0 .. 1, the same for the same request and position in every run. */
static double random_number(uint64_t seed, uint64_t key, uint64_t position) {
    uint64_t z = (seed * 0x9E3779B97F4A7C15u) ^ (key * 0xD1342543DE82EF95u) ^ (position * 0xAF251AF3B0F025B5u);
    for (int i = 0; i < 3; i++) z = (z ^ (z >> 29)) * 0xBF58476D1CE4E5B9u + 0x94D049BB133111EBu;
    return (double)(z >> 11) / 9007199254740992.0;
}

static int compare_candidates(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->token - y->token;
}

/* Token number `position` of a request: the best, or one of the likely ones that together have top_p. */
static int32_t choose(const server *s, const request *r, int32_t position, const float *logits) {
    int32_t best = 0, n = 0, i = 0, given = position - r->prompt_len;
    double sum = 0, kept = 0;
    if (given < r->forced_len) return r->forced[given];
    for (int32_t t = 1; t < s->vocab; t++) best = logits[t] > logits[best] ? t : best;
    if (s->o.temperature <= 0) return best;
    for (int32_t t = 0; t < s->vocab; t++) {
        float p = expf((logits[t] - logits[best]) / s->o.temperature);
        sum += p;
        if (p > 1e-6f) s->candidate[n++] = (candidate){ p, t };
    }
    qsort(s->candidate, (size_t)n, sizeof *s->candidate, compare_candidates);
    while (i < n && kept < s->o.top_p * sum) kept += s->candidate[i++].p;
    double at = random_number((uint64_t)s->o.seed, r->key, (uint64_t)position) * kept;
    for (n = i, i = 0; i + 1 < n; i++) {
        at -= s->candidate[i].p;
        if (at < 0) break;
    }
    return s->candidate[i].token;
}

/* ---- drafts: guesses that the model checks, all in one step ------------------------------------------------------ */

enum { NGRAM_MAX = 9, NGRAM_MIN = 2, BRANCHES = 3 }; /* pieces of text that are looked up; of a tree of n-grams */

/* The child of a node that holds a token; r->nodes: there is none. */
static int32_t find_child(const request *r, int32_t node, int32_t token) {
    int32_t c = node + 1;
    while (c < r->nodes && (r->node[c] != token || r->bits[c] != (r->bits[node] | 1u << c))) c++;
    return c;
}

/* Adds a path from the latest token to the tree, as far as there is room; its beginning may be there already. The first
   path is one branch of nodes 1, 2, ..: node numbers equal depths in it, and nowhere else. */
static void add_path(const server *s, request *r, const int32_t *token, int32_t count) {
    for (int32_t at = 0, i = 0; i < count; i++) {
        int32_t child = find_child(r, at, token[i]);
        if (child > s->o.spec) return;
        if (child == r->nodes) {
            r->node[child] = token[i];
            r->depth[child] = i + 1;
            r->bits[child] = r->bits[at] | 1u << child;
            r->nodes++;
        }
        at = child;
    }
}

/* How many guesses may follow each other. */
static int32_t depth_limit(const server *s, const request *r) {
    return least(s->o.tree && !s->has_drafter ? (s->o.spec + 1) / 2 : s->o.spec, r->max_len - r->len - 1);
}

/* Behind the hints, what came after the latest tokens when they were seen before in this text: the longest, then the
   latest match. */
static void draft_ngrams(const server *s, request *r, int32_t most) {
    int32_t n = r->len + r->hints, branches = 0, *tail = r->token + n;
    for (int32_t size = NGRAM_MAX; size >= NGRAM_MIN && most > 0; size--) {
        for (int32_t at = n - size - 1; at >= 0 && branches < (s->o.tree ? BRANCHES : 1); at--) {
            const int32_t *seen = r->token + at;
            if (*seen != tail[-size] || memcmp(seen, tail - size, (size_t)size * sizeof *seen)) continue;
            int32_t before = r->nodes, count = least(most, size); /* a short match is no reason for a long draft */
            for (int32_t i = 0; i < count; i++) tail[i] = seen[size + i]; /* where the text ends it repeats itself */
            add_path(s, r, r->token + r->len, r->hints + count);
            branches += r->nodes > before;
        }
    }
}

/* The tree of a request that decodes: what is given, or a draft model has guessed, or hints with n-grams behind them.
   With more than one branch the step runs with the mask of a tree. */
static void draft(const server *s, request *r) {
    int32_t *path = r->token + r->len, given = r->len - r->prompt_len, most = depth_limit(s, r);
    r->node[0] = path[-1];
    if (given < r->forced_len) {
        add_path(s, r, r->forced + given, least(most, r->forced_len - given));
    } else {
        add_path(s, r, path, s->has_drafter ? most : least(most, r->hints));
        if (!s->has_drafter) draft_ngrams(s, r, most - r->hints);
    }
}

/* ---- the rows of a pass ------------------------------------------------------------------------------------------ */

static void add_rows(step_rows *b, int32_t slot, const int32_t *token, int32_t count, int32_t first_out, int32_t outs) {
    for (int32_t i = 0; i < count; i++, b->count++) {
        if (i >= first_out && i < first_out + outs) b->out_row[b->outs++] = b->count;
        b->token[b->count] = token[i];
        b->shift[b->count] = 0;
    }
    b->q_len[slot] += count;
    b->kv_len[slot] += count;
}

/* Of the model: what it has not seen, and drafts behind the latest token. */
static void add_text(const server *s, step_rows *b, request *r) {
    r->outs = r->all_logits && !decodes(r) ? r->rows : r->cached + r->rows == r->len;
    r->first_out = b->outs;
    r->nodes = 1;
    r->bits[0] = 1;
    add_rows(b, r->slot, r->token + r->cached, r->rows, r->rows - r->outs, r->outs);
    if (!decodes(r)) return;
    draft(s, r);
    add_rows(b, r->slot, r->node + 1, r->nodes - 1, 0, r->nodes - 1);
    for (int32_t j = 1, row = b->count - r->nodes + 1; j < r->nodes; j++, row++) {
        b->shift[row] = r->depth[j] - j;
        b->is_tree |= r->depth[j] != j;
    }
}

/* Of the draft model. Pass 0: it takes in what is new, a fixed number of rows of each request, of which those behind
   the new ones are filling; pass 1, 2, ..: what follows its latest guess. */
static void add_guess(const server *s, step_rows *b, const request *r, int32_t pass) {
    int32_t last = r->len - 1 + pass;
    b->kv_len[r->slot] = pass ? last : r->drafted;
    if (!pass) add_rows(b, r->slot, r->token + r->drafted, s->o.spec + 1, last - r->drafted, 1);
    else if (pass < depth_limit(s, r)) add_rows(b, r->slot, r->token + last, 1, 0, 1);
}

/* Passes of a step: 0: the draft model takes in what is new; 1 .. spec - 1: it guesses on; spec: the model's. */
static void fill_rows(const server *s, step_rows *b, int32_t pass) {
    b->count = b->outs = b->is_tree = b->prompts = b->decoding = b->same = 0;
    for (int32_t i = 0; i < s->o.batch; i++) {
        request *r = s->slot[i];
        b->q_len[i] = b->kv_len[i] = b->decodes[i] = 0;
        if (!r || !r->rows) continue;
        b->decodes[i] = decodes(r);
        b->kv_len[i] = r->cached;
        if (pass == s->o.spec) add_text(s, b, r);
        else if (decodes(r)) add_guess(s, b, r, pass);
        else if (pass == 0) add_rows(b, i, r->token + r->cached, r->rows, 0, 0);
        if (!decodes(r)) b->prompts++;
        else b->same = b->decoding++ && b->same != b->q_len[i] ? 0 : b->q_len[i];
    }
}

/* The tables of layers whose cache is a ring of so many pages name the latest ones of each request: those that all
   layers have, and so may share. */
static void fill_ring(const server *s, const step_rows *b, int32_t *table, int32_t columns) {
    for (int32_t i = 0; i < s->o.batch && columns; i++) {
        int32_t last = (b->kv_len[i] - 1) / s->o.page;
        for (int32_t p = last < columns ? 0 : last - columns + 1; p <= last; p++) {
            table[(int64_t)i * columns + p % columns] = s->table[(int64_t)i * s->columns + p];
        }
    }
}

/* Guesses are drawn with the random numbers that the model will use: then both often draw the same. */
static void take_guesses(const server *s, const step_rows *b, int32_t pass, const float *logits) {
    for (int32_t i = 0; i < s->o.batch; i++) {
        request *r = s->slot[i];
        if (!b->q_len[i] || !decodes(r)) continue;
        if (pass == 0) r->drafted = r->len;
        r->token[r->len + pass] = choose(s, r, r->len + pass, logits);
        logits += s->vocab;
    }
}

/* The logits of a node say which token follows it; returns the child that holds it, r->nodes: none. The first branch
   has its keys in the slots, and so the logits in the bits, of plain decoding: there it is the next token, and the
   request may be complete. A side branch has not: what it says is only a hint of the drafts to come. */
static int32_t follow(const server *s, request *r, int32_t node, const float *logits) {
    int is_first_branch = r->depth[node] == node;
    if (is_first_branch) r->hints = 0;
    int32_t token = choose(s, r, r->len + r->hints, logits);
    r->token[r->len + r->hints++] = token;
    if (is_first_branch) {
        r->cached += node > 0;
        r->len++;
        r->hints = 0;
        r->complete = r->len == r->max_len || token == s->o.stop[0] || token == s->o.stop[1];
    }
    return find_child(r, node, token);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int server_open(server *s, arena **mem) {
    const serve_options *o = &s->o;
    if (o->batch < 1 || o->batch > 1024 || o->chunk < 1 || o->chunk > 1 << 16 || o->page < 0 || o->page > 1 << 16 ||
        o->pages < 0 || o->context < 1 || o->spec < 0 || o->spec >= MAX_NODES || !(o->temperature >= 0) ||
        !(o->top_p >= 0 && o->top_p <= 1)) return fail(s->error, "an option is out of range");
    s->columns = pages_of(s, o->context + o->spec);
    if ((int64_t)s->columns * o->batch > INT32_MAX) return fail(s->error, "too many pages");
    if (!o->page || !o->pages) s->o.pages = s->columns * o->batch;
    s->free_pages = o->pages;
    s->slot = need(mem, o->batch, sizeof *s->slot);
    s->table = need(mem, (int64_t)o->batch * s->columns, sizeof *s->table);
    s->page = need(mem, o->pages, sizeof *s->page);
    s->page_token = need(mem, (int64_t)o->pages * o->page, sizeof *s->page_token);
    s->candidate = need(mem, s->vocab, sizeof *s->candidate);
    return 0;
}

static void server_close(server *s) {
    for (int32_t i = 0; i < s->requests; i++) release(s->request[i]->mem);
    free(s->request);
}

static void rows_open(step_rows *b, int32_t slots, int64_t most, arena **mem) {
    int32_t **per_slot[] = { &b->q_len, &b->kv_len, &b->decodes }, **per_row[] = { &b->token, &b->shift, &b->out_row };
    for (int i = 0; i < 3; i++) *per_slot[i] = need(mem, slots, sizeof(int32_t));
    for (int i = 0; i < 3; i++) *per_row[i] = need(mem, most, sizeof(int32_t));
}

#endif
