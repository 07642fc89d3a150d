// The quantizers of mote_quant/kernels/cpu/src on odd shapes, in buffers of their exact size: built with the address
// and undefined-behaviour sanitizers. Prints the levels it ran; exits with 1 where a result differs from plain loops.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "abi.h"
#include "level.h"
#include "quantize.h"

extern "C" {
int32_t mote_absolute_sums(const void*, int32_t, int64_t, int64_t, int64_t, double*, int32_t);
int32_t mote_ternarize(const void*, int32_t, int64_t, int64_t, const float*, int64_t, int64_t, int32_t, void*, int32_t,
                       int32_t);
int32_t mote_expand_2bit(const uint8_t*, int64_t, int64_t, const float*, int64_t, int64_t, void*, int32_t, int32_t);
int32_t mote_quantize_activations(const void*, int32_t, int64_t, int64_t, int32_t, void*, int32_t, float*, int32_t);
}

namespace {

int failures = 0;

void expect(bool right, const char* what, int64_t rows, int64_t columns, int64_t group) {
  if (right) return;
  ++failures;
  std::printf("%s differs at %lld x %lld by %lld\n", what, static_cast<long long>(rows),
              static_cast<long long>(columns), static_cast<long long>(group));
}

// Exactly as long as the data, so that a byte too far is seen; shifted by `skew` elements it is aligned to nothing.
template <typename Type>
struct Buffer {
  explicit Buffer(int64_t count, int64_t skew = 0)
      : memory(new Type[static_cast<size_t>(count + skew)]()), data(memory.get() + skew) {}
  std::unique_ptr<Type[]> memory;
  Type* data;
};

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Case {
  int64_t rows, columns, group;
  bool bfloat16;
  int threads;

  int64_t groups() const { return (columns + group - 1) / group; }
  int64_t count() const { return rows * columns; }
};

// A weight of the case, in the type it has there and in float32.
struct Weight {
  Weight(const Case& test, std::mt19937& random) : wide(test.count(), 1), narrow(test.count(), 1) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < test.count(); ++i) {
      narrow.data[i] = to_bfloat16(normal(random));
      wide.data[i] = from_bfloat16(narrow.data[i]);
    }
    data = test.bfloat16 ? static_cast<const void*>(narrow.data) : wide.data;
    type = test.bfloat16 ? MOTE_BFLOAT16 : MOTE_FLOAT32;
  }
  Buffer<float> wide;
  Buffer<uint16_t> narrow;
  const void* data;
  int32_t type;
};

void check_weight(const Case& test, const Weight& weight) {
  const int64_t runs = test.rows * test.groups(), bytes = test.rows * ((test.columns + 3) / 4);
  Buffer<double> sums(runs);
  mote_absolute_sums(weight.data, weight.type, test.rows, test.columns, test.group, sums.data, test.threads);
  Buffer<float> scales(runs);
  std::vector<double> wanted(static_cast<size_t>(runs));
  for (int64_t i = 0; i < test.count(); ++i) {
    wanted[static_cast<size_t>(i / test.columns * test.groups() + i % test.columns / test.group)] +=
        std::fabs(weight.wide.data[i]);
  }
  for (int64_t run = 0; run < runs; ++run) {
    const double apart = std::fabs(sums.data[run] - wanted[static_cast<size_t>(run)]);
    expect(apart <= 1e-9 * wanted[static_cast<size_t>(run)], "absolute_sums", test.rows, test.columns, test.group);
    scales.data[run] = static_cast<float>(sums.data[run] / static_cast<double>(test.group)) + 1e-5f;
  }
  Buffer<int8_t> codes(test.count(), 1);
  Buffer<uint8_t> packed(bytes, 1);
  Buffer<float> values(test.count(), 1), expanded(test.count(), 1);
  Buffer<uint16_t> narrow(test.count(), 1), expanded_narrow(test.count(), 1);
  const auto run = [&](void* out, int32_t type) {
    mote_ternarize(weight.data, weight.type, test.rows, test.columns, scales.data, test.groups(), test.group, 0, out,
                   type, test.threads);
  };
  run(codes.data, mote::CODES_INT8);
  run(packed.data, mote::CODES_2BIT);
  run(values.data, MOTE_FLOAT32);
  run(narrow.data, MOTE_BFLOAT16);
  const auto expand = [&](void* out, int32_t type) {
    mote_expand_2bit(packed.data, test.rows, test.columns, scales.data, test.groups(), test.group, out, type,
                     test.threads);
  };
  expand(expanded.data, MOTE_FLOAT32);
  expand(expanded_narrow.data, MOTE_BFLOAT16);
  bool right = true;
  for (int64_t i = 0; i < test.count(); ++i) {
    const float scale = scales.data[i / test.columns * test.groups() + i % test.columns / test.group];
    const float code = std::fmin(std::fmax(std::nearbyint(weight.wide.data[i] / scale), -1.0f), 1.0f);
    right &= static_cast<float>(codes.data[i]) == code && values.data[i] == code * scale;
    right &= expanded.data[i] == values.data[i] && from_bfloat16(narrow.data[i]) == from_bfloat16(expanded_narrow.data[i]);
  }
  expect(right, "ternarize", test.rows, test.columns, test.group);
}

