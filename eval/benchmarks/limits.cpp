// What this processor can do at best: read memory, and multiply what is in its registers. Compiled by machine.py.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef uint64_t Line __attribute__((vector_size(64), aligned(1), may_alias));

constexpr int kChains = 12;  // accumulators that do not wait for one another

}  // namespace

// Reads all whole runs of four 64-byte lines; the sum keeps the compiler from leaving any out.
extern "C" uint64_t read_sweep(const uint8_t* data, int64_t bytes) {
  constexpr int kLines = 4;
  constexpr int64_t kLine = sizeof(Line);
  Line sum = {};
  for (int64_t at = 0; at + kLines * kLine <= bytes; at += kLines * kLine)
    for (int i = 0; i < kLines; ++i) sum += *reinterpret_cast<const Line*>(data + at + i * kLine);
  uint64_t total = 0;
  for (int lane = 0; lane < 8; ++lane) total += sum[lane];
  return total;
}

// Each returns the operations done (a multiplication and an addition are two), or 0 where there is no such instruction;
// `sink` are 16 different numbers (chains that start alike would be merged), overwritten.
extern "C" int64_t int8_peak(int64_t rounds, int32_t* sink) {
#if defined(__AVX512VNNI__)
  __m512i sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_epi32(sink[i]);
  const __m512i x = _mm512_set1_epi32(sink[0]), y = _mm512_set1_epi32(sink[1]);
  for (int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
  for (int i = 1; i < kChains; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  _mm512_storeu_si512(sink, sums[0]);
  return rounds * kChains * 128;
#else
  return static_cast<void>(rounds), static_cast<void>(sink), 0;
#endif
}

extern "C" int64_t bf16_peak(int64_t rounds, int32_t* sink) {
#if defined(__AVX512BF16__)
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(sink[i]));
  const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(sink[0]));
  for (int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
  for (int i = 1; i < kChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  _mm512_storeu_ps(sink, sums[0]);
  return rounds * kChains * 64;
#else
  return static_cast<void>(rounds), static_cast<void>(sink), 0;
#endif
}
