// Ternary products on 32-byte vectors, for whoever defines `Dot` before including this:
//   Dot::TOKENS             tokens of a register tile
//   Dot::add(sum, d, c)     adds products of digits and codes to partial sums; at most Dot::SPAN times
//   Dot::widen(sum)         partial sums as eight int32
// Everything here is private to that file.
#pragma once
#include "activations.h"
#include "ternary.h"
#include "ternary_loops.h"
#include "x86.h"

namespace mote {
namespace {

constexpr int64_t HALF = BLOCK / 2;
constexpr int64_t AHEAD = 8192;
constexpr int ROWS_AT_ONCE = 4;

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

__m256i next_fraction(__m256i fraction) { return _mm256_add_epi8(_mm256_add_epi8(fraction, fraction), fraction); }

// Comparisons give -1 where they hold.
__m256i digit_of(__m256i fraction) {
  const __m256i one = _mm256_set1_epi8(86), two = _mm256_set1_epi8(static_cast<char>(171));
  const __m256i negative = _mm256_add_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(fraction, one), fraction),
                                           _mm256_cmpeq_epi8(_mm256_max_epu8(fraction, two), fraction));
  return _mm256_sub_epi8(_mm256_setzero_si256(), negative);
}

template <Packing P>
inline void digits_of(__m256i bytes, __m256i* planes) {
  if constexpr (P == TWO_BITS) {
    const __m256i mask = _mm256_set1_epi8(3);
    planes[0] = _mm256_and_si256(bytes, mask);
    planes[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 2), mask);
    planes[2] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    planes[3] = _mm256_and_si256(_mm256_srli_epi16(bytes, 6), mask);
  } else {
    for (int plane = 0; plane < 5; ++plane, bytes = next_fraction(bytes)) planes[plane] = digit_of(bytes);
  }
}

int32_t sum_lanes(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

// ---- one token: rows as they are stored ----

// Adds one block of each of four rows.
template <Packing P>
inline void multiply_block(__m256i* sums, const uint8_t* const* row, int64_t at, const int8_t* x) {
  constexpr int PLANES = P == TWO_BITS ? 4 : 5;
  for (int64_t half = 0; half < BLOCK; half += HALF) {
    for (int r = 0; r < ROWS_AT_ONCE; ++r) {
      __m256i digits[PLANES];
      digits_of<P>(load(row[r] + at + half), digits);
      for (int plane = 0; plane < PLANES; ++plane)
        sums[r] = Dot::add(sums[r], digits[plane], load(x + plane * BLOCK + half));
    }
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

template <Packing P>
void multiply_rows(const uint8_t* const* row, int64_t row_bytes, const int8_t* x, int32_t* out) {
  constexpr int64_t PLANES = P == TWO_BITS ? 4 : 5, BLOCKS = Dot::SPAN / (2 * PLANES);
  __m256i total[ROWS_AT_ONCE];
  for (auto& sum : total) sum = _mm256_setzero_si256();
  const int64_t whole = row_bytes / BLOCK * BLOCK;
  for (int64_t first = 0; first < whole; first += BLOCKS * BLOCK) {
    __m256i sums[ROWS_AT_ONCE];
    for (auto& sum : sums) sum = _mm256_setzero_si256();
    for (int64_t at = first; at < smaller(first + BLOCKS * BLOCK, whole); at += BLOCK) {
      for (int r = 0; r < ROWS_AT_ONCE; ++r)
        _mm_prefetch(reinterpret_cast<const char*>(row[r] + at + AHEAD), _MM_HINT_T1);
      multiply_block<P>(sums, row, at, x + at * PLANES);
    }
    for (int r = 0; r < ROWS_AT_ONCE; ++r) total[r] = _mm256_add_epi32(total[r], Dot::widen(sums[r]));
  }
  if (whole < row_bytes) {
    RowEnds ends;
    ends.copy(row, ROWS_AT_ONCE, whole, row_bytes - whole);
    __m256i sums[ROWS_AT_ONCE];
    for (auto& sum : sums) sum = _mm256_setzero_si256();
    multiply_block<P>(sums, ends.row, 0, x + whole * PLANES);
    for (int r = 0; r < ROWS_AT_ONCE; ++r) total[r] = _mm256_add_epi32(total[r], Dot::widen(sums[r]));
  }
  for (int r = 0; r < ROWS_AT_ONCE; ++r) out[r] = sum_lanes(total[r]);
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

// Bytes [at, at + 16) of 8 rows as four vectors: dword `j` of each row in row order.
void transpose_eight(const uint8_t* const* row, int64_t at, __m256i* dwords) {
  __m256i rows[4];
  for (int r = 0; r < 4; ++r) {
    const auto from = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[i] + at)); };
    rows[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(from(r)), from(r + 4), 1);
  }
  const __m256i even_low = _mm256_unpacklo_epi32(rows[0], rows[1]), odd_low = _mm256_unpacklo_epi32(rows[2], rows[3]);
  const __m256i even_high = _mm256_unpackhi_epi32(rows[0], rows[1]), odd_high = _mm256_unpackhi_epi32(rows[2], rows[3]);
  dwords[0] = _mm256_unpacklo_epi64(even_low, odd_low);
  dwords[1] = _mm256_unpackhi_epi64(even_low, odd_low);
  dwords[2] = _mm256_unpacklo_epi64(even_high, odd_high);
  dwords[3] = _mm256_unpackhi_epi64(even_high, odd_high);
}

template <Packing P>
void unpack_block(const uint8_t* const* row, int64_t at, uint8_t* digits) {
  constexpr int PLANES = P == TWO_BITS ? 4 : 5;
  for (int64_t quarter = 0; quarter < 4; ++quarter) {
    for (int64_t half = 0; half < 2; ++half) {
      __m256i dwords[4];
      transpose_eight(row + 8 * half, at + 16 * quarter, dwords);
      for (int64_t j = 0; j < 4; ++j) {
        __m256i planes[PLANES];
        digits_of<P>(dwords[j], planes);
        for (int64_t plane = 0; plane < PLANES; ++plane) {
          uint8_t* const to = digits + (plane * STEPS_A_PLANE + 4 * quarter + j) * BLOCK + half * HALF;
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), planes[plane]);
        }
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

void add_to(int32_t* sums, __m256i more) {
  auto* const to = reinterpret_cast<__m256i*>(sums);
  _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), more));
}

