# instructions.sh DIRECTORY - how many instructions the leaves take for a unit of work, counted by valgrind: a check
# without a clock that none got slower than it was. AVX2 and portable C; valgrind has no AVX-512. Prints the lines of
# the test protocol. Run from the repository root, with the objects of attn.h and the oracle in DIRECTORY/obj.
CC=${CC:-cc}
out=$1/instructions
passed=0
failed=0
skipped=0

finish() {
    echo "instructions: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

skip() {
    skipped=$((skipped + 1))
    echo "skip instructions: $1"
}

mkdir -p "$out"
[ "$(uname -sm)" = "Linux x86_64" ] || { skip "the bounds are those of Linux on x86-64"; finish; }
[ "${OPT:--O2}" = -O2 ] || { skip "the bounds are those of -O2"; finish; }
command -v callgrind_annotate >/dev/null 2>&1 || { skip "no valgrind"; finish; }
case $(echo __clang_major__ __GNUC__ | "$CC" -E -P - 2>/dev/null) in
14\ * | "__clang_major__ 12") ;;
*) skip "the bounds are those of gcc 12 and clang 14"; finish ;;
esac
if ! "$CC" -O2 -o "$out/count" bench/count.c "$1/obj/attn.o" "$1/obj/ref.o" -lm -lpthread ||
    ! valgrind -q --tool=callgrind --callgrind-out-file="$out/calls" "$out/count" >"$out/units"; then
    failed=1
    echo "FAIL instructions: bench/count.c does not build or run"
    finish
fi
callgrind_annotate --inclusive=yes --threshold=100 "$out/calls" | tr -d , >"$out/functions"

# at_most CASE FUNCTION BOUND: instructions in FUNCTION, and what it calls, for 1000 units of CASE
at_most() {
    units=$(sed -n "s/^$1 //p" "$out/units")
    if [ -z "$units" ]; then
        skip "$1 $2: this processor does not have it"
        return
    fi
    found=$(awk -v "name=:$2[. ]" -v "units=$units" '
        $0 ~ name { sum += $1 }
        END { if (sum) printf "%d", 1000 * sum / units }' "$out/functions")
    if [ -n "$found" ] && [ "$found" -le "$3" ]; then
        passed=$((passed + 1))
        echo "ok   instructions: $1 $2 ($found for 1000, at most $3)"
    else
        failed=$((failed + 1))
        echo "FAIL instructions: $1 $2 (${found:-nothing found} for 1000, at most $3)"
    fi
}

# A unit is a multiply-add, of scores or of values; of a plan a request. Bounds: what gcc 12 or clang 14 made, and a
# tenth.
at_most prompt_avx2 counted_prompt_avx2 350
at_most prompt_avx2 attn__lane_scores_vec 138
at_most prompt_avx2 attn__lane_values_vec 145
at_most prompt_avx2 attn__lane_weights_vec 15
at_most decode_avx2 counted_decode_avx2 520
at_most verify_avx2 counted_verify_avx2 590
at_most prompt_scalar counted_prompt_scalar 13500
at_most decode_scalar counted_decode_scalar 5800
at_most plan counted_plan 810000
finish
