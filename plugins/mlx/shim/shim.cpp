// What the plugin calls of libmlx, as C functions.
//
// libmlx has a C++ interface only, whose binary form changes with every version: this file is compiled against the headers of
// exactly one, and `dh_version` tells which. It holds no decisions: one function per operation, exceptions become messages.
//
// Arrays cross as pointers to `mlx::core::array` (itself a reference to shared data). Functions that return an array give
// NULL, others -1, where they failed; `dh_error` then says why.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "mlx/mlx.h"
#include "mlx/version.h"

namespace mx = mlx::core;
using mx::array;

namespace {

thread_local std::string failure;

template <typename F>
array* guard(F&& f) {
  try {
    return new array(f());
  } catch (const std::exception& e) {
    failure = e.what();
  } catch (...) {
    failure = "an unknown exception";
  }
  return nullptr;
}

template <typename F>
int attempt(F&& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    failure = e.what();
  } catch (...) {
    failure = "an unknown exception";
  }
  return -1;
}

mx::Dtype type_of(int type) {
  switch (type) {
    case 0: return mx::float32;
    case 1: return mx::float16;
    case 2: return mx::bfloat16;
    case 3: return mx::uint32;
    case 4: return mx::uint8;
    case 5: return mx::int32;
    default: return mx::bool_;
  }
}

std::optional<array> maybe(const array* a) {
  return a ? std::optional<array>(*a) : std::nullopt;
}

mx::Shape shape_of(const int* dims, int n) {
  return mx::Shape(dims, dims + n);
}

array scalar_like(float value, const array& a) {
  return array(value, a.dtype());
}

} // namespace

