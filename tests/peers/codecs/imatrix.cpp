// What llama.cpp's own reader (common/imatrix-loader.cpp, which llama-quantize calls) makes of an importance matrix: a line of
// numbers, then per matrix its name, counts, columns and sum. See build.sh.
#include <cstdarg>
#include <cstdio>

#include "common.h"
#include "imatrix-loader.h"
#include "log.h"

// The few things that the reader takes from the rest of llama.cpp's tools.
int common_log_verbosity_thold = 0;
int common_log_get_verbosity_thold(void) { return 0; }
struct common_log * common_log_main() { return nullptr; }
void common_log_add(struct common_log *, enum ggml_log_level, const char * format, ...) {
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
}
bool string_remove_suffix(std::string & text, const std::string_view & suffix) {
    bool has = text.size() >= suffix.size() && text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
    if (has) { text.resize(text.size() - suffix.size()); }
    return has;
}

int main(int count, char ** arguments) {
    common_imatrix imatrix;
    if (count != 2 || !common_imatrix_load(arguments[1], imatrix)) { return 1; }
    printf("%zu matrices, %d chunks of %d\n", imatrix.entries.size(), imatrix.chunk_count, imatrix.chunk_size);
    for (const auto & [name, entry] : imatrix.entries) {
        double sum = 0;
        for (float value : entry.sums) { sum += value; }
        printf("%s %lld %zu %.6g\n", name.c_str(), (long long) entry.counts.front(), entry.sums.size(), sum);
    }
}
