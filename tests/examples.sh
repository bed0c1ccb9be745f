# examples.sh - builds each example with the one command that its own first comment gives, and runs it. Prints the lines
# of the test protocol. Run from the repository root. SIM: folder of the simulated CUDA driver, if any. OBJECT: both
# implementations, already compiled; the examples are then built without theirs, which takes most of the time.
out=$(mktemp -d "${TMPDIR:-/tmp}/attn-examples.XXXXXX") || exit 1
trap 'rm -rf "$out"' EXIT
trap 'exit 1' HUP INT TERM
passed=0
failed=0

mkdir -p build
ln -s "$PWD/models" "$out/models" || exit 1
for file in examples/*.c; do
    name=$(basename "$file" .c)
    line=$(sed -n 's|.*\(cc .*examples/'"$name"'\.c.*\)|\1|p' "$file" | sed 's|  .*||; s|[ ;.]*\*/$||' | head -n 1)
    command=$(printf '%s\n' "$line" | sed -e "s|^cc|${CC:-cc}|" -e "s| -o [a-z0-9_/]*| -o $out/program|")
    if [ -n "${OBJECT:-}" ]; then
        sed '/^#define ATTN_IMPLEMENTATION$/d' "$file" >"$out/$name.c"
        command=$(printf '%s\n' "$command" | sed "s|examples/$name\.c|-Iexamples $out/$name.c $OBJECT|")
        command="$command -lm -lpthread -ldl"
    fi
    rm -f "$out/program"
    if [ -z "$line" ]; then
        echo "no build command in the first comment" >"$out/text"
        status=1
    else
        sh -c "$command" >"$out/text" 2>&1 &&
            (cd "$out" && LD_LIBRARY_PATH=${SIM:-}:${LD_LIBRARY_PATH:-} ./program >>"$out/text" 2>&1 </dev/null)
        status=$?
    fi
    if [ "$status" -eq 0 ] && [ -s "$out/text" ]; then
        passed=$((passed + 1))
        echo "ok   example: $name"
    else
        failed=$((failed + 1))
        sed 's/^/  /' "$out/text" | tail -n 10
        echo "FAIL example: $name (exit status $status)"
    fi
done
echo "examples: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
