// Packed ternary weights times int8 activations: the layouts, and what each instruction set provides.
//
// A block is 64 bytes of a packed row. Column `planes * i + s` of a block is digit s of its byte i, so the codes of a
// token are laid out to match: for each block `planes` runs (planes) of 64, plane s holding the columns planes * i + s.
// Columns that do not exist have activation 0; what their digits are does not matter.
//
// Weights enter as digits 0..2, not as codes -1..1: a product is the sum over digits less the sum of the activations.
#pragma once
#include <cstdint>

#include "abi.h"

namespace mote {

enum Packing : int32_t { TWO_BITS = 0, BASE3 = 1 };

constexpr int64_t BLOCK = 64;  // bytes
constexpr int64_t GROUP = 16;  // rows whose digits are unpacked side by side
constexpr int64_t STEP = 4;    // columns of a group that stand together: a step is [GROUP][STEP] digits, 64 bytes
constexpr int64_t STEPS_A_PLANE = BLOCK / STEP;
constexpr int64_t MAX_PLANES = 5;
constexpr int64_t MAX_COLUMNS = (int64_t{1} << 31) / (2 * 127) - 1;  // more could overflow an int32 sum

// Functions here are static: shared inline ones could end up compiled for a processor that is not this one.
static constexpr int64_t planes_of(Packing packing) { return packing == TWO_BITS ? 4 : 5; }
static constexpr int64_t row_bytes_of(int64_t columns, Packing packing) {
  return (columns + planes_of(packing) - 1) / planes_of(packing);
}
static constexpr int64_t blocks_of(int64_t columns, Packing packing) {
  return (row_bytes_of(columns, packing) + BLOCK - 1) / BLOCK;
}

// Where the code of a column stands among those of its token.
static constexpr int64_t place_of(int64_t column, Packing packing) {
  const int64_t planes = planes_of(packing), byte = column / planes;
  return (byte / BLOCK * planes + column % planes) * BLOCK + byte % BLOCK;
}

// Bytes from one token's codes to the next: an odd number of cache lines, or tokens would share few cache sets.
static constexpr int64_t token_stride(int64_t columns, Packing packing) {
  return ((blocks_of(columns, packing) * planes_of(packing)) | 1) * BLOCK;
}

// Consecutive rows of a packed weight; nothing outside them may be read.
struct PackedRows {
  const uint8_t* bytes;
  int64_t row_bytes;
  int64_t count;
  Packing packing;
};

static inline PackedRows rows_of(const PackedRows& rows, int64_t first, int64_t count) {
  return {rows.bytes + first * rows.row_bytes, rows.row_bytes, count, rows.packing};
}

// Tokens as int8 codes in planes; `value = code * scale`. Sums are those of a token's codes.
struct Tokens {
  int8_t* codes;
  int64_t stride;
  float* scales;
  int32_t* sums;
  int64_t count;
};

static inline Tokens tokens_of(const Tokens& all, int64_t first, int64_t count) {
  return {all.codes + first * all.stride, all.stride, all.scales + first, all.sums + first, count};
}

// int32 sums over digits: that of token t and row r at [t * stride + r].
struct Sums {
  int32_t* values;
  int64_t stride;
};

enum Activation : int32_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4, QUICK_GELU = 5, ACTIVATIONS = 6 };

// The functions of one instruction set. None of them fails, and none reads or writes beyond what it is given.
struct TernaryTier {
  // Up to so many tokens `multiply_few` takes rows as they are stored, by packing; with more, unpacking pays.
  int64_t few[2];
  void (*multiply_few)(const PackedRows& rows, const Tokens& tokens, Sums sums);

  // At most GROUP rows, from block `first` on: digits[step][GROUP][STEP]. Rows beyond `rows.count` are left undefined.
  void (*unpack)(const PackedRows& rows, int64_t first, int64_t blocks, uint8_t* digits);
  // Adds to `sums` of `groups` (1 or 2) groups, whose digits are `group_bytes` apart, `steps` from code 0 of `tokens`.
  void (*multiply)(const uint8_t* digits, int64_t group_bytes, int groups, int64_t steps, const Tokens& tokens,
                   Sums sums);

  // Token 0 of `token` from a row of `columns` numbers. A row that is not finite gets codes 0 and scale NaN.
  void (*quantize)(const void* row, MoteType type, int64_t columns, Packing packing, const Tokens& token);
  // out[r] = (sums[r] - token_sum) * (token_scale * scales[r]) + biases[r]; no biases where that is null.
  void (*finish)(const int32_t* sums, int64_t rows, int32_t token_sum, float token_scale, const float* scales,
                 const float* biases, float* out);
  // up[i] = activation(gate[i]) * up[i], or activation(up[i]) where gate is null.
  void (*activate)(Activation kind, const float* gate, float* up, int64_t count);
  // out[i] = sum over j of factors[j] * rows[j][i], in the order of j.
  void (*combine)(const float* const* rows, const float* factors, int64_t terms, int64_t count, MoteType type,
                  void* out);
  void (*store)(const float* from, MoteType type, int64_t count, void* to);
};

const TernaryTier& ternary_portable();
const TernaryTier& ternary_avx2();
const TernaryTier& ternary_avxvnni();
const TernaryTier& ternary_avx512();
const TernaryTier& ternary_amx();
const TernaryTier& ternary_neon();

// That of the level in force.
const TernaryTier& ternary_tier();

}  // namespace mote
