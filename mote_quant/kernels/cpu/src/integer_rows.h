// The product of packed rows and arranged activations for any vector unit: included by one file per instruction set,
// which defines `Vector` first. Everything here is private to that file.
#pragma once
#include "integer.h"

namespace mote {
namespace {

template <int I>
struct Index {
  static constexpr int value = I;
};

// body(Index<0>{}), ..., body(Index<N - 1>{}): shifts must be constants, which no loop variable is.
template <int N, int I = 0, class Body>
__attribute__((always_inline)) inline void unroll(const Body& body) {
  if constexpr (I < N) {
    body(Index<I>{});
    unroll<N, I + 1>(body);
  }
}

template <class Call>
void with_bits(int bits, const Call& call) {
  switch (bits) {
    case 1: return call(Index<1>{});
    case 2: return call(Index<2>{});
    case 3: return call(Index<3>{});
    case 4: return call(Index<4>{});
    case 5: return call(Index<5>{});
    case 6: return call(Index<6>{});
    default: return call(Index<8>{});
  }
}

// Bytes ahead, into the second-level cache: what the processor fetches on its own stops at every page.
constexpr uintptr_t PREFETCH = 16384;
inline void prefetch(const void* from, uintptr_t ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + ahead), 0, 2);
}

// Activations of eight tokens that are used again and again: less than the first-level cache.
constexpr int64_t CACHED_BYTES = 24576;
constexpr int ROWS = 4;      // rows whose factors are at hand at one time
constexpr int GROUPS = 128;  // and of how many groups

// Scales and zero points of one row as floats; they are read up to a vector too far.
struct Factors {
  float scale[GROUPS + Vector::LANES];
  float zero[GROUPS + Vector::LANES];
};

// Groups [first, first + count) of one row; `first` is a multiple of 8, so that its zero point begins a byte.
template <int Bits>
void load_factors(const IntegerWeight& weight, int64_t row, int64_t first, int64_t count, Factors& factors) {
  const int64_t at = row * weight.scale_stride + first;
  const auto* packed = static_cast<const uint8_t*>(weight.zeros);
  if (weight.zero_kind == ZERO_CODES) packed += row * packed_bytes(weight.groups, Bits) + first * Bits / 8;
  // Few bytes of every row: too slow a stream for the processor to fetch it ahead on its own.
  const int64_t size = weight.scale_type == MOTE_FLOAT32 ? 4 : 2;
  const auto* scales = static_cast<const char*>(weight.scales) + at * size;
  for (int64_t group = 0; group < count; group += Vector::LANES) {
    const int64_t left = count - group;
    prefetch(scales + group * size, 32 * static_cast<uintptr_t>(weight.scale_stride * size));
    Vector::store(factors.scale + group, Vector::load_floats(weight.scales, weight.scale_type, at + group, left));
    if (weight.zero_kind == ZERO_FLOATS)
      Vector::store(factors.zero + group, Vector::load_floats(weight.zeros, weight.scale_type, at + group, left));
    else if (weight.zero_kind == ZERO_CODES)
      Vector::store(factors.zero + group, Vector::template load_codes<Bits>(packed + group * Bits / 8, left));
  }
}

// Blocks [begin, end) of all rows, whose groups begin at `group`.
struct Panel {
  int64_t begin, end, group;
};

template <int Bits, int Rows, int Tokens>
struct Tile {
  using Sum = typename Vector::Sum;
  using Codec = typename Vector::template Codec<Bits>;
  static constexpr int64_t BLOCK_BYTES = Vector::LANES * lane_columns(Bits) * Bits / 8;
  static constexpr int64_t PLANE_BYTES = Vector::LANES * 4;
  static constexpr int64_t X_BYTES = PLANE_BYTES * Codec::PLANES;

  const IntegerWeight& weight;
  const IntegerActivations& x;
  const Codec codec;
  const Factors* factors;
  const uint8_t* rows;
  int64_t row_bytes;  // from one row to the next; 0 where all are one
  const uint8_t* planes;
  const float* lane_sums;
  Sum sums[Rows][Tokens];

  template <class Body>
  static void each(const Body& body) {
    for (int row = 0; row < Rows; ++row)
      for (int token = 0; token < Tokens; ++token) body(row, token);
  }

