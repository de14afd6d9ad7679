// Encodes a file of floats with ggml's own C code and tells how long that took.
// usage: owner TYPE_NUMBER FLOATS COLUMNS IMPORTANCE|- REPETITIONS OUT_BYTES OUT_FLOATS
// Built by build.sh from the sources inside the crate llama-cpp-sys-2; nothing of ggml is kept here.
#include "ggml.h"
#include "ggml-quants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TYPES(T)                                                                                                   \
    T(Q4_0, q4_0, 18, 32) T(Q4_1, q4_1, 20, 32) T(Q5_0, q5_0, 22, 32) T(Q5_1, q5_1, 24, 32) T(Q8_0, q8_0, 34, 32)       \
    T(Q2_K, q2_K, 84, 256) T(Q3_K, q3_K, 110, 256) T(Q4_K, q4_K, 144, 256) T(Q5_K, q5_K, 176, 256)                  \
    T(Q6_K, q6_K, 210, 256) T(IQ2_XXS, iq2_xxs, 66, 256) T(IQ2_XS, iq2_xs, 74, 256) T(IQ2_S, iq2_s, 82, 256)        \
    T(IQ3_XXS, iq3_xxs, 98, 256) T(IQ3_S, iq3_s, 110, 256) T(IQ1_S, iq1_s, 50, 256) T(IQ1_M, iq1_m, 56, 256)        \
    T(IQ4_NL, iq4_nl, 18, 32) T(IQ4_XS, iq4_xs, 136, 256) T(TQ1_0, tq1_0, 54, 256) T(TQ2_0, tq2_0, 66, 256)         \
    T(MXFP4, mxfp4, 17, 32) T(NVFP4, nvfp4, 36, 64) T(Q1_0, q1_0, 18, 128)

// What ggml-quants.c takes from the rest of ggml.
size_t ggml_row_size(enum ggml_type type, int64_t n) {
    switch (type) {
#define SIZE(NAME, name, bytes, elements) case GGML_TYPE_##NAME: return n / elements * bytes;
        TYPES(SIZE)
        default: abort();
    }
}
size_t ggml_type_size(enum ggml_type type) { (void)type; return 1; }
const char * ggml_type_name(enum ggml_type type) { (void)type; return "?"; }
void ggml_abort(const char * file, int line, const char * message, ...) {
    fprintf(stderr, "%s:%d: %s\n", file, line, message);
    abort();
}

// Builds the tables that the codebook types search.
void owner_prepare(int type) {
    switch (type) {
        case GGML_TYPE_IQ2_XXS: case GGML_TYPE_IQ2_XS: case GGML_TYPE_IQ2_S: case GGML_TYPE_IQ1_S: case GGML_TYPE_IQ1_M:
            iq2xs_init_impl(type); break;
        case GGML_TYPE_IQ3_XXS: iq3xs_init_impl(256); break;
        case GGML_TYPE_IQ3_S: iq3xs_init_impl(512); break;
        default: break;
    }
}

size_t owner_encode(int type, const float * x, void * y, int64_t rows, int64_t columns, const float * w) {
    switch (type) {
#define ENCODE(NAME, name, bytes, elements) case GGML_TYPE_##NAME: return quantize_##name(x, y, rows, columns, w);
        TYPES(ENCODE)
        default: abort();
    }
}

void owner_decode(int type, const void * y, float * x, int64_t n) {
    switch (type) {
#define DECODE(NAME, name, bytes, elements) case GGML_TYPE_##NAME: dequantize_row_##name(y, x, n); return;
        TYPES(DECODE)
        default: abort();
    }
}

static float * read_floats(const char * path, size_t * count) {
    FILE * file = fopen(path, "rb");
    if (!file) { perror(path); exit(1); }
    fseek(file, 0, SEEK_END);
    *count = ftell(file) / sizeof(float);
    rewind(file);
    float * data = malloc(*count * sizeof(float) + 1);
    if (fread(data, sizeof(float), *count, file) != *count) { perror(path); exit(1); }
    fclose(file);
    return data;
}

static void write_bytes(const char * path, const void * data, size_t size) {
    FILE * file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file)) { perror(path); exit(1); }
}

int main(int argc, char ** argv) {
    if (argc != 8) { fprintf(stderr, "usage: owner TYPE FLOATS COLUMNS IMPORTANCE|- REPETITIONS BYTES FLOATS\n"); return 2; }
    int type = atoi(argv[1]);
    size_t count, unused;
    float * x = read_floats(argv[2], &count);
    int64_t columns = atoll(argv[3]), rows = count / columns;
    float * w = strcmp(argv[4], "-") ? read_floats(argv[4], &unused) : NULL;
    owner_prepare(type);
    size_t size = rows * ggml_row_size(type, columns);
    void * y = calloc(1, size);
    double best = 1e30;
    for (int i = 0; i < atoi(argv[5]); i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        owner_encode(type, x, y, rows, columns, w);
        clock_gettime(CLOCK_MONOTONIC, &b);
        double seconds = (b.tv_sec - a.tv_sec) + 1e-9 * (b.tv_nsec - a.tv_nsec);
        if (seconds < best) best = seconds;
    }
    float * back = malloc(count * sizeof(float));
    owner_decode(type, y, back, count);
    write_bytes(argv[6], y, size);
    write_bytes(argv[7], back, count * sizeof(float));
    printf("%.9f\n", best);
    return 0;
}
