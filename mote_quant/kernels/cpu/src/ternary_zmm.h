// Ternary products on 64-byte vectors. Everything here is private to the file that includes it.
#pragma once
#include "activations.h"
#include "ternary.h"
#include "ternary_loops.h"
#include "x86.h"

#define MOTE_INLINE inline __attribute__((always_inline))

namespace mote {
namespace {

__m512i load(const void* from) { return _mm512_loadu_si512(from); }

__mmask64 first_bytes(int64_t count) { return _cvtu64_mask64(~uint64_t{0} >> (BLOCK - count)); }

// Three times a fraction: the next digit is what overflows.
__m512i next_fraction(__m512i fraction) { return _mm512_add_epi8(_mm512_add_epi8(fraction, fraction), fraction); }

__m512i digit_of(__m512i fraction) {
  const __m512i one = _mm512_set1_epi8(1);
  const __m512i low = _mm512_maskz_mov_epi8(_mm512_cmpgt_epu8_mask(fraction, _mm512_set1_epi8(85)), one);
  return _mm512_mask_add_epi8(low, _mm512_cmpgt_epu8_mask(fraction, _mm512_set1_epi8(static_cast<char>(170))), low,
                              one);
}

// The lane sums of four vectors.
__m128i sum_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// How far ahead of its use a byte is asked for into the second cache, and later into the first, which cannot have so
// much under way.
constexpr int64_t FAR_AHEAD = 16384, NEAR_AHEAD = 2048;

MOTE_INLINE void prefetch(const uint8_t* bytes) {
  _mm_prefetch(reinterpret_cast<const char*>(bytes + FAR_AHEAD), _MM_HINT_T1);
  _mm_prefetch(reinterpret_cast<const char*>(bytes + NEAR_AHEAD), _MM_HINT_T0);
}

// ---- one token: rows as they are stored ----

constexpr int ROWS_AT_ONCE = 4;

// Four consecutive rows; where there are fewer, the last stands in for those that are not there.
struct FourRows {
  const uint8_t* row[ROWS_AT_ONCE];
};

FourRows four_rows(const PackedRows& rows, int64_t first) {
  FourRows four;
  four.row[0] = rows.bytes + first * rows.row_bytes;
  for (int r = 1; r < ROWS_AT_ONCE; ++r) four.row[r] = four.row[r - 1] + (first + r < rows.count ? rows.row_bytes : 0);
  return four;
}

void store_four(__m128i four, int64_t rows, int32_t* sums) {
  _mm_mask_storeu_epi32(sums, static_cast<__mmask8>((1u << (rows < ROWS_AT_ONCE ? rows : ROWS_AT_ONCE)) - 1), four);
}

// One block of each of four rows.
struct FourBlocks {
  __m512i row[ROWS_AT_ONCE];
};

// All loads come first, so that many lines are under way, and each is one load, not one for each use.
template <typename Load>
MOTE_INLINE FourBlocks load_each(const FourRows& four, int64_t at, const Load& load_row) {
  FourBlocks blocks;
#pragma GCC unroll 4
  for (int r = 0; r < ROWS_AT_ONCE; ++r) blocks.row[r] = load_row(four.row[r] + at);
  __asm__("" : "+v"(blocks.row[0]), "+v"(blocks.row[1]), "+v"(blocks.row[2]), "+v"(blocks.row[3]));
#pragma GCC unroll 4
  for (int r = 0; r < ROWS_AT_ONCE; ++r) prefetch(four.row[r] + at);
  return blocks;
}

MOTE_INLINE FourBlocks load_blocks(const FourRows& four, int64_t at) {
  return load_each(four, at, [](const uint8_t* from) { return load(from); });
}

MOTE_INLINE FourBlocks load_ends(const FourRows& four, int64_t at, int64_t bytes) {
  const __mmask64 mask = first_bytes(bytes);
  return load_each(four, at, [mask](const uint8_t* from) { return _mm512_maskz_loadu_epi8(mask, from); });
}

// Two sums for each row: what they are differs by packing.
struct RowSums {
  __m512i first[ROWS_AT_ONCE], second[ROWS_AT_ONCE];