  void run(const Panel& panel) {
    each([&](int row, int token) { sums[row][token] = Vector::zero(); });
    const int64_t whole = weight.row_bytes / BLOCK_BYTES;
    int64_t next = panel.begin - panel.begin % x.blocks_together;
    for (int64_t block = panel.begin; block < panel.end; block = next) {
      next += x.blocks_together;
      const int64_t end = next < panel.end ? next : panel.end;
      add(block, end, whole, x.first_group[block] - panel.group);
    }
  }

  // Blocks of the same groups; those from `whole` on are not all there.
  void add(int64_t begin, int64_t end, int64_t whole, int64_t group) {
    Sum part[Rows][Tokens], zero[Rows];
    each([&](int row, int token) { part[row][token] = Vector::zero(); });
    const Sum offset = Vector::broadcast(static_cast<float>(weight.offset));
    for (int row = 0; lane_sums != nullptr && row < Rows; ++row)
      zero[row] = Vector::subtract(offset, of_lanes(factors[row].zero + group, begin));
    for (int64_t block = begin; block < end; ++block) add_block(block, block < whole, zero, part);
    for (int row = 0; row < Rows; ++row) {
      const Sum scale = of_lanes(factors[row].scale + group, begin);
      for (int token = 0; token < Tokens; ++token)
        sums[row][token] = Vector::multiply_add(scale, part[row][token], sums[row][token]);
    }
  }

  void add_block(int64_t block, bool whole, const Sum (&zero)[Rows], Sum (&part)[Rows][Tokens]) {
    typename Codec::Raw raw[Rows];
    const int64_t at = block * BLOCK_BYTES;
    for (int row = 0; row < Rows; ++row) {
      const uint8_t* from = rows + row * row_bytes + at;
      raw[row] = whole ? codec.load(from) : codec.load_part(from, weight.row_bytes - at);
      prefetch(from, PREFETCH);
    }
    if (lane_sums != nullptr) {
      const float* of_block = lane_sums + block * Tokens * Vector::LANES;
      each([&](int row, int token) {
        const Sum lane_sum = Vector::load(of_block + token * Vector::LANES);
        part[row][token] = Vector::multiply_add(zero[row], lane_sum, part[row][token]);
      });
    }
    unroll<Codec::OPERANDS>([&](auto index) __attribute__((always_inline)) {
      constexpr int I = decltype(index)::value;
      const uint8_t* plane = planes + block * Tokens * X_BYTES + Codec::plane_of(I) * PLANE_BYTES;
      for (int row = 0; row < Rows; ++row) {
        const auto values = codec.template operand<I>(raw[row]);
        for (int token = 0; token < Tokens; ++token)
          part[row][token] = Vector::dot(part[row][token], values, plane + token * X_BYTES);
      }
    });
  }

  // A factor for every lane of a block, whose first lane's is `*first`.
  Sum of_lanes(const float* first, int64_t block) const {
    if (x.one_group) return Vector::broadcast(*first);
    return Vector::permute(first, x.lane_group + block * x.lane_group_stride);
  }
};

// What all tiles of a call share.
template <int Bits>
struct Task {
  const IntegerWeight& weight;
  const IntegerActivations& x;
  const typename Vector::template Codec<Bits>& codec;
  int64_t first, rows;
  float* sums;
};

// The sums of one token over all lanes. Those of four rows together take half as many operations as one by one.
template <int Rows, class AnyTile>
void total_rows(const AnyTile& tile, int token, bool alone, float* totals) {
  if constexpr (Rows == 4) {
    if (!alone) {
      return Vector::totals(tile.sums[0][token], tile.sums[1][token], tile.sums[2][token], tile.sums[3][token], totals);
    }
  }
  for (int i = 0; i < (alone ? 1 : Rows); ++i) totals[i] = Vector::total(tile.sums[i][token]);
}

