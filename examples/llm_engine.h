/* llm_engine.h - an inference engine in one header and two that it includes: requests, pages, drafts, steps.

   A program defines ATTN_IMPLEMENTATION and includes this file, as llm.c does. engine_open takes options and a model;
   engine_submit queues a prompt, which is a request that gets continued; engine_step works on all of them: requests
   join and leave, prompts come in chunks beside others that decode, beginnings that are equal share pages, which stay
   for later requests, and when pages run out the youngest request waits again. Requests and stats are there to be read.

   One promise runs through all of it: the text and the logits of a request are the same bits whatever happens around
   it. Rows of a prompt are computed in phase PREFILL, all others in phase DECODE. attn.h makes a row's bits follow from
   its own tokens and the phase, and here every output of a matrix is one call of dot() on one row. So neither
   batches, chunks, shared pages, threads, frames nor speculation show in a text. (While skipping they may: the rows of
   a tile decide together what is left out.) */
#ifndef LLM_ENGINE_H
#define LLM_ENGINE_H

#include "llm_net.h"

/* ---- pages: shared by requests that begin alike ------------------------------------------------------------------ */

static int32_t pages_of(const engine *e, int32_t keys) {
    return e->o.page ? (keys + e->o.page - 1) / e->o.page : 0;
}

static int32_t *table_of(engine *e, const request *r) {
    return e->table + (int64_t)r->slot * e->columns;
}

/* The kept page that follows `parent` and holds these tokens, or -1. */
static int32_t find_page(engine *e, int32_t parent, const int32_t *token) {
    size_t bytes = (size_t)e->o.page * sizeof *token;
    for (int32_t p = 0; p < e->o.pages; p++) {
        if (!e->page[p].kept || e->page[p].parent != parent) continue;
        if (!memcmp(e->page_token + (int64_t)p * e->o.page, token, bytes)) return p;
    }
    return -1;
}

static int32_t use_page(engine *e, int32_t p) {
    if (e->page[p].users++ == 0) e->free_pages--;
    return p;
}

/* A request gives back its pages from the last to the first. So of two kept pages of a prompt without users the later
   one is older and thrown away first: a kept page's parent is always kept. */
static void drop_page(engine *e, int32_t p) {
    if (--e->page[p].users > 0) return;
    e->page[p].used = e->page[p].kept ? ++e->clock : 0;
    e->free_pages++;
}

/* A page for new keys: an empty one, else the kept one that was used longest ago; -1: all have users. */
static int32_t take_page(engine *e) {
    int32_t oldest = -1;
    for (int32_t p = 0; p < e->o.pages && e->free_pages; p++) {
        if (e->page[p].users) continue;
        if (oldest < 0 || e->page[p].used < e->page[oldest].used) oldest = p;
    }
    if (oldest < 0) return -1;
    e->page[oldest].kept = 0;
    return use_page(e, oldest);
}

/* A request starts behind the pages that hold the beginning of its prompt. The last token is always computed, to have
   its logits. */
static void share_pages(engine *e, request *r) {
    int32_t *table = table_of(e, r), most = e->o.page && !r->all_logits ? (r->prompt_len - 1) / e->o.page : 0, p = -1;
    while (r->pages < most && (p = find_page(e, p, r->token + r->pages * e->o.page)) >= 0) {
        table[r->pages++] = use_page(e, p);
    }
    r->kept = r->pages;
    r->cached = r->drafted = r->pages * e->o.page;
    r->shared += r->cached;
    e->stats.shared_tokens += r->cached;
}

/* From now on others find the pages that this prompt has filled. Where another request was faster its page replaces
   this one, which has the same bits. */
static void keep_pages(engine *e, request *r) {
    int32_t *table = table_of(e, r), size = e->o.page;
    for (; size && (r->kept + 1) * size <= least(r->cached, r->prompt_len); r->kept++) {
        int32_t parent = r->kept ? table[r->kept - 1] : -1, p = table[r->kept];
        const int32_t *token = r->token + r->kept * size;
        int32_t twin = find_page(e, parent, token);
        if (twin >= 0) {
            table[r->kept] = use_page(e, twin);
            drop_page(e, p);
        } else {
            e->page[p].kept = 1;
            e->page[p].parent = parent;
            memcpy(e->page_token + (int64_t)p * size, token, (size_t)size * sizeof *token);
        }
    }
}

