# compile.sh [all] [use|gcc|clang|targets|cuda]... - the ways in which a program can take the headers in. Without a
# part: each of them. all: every combination; without it what `make test` has time for: one optimised build for each
# compiler, and no code where the parser alone decides.
#   use      translation units, options, C and C++, symbols, sections, the example of the manual
#   gcc      warnings at every optimisation level and language version
#   clang    the same
#   targets  other systems and processors, and no C library at all, with clang alone
#   cuda     attn_cuda.h: warnings, languages, other systems, symbols, one file, the program of its manual
# SIM: folder of the simulated CUDA driver, if any. OBJ: folder of attn.o and attn_cuda.o, built with $CC. Prints the
# lines of the test protocol. Compilers that are missing are skipped by name. Run from the repository root.
CC=${CC:-cc}
CXX=${CXX:-c++}
WARN="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror"
dir=tests/compile
all=
if [ "${1:-}" = all ]; then
    all=yes
    shift
fi
# For tests of how the files fit together, which the vector code does not change.
small=-DATTN_NO_SIMD
[ -z "$all" ] || small=
out=$(mktemp -d "${TMPDIR:-/tmp}/attn-compile.XXXXXX") || exit 1
trap 'rm -rf "$out"' EXIT
trap 'exit 1' HUP INT TERM
passed=0
failed=0
skipped=0

ok() {
    passed=$((passed + 1))
    echo "ok   $1"
}

bad() {
    failed=$((failed + 1))
    if [ -s "$out/text" ]; then
        sed 's/^/  /' "$out/text" | head -n 20
    fi
    echo "FAIL $1"
}

skip() {
    skipped=$((skipped + 1))
    echo "skip $1: $2"
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# try NAME COMMAND...
try() {
    name=$1
    shift
    if "$@" >"$out/text" 2>&1; then
        ok "$name"
    else
        bad "$name"
    fi
}

# build_all COMPILER... : build_run where all is asked for, else the compiler's front end only
build_all() {
    if [ -n "$all" ]; then
        build_run "$@"
    else
        "$@" -fsyntax-only
    fi
}

# build_run COMPILER... : the command gets -o PROGRAM appended, then PROGRAM runs
build_run() {
    rm -f "$out/program"
    "$@" -o "$out/program" || return 1
    "$out/program"
    status=$?
    [ "$status" -eq 0 ] || echo "exit status $status"
    return "$status"
}

# ---- use ------------------------------------------------------------------------------------------------------------

two_units() {
    $CC $WARN -std=c99 -c -o "$out/two_impl.o" $dir/two_impl.c &&
        $CC $WARN -std=c99 -c -o "$out/use.o" $dir/two_use.c &&
        build_run $CC "$out/use.o" "$out/two_impl.o"
}

two_languages() {
    $CXX $WARN -std=c++11 -c -o "$out/use.o" $dir/two_use.cc && build_run $CXX "$out/use.o" "$out/two_impl.o"
}

# A header without the implementation defines nothing, so the link of a lone user must fail.
lone_user() {
    ! $CC -o "$out/program" $dir/two_use.c
}

only_attn_symbols() {
    nm -g "$out/impl.o" | awk 'NF == 3 { print $3 }' | sed 's/^_//' >"$out/names"
    grep -q '^attn_forward$' "$out/names" || return 1
    ! grep -v '^attn_[a-z]' "$out/names"
}

# memcpy and its family, and what position-independent or hardened builds add. No malloc, no stdio, no libm.
only_string_calls() {
    nm -u "$out/impl.o" | awk '{ print $NF }' >"$out/names"
    ! grep -v -x -E '_?(memcpy|memmove|memset|memcmp|strlen|_?_stack_chk_fail|_GLOBAL_OFFSET_TABLE_)' "$out/names"
}

# Constant tables of pointers lie in .data.rel.ro under PIC: the loader writes them once, the program never.
no_mutable_state() {
    size -A "$out/impl.o" >"$out/sections" || return 1
    grep -q '^\.text' "$out/sections" || return 1
    ! awk '$1 ~ /^\.(data|bss|tdata|tbss)/ && $1 !~ /^\.data\.rel\.ro/ && $2 > 0 { print; bad = 1 } END { exit !bad }' \
        "$out/sections"
}

part_use() {
    try "compile: C99, one file" build_run $CC $WARN -std=c99 $dir/c99.c
    try "compile: C11, one file" build_all $CC $WARN -std=c11 $dir/c99.c
    try "compile: two files, one implements" two_units
    try "compile: no flags at all" build_run $CC $dir/c99.c
    if have "${CXX%% *}"; then
        try "compile: C++11, one file" build_run $CXX $WARN -std=c++11 $dir/cxx11.cc
        if $CXX -std=c++20 -fsyntax-only -x c++ /dev/null >/dev/null 2>&1; then
            # a designated initialiser leaves members out on purpose
            try "compile: C++20, one file" build_all $CXX $WARN -Wno-missing-field-initializers -std=c++20 $dir/cxx20.cc
        else
            skip "compile: C++20, one file" "$CXX has no -std=c++20"
        fi
        try "compile: C++ calls an implementation in C" two_languages
    else
        for name in "C++11, one file" "C++20, one file" "C++ calls an implementation in C"; do
            skip "compile: $name" "no $CXX"
        done
    fi
    try "compile: included four times" build_run $CC $WARN -std=c99 $small $dir/twice.c
    try "compile: header, later the implementation" build_run $CC $WARN -std=c99 $small $dir/header_then_impl.c
    try "compile: the header alone defines nothing" lone_user
    try "compile: two private copies (ATTN_STATIC)" build_run $CC $WARN -std=c99 $small $dir/static_a.c \
        $dir/static_b.c
    try "compile: ATTN_NO_SIMD" build_run $CC $WARN -std=c99 $dir/no_simd.c
    try "compile: ATTN_API of the caller" build_run $CC $WARN -std=c99 $small $dir/own_api.c
    try "compile: without atomics, the lanes take stripes" without_atomics
    for opt in -O0 -O2; do
        if ! have nm || ! have size || ! implementation $opt; then
            skip "compile: symbols and sections $opt" "no nm, no size, or no object"
            continue
        fi
        try "compile: only attn_ symbols are exported $opt" only_attn_symbols
        try "compile: only string.h is called $opt" only_string_calls
        try "compile: no mutable static storage $opt" no_mutable_state
    done
    if have tcc; then
        try "compile: tcc" build_run tcc $dir/c99.c
    else
        skip "compile: tcc" "no tcc"
    fi
    part_manual
}

# implementation -O0|-O2: $out/impl.o; what was built before is taken again
implementation() {
    case $1 in
        -O0) cp "$out/two_impl.o" "$out/impl.o" ;;
        *) cp "${OBJ:-none}/attn.o" "$out/impl.o" 2>/dev/null || $CC $1 -c -o "$out/impl.o" $dir/impl.c ;;
    esac
}

