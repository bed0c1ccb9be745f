# simulate.sh DIRECTORY - the tests of AMX and AVX-512 on machines without them: attn.h with the tiles of amx_sim.h and
# the intrinsics of avx512_sim.h in place of the processor's. A few lines of a copy change: what configures the tiles,
# what the compiler may use, VNNI's instruction, and the answer what the machine has. Prints the lines of the test
# protocol. Run from the repository root.
CC=${CC:-cc}
out=$1/simulate
passed=0
failed=0
skipped=0

finish() {
    echo "simulate: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

skip() {
    skipped=$((skipped + 1))
    echo "skip simulate: $1"
    finish
}

[ "$(uname -sm)" = "Linux x86_64" ] || skip "attn.h uses AMX on Linux on x86-64"
if grep -q ' amx_bf16' /proc/cpuinfo; then
    skip "this processor has it, so the tests themselves run on it"
fi
grep -q ' avx2' /proc/cpuinfo || skip "this processor lacks AVX2, which the simulation is made of"
printf '#define ATTN_IMPLEMENTATION\n#include "attn.h"\nATTN__HAS_AMX\n' >"$1/simulate_asked.c"
"$CC" -E -I. "$1/simulate_asked.c" 2>/dev/null | tail -n 1 | grep -q '^1$' || skip "this compiler has no AMX"

rm -rf "$out"
mkdir -p "$out/tests/compile"
cp tests/*.c tests/*.h "$out/tests"
cp tests/compile/impl.c "$out/tests/compile"
if grep -q ' avx512_vnni' /proc/cpuinfo; then
    sims='-include tests/amx_sim.h'
    changes=3
    sed -e 's/__asm__ volatile("ldtilecfg.*/(void)attn__tiles_amx;/' \
        -e 's/if ((seven\[3\] & amx) != amx.*/return ATTN_ISA_AMX;/' attn.h >"$out/attn.h"
else
    sims='-include tests/avx512_sim.h -include tests/amx_sim.h'
    changes=6
    sed -e 's/__asm__ volatile("ldtilecfg.*/(void)attn__tiles_amx;/' \
        -e 's/ATTN__TARGET(".*avx512f[^"]*")/ATTN__TARGET("avx2,fma,f16c")/' \
        -e 's/__asm__("vpdpbusd.*/sum = sim_dot4(sum, a, b);/' \
        -e 's/if ((seven\[1\] & avx512) != avx512.*/return ATTN_ISA_AMX;/' attn.h >"$out/attn.h"
fi
if [ "$(diff attn.h "$out/attn.h" | grep -c '^>')" -ne $changes ]; then
    failed=1
    echo "FAIL simulate: $changes lines of attn.h should have changed"
    finish
fi

# In the copy: build OBJECT FILE FLAGS...
build() {
    # shellcheck disable=SC2086
    (cd "$out" && "$CC" -O2 -I. -w $sims -o "$@") >"$out/build.text" 2>&1
}

# run PROGRAM NAMES OBJECTS...: the tests with NAMES in their names, or all
run() {
    program=$1
    which=$2
    shift 2
    build "$program" "tests/$program.c" impl.o "$@" -lm -lpthread
    (cd "$out" && "./$program" ${which:+"$which"}) >"$out/$program.text" 2>&1
    sed '$d' "$out/$program.text"
    tests=$(grep -c '^ok  ' "$out/$program.text")
    passed=$((passed + tests))
    failed=$((failed + $(grep -c '^FAIL ' "$out/$program.text")))
    skipped=$((skipped + $(grep -c '^skip ' "$out/$program.text")))
    if [ "$tests" -eq 0 ] || ! tail -n 1 "$out/$program.text" | grep -q "^$program: .* skipped$"; then
        failed=$((failed + 1))
        tail -n 3 "$out/build.text" "$out/$program.text" | sed 's/^/  /'
        echo "FAIL simulate: $program does not build, run to its end or test anything"
    fi
}

for name in ref cases; do
    build $name.o "tests/$name.c" -c
done
build impl.o tests/compile/impl.c -c
case $sims in
    *avx512*) names='' chunks='trap 24' ;;
    *) names=amx chunks=amx ;;
esac
run attention "$names" ref.o cases.o
run properties "$chunks" ref.o cases.o
run skip "$names"
run sparse amx
finish
