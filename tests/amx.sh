# amx.sh DIRECTORY - the tests of AMX on machines without it: attn.h with amx_sim.h's tiles in place of the processor's.
# Two lines of a copy change: the one that configures the tiles, and the answer whether the machine has them. Prints the
# lines of the test protocol. Run from the repository root.
CC=${CC:-cc}
out=$1/amx
passed=0
failed=0
skipped=0

finish() {
    echo "amx: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

skip() {
    skipped=$((skipped + 1))
    echo "skip amx: $1"
    finish
}

[ "$(uname -sm)" = "Linux x86_64" ] || skip "attn.h uses AMX on Linux on x86-64"
if grep -q ' amx_bf16' /proc/cpuinfo; then
    skip "this processor has it, so the tests themselves run on it"
fi
grep -q ' avx512_vnni' /proc/cpuinfo || skip "this processor lacks the vector instructions beside it"
printf '#define ATTN_IMPLEMENTATION\n#include "attn.h"\nATTN__HAS_AMX\n' >"$1/amx_asked.c"
"$CC" -E -I. "$1/amx_asked.c" 2>/dev/null | tail -n 1 | grep -q '^1$' || skip "this compiler has no AMX"

rm -rf "$out"
mkdir -p "$out/tests/compile"
cp tests/*.c tests/*.h "$out/tests"
cp tests/compile/impl.c "$out/tests/compile"
sed -e 's/__asm__ volatile("ldtilecfg.*/(void)shapes;/' \
    -e 's/return attn__request_amx(.*) ? /return 1 ? /' attn.h >"$out/attn.h"
if [ "$(diff attn.h "$out/attn.h" | grep -c '^>')" -ne 2 ]; then
    failed=1
    echo "FAIL amx: two lines of attn.h should have changed"
    finish
fi

# In the copy: build OBJECT FILE FLAGS...
build() {
    (cd "$out" && "$CC" -O2 -I. -w -include tests/amx_sim.h -o "$@") >"$out/build.text" 2>&1
}

# run PROGRAM OBJECTS...: the tests with amx in their names
run() {
    program=$1
    shift
    build "$program" "tests/$program.c" impl.o "$@" -lm -lpthread
    (cd "$out" && "./$program" amx) >"$out/$program.text" 2>&1
    sed '$d' "$out/$program.text"
    tests=$(grep -c '^ok  ' "$out/$program.text")
    passed=$((passed + tests))
    failed=$((failed + $(grep -c '^FAIL ' "$out/$program.text")))
    skipped=$((skipped + $(grep -c '^skip ' "$out/$program.text")))
    if [ "$tests" -eq 0 ] || ! tail -n 1 "$out/$program.text" | grep -q "^$program: .* skipped$"; then
        failed=$((failed + 1))
        tail -n 3 "$out/build.text" "$out/$program.text" | sed 's/^/  /'
        echo "FAIL amx: $program does not build, run to its end or test anything"
    fi
}

for name in ref cases; do
    build $name.o "tests/$name.c" -c
done
build impl.o tests/compile/impl.c -c
run attention ref.o cases.o
run properties ref.o cases.o
run skip
finish
