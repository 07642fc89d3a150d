// Group-quantized integer weights times float activations: what Python calls.
#include "integer.h"

#include <algorithm>
#include <new>
#include <vector>

#include "counters.h"
#include "integer_activations.h"
#include "level.h"
#include "float_rows.h"
#include "parallel.h"

namespace mote {
namespace {

constexpr int64_t CHUNK_BYTES = 1 << 16;      // of codes that a thread takes at a time
constexpr int64_t SERIAL_PRODUCTS = 1 << 22;  // below, waking a second thread costs more than it brings

bool valid(const IntegerWeight& weight) {
  const bool bits = weight.bits >= 1 && weight.bits <= 8 && weight.bits != 7;
  return bits && weight.rows >= 0 && weight.columns >= 0 && weight.group_size > 0;
}

bool valid(int32_t type) { return type >= MOTE_FLOAT32 && type <= MOTE_FLOAT16; }

// Whether every lane of a vector of codes lies in one group, and codes are numbers the vector kernels know.
bool vectors_take(const IntegerWeight& weight) {
  const bool aligned = weight.groups <= 1 || weight.group_size % lane_columns(weight.bits) == 0;
  const bool centred = weight.step == 1 && weight.offset == 1 << (weight.bits - 1);
  return aligned && (weight.bits <= 3 || centred);
}

const IntegerTier& tier_for(const IntegerWeight& weight, bool bfloat16) {
  const Level level = vectors_take(weight) ? current_level() : PORTABLE;
  (void)level, (void)bfloat16;
#ifdef MOTE_WITH_AVX512BF16
  if (bfloat16 && (level == AVX512 || level == AMX) && has_avx512_bf16() && has_avx512_vbmi()) {
    return integer_avx512bf16();
  }
#endif
#ifdef MOTE_WITH_AVX512
  if (level == AVX512 || level == AMX) return integer_avx512();
#endif
#ifdef MOTE_WITH_AVX2
  if (level == AVX2 || level == AVXVNNI) return integer_avx2();
#endif
  return integer_portable();
}

struct Output {
  void* values;
  MoteType type;
  const void* bias;
};

// Adds the bias, rounds, and puts sums [tokens, rows] where they belong.
void finish(const Output& out, const IntegerWeight& weight, int64_t tokens, int64_t first, int64_t rows, float* sums,
            float* bias) {
  const int64_t size = size_of(out.type);
  if (out.bias) to_floats(static_cast<const char*>(out.bias) + first * size, out.type, rows, bias);
  for (int64_t token = 0; token < tokens; ++token) {
    float* of_token = sums + token * rows;
    for (int64_t row = 0; out.bias && row < rows; ++row) of_token[row] += bias[row];
    from_floats(of_token, out.type, rows, static_cast<char*>(out.values) + (token * weight.rows + first) * size);
  }
}

int64_t rows_at_a_time(const IntegerWeight& weight) {
  const int64_t rows = CHUNK_BYTES / std::max<int64_t>(weight.row_bytes, 1) / 8 * 8;
  return std::clamp<int64_t>(rows, 8, 256);
}

void multiply(const FloatInput& x, const IntegerWeight& weight, const Output& out, int threads) {
  const IntegerTier& tier = tier_for(weight, x.type == MOTE_BFLOAT16 && x.factors == nullptr);
  if (weight.rows * weight.columns * (x.tokens + 1) < SERIAL_PRODUCTS) threads = 1;
  threads = std::max(threads, 1);
  const ArrangedActivations arranged = arrange(x, weight, tier);
  const int64_t chunk = rows_at_a_time(weight), floats = chunk * (x.tokens + 1);
  std::vector<float> scratch(static_cast<size_t>(floats * threads));
  parallel_for((weight.rows + chunk - 1) / chunk, threads, [&](int64_t item, int worker) {
    const int64_t first = item * chunk, rows = std::min(chunk, weight.rows - first);
    float* sums = scratch.data() + worker * floats;
    tier.multiply(weight, arranged.view, first, rows, sums);
    finish(out, weight, x.tokens, first, rows, sums, sums + chunk * x.tokens);
  });
}

void unpack(const IntegerWeight& weight, int64_t first, int64_t count, MoteType type, void* out, int threads) {
  const bool whole_bytes = weight.groups <= 1 || weight.group_size % 8 == 0;
  const IntegerTier& tier = whole_bytes ? tier_for(weight, true) : integer_portable();
  if (count * weight.columns < SERIAL_PRODUCTS) threads = 1;
  const int64_t chunk = 16;
  parallel_for((count + chunk - 1) / chunk, threads, [&](int64_t item, int) {
    const int64_t row = item * chunk;
    char* to = static_cast<char*>(out) + row * weight.columns * size_of(type);
    tier.unpack(weight, first + row, std::min(chunk, count - row), type, to);
  });
}

IntegerWeight weight_of(const uint8_t* codes, int64_t rows, int64_t columns, int32_t bits, int32_t offset,
                        const void* scales, int32_t scale_type, int64_t scale_stride, int64_t group_size,
                        const void* zeros, int32_t zero_kind) {
  const int64_t groups = group_size > 0 ? (columns + group_size - 1) / group_size : 0;
  return {codes,  rows,
          columns, packed_bytes(columns, bits),
          bits,   bits == 1 ? 2 : 1,
          offset, scales,
          static_cast<MoteType>(scale_type), group_size,
          groups, scale_stride,
          static_cast<ZeroKind>(zero_kind), zeros};
}

template <typename Call>
int32_t without_exceptions(const Call& call) {
  try {
    call();
    return MOTE_OK;
  } catch (const std::bad_alloc&) {
    return MOTE_OUT_OF_MEMORY;
  }
}

}  // namespace
}  // namespace mote

