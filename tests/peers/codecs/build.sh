#!/usr/bin/env bash
# usage: build.sh OUT — builds the program `owner` and the library OUT.so from ggml's C sources in the crate llama-cpp-sys-2 (fetched if absent), with
# the flags its own release build gives that file: -O3, baseline processor.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "$1")
version=0.1.161
find_sources() { ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/llama-cpp-sys-2-$version/llama.cpp/ggml 2>/dev/null | head -1; }
if [ -z "$(find_sources)" ]; then
    scratch=$(mktemp -d); mkdir "$scratch/src"; : > "$scratch/src/lib.rs"
    printf '[package]\nname="scratch"\nversion="0.0.0"\n[dependencies]\nllama-cpp-sys-2="=%s"\n' $version > "$scratch/Cargo.toml"
    (cd "$scratch" && cargo fetch -q)
fi
ggml=$(find_sources)
"${CC:-cc}" -O3 -DNDEBUG -I"$ggml/include" -I"$ggml/src" "$here/owner.c" "$ggml/src/ggml-quants.c" -lm -o "$out"
"${CC:-cc}" -O3 -DNDEBUG -fPIC -shared -I"$ggml/include" -I"$ggml/src" "$here/owner.c" "$ggml/src/ggml-quants.c" -lm -o "$out.so"
