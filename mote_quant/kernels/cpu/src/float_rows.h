// Rows of float32, bfloat16 and float16 numbers from and to float32: compiled anew in each unit that includes this, for
// that unit's instruction set. No pointer to such a row needs to be aligned.
#pragma once
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "floats.h"

#if defined(__F16C__)
#include "x86.h"
#endif

namespace mote {
namespace {

inline int64_t size_of(MoteType type) { return type == MOTE_FLOAT32 ? 4 : 2; }

inline void bfloat16_to_floats(const void* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, static_cast<const char*>(from) + 2 * i, 2);
    to[i] = from_bfloat16(half);
  }
}

inline void float16_to_floats(const void* from, int64_t count, float* to) {
  const char* bytes = static_cast<const char*>(from);
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 2 * i))));
#endif
  for (; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, bytes + 2 * i, 2);
    to[i] = from_float16(half);
  }
}

inline void floats_to_bfloat16(const float* from, int64_t count, void* to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t half = to_bfloat16(from[i]);
    std::memcpy(static_cast<char*>(to) + 2 * i, &half, 2);
  }
}

inline void floats_to_float16(const float* from, int64_t count, void* to) {
  char* bytes = static_cast<char*>(to);
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
  for (; i < count; ++i) {
    const uint16_t half = to_float16(from[i]);
    std::memcpy(bytes + 2 * i, &half, 2);
  }
}

inline void to_floats(const void* from, MoteType type, int64_t count, float* to) {
  if (type == MOTE_FLOAT32) {
    std::memcpy(to, from, static_cast<size_t>(count) * 4);
  } else if (type == MOTE_BFLOAT16) {
    bfloat16_to_floats(from, count, to);
  } else {
    float16_to_floats(from, count, to);
  }
}

// Rounds to nearest even.
inline void from_floats(const float* from, MoteType type, int64_t count, void* to) {
  if (type == MOTE_FLOAT32) {
    std::memcpy(to, from, static_cast<size_t>(count) * 4);
  } else if (type == MOTE_BFLOAT16) {
    floats_to_bfloat16(from, count, to);
  } else {
    floats_to_float16(from, count, to);
  }
}

}  // namespace
}  // namespace mote
