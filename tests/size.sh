# size.sh - the budgets of the headers and kernels, which keep them files that one can read. Prints the lines of the
# test protocol.
# Run from the repository root.
CC=${CC:-cc}
header=attn.h
out=$(mktemp -d "${TMPDIR:-/tmp}/attn-size.XXXXXX") || exit 1
trap 'rm -rf "$out"' EXIT
trap 'exit 1' HUP INT TERM
passed=0
failed=0
skipped=0

# budget NAME FOUND LIMIT
budget() {
    if [ -n "$2" ] && [ "$2" -le "$3" ]; then
        passed=$((passed + 1))
        echo "ok   size: $1 ($2, at most $3)"
    else
        failed=$((failed + 1))
        echo "FAIL size: $1 (${2:-nothing found}, at most $3)"
    fi
}

skip() {
    skipped=$((skipped + 1))
    echo "skip size: $1: $2"
}

# none NAME FILE: FILE lists offences
none() {
    if [ -s "$2" ]; then
        sed 's/^/  /' "$2" | head -n 10
    fi
    budget "$1" "$(awk 'END { print NR }' "$2")" 0
}

sources() {
    find . -path ./build -prune -o -path ./.git -prune -o -type f \
        \( -name '*.[ch]' -o -name '*.cc' -o -name '*.cu' -o -name '*.sh' -o -name '*.py' -o -name Makefile \) -print
}

# Code without comments, text and preprocessor lines, so that the semicolons left are statements.
code_only() {
    awk '
    {
        line = $0
        text = ""
        while (length(line) > 0) {
            if (comment) {
                i = index(line, "*/")
                if (!i) { line = ""; break }
                line = substr(line, i + 2)
                comment = 0
            } else if (substr(line, 1, 2) == "/*") {
                comment = 1
                line = substr(line, 3)
            } else if (substr(line, 1, 2) == "//") {
                line = ""
            } else if (match(line, /^"([^"\\]|\\.)*"/) || match(line, /^\047([^\047\\]|\\.)*\047/)) {
                text = text "0"
                line = substr(line, RLENGTH + 1)
            } else {
                text = text substr(line, 1, 1)
                line = substr(line, 2)
            }
        }
        if (macro || text ~ /^[ \t]*#/) {
            macro = $0 ~ /\\$/
            text = ""
        }
        print NR ": " text
    }' "$1"
}

# One statement a line: after a semicolon only a closing brace may follow; the head of a for loop has its own.
second_statements() {
    code_only "$1" | sed 's/for ([^;]*;[^;]*;/for (/' |
        awk '/;[ \t]*[^ \t}]/ || /;.*;/' | grep -v -E '^[0-9]+: *(case .*|default): *[^;]*; *break; *$'
}

budget "lines of $header" "$(awk 'END { print NR }' $header)" 5000
sources | while IFS= read -r file; do
    awk -v file="$file" 'length($0) > 120 { print file ":" NR ": " length($0) " columns" }' "$file"
done >"$out/wide"
none "lines above 120 columns" "$out/wide"
sources | grep -v Makefile | while IFS= read -r file; do
    grep -n -H "$(printf '\t')" "$file"
    grep -n -H ' $' "$file"
done >"$out/blanks"
none "tabs and trailing blanks" "$out/blanks"
for file in $header attn_cuda.h kernels/attn_params.h kernels/*.cu; do
    second_statements "$file" | sed "s|^|$file:|"
done >"$out/second"
none "second statements on a line of the headers and kernels" "$out/second"

sed '/end of header/q' $header >"$out/api.h"
budget "public functions" "$(grep -c '^ATTN_API' "$out/api.h")" 40
budget "public structs" "$(grep -c '^typedef struct attn_[a-z]' "$out/api.h")" 14
[ "$(grep -c '^ATTN_API' "$out/api.h")" -ge 15 ] || none "ATTN_API functions were not found" $header

# Every anchor of the contents is a heading exactly once, and no heading is missing from the contents.
for file in $header attn_cuda.h; do
    sed -n '/CONTENTS/,/^ *$/p' $file | grep -o '>>[a-z0-9_]*' | sort >"$out/contents"
    grep -o -E '^(   |/\* -+ )>>[a-z0-9_]+' $file | grep -o '>>.*' | sort >"$out/headings"
    diff "$out/contents" "$out/headings"
    [ -s "$out/contents" ] || echo "no contents"
done >"$out/anchors"
none "anchors that differ between the contents and the headings" "$out/anchors"

budget "lines of attn_cuda.h" "$(awk 'END { print NR }' attn_cuda.h)" 2500
budget "lines of the longest kernel fragment" "$(awk 'FNR > n { n = FNR } END { print n }' kernels/*.cu)" 600
budget "lines of all kernels" "$(cat kernels/*.cu | awk 'END { print NR }')" 5000
grep -n -E '^ *# *include' kernels/*.cu kernels/attn_params.h | sed 's/:.*include */: /' | while IFS= read -r line; do
    name=$(echo "$line" | sed -n 's/.*: "\(.*\)".*/\1/p')
    [ -n "$name" ] && [ -f "kernels/$name" ] || echo "$line"
