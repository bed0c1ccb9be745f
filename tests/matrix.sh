# matrix.sh - what `make matrix` and `make test-all` run beyond `make test`, step by step.
#   matrix.sh matrix|long  the names of the steps
#   matrix.sh STEP LOG     runs one; LOG gets the lines of the test protocol with the step's name in front
# A compiler, library or tool that is missing is a skip with a name. Run from the repository root, by make: a step that
# is a `make test` of its own shares make's jobs.
LINKED="api engine errors latent meta modes quant ring rope sliding_window sparse"
SHORT="$LINKED maths plan"
MOST="attention skip $SHORT"
LONGEST="properties cuda_attention"
SIMULATOR="sim_forms sim_checks sim_lanes sim_driver sim_kernels sim_conformance"
BOTH_SANITIZERS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
# Unrolled loops full of checks take clang a minute; without them it is a third of that.
ROLLED="-mllvm -pragma-unroll-threshold=1 -Wno-pass-failed"
# Headers of the kernel are the same for 32 bits; only gcc-multilib, which cannot stand beside compilers for other
# processors, would put them where gcc looks.
M32="-m32 -idirafter /usr/include/x86_64-linux-gnu"
ARCHS="75 80 89 90a 100 120"
TRIPLES="aarch64-linux-gnu"
MAKE=${MAKE:-make}
B=${B:-build}

# The slow ones come first, so that they do not trail.
steps() {
    case $1 in
        matrix)
            echo asan-ubsan-gcc asan-ubsan-clang archs asan-clang O0 clang m32 compile fast-math simulate tsan nvrtc12
            echo valgrind msan demo
            for triple in $TRIPLES; do
                echo "cross-$triple"
            done
            ;;
        long) echo fuzz fuzz-cuda variants asan-gcc O3 mutants valgrind-most cross-s390x-linux-gnu ;;
    esac
}

have() {
    command -v "$1" >/dev/null 2>&1
}

skip() {
    echo "skip $1"
}

# builds COMPILER FLAGS...: can this compiler make and run a program with these flags?
builds() {
    mkdir -p "$dir"
    printf '#include <errno.h>\nint main(void) { return errno; }\n' >"$dir/probe.c"
    "$@" -o "$dir/probe" "$dir/probe.c" >/dev/null 2>&1 && "$dir/probe"
}

# The parts of `make test`, with variables of their own, in a folder of their own. Kernels are those that `make test`
# has compiled.
parts() {
    list=$1
    shift
    $MAKE -s test B="$dir" CACHE="$B/cache" PARTS="$list" "$@"
}

# program NAME COMPILER...: one program with the implementation, which some have inside, in $dir
program() {
    name=$1
    shift
    mkdir -p "$dir"
    "$@" -std=c99 -g -o "$dir/$name" "tests/$name.c" \
        $(grep -q ATTN_IMPLEMENTATION "tests/$name.c" || echo tests/compile/impl.c) \
        $(grep -q 'cases\.h' "tests/$name.c" && echo tests/ref.c tests/cases.c) -lm -lpthread
}

under_valgrind() {
    for name in "$@"; do
        program "$name" gcc -O1 && valgrind -q --error-exitcode=99 --leak-check=full "$dir/$name" ||
            echo "FAIL $name under valgrind"
    done
}

