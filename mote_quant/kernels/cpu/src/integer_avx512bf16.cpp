// Codes as bfloat16, which holds every one of them exactly, found by table look-ups of 16-bit words; AVX512-BF16 dot
// products with bfloat16 activations into float sums.
#include "integer_avx512.h"

namespace mote {
namespace {

// 32 words: entry i is the bfloat16 of step * (first + i mod 2^bits) - offset.
inline __m512i value_table(int bits, int first, int step, int offset) {
  const __m512i words = _mm512_set_epi32(0x1f001e, 0x1d001c, 0x1b001a, 0x190018, 0x170016, 0x150014, 0x130012, 0x110010,
                                         0xf000e, 0xd000c, 0xb000a, 0x90008, 0x70006, 0x50004, 0x30002, 0x10000);
  const __m512i codes = _mm512_and_si512(words, _mm512_set1_epi16(static_cast<short>((1 << bits) - 1)));
  const __m512 even = _mm512_cvtepi32_ps(_mm512_and_si512(codes, _mm512_set1_epi32(0xffff)));
  const __m512 odd = _mm512_cvtepi32_ps(_mm512_srli_epi32(codes, 16));
  const __m512 scale = _mm512_set1_ps(static_cast<float>(step));
  const __m512 shift = _mm512_set1_ps(static_cast<float>(step * first - offset));
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(_mm512_fmadd_ps(even, scale, shift)), 16);
  const __m512i high = _mm512_castps_si512(_mm512_fmadd_ps(odd, scale, shift));
  return _mm512_mask_mov_epi16(low, 0xaaaaaaaau, high);
}

struct Vector : Floats16 {
  static constexpr int rows_at_a_time(int tokens) { return tokens <= 2 ? 4 : 1; }

  static Sum dot(Sum sum, __m512i values, const uint8_t* x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(values),
                            reinterpret_cast<__m512bh>(_mm512_loadu_si512(x)));
  }

  // 1, 2 and 4 bits: words of 16 / Bits codes; a look-up reads the lowest five bits, and the table repeats.
  template <int Bits>
  struct Codec {
    static constexpr int PLANES = 16 / Bits;
    static constexpr int OPERANDS = PLANES;
    using Raw = __m512i;
    __m512i table;

    explicit Codec(const IntegerWeight& weight) : table(value_table(Bits, 0, weight.step, weight.offset)) {}
    static constexpr int plane_of(int operand) { return operand; }
    static Raw load(const uint8_t* from) { return _mm512_loadu_si512(from); }
    static Raw load_part(const uint8_t* from, int64_t left) {
      return _mm512_maskz_loadu_epi8(first_bytes(left), from);
    }
    template <int I>
    __m512i operand(Raw raw) const {
      return _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, I * Bits), table);
    }
  };
};

// 8 bits: value = high half * 16 + low half, two look-ups and two dot products with the same activations.
template <>
struct Vector::Codec<8> {
  static constexpr int PLANES = 2;
  static constexpr int OPERANDS = 4;
  using Raw = __m512i;
  __m512i low, high;

  explicit Codec(const IntegerWeight& weight)
      : low(value_table(4, 0, 1, 0)), high(value_table(4, 0, 16, weight.offset)) {}
  static constexpr int plane_of(int operand) { return operand / 2; }
  static Raw load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Raw load_part(const uint8_t* from, int64_t left) { return _mm512_maskz_loadu_epi8(first_bytes(left), from); }
  template <int I>
  __m512i operand(Raw raw) const {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, I * 4), I % 2 ? high : low);
  }
};

// 3, 5 and 6 bits: bytes are spread so that every 64 bits hold whole codes, then shifted out one to a byte.
template <int Bits>
struct Spread {
  static constexpr int PLANES = Bits == 3 ? 4 : 2;
  static constexpr int OPERANDS = PLANES;
  static constexpr int LANE_BYTES = Bits == 3 ? 6 : Bits;
  using Raw = __m512i;
  __m512i places, shifts[PLANES / 2], table, upper;

  explicit Spread(const IntegerWeight& weight)
      : table(value_table(Bits < 5 ? Bits : 5, 0, weight.step, weight.offset)),
        upper(value_table(5, 32, weight.step, weight.offset)) {
    alignas(64) uint8_t place[64], shift[64];
    for (int i = 0; i < 64; ++i) place[i] = static_cast<uint8_t>(i / 8 * LANE_BYTES + i % 8);
    places = _mm512_load_si512(place);
    for (int pair = 0; pair < PLANES / 2; ++pair) {
      // Byte 2j + s of a lane becomes code PLANES * j + 2 * pair + s.
      for (int i = 0; i < 64; ++i)
        shift[i] = static_cast<uint8_t>(Bits * (PLANES * (i % 8 / 2) + 2 * pair + i % 2));
      shifts[pair] = _mm512_load_si512(shift);
    }
  }
  static constexpr int plane_of(int operand) { return operand; }
  Raw load(const uint8_t* from) const { return load_part(from, 8 * LANE_BYTES); }
  Raw load_part(const uint8_t* from, int64_t left) const {
    const __mmask64 mask = first_bytes(left < 8 * LANE_BYTES ? left : 8 * LANE_BYTES);
    return _mm512_permutexvar_epi8(places, _mm512_maskz_loadu_epi8(mask, from));
  }
  template <int I>
  __m512i operand(Raw raw) const {
    const __m512i codes = _mm512_multishift_epi64_epi8(shifts[I / 2], raw);
    const __m512i words = I % 2 ? _mm512_srli_epi16(codes, 8) : codes;
    if constexpr (Bits == 6) return _mm512_permutex2var_epi16(table, words, upper);
    else return _mm512_permutexvar_epi16(words, table);
  }
};
template <>
struct Vector::Codec<3> : Spread<3> { using Spread::Spread; };
template <>
struct Vector::Codec<5> : Spread<5> { using Spread::Spread; };
template <>
struct Vector::Codec<6> : Spread<6> { using Spread::Spread; };

}  // namespace
}  // namespace mote

#include "integer_rows.h"
#include "integer_unpack.h"

namespace mote {

const IntegerTier& integer_avx512bf16() {
  static constexpr IntegerTier tier{Vector::LANES, true, multiply, unpack};
  return tier;
}

}  // namespace mote