void check_activations(const Case& test, const Weight& x) {
  Buffer<float> out(test.count(), 1), scales(test.rows);
  Buffer<uint16_t> narrow(test.count(), 1);
  mote_quantize_activations(x.data, x.type, test.rows, test.columns, 1, out.data, MOTE_FLOAT32, scales.data,
                            test.threads);
  mote_quantize_activations(x.data, x.type, test.rows, test.columns, 0, narrow.data, MOTE_BFLOAT16, nullptr,
                            test.threads);
  bool right = true;
  for (int64_t i = 0; i < test.count(); ++i) {
    right &= out.data[i] == std::nearbyint(x.wide.data[i] / scales.data[i / test.columns]);
  }
  expect(right, "quantize_activations", test.rows, test.columns, test.group);
}

void check_level() {
  std::mt19937 random(0);
  for (const int64_t rows : {1, 3, 17}) {
    for (const int64_t columns : {1, 3, 5, 31, 64, 129, 4099}) {
      for (const int64_t group : {int64_t{1}, int64_t{7}, int64_t{128}, columns}) {
        for (const bool bfloat16 : {false, true}) {
          const Case test{rows, columns, std::min(group, columns), bfloat16, 1 + static_cast<int>(rows % 2)};
          const Weight weight(test, random);
          check_weight(test, weight);
          check_activations(test, weight);
        }
      }
    }
  }
  const Case large{3, 70001, 70001, false, 3};  // above what one thread does alone, and more than one block of sums
  check_weight(large, Weight(large, random));
}

void check_not_a_number() {
  const float bad = std::numeric_limits<float>::quiet_NaN(), x[3] = {1.0f, bad, -2.0f}, scale = 1.0f;
  float out[3];
  mote_ternarize(x, MOTE_FLOAT32, 1, 3, &scale, 0, 3, 0, out, MOTE_FLOAT32, 1);
  expect(out[0] == 1.0f && std::isnan(out[1]) && out[2] == -1.0f, "NaN in a weight", 1, 3, 3);
  mote_quantize_activations(x, MOTE_FLOAT32, 1, 3, 0, out, MOTE_FLOAT32, nullptr, 1);
  expect(std::isnan(out[0]) && std::isnan(out[2]), "NaN in a token", 1, 3, 3);
}

}  // namespace

int main() {
  const char* names[] = {"portable", "avx2", "avxvnni", "avx512", "amx", "neon"};
  for (const mote::Level level : {mote::PORTABLE, mote::AVX2, mote::AVX512, mote::NEON}) {
    if (!mote::set_level(level)) continue;
    check_level();
    check_not_a_number();
    std::printf("%s\n", names[level]);
  }
  float nothing = 0.0f;
  expect(mote_absolute_sums(&nothing, 9, 1, 1, 1, nullptr, 1) == MOTE_BAD_ARGUMENT, "an unknown type", 1, 1, 1);
  return failures != 0;
}
