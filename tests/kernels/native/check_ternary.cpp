// Every instruction set's ternary functions against a naive loop, in buffers of exact size: built with the address and
// undefined-behaviour sanitizers by test_native_checks.py. Prints what differs; exits with 1 if anything does.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "level.h"
#include "ternary.h"
#include "ternary_products.h"

extern "C" {
int32_t mote_set_level(int32_t level);
int32_t mote_ternary_matmul(const void* x, int32_t type, int64_t tokens, int64_t columns, const uint8_t* codes,
                            int32_t packing, int64_t rows, const void* scales, int32_t scale_type, int32_t one_scale,
                            const void* biases, int32_t bias_type, void* out, int32_t threads);
int32_t mote_ternary_accumulate(const int8_t* x, int64_t tokens, int64_t columns, const uint8_t* codes, int32_t packing,
                                int64_t rows, int32_t* out, int32_t threads);
int32_t mote_ternary_experts(const void* x, int32_t type, int64_t tokens, int64_t hidden, int64_t inner,
                             int64_t experts, int64_t top_k, const int64_t* chosen, const float* gates, int32_t gated,
                             int32_t activation, const uint8_t* const* codes, int32_t packing,
                             const void* const* scales, int32_t scale_type, int32_t one_scale,
                             const void* const* biases, int32_t bias_type, void* out, int32_t threads);
}

namespace {

using namespace mote;

int failures = 0;
std::mt19937 random_bits(1);

int draw(int low, int high) { return low + static_cast<int>(random_bits() % static_cast<unsigned>(high - low + 1)); }

// A heap block of exactly so many elements, off by a byte from any alignment: an access beyond it is seen.
template <typename T>
struct Exact {
  std::unique_ptr<uint8_t[]> memory;
  T* data;
  explicit Exact(int64_t count) : memory(new uint8_t[static_cast<size_t>(count) * sizeof(T) + 1]) {
    data = reinterpret_cast<T*>(memory.get() + (sizeof(T) == 1 ? 1 : 0));
  }
};

struct Weight {
  int64_t rows, columns;
  Packing packing;
  std::vector<int8_t> codes;
  Exact<uint8_t> bytes;

  Weight(int64_t rows, int64_t columns, Packing packing, int fill)
      : rows(rows),
        columns(columns),
        packing(packing),
        codes(static_cast<size_t>(rows * columns)),
        bytes(rows * row_bytes_of(columns, packing)) {
    for (auto& code : codes) code = static_cast<int8_t>(fill == 2 ? draw(-1, 1) : fill);
    const int64_t per_byte = planes_of(packing), row_bytes = row_bytes_of(columns, packing);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t b = 0; b < row_bytes; ++b) bytes.data[r * row_bytes + b] = byte_at(r, b * per_byte, per_byte);
  }

  uint8_t byte_at(int64_t row, int64_t column, int64_t per_byte) const {
    int number = 0;
    for (int64_t i = 0; i < per_byte; ++i) {
      const int digit = column + i < columns ? codes[static_cast<size_t>(row * columns + column + i)] + 1 : 1;
      number = packing == TWO_BITS ? number | digit << (2 * i) : 3 * number + digit;
    }
    return static_cast<uint8_t>(packing == TWO_BITS ? number : (256 * number + 242) / 243);
  }

  int64_t dot(int64_t row, const int8_t* x) const {
    int64_t sum = 0;
    for (int64_t c = 0; c < columns; ++c) sum += codes[static_cast<size_t>(row * columns + c)] * x[c];
    return sum;
  }
};

void expect(bool good, const char* what, const char* tier, int64_t rows, int64_t columns, int64_t tokens, int packing) {
  if (good || ++failures > 20) return;
  std::printf("%s differs at %s: %lld rows, %lld columns, %lld tokens, packing %d\n", what, tier,
              static_cast<long long>(rows), static_cast<long long>(columns), static_cast<long long>(tokens), packing);
}