// `Rows` rows, or one alone in their place, by `Tokens` tokens.
template <int Bits, int Rows, int Tokens>
void multiply_tile(const Task<Bits>& task, const Factors* factors, const Panel& panel, int64_t row, bool alone,
                   int64_t token) {
  const IntegerActivations& x = task.x;
  Tile<Bits, Rows, Tokens> tile{task.weight, x, task.codec, factors + row % ROWS, nullptr, 0, nullptr, nullptr, {}};
  tile.rows = task.weight.codes + (task.first + row) * task.weight.row_bytes;
  tile.row_bytes = alone ? 0 : task.weight.row_bytes;
  tile.planes = x.planes + token * x.token_bytes;
  tile.lane_sums = x.lane_sums == nullptr ? nullptr : x.lane_sums + token * x.blocks * Vector::LANES;
  tile.run(panel);
  for (int t = 0; t < Tokens; ++t) {
    float totals[Rows], *const sums = task.sums + (token + t) * task.rows + row;
    total_rows<Rows>(tile, t, alone, totals);
    for (int i = 0; i < (alone ? 1 : Rows); ++i) sums[i] = totals[i] + (panel.begin == 0 ? 0.0f : sums[i]);
  }
}

// Rows [row, row + count), at most ROWS, by `Tokens` tokens, as many rows at a time as registers allow.
template <int Bits, int Tokens>
void multiply_rows(const Task<Bits>& task, const Factors* factors, const Panel& panel, int64_t row, int64_t count,
                   int64_t token) {
  constexpr int TOGETHER = Vector::rows_at_a_time(Tokens);
  for (const int64_t end = row + count; row < end;) {
    const bool alone = end - row < TOGETHER;
    multiply_tile<Bits, TOGETHER, Tokens>(task, factors, panel, row, alone, token);
    row += alone ? 1 : TOGETHER;
  }
}

template <int Bits>
void multiply_panel(const Task<Bits>& task, const Panel& panel) {
  const int64_t groups_left = task.weight.groups - panel.group, groups = groups_left < GROUPS ? groups_left : GROUPS;
  // One row alone is multiplied as if there were ROWS of them from its own on.
  Factors factors[2 * ROWS - 1] = {};
  for (int64_t row = 0; row < task.rows; row += ROWS) {
    const int64_t count = task.rows - row < ROWS ? task.rows - row : ROWS;
    for (int64_t i = 0; i < count; ++i)
      load_factors<Bits>(task.weight, task.first + row + i, panel.group, groups, factors[i]);
    for (int64_t token = 0; token < task.x.tokens;) {
      const int64_t together = tokens_at_a_time(task.x.tokens - token);
      switch (together) {
        case 8: multiply_rows<Bits, 8>(task, factors, panel, row, count, token); break;
        case 4: multiply_rows<Bits, 4>(task, factors, panel, row, count, token); break;
        case 2: multiply_rows<Bits, 2>(task, factors, panel, row, count, token); break;
        default: multiply_rows<Bits, 1>(task, factors, panel, row, count, token);
      }
      token += together;
    }
  }
}

// How many blocks of columns to take through all rows before the next: their groups must fit, and the activations of
// several tokens should stay in the first-level cache.
template <int Bits>
int64_t blocks_at_a_time(const IntegerWeight& weight, const IntegerActivations& x) {
  using Tile8 = Tile<Bits, 1, 8>;
  // A panel begins up to 7 groups late, and its first and last block may begin and end inside a group.
  const int64_t fitting = (GROUPS - 10) * weight.group_size / (Vector::LANES * lane_columns(Bits));
  const int64_t cached = x.tokens < 4 ? fitting : CACHED_BYTES / (8 * Tile8::X_BYTES);
  const int64_t blocks = fitting < cached ? fitting : cached;
  return blocks > 1 ? blocks : 1;
}

template <int Bits>
void multiply_all(const Task<Bits>& task) {
  const int64_t blocks = blocks_at_a_time<Bits>(task.weight, task.x);
  for (int64_t begin = 0; begin < task.x.blocks; begin += blocks) {
    const int64_t end = begin + blocks < task.x.blocks ? begin + blocks : task.x.blocks;
    multiply_panel<Bits>(task, {begin, end, task.x.first_group[begin] / 8 * 8});
  }
}

void multiply(const IntegerWeight& weight, const IntegerActivations& x, int64_t first, int64_t rows, float* sums) {
  if (x.blocks == 0) {
    for (int64_t i = 0; i < x.tokens * rows; ++i) sums[i] = 0;
    return;
  }
  with_bits(weight.bits, [&](auto bits) {
    constexpr int BITS = decltype(bits)::value;
    const typename Vector::template Codec<BITS> codec(weight);
    multiply_all<BITS>({weight, x, codec, first, rows, sums});
  });
}

}  // namespace
}  // namespace mote
