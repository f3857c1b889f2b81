// The plan: tensor sizes -> parts -> the ordered work list. Pure data, no pointers, no devices.
//
// A worker draws `items_per_draw` items at once, in list order, from one counter. An item is a part of a tensor: NORM
// adds up its squares, UPDATE waits for the coefficient that its tensor's (or, with `wait_for_all`, every tensor's)
// norms give. With a rule that has a trust ratio, SURVEY comes in between: it moves the moments and adds up the squares
// of parameter and update, and UPDATE waits for the ratio that its tensor's surveys give. A draw of two kinds belongs
// to its worker until its update is done; how long that may wait, and why no number of workers can wait for ever, is
// the backend's to say (cuda/producer.cuh, cuda/applier.cuh, cpu/worker.cpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/norm_tree.h"

namespace bertadam {

enum ItemKind : uint32_t { kNorm = 1, kUpdate = 2, kSurvey = 4 };

constexpr uint32_t kNoTensor = 0xffffffffu;  // of an item that fills up a draw

struct WorkItem {
  uint32_t tensor;
  uint32_t code;  // part << 4 | whole << 3 | kinds; all items of a draw have the same kinds

  BERTADAM_HD uint32_t part() const { return code >> 4; }
  BERTADAM_HD bool is_whole() const { return (code & 8u) != 0; }  // not a tensor's shorter end
  BERTADAM_HD uint32_t kinds() const { return code & 7u; }
};

struct PlanTensor {
  int64_t n_elements;
  int64_t first_node;  // of the tensor's norm tree in the workspace
  uint32_t n_chunks;   // a chunk is what one draw can hold; at least 1: an empty tensor is an ordinary one
  uint32_t group;
  bool needs_norm;  // it is clipped or checked for non-finite gradients
};

// In turn: a tensor's norms, then its updates, then the next tensor: what a cache that all workers share likes best.
// Retaining: for workers that keep gradients from their norm to their update.
enum class PlanOrder { kInTurn, kRetaining };

struct PlanOptions {
  int64_t part_elements;   // a power of two of leaves
  int64_t items_per_draw;  // a power of two
  bool wait_for_all;       // every norm before the first write: global clipping, null steps, steps that find infinities
  PlanOrder order;
  // How many draws' gradients, or surveyed updates, all workers keep together. Where all norms are waited for they keep
  // no gradients: what they have read is too little, and a short ring is worth more (cuda/tuning.h).
  int64_t retained_draws = 0;
  bool surveys = false;  // for a rule with a trust ratio; norms, if there are any, are waited for all together
};

struct Plan {
  bool has_norms = false;
  bool waits_for_all = false;
  bool surveys = false;
  int64_t items_per_draw = 1;
  std::vector<PlanTensor> tensors;
  std::vector<uint32_t> large;  // tensors of several chunks
  std::vector<WorkItem> items;  // items_per_draw of each draw
  int64_t n_leading = 0;        // draws of norms alone that the list begins with
  int64_t n_preparing = 0;      // draws up to the last one of norms or surveys; behind it are updates alone
  int64_t n_nodes = 0;          // of all tensors, and of the tree over the tensors' sums behind them
};

// What a tensor is divided into. An empty one has a part, too.
struct Parts {
  size_t n, n_whole;
};

// The list in its making: whole draws, each of one chunk or of several small tensors.
class DrawList {
 public:
  explicit DrawList(size_t items_per_draw) : per_draw_(items_per_draw) {}

  size_t size() const { return items_.size() / per_draw_; }

  // One chunk of a tensor.
  void add_chunk(uint32_t tensor, size_t chunk, const Parts& parts) {
    fill_up();
    const size_t end = std::min(parts.n, (chunk + 1) * per_draw_);
    for (size_t part = chunk * per_draw_; part < end; ++part) add(tensor, part, parts);
    fill_up();
  }

  // A tensor of one chunk, beside others. None is divided between two draws: its sum is complete in one.
  void add_small(uint32_t tensor, const Parts& parts) {
    if (items_.size() % per_draw_ + parts.n > per_draw_) fill_up();
    for (size_t part = 0; part < parts.n; ++part) add(tensor, part, parts);
  }

  void fill_up() {
    while (items_.size() % per_draw_ != 0) items_.push_back({kNoTensor, 0});
  }

