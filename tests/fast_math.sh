# fast_math.sh - the host's flags compile our code: whatever they allow a compiler to do, the bits must stay.
# tests/ofast.c prints a hash per instruction set and case; each flag set below must print what -O2 prints, compiler by
# compiler, and without a warning. Prints the lines of the test protocol. Run from the repository root. Without an
# argument: gcc alone, where there is one, and the strongest flags together.
WARN="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror"
out=$(mktemp -d "${TMPDIR:-/tmp}/attn-fast-math.XXXXXX") || exit 1
trap 'rm -rf "$out"' EXIT
trap 'exit 1' HUP INT TERM
passed=0
failed=0
skipped=0

# run NAME COMPILER FLAGS...
run() {
    name=$1
    shift
    "$@" $WARN -o "$out/program" tests/ofast.c >"$out/$name.text" 2>&1 || { head -n 5 "$out/$name.text"; return 1; }
    "$out/program" >"$out/$name"
}

# same NAME REFERENCE ISA
same() {
    grep "^$3 " "$out/$1" >"$out/a"
    grep "^$3 " "$out/$2" >"$out/b"
    if [ -s "$out/b" ] && cmp -s "$out/a" "$out/b"; then
        passed=$((passed + 1))
        echo "ok   fast-math: $1 $3"
    else
        failed=$((failed + 1))
        diff "$out/b" "$out/a" | sed 's/^/  /' | head -n 10
        echo "FAIL fast-math: $1 $3"
    fi
}

# variant COMPILER NAME FLAGS...: against the -O2 program of that compiler
variant() {
    compiler=$1
    name="$1 $2"
    shift 2
    rm -f "$out/$name"
    if ! run "$name" "$compiler" "$@"; then
        failed=$((failed + 1))
        echo "FAIL fast-math: $name does not build or run"
        return
    fi
    for isa in $isas; do
        if grep -q "^$isa " "$out/$compiler -O2"; then
            same "$name" "$compiler -O2" "$isa"
        else
            skipped=$((skipped + 1))
            echo "skip fast-math: $name $isa: this machine lacks it"
        fi
    done
}

case $(uname -m) in
    aarch64 | arm64) isas='scalar neon' ;;
    *) isas='scalar avx2 avx512 amx' ;;
esac
compilers='gcc clang'
if [ $# -eq 0 ] && command -v gcc >/dev/null 2>&1; then
    compilers=gcc
fi
for compiler in $compilers; do
    if ! command -v $compiler >/dev/null 2>&1; then
        skipped=$((skipped + 1))
        echo "skip fast-math: $compiler: no $compiler"
        continue
    fi
    if ! run "$compiler -O2" $compiler -std=c99 -O2; then
        failed=$((failed + 1))
        echo "FAIL fast-math: $compiler -O2 does not build or run"
        continue
    fi
    fma=
    if [ "$(uname -m)" = x86_64 ] && grep -q ' fma ' /proc/cpuinfo 2>/dev/null; then
        fma=-mfma
    fi
    variant $compiler "-Ofast $fma" -std=gnu11 -Ofast $fma
    if [ $# -ne 0 ]; then
        variant $compiler -Ofast -std=gnu11 -Ofast
        variant $compiler "-O3 -funsafe-math-optimizations" -std=gnu11 -O3 -funsafe-math-optimizations
        [ -z "$fma" ] || variant $compiler "-O2 -mfma" -std=gnu11 -O2 -mfma
        # the functions of this header then belong to the host: they are parsed before we can ask for IEEE rules
        [ "$(uname -m)" != x86_64 ] ||
            variant $compiler "-Ofast after immintrin.h" -std=c99 -Ofast -include immintrin.h
    fi
    variant $compiler -O0 -std=c99 -O0
done
echo "fast-math: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
