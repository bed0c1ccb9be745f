# sum.sh DIRECTORY PART... - adds up DIRECTORY/PART.log, names what failed or was skipped, and closes with the line
# `N passed, N failed, N skipped`. A part without a log (its program did not build) is a failure.
dir=$1
shift
all=$dir/all.txt
: >"$all"
for part in "$@"; do
    if [ -f "$dir/$part.log" ]; then
        cat "$dir/$part.log" >>"$all"
    else
        echo "FAIL $part: did not build" | tee -a "$all"
    fi
done

# ATTN_REQUIRE: the names that may skip, separated by commas; "all" allows none. A skip line is `skip NAME: WHY`, where
# the name may hold colons.
allowed() {
    rest=$ATTN_REQUIRE,
    while [ -n "$rest" ]; do
        pattern=${rest%%,*}
        rest=${rest#*,}
        # the pattern is meant to be one
        # shellcheck disable=SC2254
        case $1 in
            $pattern | $pattern:*) return 0 ;;
        esac
    done
    return 1
}

if [ -n "${ATTN_REQUIRE:-}" ]; then
    sed -n 's/^skip //p' "$all" >"$dir/skips.txt"
    while IFS= read -r line; do
        if [ "$ATTN_REQUIRE" = all ] || ! allowed "$line"; then
            echo "FAIL $line (skipped, but it is required here)" | tee -a "$all"
        fi
    done <"$dir/skips.txt"
fi

passed=$(grep -c '^ok   ' "$all")
failed=$(grep -c '^FAIL ' "$all")
skipped=$(grep -c '^skip ' "$all")
echo
if [ "$skipped" -ne 0 ]; then
    echo "skipped here:"
    grep '^skip ' "$all" | sed 's/^skip /  /'
fi
if [ "$failed" -ne 0 ]; then
    echo "failed:"
    grep '^FAIL ' "$all" | sed 's/^FAIL /  /'
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -ne 0 ]
