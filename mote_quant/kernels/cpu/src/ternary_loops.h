// What surrounds the products, in plain loops that the compiler vectorises: compiled anew in each unit that includes
// this, for that unit's instruction set.
#pragma once
#include "float_rows.h"
#include "ternary.h"

namespace mote {
namespace {

constexpr float SMALLEST_MAXIMUM = 1e-5f;
constexpr float LARGEST_CODE = 127.0f;
constexpr int64_t MAX_BLOCK_COLUMNS = BLOCK * MAX_PLANES;

// As bits, larger magnitudes are larger integers, and NaN is above infinity: it survives.
uint32_t largest_magnitude(const void* row, MoteType type, int64_t columns) {
  float values[MAX_BLOCK_COLUMNS];
  int32_t largest = 0;
  for (int64_t first = 0; first < columns; first += MAX_BLOCK_COLUMNS) {
    const int64_t count = columns - first < MAX_BLOCK_COLUMNS ? columns - first : MAX_BLOCK_COLUMNS;
    to_floats(static_cast<const char*>(row) + first * size_of(type), type, count, values);
    for (int64_t i = 0; i < count; ++i) {
      const auto magnitude = static_cast<int32_t>(bits_of_float(values[i]) & 0x7fffffff);
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  return static_cast<uint32_t>(largest);
}

// Adding 1.5 * 2^23 leaves a float rounded to an integer (half to even) in its low bits. No quotient exceeds 127 once
// rounded: the scale is the largest magnitude / 127 to within half a unit in the last place.
int32_t round_codes(const float* values, int64_t count, float scale, int8_t* codes) {
  constexpr float ROUNDER = 12582912.0f;
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto code = static_cast<int32_t>(bits_of_float(values[i] / scale + ROUNDER) - bits_of_float(ROUNDER));
    codes[i] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

template <int Planes>
void to_planes(const int8_t* codes, int8_t* planes) {
  for (int64_t i = 0; i < BLOCK; ++i)
    for (int plane = 0; plane < Planes; ++plane) planes[plane * BLOCK + i] = codes[Planes * i + plane];
}

template <int Planes>
int32_t quantize_blocks(const void* row, MoteType type, int64_t columns, float scale, int8_t* planes) {
  constexpr int64_t WIDTH = Planes * BLOCK;
  float values[WIDTH];
  int8_t codes[WIDTH];
  int32_t sum = 0;
  for (int64_t first = 0; first < columns; first += WIDTH, planes += WIDTH) {
    const int64_t count = columns - first < WIDTH ? columns - first : WIDTH;
    to_floats(static_cast<const char*>(row) + first * size_of(type), type, count, values);
    if (count < WIDTH) std::memset(codes, 0, sizeof codes);
    sum += round_codes(values, count, scale, codes);
    to_planes<Planes>(codes, planes);
  }
  return sum;
}

void quantize(const void* row, MoteType type, int64_t columns, Packing packing, const Tokens& token) {
  const float largest = float_of_bits(largest_magnitude(row, type, columns));
  if (!(largest < float_of_bits(0x7f800000))) {
    std::memset(token.codes, 0, static_cast<size_t>(token.stride));
    token.sums[0] = 0;
    token.scales[0] = float_of_bits(0x7fc00000);
    return;
  }
  const float scale = (largest > SMALLEST_MAXIMUM ? largest : SMALLEST_MAXIMUM) / LARGEST_CODE;
  token.scales[0] = scale;
  token.sums[0] = packing == TWO_BITS ? quantize_blocks<4>(row, type, columns, scale, token.codes)
                                      : quantize_blocks<5>(row, type, columns, scale, token.codes);
}

void finish(const int32_t* sums, int64_t rows, int32_t token_sum, float token_scale, const float* scales,
            const float* biases, float* out) {
  for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<float>(sums[r] - token_sum) * (token_scale * scales[r]);
  if (biases == nullptr) return;
  for (int64_t r = 0; r < rows; ++r) out[r] += biases[r];
}

void combine(const float* const* rows, const float* factors, int64_t terms, int64_t count, MoteType type, void* out) {
  constexpr int64_t CHUNK = 256;
  float total[CHUNK];
  for (int64_t first = 0; first < count; first += CHUNK) {
    const int64_t some = count - first < CHUNK ? count - first : CHUNK;
    for (int64_t i = 0; i < some; ++i) total[i] = 0.0f;
    for (int64_t term = 0; term < terms; ++term)
      for (int64_t i = 0; i < some; ++i) total[i] += factors[term] * rows[term][first + i];
    from_floats(total, type, some, static_cast<char*>(out) + first * size_of(type));
  }
}

}  // namespace
}  // namespace mote
