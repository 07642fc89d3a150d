// Codes as floats, fused multiply-adds with float activations, eight lanes.
#include "integer.h"
#include "x86.h"

namespace mote {
namespace {

// Where each of eight consecutive codes lies: four bytes from the right place in every 32-bit lane, and the shift.
template <int Bits>
struct CodePlaces {
  alignas(32) uint8_t byte[32];
  alignas(32) uint32_t shift[8];

  constexpr CodePlaces() : byte(), shift() {
    for (int lane = 0; lane < 8; ++lane) {
      shift[lane] = static_cast<uint32_t>(lane * Bits % 8);
      for (int i = 0; i < 4; ++i) {
        const int place = lane * Bits / 8 + i;
        byte[4 * lane + i] = static_cast<uint8_t>(place < Bits ? place : 0x80);
      }
    }
  }
};
template <int Bits>
constexpr CodePlaces<Bits> code_places{};

// `count` bytes, at most 32, and zeros.
inline __m256i load_bytes(const void* from, int64_t count) {
  alignas(32) uint8_t bytes[32] = {};
  __builtin_memcpy(bytes, from, static_cast<size_t>(count < 32 ? count : 32));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}

inline __m256i load32(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline __m256i load32(const uint32_t (&from)[8]) { return load32(static_cast<const void*>(from)); }

struct Vector {
  using Sum = __m256;
  static constexpr int LANES = 8;
  static constexpr int rows_at_a_time(int tokens) { return tokens == 1 ? 4 : tokens <= 4 ? 2 : 1; }

  static Sum zero() { return _mm256_setzero_ps(); }
  static Sum broadcast(float value) { return _mm256_set1_ps(value); }
  static Sum load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Sum value) { _mm256_storeu_ps(to, value); }
  static Sum multiply(Sum a, Sum b) { return _mm256_mul_ps(a, b); }
  static Sum subtract(Sum a, Sum b) { return _mm256_sub_ps(a, b); }
  static Sum multiply_add(Sum a, Sum b, Sum c) { return _mm256_fmadd_ps(a, b, c); }
  static Sum permute(const float* from, const int32_t* lanes) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), load32(static_cast<const void*>(lanes)));
  }
  static Sum dot(Sum sum, Sum values, const uint8_t* x) {
    return _mm256_fmadd_ps(values, _mm256_loadu_ps(reinterpret_cast<const float*>(x)), sum);
  }

  static void totals(Sum a, Sum b, Sum c, Sum d, float* to) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }

  static float total(Sum value) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // Up to 8 of `left` floats of a stored type, from element `first`; zeros past the end.
  static Sum load_floats(const void* from, MoteType type, int64_t first, int64_t left) {
    const int64_t count = left < 8 ? left : 8, size = type == MOTE_FLOAT32 ? 4 : 2;
    const __m256i bytes = load_bytes(static_cast<const char*>(from) + first * size, count * size);
    if (type == MOTE_FLOAT32) return _mm256_castsi256_ps(bytes);
    const __m128i halves = _mm256_castsi256_si128(bytes);
    if (type == MOTE_FLOAT16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }

  static void store_floats(void* to, MoteType type, int64_t first, Sum value, int64_t left) {
    const int64_t count = left < 8 ? left : 8, size = type == MOTE_FLOAT32 ? 4 : 2;
    alignas(32) uint8_t bytes[32];
    if (type == MOTE_FLOAT32) _mm256_store_ps(reinterpret_cast<float*>(bytes), value);
    else if (type == MOTE_FLOAT16) _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm256_cvtps_ph(value, 0));
    else _mm_store_si128(reinterpret_cast<__m128i*>(bytes), bfloat16(value));
    __builtin_memcpy(static_cast<char*>(to) + first * size, bytes, static_cast<size_t>(count * size));
  }

  // Nearest, ties to even; NaN stays NaN.
  static __m128i bfloat16(Sum value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    const __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    const __m256i kept = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, nan));
    const __m256i words = _mm256_srli_epi32(kept, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }

  // Up to 8 of `left` codes, in order, as floats; `from` is the byte in which the first begins.
  template <int Bits>
  static Sum load_codes(const uint8_t* from, int64_t left) {
    const int64_t bytes = (left * Bits + 7) / 8;
    uint64_t packed = 0;
    __builtin_memcpy(&packed, from, static_cast<size_t>(bytes < Bits ? bytes : Bits));
    const __m256i spread = _mm256_set1_epi64x(static_cast<long long>(packed));
    const __m256i placed = _mm256_shuffle_epi8(spread, load32(static_cast<const void*>(code_places<Bits>.byte)));
    const __m256i shifted = _mm256_srlv_epi32(placed, load32(code_places<Bits>.shift));
    return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32((1 << Bits) - 1)));
  }

  template <int Bits>
  struct Codec;
};

