// Many tokens on AMX tiles; what is too little for them is left to AVX-512.
#include "amx_tiles.h"
#include "ternary_zmm.h"

namespace mote {
namespace {

constexpr int64_t TILE_ROWS = 16;
constexpr int64_t FEWEST_TOKENS = 8;

// Tiles 0 to 3 hold sums [tokens of tile 4 or 5][rows of tile 6 or 7]; 4 and 5 codes of up to 16 tokens; 6 and 7 the
// digits of a group, of which 16 steps are a tile as they stand.
template <int TokenTiles, int Groups>
void multiply_tiles(const uint8_t* digits, int64_t group_bytes, int64_t steps, const int8_t* x, int64_t stride,
                    Sums out) {
  int32_t* const second = out.values + TILE_ROWS * out.stride;
  const int64_t out_bytes = out.stride * static_cast<int64_t>(sizeof(int32_t));
  tile_load<0>(out.values, out_bytes);
  if constexpr (Groups == 2) tile_load<1>(out.values + GROUP, out_bytes);
  if constexpr (TokenTiles == 2) tile_load<2>(second, out_bytes);
  if constexpr (TokenTiles == 2 && Groups == 2) tile_load<3>(second + GROUP, out_bytes);
  for (int64_t step = 0; step < steps; step += TILE_ROWS) {
    tile_load<4>(x + step * STEP, stride);
    tile_load<6>(digits + step * BLOCK, BLOCK);
    tile_multiply<0, 4, 6>();
    if constexpr (Groups == 2) {
      tile_load<7>(digits + group_bytes + step * BLOCK, BLOCK);
      tile_multiply<1, 4, 7>();
    }
    if constexpr (TokenTiles == 2) {
      tile_load<5>(x + TILE_ROWS * stride + step * STEP, stride);
      tile_multiply<2, 5, 6>();
      if constexpr (Groups == 2) tile_multiply<3, 5, 7>();
    }
  }
  tile_store<0>(out.values, out_bytes);
  if constexpr (Groups == 2) tile_store<1>(out.values + GROUP, out_bytes);
  if constexpr (TokenTiles == 2) tile_store<2>(second, out_bytes);
  if constexpr (TokenTiles == 2 && Groups == 2) tile_store<3>(second + GROUP, out_bytes);
}

// Tiles for `first` and `second` tokens (0: none).
TileShapes shapes_for(int64_t first, int64_t second) {
  TileShapes shapes;
  const int64_t rows[8] = {first, first, second, second, first, second, TILE_ROWS, TILE_ROWS};
  for (int tile = 0; tile < 8; ++tile) {
    const bool used = rows[tile] > 0;
    shapes.rows[tile] = static_cast<uint8_t>(used ? rows[tile] : 1);
    shapes.row_bytes[tile] = BLOCK;
  }
  return shapes;
}

void multiply_by_tiles(const uint8_t* digits, int64_t group_bytes, int groups, int64_t steps, const Tokens& tokens,
                       Sums sums) {
  using Kernel = void (*)(const uint8_t*, int64_t, int64_t, const int8_t*, int64_t, Sums);
  static constexpr Kernel kernels[2][2] = {{multiply_tiles<1, 1>, multiply_tiles<1, 2>},
                                           {multiply_tiles<2, 1>, multiply_tiles<2, 2>}};
  if (tokens.count < FEWEST_TOKENS) return multiply(digits, group_bytes, groups, steps, tokens, sums);
  int64_t configured = 0;
  for (int64_t t = 0; t < tokens.count; t += 2 * TILE_ROWS) {
    const int64_t count = tokens.count - t < 2 * TILE_ROWS ? tokens.count - t : 2 * TILE_ROWS;
    const int64_t first = count < TILE_ROWS ? count : TILE_ROWS;
    if (count != configured) tile_configure(shapes_for(first, count - first));
    configured = count;
    kernels[count > TILE_ROWS][groups - 1](digits, group_bytes, steps, tokens.codes + t * tokens.stride, tokens.stride,
                                           {sums.values + t * sums.stride, sums.stride});
  }
  tile_release();
}

}  // namespace

const TernaryTier& ternary_amx() {
  static constexpr TernaryTier tier = {{TILE_TOKENS, TILE_TOKENS},
                                       multiply_few,
                                       unpack,
                                       multiply_by_tiles,
                                       quantize,
                                       finish,
                                       activate,
                                       combine,
                                       from_floats};
  return tier;
}

}  // namespace mote