# ---- a compiler without atomics ---------------------------------------------------------------------------------

# Lanes then take fixed stripes of the tasks.
without_atomics() {
    $CC -std=c99 -O1 $small -U__GCC_ATOMIC_INT_LOCK_FREE -o "$out/stripes" $dir/impl.c tests/properties.c \
        tests/ref.c tests/cases.c -lm -lpthread || return 1
    "$out/stripes" "number of lanes" >"$out/text" && grep '^ok ' "$out/text" >/dev/null
}

# ---- the example of the manual --------------------------------------------------------------------------------------

# extract_example HEADER FILE: the program stands between the heading >>example and the next heading, indented. What it
# prints stands in its comments: // prints: TEXT
extract_example() {
    awk '/^\*\// || /end of header/ { exit }
         /^   >>example/ { on = 1; next }
         on && /^   >>/ { exit }
         on { sub(/^ */, ""); print }' "$1" | sed -n '/^#define ATTN_IMPLEMENTATION/,$p' >"$2"
    grep -q 'int main' "$2"
}

run_example() {
    empty=$out/empty
    rm -rf "$empty"
    mkdir "$empty" || return 1
    extract_example attn.h "$empty/prog.c" || { echo "no program under >>example"; return 1; }
    cp attn.h "$empty/" || return 1
    (cd "$empty" && "$@" prog.c -o prog && ./prog >printed) || return 1
    sed -n 's|.*// prints:* *||p' "$empty/prog.c" >"$empty/promised"
    if [ ! -s "$empty/promised" ]; then
        echo "the example does not say what it prints"
        return 1
    fi
    diff "$empty/promised" "$empty/printed"
}

# What the warnings say does not depend on how the program is linked, so it is built once.
part_manual() {
    try "compile: the example of the manual, plain $CC" run_example $CC
    try "compile: the example of the manual, all warnings" $CC $WARN -std=c99 -fsyntax-only "$out/empty/prog.c"
}

# ---- gcc, clang -----------------------------------------------------------------------------------------------------

