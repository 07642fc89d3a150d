// Packed 2-bit codes back to values: for the products of a backward pass, a part of one weight at a time.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "counters.h"
#include "parallel.h"

namespace mote {
namespace {

constexpr int64_t SERIAL = 1 << 17;

// The values of `Digits` digits one after another, for each way they can be: a byte is one look-up of four, or two of
// two where a table serves too few bytes to be worth more. `digits` are the values of one; digit 3 is no number.
template <typename Value, int Digits>
struct Table {
  struct Entry {
    Value values[Digits];
  } entries[1 << (2 * Digits)];

  explicit Table(const Value (&digits)[4]) {
    for (int i = 0; i < 1 << (2 * Digits); ++i) {
      for (int place = 0; place < Digits; ++place) entries[i].values[place] = digits[(i >> (2 * place)) & 3];
    }
  }

  Value one(const uint8_t* packed, int64_t column) const {
    return entries[(packed[column / 4] >> (2 * (column % 4))) & 3].values[0];
  }

  void fill(const uint8_t* packed, int64_t begin, int64_t end, Value* out) const {
    for (; begin < end && begin % 4; ++begin) out[begin] = one(packed, begin);
    for (; begin + 4 <= end; begin += 4) {
      const unsigned byte = packed[begin / 4];
      if constexpr (Digits == 4) {
        std::memcpy(out + begin, &entries[byte], sizeof(Entry));
      } else {
        std::memcpy(out + begin, &entries[byte & 15], sizeof(Entry));
        std::memcpy(out + begin + 2, &entries[byte >> 4], sizeof(Entry));
      }
    }
    for (; begin < end; ++begin) out[begin] = one(packed, begin);
  }
};

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

uint16_t rounded(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <int Digits>
Table<uint32_t, Digits> table(float scale, uint32_t) {
  return Table<uint32_t, Digits>({bits_of(-1.0f * scale), bits_of(0.0f * scale), bits_of(scale), 0x7fc00000u});
}

template <int Digits>
Table<uint16_t, Digits> table(float scale, uint16_t) {
  return Table<uint16_t, Digits>({rounded(-1.0f * scale), rounded(0.0f * scale), rounded(scale), 0x7fc0});
}

struct Packed {
  const uint8_t* codes;
  int64_t rows, columns;
  const float* scales;
  int64_t row_scales, group;

  const uint8_t* row(int64_t index) const { return codes + index * ((columns + 3) / 4); }
};

template <typename Value>
void expand(const Packed& weight, Value* out, int threads) {
  if (weight.row_scales == 0 && weight.group >= weight.columns) {
    const auto shared = table<4>(weight.scales[0], Value());
    return parallel_for(weight.rows, threads, [&](int64_t row, int) {
      shared.fill(weight.row(row), 0, weight.columns, out + row * weight.columns);
    });
  }
  parallel_for(weight.rows, threads, [&](int64_t row, int) {
    const float* scales = weight.scales + row * weight.row_scales;
    for (int64_t begin = 0; begin < weight.columns; begin += weight.group) {
      const auto own = table<2>(scales[begin / weight.group], Value());
      own.fill(weight.row(row), begin, std::min(weight.columns, begin + weight.group), out + row * weight.columns);
    }
  });
}

}  // namespace
}  // namespace mote

using namespace mote;

// Codes [rows, ceil(columns / 4)] times scales (see mote_ternarize), float32 or bfloat16 [rows, columns].
MOTE_API int32_t mote_expand_2bit(const uint8_t* packed, int64_t rows, int64_t columns, const float* scales,
                                  int64_t row_scales, int64_t group, void* out, int32_t out_type, int32_t threads) {
  const bool known = out_type == MOTE_FLOAT32 || out_type == MOTE_BFLOAT16;
  if (!known || rows < 0 || columns < 1 || group < 1) return MOTE_BAD_ARGUMENT;
  count_call(QUANTIZE);
  const Packed weight{packed, rows, columns, scales, row_scales, group};
  const int used = rows * columns < SERIAL ? 1 : threads;
  if (out_type == MOTE_FLOAT32) {
    expand(weight, static_cast<uint32_t*>(out), used);
  } else {
    expand(weight, static_cast<uint16_t*>(out), used);
  }
  return MOTE_OK;
}
