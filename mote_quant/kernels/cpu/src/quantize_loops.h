// The loops of QuantizeKernels, written so that compilers vectorize them. Each tier compiles its own copy: everything
// here has internal linkage, or the linker might keep one tier's code for the processors of another.
#pragma once
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "quantize.h"

namespace mote {
namespace {

constexpr int SUM_LANES = 32;
constexpr float LARGEST_CODE = 127.0f;
constexpr float SMALLEST_ABSMAX = 1.0e-5f;
// Added and taken away again it rounds a float below 2^22 to the nearest whole number, halves to even.
constexpr float ROUNDER = 12582912.0f;

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

struct Float32 {
  using Stored = float;
  static float load(float x) { return x; }
  static float store(float x) { return x; }
};

struct Bfloat16 {
  using Stored = uint16_t;
  static float load(uint16_t x) { return from_bits(static_cast<uint32_t>(x) << 16); }
  static uint16_t store(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : nearest);
  }
};

template <typename Type>
double sum_of(const void* data, int64_t count) {
  const auto* x = static_cast<const typename Type::Stored*>(data);
  double lanes[SUM_LANES] = {};
  int64_t i = 0;
  for (; i + SUM_LANES <= count; i += SUM_LANES) {
    for (int lane = 0; lane < SUM_LANES; ++lane) lanes[lane] += __builtin_fabsf(Type::load(x[i + lane]));
  }
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += __builtin_fabsf(Type::load(x[i]));
  for (int width = SUM_LANES / 2; width; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

double absolute_sum(const void* x, int32_t type, int64_t count) {
  return type == MOTE_FLOAT32 ? sum_of<Float32>(x, count) : sum_of<Bfloat16>(x, count);
}

template <typename In, typename Out>
void ternary_values(const void* data, int64_t count, float scale, void* result) {
  const auto* w = static_cast<const typename In::Stored*>(data);
  auto* out = static_cast<typename Out::Stored*>(result);
  // 0 or NaN: a scale that is no number, or infinite, makes every value no number.
  const float half = 0.5f * scale, zero = 0.0f * scale;
  const auto plus = Out::store(scale), minus = Out::store(-scale), none = Out::store(zero);
  const auto bad = Out::store(__builtin_nanf(""));
  for (int64_t i = 0; i < count; ++i) {
    const float x = In::load(w[i]);
    auto value = x > half ? plus : none;
    value = x < -half ? minus : value;
    out[i] = x == x ? value : bad;
  }
}

template <typename In, typename Out>
void binary_values(const void* data, int64_t count, float scale, void* result) {
  const auto* w = static_cast<const typename In::Stored*>(data);
  auto* out = static_cast<typename Out::Stored*>(result);
  const auto plus = Out::store(scale), minus = Out::store(-scale);
  for (int64_t i = 0; i < count; ++i) out[i] = In::load(w[i]) >= 0.0f ? plus : minus;
}

template <typename In>
void ternary_codes(const void* data, int64_t count, float scale, int8_t* out) {
  const auto* w = static_cast<const typename In::Stored*>(data);
  const float half = 0.5f * scale;
  for (int64_t i = 0; i < count; ++i) {
    const float x = In::load(w[i]);
    out[i] = static_cast<int8_t>((x > half) - (x < -half));
  }
}

template <typename In>
void binary_codes(const void* data, int64_t count, int8_t* out) {
  const auto* w = static_cast<const typename In::Stored*>(data);
  for (int64_t i = 0; i < count; ++i) out[i] = In::load(w[i]) >= 0.0f ? 1 : -1;
}

template <typename In, typename Out>
void values(const void* w, int64_t count, float scale, bool binary, void* out) {
  binary ? binary_values<In, Out>(w, count, scale, out) : ternary_values<In, Out>(w, count, scale, out);
}

template <typename In>
void codes(const void* w, int64_t count, float scale, bool binary, int8_t* out) {
  binary ? binary_codes<In>(w, count, out) : ternary_codes<In>(w, count, scale, out);
}

template <typename In>
void ternarize_from(const void* w, int64_t count, float scale, bool binary, void* out, int32_t to) {
  if (to == CODES_INT8) return codes<In>(w, count, scale, binary, static_cast<int8_t*>(out));
  if (to == MOTE_FLOAT32) return values<In, Float32>(w, count, scale, binary, out);
  values<In, Bfloat16>(w, count, scale, binary, out);
}

void ternarize(const void* w, int32_t type, int64_t count, float scale, bool binary, void* out, int32_t to) {
  if (type == MOTE_FLOAT32) return ternarize_from<Float32>(w, count, scale, binary, out, to);
  return ternarize_from<Bfloat16>(w, count, scale, binary, out, to);
}

void pack(const int8_t* codes, int64_t count, uint8_t* out) {
  const int64_t whole = count / 4;
  for (int64_t i = 0; i < whole; ++i) {
    uint32_t four;
    std::memcpy(&four, codes + 4 * i, sizeof four);
    // The two low bits of a code and one more, by themselves: else -1 would carry into its neighbour.
    four = ((four & 0x03030303u) + 0x01010101u) & 0x03030303u;
    out[i] = static_cast<uint8_t>(four | four >> 6 | four >> 12 | four >> 18);
  }
  if (count == 4 * whole) return;
  uint32_t last = 0x55;  // the columns missing in the last byte hold code 0, whose digit is 1
  for (int64_t i = 4 * whole; i < count; ++i) {
    const int shift = static_cast<int>(2 * (i - 4 * whole));
    last = (last & ~(3u << shift)) | (static_cast<uint32_t>(codes[i] + 1) << shift);
  }
  out[whole] = static_cast<uint8_t>(last);
}

template <typename Type>
float scale_of(const typename Type::Stored* x, int64_t count) {
  // As integers the magnitudes of floats are in order, and NaN is above them all: it is found, not lost.
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<int32_t>(bits_of(Type::load(x[i])) & 0x7fffffffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  const float absmax = from_bits(static_cast<uint32_t>(largest));
  return (absmax < SMALLEST_ABSMAX ? SMALLEST_ABSMAX : absmax) / LARGEST_CODE;
}

template <typename In, typename Out>
float quantize_row_as(const void* data, int64_t count, bool whole, void* result) {
  const auto* x = static_cast<const typename In::Stored*>(data);
  auto* out = static_cast<typename Out::Stored*>(result);
  const float scale = scale_of<In>(x, count), unit = whole ? 1.0f : scale;
  // No quotient is above 127 by more than a rounding error, so none has to be clipped.
  for (int64_t i = 0; i < count; ++i) out[i] = Out::store((In::load(x[i]) / scale + ROUNDER - ROUNDER) * unit);
  return scale;
}

float quantize_row(const void* x, int32_t type, int64_t count, bool whole, void* out, int32_t to) {
  if (type == MOTE_FLOAT32 && to == MOTE_FLOAT32) return quantize_row_as<Float32, Float32>(x, count, whole, out);
  if (type == MOTE_FLOAT32) return quantize_row_as<Float32, Bfloat16>(x, count, whole, out);
  if (to == MOTE_FLOAT32) return quantize_row_as<Bfloat16, Float32>(x, count, whole, out);
  return quantize_row_as<Bfloat16, Bfloat16>(x, count, whole, out);
}

constexpr QuantizeKernels KERNELS{absolute_sum, ternarize, pack, quantize_row};

}  // namespace
}  // namespace mote
