/* llm_main.c - the program of examples/llm.c: its options, one by one and wrong ones; what its report says. Each run is
   a process of its own. */
#define _POSIX_C_SOURCE 200809L
#include "test.h"

#define ATTN_IMPLEMENTED /* in attn_cuda.o */
#define ATTN_CUDA_IMPLEMENTED
#define main llm_main
#include "../examples/llm.c"
#undef main

#include <sys/wait.h>
#include <unistd.h>

static char folder[300], output[1 << 16];

static const char *path_of(const char *name) {
    static char path[4][400];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

/* Exit status of the program with these arguments, -1 if it crashed; `output` has what it wrote. */
static int run_program(const char *const *arguments) {
    char *argv[40] = { "llm" };
    int argc = 1, status = -1;
    FILE *file;
    pid_t child;
    size_t count;
    for (; arguments[argc - 1]; argc++) argv[argc] = (char *)arguments[argc - 1];
    fflush(stdout);
    child = fork();
    if (child < 0) abort();
    if (child == 0) {
        if (!freopen(path_of("output"), "w", stdout) || dup2(fileno(stdout), 2) < 0) _exit(99);
        exit(llm_main(argc, argv));
    }
    if (waitpid(child, &status, 0) != child) abort();
    file = fopen(path_of("output"), "r");
    if (!file) abort();
    count = fread(output, 1, sizeof output - 1, file);
    output[count] = 0;
    fclose(file);
    remove(path_of("output"));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define RUN(...) run_program((const char *const[]){ __VA_ARGS__, NULL })

static void write_file(const char *name, const void *bytes, size_t count) {
    FILE *file = fopen(path_of(name), "wb");
    if (!file || fwrite(bytes, 1, count, file) != count || fclose(file)) abort();
}

enum { VOCAB = 300, SEQ_LEN = 40 };

/* A llama2.c checkpoint of one layer, and its tokenizer: bytes, and pieces that no text has. */
static void write_llama2c(void) {
    static const int32_t sizes[7] = { 8, 12, 1, 2, 1, VOCAB, SEQ_LEN };
    static float weights[VOCAB * 8 + 3 * 8 + 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 12 + SEQ_LEN * 4];
    static char file[sizeof sizes + sizeof weights], pieces[4 + VOCAB * 20];
    char *at = pieces + 4;
    test_rng rng = { 1 };
    size_t i;
    for (i = 0; i < sizeof weights / sizeof *weights; i++) weights[i] = test_uniform(&rng);
    memcpy(file, sizes, sizeof sizes);
    memcpy(file + sizeof sizes, weights, sizeof weights);
    write_file("model.bin", file, sizeof file);
    for (i = 0; i < VOCAB; i++) {
        int32_t len = snprintf(at + 8, 12, "<%d>", (int)i);
        memcpy(at + 4, &len, 4);
        at += 8 + len;
    }
    write_file("tokenizer.bin", pieces, (size_t)(at - pieces));
}

static void test_every_option(void) {
    static const struct {
        const char *name, *value, *says;
    } cases[] = {
        { "--prompt", "PLAYER: ", "3 prompts" },   { "--tokens", "7", "14 tokens generated" },
        { "--temperature", "0", "generated" },     { "--top-p", "0.5", "generated" },
        { "--seed", "12", "generated" },           { "--batch", "1", "layers 1 3 5" },
        { "--chunk", "4", "6 steps with prompts" }, { "--page", "0", "ring of 272 keys" },
        { "--pages", "12", "pages of 16" },        { "--kv", "int8", "kv int8" },
        { "--threads", "2", "generated" },         { "--frame-budget-ms", "0.1", "frames of 0.1 ms" },
        { "--spec", "3", "drafts verified" },      { "--tree", NULL, "generated" },
        { "--cuda", NULL, "llm: attention on the CPU, because: " },
        { "--draft", "models/text.lm", "layers 0 2 4; layer: 4 heads on 2 kv heads" },
        { "--skip", "eps:0.02", "largest certificate" }, { "--skip", "factor:10,20", "tiles skipped" },
        { "--skip", "env", "in planning" },
        { "--model", "models/recall.lm", "models/recall.lm: 1.0 MB, 2 layers" }
    };
    size_t i, j;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status = RUN("--prompt", "Once upon ", "--tokens", "5", cases[i].name, cases[i].value, "--prompt",
                         "A day in ");
        CHECK(status == 0, "%s: exit status %d: %s", cases[i].name, status, output);
        CHECK(strstr(output, cases[i].says), "%s does not say \"%s\": %s", cases[i].name, cases[i].says, output);
    }
    write_llama2c();
    CHECK(RUN("--model", path_of("model.bin"), "--tokenizer", path_of("tokenizer.bin"), "--prompt", "Hey") == 0,
          "%s", output);
    CHECK(!strncmp(output, " Hey", 4) && strstr(output, "1 prompts of 5 tokens"), "%s", output); /* none is a piece */
    for (i = 0; i < OPTIONS; i++) {
        int known = !strcmp(table[i].name, "--tokenizer");
        for (j = 0; j < sizeof cases / sizeof *cases; j++) known |= !strcmp(table[i].name, cases[j].name);
        CHECK(known, "%s is not tested", table[i].name);
    }
    remove(path_of("model.bin"));
    remove(path_of("tokenizer.bin"));
}

/* A sentence that has a part of the wrong argument, or says what is wrong. */
static void test_wrong_options(void) {
    static const char *const cases[][3] = {
        { "--nonsense", NULL, "--nonsense" },     { "prompt", NULL, "prompt" },
        { "--tokens", NULL, "--tokens" },         { "--tokens", "many", "many" },
        { "--tokens", "5x", "5x" },               { "--tokens", "-5", "-5" },
        { "--tokens", "0", "0 more" },            { "--seed", "1e10", "1e10" },
        { "--batch", "0", "out of range" },       { "--chunk", "0", "out of range" },
        { "--page", "100000", "out of range" },   { "--pages", "1", "1 pages" },
        { "--threads", "1000", "out of range" },  { "--spec", "32", "out of range" },
        { "--top-p", "1.5", "out of range" },     { "--temperature", "nan", "nan" },
        { "--kv", "f64", "f64" },                 { "--skip", "eps:0.1x", "eps:0.1x" },
        { "--skip", "eps:-1", "layer.skip" },            { "--skip", "factor:3", "factor:3" },
        { "--model", "nothing.lm", "nothing.lm" }, { "--model", "README.md", "README.md" },
        { "--draft", "nothing.lm", "nothing.lm" },
        { "--tokenizer", "models/README.md", "models/README.md" }
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status = RUN("--prompt", "a town by the sea", cases[i][0], cases[i][1]);
        CHECK(status == 1, "%s %s: exit status %d", cases[i][0], cases[i][1] ? cases[i][1] : "", status);
        CHECK(strstr(output, cases[i][2]), "%s: \"%s\"", cases[i][0], output);
        CHECK(strlen(output) < 300 && strlen(output) > 10, "%s: \"%s\"", cases[i][0], output);
    }
    CHECK(RUN("--tokens", "5") == 1 && strstr(output, "--prompt"), "no prompt: %s", output);
}

static void test_report(void) {
    static const char *const parts[] = {
        "isa: ", "layers 0 2 4", "layers 1 3 5", "window_left", "ring of", "% of it in attention", "% in planning",
        "2.0 plans a pass", "tokens in a step of a request", "tiles skipped", "largest certificate", "shared pages",
        "in a second", "frames of"
    };
    char first[2000];
    size_t i;
    int32_t o;
    CHECK(RUN("--prompt", "She said that she said that ", "--tokens", "60", "--spec", "5", "--tree", "--skip",
              "eps:0.01", "--frame-budget-ms", "5") == 0, "%s", output);
    for (i = 0; i < sizeof parts / sizeof *parts; i++) {
        CHECK(strstr(output, parts[i]), "no \"%s\": %s", parts[i], output);
    }
    CHECK(RUN("--help") == 0, "--help");
    for (o = 0; o < OPTIONS; o++) CHECK(strstr(output, table[o].name), "--help does not name %s", table[o].name);
    CHECK(RUN("--prompt", "The mill ", "--tokens", "40", "--temperature", "0") == 0, "%s", output);
    snprintf(first, sizeof first, "%.*s", (int)(strstr(output, "\n\nmodels/") - output), output);
    CHECK(strlen(first) == 49, "a text of %d bytes", (int)strlen(first));
    CHECK(RUN("--prompt", "The mill ", "--tokens", "40", "--temperature", "0", "--spec", "7", "--threads", "2") == 0 &&
          !strncmp(output, first, strlen(first)), "another text: %s", output);
}

int main(int argc, char **argv) {
    const char *place = getenv("TMPDIR");
    test.only = argc > 1 ? argv[1] : NULL;
    setenv("CUDA_VISIBLE_DEVICES", "", 1); /* a device is the subject of another test */
    snprintf(folder, sizeof folder, "%s/attn-main.XXXXXX", place && strlen(place) < 250 ? place : "/tmp");
    if (!mkdtemp(folder)) abort();
    test_run("llm_main: every option does what it says", test_every_option);
    test_run("llm_main: wrong options give a sentence", test_wrong_options);
    test_run("llm_main: the report and the help are complete", test_report);
    rmdir(folder);
    return test_close("llm_main");
}