// Through the tier itself: this works for those that are emulated.
void check_tier(const TernaryTier& tier, const char* name, int64_t rows, int64_t columns, int64_t tokens,
                Packing packing, int fill) {
  const Weight weight(rows, columns, packing, fill);
  const int64_t stride = token_stride(columns, packing);
  Exact<int8_t> x(tokens * columns);
  Exact<int8_t> codes(tokens * stride);
  std::memset(codes.data, 0, static_cast<size_t>(tokens * stride));
  std::vector<float> scales(static_cast<size_t>(tokens));
  std::vector<int32_t> sums(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < columns; ++c) {
      x.data[t * columns + c] = static_cast<int8_t>(fill == 2 ? draw(-127, 127) : (t % 2 ? -127 : 127));
      codes.data[t * stride + place_of(c, packing)] = x.data[t * columns + c];
      sums[static_cast<size_t>(t)] += x.data[t * columns + c];
    }
  }
  std::vector<int32_t> found(static_cast<size_t>(PIECE_ROWS * tokens), -1);
  multiply_piece(tier, {weight.bytes.data, row_bytes_of(columns, packing), rows, packing},
                 {codes.data, stride, scales.data(), sums.data(), tokens}, {found.data(), PIECE_ROWS});
  bool good = true;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r)
      good &= found[static_cast<size_t>(t * PIECE_ROWS + r)] - sums[static_cast<size_t>(t)] ==
              weight.dot(r, x.data + t * columns);
  expect(good, "accumulate", name, rows, columns, tokens, packing);
}

void check_products(const TernaryTier& tier, const char* name) {
  const int64_t widths[] = {1, 3, 4, 5, 63, 64, 65, 255, 256, 257, 319, 320, 321, 640, 1281};
  for (const Packing packing : {TWO_BITS, BASE3}) {
    for (const int64_t columns : widths)
      for (const int64_t tokens : {1, 2, 4, 5, 13, 33})
        check_tier(tier, name, draw(1, 64), columns, tokens, packing, 2);
    for (const int64_t rows : {1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 64})
      check_tier(tier, name, rows, draw(1, 700), draw(1, 40), packing, 2);
    for (const int fill : {-1, 1})
      for (const int64_t tokens : {1, 2, 17}) check_tier(tier, name, 3, 34'001, tokens, packing, fill);
  }
}

template <typename T>
void fill_floats(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(draw(-1000, 1000)) / 250.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const auto half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to + i, sizeof(T) == 4 ? static_cast<const void*>(&value) : &half, sizeof(T));
  }
}

// Every type, finite or not: what is checked here is what the sanitizers see, and that outputs are numbers or NaN.
template <typename T>
void check_matmul(MoteType type, const char* name, int64_t tokens, int64_t rows, int64_t columns, Packing packing) {
  const Weight weight(rows, columns, packing, 2);
  Exact<T> x(tokens * columns), biases(rows), out(tokens * rows), scales(rows);
  fill_floats(x.data, tokens * columns);
  fill_floats(biases.data, rows);
  fill_floats(scales.data, rows);
  if (tokens > 2) std::memset(x.data + columns, 0xff, sizeof(T));
  const int32_t error = mote_ternary_matmul(x.data, type, tokens, columns, weight.bytes.data, packing, rows,
                                            scales.data, type, 0, biases.data, type, out.data, 2);
  expect(error == MOTE_OK, "matmul's answer", name, rows, columns, tokens, packing);
  if (type != MOTE_FLOAT32) return;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r) {
      float value;
      std::memcpy(&value, out.data + t * rows + r, 4);
      expect(std::isnan(value) == (tokens > 2 && t == 1), "NaN", name, rows, columns, t, packing);
    }
}

