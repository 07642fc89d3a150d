// Every instruction set's products and unpacking of group integers against loops in double precision, in buffers of
// exact size: built with the address and undefined-behaviour sanitizers. Prints what differs, and fails then.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "abi.h"
#include "integer.h"
#include "level.h"

extern "C" {
int32_t mote_set_level(int32_t level);
int32_t mote_int_matmul(const void* x, int32_t x_type, int64_t tokens, const uint8_t* codes, int64_t rows,
                        int64_t columns, int32_t bits, int32_t offset, const void* scales, int32_t scale_type,
                        int64_t scale_stride, int64_t group_size, const void* zeros, int32_t zero_kind,
                        const void* input_scale, const void* bias, void* out, int32_t threads);
int32_t mote_int_unpack(const uint8_t* codes, int64_t rows, int64_t columns, int32_t bits, int32_t offset,
                        const void* scales, int32_t scale_type, int64_t scale_stride, int64_t group_size,
                        const void* zeros, int32_t zero_kind, int64_t first, int64_t count, int32_t type, void* out,
                        int32_t threads);
}

namespace {

using namespace mote;

std::mt19937 random_bits(1);

int draw(int low, int high) { return low + static_cast<int>(random_bits() % static_cast<unsigned>(high - low + 1)); }

// A heap block of exactly so many bytes, one past any alignment: an access beyond it is seen.
class Exact {
 public:
  explicit Exact(int64_t bytes) : memory_(new uint8_t[static_cast<size_t>(bytes) + 1]) {}
  uint8_t* data() const { return memory_.get() + 1; }

 private:
  std::unique_ptr<uint8_t[]> memory_;
};

// Numbers that 16 bits hold exactly, stored as one of the three types.
Exact stored(const std::vector<float>& values, MoteType type) {
  const int64_t size = type == MOTE_FLOAT32 ? 4 : 2;
  Exact made(static_cast<int64_t>(values.size()) * size);
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], 4);
    // Of a float16 that is normal, the exponent is 112 less and ten bits of fraction are left.
    const uint32_t half = values[i] == 0 ? 0 : (bits >> 16 & 0x8000) | (((bits & 0x7fffffff) - 0x38000000) >> 13);
    const uint32_t kept = type == MOTE_FLOAT32 ? bits : type == MOTE_BFLOAT16 ? bits >> 16 : half;
    std::memcpy(made.data() + static_cast<int64_t>(i) * size, &kept, static_cast<size_t>(size));
  }
  return made;
}

