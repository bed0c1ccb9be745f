# gpu.sh DIRECTORY PROGRAM... - the CUDA tests on a GPU: as they are, then under compute-sanitizer (memcheck, racecheck)
# where that is installed. The last line is `N passed, N failed, N skipped`. Run from the repository root.
dir=$1
shift
mkdir -p "$dir/log/gpu"
rm -f "$dir"/log/gpu/*.log
parts=
for program in "$@"; do
    sh tests/run.sh "$program" "$dir/log/gpu/$program.log" "$dir/$program"
    parts="$parts $program"
done
if command -v compute-sanitizer >/dev/null 2>&1; then
    for tool in memcheck racecheck; do
        for program in "$@"; do
            log=$dir/log/gpu/$tool-$program.log
            # its own lines start with =====, the closing line must stay the last one
            compute-sanitizer --tool $tool --error-exitcode 99 --log-file "$log.tool" "$dir/$program" >"$log" 2>&1
            status=$?
            if [ "$status" -ne 0 ]; then
                cat "$log.tool" "$log"
                echo "FAIL $program: compute-sanitizer $tool, exit status $status" >>"$log"
            fi
            parts="$parts $tool-$program"
        done
    done
else
    echo "skip compute-sanitizer: not installed" >"$dir/log/gpu/sanitizer.log"
    parts="$parts sanitizer"
fi
# shellcheck disable=SC2086
sh tests/sum.sh "$dir/log/gpu" $parts
