// Any processor, any group size: a row is unpacked to floats, then multiplied, in loops that compilers vectorise.
#include "integer.h"

#include <vector>

#include "float_rows.h"

namespace mote {
namespace {

// Partial sums of a row: enough for the vectors of any processor, added up in one fixed order.
constexpr int LANES = 16;

// Eight codes, or the last few: they begin a byte.
template <int Bits>
uint64_t read_unit(const uint8_t* from, int64_t codes) {
  uint64_t unit = 0;
  for (int64_t byte = 0; byte * 8 < codes * Bits; ++byte) unit |= static_cast<uint64_t>(from[byte]) << (8 * byte);
  return unit;
}

// The first `count` codes of a row as floats.
template <int Bits>
void read_codes(const uint8_t* codes, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 8) {
    const int64_t left = count - i < 8 ? count - i : 8;
    const uint64_t unit = read_unit<Bits>(codes + i / 8 * Bits, left);
    for (int64_t k = 0; k < left; ++k)
      out[i + k] = static_cast<float>(static_cast<uint32_t>(unit >> (k * Bits)) & ((1u << Bits) - 1));
  }
}

void read_codes(const uint8_t* codes, int bits, int64_t count, float* out) {
  switch (bits) {
    case 1: return read_codes<1>(codes, count, out);
    case 2: return read_codes<2>(codes, count, out);
    case 3: return read_codes<3>(codes, count, out);
    case 4: return read_codes<4>(codes, count, out);
    case 5: return read_codes<5>(codes, count, out);
    case 6: return read_codes<6>(codes, count, out);
    default: return read_codes<8>(codes, count, out);
  }
}

// Scales, then zero points, of all groups of one row.
void read_factors(const IntegerWeight& weight, int64_t row, float* scales, float* zeros) {
  const int64_t at = row * weight.scale_stride * size_of(weight.scale_type), groups = weight.groups;
  to_floats(static_cast<const char*>(weight.scales) + at, weight.scale_type, groups, scales);
  if (weight.zero_kind == ZERO_FLOATS) {
    to_floats(static_cast<const char*>(weight.zeros) + at, weight.scale_type, groups, zeros);
  } else if (weight.zero_kind == ZERO_CODES) {
    const auto* packed = static_cast<const uint8_t*>(weight.zeros) + row * packed_bytes(groups, weight.bits);
    read_codes(packed, weight.bits, groups, zeros);
  } else {
    for (int64_t group = 0; group < groups; ++group) zeros[group] = static_cast<float>(weight.offset);
  }
}

// A row as floats, and room for its factors.
struct Row {
  std::vector<float> scales, zeros, values;

  explicit Row(const IntegerWeight& weight)
      : scales(static_cast<size_t>(weight.groups)), zeros(scales.size()), values(static_cast<size_t>(weight.columns)) {}
};

const float* unpack_row(const IntegerWeight& weight, int64_t row, Row& scratch) {
  const float *scales = scratch.scales.data(), *zeros = scratch.zeros.data();
  float* values = scratch.values.data();
  read_factors(weight, row, scratch.scales.data(), scratch.zeros.data());
  read_codes(weight.codes + row * weight.row_bytes, weight.bits, weight.columns, values);
  const auto step = static_cast<float>(weight.step);
  for (int64_t group = 0, column = 0; group < weight.groups; ++group) {
    const int64_t full = column + weight.group_size;
    const int64_t end = full < weight.columns ? full : weight.columns;
    const float scale = scales[group], zero = zeros[group];
    for (; column < end; ++column) values[column] = (step * values[column] - zero) * scale;
  }
  return values;
}

float dot(const float* a, const float* b, int64_t count) {
  float sums[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    for (int lane = 0; lane < LANES; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (int lane = 0; i < count; ++i, ++lane) sums[lane] += a[i] * b[i];
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

void multiply(const IntegerWeight& weight, const IntegerActivations& x, int64_t first, int64_t rows, float* sums) {
  Row scratch(weight);
  for (int64_t row = 0; row < rows; ++row) {
    const float* unpacked = unpack_row(weight, first + row, scratch);
    for (int64_t token = 0; token < x.tokens; ++token) {
      const auto* values = reinterpret_cast<const float*>(x.planes + token * x.token_bytes);
      sums[token * rows + row] = dot(unpacked, values, weight.columns);
    }
  }
}

void unpack(const IntegerWeight& weight, int64_t first, int64_t rows, MoteType type, void* out) {
  Row scratch(weight);
  for (int64_t row = 0; row < rows; ++row) {
    const float* unpacked = unpack_row(weight, first + row, scratch);
    from_floats(unpacked, type, weight.columns, static_cast<char*>(out) + row * weight.columns * size_of(type));
  }
}

}  // namespace

const IntegerTier& integer_portable() {
  static constexpr IntegerTier tier{0, false, multiply, unpack};
  return tier;
}

}  // namespace mote