double loaded(const uint8_t* from, MoteType type, int64_t i) {
  uint32_t bits = 0;
  std::memcpy(&bits, from + i * (type == MOTE_FLOAT32 ? 4 : 2), type == MOTE_FLOAT32 ? 4 : 2);
  if (type == MOTE_FLOAT16) {
    const double fraction = (bits & 0x3ff) / 1024.0;
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
  if (type == MOTE_BFLOAT16) bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::vector<float> eighths(int64_t count, int low, int high) {
  std::vector<float> values(static_cast<size_t>(count));
  for (auto& value : values) value = static_cast<float>(draw(low, high)) / 8;
  return values;
}

std::vector<uint32_t> numbers(int64_t count, int bits) {
  std::vector<uint32_t> values(static_cast<size_t>(count));
  for (auto& value : values) value = random_bits() & ((1u << bits) - 1);
  return values;
}

Exact packed(const std::vector<uint32_t>& codes, int64_t rows, int64_t columns, int bits) {
  const int64_t bytes = packed_bytes(columns, bits);
  Exact made(rows * bytes);
  std::memset(made.data(), 0, static_cast<size_t>(rows * bytes));
  for (int64_t i = 0; i < rows * columns; ++i)
    for (int64_t bit = 0, at = i % columns * bits; bit < bits; ++bit, ++at)
      if (codes[static_cast<size_t>(i)] >> bit & 1)
        made.data()[i / columns * bytes + at / 8] |= static_cast<uint8_t>(1 << at % 8);
  return made;
}

struct Case {
  int bits;
  int64_t rows, columns, group_size, tokens;
  ZeroKind zeros;
  MoteType scale_type, type;
  bool input_scale;
};

// Returns how many outputs of one level are wrong.
int check(const Case& c, Level level) {
  const int64_t groups = (c.columns + c.group_size - 1) / c.group_size;
  const int offset = c.bits == 1 ? 1 : 1 << (c.bits - 1), step = c.bits == 1 ? 2 : 1;
  const auto codes = numbers(c.rows * c.columns, c.bits), zero_codes = numbers(c.rows * groups, c.bits);
  const auto scales = eighths(c.rows * groups, 1, 8), zeros = eighths(c.rows * groups, 0, 31);
  const auto factors = eighths(c.columns, 4, 12), x = eighths(c.tokens * c.columns, -16, 16);
  const auto bias = eighths(c.rows, -8, 8);
  const Exact code_bytes = packed(codes, c.rows, c.columns, c.bits), scale_bytes = stored(scales, c.scale_type);
  const Exact zero_bytes =
      c.zeros == ZERO_CODES ? packed(zero_codes, c.rows, groups, c.bits) : stored(zeros, c.scale_type);
  const Exact factor_bytes = stored(factors, c.scale_type);
  const Exact x_bytes = stored(x, c.type), bias_bytes = stored(bias, c.type);
  const int64_t size = c.type == MOTE_FLOAT32 ? 4 : 2;
  const Exact out(c.tokens * c.rows * size), dense(c.rows * c.columns * 4);
  const void* zero_data = c.zeros == ZERO_NONE ? nullptr : zero_bytes.data();
  mote_set_level(level);
  int wrong = mote_int_matmul(x_bytes.data(), c.type, c.tokens, code_bytes.data(), c.rows, c.columns, c.bits, offset,
                              scale_bytes.data(), c.scale_type, groups, c.group_size, zero_data, c.zeros,
                              c.input_scale ? factor_bytes.data() : nullptr, bias_bytes.data(), out.data(), 2);
  wrong += mote_int_unpack(code_bytes.data(), c.rows, c.columns, c.bits, offset, scale_bytes.data(), c.scale_type,
                           groups, c.group_size, zero_data, c.zeros, 0, c.rows, MOTE_FLOAT32, dense.data(), 2);
  const double rounding = c.type == MOTE_FLOAT32 ? 0x1p-23 : c.type == MOTE_FLOAT16 ? 0x1p-11 : 0x1p-8;
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t token = 0; token < c.tokens; ++token) {
      double sum = bias[static_cast<size_t>(row)], total = 1;
      for (int64_t column = 0; column < c.columns; ++column) {
        const auto group = static_cast<size_t>(row * groups + column / c.group_size);
        const double zero = c.zeros == ZERO_NONE ? offset : c.zeros == ZERO_CODES ? zero_codes[group] : zeros[group];
        const int64_t at = row * c.columns + column;
        const double value = (step * static_cast<double>(codes[static_cast<size_t>(at)]) - zero) * scales[group];
        wrong += token == 0 && loaded(dense.data(), MOTE_FLOAT32, at) != static_cast<float>(value);
        const double input = x[static_cast<size_t>(token * c.columns + column)] *
                             (c.input_scale ? static_cast<double>(factors[static_cast<size_t>(column)]) : 1.0);
        sum += value * input;
        total += (std::fabs(value) + std::fabs(zero - offset) * scales[group]) * std::fabs(input);
      }
      const double found = loaded(out.data(), c.type, token * c.rows + row);
      wrong += !(std::fabs(found - sum) <= 1.01 * rounding * std::fabs(sum) + 1e-6 * total);
    }
  }
  return wrong;
}

const char* const NAMES[] = {"portable", "avx2", "avxvnni", "avx512", "amx", "neon"};

}  // namespace

int main() {
  int failures = 0, cases = 0;
  for (int level = PORTABLE; level <= NEON; ++level) {
    if (!supports(static_cast<Level>(level))) continue;
    for (int bits : {1, 2, 3, 4, 5, 6, 8}) {
      for (int i = 0; i < 24; ++i, ++cases) {
        const int64_t columns = draw(1, i % 8 == 0 ? 2300 : 300);
        const int64_t sizes[] = {columns, 8, 16, 24, 32, 64, 128, 5};
        const int kind = bits == 1 ? 0 : i % 3;
        const Case one{bits, draw(1, 9), columns, sizes[draw(0, 7)], draw(1, 17), static_cast<ZeroKind>(kind),
                       static_cast<MoteType>(draw(0, 2)), static_cast<MoteType>(draw(0, 2)), i % 5 == 0};
        const int wrong = check(one, static_cast<Level>(level));
        if (wrong == 0) continue;
        failures += 1;
        std::printf("%s: %d bits [%d, %d], groups of %d, %d tokens, zeros %d, types %d and %d: %d wrong\n",
                    NAMES[level], bits, static_cast<int>(one.rows), static_cast<int>(columns),
                    static_cast<int>(one.group_size),
                    static_cast<int>(one.tokens), kind, one.scale_type, one.type, wrong);
      }
    }
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures == 0 ? 0 : 1;
}
