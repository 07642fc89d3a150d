#include "ternary_zmm.h"

namespace mote {

const TernaryTier& ternary_avx512() {
  static constexpr TernaryTier tier = {
      {TILE_TOKENS, TILE_TOKENS}, multiply_few, unpack, multiply, quantize, finish, activate, combine, from_floats};
  return tier;
}

}  // namespace mote