/* Forgets what is kept of prompts, so that a measurement starts cold; an error while a request is not done. */
int engine_reset_prefixes(engine *e) {
    *e->error = 0;
    for (int32_t i = 0; i < e->requests; i++) {
        if (e->request[i]->state != DONE) return fail(e->error, "request %d is live: shared pages stay", (int)i);
    }
    memset(e->page, 0, (size_t)e->o.pages * sizeof *e->page);
    return 0;
}

/* ---- requests: they wait, run and leave; when pages run out the youngest waits again ----------------------------- */

/* A request that continues `prompt` by at most `count` tokens; NULL and e->error if it can never run. */
request *engine_submit(engine *e, const int32_t *prompt, int32_t prompt_len, int32_t count) {
    int32_t max_len = count < e->o.context - prompt_len ? prompt_len + count : e->o.context;
    *e->error = 0;
    if (prompt_len < 1 || count < 1 || prompt_len >= e->o.context) {
        fail(e->error, "a prompt of %d tokens and %d more, but the context has %d", (int)prompt_len, (int)count,
             (int)e->o.context);
    } else if (pages_of(e, max_len + e->o.spec) > e->o.pages) {
        fail(e->error, "%d tokens do not fit into %d pages", (int)max_len, (int)e->o.pages);
    }
    for (int32_t i = 0; i < prompt_len && !*e->error; i++) {
        if (prompt[i] < 0 || prompt[i] >= e->net[0].m->vocab) fail(e->error, "prompt[%d] is no token", (int)i);
    }
    if (*e->error) return NULL;
    request **list = realloc(e->request, ((size_t)e->requests + 1) * sizeof *list);
    if (!list) fail(e->error, "out of memory");
    if (!list) return NULL;
    arena *mem = NULL;
    request *r = need(&mem, 1, sizeof *r);
    r->token = need(&mem, (int64_t)max_len + MAX_NODES, sizeof *r->token);
    r->mem = mem;
    r->key = e->submitted++;
    memcpy(r->token, prompt, (size_t)prompt_len * sizeof *prompt);
    r->len = r->prompt_len = prompt_len;
    r->max_len = max_len;
    e->request = list;
    e->request[e->requests++] = r;
    return r;
}

/* Frees the requests that are done. A program that runs on calls it now and then; e->request has fewer entries then. */
void engine_forget_done(engine *e) {
    int32_t left = 0;
    for (int32_t i = 0; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state == DONE) release(r->mem);
        else e->request[left++] = r;
    }
    e->requests = left;
}

static void leave(engine *e, request *r, int is_done) {
    while (r->pages > 0) drop_page(e, table_of(e, r)[--r->pages]);
    e->slot[r->slot] = NULL;
    r->kept = r->cached = r->drafted = r->hints = r->rows = 0;
    r->state = is_done ? DONE : WAITING;
}

/* Who waits joins in order, if there is a slot, and pages for its tokens beside what those who run still lack for
   theirs, and one more for each of them. Those who run are older than those who wait. */
static void join(engine *e) {
    int32_t slot = 0, left = e->free_pages, running = 0;
    for (int32_t i = 0; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state == DONE) continue;
        left -= pages_of(e, r->len + e->o.spec) - r->pages;
        if (r->state == WAITING) {
            while (slot < e->o.batch && e->slot[slot]) slot++;
            if (slot == e->o.batch || (running && e->o.page && left < 0)) return;
            r->state = RUNNING;
            r->slot = slot;
            e->slot[slot] = r;
            share_pages(e, r);
        }
        left--;
        running++;
    }
}

/* Pages for `keys` keys. When there is none left the youngest request goes back to wait: 0 if it is r itself. What it
   has generated is computed again later, in phase DECODE, which gives the same bits. */
static int grow(engine *e, request *r, int32_t keys) {
    while (r->pages < pages_of(e, keys)) {
        int32_t p = take_page(e), youngest = e->requests - 1;
        if (p >= 0) {
            table_of(e, r)[r->pages++] = p;
            continue;
        }
        while (e->request[youngest]->state != RUNNING) youngest--;
        request *last = e->request[youngest];
        leave(e, last, 0);
        last->sent_back++;
        e->stats.sent_back++;
        if (last == r) return 0;
    }
    return 1;
}

static int decodes(const request *r) {
    return r->len > r->prompt_len && r->cached == r->len - 1;
}

/* Decides on the rows of a step, apart from drafts: all that decode, oldest first, and as much of the prompts as the
   chunk takes. Returns 0 if nobody runs. */
