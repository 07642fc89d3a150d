#include <cstdint>

#include "x86.h"

namespace mote {
namespace {

// Pairs of products are added in int16, which holds 64 of them: 64 * 2 * 2 * 127 = 32512. No code is -128.
struct Dot {
  static constexpr int TOKENS = 4;
  static constexpr int64_t SPAN = 64;
  static __m256i add(__m256i sum, __m256i digits, __m256i codes) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(digits, codes));
  }
  static __m256i widen(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
};

}  // namespace
}  // namespace mote

#include "ternary_ymm.h"

namespace mote {

const TernaryTier& ternary_avx2() { return YMM_TIER; }

}  // namespace mote
