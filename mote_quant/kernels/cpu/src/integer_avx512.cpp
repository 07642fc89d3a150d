// Codes as floats, fused multiply-adds with float activations: AVX-512 without bfloat16, and float inputs.
#include "integer_avx512.h"

namespace mote {
namespace {

struct Vector : Floats16 {
  static constexpr int rows_at_a_time(int tokens) { return tokens <= 2 ? 4 : 1; }
  static Sum dot(Sum sum, Sum values, const uint8_t* x) { return _mm512_fmadd_ps(values, _mm512_loadu_ps(x), sum); }

  template <int Bits>
  struct Codec;
};

// 1 to 4 bits: a look-up reads the lowest four bits of a lane; the table of 16 repeats to ignore some of them.
template <int Bits>
struct Looked {
  static constexpr int PLANES = lane_columns(Bits);
  static constexpr int OPERANDS = PLANES;
  using Raw = __m512i;
  __m512 table;

  explicit Looked(const IntegerWeight& weight) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i codes = _mm512_and_si512(lanes, _mm512_set1_epi32((1 << Bits) - 1));
    table = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(static_cast<float>(weight.step)),
                            _mm512_set1_ps(-static_cast<float>(weight.offset)));
  }
  static constexpr int plane_of(int operand) { return operand; }
  static Raw load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Raw load_part(const uint8_t* from, int64_t left) { return _mm512_maskz_loadu_epi8(first_bytes(left), from); }
  template <int I>
  __m512 operand(Raw raw) const {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(raw, I * Bits), table);
  }
};

// The codes of a lane of 3, 5 or 6 bits begin inside a byte and end inside another: their bytes are spread to 32 bits.
template <int Bits>
struct Spreader {
  static constexpr int LANE_BITS = lane_columns(Bits) * Bits;
  static constexpr int BYTES = 16 * LANE_BITS / 8;
  __m512i words, places;

  Spreader() {
    alignas(64) uint16_t word[32];
    alignas(64) uint8_t place[64];
    for (int i = 0; i < 32; ++i) word[i] = static_cast<uint16_t>(i / 8 * (LANE_BITS / 4) + i % 8);
    for (int i = 0; i < 64; ++i) place[i] = static_cast<uint8_t>(i % 16 / 4 * LANE_BITS / 8 + i % 4);
    words = _mm512_load_si512(word);
    places = _mm512_load_si512(place);
  }
  __m512i load_part(const uint8_t* from, int64_t left) const {
    const __m512i packed = _mm512_maskz_loadu_epi8(first_bytes(left < BYTES ? left : BYTES), from);
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi16(words, packed), places);
  }
};

// 5, 6 and 8 bits, whose offset is half their range: with the highest bit of a code flipped it is a signed number.
template <int Bits>
struct Signed {
  static constexpr int PLANES = 4;
  static constexpr int OPERANDS = PLANES;
  using Raw = __m512i;
  __m512i flip, room;

  explicit Signed(const IntegerWeight&) {
    alignas(64) uint32_t flips[16], rooms[16];
    for (uint32_t lane = 0; lane < 16; ++lane) {
      const uint32_t skip = lane * 4 * Bits % 8;
      flips[lane] = 0;
      for (uint32_t i = 0; i < 4; ++i) flips[lane] |= 1u << (skip + i * Bits + Bits - 1);
      rooms[lane] = 32 - Bits - skip;
    }
    flip = _mm512_load_si512(flips);
    room = _mm512_load_si512(rooms);
  }
  static constexpr int plane_of(int operand) { return operand; }
  template <int I>
  __m512 operand(Raw raw) const {
    const __m512i high = _mm512_sllv_epi32(raw, _mm512_sub_epi32(room, _mm512_set1_epi32(I * Bits)));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(high, 32 - Bits));
  }
};

template <>
struct Vector::Codec<1> : Looked<1> { using Looked::Looked; };
template <>
struct Vector::Codec<2> : Looked<2> { using Looked::Looked; };
template <>
struct Vector::Codec<4> : Looked<4> { using Looked::Looked; };

template <>
struct Vector::Codec<3> : Looked<3> {
  Spreader<3> spreader;
  using Looked::Looked;
  Raw load(const uint8_t* from) const { return load_part(from, 64); }
  Raw load_part(const uint8_t* from, int64_t left) const { return spreader.load_part(from, left); }
};

template <int Bits>
struct SpreadSigned : Signed<Bits> {
  Spreader<Bits> spreader;
  using Signed<Bits>::Signed;
  __m512i load(const uint8_t* from) const { return load_part(from, 64); }
  __m512i load_part(const uint8_t* from, int64_t left) const {
    return _mm512_xor_si512(spreader.load_part(from, left), this->flip);
  }
};
template <>
struct Vector::Codec<5> : SpreadSigned<5> { using SpreadSigned::SpreadSigned; };
template <>
struct Vector::Codec<6> : SpreadSigned<6> { using SpreadSigned::SpreadSigned; };

template <>
struct Vector::Codec<8> : Signed<8> {
  using Signed::Signed;
  Raw load(const uint8_t* from) const { return _mm512_xor_si512(_mm512_loadu_si512(from), flip); }
  Raw load_part(const uint8_t* from, int64_t left) const {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(first_bytes(left), from), flip);
  }
};

}  // namespace
}  // namespace mote

#include "integer_rows.h"
#include "integer_unpack.h"

namespace mote {

const IntegerTier& integer_avx512() {
  static constexpr IntegerTier tier{Vector::LANES, false, multiply, unpack};
  return tier;
}

}  // namespace mote
