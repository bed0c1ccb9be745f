# drop_in.sh - a program in a folder with nothing but the headers, built with `cc prog.c -ldl`: with attn_cuda.h and
# kernels/, then with the one-file release. It says in a line why it runs on the CPU where there is no driver or no
# device, and is right there and on the simulated one. Prints the lines of the test protocol. SIM: folder of the
# simulated CUDA driver, if any. Run from the repository root.
out=$(mktemp -d "${TMPDIR:-/tmp}/attn-drop-in.XXXXXX") || exit 1
trap 'rm -rf "$out"' EXIT
trap 'exit 1' HUP INT TERM
passed=0
failed=0
skipped=0

check() {
    if [ "$2" = right ]; then
        passed=$((passed + 1))
        echo "ok   $1"
    else
        failed=$((failed + 1))
        sed 's/^/  /' "$out/text" "$out/errors"
        echo "FAIL $1: $2"
    fi
}

skip() {
    skipped=$((skipped + 1))
    echo "skip $1: $2"
}

# run LIBRARIES [VARIABLE=VALUE]: the program with this search path; what it printed stands in $out/text and $out/errors
run() {
    (cd "$folder" && env "LD_LIBRARY_PATH=$1" ${2+"$2"} ./a.out >"$out/text" 2>"$out/errors")
    status=$?
}

# The three rows of cuda_hello.c are right.
rows_are_right() {
    [ "$status" -eq 0 ] && [ "$(grep -c '^row [012] sees keys 0\.\.[234]: [0-9.]*$' "$out/text")" -eq 3 ]
}

# on_cpu NAME REASON: the first line tells the reason
on_cpu() {
    if ! head -n 1 "$out/text" | grep -q "^on the CPU, because: .*$2"; then
        check "$1" "the first line does not say why it runs on the CPU"
    elif [ -s "$out/errors" ] && ! grep -q '^ptxsim: a simulated' "$out/errors"; then
        check "$1" "lines on stderr"
    elif rows_are_right; then
        check "$1" right
    else
        check "$1" "wrong rows, exit status $status"
    fi
}

on_simulator() {
    if grep -q '^on the CPU, because: no NVRTC' "$out/text"; then
        skip "$1" "no NVRTC"
    elif ! grep -q '^ptxsim (simulated)' "$out/text" || ! grep -q '^ptxsim: a simulated CUDA device' "$out/errors"; then
        check "$1" "it does not say that the device is simulated"
    elif rows_are_right; then
        check "$1" right
    else
        check "$1" "wrong rows, exit status $status"
    fi
}

# drop_in NAME: the headers lie in $folder
drop_in() {
    cp examples/cuda_hello.c "$folder/prog.c"
    if ! (cd "$folder" && ${CC:-cc} prog.c -ldl) >"$out/text" 2>"$out/errors" || [ -s "$out/errors" ]; then
        check "drop-in: $1" "cc prog.c -ldl"
        return
    fi
    run ""
    if grep -q '^plan: ' "$out/text"; then
        skip "drop-in: $1, without a driver" "this machine has a driver"
    else
        on_cpu "drop-in: $1, without a driver" "no NVIDIA driver"
    fi
    if [ -z "${SIM:-}" ]; then
        skip "drop-in: $1, on the simulator" "it needs Linux"
        return
    fi
    run "$SIM:${LD_LIBRARY_PATH:-}"
    on_simulator "drop-in: $1, on the simulator"
    run "$SIM:${LD_LIBRARY_PATH:-}" PTXSIM_DEVICES=0
    on_cpu "drop-in: $1, without a device" "no device"
}

folder=$out/kernels
mkdir "$folder"
cp -R attn.h attn_cuda.h kernels "$folder"
drop_in "kernels/"
folder=$out/release
sh tools/dist.sh "$folder" >"$out/text" 2>&1 || exit 1
drop_in "one file"
echo "drop-in: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