# silent CC OPT STD: this compiler, without a word. OPT may be -fsyntax-only
silent() {
    if have "${1%% *}"; then
        try "compile: $1 -std=$3 $2" $1 -std=$3 $2 $WARN -c -o "$out/object.o" $dir/impl.c
    else
        skip "compile: $1 -std=$3 $2" "no ${1%% *}"
    fi
}

# flags NAME CC FLAG...: an object without a word
flags() {
    name=$1
    shift
    try "compile: $name" "$@" -std=c99 $WARN -c -o "$out/object.o" $dir/impl.c
}

# matrix CC CXX: levels and standards, each at least once.
matrix() {
    if [ -n "$all" ]; then
        for level in -O0 -O2 -Ofast; do
            silent $1 $level c99
        done
        silent $1 -O0 gnu11
        silent "$2 -x c++" -O0 c++11
        silent "$2 -x c++" -O2 c++11
        flags "$1 -fPIC" $1 -O0 -fPIC
    else
        silent $1 -O2 c99
        silent $1 -fsyntax-only gnu11
        level=-O2   # what gcc warns of depends on it, what clang warns of does not
        [ $1 = gcc ] || level=-O0
        silent "$2 -x c++" $level c++11
    fi
    flags "$1 ATTN_NO_SIMD" $1 -O1 -DATTN_NO_SIMD
    flags "$1 ATTN_STATIC" $1 -O0 -DATTN_STATIC
    case $(uname -m) in
        x86_64)
            flags "$1 -march=x86-64-v3" $1 -O0 -mavx2 -mfma -mf16c
            flags "$1 -mavx512f" $1 -O0 -mavx512f -mavx512bw
            ;;
        *)
            skip "compile: $1 -march=x86-64-v3" "this is not x86-64"
            skip "compile: $1 -mavx512f" "this is not x86-64"
            ;;
    esac
}

part_gcc() {
    if have gcc && ! gcc --version | grep -qi clang; then
        matrix gcc g++
    else
        skip "compile: gcc" "no gcc"
    fi
}

part_clang() {
    if have clang; then
        matrix clang clang++
    else
        skip "compile: clang" "no clang"
    fi
}

# ---- targets --------------------------------------------------------------------------------------------------------

# Has clang this target? An empty file, and not /dev/null, which need not be what it was.
has_target() {
    : >"$out/empty.c"
    clang --target="$1" -ffreestanding -c -o "$out/t.o" "$out/empty.c" >/dev/null 2>&1
}

# target HOW TRIPLE FLAGS... : with the headers of the compiler and the shim of string.h, nothing of any system. HOW is
# a level for a processor, -fsyntax-only for one more system on it. C++ is never more than that.
target() {
    c_how=$1
    triple=$2
    shift 2
    if ! has_target "$triple"; then
        skip "compile: $triple" "this clang has no such target"
        return
    fi
    for std in c99 c++11; do
        language=c
        how=$c_how
        [ $std = c99 ] || { language=c++; how=-fsyntax-only; }
        try "compile: $triple -std=$std" clang --target="$triple" "$@" -ffreestanding -nostdlibinc \
            -I$dir/freestanding -x $language -std=$std $how $WARN -c -o "$out/t.o" $dir/impl.c
    done
}

part_targets() {
    if have gcc; then
        try "compile: gcc without a C library" gcc -std=c99 -O1 $WARN -ffreestanding -c -o "$out/t.o" $dir/impl.c
    else
        skip "compile: gcc without a C library" "no gcc"
    fi
    if ! have clang; then
        skip "compile: targets" "no clang"
        return
    fi
    level=-O0
    [ -z "$all" ] || level=-O1
    target -fsyntax-only x86_64-linux-gnu
    target $level i686-linux-gnu
    target $level x86_64-pc-windows-msvc
    target -fsyntax-only i686-pc-windows-msvc
    target -fsyntax-only aarch64-pc-windows-msvc
    target -fsyntax-only x86_64-w64-windows-gnu
    target -fsyntax-only x86_64-apple-macos11
    target -fsyntax-only arm64-apple-macos11
    target $level aarch64-linux-gnu
    target -fsyntax-only aarch64-linux-android21
    target $level armv7a-linux-gnueabihf
    target $level thumbv7em-none-eabi -mfloat-abi=soft
    target $level wasm32-unknown-unknown
    target $level riscv64-linux-gnu
    target $level s390x-linux-gnu
}

# ---- cuda -----------------------------------------------------------------------------------------------------------

