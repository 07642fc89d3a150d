#include "quantize.h"

#include <algorithm>
#include <memory>
#include <new>

#include "abi.h"
#include "counters.h"
#include "level.h"
#include "parallel.h"

namespace mote {
namespace {

// Below this many elements starting threads costs more than the work.
constexpr int64_t SERIAL = 1 << 17;
// Columns whose codes lie in a small buffer before they are packed; a multiple of four.
constexpr int64_t PACKED_AT_ONCE = 4096;

const QuantizeKernels& kernels() {
  const Level level = current_level();
#ifdef MOTE_WITH_AVX512
  if (level == AVX512 || level == AMX) return quantize_avx512();
#endif
#ifdef MOTE_WITH_AVX2
  if (level == AVX2 || level == AVXVNNI || level == AVX512 || level == AMX) return quantize_avx2();
#endif
  return quantize_portable();
}

int64_t bytes_of(int32_t type) { return type == MOTE_FLOAT32 ? 4 : 2; }
bool is_float(int32_t type) { return type == MOTE_FLOAT32 || type == MOTE_BFLOAT16; }
const char* at(const void* data, int64_t bytes) { return static_cast<const char*>(data) + bytes; }
char* at(void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; }
int threads_for(int64_t elements, int threads) { return elements < SERIAL ? 1 : threads; }

// Which weights of [rows, columns] share a scale: `group` columns of a row, and with `row_scales` 0 all rows.
struct Scales {
  const float* values;
  int64_t row_scales, group;

  float of(int64_t row, int64_t column) const { return values[row * row_scales + column / group]; }

  // Calls `run(begin, end, scale)` for the columns [begin, end) of a row, cut where the scale changes.
  template <typename Run>
  void each(int64_t row, int64_t begin, int64_t end, const Run& run) const {
    while (begin < end) {
      const int64_t stop = std::min(end, (begin / group + 1) * group);
      run(begin, stop, of(row, begin));
      begin = stop;
    }
  }
};

struct Ternarize {
  const void* weight;
  int32_t type;
  int64_t columns;
  Scales scales;
  bool binary;
  void* out;
  int32_t out_type;

  void row(int64_t index) const { out_type == CODES_2BIT ? pack_row(index) : write_row(index); }

  void write_row(int64_t index) const {
    const int64_t first = index * columns, size = out_type == CODES_INT8 ? 1 : bytes_of(out_type);
    scales.each(index, 0, columns, [&](int64_t begin, int64_t end, float scale) {
      kernels().ternarize(at(weight, (first + begin) * bytes_of(type)), type, end - begin, scale, binary,
                          at(out, (first + begin) * size), out_type);
    });
  }

  void pack_row(int64_t index) const {
    int8_t codes[PACKED_AT_ONCE];
    auto* packed = static_cast<uint8_t*>(out) + index * ((columns + 3) / 4);
    for (int64_t start = 0; start < columns; start += PACKED_AT_ONCE) {
      const int64_t stop = std::min(columns, start + PACKED_AT_ONCE);
      scales.each(index, start, stop, [&](int64_t begin, int64_t end, float scale) {
        kernels().ternarize(at(weight, (index * columns + begin) * bytes_of(type)), type, end - begin, scale, binary,
                            codes + begin - start, CODES_INT8);
      });
      kernels().pack(codes, stop - start, packed + start / 4);
    }
  }
};

}  // namespace
}  // namespace mote

using namespace mote;

// sums[rows * groups]: |x| summed over `group` columns of a row at a time; a short last group is summed as it is.
MOTE_API int32_t mote_absolute_sums(const void* x, int32_t type, int64_t rows, int64_t columns, int64_t group,
                                    double* sums, int32_t threads) {
  if (!is_float(type) || rows < 0 || columns < 1 || group < 1) return MOTE_BAD_ARGUMENT;
  count_call(QUANTIZE);
  const int64_t groups = (columns + group - 1) / group, blocks = (group + SUM_BLOCK - 1) / SUM_BLOCK;
  const int64_t items = rows * groups * blocks;
  const std::unique_ptr<double[]> parts(new (std::nothrow) double[static_cast<size_t>(items)]);
  if (!parts) return MOTE_OUT_OF_MEMORY;
  parallel_for(items, threads_for(rows * columns, threads), [&](int64_t item, int) {
    const int64_t run = item / blocks, row = run / groups, first = run % groups * group;
    const int64_t begin = first + item % blocks * SUM_BLOCK;
    const int64_t end = std::min({begin + SUM_BLOCK, first + group, columns});
    const int64_t count = std::max<int64_t>(end - begin, 0);
    parts[item] = count ? kernels().absolute_sum(at(x, (row * columns + begin) * bytes_of(type)), type, count) : 0.0;
  });
  for (int64_t run = 0; run < rows * groups; ++run) {
    sums[run] = 0.0;
    for (int64_t block = 0; block < blocks; ++block) sums[run] += parts[run * blocks + block];
  }
  return MOTE_OK;
}

// Weights [rows, columns] as values or codes. The scale of (row, column) is scales[row * row_scales + column / group].
MOTE_API int32_t mote_ternarize(const void* weight, int32_t type, int64_t rows, int64_t columns, const float* scales,
                                int64_t row_scales, int64_t group, int32_t binary, void* out, int32_t out_type,
                                int32_t threads) {
  const bool known = is_float(out_type) || out_type == CODES_INT8 || out_type == CODES_2BIT;
  if (!is_float(type) || !known || rows < 0 || columns < 1 || group < 1) return MOTE_BAD_ARGUMENT;
  count_call(QUANTIZE);
  const Ternarize task{weight, type, columns, {scales, row_scales, group}, binary != 0, out, out_type};
  parallel_for(rows, threads_for(rows * columns, threads), [&](int64_t row, int) { task.row(row); });
  return MOTE_OK;
}

// Tokens [rows, columns] rounded to int8 and back, or with `whole` to whole numbers; `scales` [rows] may be null.
MOTE_API int32_t mote_quantize_activations(const void* x, int32_t type, int64_t rows, int64_t columns, int32_t whole,
                                           void* out, int32_t out_type, float* scales, int32_t threads) {
  if (!is_float(type) || !is_float(out_type) || rows < 0 || columns < 1) return MOTE_BAD_ARGUMENT;
  count_call(QUANTIZE);
  parallel_for(rows, threads_for(rows * columns, threads), [&](int64_t row, int) {
    const float scale = kernels().quantize_row(at(x, row * columns * bytes_of(type)), type, columns, whole != 0,
                                               at(out, row * columns * bytes_of(out_type)), out_type);
    if (scales) scales[row] = scale;
  });
  return MOTE_OK;
}
