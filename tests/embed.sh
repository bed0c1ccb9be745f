# embed.sh PROGRAM FILE... - is kernels/FILE.inc what tools/embed.c makes of FILE? Prints the lines of the test
# protocol. Run from the repository root.
program=$1
shift
out=$(mktemp "${TMPDIR:-/tmp}/attn-embed.XXXXXX") || exit 1
trap 'rm -f "$out"' EXIT
trap 'exit 1' HUP INT TERM
passed=0
failed=0

check() {
    if "$@" >"$out"; then
        passed=$((passed + 1))
        echo "ok   $name"
    else
        failed=$((failed + 1))
        head -n 5 "$out"
        echo "FAIL $name"
    fi
}

same() {
    "$program" "$1" | diff - "$1.inc"
}

included() {
    grep -F "#include \"$1.inc\"" attn_cuda.h
}

fragments() {
    ls kernels/*.inc | sed 's/\.inc$//' | sort >"$out.left"
    printf '%s\n' "$@" | sort | diff - "$out.left"
    status=$?
    rm -f "$out.left"
    return $status
}

refused() {
    printf 'a\303\244\n' >"$out.bad"
    "$program" "$out.bad" >/dev/null 2>&1
    status=$?
    rm -f "$out.bad"
    [ "$status" -ne 0 ]
}

for file in "$@"; do
    name="embed: $file.inc is up to date (make kernels)"
    check same "$file"
    name="embed: attn_cuda.h includes $file.inc"
    check included "$file"
done
name="embed: no text without its source"
check fragments "$@"
name="embed: bytes that are not ASCII are refused"
check refused
echo "embed: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
