#include "integer_activations.h"

#include <algorithm>

#include "float_rows.h"

namespace mote {
namespace {

struct Blocks {
  int64_t planes, words, count;
  int64_t columns() const { return planes * words; }
};

Blocks blocks_of(const IntegerWeight& weight, const IntegerTier& tier) {
  if (tier.lanes == 0) return {1, weight.columns, 1};
  const int64_t lane = lane_columns(weight.bits);
  const Blocks one = tier.bfloat16 ? Blocks{lane / 2, 2 * tier.lanes, 0} : Blocks{lane, tier.lanes, 0};
  return {one.planes, one.words, (weight.columns + one.columns() - 1) / one.columns()};
}

// Column Planes * i + p becomes word i of plane p.
template <typename Word, int Planes>
void split(const Word* from, int64_t words, Word* to) {
  for (int64_t i = 0; i < words; ++i)
    for (int64_t plane = 0; plane < Planes; ++plane) to[plane * words + i] = from[Planes * i + plane];
}

template <typename Word>
void split(const Word* from, const Blocks& blocks, int64_t step, Word* to) {
  const auto one = [&] {
    switch (blocks.planes) {
      case 1: return split<Word, 1>;
      case 2: return split<Word, 2>;
      case 4: return split<Word, 4>;
      case 8: return split<Word, 8>;
      case 16: return split<Word, 16>;
      default: return split<Word, 32>;
    }
  }();
  for (int64_t block = 0; block < blocks.count; ++block)
    one(from + block * blocks.columns(), blocks.words, to + block * step * blocks.columns());
}

void sum_lanes(const float* values, int64_t lanes, int columns, float* sums) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    float sum = 0;
    for (int i = 0; i < columns; ++i) sum += values[lane * columns + i];
    sums[lane] = sum;
  }
}

// One token as floats in the order of its columns, with the input factors applied, zeros up to whole blocks.
class TokenReader {
 public:
  TokenReader(const FloatInput& x, const IntegerWeight& weight, const Blocks& blocks)
      : x_(x), columns_(weight.columns), factors_(x.factors ? static_cast<size_t>(columns_) : 0),
        values_(static_cast<size_t>(blocks.columns() * blocks.count)) {
    if (x.factors) to_floats(x.factors, x.factor_type, columns_, factors_.data());
  }

  const float* read(int64_t token) {
    const char* from = static_cast<const char*>(x_.values) + token * columns_ * size_of(x_.type);
    to_floats(from, x_.type, columns_, values_.data());
    for (size_t i = 0; i < factors_.size(); ++i) values_[i] *= factors_[i];
    return values_.data();
  }

 private:
  const FloatInput& x_;
  int64_t columns_;
  std::vector<float> factors_, values_;
};

void find_groups(const IntegerWeight& weight, const IntegerTier& tier, const Blocks& blocks,
                 ArrangedActivations& made) {
  const int64_t lane = lane_columns(weight.bits), last = weight.groups - 1;
  const auto group_of = [&](int64_t column) {
    const int64_t group = column / weight.group_size;
    return group < last ? group : last;
  };
  const bool repeats = blocks.columns() % weight.group_size == 0;
  made.view.one_group = weight.groups <= 1 || weight.group_size % blocks.columns() == 0;
  made.view.blocks_together = made.view.one_group ? std::max<int64_t>(1, weight.group_size / blocks.columns()) : 1;
  made.view.lane_group_stride = repeats ? 0 : tier.lanes;
  made.first_group.resize(static_cast<size_t>(blocks.count));
  made.lane_group.resize(static_cast<size_t>(repeats ? tier.lanes : tier.lanes * blocks.count));
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t column = block * blocks.columns(), first = group_of(column);
    made.first_group[static_cast<size_t>(block)] = static_cast<int32_t>(first);
    if (made.view.one_group || (repeats && block > 0)) continue;
    for (int64_t i = 0; i < tier.lanes; ++i) {
      // A block that repeats may begin nowhere near the end: only there do lanes lie beyond the last group.
      const int64_t group = repeats ? i * lane / weight.group_size : group_of(column + i * lane) - first;
      made.lane_group[static_cast<size_t>(block * made.view.lane_group_stride + i)] = static_cast<int32_t>(group);
    }
  }
}

template <typename Word>
void write_planes(const float* values, const Blocks& blocks, int64_t step, uint8_t* to) {
  std::vector<Word> words(static_cast<size_t>(blocks.columns() * blocks.count));
  from_floats(values, sizeof(Word) == 2 ? MOTE_BFLOAT16 : MOTE_FLOAT32, blocks.columns() * blocks.count, words.data());
  split(words.data(), blocks, step, reinterpret_cast<Word*>(to));
}

// Token `i` of `together` that lie together.
struct Place {
  int64_t i, together;
};

void write_sums(const float* values, const IntegerWeight& weight, const IntegerTier& tier, const Blocks& blocks,
                const Place& place, float* to) {
  std::vector<float> sums(static_cast<size_t>(blocks.count * tier.lanes));
  sum_lanes(values, blocks.count * tier.lanes, lane_columns(weight.bits), sums.data());
  for (int64_t block = 0; block < blocks.count; ++block) {
    float* at = to + (block * place.together + place.i) * tier.lanes;
    std::copy_n(sums.data() + block * tier.lanes, tier.lanes, at);
  }
}

IntegerActivations view_of(const ArrangedActivations& made, const Blocks& blocks, int64_t tokens, int64_t bytes) {
  IntegerActivations view = made.view;
  view.tokens = tokens;
  view.blocks = blocks.count;
  view.planes = made.planes.data();
  view.token_bytes = bytes;
  view.lane_sums = made.lane_sums.empty() ? nullptr : made.lane_sums.data();
  view.first_group = made.first_group.data();
  view.lane_group = made.lane_group.data();
  return view;
}

}  // namespace

ArrangedActivations arrange(const FloatInput& x, const IntegerWeight& weight, const IntegerTier& tier) {
  ArrangedActivations made{};
  const Blocks blocks = blocks_of(weight, tier);
  const int64_t block_bytes = blocks.columns() * (tier.bfloat16 ? 2 : 4), bytes = blocks.count * block_bytes;
  const int64_t sums = weight.zero_kind == ZERO_NONE ? 0 : blocks.count * tier.lanes;
  made.planes.resize(static_cast<size_t>(bytes * x.tokens));
  made.lane_sums.resize(static_cast<size_t>(sums * x.tokens));
  if (tier.lanes > 0 && weight.groups > 0) find_groups(weight, tier, blocks, made);
  TokenReader reader(x, weight, blocks);
  for (int64_t first = 0, together = 0; first < x.tokens; first += together) {
    together = tier.lanes == 0 ? 1 : tokens_at_a_time(x.tokens - first);
    for (int64_t i = 0; i < together; ++i) {
      const float* values = reader.read(first + i);
      uint8_t* to = made.planes.data() + first * bytes + i * block_bytes;
      tier.bfloat16 ? write_planes<uint16_t>(values, blocks, together, to)
                    : write_planes<float>(values, blocks, together, to);
      if (sums > 0) write_sums(values, weight, tier, blocks, {i, together}, made.lane_sums.data() + first * sums);
    }
  }
  made.view = view_of(made, blocks, x.tokens, bytes);
  return made;
}

}  // namespace mote
