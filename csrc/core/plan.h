// The plan: tensor sizes -> chunks -> the ordered work list. Pure data, no pointers, no devices.
//
// Workers draw items in list order from one counter. An item waits only for items before it, and whoever drew
// those is running, so a step ends with any number of workers, even one. NORM(chunk) adds up a chunk's squares;
// UPDATE(chunk) waits for the coefficient that its tensor's (or, with `wait_for_all`, every tensor's) norms give.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/norm_tree.h"

namespace bertadam {

enum ItemKind : uint32_t { kNorm = 1, kUpdate = 2 };

// A tensor of one chunk has a single item of both kinds, unless the update must wait for other tensors.
struct WorkItem {
  uint32_t tensor;
  uint32_t code;  // chunk << 2 | kinds

  BERTADAM_HD uint32_t chunk() const { return code >> 2; }
  BERTADAM_HD bool is(ItemKind kind) const { return (code & kind) != 0; }
};

struct PlanTensor {
  int64_t n_elements;
  int64_t first_node;  // of the tensor's partial sums in the workspace
  uint32_t n_chunks;   // at least 1: an empty tensor is an ordinary one
  uint32_t group;
  bool needs_norm;  // it is clipped or checked for non-finite gradients
};

// Partial sums are added up kTreeFanIn at a time (a power of two, so that this is the canonical tree).
constexpr int64_t kTreeFanIn = 256;

// Nodes that a tree over n values needs: the values, then each level of the reduction down to one.
inline int64_t tree_nodes(int64_t n) {
  int64_t nodes = n;
  while (n > 1) {
    n = (n + kTreeFanIn - 1) / kTreeFanIn;
    nodes += n;
  }
  return nodes;
}

struct PlanOptions {
  int64_t chunk_elements;    // a power of two of leaves
  bool wait_for_all;         // every norm before the first write: global clipping, null steps
  int64_t lookahead_chunks;  // how far norms run ahead of the update that waits for them
};

struct Plan {
  bool waits_for_all = false;
  std::vector<PlanTensor> tensors;
  std::vector<WorkItem> items;
  int64_t n_nodes = 0;  // of all tensors, and of the tree over the tensors' sums behind them
};

inline Plan make_plan(const std::vector<int64_t>& n_elements, const std::vector<uint32_t>& group,
                      const std::vector<bool>& needs_norm, const PlanOptions& options) {
  Plan plan;
  plan.waits_for_all = options.wait_for_all;
  plan.tensors.reserve(n_elements.size());
  size_t n_items = 0;
  for (size_t i = 0; i < n_elements.size(); ++i) {
    const int64_t n_chunks =
        std::max<int64_t>(1, (n_elements[i] + options.chunk_elements - 1) / options.chunk_elements);
    plan.tensors.push_back({n_elements[i], plan.n_nodes, static_cast<uint32_t>(n_chunks), group[i], needs_norm[i]});
    plan.n_nodes += tree_nodes(n_chunks);
    n_items += static_cast<size_t>(n_chunks) * (needs_norm[i] || options.wait_for_all ? 2 : 1);
  }
  plan.n_nodes += tree_nodes(static_cast<int64_t>(n_elements.size()));
  plan.items.reserve(n_items);

  // After norms, updates go through a tensor from its end: the gradients summed last are the likeliest to be cached
  // still. Otherwise from its beginning, as prefetchers like it (5 % of a step on a CPU).
  const auto add_updates = [&plan](uint32_t tensor, bool from_end) {
    const uint32_t n_chunks = plan.tensors[tensor].n_chunks;
    for (uint32_t i = 0; i < n_chunks; ++i) {
      const uint32_t chunk = from_end ? n_chunks - 1 - i : i;
      plan.items.push_back({tensor, chunk << 2 | kUpdate});
    }
  };
  std::vector<uint32_t> summed;  // tensors whose norms are listed and whose updates are not
  size_t next = 0;
  int64_t chunks_ahead = 0;
  const auto update_next = [&] {
    add_updates(summed[next], true);
    chunks_ahead -= plan.tensors[summed[next++]].n_chunks;
  };
  for (uint32_t tensor = 0; tensor < plan.tensors.size(); ++tensor) {
    const uint32_t n_chunks = plan.tensors[tensor].n_chunks;
    if (!needs_norm[tensor] && !options.wait_for_all) {
      add_updates(tensor, false);
    } else if (n_chunks == 1 && !options.wait_for_all) {
      plan.items.push_back({tensor, kNorm | kUpdate});
    } else {
      for (uint32_t chunk = 0; chunk < n_chunks; ++chunk) plan.items.push_back({tensor, chunk << 2 | kNorm});
      summed.push_back(tensor);
      chunks_ahead += n_chunks;
      while (!options.wait_for_all && next < summed.size() &&
             chunks_ahead - plan.tensors[summed[next]].n_chunks >= options.lookahead_chunks) {
        update_next();
      }
    }
  }
  while (next < summed.size()) update_next();
  return plan;
}

}  // namespace bertadam
