// What the AVX-512 kernels with and without bfloat16 dot products share: vectors of 16 floats. Private to the including
// file.
#pragma once
#include "x86.h"

#include "integer.h"

namespace mote {
namespace {

inline __mmask64 first_bytes(int64_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }
inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1);
}

// Where each of 16 consecutive codes lies: four bytes from the right place in every 32-bit lane, and the shift left.
template <int Bits>
struct CodePlaces {
  alignas(64) uint8_t byte[64];
  alignas(64) uint32_t shift[16];

  constexpr CodePlaces() : byte(), shift() {
    for (int lane = 0; lane < 16; ++lane) {
      shift[lane] = static_cast<uint32_t>(lane * Bits % 8);
      for (int i = 0; i < 4; ++i) {
        const int place = lane * Bits / 8 + i;
        byte[4 * lane + i] = static_cast<uint8_t>(place < 2 * Bits ? place : 0x80);
      }
    }
  }
};
template <int Bits>
constexpr CodePlaces<Bits> code_places{};

struct Floats16 {
  using Sum = __m512;
  static constexpr int LANES = 16;

  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum broadcast(float value) { return _mm512_set1_ps(value); }
  static Sum load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Sum value) { _mm512_storeu_ps(to, value); }
  static Sum multiply(Sum a, Sum b) { return _mm512_mul_ps(a, b); }
  static Sum subtract(Sum a, Sum b) { return _mm512_sub_ps(a, b); }
  static Sum multiply_add(Sum a, Sum b, Sum c) { return _mm512_fmadd_ps(a, b, c); }
  static Sum permute(const float* from, const int32_t* lanes) {
    return _mm512_permutexvar_ps(_mm512_loadu_si512(lanes), _mm512_loadu_ps(from));
  }

  static void totals(Sum a, Sum b, Sum c, Sum d, float* to) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }

  static float total(Sum value) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // Up to 16 of `left` floats of a stored type, from element `first`; zeros past the end.
  static Sum load_floats(const void* from, MoteType type, int64_t first, int64_t left) {
    const __mmask16 mask = first_lanes(left);
    if (type == MOTE_FLOAT32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(from) + first);
    const __m256i halves = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(from) + first);
    if (type == MOTE_FLOAT16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }

  static void store_floats(void* to, MoteType type, int64_t first, Sum value, int64_t left) {
    const __mmask16 mask = first_lanes(left);
    if (type == MOTE_FLOAT32) return _mm512_mask_storeu_ps(static_cast<float*>(to) + first, mask, value);
    const __m256i halves = type == MOTE_FLOAT16 ? _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT) : bfloat16(value);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + first, mask, halves);
  }

  // Nearest, ties to even; NaN stays NaN.
  static __m256i bfloat16(Sum value) {
#ifdef __AVX512BF16__
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
#else
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
  }

  // Up to 16 of `left` codes, in order, as floats; `from` is the byte in which the first begins.
  template <int Bits>
  static Sum load_codes(const uint8_t* from, int64_t left) {
    const int64_t bytes = (left * Bits + 7) / 8;
    const __mmask16 mask = first_lanes(bytes < 2 * Bits ? bytes : 2 * Bits);
    const __m512i packed = _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(mask, from));
    const __m512i placed = _mm512_shuffle_epi8(packed, _mm512_load_si512(code_places<Bits>.byte));
    const __m512i shifted = _mm512_srlv_epi32(placed, _mm512_load_si512(code_places<Bits>.shift));
    if constexpr (Bits > 4) return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32((1 << Bits) - 1)));
    // A look-up reads the lowest four bits of a lane.
    const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i repeated = _mm512_and_si512(numbers, _mm512_set1_epi32((1 << Bits) - 1));
    return _mm512_permutexvar_ps(shifted, _mm512_cvtepi32_ps(repeated));
  }
};

}  // namespace
}  // namespace mote
