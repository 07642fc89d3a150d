// Routed feed-forward networks in one call: tokens sorted by expert; up, gate and activation; codes again; down; and
// the weighted sum, always in the same order.
#include <cstring>

#include "counters.h"
#include "float_rows.h"
#include "parallel.h"
#include "ternary_products.h"

namespace mote {
namespace {

// A token may ask an expert, or (this) nobody.
constexpr int64_t NOBODY = -1;

// Pairs of token and expert worked on in one pass, which bounds the memory of a call.
constexpr int64_t PASS_PAIRS = 512;

struct Network {
  int64_t hidden, inner, experts, top_k;
  bool gated;
  Activation activation;
  Packing packing;
  const uint8_t* const* codes;
  const void* const* scales;
  const void* const* biases;
  MoteType scale_type, bias_type;
  bool one_scale;

  int64_t projections() const { return gated ? 3 : 2; }
  Shape up_shape() const { return {inner, hidden, packing}; }
  Shape down_shape() const { return {hidden, inner, packing}; }

  TernaryWeight weight(int64_t expert, int64_t projection) const {
    const int64_t i = expert * projections() + projection;
    return {codes[i], {scales[i], scale_type, one_scale}, {biases == nullptr ? nullptr : biases[i], bias_type, false}};
  }
};

struct Input {
  const char* x;
  MoteType type;
  const int64_t* chosen;
  const float* gates;
  char* out;
};

// Pairs of one expert that are multiplied together.
struct Panel {
  int64_t expert, first, count;
};

// What a pass over some tokens works in. A pair's place is where it stands when sorted by expert.
struct Work {
  Tokens x, inner_codes;
  float *inner, *outputs;
  int64_t *places, *ends;
  Panel* panels;
  int64_t panel_count;
};

Work take_work(Cutter& cutter, const Network& network, int64_t tokens) {
  const int64_t pairs = tokens * network.top_k;
  Work work{};
  work.x = take_tokens(cutter, pairs, network.hidden, network.packing);
  work.inner_codes = take_tokens(cutter, pairs, network.inner, network.packing);
  work.inner = cutter.take<float>(pairs * network.inner);
  work.outputs = cutter.take<float>(pairs * network.hidden);
  work.places = cutter.take<int64_t>(pairs);
  work.ends = cutter.take<int64_t>(network.experts + 1);
  work.panels = cutter.take<Panel>(pairs);
  return work;
}

void add_panels(Work& work, int64_t expert, int64_t first, int64_t end) {
  for (; first < end; first += PIECE_TOKENS)
    work.panels[work.panel_count++] = {expert, first, end - first < PIECE_TOKENS ? end - first : PIECE_TOKENS};
}

// A counting sort: tokens of one expert stay in their order.
void sort_pairs(Work& work, const Network& network, const int64_t* chosen, int64_t pairs) {
  std::memset(work.ends, 0, static_cast<size_t>(network.experts + 1) * sizeof(int64_t));
  for (int64_t i = 0; i < pairs; ++i)
    if (chosen[i] != NOBODY) ++work.ends[chosen[i] + 1];
  for (int64_t e = 0; e < network.experts; ++e) work.ends[e + 1] += work.ends[e];
  for (int64_t i = 0; i < pairs; ++i) work.places[i] = chosen[i] == NOBODY ? NOBODY : work.ends[chosen[i]]++;
  work.panel_count = 0;
  for (int64_t e = 0; e < network.experts; ++e) add_panels(work, e, e == 0 ? 0 : work.ends[e - 1], work.ends[e]);
}

// A token's codes are computed once and copied to its other places.
void quantize_token(const TernaryTier& tier, const Work& work, const Network& network, const Input& input,
                    int64_t token, int64_t row) {
  int64_t made = NOBODY;
  for (int64_t j = 0; j < network.top_k; ++j) {
    const int64_t place = work.places[token * network.top_k + j];
    if (place == NOBODY) continue;
    if (made == NOBODY) {
      made = place;
      tier.quantize(input.x + row * network.hidden * size_of(input.type), input.type, network.hidden, network.packing,
                    tokens_of(work.x, place, 1));
      continue;
    }
    std::memcpy(work.x.codes + place * work.x.stride, work.x.codes + made * work.x.stride,
                static_cast<size_t>(work.x.stride));
    work.x.scales[place] = work.x.scales[made];
    work.x.sums[place] = work.x.sums[made];
  }
}

// Calls work(panel, first row, rows) for every piece of `rows` rows of every panel.
template <typename Piece>
void for_pieces(const Work& work, int64_t rows, int threads, const Piece& piece) {
  const int64_t pieces = pieces_of(rows, PIECE_ROWS);
  parallel_for(work.panel_count * pieces, threads, [&](int64_t item, int) {
    const int64_t index = item % pieces;
    piece(work.panels[item / pieces], index * PIECE_ROWS, piece_size(rows, PIECE_ROWS, index));
  });
}

void enter(const TernaryTier& tier, const Work& work, const Network& network, const Panel& panel, int64_t row,
           int64_t rows) {
  const Tokens tokens = tokens_of(work.x, panel.first, panel.count);
  const Shape shape = network.up_shape();
  float* const up = work.inner + panel.first * network.inner + row;
  float gate[PIECE_TOKENS * PIECE_ROWS];
  product_piece(tier, network.weight(panel.expert, 0), shape, row, rows, tokens, up, network.inner);
  if (network.gated) product_piece(tier, network.weight(panel.expert, 1), shape, row, rows, tokens, gate, PIECE_ROWS);
  for (int64_t t = 0; t < panel.count; ++t)
    tier.activate(network.activation, network.gated ? gate + t * PIECE_ROWS : nullptr, up + t * network.inner, rows);
}

void leave(const TernaryTier& tier, const Work& work, const Network& network, const Panel& panel, int64_t row,
           int64_t rows) {
  product_piece(tier, network.weight(panel.expert, network.projections() - 1), network.down_shape(), row, rows,
                tokens_of(work.inner_codes, panel.first, panel.count),
                work.outputs + panel.first * network.hidden + row, network.hidden);
}

void add_up(const TernaryTier& tier, const Work& work, const Network& network, const Input& input, int64_t token,
            int64_t row) {
  constexpr int64_t TERMS = 64;
  const float* rows[TERMS];
  float factors[TERMS];
  int64_t terms = 0;
  for (int64_t j = 0; j < network.top_k; ++j) {
    const int64_t place = work.places[token * network.top_k + j];
    if (place == NOBODY) continue;
    rows[terms] = work.outputs + place * network.hidden;
    factors[terms++] = input.gates[row * network.top_k + j];
  }
  tier.combine(rows, factors, terms, network.hidden, input.type,
               input.out + row * network.hidden * size_of(input.type));
}

// Tokens [first, first + tokens).
void run_pass(const TernaryTier& tier, Work& work, const Network& network, const Input& input, int64_t first,
              int64_t tokens, int threads) {
  sort_pairs(work, network, input.chosen + first * network.top_k, tokens * network.top_k);
  const int64_t pairs = work.ends[network.experts];
  const int row_threads = tokens < 16 ? 1 : threads;
  parallel_for(tokens, row_threads, [&](int64_t t, int) { quantize_token(tier, work, network, input, t, first + t); });
  for_pieces(work, network.inner, threads,
             [&](const Panel& panel, int64_t row, int64_t rows) { enter(tier, work, network, panel, row, rows); });
  parallel_for(pairs, row_threads, [&](int64_t pair, int) {
    tier.quantize(work.inner + pair * network.inner, MOTE_FLOAT32, network.inner, network.packing,
                  tokens_of(work.inner_codes, pair, 1));
  });
  for_pieces(work, network.hidden, threads,
             [&](const Panel& panel, int64_t row, int64_t rows) { leave(tier, work, network, panel, row, rows); });
  parallel_for(tokens, row_threads, [&](int64_t t, int) { add_up(tier, work, network, input, t, first + t); });
}

bool are_experts(const int64_t* chosen, int64_t count, int64_t experts) {
  for (int64_t i = 0; i < count; ++i)
    if (chosen[i] < NOBODY || chosen[i] >= experts) return false;
  return true;
}

constexpr int64_t MAX_TOP_K = 64;

bool is_sound(const Network& network, int64_t tokens, int32_t threads) {
  return is_sound(network.up_shape(), tokens, threads) && is_sound(network.down_shape(), tokens, threads) &&
         network.experts >= 0 && network.top_k >= 0 && network.top_k <= MAX_TOP_K && network.activation >= 0 &&
         network.activation < ACTIVATIONS;
}

}  // namespace
}  // namespace mote

