/* embed.c - a kernel's text as pieces of C string literals: cc tools/embed.c -o embed; ./embed base.cu >base.cu.inc

   The result defines attn__cu_base, an array of pieces that ends with 0. A piece stays below the 4,095 characters that
   C99 promises for a literal and ends at a line end, so that a changed line changes one line. */
#include <stdio.h>
#include <string.h>

enum { PIECE = 3800, LINE = 400 };

/* The file's name without folders and what follows the first point. */
static void print_name(const char *path) {
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    printf("%.*s", (int)strcspn(name, "."), name);
}

/* One line as a literal. A question mark could be a trigraph, and compilers differ over bytes that are not ASCII. */
static int print_line(const char *line) {
    printf("    \"");
    for (; *line && *line != '\r' && *line != '\n'; line++) {
        if ((unsigned char)*line < ' ' || (unsigned char)*line > '~') return 1;
        if (*line == '"' || *line == '\\' || *line == '?') putchar('\\');
        putchar(*line);
    }
    printf("\\n\"");
    return 0;
}

int main(int argc, char **argv) {
    char line[LINE];
    size_t used = 0;
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (!file) {
        fprintf(stderr, "embed: needs one file that can be read\n");
        return 1;
    }
    printf("/* GENERATED from %s by tools/embed.c; `make kernels` writes it again. */\n", argv[1]);
    printf("static const char *const attn__cu_");
    print_name(argv[1]);
    printf("[] = {\n");
    while (fgets(line, sizeof line, file)) {
        size_t length = strlen(line);
        if (used) printf(used + length > PIECE ? ",\n" : "\n");
        used = used + length > PIECE ? length : used + length;
        if (length + 1 == sizeof line || print_line(line)) {
            fprintf(stderr, "embed: %s: a line is too long or not plain ASCII: %s\n", argv[1], line);
            return 1;
        }
    }
    printf(used ? ",\n    0\n};\n" : "    0\n};\n");
    fclose(file);
    return ferror(stdout) != 0;
}