static int schedule(engine *e) {
    int32_t left = e->o.chunk, any = 0;
    join(e);
    e->kind = 1;
    for (int32_t i = 0; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state != RUNNING) continue;
        int32_t is_prompt = r->cached < r->prompt_len, end = is_prompt ? r->prompt_len : r->len;
        int32_t rows = decodes(r) ? 1 : least(left, end - r->cached);
        if (!grow(e, r, decodes(r) ? r->len + e->o.spec : r->cached + rows)) continue;
        if (!decodes(r)) left -= rows;
        if (rows && is_prompt) e->kind = 0;
        r->rows = rows;
        any |= rows > 0;
    }
    return any;
}

/* ---- the next token ---------------------------------------------------------------------------------------------- */

/* 0 .. 1, the same for the same request and position in every run. */
static double random_number(uint64_t seed, uint64_t key, uint64_t position) {
    uint64_t z = (seed * 0x9E3779B97F4A7C15u) ^ (key * 0xD1342543DE82EF95u) ^ (position * 0xAF251AF3B0F025B5u);
    for (int i = 0; i < 3; i++) z = (z ^ (z >> 29)) * 0xBF58476D1CE4E5B9u + 0x94D049BB133111EBu;
    return (double)(z >> 11) / 9007199254740992.0;
}

static int32_t best_token(const float *logits, int32_t n, int32_t except) {
    int32_t best = except == 0;
    for (int32_t i = best + 1; i < n; i++) {
        if (logits[i] > logits[best] && i != except) best = i;
    }
    return best;
}

static int compare_candidates(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->token - y->token;
}

/* Token number `position` of a request: the best, or one of the likely ones that together have top_p. */
static int32_t choose(engine *e, const request *r, int32_t position, const float *logits) {
    int32_t vocab = e->net[0].m->vocab, best = best_token(logits, vocab, -1), n = 0, i = 0;
    double sum = 0, kept = 0;
    if (e->o.temperature <= 0) return best;
    for (int32_t t = 0; t < vocab; t++) {
        float p = expf((logits[t] - logits[best]) / e->o.temperature);
        sum += (double)p;
        if (p > 1e-6f) e->candidate[n++] = (candidate){ p, t };
    }
    qsort(e->candidate, (size_t)n, sizeof *e->candidate, compare_candidates);
    while (i < n && kept < (double)e->o.top_p * sum) kept += (double)e->candidate[i++].p;
    double at = random_number((uint64_t)e->o.seed, r->key, (uint64_t)position) * kept;
    for (n = i, i = 0; i + 1 < n; i++) {
        at -= (double)e->candidate[i].p;
        if (at < 0) break;
    }
    return e->candidate[i].token;
}