  MOTE_INLINE void clear() {
#pragma GCC unroll 4
    for (int r = 0; r < ROWS_AT_ONCE; ++r) first[r] = second[r] = _mm512_setzero_si512();
  }
};

// The digits of even planes go to the first sum and, 4 times too large, those of odd ones to the second: fewer shifts.
MOTE_INLINE void multiply_2bit_block(RowSums& sums, const FourBlocks& blocks, const int8_t* x) {
  const __m512i low = _mm512_set1_epi8(0x03), high = _mm512_set1_epi8(0x0c);
  const __m512i codes[4] = {load(x), load(x + BLOCK), load(x + 2 * BLOCK), load(x + 3 * BLOCK)};
#pragma GCC unroll 4
  for (int r = 0; r < ROWS_AT_ONCE; ++r) {
    const __m512i lower = blocks.row[r], upper = _mm512_srli_epi16(lower, 4);
    sums.first[r] = _mm512_dpbusd_epi32(sums.first[r], _mm512_and_si512(lower, low), codes[0]);
    sums.second[r] = _mm512_dpbusd_epi32(sums.second[r], _mm512_and_si512(lower, high), codes[1]);
    sums.first[r] = _mm512_dpbusd_epi32(sums.first[r], _mm512_and_si512(upper, low), codes[2]);
    sums.second[r] = _mm512_dpbusd_epi32(sums.second[r], _mm512_and_si512(upper, high), codes[3]);
  }
}

__m128i multiply_2bit(const FourRows& four, int64_t row_bytes, const int8_t* x) {
  RowSums sums;
  sums.clear();
  int64_t at = 0;
  for (; at + BLOCK <= row_bytes; at += BLOCK, x += 4 * BLOCK) multiply_2bit_block(sums, load_blocks(four, at), x);
  if (at < row_bytes) multiply_2bit_block(sums, load_ends(four, at, row_bytes - at), x);
  __m512i total[ROWS_AT_ONCE];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS_AT_ONCE; ++r)
    total[r] = _mm512_add_epi32(sums.first[r], _mm512_srai_epi32(sums.second[r], 2));
  return sum_lanes(total[0], total[1], total[2], total[3]);
}

// No digit is taken out. With v_(j+1) = 3 v_j - 256 digit_j, 256 sum_j digit_j x_j = 3 sum_j v_j x_j - sum_j v_(j+1)
// x_j: the first sum and the second.
MOTE_INLINE void multiply_base3_block(RowSums& sums, const FourBlocks& blocks, const int8_t* x) {
  const __m512i codes[5] = {load(x), load(x + BLOCK), load(x + 2 * BLOCK), load(x + 3 * BLOCK), load(x + 4 * BLOCK)};
#pragma GCC unroll 4
  for (int r = 0; r < ROWS_AT_ONCE; ++r) {
    __m512i fraction = blocks.row[r];
#pragma GCC unroll 5
    for (int plane = 0; plane < 5; ++plane) {
      sums.first[r] = _mm512_dpbusd_epi32(sums.first[r], fraction, codes[plane]);
      fraction = next_fraction(fraction);
      sums.second[r] = _mm512_dpbusd_epi32(sums.second[r], fraction, codes[plane]);
    }
  }
}

// Modulo 2^32 the sums of so many bytes are exact, for what they stand for is below 2^23.
constexpr int64_t BASE3_SPAN = (int64_t{1} << 23) / (2 * 127 * 5 * BLOCK) * BLOCK;

__m128i multiply_base3_span(const FourRows& four, int64_t at, int64_t end, const int8_t* x) {
  RowSums sums;
  sums.clear();
  for (; at + BLOCK <= end; at += BLOCK, x += 5 * BLOCK) multiply_base3_block(sums, load_blocks(four, at), x);
  if (at < end) multiply_base3_block(sums, load_ends(four, at, end - at), x);
  __m512i total[ROWS_AT_ONCE];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS_AT_ONCE; ++r) {
    const __m512i thrice = _mm512_add_epi32(_mm512_add_epi32(sums.first[r], sums.first[r]), sums.first[r]);
    total[r] = _mm512_sub_epi32(thrice, sums.second[r]);
  }
  return _mm_srai_epi32(sum_lanes(total[0], total[1], total[2], total[3]), 8);
}

