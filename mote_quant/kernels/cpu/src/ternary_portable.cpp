#include "activations.h"
#include "ternary.h"
#include "ternary_loops.h"

namespace mote {
namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The digits of up to 64 bytes, plane by plane, as they stand against the codes of a token.
void digits_of(const uint8_t* bytes, int64_t count, Packing packing, uint8_t (*planes)[BLOCK]) {
  if (packing == TWO_BITS) {
    for (int plane = 0; plane < 4; ++plane)
      for (int64_t i = 0; i < count; ++i) planes[plane][i] = static_cast<uint8_t>((bytes[i] >> (2 * plane)) & 3);
    return;
  }
  uint8_t fraction[BLOCK];
  std::memcpy(fraction, bytes, static_cast<size_t>(count));
  for (int plane = 0; plane < 5; ++plane) {
    for (int64_t i = 0; i < count; ++i) {
      const int tripled = 3 * fraction[i];
      planes[plane][i] = static_cast<uint8_t>(tripled >> 8);
      fraction[i] = static_cast<uint8_t>(tripled);
    }
  }
}

int32_t dot(const uint8_t* digits, const int8_t* codes, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<int16_t>(digits[i] * codes[i]);
  return sum;
}

int32_t multiply_row(const uint8_t* row, const PackedRows& rows, const int8_t* codes) {
  const int64_t planes = planes_of(rows.packing);
  int32_t sum = 0;
  for (int64_t at = 0; at < rows.row_bytes; at += BLOCK, codes += planes * BLOCK) {
    uint8_t digits[MAX_PLANES][BLOCK] = {};
    digits_of(row + at, smaller(BLOCK, rows.row_bytes - at), rows.packing, digits);
    sum += dot(digits[0], codes, planes * BLOCK);
  }
  return sum;
}

void multiply_few(const PackedRows& rows, const Tokens& tokens, Sums sums) {
  for (int64_t t = 0; t < tokens.count; ++t)
    for (int64_t r = 0; r < rows.count; ++r)
      sums.values[t * sums.stride + r] =
          multiply_row(rows.bytes + r * rows.row_bytes, rows, tokens.codes + t * tokens.stride);
}

void unpack(const PackedRows& rows, int64_t first, int64_t blocks, uint8_t* digits) {
  const int64_t planes = planes_of(rows.packing);
  for (int64_t block = first; block < first + blocks; ++block, digits += planes * STEPS_A_PLANE * BLOCK) {
    const int64_t at = block * BLOCK;
    for (int64_t r = 0; r < rows.count; ++r) {
      uint8_t row[MAX_PLANES][BLOCK] = {};
      digits_of(rows.bytes + r * rows.row_bytes + at, smaller(BLOCK, rows.row_bytes - at), rows.packing, row);
      for (int64_t step = 0; step < planes * STEPS_A_PLANE; ++step)
        std::memcpy(digits + step * BLOCK + r * STEP, row[0] + step * STEP, STEP);
    }
  }
}

void multiply_group(const uint8_t* digits, int64_t steps, const int8_t* codes, int32_t* sums) {
  int32_t total[GROUP] = {};
  for (int64_t step = 0; step < steps; ++step, digits += BLOCK, codes += STEP) {
    for (int64_t r = 0; r < GROUP; ++r) {
      int32_t four = 0;
      for (int64_t i = 0; i < STEP; ++i) four += digits[r * STEP + i] * codes[i];
      total[r] += four;
    }
  }
  for (int64_t r = 0; r < GROUP; ++r) sums[r] += total[r];
}

void multiply(const uint8_t* digits, int64_t group_bytes, int groups, int64_t steps, const Tokens& tokens, Sums sums) {
  for (int g = 0; g < groups; ++g)
    for (int64_t t = 0; t < tokens.count; ++t)
      multiply_group(digits + g * group_bytes, steps, tokens.codes + t * tokens.stride,
                     sums.values + t * sums.stride + g * GROUP);
}

}  // namespace

const TernaryTier& ternary_portable() {
  static constexpr TernaryTier tier = {{3, 3}, multiply_few, unpack,  multiply,   quantize,
                                       finish, activate,     combine, from_floats};
  return tier;
}

}  // namespace mote