// One group and `Count` tokens.
template <int Count>
void multiply_tile(const uint8_t* digits, int64_t steps, const int8_t* x, int64_t stride, Sums out) {
  for (int64_t first = 0; first < steps; first += Dot::SPAN) {
    __m256i sums[2][Count];
#pragma GCC unroll 8
    for (int t = 0; t < Count; ++t) sums[0][t] = sums[1][t] = _mm256_setzero_si256();
    for (int64_t step = first; step < smaller(first + Dot::SPAN, steps); ++step) {
      const __m256i low = load(digits + step * BLOCK), high = load(digits + step * BLOCK + HALF);
#pragma GCC unroll 8
      for (int t = 0; t < Count; ++t) {
        int32_t four;
        std::memcpy(&four, x + t * stride + step * STEP, sizeof four);
        const __m256i codes = _mm256_set1_epi32(four);
        sums[0][t] = Dot::add(sums[0][t], low, codes);
        sums[1][t] = Dot::add(sums[1][t], high, codes);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < Count; ++t) {
      add_to(out.values + t * out.stride, Dot::widen(sums[0][t]));
      add_to(out.values + t * out.stride + 8, Dot::widen(sums[1][t]));
    }
  }
}

void multiply(const uint8_t* digits, int64_t group_bytes, int groups, int64_t steps, const Tokens& tokens, Sums sums) {
  for (int64_t g = 0; g < groups; ++g) {
    int64_t t = 0;
    const auto tile = [&](auto kernel, int64_t count) {
      kernel(digits + g * group_bytes, steps, tokens.codes + t * tokens.stride, tokens.stride,
             Sums{sums.values + t * sums.stride + g * GROUP, sums.stride});
      t += count;
    };
    while (t + Dot::TOKENS <= tokens.count) tile(multiply_tile<Dot::TOKENS>, Dot::TOKENS);
    while (t + 2 <= tokens.count) tile(multiply_tile<2>, 2);
    if (t < tokens.count) tile(multiply_tile<1>, 1);
  }
}

constexpr TernaryTier YMM_TIER = {{1, 1}, multiply_few, unpack,  multiply,   quantize,
                                  finish, activate,     combine, from_floats};

}  // namespace
}  // namespace mote
