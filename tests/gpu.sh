# gpu.sh DIRECTORY PROGRAM... - the CUDA tests on a GPU: as they are, then under the tools of compute-sanitizer where it
# is installed. The last line is `N passed, N failed, N skipped`. Run from the repository root.
#   SANITIZERS       the tools, "memcheck racecheck"; empty: none
#   TEST_SECONDS     the most that a program may take, 300; under a tool it is then stopped and named as skipped
dir=$1
shift
logs=$dir/log/gpu
TEST_SECONDS=${TEST_SECONDS:-300}
# Each module is compiled once, by the first program that needs it.
ATTN_TEST_CACHE=$logs/cache
export TEST_SECONDS ATTN_TEST_CACHE
rm -rf "$logs"
mkdir -p "$ATTN_TEST_CACHE" || exit 1
parts=

# The simulator in the library path would pass for a GPU.
refuse_simulator() {
    if grep -q '^device: .*(simulated)' "$1"; then
        echo "FAIL $2: this is the simulator, not a GPU: take it out of LD_LIBRARY_PATH" | tee -a "$1"
    fi
}

# sanitize TOOL PROGRAM: the lines of the tool start with =====, those of the program stay in a log of their own. Calls
# that the driver refuses are no errors here: tests make some on purpose.
sanitize() {
    log=$logs/$1-$2.log
    limit=
    if command -v timeout >/dev/null 2>&1; then
        limit="timeout $TEST_SECONDS"
    fi
    $limit "$sanitizer" --tool "$1" --report-api-errors no --error-exitcode 99 --log-file "$log.tool" "$dir/$2" \
        >"$log" 2>&1 </dev/null
    status=$?
    if grep -qi 'device not supported' "$log.tool" "$log" 2>/dev/null; then
        echo "skip $1-$2: compute-sanitizer does not support this device" >"$log"
    elif [ -n "$limit" ] && [ "$status" -eq 124 ]; then
        echo "skip $1-$2: stopped after $TEST_SECONDS s" >>"$log"
    elif [ "$status" -ne 0 ]; then
        head -n 60 "$log.tool"
        echo "FAIL $2: compute-sanitizer $1, exit status $status" >>"$log"
    fi
    tail -n 1 "$log"
    parts="$parts $1-$2"
}

if command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
fi
for program in "$@"; do
    echo "== $program"
    sh tests/run.sh "$program" "$logs/$program.log" "$dir/$program"
    refuse_simulator "$logs/$program.log" "$program"
    parts="$parts $program"
done

sanitizer=$(command -v compute-sanitizer || echo "${CUDA_PATH:-/usr/local/cuda}/bin/compute-sanitizer")
if [ ! -x "$sanitizer" ]; then
    echo "skip compute-sanitizer: not installed" >"$logs/sanitizer.log"
    parts="$parts sanitizer"
else
    for tool in ${SANITIZERS-memcheck racecheck}; do
        for program in "$@"; do
            echo "== $tool: $program"
            sanitize "$tool" "$program"
        done
    done
fi
# shellcheck disable=SC2086
sh tests/sum.sh "$logs" $parts