# The path of an NVRTC of CUDA 12, out of a Python wheel; nothing if there is none to be had.
nvrtc_12() {
    mkdir -p "$dir/wheel"
    [ -n "$(find "$dir/wheel" -name '*.whl')" ] ||
        timeout 300 python3 -m pip download -q --no-deps -d "$dir/wheel" nvidia-cuda-nvrtc-cu12 >"$dir/pip.log" 2>&1
    for wheel in "$dir/wheel"/*.whl; do
        [ -f "$wheel" ] && python3 -m zipfile -e "$wheel" "$dir/wheel"
    done
    find "$PWD/$dir/wheel" -name libnvrtc.so.12
}

# mutate.py lists what survived: places to look at, no failures.
mutants() {
    python3 tools/mutate.py --count "${N:-30}" --seed "${SEED:-1}" &&
        echo "ok   mutants: the unchanged header passes, and ${N:-30} changed ones were judged"
}

run_step() {
    case $1 in
        test) $MAKE -s test WERROR=-Werror ;;
        # Tools that write to /dev/null put a file in its place if root runs them.
        leftovers)
            if [ -c /dev/null ]; then
                echo "ok   /dev/null is a device"
            else
                echo "FAIL /dev/null is no longer a device"
            fi
            ;;
        demo) $MAKE -s demo && echo "ok   make demo" ;;
        compile) sh tests/compile.sh all ;;
        fast-math) sh tests/fast_math.sh all ;;
        simulate) mkdir -p "$dir" && sh tests/simulate.sh "$dir" ;;
        O0) parts "attention $SHORT" OPT=-O0 ;;
        O3) parts "properties llm $MOST" OPT=-O3 ;;
        # also what compiles the implementation for itself, which takes clang longer
        asan-ubsan-gcc)
            parts "llm cuda_host cuda_llm cuda_plan cuda_tools maths plan $SIMULATOR" CC=gcc OPT="$BOTH_SANITIZERS"
            ;;
        # what asan-clang has run
        asan-gcc) parts "$LONGEST" CC=gcc OPT="-O2 -g -fsanitize=address" ;;
        archs) ATTN_CUDA_ARCHS=$ARCHS parts cuda_compile ;;
        variants) ATTN_CUDA_VARIANTS=all ATTN_CUDA_ARCHS=$ARCHS parts cuda_compile ;;
        nvrtc12)
            nvrtc=$(nvrtc_12)
            if [ -z "$nvrtc" ]; then
                skip "no wheel to be had"
            else
                ATTN_CUDA_NVRTC=$nvrtc parts "cuda_attention cuda_compile cuda_host cuda_plan cuda_tools" \
                    CACHE="$dir/cache"
            fi
            ;;
        clang)
            if have clang; then
                parts "properties llm $MOST cuda_host $SIMULATOR" CC=clang WERROR=-Werror
            else
                skip "no clang"
            fi
            ;;
        asan-ubsan-clang)
            if builds clang -fsanitize=address,undefined; then
                parts "attention skip $LINKED" CC=clang OPT="$BOTH_SANITIZERS $ROLLED"
            else
                skip "no clang, or not its runtime"
            fi
            ;;
        # without the slower sanitizer
        asan-clang)
            if builds clang -fsanitize=address; then
                parts "$LONGEST" CC=clang OPT="-O2 -g -fsanitize=address"
            else
                skip "no clang, or not its runtime"
            fi
            ;;
        msan)
            # clang 14 does not follow all vector instructions
            if builds clang -fsanitize=memory; then
                parts "meta modes plan ring rope" CC=clang OPT="-O1 -g -fsanitize=memory -DATTN_NO_SIMD"
            else
                skip "no clang, or not its runtime"
            fi
            ;;
        m32)
            # the simulator's reference has integers of 128 bits
            # shellcheck disable=SC2086
            if builds gcc $M32; then
                parts "llm $MOST" OPT="-O2 $M32 -msse2 -mfpmath=sse"
            else
                skip "no 32-bit C library"
            fi
            ;;
        tsan)
            if builds gcc -fsanitize=thread; then
                program properties gcc -O1 -fsanitize=thread && TSAN_OPTIONS=halt_on_error=1 "$dir/properties" threads
            else
                skip "no runtime"
            fi
            ;;
        valgrind | valgrind-most)
            list=api
            [ "$1" = valgrind ] || list="errors meta modes plan ring rope latent"
            if have valgrind; then
                # shellcheck disable=SC2086
                under_valgrind $list
            else
                skip "no valgrind"
            fi
            ;;
        cross-*)
            if [ -f tests/cross.sh ]; then
                sh tests/cross.sh "${1#cross-}"
            else
                skip "no tests for other processors"
            fi
            ;;
        fuzz) ATTN_TEST_TIMES=10 parts "attention properties skip meta plan" ;;
        # 20,000 batches
        fuzz-cuda) ATTN_TEST_TIMES=67 parts "cuda_plan cuda_attention" ;;
        mutants)
            if have python3; then
                mutants
            else
                skip "no python3"
            fi
            ;;
        *)
            echo "FAIL no such step"
            return 1
            ;;
    esac
}

if [ $# -eq 1 ]; then
    steps "$1"
    exit
fi

step=$1
log=$2
dir=$B/matrix/$step
mkdir -p "$dir"
start=$(date +%s)
TEST_SECONDS=${TEST_SECONDS:-1800} run_step "$step" >"$log.part" 2>&1 </dev/null
status=$?
count() {
    grep -c "^$1 " "$log.part"
}

if [ "$status" -ne 0 ] && [ "$(count FAIL)" -eq 0 ]; then
    tail -n 20 "$log.part"
    echo "FAIL exit status $status although nothing failed" >>"$log.part"
elif [ "$(grep -c -E '^(ok  |FAIL|skip) ' "$log.part")" -eq 0 ]; then
    echo "FAIL nothing was tested" >>"$log.part"
fi
line="$(count 'ok  ') passed, $(count FAIL) failed, $(count skip) skipped"
sed "s/^ok   /ok   $step: /; s/^FAIL /FAIL $step: /; s/^skip /skip $step: /" "$log.part" >"$log"
grep -B 8 '^FAIL ' "$log"
echo "== $step: $line ($(($(date +%s) - start)) s)"