/* The next token follows from the right logits. Returns it; the request may be complete then. */
static int32_t append_token(engine *e, request *r, const float *logits) {
    int32_t given = r->len - r->prompt_len, is_given = given < r->forced_len;
    int32_t token = is_given ? r->forced[given] : choose(e, r, r->len, logits);
    r->token[r->len++] = token;
    r->hints = 0;
    e->stats.tokens++;
    r->complete = r->len == r->max_len || (!is_given && (token == e->o.stop[0] || token == e->o.stop[1]));
    return token;
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
static void add_path(engine *e, request *r, const int32_t *token, int32_t count) {
    for (int32_t at = 0, i = 0; i < count; i++) {
        int32_t child = find_child(r, at, token[i]);
        if (child > e->o.spec) return;
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
static int32_t depth_limit(const engine *e, const request *r) {
    return least(e->o.tree ? (e->o.spec + 1) / 2 : e->o.spec, r->max_len - r->len - 1);
}

/* Behind the hints, what came after the latest tokens when they were seen before in this text: the longest, then the
   latest match. */
static void draft_ngrams(engine *e, request *r, int32_t most) {
    int32_t n = r->len + r->hints, branches = 0, *tail = r->token + n;
    for (int32_t size = NGRAM_MAX; size >= NGRAM_MIN && most > 0; size--) {
        for (int32_t at = n - size - 1; at >= 0 && branches < (e->o.tree ? BRANCHES : 1); at--) {
            const int32_t *seen = r->token + at;
            if (*seen != tail[-size] || memcmp(seen, tail - size, (size_t)size * sizeof *seen)) continue;
            int32_t before = r->nodes, count = least(most, size); /* a short match is no reason for a long draft */
            for (int32_t i = 0; i < count; i++) tail[i] = seen[size + i]; /* where the text ends it repeats itself */
            add_path(e, r, r->token + r->len, r->hints + count);
            branches += r->nodes > before;
        }
    }
}

/* The tree of a request that decodes: hints are the beginning of every path; what is given needs no guesses. With more
   than one branch the step runs with the mask of a tree. */
static void draft(engine *e, request *r) {
    int32_t *path = r->token + r->len, given = r->len - r->prompt_len, most = depth_limit(e, r);
    r->nodes = 1;
    r->node[0] = path[-1];
    r->bits[0] = 1;
    if (given < r->forced_len) {
        add_path(e, r, r->forced + given, least(most, r->forced_len - given));
    } else if (e->nets == 1) {
        add_path(e, r, path, least(most, r->hints));
        draft_ngrams(e, r, most - r->hints);
    } else {
        add_path(e, r, path, most);
        for (int32_t d = r->hints; d < most && e->o.tree; d++) {
            int32_t first = path[d];
            path[d] = r->second[d - r->hints];
            add_path(e, r, path, d + 1);
            path[d] = first;
        }
    }
}

/* Guesses are drawn with the random numbers that the model will use: then both often draw the same. */
static void take_guesses(engine *e, const net *t) {
    const float *logits = t->buffer[LOGITS];
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!t->q_len[i]) continue;
        int32_t at = r->len + r->hints + e->pass;
        if (e->pass == 0) r->drafted = r->len;
        r->token[at] = choose(e, r, at, logits);
        r->second[e->pass] = best_token(logits, t->m->vocab, r->token[at]);
        logits += t->m->vocab;
    }
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

/* The slots come in their order. A row sees those of its request up to itself; nodes are not in such an order. */
static void add_rows(net *t, int32_t slot, const int32_t *token, int32_t count, int wants_logits) {
    for (int32_t i = 0; i < count; i++, t->rows++) {
        int32_t j = t->q_len[slot]++;
        if (wants_logits) t->out_row[t->outs++] = t->rows;
        t->token[t->rows] = token[i];
        t->shift[t->rows] = 0;
        t->kv_len[slot]++;
        for (int32_t w = 0; w < t->tree_words; w++) {
            t->tree[(int64_t)t->rows * t->tree_words + w] = w < j / 32 ? ~0u : w > j / 32 ? 0 : ~0u >> (31 - j % 32);
        }
    }
}

/* Rows that the model has to compute, and drafts behind the latest token. */
static void add_text(engine *e, net *t, request *r) {
    const int32_t *token = r->token + r->cached;
    r->outs = r->all_logits && r->len == r->prompt_len ? r->rows : r->cached + r->rows == r->len;
    r->first_out = t->outs;
    r->nodes = 1;
    r->bits[0] = 1;
    t->kv_len[r->slot] = r->cached;
    add_rows(t, r->slot, token, r->rows - r->outs, 0);
    add_rows(t, r->slot, token + r->rows - r->outs, r->outs, 1);
    if (!decodes(r)) return;
    draft(e, r);
    add_rows(t, r->slot, r->node + 1, r->nodes - 1, 1);
    for (int32_t j = 1, row = t->rows - r->nodes + 1; j < r->nodes; j++, row++) {
        t->shift[row] = r->depth[j] - j;
        t->is_tree |= r->depth[j] != j;
        if (e->o.tree) t->tree[(int64_t)row * t->tree_words] = r->bits[j];
    }
}

/* Of the draft model. Step -1: it takes in what is new, a fixed number of rows of each request, of which those behind
   the new ones are filling; steps 0, 1, ..: what follows its best guess. */
static void add_guess(engine *e, net *t, const request *r, int32_t step) {
    int32_t known = r->len + r->hints, more = known - r->drafted - 1;
    if (step < 0) {
        t->kv_len[r->slot] = r->drafted;
        add_rows(t, r->slot, r->token + r->drafted, more, 0);
        add_rows(t, r->slot, r->token + known - 1, 1, 1);
        add_rows(t, r->slot, r->token + known, e->o.spec - more, 0);
    } else if (step < depth_limit(e, r) - r->hints - 1) {
        t->kv_len[r->slot] = known + step;
        add_rows(t, r->slot, r->token + known + step, 1, 1);
    }
}

/* The rows of a pass, and the mode that an engine would call it. Passes of a step: 0: the draft model takes in what is
   new; 1 .. spec - 1: it guesses on; spec: it takes in the rows of prompts; spec + 1: the model's. */
static attn_mode fill_pass(engine *e, net *t) {
    int32_t text = 0, decoding = 0, same = -1, drafting = e->pass < e->o.spec, last = e->pass > e->o.spec;
    t->rows = t->outs = t->is_tree = 0;
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        t->q_len[i] = t->kv_len[i] = t->phase[i] = 0;
        if (!r || !r->rows) continue;
        t->phase[i] = r->cached < r->prompt_len ? ATTN_PREFILL : ATTN_DECODE;
        if (last) add_text(e, t, r);
        else if (drafting && decodes(r)) add_guess(e, t, r, e->pass - 1);
        else if (!drafting && !decodes(r)) {
            t->kv_len[i] = r->cached;
            add_rows(t, i, r->token + r->cached, r->rows, 0);
        }
        if (!decodes(r)) text++;
        else if (decoding++) same = same == t->q_len[i] ? same : 0;
        else same = t->q_len[i];
    }
    if (drafting) return e->pass ? ATTN_MODE_DRAFT_DECODE : ATTN_MODE_DRAFT_EXTEND_V2;
    if (!decoding || !last) return ATTN_MODE_EXTEND;
    return text || !same ? ATTN_MODE_MIXED : same == 1 ? ATTN_MODE_DECODE : ATTN_MODE_TARGET_VERIFY;
}

/* Plans a pass and looks its tokens up. */
static int begin_pass(engine *e, net *t) {
    attn_mode mode = fill_pass(e, t);
    if (!t->rows) return 0;
    if (attention_plan(e, t, mode, mode == ATTN_MODE_DRAFT_DECODE ? e->pass - 1 : 0)) return -1;
    e->stats.passes++;
    for (int32_t r = 0; r < t->rows; r++) {
        float *x = t->buffer[RESIDUAL] + (int64_t)r * t->m->dim;
        const float *row = matrix_row(&t->m->part[EMBEDDING], t->token[r], x);
        if (row != x) memcpy(x, row, (size_t)t->m->dim * sizeof *x);
    }
    t->layer = 0;
    t->stage = MAKE_Q;
    return start_stage(e, t);
}

/* Where the text ends the model chooses the next token, and then walks down the tree while it holds what is chosen. The
   first branch has its keys in the slots, and so the logits in the bits, of plain decoding. A side branch has not: what
   it says is only a hint of the drafts to come, its first token apart, which the row before it has chosen. What is not
   accepted is not counted, and so overwritten. */
static void accept(engine *e, request *r, const float *logits) {
    int32_t vocab = e->net[0].m->vocab, at = 0;
    if (r->cached < r->prompt_len) e->stats.prompt_tokens += r->rows;
    if (!decodes(r)) r->drafted = r->cached + r->rows;
    r->cached += r->rows;
    keep_pages(e, r);
    for (int32_t i = r->outs; i > 0 && e->on_logits; i--) {
        e->on_logits(e->user, r, r->cached - i, logits + (int64_t)(r->outs - i) * vocab);
    }
    if (r->cached < r->len || !r->outs) return;
    r->steps += r->len > r->prompt_len;
    e->stats.drafts += r->nodes - 1;
    while (at < r->nodes && !r->complete) {
        const float *row = logits + (int64_t)(r->outs - 1 + at) * vocab;
        int32_t token, is_first_branch = r->depth[at] == at;
        if (is_first_branch && at && e->on_logits) e->on_logits(e->user, r, r->cached, row);
        if (is_first_branch) {
            r->cached += at > 0;
            token = append_token(e, r, row);
        } else {
            token = choose(e, r, r->len + r->hints, row);
            r->token[r->len + r->hints++] = token;
        }
        at = find_child(r, at, token);
    }
}

static void end_step(engine *e, net *t) {
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!r || !r->rows) continue;
        accept(e, r, t->buffer[LOGITS] + (int64_t)r->first_out * t->m->vocab);
        r->rows = 0;
        if (r->complete) leave(e, r, 1);
    }
    for (int32_t lane = 0; lane < e->pool.lanes; lane++) {
        int64_t *sum = (int64_t *)&e->stats.counters[e->kind], *one = (int64_t *)&t->counters[lane];
        for (size_t i = 0; i < sizeof *t->counters / sizeof *one; i++) sum[i] += one[i];
        memset(one, 0, sizeof *t->counters);
    }
    e->stats.steps[e->kind]++;
    e->stats.rows[e->kind] += t->rows;
}

