// Fused quantizers of training and conversion: absolute sums, codes by threshold, int8 activations per token.
//
// Codes are those of the torch reference to the bit. A ternary code is round(w / s) clipped to one, halves to even: it
// is not 0 exactly where |w| > s / 2, as the next float above s / 2, divided by s, is already rounded above one half.
#pragma once
#include <cstdint>

namespace mote {

// What is written for a weight: its code times the scale in a floating-point type of `MoteType`, or the code itself.
enum QuantizeOut : int32_t { CODES_INT8 = 16, CODES_2BIT = 17 };

// Elements whose absolute values are summed on their own before the sums are added in order: any number of threads
// gives the same bits.
constexpr int64_t SUM_BLOCK = 1 << 15;

// One instruction set's way to do it. Every function works on a run of contiguous elements and allocates nothing.
struct QuantizeKernels {
  // The sum of |x| in float64, in lanes of a fixed order: every instruction set gives the same bits.
  double (*absolute_sum)(const void* x, int32_t type, int64_t count);
  // `out` holds values (a type of MoteType) or int8 codes; NaN stays NaN in values and is 0 in codes.
  void (*ternarize)(const void* w, int32_t type, int64_t count, float scale, bool binary, void* out, int32_t out_type);
  // Four codes a byte, the first lowest, each plus one.
  void (*pack)(const int8_t* codes, int64_t count, uint8_t* out);
  // One token rounded to int8 and back (or `whole`: to whole numbers), in a floating-point type. Returns its scale.
  float (*quantize_row)(const void* x, int32_t type, int64_t count, bool whole, void* out, int32_t out_type);
};

const QuantizeKernels& quantize_portable();
#ifdef MOTE_WITH_AVX2
const QuantizeKernels& quantize_avx2();
#endif
#ifdef MOTE_WITH_AVX512
const QuantizeKernels& quantize_avx512();
#endif

}  // namespace mote
