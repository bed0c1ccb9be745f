# run.sh NAME LOG COMMAND... - runs one test program and writes LOG. A program that crashes, hangs or loses its closing
# line would hide what it did not run, so each of these becomes a failure of its own in the log.
name=$1
log=$2
shift 2
limit=${TEST_SECONDS:-600}

if command -v timeout >/dev/null 2>&1; then
    timeout "$limit" "$@" >"$log.part" 2>&1 </dev/null
else
    "$@" >"$log.part" 2>&1 </dev/null
fi
status=$?

count() {
    grep -c "^$1 " "$log.part"
}

passed=$(count 'ok  ')
failed=$(count FAIL)
skipped=$(count skip)
why=
if [ "$(tail -n 1 "$log.part")" != "$name: $passed passed, $failed failed, $skipped skipped" ]; then
    why="no closing line that agrees with the lines above it, exit status $status"
elif [ "$failed" -eq 0 ] && [ "$status" -ne 0 ]; then
    why="exit status $status, no test failed"
elif [ "$failed" -ne 0 ] && [ "$status" -eq 0 ]; then
    why="exit status 0 although a test failed"
elif [ $((passed + failed + skipped)) -eq 0 ]; then
    why="nothing was tested"
fi
if [ -n "$why" ]; then
    echo "FAIL $name: $why" >>"$log.part"
fi
mv "$log.part" "$log"
cat "$log"
