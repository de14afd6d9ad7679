#!/usr/bin/env bash
# Whole files: llama_model_quantize beside our pass to the same mixture of types, taking turns, two threads each.
# usage: whole_files.sh SOURCE.gguf FOLDER [IMATRIX.gguf] -- SCHEME…
# FOLDER should lie in memory. UPSTREAM and LIKE name the built examples `upstream_quantize` (of drophammer-llama-cpp) and `like` (of
# drophammer-quant); MEASURE may name a program that runs them undisturbed; ROUNDS how often (1), the fastest counts.
set -euo pipefail
source=$1 folder=$2; shift 2
imatrix=(); [ "$1" = -- ] || { imatrix=(--imatrix "$1"); shift; }; shift
upstream=${UPSTREAM:-target/release/examples/upstream_quantize} like=${LIKE:-target/release/examples/like}
for scheme in "$@"; do
    for _ in $(seq "${ROUNDS:-1}"); do
        ${MEASURE:-} "$upstream" "$source" "$folder/upstream.gguf" "$scheme" --threads 2 "${imatrix[@]}"
        rm -rf "$folder/ours"
        ${MEASURE:-} "$like" "$source" "$folder/upstream.gguf" "$folder/ours" --threads 2 "${imatrix[@]}"
    done | awk -v scheme="$scheme" '
        / bytes$/ { if (!u || $2 < u) u = $2 }
        /error/ { t = $1 + 0; if (!o || t < o) { o = t } ratio = $7; sub(/;/, "", ratio); types = $0; sub(/.*; /, "", types) }
        END { printf "| %s | %.2f | %.2f | %.1f | %s | %s |\n", scheme, u, o, u / o, ratio, types; fflush() }'
done