cuda_silent() {
    if have "${1%% *}"; then
        try "compile: attn_cuda.h, $1 -std=$3 $2" $1 -std=$3 $2 $WARN -c -o "$out/object.o" $dir/cuda_impl.c
    else
        skip "compile: attn_cuda.h, $1 -std=$3 $2" "no ${1%% *}"
    fi
}

# cuda_target TRIPLE: with the headers of the compiler and shims for the C library
cuda_target() {
    if ! has_target "$1"; then
        skip "compile: attn_cuda.h, $1" "this clang has no such target"
        return
    fi
    for std in c99 c++11; do
        language=c
        [ $std = c99 ] || language=c++
        try "compile: attn_cuda.h, $1 -std=$std" clang --target="$1" -ffreestanding -nostdlibinc -I$dir/hosted \
            -x $language -std=$std -fsyntax-only $WARN $dir/cuda_impl.c
    done
}

# $out/impl.o; what was built before is taken again
cuda_implementation() {
    cp "${OBJ:-none}/attn_cuda.o" "$out/impl.o" 2>/dev/null || $CC -c -o "$out/impl.o" $dir/cuda_impl.c
}

# The linker is given nothing but the C library.
cuda_two_units() {
    cuda_implementation && build_run $CC $WARN -std=c99 $dir/cuda_use.c "$out/impl.o"
}

# That it builds is shown by cuda_example.
cuda_dist() {
    sh tools/dist.sh "$out/dist" || return 1
    ! grep -n '#include "kernels' "$out/dist/attn_cuda.h" || return 1
    ls "$out/dist" | wc -l | grep -q -w 2
}

# The program of the manual, in one folder with a release. It says so if it finds no GPU or no NVRTC.
cuda_example() {
    sh tools/dist.sh "$out/dist" && extract_example attn_cuda.h "$out/dist/prog.c" || return 1
    (cd "$out/dist" && $CC $WARN -std=c99 prog.c -o prog && LD_LIBRARY_PATH=$sim ./prog >printed) || return 1
    sed -n 's|.*// prints:* *||p' "$out/dist/prog.c" >"$out/dist/promised"
    [ -s "$out/dist/promised" ] || return 1
    grep '^no N' "$out/dist/printed" || diff "$out/dist/promised" "$out/dist/printed"
}

part_cuda() {
    code=-fsyntax-only
    [ -z "$all" ] || code=-O3
    cuda_silent gcc -O0 c99
    cuda_silent gcc $code gnu11
    cuda_silent "g++ -x c++" $code c++11
    cuda_silent "gcc -DATTN_STATIC" -O0 c99
    cuda_silent clang -O0 c99
    cuda_silent "clang++ -x c++" $code c++11
    cuda_silent "clang -DATTN_STATIC" $code c99
    if have clang; then
        cuda_target x86_64-pc-windows-msvc
        cuda_target aarch64-pc-windows-msvc
        cuda_target i686-pc-windows-msvc
        cuda_target x86_64-w64-windows-gnu
        cuda_target aarch64-linux-gnu
        cuda_target arm64-apple-macos11
        cuda_target aarch64-linux-android21
        cuda_target wasm32-unknown-unknown
    else
        skip "compile: attn_cuda.h, targets" "no clang"
    fi
    try "compile: attn_cuda.h, two files, one implements" cuda_two_units
    try "compile: attn_cuda.h in one file" cuda_dist
    sim=${SIM:-}:${LD_LIBRARY_PATH:-}
    try "compile: the example of attn_cuda.h" cuda_example
    if $CC -E -I/usr/local/cuda/include -include cuda.h -x c /dev/null >/dev/null 2>&1; then
        try "compile: attn_cuda.h beside cuda.h" $CC -std=c99 -I/usr/local/cuda/include -fsyntax-only \
            $dir/cuda_with_cuda_h.c
    else
        skip "compile: attn_cuda.h beside cuda.h" "no cuda.h"
    fi
    if have nm && have size && cuda_implementation; then
        try "compile: attn_cuda.h, only attn_ symbols are exported" only_attn_symbols
        try "compile: attn_cuda.h, no mutable static storage" no_mutable_state
    else
        skip "compile: attn_cuda.h, symbols and sections" "no nm, no size, or no object"
    fi
    if have tcc; then
        try "compile: attn_cuda.h, tcc" build_run tcc $dir/cuda_use.c $dir/cuda_impl.c
    else
        skip "compile: attn_cuda.h, tcc" "no tcc"
    fi
}

# ---------------------------------------------------------------------------------------------------------------------

for part in ${*:-use gcc clang targets cuda}; do
    "part_$part"
done
echo "compile: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