  // Copies all draws to `list`, as items of these kinds.
  void emit(std::vector<WorkItem>& list, uint32_t kinds) const {
    for (const WorkItem& item : items_) list.push_back({item.tensor, item.code | kinds});
  }

 private:
  void add(uint32_t tensor, size_t part, const Parts& parts) {
    const uint32_t whole = part < parts.n_whole ? 1u : 0u;
    items_.push_back({tensor, static_cast<uint32_t>(part) << 4 | whole << 3});
  }

  const size_t per_draw_;
  std::vector<WorkItem> items_;
};

// What a list is made from.
struct PlanInput {
  const std::vector<int64_t>& n_elements;
  const std::vector<bool>& needs_norm;
  const PlanOptions& options;

  bool takes_norm(size_t tensor) const { return needs_norm[tensor] || options.wait_for_all; }
  // Whether all norms are listed before anything else.
  bool norms_first() const { return options.wait_for_all; }
  // What an update is listed with: of the same tensor, and before it.
  bool prepares(size_t tensor) const { return options.surveys || (takes_norm(tensor) && !norms_first()); }
  uint32_t preparation() const { return options.surveys ? kSurvey : kNorm; }
  Parts parts(size_t tensor) const {
    const int64_t n = (n_elements[tensor] + options.part_elements - 1) / options.part_elements;
    return {static_cast<size_t>(std::max<int64_t>(1, n)),
            static_cast<size_t>(n_elements[tensor] / options.part_elements)};
  }
};

inline void list_in_turn(const PlanInput& in, Plan& plan) {
  const auto per_draw = static_cast<size_t>(in.options.items_per_draw);
  const auto chunk_of = [&](uint32_t tensor, size_t chunk, uint32_t kinds) {
    DrawList draw(per_draw);
    draw.add_chunk(tensor, chunk, in.parts(tensor));
    draw.emit(plan.items, kinds);
  };
  // After norms, updates go through a tensor from its end: the gradients summed last are the likeliest to be cached
  // still. Otherwise from its beginning, as prefetchers like it (5 % of a step on a CPU).
  const auto updates_from_end = [&](uint32_t tensor) {
    for (size_t chunk = plan.tensors[tensor].n_chunks; chunk-- > 0;) chunk_of(tensor, chunk, kUpdate);
  };
  for (uint32_t tensor = 0; in.norms_first() && tensor < plan.tensors.size(); ++tensor) {
    for (size_t chunk = 0; chunk < plan.tensors[tensor].n_chunks; ++chunk) chunk_of(tensor, chunk, kNorm);
  }
  for (uint32_t tensor = 0; tensor < plan.tensors.size(); ++tensor) {
    const size_t n_chunks = plan.tensors[tensor].n_chunks;
    if (!in.prepares(tensor)) {
      if (in.norms_first()) {
        updates_from_end(tensor);
      } else {
        for (size_t chunk = 0; chunk < n_chunks; ++chunk) chunk_of(tensor, chunk, kUpdate);
      }
    } else if (n_chunks == 1) {
      chunk_of(tensor, 0, in.preparation() | kUpdate);
    } else {
      for (size_t chunk = 0; chunk < n_chunks; ++chunk) chunk_of(tensor, chunk, in.preparation());
      updates_from_end(tensor);
    }
  }
}

// Norms alone, those of small tensors packed.
inline void list_norms(const PlanInput& in, Plan& plan) {
  DrawList norms(static_cast<size_t>(in.options.items_per_draw));
  for (const bool small : {true, false}) {
    for (uint32_t tensor = 0; tensor < plan.tensors.size(); ++tensor) {
      const size_t n_chunks = plan.tensors[tensor].n_chunks;
      if (!in.takes_norm(tensor) || (n_chunks == 1) != small) continue;
      if (small) norms.add_small(tensor, in.parts(tensor));
      for (size_t chunk = 0; !small && chunk < n_chunks; ++chunk) norms.add_chunk(tensor, chunk, in.parts(tensor));
    }
    norms.fill_up();
  }
  norms.emit(plan.items, kNorm);
}

// Norms (or surveys) that are not kept come first and the updates that they leave come last, so that what is kept flows
// through the workers without a gap. Small tensors are packed, and always kept where anything is.
inline void list_retaining(const PlanInput& in, Plan& plan) {
  const auto per_draw = static_cast<size_t>(in.options.items_per_draw);
  const auto most_kept = static_cast<size_t>(in.options.retained_draws);
  const uint32_t preparation = in.preparation();
  if (in.options.surveys && in.norms_first()) list_norms(in, plan);
  DrawList unkept(per_draw), kept(per_draw), plain(per_draw);
  // Of a tensor that is only updated here: one whose norm is taken before is read from there.
  DrawList& unprepared = in.norms_first() ? unkept : plain;
  for (uint32_t tensor = 0; tensor < plan.tensors.size(); ++tensor) {
    if (plan.tensors[tensor].n_chunks > 1) continue;
    (in.prepares(tensor) ? kept : unprepared).add_small(tensor, in.parts(tensor));
  }
  for (DrawList* const list : {&unkept, &kept, &plain}) list->fill_up();
  // Tensors that do not fit come last: their first updates wait for long, and others are there to go on with. Of them
  // the first has all of the room, the next ones half of it each: one's norms are taken while the other's gradients are
  // still kept.
  size_t room = most_kept;
  for (const bool fitting : {true, false}) {
    for (uint32_t tensor = 0; tensor < plan.tensors.size(); ++tensor) {
      const size_t n_chunks = plan.tensors[tensor].n_chunks;
      const bool prepares = in.prepares(tensor);
      const bool fits = !prepares || n_chunks <= most_kept;
      if (n_chunks == 1 || fits != fitting) continue;
      const size_t n_kept = !prepares ? 0 : fits ? n_chunks : room;
      if (!fits) room = most_kept / 2;
      for (size_t chunk = 0; chunk < n_chunks; ++chunk) {
        DrawList& list = !prepares ? unprepared : chunk < n_chunks - n_kept ? unkept : kept;
        list.add_chunk(tensor, chunk, in.parts(tensor));
      }
    }
  }
  plan.items.reserve(plan.items.size() + (2 * unkept.size() + kept.size() + plain.size()) * per_draw);
  unkept.emit(plan.items, preparation);
  kept.emit(plan.items, preparation | kUpdate);
  plain.emit(plan.items, kUpdate);
  unkept.emit(plan.items, kUpdate);
}

inline Plan make_plan(const std::vector<int64_t>& n_elements, const std::vector<uint32_t>& group,
                      const std::vector<bool>& needs_norm, const PlanOptions& options) {
  Plan plan;
  plan.waits_for_all = options.wait_for_all;
  plan.surveys = options.surveys;
  plan.items_per_draw = options.items_per_draw;
  plan.tensors.reserve(n_elements.size());
  const int64_t chunk_elements = options.part_elements * options.items_per_draw;
  for (size_t i = 0; i < n_elements.size(); ++i) {
    const int64_t n_chunks = std::max<int64_t>(1, (n_elements[i] + chunk_elements - 1) / chunk_elements);
    plan.tensors.push_back({n_elements[i], plan.n_nodes, static_cast<uint32_t>(n_chunks), group[i], needs_norm[i]});
    plan.n_nodes += tree_nodes(n_chunks);
    if (n_chunks > 1) plan.large.push_back(static_cast<uint32_t>(i));
  }
  plan.n_nodes += tree_nodes(static_cast<int64_t>(n_elements.size()));
  plan.has_norms = options.wait_for_all || std::find(needs_norm.begin(), needs_norm.end(), true) != needs_norm.end();
  const PlanInput input{n_elements, needs_norm, options};
  options.order == PlanOrder::kInTurn ? list_in_turn(input, plan) : list_retaining(input, plan);
  const auto kinds = [&](int64_t draw) {
    return plan.items[static_cast<size_t>(draw * options.items_per_draw)].kinds();
  };
  plan.n_preparing = static_cast<int64_t>(plan.items.size()) / options.items_per_draw;
  while (plan.n_preparing > 0 && kinds(plan.n_preparing - 1) == kUpdate) --plan.n_preparing;
  while (plan.n_leading < plan.n_preparing && kinds(plan.n_leading) == kNorm) ++plan.n_leading;
  return plan;
}

}  // namespace bertadam
