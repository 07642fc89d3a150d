#include <cstdint>

#include "x86.h"

namespace mote {
namespace {

struct Dot {
  static constexpr int TOKENS = 6;
  static constexpr int64_t SPAN = 1024;
#if defined(MOTE_EMULATE_AVXVNNI)
  // The same sums (digits are small) on processors without the instruction, for tests.
  static __m256i add(__m256i sum, __m256i digits, __m256i codes) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(digits, codes), _mm256_set1_epi16(1)));
  }
#else
  static __m256i add(__m256i sum, __m256i digits, __m256i codes) { return _mm256_dpbusd_avx_epi32(sum, digits, codes); }
#endif
  static __m256i widen(__m256i sum) { return sum; }
};

}  // namespace
}  // namespace mote

#include "ternary_ymm.h"

namespace mote {

const TernaryTier& ternary_avxvnni() { return YMM_TIER; }

}  // namespace mote
