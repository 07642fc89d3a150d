// The AMX tile instructions this library uses. With MOTE_EMULATE_AMX they are plain C++ that does what the manual says,
// so that what is built on them can be tested on any processor.
#pragma once
#include <cstdint>
#include <cstring>

namespace mote {
namespace {

struct TileShapes {
  uint8_t rows[8];
  uint16_t row_bytes[8];
};

// As LDTILECFG reads it.
struct TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfiguration(const TileShapes& shapes) {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = shapes.row_bytes[tile];
      rows[tile] = shapes.rows[tile];
    }
  }
};
static_assert(sizeof(TileConfiguration) == 64, "the layout is the processor's");

#if defined(MOTE_EMULATE_AMX)

struct EmulatedTile {
  int rows = 0, row_bytes = 0;
  uint8_t data[16][64];
};

thread_local EmulatedTile emulated_tiles[8];

void tile_configure(const TileShapes& shapes) {
  const TileConfiguration configuration(shapes);
  for (int tile = 0; tile < 8; ++tile) {
    emulated_tiles[tile] = {configuration.rows[tile], configuration.row_bytes[tile], {}};
  }
}

void tile_release() {
  for (auto& tile : emulated_tiles) tile = {};
}

template <int T>
void tile_load(const void* from, int64_t stride) {
  EmulatedTile& tile = emulated_tiles[T];
  std::memset(tile.data, 0, sizeof tile.data);
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(tile.data[row], static_cast<const uint8_t*>(from) + row * stride, static_cast<size_t>(tile.row_bytes));
}

template <int T>
void tile_store(void* to, int64_t stride) {
  const EmulatedTile& tile = emulated_tiles[T];
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tile.data[row], static_cast<size_t>(tile.row_bytes));
}

// Signed bytes of A times unsigned bytes of B: C[m][n] += sum over k of A[m][4 k + i] * B[k][4 n + i].
template <int C, int A, int B>
void tile_multiply() {
  EmulatedTile &c = emulated_tiles[C], &a = emulated_tiles[A], &b = emulated_tiles[B];
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, c.data[m] + 4 * n, sizeof sum);
      for (int k = 0; k < a.row_bytes / 4 && k < b.rows; ++k)
        for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a.data[m][4 * k + i]) * b.data[k][4 * n + i];
      std::memcpy(c.data[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

#else

// Written out, for GCC 12's intrinsics do not say that they read and write memory: stores before them were left out.
inline void tile_configure(const TileShapes& shapes) {
  const TileConfiguration configuration(shapes);
  __asm__ volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
}

inline void tile_release() { __asm__ volatile("tilerelease" : : : "memory"); }

template <int T>
inline void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}

template <int C, int A, int B>
inline void tile_multiply() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
}  // namespace mote
