// Group-quantized integer weights times float activations: what the kernels of all instruction sets share.
#pragma once
#include <cstdint>

#include "abi.h"

namespace mote {

enum ZeroKind : int32_t { ZERO_NONE = 0, ZERO_CODES = 1, ZERO_FLOATS = 2 };

// A weight as it is stored. Code i of a row is bits [i * bits, (i + 1) * bits) of the row, read as one little-endian
// number, and stands for (step * code - offset - (zero - offset)) * scale; without zero points zero = offset.
struct IntegerWeight {
  const uint8_t* codes;
  int64_t rows, columns, row_bytes;
  int32_t bits, step, offset;
  const void* scales;
  MoteType scale_type;
  int64_t group_size, groups;
  int64_t scale_stride;  // scales from one row to the next: `groups`, or 0 where all rows share them
  ZeroKind zero_kind;
  const void* zeros;  // codes packed like those of the weight, or floats laid out like the scales
};

static constexpr int64_t packed_bytes(int64_t codes, int bits) {
  // A row ends with a whole unit: 8 codes of 1, 3 or 5 bits (bytes or not), 4 of 2 or 6, 2 of 4, 1 of 8.
  const int64_t unit = bits == 8 ? 1 : bits == 4 ? 2 : bits == 2 || bits == 6 ? 4 : 8;
  return (codes + unit - 1) / unit * (unit * bits / 8);
}

// Consecutive columns whose codes share 32 bits of a kernel's vector, and so, in one lane, a sum.
static constexpr int lane_columns(int bits) { return bits == 1 ? 32 : bits == 2 ? 16 : bits <= 4 ? 8 : 4; }

// So many tokens are multiplied together, of those that are left.
static constexpr int64_t tokens_at_a_time(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// Activations in the order in which a kernel meets the codes. A block is `lanes` lanes of `lane_columns` columns; of
// its P planes of W words (bfloat16: W = 2 * lanes; float: W = lanes) plane p holds column P * i + p in word i. Tokens
// that are multiplied together lie together, [blocks, tokens, planes, words], and so do their sums.
struct IntegerActivations {
  int64_t tokens, blocks;
  const uint8_t* planes;
  int64_t token_bytes;         // of one token: where tokens that lie together begin
  const float* lane_sums;      // [blocks, tokens, lanes], the sum of x by lane; null where there are no zero points
  const int32_t* first_group;  // [blocks]
  const int32_t* lane_group;   // [lanes] after first_group, at `lane_group_stride` from one block to the next
  int64_t lane_group_stride;
  bool one_group;           // no block lies in more than one group
  int64_t blocks_together;  // consecutive blocks of the same groups, from the first on
};

// The kernels of one instruction set.
struct IntegerTier {
  int lanes;      // 0: activations as they come, floats in the order of the columns
  bool bfloat16;  // the type of the planes; float otherwise
  // sums[token * rows + row] of rows [first, first + rows).
  void (*multiply)(const IntegerWeight& weight, const IntegerActivations& x, int64_t first, int64_t rows, float* sums);
  // Rows [first, first + rows) in the order of their columns, as `type`: [rows, columns].
  void (*unpack)(const IntegerWeight& weight, int64_t first, int64_t rows, MoteType type, void* out);
};

const IntegerTier& integer_portable();
#ifdef MOTE_WITH_AVX2
const IntegerTier& integer_avx2();
#endif
#ifdef MOTE_WITH_AVX512
const IntegerTier& integer_avx512();
#endif
#ifdef MOTE_WITH_AVX512BF16
const IntegerTier& integer_avx512bf16();
#endif

}  // namespace mote
