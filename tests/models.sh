# models.sh - the constructed model is what its script constructs. Prints the lines of the test protocol.
# Run from the repository root.
out=$(mktemp -d "${TMPDIR:-/tmp}/attn-models.XXXXXX") || exit 1
trap 'rm -rf "$out"' EXIT
trap 'exit 1' HUP INT TERM
name="models: recall.lm comes out of tools/make_recall.py, byte for byte"

if ! command -v python3 >/dev/null 2>&1; then
    echo "skip $name: no python3"
    echo "models: 0 passed, 0 failed, 1 skipped"
elif python3 tools/make_recall.py --out "$out/recall.lm" >"$out/text" 2>&1 &&
    cmp "$out/recall.lm" models/recall.lm >>"$out/text" 2>&1; then
    echo "ok   $name"
    echo "models: 1 passed, 0 failed, 0 skipped"
else
    sed 's/^/  /' "$out/text" | tail -n 5
    echo "FAIL $name"
    echo "models: 0 passed, 1 failed, 0 skipped"
    exit 1
fi