// out [tokens, rows] = (x * input_scale) [tokens, columns] times the weight's rows, + bias. x, bias and out are of type
// `x_type`, scales, input_scale and float zeros of `scale_type`; zeros, input_scale and bias may be null.
MOTE_API int32_t mote_int_matmul(const void* x, int32_t x_type, int64_t tokens, const uint8_t* codes, int64_t rows,
                                 int64_t columns, int32_t bits, int32_t offset, const void* scales, int32_t scale_type,
                                 int64_t scale_stride, int64_t group_size, const void* zeros, int32_t zero_kind,
                                 const void* input_scale, const void* bias, void* out, int32_t threads) {
  using namespace mote;
  const IntegerWeight weight = weight_of(codes, rows, columns, bits, offset, scales, scale_type, scale_stride,
                                         group_size, zeros, zero_kind);
  if (!valid(weight) || !valid(x_type) || !valid(scale_type) || tokens < 0) return MOTE_BAD_ARGUMENT;
  count_call(INT_MATMUL);
  if (tokens == 0 || rows == 0) return MOTE_OK;
  const auto type = static_cast<MoteType>(x_type);
  const FloatInput input{x, type, tokens, input_scale, weight.scale_type};
  return without_exceptions([&] { multiply(input, weight, {out, type, bias}, threads); });
}

// out [count, columns] of `type`: rows [first, first + count) of the weight, without its input scale.
MOTE_API int32_t mote_int_unpack(const uint8_t* codes, int64_t rows, int64_t columns, int32_t bits, int32_t offset,
                                 const void* scales, int32_t scale_type, int64_t scale_stride, int64_t group_size,
                                 const void* zeros, int32_t zero_kind, int64_t first, int64_t count, int32_t type,
                                 void* out, int32_t threads) {
  using namespace mote;
  const IntegerWeight weight = weight_of(codes, rows, columns, bits, offset, scales, scale_type, scale_stride,
                                         group_size, zeros, zero_kind);
  const bool inside = first >= 0 && count >= 0 && first <= rows - count;
  if (!valid(weight) || !valid(scale_type) || !valid(type) || !inside) return MOTE_BAD_ARGUMENT;
  return without_exceptions([&] { unpack(weight, first, count, static_cast<MoteType>(type), out, threads); });
}
