// Products with whatever instruction set is in force: in pieces of so many rows and tokens, which threads take in turn.
#pragma once
#include "scratch.h"
#include "ternary.h"

namespace mote {

// One float for each row, or one for all; null: none.
struct RowFloats {
  const void* values;
  MoteType type;
  bool one;
};

// One packed weight [rows, columns]; nothing need be aligned.
struct TernaryWeight {
  const uint8_t* codes;
  RowFloats scales;
  RowFloats biases;
};

constexpr int64_t PIECE_ROWS = 64;
constexpr int64_t PIECE_TOKENS = 96;

struct Shape {
  int64_t rows;
  int64_t columns;
  Packing packing;
};

constexpr int64_t pieces_of(int64_t count, int64_t piece) { return (count + piece - 1) / piece; }
constexpr int64_t piece_size(int64_t count, int64_t piece, int64_t index) {
  return count - index * piece < piece ? count - index * piece : piece;
}

// Room for the codes of `count` tokens.
Tokens take_tokens(Cutter& cutter, int64_t count, int64_t columns, Packing packing);

// Memory for the codes of some tokens.
class TokenRoom {
 public:
  TokenRoom(int64_t count, int64_t columns, Packing packing);

  bool there() const { return memory_.area() != nullptr; }
  const Tokens& tokens() const { return tokens_; }

 private:
  Scratch memory_;
  Tokens tokens_;
};

// Sums of up to PIECE_ROWS rows and PIECE_TOKENS tokens. `sums` has a stride of PIECE_ROWS and room for PIECE_TOKENS.
void multiply_piece(const TernaryTier& tier, const PackedRows& rows, const Tokens& tokens, Sums sums);

// Float32 outputs of such a piece, whose first row is `first_row` of the weight: those of token t at out + t * stride.
void product_piece(const TernaryTier& tier, const TernaryWeight& weight, const Shape& shape, int64_t first_row,
                   int64_t rows, const Tokens& tokens, float* out, int64_t stride);

// 1 where the work of one weight, or of several like it, is too little to be shared out.
int worthwhile_threads(int threads, const Shape& shape, int64_t weights, int64_t tokens);

bool is_sound(const Shape& shape, int64_t tokens, int32_t threads);

// Of an integer from outside, which may be anything.
bool is_type(int32_t type);

}  // namespace mote