enum { NOTHING_TO_DO = 0, STEP_COMPLETE, TIME_IS_UP };

/* Works until a step is complete or now_ms() reaches the deadline (0: none); then the next call goes on. -1: e->error
   has a sentence, and the engine is of no use any more. */
int engine_step(engine *e, double deadline) {
    double start = now_ms();
    int32_t last = e->o.spec + 1, ran = 1;
    e->pool.deadline = deadline;
    if (e->pass < 0) {
        if (!schedule(e)) return NOTHING_TO_DO;
        e->pass = e->nets > 1 ? 0 : last;
    }
    while (e->pass >= 0) {
        net *t = &e->net[e->pass < last];
        ran = !t->rows && begin_pass(e, t) ? -1 : run_pass(e, t);
        if (ran <= 0) break;
        if (e->pass < e->o.spec) take_guesses(e, t);
        if (e->pass == last) end_step(e, t);
        e->pass = e->pass == last ? -1 : e->pass + 1;
        t->rows = 0;
    }
    e->stats.ms[e->kind] += now_ms() - start;
    return ran < 0 ? -1 : ran ? STEP_COMPLETE : TIME_IS_UP;
}

/* ---- opening and closing ----------------------------------------------------------------------------------------- */

options default_options(void) {
    return (options){ .batch = 4, .chunk = 256, .page = 16, .threads = 1, .kv = ATTN_F16, .top_p = 0.9f, .seed = 1,
                      .stop = { -1, -1 } };
}