done >"$out/outside"
none "files outside of kernels/ that kernels include" "$out/outside"

grep -E '^#[ ]*include' $header |
    grep -v -E '<(stddef|stdint|string|immintrin|[a-z0-9]*intrin|cpuid|intrin|arm_neon)\.h>' >"$out/includes"
none "headers included beyond stddef, stdint, string and intrinsics" "$out/includes"

grep -E '^#[ ]*include' attn_cuda.h |
    grep -v -E '"(attn\.h|kernels/[a-z_.]*)"|<(stdio|stdlib|dlfcn|intrin)\.h>' >"$out/includes"
none "headers that attn_cuda.h includes beyond attn.h, kernels, stdio, stdlib and dlfcn" "$out/includes"
[ "$(sed -n '1s/.*\(v[0-9.a-z-]*\).*/\1/p' $header)" = "$(sed -n '1s/.*\(v[0-9.a-z-]*\).*/\1/p' attn_cuda.h)" ] ||
    echo "the titles of the headers differ" >"$out/titles"
touch "$out/titles"
none "versions that differ" "$out/titles"

title=$(sed -n '1s/.*v\([0-9]*\)\.\([0-9]*\)\.\([0-9]*\).*/\1 \2 \3/p' $header)
macro=$(sed -n 's/^#define ATTN_VERSION \([0-9]*\).*/\1/p' $header)
echo "$title" | awk -v macro="$macro" '$1 * 10000 + $2 * 100 + $3 != macro + 0 || NF != 3' >"$out/version"
none "differences between the title and ATTN_VERSION" "$out/version"

# Processor time, not elapsed time. A machine that others keep busy takes up to twice as long for the same, so the time
# of tests/cases.c is taken before and after it: 0.65 s on a quiet machine.
seconds_for() {
    sh -c "$CC -std=c99 -O2 -c -o $out/$1.o $2 && times" >"$out/time"
    awk 'NR == 2 { split($1, t, "[ms]"); print t[1] * 60 + t[2] }' "$out/time"
}

before=$(seconds_for cases tests/cases.c)
for try in 1 2 3 4 5; do # others come and go between the two
    taken=$(seconds_for impl tests/compile/impl.c)
    after=$(seconds_for cases tests/cases.c)
    seconds=$(echo "$taken $before $after" |
        awk '{ usual = ($2 + $3) / 2; slower = usual > 0.65 ? usual / 0.65 : 1; print int($1 / slower + 0.999) }')
    [ "$seconds" -le 5 ] && break
    before=$after
done
budget "seconds to compile at -O2" "$seconds" 5
if [ "$(uname -m)" != x86_64 ]; then
    skip "bytes of code" "the budget is for x86-64"
elif ! command -v size >/dev/null 2>&1; then
    skip "bytes of code" "no size"
else
    budget "bytes of code" "$(size "$out/impl.o" | awk 'NR == 2 { print $1 }')" 300000
    $CC -std=c99 -O2 -DATTN_NO_SIMD -c -o "$out/scalar.o" tests/compile/impl.c
    budget "bytes of code with ATTN_NO_SIMD" "$(size "$out/scalar.o" | awk 'NR == 2 { print $1 }')" 80000
fi

echo "size: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