__m128i multiply_base3(const FourRows& four, int64_t row_bytes, const int8_t* x) {
  __m128i total = _mm_setzero_si128();
  for (int64_t begin = 0; begin < row_bytes; begin += BASE3_SPAN) {
    const int64_t end = begin + BASE3_SPAN < row_bytes ? begin + BASE3_SPAN : row_bytes;
    total = _mm_add_epi32(total, multiply_base3_span(four, begin, end, x + begin * 5));
  }
  return total;
}

void multiply_one(const PackedRows& rows, const int8_t* x, int32_t* sums) {
  const auto kernel = rows.packing == TWO_BITS ? multiply_2bit : multiply_base3;
  for (int64_t first = 0; first < rows.count; first += ROWS_AT_ONCE)
    store_four(kernel(four_rows(rows, first), rows.row_bytes, x), rows.count - first, sums + first);
}

// ---- more tokens: the rows of a group side by side ----

// Bytes [16 * quarter, 16 * quarter + 16) of 16 rows as four vectors: dword `j` of each row in row order.
void transpose_quarter(const uint8_t* const* row, int64_t at, __m512i* dwords) {
  __m512i rows[4];
  for (int r = 0; r < 4; ++r) {
    const auto from = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[r + 4 * i] + at)); };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(from(0)), from(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(from(2)), from(3), 1);
    rows[r] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  const __m512i even_low = _mm512_unpacklo_epi32(rows[0], rows[1]), odd_low = _mm512_unpacklo_epi32(rows[2], rows[3]);
  const __m512i even_high = _mm512_unpackhi_epi32(rows[0], rows[1]), odd_high = _mm512_unpackhi_epi32(rows[2], rows[3]);
  dwords[0] = _mm512_unpacklo_epi64(even_low, odd_low);
  dwords[1] = _mm512_unpackhi_epi64(even_low, odd_low);
  dwords[2] = _mm512_unpacklo_epi64(even_high, odd_high);
  dwords[3] = _mm512_unpackhi_epi64(even_high, odd_high);
}

// The address of token t's codes is thirds[t / 3] + (t % 3) * stride, which leaves few pointers to keep in registers.
struct Thirds {
  const int8_t* third[4];
  int64_t stride;

  MOTE_INLINE explicit Thirds(const int8_t* x, int64_t stride)
      : third{x, x + 3 * stride, x + 6 * stride, x + 9 * stride}, stride(stride) {}

  // Four codes of token t, `at` bytes on, in every lane.
  MOTE_INLINE __m512i codes(int t, int64_t at) const {
    int32_t four;
    std::memcpy(&four, third[t / 3] + t % 3 * stride + at, sizeof four);
    return _mm512_set1_epi32(four);
  }

  MOTE_INLINE void advance(int64_t bytes) {
#pragma GCC unroll 4
    for (auto& part : third) part += bytes;
  }
};

constexpr int TILE_TOKENS = 12;

// Rows of a group, the last standing in for those that are not there.
struct GroupRows {
  const uint8_t* row[GROUP];

  explicit GroupRows(const PackedRows& rows) {
    for (int64_t r = 0; r < GROUP; ++r) row[r] = rows.bytes + (r < rows.count ? r : rows.count - 1) * rows.row_bytes;
  }

  MOTE_INLINE void prefetch_block(int64_t at) const {
    for (const uint8_t* const from : row) prefetch(from + at);
  }
};

// The last block of each row, with zeros after its end.
struct GroupEnds {
  uint8_t bytes[GROUP][BLOCK];
  const uint8_t* row[GROUP];

  GroupEnds(const GroupRows& rows, int64_t at, int64_t count) {
    for (int64_t r = 0; r < GROUP; ++r) {
      row[r] = bytes[r];
      _mm512_storeu_si512(bytes[r], _mm512_maskz_loadu_epi8(first_bytes(count), rows.row[r] + at));
    }
  }
};

