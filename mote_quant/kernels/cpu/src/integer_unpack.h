// Packed rows as floats in the order of their columns, for any vector unit: included after integer_rows.h.
#pragma once
#include "integer_rows.h"

namespace mote {
namespace {

// Where the values of a row go: `values[at + column]`.
struct Destination {
  MoteType type;
  void* values;
  int64_t at;
};

// Columns [column, end) of one group.
template <int Bits>
void unpack_group(const uint8_t* codes, int64_t column, int64_t end, float scale, float zero, const Destination& to) {
  using Sum = typename Vector::Sum;
  const Sum scales = Vector::broadcast(scale), zeros = Vector::broadcast(zero);
  const auto unpack = [&](int64_t count) __attribute__((always_inline)) {
    Sum code = Vector::template load_codes<Bits>(codes + column * Bits / 8, count);
    if constexpr (Bits == 1) code = Vector::multiply(code, Vector::broadcast(2.0f));
    const Sum value = Vector::multiply(Vector::subtract(code, zeros), scales);
    Vector::store_floats(to.values, to.type, to.at + column, value, count);
  };
  for (; column + Vector::LANES <= end; column += Vector::LANES) unpack(Vector::LANES);
  if (column < end) unpack(end - column);
}

template <int Bits>
void unpack_row(const IntegerWeight& weight, int64_t row, const Destination& to) {
  const uint8_t* codes = weight.codes + row * weight.row_bytes;
  Factors factors;
  for (int64_t group = 0; group < weight.groups; ++group) {
    const int64_t i = group % GROUPS, left = weight.groups - group, begin = group * weight.group_size;
    if (i == 0) load_factors<Bits>(weight, row, group, left < GROUPS ? left : GROUPS, factors);
    const int64_t end = left == 1 ? weight.columns : begin + weight.group_size;
    const float zero = weight.zero_kind == ZERO_NONE ? static_cast<float>(weight.offset) : factors.zero[i];
    unpack_group<Bits>(codes, begin, end, factors.scale[i], zero, to);
  }
}

void unpack(const IntegerWeight& weight, int64_t first, int64_t rows, MoteType type, void* out) {
  with_bits(weight.bits, [&](auto bits) {
    for (int64_t row = 0; row < rows; ++row)
      unpack_row<decltype(bits)::value>(weight, first + row, {type, out, row * weight.columns});
  });
}

}  // namespace
}  // namespace mote
