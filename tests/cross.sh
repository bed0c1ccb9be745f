# cross.sh TRIPLE [all] - tests built with TRIPLE-gcc for another processor, under qemu's emulation of it: those that
# see every leaf, type and head dim (all: the whole programs, which take an hour), and fast-math. For AArch64 also the
# assembly of the NEON leaves: their inner loops keep to the registers. What is missing is skipped by name. Prints the
# lines of the test protocol. Run from the repository root: sh tests/cross.sh aarch64-linux-gnu; s390x-linux-gnu is
# big-endian.
triple=$1
all=$2
cpu=${triple%%-*}
CC="$triple-gcc"
out=build/cross/$triple
WARN="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror"
parts=

for tool in "$CC" "qemu-$cpu"; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        echo "skip cross $triple: no $tool"
        echo "cross: 0 passed, 0 failed, 1 skipped"
        exit 0
    fi
done
rm -rf "$out"
mkdir -p "$out/log"

# report PART STATUS TEXT: one more test of the script itself
report() {
    [ "$2" -eq 0 ] && line="ok   $3" || line="FAIL $3"
    echo "$line" | tee -a "$out/log/$1.log"
}

# program NAME [FILTER]...: its tests whose names contain a filter; none: all. maths and plan have attn.h inside.
program() {
    name=$1
    shift
    objects="$out/attn.o $out/ref.o $out/cases.o"
    case $name in maths | plan) objects= ;; esac
    # shellcheck disable=SC2086
    $CC -std=c99 -O2 $WARN -static -I. -o "$out/$name" "tests/$name.c" $objects -lm -lpthread
    [ $# -gt 0 ] && [ -z "$all" ] || set -- ""
    for filter in "$@"; do
        part="$name-$(echo "$filter" | tr -c 'a-zA-Z0-9\n' -)"
        parts="$parts $part"
        [ ! -x "$out/$name" ] || sh tests/run.sh "$name" "$out/log/$part.log" "qemu-$cpu" "$out/$name" "$filter"
    done
}

# hashes FLAGS...: bits of all leaves and cases with these flags
hashes() {
    $CC -std=gnu11 "$@" -static -o "$out/ofast" tests/ofast.c && "qemu-$cpu" "$out/ofast"
}

# registers COMPILER...: the innermost loops of 16 multiply-adds and more, in the leaves that compute scores and sum
# values, touch no stack. What also selects (values under a mask that hold a NaN) does not count.
registers() {
    "$@" -std=c99 -O2 -S -o "$out/attn.s" tests/compile/impl.c || return 1
    awk '
        /^attn__/ { leaf = $1; sub(/[.:].*/, "", leaf) }
        /^attn__/ && leaf !~ /^attn__(lane|row)_(scores|values)_vec$/ { leaf = "" }
        /^\.L[A-Za-z0-9_]*:/ { sub(/:.*/, "", $1); line[$1] = n; next }
        /^[ \t]+[a-z]/ {
            text[++n] = $0
            if (leaf == "" || $1 !~ /^(b|cb|tb)/ || !($NF in line)) next
            from = line[$NF] + 1
            inner = last < from
            last = n
            for (i = from; i <= n; i++) {
                fused += text[i] ~ /fmla/
                stack += text[i] ~ /\[sp/
                selects += text[i] ~ /[ \t](bsl|bit|bif)[ \t]/
            }
            if (inner && fused >= 16 && !selects) {
                printf "  %s: %d instructions for %d multiply-adds", leaf, n - from + 1, fused
                print stack ? ", the stack is used" : ""
                found[leaf] = 1
                bad += stack > 0
            }
            fused = stack = selects = 0
        }
        END {
            for (leaf in found) leaves++
            exit bad > 0 || leaves != 4
        }' "$out/attn.s"
}

for object in tests/compile/impl tests/ref tests/cases; do
    # shellcheck disable=SC2086
    $CC -std=c99 -O2 $WARN -c -o "$out/$(basename $object | sed s/impl/attn/).o" $object.c
done
program attention "every head dim" "every GQA" "huge" "every mixture" "softcap"
program properties "a neighbour" "the last value"
program skip "a NaN spoils"
program quant "256 codes" "65536 inputs" "against the oracle"
program latent
program maths
program modes

parts="$parts own"
hashes -O2 >"$out/hashes"
hashes -Ofast >"$out/hashes-Ofast"
[ -s "$out/hashes" ] && cmp "$out/hashes" "$out/hashes-Ofast"
report own $? "cross $triple: -Ofast has the bits of -O2"
if [ "$cpu" = aarch64 ]; then
    grep -q '^neon' "$out/hashes"
    report own $? "cross $triple: NEON is in use"
    registers "$CC"
    report own $? "cross $triple: gcc keeps the sums of the NEON leaves in registers"
    if clang --target="$triple" --version >/dev/null 2>&1; then
        registers clang --target="$triple" -ffreestanding -nostdlibinc -Itests/compile/freestanding
        report own $? "cross $triple: clang keeps the sums of the NEON leaves in registers"
    else
        echo "skip cross $triple: clang's registers: no clang" | tee -a "$out/log/own.log"
    fi
fi
# shellcheck disable=SC2086
sh tests/sum.sh "$out/log" $parts