// Digit `plane` of packed bytes, which for base 3 are changed on the way.
template <Packing P>
MOTE_INLINE __m512i take_digit(__m512i& bytes, int plane) {
  if constexpr (P == TWO_BITS)
    return _mm512_and_si512(plane == 0 ? bytes : _mm512_srli_epi16(bytes, 2 * plane), _mm512_set1_epi8(3));
  const __m512i digit = digit_of(bytes);
  bytes = next_fraction(bytes);
  return digit;
}

// ---- few tokens: digits are used as they come out ----

template <Packing P, int Count>
MOTE_INLINE void multiply_block(__m512i (&sums)[Count], const uint8_t* const* row, int64_t at, Thirds x) {
  constexpr int PLANES = P == TWO_BITS ? 4 : 5;
  for (int quarter = 0; quarter < 4; ++quarter, x.advance(4 * STEP)) {
    __m512i dwords[4];
    transpose_quarter(row, at + 16 * quarter, dwords);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 5
      for (int plane = 0; plane < PLANES; ++plane) {
        const __m512i digits = take_digit<P>(dwords[j], plane);
#pragma GCC unroll 12
        for (int t = 0; t < Count; ++t)
          sums[t] = _mm512_dpbusd_epi32(sums[t], digits, x.codes(t, plane * BLOCK + j * STEP));
      }
    }
  }
}

template <Packing P, int Count>
void multiply_group(const PackedRows& rows, const Tokens& tokens, Sums out) {
  constexpr int64_t PLANES = P == TWO_BITS ? 4 : 5;
  const GroupRows group(rows);
  Thirds x(tokens.codes, tokens.stride);
  __m512i sums[Count];
#pragma GCC unroll 12
  for (int t = 0; t < Count; ++t) sums[t] = _mm512_setzero_si512();
  int64_t at = 0;
  for (; at + BLOCK <= rows.row_bytes; at += BLOCK, x.advance(PLANES * BLOCK)) {
    group.prefetch_block(at);
    multiply_block<P>(sums, group.row, at, x);
  }
  if (at < rows.row_bytes) multiply_block<P>(sums, GroupEnds(group, at, rows.row_bytes - at).row, 0, x);
  const auto kept = static_cast<__mmask16>((1u << (rows.count < GROUP ? rows.count : GROUP)) - 1);
#pragma GCC unroll 12
  for (int t = 0; t < Count; ++t) _mm512_mask_storeu_epi32(out.values + t * out.stride, kept, sums[t]);
}

using Few = void (*)(const PackedRows& rows, const Tokens& tokens, Sums out);

template <Packing P>
constexpr Few FEW[TILE_TOKENS - 1] = {multiply_group<P, 2>,  multiply_group<P, 3>, multiply_group<P, 4>,
                                      multiply_group<P, 5>,  multiply_group<P, 6>, multiply_group<P, 7>,
                                      multiply_group<P, 8>,  multiply_group<P, 9>, multiply_group<P, 10>,
                                      multiply_group<P, 11>, multiply_group<P, 12>};

void multiply_few(const PackedRows& rows, const Tokens& tokens, Sums sums) {
  if (tokens.count == 1) return multiply_one(rows, tokens.codes, sums.values);
  const Few kernel = (rows.packing == TWO_BITS ? FEW<TWO_BITS> : FEW<BASE3>)[tokens.count - 2];
  for (int64_t first = 0; first < rows.count; first += GROUP)
    kernel(rows_of(rows, first, rows.count - first), tokens, {sums.values + first, sums.stride});
}

// ---- many tokens: digits are unpacked first ----

template <Packing P>
void unpack_block(const uint8_t* const* row, int64_t at, uint8_t* digits) {
  constexpr int PLANES = P == TWO_BITS ? 4 : 5;
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m512i dwords[4];
    transpose_quarter(row, at + 16 * quarter, dwords);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j, digits += BLOCK)
#pragma GCC unroll 5
      for (int plane = 0; plane < PLANES; ++plane)
        _mm512_storeu_si512(digits + plane * STEPS_A_PLANE * BLOCK, take_digit<P>(dwords[j], plane));
  }
}