using namespace mote;

// out [tokens, hidden] = sum over k of gates [tokens, k] times what expert chosen [tokens, k] makes of x [tokens,
// hidden]; x and out are of `type`. Experts stand one after another, each as up, gate (if `gated`) and down: packed
// codes, scales and biases (a null array: none), as in `mote_ternary_matmul`. A choice of -1 adds nothing and costs
// nothing.
MOTE_API int32_t mote_ternary_experts(const void* x, int32_t type, int64_t tokens, int64_t hidden, int64_t inner,
                                      int64_t experts, int64_t top_k, const int64_t* chosen, const float* gates,
                                      int32_t gated, int32_t activation, const uint8_t* const* codes, int32_t packing,
                                      const void* const* scales, int32_t scale_type, int32_t one_scale,
                                      const void* const* biases, int32_t bias_type, void* out, int32_t threads) {
  if (!is_type(type) || !is_type(scale_type) || !is_type(bias_type) || activation < 0 || activation >= ACTIVATIONS)
    return MOTE_BAD_ARGUMENT;
  const Network network{hidden,
                        inner,
                        experts,
                        top_k,
                        gated != 0,
                        static_cast<Activation>(activation),
                        static_cast<Packing>(packing),
                        codes,
                        scales,
                        biases,
                        static_cast<MoteType>(scale_type),
                        static_cast<MoteType>(bias_type),
                        one_scale != 0};
  if (!is_sound(network, tokens, threads) || !are_experts(chosen, tokens * top_k, experts)) return MOTE_BAD_ARGUMENT;
  count_call(TERNARY_EXPERTS);
  const int64_t most = top_k > 1 ? PASS_PAIRS / top_k : PASS_PAIRS;
  const int64_t pass = tokens < most ? tokens : most;
  Cutter size(nullptr);
  take_work(size, network, pass);
  const Scratch memory(size.used());
  if (memory.area() == nullptr) return MOTE_OUT_OF_MEMORY;
  Cutter cutter(memory.area());
  Work work = take_work(cutter, network, pass);
  const Input input{static_cast<const char*>(x), static_cast<MoteType>(type), chosen, gates, static_cast<char*>(out)};
  const int useful = worthwhile_threads(threads, network.up_shape(), network.projections(), tokens * top_k);
  for (int64_t first = 0; first < tokens; first += pass)
    run_pass(ternary_tier(), work, network, input, first, tokens - first < pass ? tokens - first : pass, useful);
  return MOTE_OK;
}
