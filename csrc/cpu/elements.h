// The elements of one part of a tensor, and their update. Compiled once per instruction set, as worker.cpp, which
// includes it, says.
#pragma once

#include <cstdint>

#include "core/random_bits.h"
#include "core/rules/math.h"
#include "core/rules/new_param.h"
#include "core/step_args.h"
#include "core/storage.h"
#include "cpu/worker.h"

namespace bertadam::cpu::BERTADAM_ISA {
namespace {

// Random bits for the next kBlock elements. Drawn for a block at once, since the generator vectorises over calls.
template <class Storage>
class RandomBitsAhead {
 public:
  BERTADAM_HD RandomBitsAhead(const RandomBits& bits, int64_t begin)
      : bits_(bits), first_call_(static_cast<uint64_t>(begin) / kElementsPerCall) {}

  // To be called for every line, in order.
  BERTADAM_HD void reach(int64_t line) {
    if constexpr (Storage::kIsRandom) {
      line_ = static_cast<int>(line % kBlock);
      if (line_ == 0) draw(first_call_ + static_cast<uint64_t>(line) / kElementsPerCall);
    }
  }
  // Of the line's element `i`.
  BERTADAM_HD uint32_t operator[](int64_t i) const {
    if constexpr (Storage::kIsRandom) return block_[line_ + i];
    return 0;
  }

 private:
  static constexpr int kBlock = 16 * kLineElements;
  static_assert(kPartElements % kElementsPerCall == 0, "a part begins with a call");

  BERTADAM_HD void draw(uint64_t call) {
    constexpr int kCalls = kBlock / kElementsPerCall;
    uint32_t words[4][kCalls];
    for (int c = 0; c < kCalls; ++c) {
      const PhiloxWords drawn = bits_.of_call(call + static_cast<uint64_t>(c));
      for (int w = 0; w < 4; ++w) words[w][c] = drawn.x[w];
    }
    for (int c = 0; c < kCalls; ++c) {
      const PhiloxWords drawn{{words[0][c], words[1][c], words[2][c], words[3][c]}};
      for (int i = 0; i < kElementsPerCall; ++i) {
        block_[c * kElementsPerCall + i] = static_cast<uint16_t>(bits_of_element(drawn, i));
      }
    }
  }

  const RandomBits bits_;
  const uint64_t first_call_;
  int line_ = 0;
  uint16_t block_[Storage::kIsRandom ? kBlock : 1];
};

// A part of everything that belongs to a tensor's elements.
template <class Rule, class Storage, class Grad>
struct Elements {
  using Param = typename Storage::Param;
  using Master = typename Storage::Master;
  static constexpr bool kHasMaster = Storage::kHasMaster;

  const Grad* grad;
  Param* param;
  Master* master;
  float* states[Rule::kNumStates];

  BERTADAM_HD Elements(const TensorRow& row, const void* grads, int64_t begin)
      : grad(static_cast<const Grad*>(grads) + begin),
        param(static_cast<Param*>(row.param) + begin),
        master(kHasMaster ? static_cast<Master*>(row.master) + begin : nullptr) {
    for (int k = 0; k < Rule::kNumStates; ++k) states[k] = static_cast<float*>(row.states[k]) + begin;
  }

  BERTADAM_HD void prefetch(int64_t i) const {
    __builtin_prefetch(grad + i);
    __builtin_prefetch(param + i);
    if constexpr (kHasMaster) __builtin_prefetch(master + i);
    for (int k = 0; k < Rule::kNumStates; ++k) __builtin_prefetch(states[k] + i);
  }

  BERTADAM_HD void update(const GroupScalars& group, const TensorScalars& scalars, int64_t i, uint32_t bits) const {
    float values[Rule::kNumStates];
    for (int k = 0; k < Rule::kNumStates; ++k) values[k] = states[k][i];
    Master kept{};
    if constexpr (kHasMaster) kept = master[i];
    const float p = Storage::load(param[i], kept);
    const IeeeMath math;
    const float moved = new_param<Rule>(math, group, scalars, to_float(grad[i]), p, values);
    for (int k = 0; k < Rule::kNumStates; ++k) states[k][i] = values[k];
    param[i] = Storage::store(moved, kept, bits);
    if constexpr (kHasMaster) master[i] = kept;
  }

  // What a rule with a trust ratio takes the norms of: the parameter and its update.
  BERTADAM_HD void survey(const GroupScalars& group, const TensorScalars& scalars, int64_t i, float& p,
                          float& update) const {
    float values[Rule::kNumStates];
    for (int k = 0; k < Rule::kNumStates; ++k) values[k] = states[k][i];
    Master kept{};
    if constexpr (kHasMaster) kept = master[i];
    p = Storage::load(param[i], kept);
    const IeeeMath math;
    update = Rule::survey(math, group, scalars, to_float(grad[i]), p, values);
    if constexpr (Rule::kSurveyMovesStates) {
      for (int k = 0; k < Rule::kNumStates; ++k) states[k][i] = values[k];
    }
  }
};

template <class Rule, class Storage, class Grad>
BERTADAM_HD void update_elements(const GroupScalars group, const TensorScalars scalars,
                                 const Elements<Rule, Storage, Grad> elements, RandomBitsAhead<Storage> bits,
                                 int64_t n) {
  const int64_t ahead = prefetch_elements();
  const int64_t n_in_lines = n - n % kLineElements;
  for (int64_t line = 0; line < n_in_lines; line += kLineElements) {
    if (line + ahead < n) elements.prefetch(line + ahead);
    bits.reach(line);
#pragma GCC ivdep  // the binding has checked that nothing written overlaps
    for (int64_t i = line; i < line + kLineElements; ++i) elements.update(group, scalars, i, bits[i - line]);
  }
  bits.reach(n_in_lines);
#pragma GCC ivdep
  for (int64_t i = n_in_lines; i < n; ++i) elements.update(group, scalars, i, bits[i - n_in_lines]);
}

// The sums of squares of parameters and updates, by leaves.
template <class Rule, class Storage, class Grad>
BERTADAM_HD void survey_elements(const GroupScalars group, const TensorScalars scalars,
                                 const Elements<Rule, Storage, Grad> elements, int64_t n, double* param_leaves,
                                 double* update_leaves) {
  const int64_t ahead = prefetch_elements();
  for (int64_t leaf = 0; leaf * kLeafElements < n; ++leaf) {
    float params[kLeafElements], updates[kLeafElements];
    const int64_t begin = leaf * kLeafElements;
    const int64_t n_in_leaf = n - begin < kLeafElements ? n - begin : kLeafElements;
    for (int64_t line = 0; line < n_in_leaf; line += kLineElements) {
      if (begin + line + ahead < n) elements.prefetch(begin + line + ahead);
      const int64_t end = line + kLineElements < n_in_leaf ? line + kLineElements : n_in_leaf;
#pragma GCC ivdep
      for (int64_t i = line; i < end; ++i) elements.survey(group, scalars, begin + i, params[i], updates[i]);
    }
    param_leaves[leaf] = leaf_sum(params, n_in_leaf);
    update_leaves[leaf] = leaf_sum(updates, n_in_leaf);
  }
}

}  // namespace
}  // namespace bertadam::cpu::BERTADAM_ISA