void unpack(const PackedRows& rows, int64_t first, int64_t blocks, uint8_t* digits) {
  const GroupRows group(rows);
  const auto unpack_one = rows.packing == TWO_BITS ? unpack_block<TWO_BITS> : unpack_block<BASE3>;
  const int64_t block_bytes = planes_of(rows.packing) * STEPS_A_PLANE * BLOCK;
  for (int64_t at = first * BLOCK; at < (first + blocks) * BLOCK; at += BLOCK, digits += block_bytes) {
    group.prefetch_block(at);
    if (at + BLOCK <= rows.row_bytes)
      unpack_one(group.row, at, digits);
    else
      unpack_one(GroupEnds(group, at, rows.row_bytes - at).row, 0, digits);
  }
}

template <int Step, int Groups, int Count>
MOTE_INLINE void multiply_step(__m512i (&sums)[Groups][Count], const uint8_t* digits, int64_t group_bytes,
                               const Thirds& x) {
  __m512i weights[Groups];
#pragma GCC unroll 2
  for (int g = 0; g < Groups; ++g) weights[g] = load(digits + g * group_bytes + Step * BLOCK);
#pragma GCC unroll 12
  for (int t = 0; t < Count; ++t) {
    const __m512i codes = x.codes(t, Step * STEP);
#pragma GCC unroll 2
    for (int g = 0; g < Groups; ++g) sums[g][t] = _mm512_dpbusd_epi32(sums[g][t], weights[g], codes);
  }
}

template <int Groups, int Count>
void multiply_tile(const uint8_t* digits, int64_t group_bytes, int64_t steps, const int8_t* x, int64_t stride,
                   Sums out) {
  __m512i sums[Groups][Count];
#pragma GCC unroll 2
  for (int g = 0; g < Groups; ++g)
#pragma GCC unroll 12
    for (int t = 0; t < Count; ++t) sums[g][t] = load(out.values + t * out.stride + g * GROUP);
  Thirds codes(x, stride);
  for (int64_t step = 0; step < steps; step += 4, digits += 4 * BLOCK, codes.advance(4 * STEP)) {
    multiply_step<0>(sums, digits, group_bytes, codes);
    multiply_step<1>(sums, digits, group_bytes, codes);
    multiply_step<2>(sums, digits, group_bytes, codes);
    multiply_step<3>(sums, digits, group_bytes, codes);
  }
#pragma GCC unroll 2
  for (int g = 0; g < Groups; ++g)
#pragma GCC unroll 12
    for (int t = 0; t < Count; ++t) _mm512_storeu_si512(out.values + t * out.stride + g * GROUP, sums[g][t]);
}

using Tile = void (*)(const uint8_t*, int64_t, int64_t, const int8_t*, int64_t, Sums);

template <int Groups>
constexpr Tile TILES[TILE_TOKENS] = {multiply_tile<Groups, 1>,  multiply_tile<Groups, 2>,  multiply_tile<Groups, 3>,
                                     multiply_tile<Groups, 4>,  multiply_tile<Groups, 5>,  multiply_tile<Groups, 6>,
                                     multiply_tile<Groups, 7>,  multiply_tile<Groups, 8>,  multiply_tile<Groups, 9>,
                                     multiply_tile<Groups, 10>, multiply_tile<Groups, 11>, multiply_tile<Groups, 12>};

void multiply(const uint8_t* digits, int64_t group_bytes, int groups, int64_t steps, const Tokens& tokens, Sums sums) {
  const Tile* const tiles = groups == 2 ? TILES<2> : TILES<1>;
  for (int64_t t = 0; t < tokens.count; t += TILE_TOKENS) {
    const int64_t count = tokens.count - t < TILE_TOKENS ? tokens.count - t : TILE_TOKENS;
    tiles[count - 1](digits, group_bytes, steps, tokens.codes + t * tokens.stride, tokens.stride,
                     {sums.values + t * sums.stride, sums.stride});
  }
}

}  // namespace
}  // namespace mote
