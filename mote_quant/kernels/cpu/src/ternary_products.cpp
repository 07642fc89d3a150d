#include "ternary_products.h"

#include <cstring>

#include "float_rows.h"
#include "level.h"

namespace mote {
namespace {

constexpr int64_t CHUNK_BLOCKS = 4;
constexpr int64_t GROUP_BYTES = CHUNK_BLOCKS * MAX_PLANES * STEPS_A_PLANE * BLOCK;
constexpr int GROUPS = 2;
constexpr double MIN_NANOSECONDS = 50e3;

// Up to GROUPS * GROUP rows, unpacked a few blocks at a time so that digits stay in the nearest caches.
void multiply_unpacked(const TernaryTier& tier, const PackedRows& rows, const Tokens& tokens, Sums sums) {
  alignas(64) uint8_t digits[GROUPS * GROUP_BYTES];
  const int64_t blocks = pieces_of(rows.row_bytes, BLOCK);
  const int64_t planes = planes_of(rows.packing);
  const auto groups = static_cast<int>(pieces_of(rows.count, GROUP));
  for (int64_t first = 0; first < blocks; first += CHUNK_BLOCKS) {
    const int64_t some = blocks - first < CHUNK_BLOCKS ? blocks - first : CHUNK_BLOCKS;
    for (int g = 0; g < groups; ++g)
      tier.unpack(rows_of(rows, g * GROUP, piece_size(rows.count, GROUP, g)), first, some, digits + g * GROUP_BYTES);
    Tokens part = tokens;
    part.codes += first * planes * BLOCK;
    tier.multiply(digits, GROUP_BYTES, groups, some * planes * STEPS_A_PLANE, part, sums);
  }
}

const float* read_rows(const RowFloats& from, int64_t first, int64_t rows, float* to) {
  if (from.values == nullptr) return nullptr;
  const auto* values = static_cast<const char*>(from.values);
  to_floats(from.one ? values : values + first * size_of(from.type), from.type, from.one ? 1 : rows, to);
  for (int64_t r = 1; from.one && r < rows; ++r) to[r] = to[0];
  return to;
}

}  // namespace

const TernaryTier& ternary_tier() {
  switch (current_level()) {
#ifdef MOTE_WITH_AVX2
    case AVX2:
      return ternary_avx2();
#endif
#ifdef MOTE_WITH_AVXVNNI
    case AVXVNNI:
      return ternary_avxvnni();
#endif
#ifdef MOTE_WITH_AVX512
    case AVX512:
      return ternary_avx512();
#endif
#ifdef MOTE_WITH_AMX
    case AMX:
      return ternary_amx();
#endif
#ifdef MOTE_WITH_NEON
    case NEON:
      return ternary_neon();
#endif
    default:
      return ternary_portable();
  }
}

Tokens take_tokens(Cutter& cutter, int64_t count, int64_t columns, Packing packing) {
  const int64_t stride = token_stride(columns, packing);
  return {cutter.take<int8_t>(count * stride), stride, cutter.take<float>(count), cutter.take<int32_t>(count), count};
}

TokenRoom::TokenRoom(int64_t count, int64_t columns, Packing packing)
    : memory_([&] {
        Cutter size(nullptr);
        take_tokens(size, count, columns, packing);
        return size.used();
      }()),
      tokens_{} {
  Cutter cutter(memory_.area());
  tokens_ = take_tokens(cutter, count, columns, packing);
}

void multiply_piece(const TernaryTier& tier, const PackedRows& rows, const Tokens& tokens, Sums sums) {
  if (tokens.count <= tier.few[rows.packing]) return tier.multiply_few(rows, tokens, sums);
  for (int64_t t = 0; t < tokens.count; ++t)
    std::memset(sums.values + t * sums.stride, 0, PIECE_ROWS * sizeof(int32_t));
  for (int64_t first = 0; first < rows.count; first += GROUPS * GROUP) {
    const int64_t some = rows.count - first < GROUPS * GROUP ? rows.count - first : GROUPS * GROUP;
    multiply_unpacked(tier, rows_of(rows, first, some), tokens, {sums.values + first, sums.stride});
  }
}

void product_piece(const TernaryTier& tier, const TernaryWeight& weight, const Shape& shape, int64_t first_row,
                   int64_t rows, const Tokens& tokens, float* out, int64_t stride) {
  alignas(64) int32_t sums[PIECE_TOKENS * PIECE_ROWS];
  float scale_room[PIECE_ROWS], bias_room[PIECE_ROWS];
  const int64_t row_bytes = row_bytes_of(shape.columns, shape.packing);
  multiply_piece(tier, {weight.codes + first_row * row_bytes, row_bytes, rows, shape.packing}, tokens,
                 {sums, PIECE_ROWS});
  const float* const scales = read_rows(weight.scales, first_row, rows, scale_room);
  const float* const biases = read_rows(weight.biases, first_row, rows, bias_room);
  for (int64_t t = 0; t < tokens.count; ++t)
    tier.finish(sums + t * PIECE_ROWS, rows, tokens.sums[t], tokens.scales[t], scales, biases, out + t * stride);
}

int worthwhile_threads(int threads, const Shape& shape, int64_t weights, int64_t tokens) {
  // Of one thread: about 20 bytes from memory and 200 multiply-adds in a nanosecond.
  const auto rows = static_cast<double>(weights * shape.rows);
  const double bytes = rows * static_cast<double>(row_bytes_of(shape.columns, shape.packing));
  const double products = rows * static_cast<double>(shape.columns) * static_cast<double>(tokens);
  return bytes / 20 + products / 200 < MIN_NANOSECONDS ? 1 : threads;
}

bool is_sound(const Shape& shape, int64_t tokens, int32_t threads) {
  return shape.rows >= 0 && shape.columns >= 0 && shape.columns <= MAX_COLUMNS && tokens >= 0 && threads > 0 &&
         (shape.packing == TWO_BITS || shape.packing == BASE3);
}

bool is_type(int32_t type) { return type >= MOTE_FLOAT32 && type <= MOTE_FLOAT16; }

}  // namespace mote