// Whole codes in 32 bits: the bytes of a block as they are.
struct Whole {
  using Raw = __m256i;
  static Raw load(const uint8_t* from) { return load32(from); }
  static Raw load_part(const uint8_t* from, int64_t left) { return load_bytes(from, left); }
};

// Lanes of 3, 5 or 6 bits begin inside a byte and end inside another: their bytes are spread to 32 bits.
template <int Bits>
struct Spread {
  using Raw = __m256i;
  static constexpr int HALF = lane_columns(Bits) * Bits / 2;  // bytes for four lanes
  __m256i places;

  Spread() {
    alignas(32) uint8_t place[32];
    for (int i = 0; i < 32; ++i) place[i] = static_cast<uint8_t>(i % 16 / 4 * lane_columns(Bits) * Bits / 8 + i % 4);
    places = _mm256_load_si256(reinterpret_cast<const __m256i*>(place));
  }
  Raw load(const uint8_t* from) const { return load_part(from, 2 * HALF); }
  Raw load_part(const uint8_t* from, int64_t left) const {
    alignas(32) uint8_t bytes[32] = {};
    const int64_t low = left < HALF ? left : HALF, high = left - low < HALF ? left - low : HALF;
    __builtin_memcpy(bytes, from, static_cast<size_t>(low));
    __builtin_memcpy(bytes + 16, from + low, static_cast<size_t>(high));
    return _mm256_shuffle_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(bytes)), places);
  }
};

// 1 to 3 bits: a look-up reads the lowest three bits of a lane; the table of 8 repeats to ignore some of them.
template <int Bits, class Bytes>
struct Looked : Bytes {
  static constexpr int PLANES = lane_columns(Bits);
  static constexpr int OPERANDS = PLANES;
  __m256 table;

  explicit Looked(const IntegerWeight& weight) {
    alignas(32) float values[8];
    for (int i = 0; i < 8; ++i) values[i] = static_cast<float>(weight.step * (i % (1 << Bits)) - weight.offset);
    table = _mm256_load_ps(values);
  }
  static constexpr int plane_of(int operand) { return operand; }
  template <int I>
  __m256 operand(__m256i raw) const {
    return _mm256_permutevar8x32_ps(table, _mm256_srli_epi32(raw, I * Bits));
  }
};

// 4 bits and more, whose offset is half their range: with the highest bit of a code flipped it is a signed number.
template <int Bits, class Bytes>
struct Signed : Bytes {
  static constexpr int PLANES = lane_columns(Bits);
  static constexpr int OPERANDS = PLANES;
  __m256i flip, room;

  explicit Signed(const IntegerWeight&) {
    alignas(32) uint32_t flips[8], rooms[8];
    for (uint32_t lane = 0; lane < 8; ++lane) {
      const uint32_t skip = lane * PLANES * Bits % 8;
      flips[lane] = 0;
      for (uint32_t i = 0; i < PLANES; ++i) flips[lane] |= 1u << (skip + i * Bits + Bits - 1);
      rooms[lane] = 32 - Bits - skip;
    }
    flip = load32(flips);
    room = load32(rooms);
  }
  static constexpr int plane_of(int operand) { return operand; }
  __m256i load(const uint8_t* from) const { return _mm256_xor_si256(Bytes::load(from), flip); }
  __m256i load_part(const uint8_t* from, int64_t left) const {
    return _mm256_xor_si256(Bytes::load_part(from, left), flip);
  }
  template <int I>
  __m256 operand(__m256i raw) const {
    const __m256i high = _mm256_sllv_epi32(raw, _mm256_sub_epi32(room, _mm256_set1_epi32(I * Bits)));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(high, 32 - Bits));
  }
};

template <>
struct Vector::Codec<1> : Looked<1, Whole> { using Looked::Looked; };
template <>
struct Vector::Codec<2> : Looked<2, Whole> { using Looked::Looked; };
template <>
struct Vector::Codec<3> : Looked<3, Spread<3>> { using Looked::Looked; };
template <>
struct Vector::Codec<4> : Signed<4, Whole> { using Signed::Signed; };
template <>
struct Vector::Codec<5> : Signed<5, Spread<5>> { using Signed::Signed; };
template <>
struct Vector::Codec<6> : Signed<6, Spread<6>> { using Signed::Signed; };
template <>
struct Vector::Codec<8> : Signed<8, Whole> { using Signed::Signed; };

}  // namespace
}  // namespace mote

#include "integer_rows.h"
#include "integer_unpack.h"

namespace mote {

const IntegerTier& integer_avx2() {
  static constexpr IntegerTier tier{Vector::LANES, false, multiply, unpack};
  return tier;
}

}  // namespace mote
