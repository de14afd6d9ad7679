#!/usr/bin/env bash
# usage: build.sh OUT — builds the program OUT, the library OUT.so and the program OUT-imatrix (llama.cpp's reader of importance matrices) from ggml's C sources in the crate llama-cpp-sys-2 (fetched if absent), with
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
scratch=$(mktemp -d)
printf '#define GGML_VERSION "0"\n#define GGML_COMMIT "0"\n' > "$scratch/ggml-version.h" # as cmake would
includes=(-I"$scratch" -I"$ggml/include" -I"$ggml/src" -I"$ggml/../common" -I"$ggml/../include" -I"$ggml/../vendor")
for file in ggml.c ggml-alloc.c ggml-quants.c; do
    "${CC:-cc}" -O1 -DNDEBUG -D_GNU_SOURCE "${includes[@]}" -c "$ggml/src/$file" -o "$scratch/$file.o"
done
"${CXX:-c++}" -std=c++17 -O1 -DNDEBUG "${includes[@]}" "$here/imatrix.cpp" "$ggml/../common/imatrix-loader.cpp" \
    "$ggml"/src/{gguf,ggml,ggml-backend,ggml-backend-meta,ggml-threading}.cpp "$scratch"/*.o -lm -lpthread -o "$out-imatrix"
rm -r "$scratch"
