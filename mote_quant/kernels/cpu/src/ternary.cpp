// The functions that Python calls for packed ternary weights.
#include "ternary.h"

#include <cstring>

#include "counters.h"
#include "float_rows.h"
#include "parallel.h"
#include "ternary_products.h"

namespace mote {
namespace {

// Tokens worked on in one pass, which bounds the memory of a call.
constexpr int64_t PASS_TOKENS = 1024;

struct Call {
  const char* x;
  MoteType type;
  TernaryWeight weight;
  Shape shape;
  char* out;
  int threads;
};

// Tokens [first, first + tokens.count).
void multiply_pass(const TernaryTier& tier, const Call& call, const Tokens& tokens, int64_t first) {
  const Shape& shape = call.shape;
  parallel_for(tokens.count, tokens.count < 16 ? 1 : call.threads, [&](int64_t t, int) {
    tier.quantize(call.x + (first + t) * shape.columns * size_of(call.type), call.type, shape.columns, shape.packing,
                  tokens_of(tokens, t, 1));
  });
  const int64_t row_pieces = pieces_of(shape.rows, PIECE_ROWS);
  parallel_for(row_pieces * pieces_of(tokens.count, PIECE_TOKENS), call.threads, [&](int64_t item, int) {
    const int64_t row = item % row_pieces * PIECE_ROWS, token = item / row_pieces * PIECE_TOKENS;
    const int64_t rows = piece_size(shape.rows, PIECE_ROWS, item % row_pieces);
    const Tokens some = tokens_of(tokens, token, piece_size(tokens.count, PIECE_TOKENS, item / row_pieces));
    float outputs[PIECE_TOKENS * PIECE_ROWS];
    product_piece(tier, call.weight, shape, row, rows, some, outputs, PIECE_ROWS);
    for (int64_t t = 0; t < some.count; ++t)
      tier.store(outputs + t * PIECE_ROWS, call.type, rows,
                 call.out + ((first + token + t) * shape.rows + row) * size_of(call.type));
  });
}

// Codes in column order to planes, with their sum.
int32_t lay_out(const int8_t* x, int64_t columns, Packing packing, int64_t stride, int8_t* codes) {
  std::memset(codes, 0, static_cast<size_t>(stride));
  int32_t sum = 0;
  for (int64_t c = 0; c < columns; ++c) {
    codes[place_of(c, packing)] = x[c];
    sum += x[c];
  }
  return sum;
}

// Sums of codes, not of digits, of all rows and up to PIECE_TOKENS tokens.
void accumulate_piece(const TernaryTier& tier, const PackedRows& rows, const Tokens& tokens, int32_t* out,
                      int64_t stride) {
  alignas(64) int32_t sums[PIECE_TOKENS * PIECE_ROWS];
  multiply_piece(tier, rows, tokens, {sums, PIECE_ROWS});
  for (int64_t t = 0; t < tokens.count; ++t)
    for (int64_t r = 0; r < rows.count; ++r) out[t * stride + r] = sums[t * PIECE_ROWS + r] - tokens.sums[t];
}

}  // namespace
}  // namespace mote

using namespace mote;

// out [tokens, rows] = x [tokens, columns] times packed codes [rows, bytes], both float arrays of `type`; scales (one
// for all rows, or one for each) and biases (one for each row, or null) are float arrays of types of their own.
MOTE_API int32_t mote_ternary_matmul(const void* x, int32_t type, int64_t tokens, int64_t columns, const uint8_t* codes,
                                     int32_t packing, int64_t rows, const void* scales, int32_t scale_type,
                                     int32_t one_scale, const void* biases, int32_t bias_type, void* out,
                                     int32_t threads) {
  const Shape shape{rows, columns, static_cast<Packing>(packing)};
  if (!is_type(type) || !is_type(scale_type) || !is_type(bias_type) || !is_sound(shape, tokens, threads))
    return MOTE_BAD_ARGUMENT;
  count_call(TERNARY_MATMUL);
  const int64_t pass = tokens < PASS_TOKENS ? tokens : PASS_TOKENS;
  const TokenRoom room(pass, columns, shape.packing);
  if (!room.there()) return MOTE_OUT_OF_MEMORY;
  const TernaryWeight weight{codes,
                             {scales, static_cast<MoteType>(scale_type), one_scale != 0},
                             {biases, static_cast<MoteType>(bias_type), false}};
  const Call call{static_cast<const char*>(x),
                  static_cast<MoteType>(type),
                  weight,
                  shape,
                  static_cast<char*>(out),
                  worthwhile_threads(threads, shape, 1, tokens)};
  for (int64_t first = 0; first < tokens; first += PASS_TOKENS)
    multiply_pass(ternary_tier(), call, tokens_of(room.tokens(), 0, tokens - first < pass ? tokens - first : pass),
                  first);
  return MOTE_OK;
}

// The integer sums under `mote_ternary_matmul`: codes int8 [tokens, columns] in -127..127 -> int32 [tokens, rows].
MOTE_API int32_t mote_ternary_accumulate(const int8_t* x, int64_t tokens, int64_t columns, const uint8_t* codes,
                                         int32_t packing, int64_t rows, int32_t* out, int32_t threads) {
  const Shape shape{rows, columns, static_cast<Packing>(packing)};
  if (!is_sound(shape, tokens, threads)) return MOTE_BAD_ARGUMENT;
  const TokenRoom room(tokens, columns, shape.packing);
  if (!room.there()) return MOTE_OUT_OF_MEMORY;
  const Tokens& all = room.tokens();
  for (int64_t t = 0; t < tokens; ++t)
    all.sums[t] = lay_out(x + t * columns, columns, shape.packing, all.stride, all.codes + t * all.stride);
  const TernaryTier& tier = ternary_tier();
  const PackedRows packed{codes, row_bytes_of(columns, shape.packing), rows, shape.packing};
  const int64_t row_pieces = pieces_of(rows, PIECE_ROWS);
  parallel_for(row_pieces * pieces_of(tokens, PIECE_TOKENS), threads, [&](int64_t item, int) {
    const int64_t row = item % row_pieces * PIECE_ROWS, token = item / row_pieces * PIECE_TOKENS;
    accumulate_piece(tier, rows_of(packed, row, piece_size(rows, PIECE_ROWS, item % row_pieces)),
                     tokens_of(all, token, piece_size(tokens, PIECE_TOKENS, item / row_pieces)),
                     out + token * rows + row, rows);
  });
  return MOTE_OK;
}

// Float rows of `type` -> int8 codes [tokens, columns] in column order and float32 scales [tokens].
MOTE_API int32_t mote_ternary_quantize(const void* x, int32_t type, int64_t tokens, int64_t columns, int8_t* codes,
                                       float* scales) {
  if (!is_type(type) || !is_sound({0, columns, TWO_BITS}, tokens, 1)) return MOTE_BAD_ARGUMENT;
  const TokenRoom room(1, columns, TWO_BITS);
  if (!room.there()) return MOTE_OUT_OF_MEMORY;
  const auto kind = static_cast<MoteType>(type);
  const Tokens& token = room.tokens();
  for (int64_t t = 0; t < tokens; ++t) {
    const auto* const row = static_cast<const char*>(x) + t * columns * size_of(kind);
    ternary_tier().quantize(row, kind, columns, TWO_BITS, token);
    scales[t] = token.scales[0];
    for (int64_t c = 0; c < columns; ++c) codes[t * columns + c] = token.codes[place_of(c, TWO_BITS)];
  }
  return MOTE_OK;
}
