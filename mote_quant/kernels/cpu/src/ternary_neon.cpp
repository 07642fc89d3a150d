#include <arm_neon.h>

#include "activations.h"
#include "ternary.h"
#include "ternary_loops.h"

namespace mote {
namespace {

constexpr int64_t QUARTER = BLOCK / 4;
constexpr int ROWS_AT_ONCE = 4;
constexpr int TILE_TOKENS = 4;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Comparisons give -1 where they hold.
int8x16_t digit_of(uint8x16_t fraction) {
  const uint8x16_t negative = vaddq_u8(vcgtq_u8(fraction, vdupq_n_u8(85)), vcgtq_u8(fraction, vdupq_n_u8(170)));
  return vnegq_s8(vreinterpretq_s8_u8(negative));
}

template <Packing P>
inline void digits_of(uint8x16_t bytes, int8x16_t* planes) {
  if constexpr (P == TWO_BITS) {
    const uint8x16_t mask = vdupq_n_u8(3);
    planes[0] = vreinterpretq_s8_u8(vandq_u8(bytes, mask));
    planes[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 2), mask));
    planes[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 4), mask));
    planes[3] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 6));
  } else {
    for (int plane = 0; plane < 5; ++plane, bytes = vaddq_u8(vaddq_u8(bytes, bytes), bytes))
      planes[plane] = digit_of(bytes);
  }
}

// The end of each row, with zeros after it.
struct RowEnds {
  uint8_t bytes[GROUP][BLOCK];
  const uint8_t* row[GROUP];

  void copy(const uint8_t* const* rows, int64_t count, int64_t at, int64_t bytes_left) {
    std::memset(bytes, 0, sizeof bytes);
    for (int64_t r = 0; r < count; ++r) {
      row[r] = bytes[r];
      std::memcpy(bytes[r], rows[r] + at, static_cast<size_t>(bytes_left));
    }
  }
};

// ---- one token: rows as they are stored ----

template <Packing P>
inline void multiply_block(int32x4_t* sums, const uint8_t* const* row, int64_t at, const int8_t* x) {
  constexpr int PLANES = P == TWO_BITS ? 4 : 5;
  for (int64_t quarter = 0; quarter < BLOCK; quarter += QUARTER) {
    for (int r = 0; r < ROWS_AT_ONCE; ++r) {
      int8x16_t digits[PLANES];
      digits_of<P>(vld1q_u8(row[r] + at + quarter), digits);
      for (int plane = 0; plane < PLANES; ++plane)
        sums[r] = vdotq_s32(sums[r], digits[plane], vld1q_s8(x + plane * BLOCK + quarter));
    }
  }
}

template <Packing P>
void multiply_rows(const uint8_t* const* row, int64_t row_bytes, const int8_t* x, int32_t* out) {
  constexpr int64_t PLANES = P == TWO_BITS ? 4 : 5;
  int32x4_t sums[ROWS_AT_ONCE];
  for (auto& sum : sums) sum = vdupq_n_s32(0);
  int64_t at = 0;
  for (; at + BLOCK <= row_bytes; at += BLOCK) multiply_block<P>(sums, row, at, x + at * PLANES);
  if (at < row_bytes) {
    RowEnds ends;
    ends.copy(row, ROWS_AT_ONCE, at, row_bytes - at);
    multiply_block<P>(sums, ends.row, 0, x + at * PLANES);
  }
  for (int r = 0; r < ROWS_AT_ONCE; ++r) out[r] = vaddvq_s32(sums[r]);
}

void multiply_few(const PackedRows& rows, const Tokens& tokens, Sums sums) {
  for (int64_t first = 0; first < rows.count; first += ROWS_AT_ONCE) {
    const uint8_t* row[ROWS_AT_ONCE];
    for (int64_t r = 0; r < ROWS_AT_ONCE; ++r)
      row[r] = rows.bytes + smaller(first + r, rows.count - 1) * rows.row_bytes;
    int32_t four[ROWS_AT_ONCE];
    rows.packing == TWO_BITS ? multiply_rows<TWO_BITS>(row, rows.row_bytes, tokens.codes, four)
                             : multiply_rows<BASE3>(row, rows.row_bytes, tokens.codes, four);
    std::memcpy(sums.values + first, four, static_cast<size_t>(smaller(ROWS_AT_ONCE, rows.count - first)) * 4);
  }
}

// ---- many tokens: digits side by side ----

// Bytes [at, at + 16) of 4 rows as four vectors: dword `j` of each row in row order.
void transpose_four(const uint8_t* const* row, int64_t at, uint8x16_t* dwords) {
  uint32x4_t rows[4];
  for (int r = 0; r < 4; ++r) rows[r] = vreinterpretq_u32_u8(vld1q_u8(row[r] + at));
  const uint32x4x2_t low = vtrnq_u32(rows[0], rows[1]), high = vtrnq_u32(rows[2], rows[3]);
  for (int j = 0; j < 2; ++j) {
    dwords[j] = vreinterpretq_u8_u32(vcombine_u32(vget_low_u32(low.val[j]), vget_low_u32(high.val[j])));
    dwords[j + 2] = vreinterpretq_u8_u32(vcombine_u32(vget_high_u32(low.val[j]), vget_high_u32(high.val[j])));
  }
}

