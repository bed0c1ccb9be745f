/* recording.c - recordings as text.

     attn conformance 1
     device NVIDIA H200                      driver, capability, simulated and date: a line each
     entry HASH CODE BYTES PACKED BASE NAME  CODE 0: it ran and gave so many bytes
     message why it did not run              if CODE is not 0
     AAAA...                                 else PACKED bytes in base 64, 81 a line
     end COUNT SUM                           FNV-1a of all that stands above

   Many results are those of a related form but for a few lanes. So an entry may have a base, the number of an earlier
   one with as many bytes, or -: what is packed is the exclusive or with it. Packed, a run of up to 256 zeros is a zero
   and its length less one. */
#include "conformance.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 81, LINE = 4400, MOST_BYTES = 1 << 20 };

conf_entry *conf_new_entry(conf_recording *r) {
    if (r->count == r->capacity) {
        r->capacity = r->capacity ? 2 * r->capacity : 256;
        r->entry = (conf_entry *)realloc(r->entry, (size_t)r->capacity * sizeof *r->entry);
        if (!r->entry) abort();
    }
    memset(&r->entry[r->count], 0, sizeof *r->entry);
    return &r->entry[r->count++];
}

void conf_drop_entry(conf_recording *r) {
    conf_entry *e = &r->entry[--r->count];
    free(e->message);
    free(e->out);
}

void conf_recording_close(conf_recording *r) {
    while (r->count) conf_drop_entry(r);
    free(r->entry);
    memset(r, 0, sizeof *r);
}

/* ---- base 64 --------------------------------------------------------------------------------------------------- */

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* 3 bytes are 4 digits; the last ones are padded with zeros. */
static size_t digits_of(size_t bytes) {
    return (bytes + 2) / 3 * 4;
}

static void encode(char *to, const uint8_t *from, size_t bytes) {
    size_t i, k;
    for (i = 0; i < bytes; i += 3) {
        uint32_t v = (uint32_t)from[i] << 16;
        if (i + 1 < bytes) v |= (uint32_t)from[i + 1] << 8;
        if (i + 2 < bytes) v |= from[i + 2];
        for (k = 0; k < 4; k++) *to++ = digits[v >> (18 - 6 * k) & 63];
    }
    *to = 0;
}

static int decode(uint8_t *to, const char *from, size_t bytes) {
    size_t i, k;
    for (i = 0; i < bytes; i += 3) {
        uint32_t v = 0;
        for (k = 0; k < 4; k++) {
            const char *d = *from ? strchr(digits, *from) : NULL;
            if (!d) return -1;
            v = v << 6 | (uint32_t)(d - digits);
            from++;
        }
        for (k = 0; k < 3 && i + k < bytes; k++) to[i + k] = (uint8_t)(v >> (16 - 8 * k));
    }
    return *from ? -1 : 0;
}

/* ---- packing --------------------------------------------------------------------------------------------------- */

/* Twice as many bytes at most; ends when there are `enough`. */
static size_t pack(uint8_t *to, const uint8_t *from, const uint8_t *base, size_t bytes, size_t enough) {
    size_t n = 0, i, run;
    for (i = 0; i < bytes && n < enough; i += run) {
        uint8_t x = (uint8_t)(from[i] ^ (base ? base[i] : 0));
        to[n++] = x;
        for (run = 1; !x && run < 256 && i + run < bytes && from[i + run] == (base ? base[i + run] : 0); run++) {}
        if (!x) to[n++] = (uint8_t)(run - 1);
    }
    return n;
}

