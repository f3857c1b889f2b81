// Sums that workers carry up a tree (core/norm_tree.h), together. Compiled once per instruction set, as worker.cpp,
// which includes it, says.
#pragma once

#include <cstdint>

#include "core/norm_tree.h"

namespace bertadam::cpu::BERTADAM_ISA {
namespace {

uint32_t add_one(uint32_t* counter) { return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL); }

// True for whoever brings the `n`-th arrival; leaves the counter at zero.
bool arrives_last(uint32_t* arrivals, uint32_t n) {
  if (n == 1) return true;
  if (add_one(arrivals) + 1 < n) return false;
  __atomic_store_n(arrivals, 0u, __ATOMIC_RELAXED);
  return true;
}

template <int kSums>
struct Tree {
  double* nodes;  // [node][sum]
  uint32_t* arrivals;

  // Carries a node's sums upwards for as long as all its siblings are there; true, with the root's, at the top.
  bool climbs_to_root(TreePosition at, double (&sums)[kSums]) const {
    for (; !at.is_root(); at = at.parent()) {
      for (int k = 0; k < kSums; ++k) nodes[at.node() * kSums + k] = sums[k];
      const Siblings siblings = at.siblings();
      if (!arrives_last(&arrivals[siblings.parent], static_cast<uint32_t>(siblings.n))) return false;
      for (int k = 0; k < kSums; ++k) {
        double values[kTreeFanIn];
        for (int64_t i = 0; i < siblings.n; ++i) values[i] = nodes[(siblings.first + i) * kSums + k];
        sums[k] = pairwise_sum(values, siblings.n);
      }
    }
    return true;
  }
};

}  // namespace
}  // namespace bertadam::cpu::BERTADAM_ISA