void engine_close(engine *e) {
    if (!e) return;
    pool_close(&e->pool);
    for (int32_t n = 0; n < e->nets; n++) attention_close(e, &e->net[n]);
    for (int32_t i = 0; i < e->requests; i++) release(e->request[i]->mem);
    free(e->request);
    release(e->mem); /* e is in it */
}

static int check_options(engine *e, const model *m, const model *drafter) {
    options *o = &e->o;
    if (!o->context || o->context > m->max_len) o->context = m->max_len;
    if (o->batch < 1 || o->batch > 1024 || o->chunk < 1 || o->chunk > 1 << 16 || o->page < 0 || o->page > 1 << 16 ||
        o->pages < 0 || o->context < 1 || o->threads < 1 || o->threads > MAX_THREADS || o->spec < 0 ||
        o->spec >= MAX_NODES || (int)o->kv < ATTN_F32 || o->kv > ATTN_INT8 || !(o->temperature >= 0) ||
        !(o->top_p >= 0 && o->top_p <= 1)) {
        return fail(e->error, "an option is out of range");
    }
    if (drafter && drafter->vocab != m->vocab) {
        return fail(e->error, "the draft model has %d tokens, the model %d", (int)drafter->vocab, (int)m->vocab);
    }
    e->columns = pages_of(e, o->context + o->spec);
    if ((int64_t)e->columns * o->batch > INT32_MAX) return fail(e->error, "too many pages");
    if (!o->page || !o->pages) o->pages = e->columns * o->batch;
    e->free_pages = o->pages;
    e->most = (attn_mode_input){ .n = o->batch, .max_kv_len = o->context + o->spec };
    e->most.max_q_len = o->chunk > o->spec + 1 ? o->chunk : o->spec + 1;
    e->most.max_rows = o->chunk + (int64_t)o->batch * (o->spec + 1);
    return 0;
}

/* drafter: NULL, or a small model of the same tokens that guesses. NULL and a sentence if the options cannot work. */
engine *engine_open(const options *o, const model *m, const model *drafter, char *error) {
    arena *mem = NULL;
    engine *e = need(&mem, 1, sizeof *e);
    e->mem = mem;
    e->o = *o;
    e->pass = -1;
    e->nets = drafter && o->spec ? 2 : 1;
    int failed = check_options(e, m, drafter);
    pool_open(&e->pool, failed ? 1 : o->threads);
    if (!failed) {
        e->slot = need(&e->mem, e->o.batch, sizeof *e->slot);
        e->table = need(&e->mem, (int64_t)e->o.batch * e->columns, sizeof *e->table);
        e->page = need(&e->mem, e->o.pages, sizeof *e->page);
        e->page_token = need(&e->mem, (int64_t)e->o.pages * e->o.page, sizeof *e->page_token);
        e->candidate = need(&e->mem, m->vocab, sizeof *e->candidate);
        failed = net_open(e, &e->net[0], m) || (e->nets > 1 && net_open(e, &e->net[1], drafter));
    }
    memset(&e->stats, 0, sizeof e->stats);
    if (!failed) return e;
    memcpy(error, e->error, ERROR_BYTES);
    engine_close(e);
    return NULL;
}

#endif