static int unpack(uint8_t *to, size_t bytes, const uint8_t *from, size_t packed, const uint8_t *base) {
    size_t n = 0, i = 0;
    memset(to, 0, bytes);
    while (i < packed && n < bytes) {
        uint8_t x = from[i++];
        if (!x && i == packed) return -1;
        to[n] = x;
        n += x ? 1 : (size_t)from[i++] + 1;
    }
    if (n != bytes || i != packed) return -1;
    for (i = 0; base && i < bytes; i++) to[i] ^= base[i];
    return 0;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

typedef struct writer {
    FILE *file;
    uint64_t sum;
} writer;

static void write_line(writer *w, const char *line) {
    w->sum = conf_hash_bytes(w->sum, line, strlen(line));
    fputs(line, w->file);
}

static void write_head(writer *w, const conf_recording *r) {
    char line[300];
    snprintf(line, sizeof line, "attn conformance 1\ndevice %s\n", r->device);
    write_line(w, line);
    snprintf(line, sizeof line, "capability %d\ndriver %d\nsimulated %d\ndate %s\n", r->capability, r->driver,
             r->simulated, r->date);
    write_line(w, line);
}

/* Related forms stand near each other, so only the last ones are tried. */
static int choose_base(const conf_recording *r, int index, uint8_t *packed) {
    enum { TRIED = 100 };
    const conf_entry *e = &r->entry[index];
    size_t least = pack(packed, e->out, NULL, e->bytes, SIZE_MAX);
    int i, best = -1, tried = 0;
    for (i = index - 1; i >= 0 && tried < TRIED && least > 0; i--) {
        const conf_entry *other = &r->entry[i];
        size_t n;
        if (other->code || other->bytes != e->bytes) continue;
        tried++;
        n = pack(packed, e->out, other->out, e->bytes, least);
        if (n >= least) continue;
        least = n;
        best = i;
    }
    return best;
}

static void write_bytes(writer *w, const uint8_t *from, size_t bytes) {
    char line[LINE];
    size_t i;
    for (i = 0; i < bytes; i += LINE_BYTES) {
        encode(line, from + i, bytes - i < LINE_BYTES ? bytes - i : LINE_BYTES);
        strcat(line, "\n");
        write_line(w, line);
    }
}

static void write_entry(writer *w, const conf_recording *r, int index) {
    const conf_entry *e = &r->entry[index];
    uint8_t *packed = (uint8_t *)calloc(2 * e->bytes + 1, 1);
    char line[LINE], number[16] = "-";
    int base = -1;
    size_t n = 0;
    if (!packed) abort();
    if (!e->code) {
        base = choose_base(r, index, packed);
        n = pack(packed, e->out, base < 0 ? NULL : r->entry[base].out, e->bytes, SIZE_MAX);
    }
    if (base >= 0) snprintf(number, sizeof number, "%d", base);
    snprintf(line, sizeof line, "entry %016" PRIx64 " %d %lu %lu %s %s\n", e->hash, e->code, (unsigned long)e->bytes,
             (unsigned long)n, number, e->name);
    write_line(w, line);
    snprintf(line, sizeof line, "message %s\n", e->message ? e->message : "");
    if (e->code) write_line(w, line);
    write_bytes(w, packed, n);
    free(packed);
}

int conf_save(const conf_recording *r, const char *path) {
    writer w = { NULL, 0 };
    int i, bad;
    w.file = fopen(path, "w");
    if (!w.file) return -1;
    write_head(&w, r);
    for (i = 0; i < r->count; i++) write_entry(&w, r, i);
    fprintf(w.file, "end %d %016" PRIx64 "\n", r->count, w.sum);
    bad = ferror(w.file);
    return fclose(w.file) || bad ? -1 : 0;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

typedef struct reader {
    FILE *file;
    char line[LINE];
    int number;
    uint64_t sum, sum_before;       /* with and without the line */
} reader;

/* Takes a line without its end; 0 at the end of the file, and when the last line is cut off. */
static int next_line(reader *in) {
    size_t n;
    if (!fgets(in->line, sizeof in->line, in->file)) return 0;
    n = strlen(in->line);
    if (!n || in->line[n - 1] != '\n') return 0;
    in->sum_before = in->sum;
    in->sum = conf_hash_bytes(in->sum, in->line, n);
    in->line[n - 1] = 0;
    in->number++;
    return 1;
}

/* What stands behind a word at the beginning of the line, or NULL. */
static const char *behind(const reader *in, const char *word) {
    size_t n = strlen(word);
    return !strncmp(in->line, word, n) && in->line[n] == ' ' ? in->line + n + 1 : NULL;
}

static int read_number(reader *in, const char *word, int *value) {
    const char *text = next_line(in) ? behind(in, word) : NULL;
    if (!text) return -1;
    *value = atoi(text);
    return 0;
}

static int read_text(reader *in, const char *word, char *to, size_t bytes) {
    const char *text = next_line(in) ? behind(in, word) : NULL;
    if (!text) return -1;
    snprintf(to, bytes, "%s", text);
    return 0;
}

static int read_head(reader *in, conf_recording *r) {
    if (!next_line(in) || strcmp(in->line, "attn conformance 1") != 0) return -1;
    return read_text(in, "device", r->device, sizeof r->device) || read_number(in, "capability", &r->capability) ||
           read_number(in, "driver", &r->driver) || read_number(in, "simulated", &r->simulated) ||
           read_text(in, "date", r->date, sizeof r->date) ? -1 : 0;
}

static int read_bytes(reader *in, uint8_t *to, size_t bytes) {
    size_t i;
    for (i = 0; i < bytes; i += LINE_BYTES) {
        size_t part = bytes - i < LINE_BYTES ? bytes - i : LINE_BYTES;
        if (!next_line(in) || strlen(in->line) != digits_of(part) || decode(to + i, in->line, part)) return -1;
    }
    return 0;
}

static int read_results(reader *in, const conf_recording *r, conf_entry *e, size_t packed, const char *base) {
    const uint8_t *from = NULL;
    uint8_t *bytes;
    int bad;
    if (strcmp(base, "-") != 0) {
        long index = strtol(base, NULL, 10);
        if (index < 0 || index >= r->count - 1 || r->entry[index].bytes != e->bytes) return -1;
        from = r->entry[index].out;
    }
    bytes = (uint8_t *)calloc(packed + 1, 1);
    if (!bytes) abort();
    bad = read_bytes(in, bytes, packed) || unpack(e->out, e->bytes, bytes, packed, from);
    free(bytes);
    return bad ? -1 : 0;
}

static int read_message(reader *in, conf_entry *e) {
    const char *text = next_line(in) ? behind(in, "message") : NULL;
    if (!text) return -1;
    e->message = (char *)malloc(strlen(text) + 1);
    if (!e->message) abort();
    memcpy(e->message, text, strlen(text) + 1);
    return 0;
}

static int read_entry(reader *in, conf_recording *r, const char *text) {
    conf_entry *e = conf_new_entry(r);
    unsigned long bytes, packed;
    char base[16];
    int at = 0;
    sscanf(text, "%16" SCNx64 " %d %lu %lu %15s %n", &e->hash, &e->code, &bytes, &packed, base, &at);
    if (!at || bytes > MOST_BYTES || packed > 2 * bytes) return -1;
    snprintf(e->name, sizeof e->name, "%s", text + at);
    e->bytes = bytes;
    e->out = (uint8_t *)calloc(bytes + 1, 1);
    if (!e->out) abort();
    return e->code ? read_message(in, e) : read_results(in, r, e, packed, base);
}

/* 0: the closing line stands there and is right. */
static int read_entries(reader *in, conf_recording *r) {
    char end[60];
    while (next_line(in)) {
        const char *text = behind(in, "entry");
        if (text) {
            if (read_entry(in, r, text)) return -1;
            continue;
        }
        snprintf(end, sizeof end, "end %d %016" PRIx64, r->count, in->sum_before);
        return strcmp(in->line, end) ? -1 : 0;
    }
    return -1;
}

int conf_load(conf_recording *r, const char *path, char *why, size_t why_bytes) {
    reader *in;
    int bad;
    memset(r, 0, sizeof *r);
    in = (reader *)calloc(1, sizeof *in);
    if (!in) abort();
    in->file = fopen(path, "r");
    if (!in->file) {
        free(in);
        snprintf(why, why_bytes, "%s: there is no such file", path);
        return 1;
    }
    bad = read_head(in, r) || read_entries(in, r);
    if (bad) snprintf(why, why_bytes, "%s: damaged or cut short at line %d", path, in->number);
    if (bad) conf_recording_close(r);
    fclose(in->file);
    free(in);
    return bad ? -1 : 0;
}