void check_experts(const char* name, int64_t tokens, int64_t hidden, int64_t inner, bool gated, Packing packing) {
  constexpr int64_t EXPERTS = 3, TOP_K = 2;
  const int64_t projections = gated ? 3 : 2;
  std::vector<std::unique_ptr<Weight>> weights;
  std::vector<const uint8_t*> codes;
  std::vector<const void*> scales;
  const float scale = 0.01f;
  for (int64_t i = 0; i < EXPERTS * projections; ++i) {
    const bool down = i % projections == projections - 1;
    weights.emplace_back(new Weight(down ? hidden : inner, down ? inner : hidden, packing, 2));
    codes.push_back(weights.back()->bytes.data);
    scales.push_back(&scale);
  }
  Exact<float> x(tokens * hidden), gates(tokens * TOP_K), out(tokens * hidden), again(tokens * hidden);
  Exact<int64_t> chosen(tokens * TOP_K);
  fill_floats(x.data, tokens * hidden);
  fill_floats(gates.data, tokens * TOP_K);
  for (int64_t i = 0; i < tokens * TOP_K; ++i) chosen.data[i] = draw(-1, EXPERTS - 1);
  for (const int activation : {0, 1, 2, 3, 4, 5}) {
    for (const int threads : {1, 2}) {
      const int32_t error =
          mote_ternary_experts(x.data, MOTE_FLOAT32, tokens, hidden, inner, EXPERTS, TOP_K, chosen.data, gates.data,
                               gated, activation, codes.data(), packing, scales.data(), MOTE_FLOAT32, 1, nullptr,
                               MOTE_FLOAT32, threads == 1 ? out.data : again.data, threads);
      expect(error == MOTE_OK, "experts' answer", name, inner, hidden, tokens, packing);
    }
    const bool same = std::memcmp(out.data, again.data, static_cast<size_t>(tokens * hidden) * 4) == 0;
    expect(same, "experts on two threads", name, inner, hidden, tokens, packing);
  }
}

void check_level(Level level, const char* name, const TernaryTier& tier) {
  if (mote_set_level(level) != MOTE_OK) return;
  std::printf("%s\n", name);
  check_products(tier, name);
  for (const Packing packing : {TWO_BITS, BASE3}) {
    for (const int64_t tokens : {0, 1, 3, 40}) {
      check_matmul<float>(MOTE_FLOAT32, name, tokens, 37, 331, packing);
      check_matmul<uint16_t>(MOTE_BFLOAT16, name, tokens, 37, 331, packing);
      check_matmul<uint16_t>(MOTE_FLOAT16, name, tokens, 37, 331, packing);
      check_experts(name, tokens, 45, 83, tokens % 2 == 0, packing);
    }
    check_matmul<float>(MOTE_FLOAT32, name, 3, 0, 9, packing);
  }
}

}  // namespace

int main() {
  check_level(PORTABLE, "portable", ternary_portable());
#ifdef MOTE_WITH_AVX2
  check_level(AVX2, "avx2", ternary_avx2());
#endif
#if defined(MOTE_WITH_AVXVNNI) && !defined(MOTE_EMULATE_AVXVNNI)
  check_level(AVXVNNI, "avxvnni", ternary_avxvnni());
#endif
#ifdef MOTE_WITH_AVX512
  check_level(AVX512, "avx512", ternary_avx512());
#endif
#ifdef MOTE_WITH_NEON
  check_level(NEON, "neon", ternary_neon());
#endif
#if defined(MOTE_WITH_AVXVNNI) && defined(MOTE_EMULATE_AVXVNNI)
  if (supports(AVX2)) {
    std::printf("avxvnni, emulated\n");
    check_products(ternary_avxvnni(), "avxvnni, emulated");
  }
#endif
#if defined(MOTE_WITH_AMX) && defined(MOTE_EMULATE_AMX)
  if (supports(AVX512)) {
    std::printf("amx, emulated\n");
    check_products(ternary_amx(), "amx, emulated");
  }
#endif
  return failures == 0 ? 0 : 1;
}