extern "C" {

const char* dh_error() {
  return failure.c_str();
}

// The version whose headers this was compiled against.
const char* dh_version() {
#define DH_TEXT2(x) #x
#define DH_TEXT(x) DH_TEXT2(x)
  return DH_TEXT(MLX_VERSION_MAJOR) "." DH_TEXT(MLX_VERSION_MINOR) "." DH_TEXT(MLX_VERSION_PATCH);
}

// ---- device, stream, memory

int dh_gpu_available() {
  int count = 0;
  return attempt([&] { count = mx::is_available(mx::Device(mx::Device::gpu)) ? 1 : 0; }) == 0 ? count : 0;
}

// Name, memory in all, and what the system recommends to use at most; 0 where unknown.
int dh_device(int gpu, char* name, size_t capacity, uint64_t* total, uint64_t* recommended) {
  return attempt([&] {
    auto& info = mx::device_info(mx::Device(gpu ? mx::Device::gpu : mx::Device::cpu));
    auto text = [&](const char* key) {
      auto it = info.find(key);
      auto* value = it == info.end() ? nullptr : std::get_if<std::string>(&it->second);
      return value ? *value : std::string();
    };
    auto number = [&](const char* key) -> uint64_t {
      auto it = info.find(key);
      auto* value = it == info.end() ? nullptr : std::get_if<size_t>(&it->second);
      return value ? *value : 0;
    };
    std::string words = text("device_name");
    if (words.empty()) words = text("architecture");
    std::strncpy(name, words.c_str(), capacity - 1);
    name[capacity - 1] = 0;
    *total = number("memory_size") ? number("memory_size") : number("total_memory");
    *recommended = number("max_recommended_working_set_size");
  });
}

// A stream that may be used by any thread, one at a time.
mx::Stream* dh_stream(int gpu) {
  mx::Stream* made = nullptr;
  attempt([&] {
    made = new mx::Stream(mx::new_thread_unsafe_stream(mx::Device(gpu ? mx::Device::gpu : mx::Device::cpu)));
  });
  return made;
}

// Operations of this thread go to the stream from here on.
int dh_enter(const mx::Stream* stream) {
  return attempt([&] {
    mx::set_default_device(stream->device);
    mx::set_default_stream(*stream);
  });
}

int dh_memory_limit(uint64_t bytes) {
  return attempt([&] { mx::set_memory_limit(bytes); });
}

uint64_t dh_memory_allowed() {
  return mx::get_memory_limit();
}

int dh_cache_limit(uint64_t bytes) {
  return attempt([&] { mx::set_cache_limit(bytes); });
}

int dh_wired_limit(uint64_t bytes) {
  return attempt([&] { mx::set_wired_limit(bytes); });
}

uint64_t dh_active_memory() {
  return mx::get_active_memory();
}

uint64_t dh_peak_memory() {
  return mx::get_peak_memory();
}

void dh_clear_cache() {
  attempt([&] { mx::clear_cache(); });
}

// ---- arrays

// An array to be filled: `data` receives where.
array* dh_new(const int* dims, int n, int type, void** data) {
  return guard([&] {
    auto shape = shape_of(dims, n);
    auto dtype = type_of(type);
    size_t bytes = mx::size_of(dtype);
    for (auto d : shape) bytes *= static_cast<size_t>(d);
    auto buffer = mx::allocator::malloc(bytes);
    *data = buffer.buffer().raw_ptr();
    return array(std::move(buffer), std::move(shape), dtype);
  });
}

void dh_free(array* a) {
  delete a;
}

array* dh_clone(const array* a) {
  return guard([&] { return *a; });
}

int dh_dims(const array* a, int* dims, int capacity) {
  int n = static_cast<int>(a->ndim());
  for (int i = 0; i < n && i < capacity; i++) dims[i] = a->shape(i);
  return n;
}

int dh_eval(const array* const* arrays, int n) {
  return attempt([&] {
    std::vector<array> all;
    all.reserve(n);
    for (int i = 0; i < n; i++) all.push_back(*arrays[i]);
    mx::eval(std::move(all));
  });
}

// Begins to compute and returns.
int dh_start(const array* const* arrays, int n) {
  return attempt([&] {
    std::vector<array> all;
    all.reserve(n);
    for (int i = 0; i < n; i++) all.push_back(*arrays[i]);
    mx::async_eval(std::move(all));
  });
}

// Evaluates to row-major float32 and copies `count` numbers out.
int dh_read(const array* a, float* out, size_t count) {
  return attempt([&] {
    array flat = *a;
    flat.eval();
    if (flat.dtype() != mx::float32 || !flat.flags().row_contiguous) {
      flat = mx::contiguous(mx::astype(flat, mx::float32));
      flat.eval();
    }
    if (flat.size() != count) throw std::runtime_error("an output of another size");
    std::memcpy(out, flat.data<float>(), count * sizeof(float));
  });
}

// ---- shapes

array* dh_astype(const array* a, int type) {
  return guard([&] { return mx::astype(*a, type_of(type)); });
}

array* dh_reshape(const array* a, const int* dims, int n) {
  return guard([&] { return mx::reshape(*a, shape_of(dims, n)); });
}

array* dh_transpose(const array* a, const int* axes, int n) {
  return guard([&] { return mx::transpose(*a, std::vector<int>(axes, axes + n)); });
}

// The part from `begin` to `end` of one axis.
array* dh_slice(const array* a, int axis, int begin, int end) {
  return guard([&] {
    mx::Shape start(a->ndim(), 0), stop = a->shape(), strides(a->ndim(), 1);
    start[axis] = begin;
    stop[axis] = end;
    return mx::slice(*a, start, stop, strides);
  });
}

// `a` with `part` from `begin` on along one axis. Takes `a` over, so that its memory can be written in place.
array* dh_write(array* a, const array* part, int axis, int begin) {
  auto made = guard([&] {
    mx::Shape start(a->ndim(), 0), stop = a->shape();
    start[axis] = begin;
    stop[axis] = begin + part->shape(axis);
    return mx::slice_update(*a, *part, start, stop);
  });
  delete a;
  return made;
}

array* dh_zeros(const int* dims, int n, int type) {
  return guard([&] { return mx::zeros(shape_of(dims, n), type_of(type)); });
}

array* dh_concatenate(const array* const* arrays, int n, int axis) {
  return guard([&] {
    std::vector<array> all;
    for (int i = 0; i < n; i++) all.push_back(*arrays[i]);
    return mx::concatenate(std::move(all), axis);
  });
}

array* dh_take(const array* a, const array* indices, int axis) {
  return guard([&] { return mx::take(*a, *indices, axis); });
}

array* dh_take_along(const array* a, const array* indices, int axis) {
  return guard([&] { return mx::take_along_axis(*a, *indices, axis); });
}

// ---- element by element

array* dh_binary(int what, const array* a, const array* b) {
  return guard([&] {
    switch (what) {
      case 0: return mx::add(*a, *b);
      case 1: return mx::multiply(*a, *b);
      default: return mx::divide(*a, *b);
    }
  });
}

array* dh_scale(const array* a, float factor) {
  return guard([&] { return mx::multiply(*a, scalar_like(factor, *a)); });
}

array* dh_add_scalar(const array* a, float value) {
  return guard([&] { return mx::add(*a, scalar_like(value, *a)); });
}

array* dh_clip(const array* a, float low, float high) {
  return guard([&] {
    auto bound = [&](float x) { return std::isinf(x) ? std::nullopt : std::optional<array>(scalar_like(x, *a)); };
    return mx::clip(*a, bound(low), bound(high));
  });
}

array* dh_activate(int what, const array* a) {
  return guard([&] {
    const array& x = *a;
    auto number = [&](float v) { return scalar_like(v, x); };
    switch (what) {
      case 0: // SiLU
        return mx::multiply(x, mx::sigmoid(x));
      case 1: { // GELU
        auto inner = mx::add(number(1), mx::erf(mx::divide(x, number(std::sqrt(2.0f)))));
        return mx::divide(mx::multiply(x, inner), number(2));
      }
      case 2: { // its approximation
        auto cube = mx::multiply(number(0.044715f), mx::multiply(x, mx::square(x)));
        auto inner = mx::multiply(number(0.7978845608028654f), mx::add(x, cube));
        return mx::multiply(mx::multiply(number(0.5f), x), mx::add(number(1), mx::tanh(inner)));
      }
      case 3:
        return mx::maximum(x, number(0));
      case 4:
        return mx::square(mx::maximum(x, number(0)));
      case 5:
        return mx::sigmoid(x);
      default:
        return mx::tanh(x);
    }
  });
}

// `yes` where `condition`, else a number.
array* dh_select(const array* condition, const array* yes, float no) {
  return guard([&] { return mx::where(*condition, *yes, scalar_like(no, *yes)); });
}

// Whether `a < b`, with broadcasting.
array* dh_less(const array* a, const array* b) {
  return guard([&] { return mx::less(*a, *b); });
}

// The smallest number of an array's type.
float dh_lowest(const array* a) {
  if (a->dtype() == mx::float16) return -65504.0f;
  return a->dtype() == mx::bfloat16 ? -3.38953139e38f : std::numeric_limits<float>::lowest();
}

// ---- over an axis

array* dh_softmax(const array* a) {
  return guard([&] { return mx::softmax(*a, std::vector<int>{-1}, true); });
}

array* dh_sum(const array* a, int axis, int keep) {
  return guard([&] { return mx::sum(*a, std::vector<int>{axis}, keep != 0); });
}

// The positions of the `k` largest numbers of the last axis, in any order.
array* dh_largest(const array* a, int k) {
  return guard([&] {
    auto order = mx::argpartition(mx::negative(*a), k - 1, -1);
    mx::Shape start(order.ndim(), 0), stop = order.shape(), strides(order.ndim(), 1);
    stop.back() = k;
    return mx::slice(order, start, stop, strides);
  });
}

// The last axis in ascending order.
array* dh_sort(const array* a) {
  return guard([&] { return mx::sort(*a, -1); });
}

// ---- products

array* dh_matmul(const array* a, const array* b) {
  return guard([&] { return mx::matmul(*a, *b); });
}

array* dh_addmm(const array* c, const array* a, const array* b) {
  return guard([&] { return mx::addmm(*c, *a, *b); });
}

array* dh_quantized_matmul(
    const array* x, const array* w, const array* scales, const array* biases, int transpose, int group, int bits,
    const char* mode) {
  return guard(
      [&] { return mx::quantized_matmul(*x, *w, *scales, maybe(biases), transpose != 0, group, bits, mode); });
}

array* dh_gather_mm(const array* x, const array* w, const array* which) {
  return guard([&] { return mx::gather_mm(*x, *w, std::nullopt, *which); });
}

array* dh_gather_qmm(
    const array* x, const array* w, const array* scales, const array* biases, const array* which, int group, int bits,
    const char* mode) {
  return guard([&] {
    return mx::gather_qmm(*x, *w, *scales, maybe(biases), std::nullopt, *which, true, group, bits, mode);
  });
}

array* dh_dequantize(
    const array* w, const array* scales, const array* biases, int group, int bits, const char* mode, int type) {
  return guard([&] {
    return mx::dequantize(*w, *scales, maybe(biases), group, bits, mode, std::nullopt, type_of(type));
  });
}

// Codes, scales and biases of an affine quantization.
int dh_quantize(const array* a, int group, int bits, array** parts) {
  return attempt([&] {
    auto made = mx::quantize(*a, group, bits, "affine");
    for (int i = 0; i < 3; i++) parts[i] = new array(made.at(i));
  });
}

// ---- fused

array* dh_rms_norm(const array* x, const array* weight, float epsilon) {
  return guard([&] { return mx::fast::rms_norm(*x, maybe(weight), epsilon); });
}

array* dh_layer_norm(const array* x, const array* weight, const array* bias, float epsilon) {
  return guard([&] { return mx::fast::layer_norm(*x, maybe(weight), maybe(bias), epsilon); });
}

// Rotates the first `width` numbers of the last axis by positions from `offset` on (one number, or one per batch). Without
// `wavelengths` they follow from `base`.
array* dh_rope(
    const array* x, int width, int pairs, float base, float scale, const array* offsets, int offset,
    const array* wavelengths) {
  return guard([&] {
    auto geometric = wavelengths ? std::nullopt : std::optional<float>(base);
    if (offsets) {
      return mx::fast::rope(*x, width, pairs != 0, geometric, scale, *offsets, maybe(wavelengths));
    }
    return mx::fast::rope(*x, width, pairs != 0, geometric, scale, offset, maybe(wavelengths));
  });
}

// Radians per position of each pair, as `fast::rope` has them on processors.
array* dh_turns(const array* wavelengths, float base, int pairs) {
  return guard([&] {
    if (wavelengths) return mx::reciprocal(*wavelengths);
    return mx::exp(mx::multiply(mx::arange(0, -pairs, -1, mx::float32), array(std::log(base) / pairs)));
  });
}

// Cosines and sines, `[positions, pairs]`.
int dh_waves(const array* turns, const array* positions, int type, array** parts) {
  return attempt([&] {
    auto angles = mx::multiply(mx::expand_dims(*positions, 1), *turns);
    parts[0] = new array(mx::astype(mx::cos(angles), type_of(type)));
    parts[1] = new array(mx::astype(mx::sin(angles), type_of(type)));
  });
}

// Rotates the first `width` numbers of the last axis, whose halves are the pairs, by known cosines and sines.
array* dh_rotate(const array* x, const array* cosines, const array* sines, int width) {
  return guard([&] {
    auto part = [&](int begin, int end) {
      mx::Shape start(x->ndim(), 0), stop = x->shape(), strides(x->ndim(), 1);
      start.back() = begin;
      stop.back() = end;
      return mx::slice(*x, start, stop, strides);
    };
    auto a = part(0, width / 2), b = part(width / 2, width);
    std::vector<array> parts = {
        mx::subtract(mx::multiply(a, *cosines), mx::multiply(b, *sines)),
        mx::add(mx::multiply(a, *sines), mx::multiply(b, *cosines))};
    if (width < x->shape(-1)) parts.push_back(part(width, x->shape(-1)));
    return mx::concatenate(std::move(parts), -1);
  });
}

// `mask`: an array of truth values, or `causal` for the last queries of the keys, or neither.
array* dh_attention(
    const array* q, const array* k, const array* v, float scale, int causal, const array* mask, const array* sinks) {
  return guard([&] {
    return mx::fast::scaled_dot_product_attention(
        *q, *k, *v, scale, causal ? "causal" : "", maybe(mask), maybe(sinks));
  });
}

} // extern "C"