template <Packing P>
void unpack_block(const uint8_t* const* row, int64_t at, uint8_t* digits) {
  constexpr int PLANES = P == TWO_BITS ? 4 : 5;
  for (int64_t quarter = 0; quarter < 4; ++quarter) {
    for (int64_t four = 0; four < GROUP / 4; ++four) {
      uint8x16_t dwords[4];
      transpose_four(row + 4 * four, at + QUARTER * quarter, dwords);
      for (int64_t j = 0; j < 4; ++j) {
        int8x16_t planes[PLANES];
        digits_of<P>(dwords[j], planes);
        for (int64_t plane = 0; plane < PLANES; ++plane)
          vst1q_u8(digits + (plane * STEPS_A_PLANE + 4 * quarter + j) * BLOCK + four * QUARTER,
                   vreinterpretq_u8_s8(planes[plane]));
      }
    }
  }
}

void unpack(const PackedRows& rows, int64_t first, int64_t blocks, uint8_t* digits) {
  const uint8_t* row[GROUP];
  for (int64_t r = 0; r < GROUP; ++r) row[r] = rows.bytes + smaller(r, rows.count - 1) * rows.row_bytes;
  void (*const unpack_one)(const uint8_t* const*, int64_t, uint8_t*) =
      rows.packing == TWO_BITS ? unpack_block<TWO_BITS> : unpack_block<BASE3>;
  const int64_t block_bytes = planes_of(rows.packing) * STEPS_A_PLANE * BLOCK;
  for (int64_t at = first * BLOCK; at < (first + blocks) * BLOCK; at += BLOCK, digits += block_bytes) {
    if (at + BLOCK <= rows.row_bytes) {
      unpack_one(row, at, digits);
    } else {
      RowEnds ends;
      ends.copy(row, GROUP, at, rows.row_bytes - at);
      unpack_one(ends.row, 0, digits);
    }
  }
}

// Step `Lane` of four: 16 rows times `Count` tokens.
template <int Lane, int Count>
inline void multiply_step(int32x4_t (&sums)[Count][4], const uint8_t* digits, const int8x16_t* codes) {
  for (int part = 0; part < 4; ++part) {
    const int8x16_t weights = vreinterpretq_s8_u8(vld1q_u8(digits + Lane * BLOCK + part * QUARTER));
    for (int t = 0; t < Count; ++t) sums[t][part] = vdotq_laneq_s32(sums[t][part], weights, codes[t], Lane);
  }
}

// One group and `Count` tokens; steps come in whole planes, so four at a time.
template <int Count>
void multiply_tile(const uint8_t* digits, int64_t steps, const int8_t* x, int64_t stride, Sums out) {
  int32x4_t sums[Count][4];
  for (int t = 0; t < Count; ++t)
    for (int part = 0; part < 4; ++part) sums[t][part] = vld1q_s32(out.values + t * out.stride + 4 * part);
  for (int64_t step = 0; step < steps; step += 4, digits += 4 * BLOCK, x += 4 * STEP) {
    int8x16_t codes[Count];
    for (int t = 0; t < Count; ++t) codes[t] = vld1q_s8(x + t * stride);
    multiply_step<0>(sums, digits, codes);
    multiply_step<1>(sums, digits, codes);
    multiply_step<2>(sums, digits, codes);
    multiply_step<3>(sums, digits, codes);
  }
  for (int t = 0; t < Count; ++t)
    for (int part = 0; part < 4; ++part) vst1q_s32(out.values + t * out.stride + 4 * part, sums[t][part]);
}

void multiply(const uint8_t* digits, int64_t group_bytes, int groups, int64_t steps, const Tokens& tokens, Sums sums) {
  for (int64_t g = 0; g < groups; ++g) {
    int64_t t = 0;
    const auto tile = [&](auto kernel, int64_t count) {
      kernel(digits + g * group_bytes, steps, tokens.codes + t * tokens.stride, tokens.stride,
             Sums{sums.values + t * sums.stride + g * GROUP, sums.stride});
      t += count;
    };
    while (t + TILE_TOKENS <= tokens.count) tile(multiply_tile<TILE_TOKENS>, TILE_TOKENS);
    while (t < tokens.count) tile(multiply_tile<1>, 1);
  }
}

}  // namespace

const TernaryTier& ternary_neon() {
  static constexpr TernaryTier tier = {{1, 1}, multiply_few, unpack,  multiply,   quantize,
                                       finish, activate,     combine, from_floats};
  return tier;
}

}  // namespace mote
