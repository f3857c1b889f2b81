// Updates: an update warp has one part of every draw, in ring order. While it computes, its next loads are in flight.
#pragma once

#include "core/rules/clip.h"
#include "core/rules/descent.h"
#include "cuda/memory.cuh"
#include "cuda/ring.cuh"

namespace bertadam::cuda {

template <class Rule>
class UpdateWarp {
 public:
  __device__ UpdateWarp(const Block& block, int which) : block_(block), part_(which) {}

  __device__ void run() {
    Loaded a, b;
    bool more = load(a);
    while (more) {
      more = load(b);
      update(a);
      if (!more) break;
      more = load(a);
      update(b);
    }
  }

 private:
  static constexpr int kStepElements = 32 * 4 * kVectors;
  static constexpr int kSteps = kPartElements / kStepElements;

  // What was read for one step.
  struct Loaded {
    float param[kVectors][4];
    float states[Rule::kNumStates][kVectors][4];
    uint64_t coefficient;  // the word, perhaps of an earlier epoch
  };

  // A place in the ring and in the part there.
  struct Place {
    Cursor cursor{0};
    int step = 0;

    __device__ int first() const { return step * kStepElements + 4 * lane_id(); }
    __device__ bool ends_part() const { return step == kSteps - 1; }
    __device__ void advance(uint32_t n_slots) {
      if (++step < kSteps) return;
      step = 0;
      cursor.advance(1, n_slots);
    }
  };

  // Vectors of four that are loaded ahead; the elements behind them are not.
  __device__ static int vectorised(const Part& part) { return part.aligned ? part.n & ~3 : 0; }

  // False at the end of the list.
  __device__ bool load(Loaded& loaded) {
    const uint32_t slot = ahead_.cursor.slot;
    block_.ring.full[slot].wait(ahead_.cursor.parity);
    const Draw& draw = block_.ring.draws[slot];
    if (draw.kinds == 0) return false;
    const Part& part = draw.parts[part_];
    if ((draw.kinds & kUpdate) != 0 && part.has_grad) {
      loaded.coefficient = part.waits ? load_relaxed(&block_.args.workspace.coefficients[part.tensor])
                                      : tag(block_.epoch, float_bits(1.0f));
      const int end = vectorised(part);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int i = ahead_.first() + v * 128;
        if (i >= end) continue;
        load4(loaded.param[v], part.param + i);
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) load4(loaded.states[k][v], part.states[k] + i);
      }
    }
    ahead_.advance(block_.n_slots);
    return true;
  }

  __device__ void update(Loaded& loaded) {
    const uint32_t slot = here_.cursor.slot;
    const Draw& draw = block_.ring.draws[slot];
    const Part& part = draw.parts[part_];
    if ((draw.kinds & kUpdate) != 0 && part.has_grad) {
      const float coefficient = wait_for(part.tensor, loaded.coefficient);
      if (!(coefficient < 0.0f)) apply(part, block_.ring.part_grads(slot, part_), coefficient, loaded);
    }
    if (here_.ends_part()) {
      __syncwarp();
      if (lane_id() == 0) block_.ring.empty[slot].arrive();
    }
    here_.advance(block_.n_slots);
  }

  __device__ float wait_for(uint32_t tensor, uint64_t word) {
    while (!__all_sync(kFullWarp, has_epoch(word, block_.epoch))) {
      word = load_relaxed(&block_.args.workspace.coefficients[tensor]);
    }
    return float_from_bits(payload(word));
  }

  __device__ void apply(const Part& part, const float* grads, float coefficient, Loaded& loaded) {
    const GroupScalars group = block_.groups[part.group];
    TensorScalars scalars = part.scalars;
    scalars.grad_scale *= coefficient;
    const int end = vectorised(part);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = here_.first() + v * 128;
      if (i >= end) continue;
      float g[4];
      *reinterpret_cast<float4*>(g) = *reinterpret_cast<const float4*>(grads + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float states[Rule::kNumStates];
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) states[k] = loaded.states[k][v][j];
        const float p = loaded.param[v][j];
        loaded.param[v][j] = descend(p, scalars.lr, Rule::update(group, scalars, g[j], p, states));
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) loaded.states[k][v][j] = states[k];
      }
      store4(part.param + i, loaded.param[v]);
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) store4(part.states[k] + i, loaded.states[k][v]);
    }
    if (here_.ends_part() && end < part.n) apply_singly(part, grads, group, scalars, end);
  }

  // Elements from `begin` on: up to three behind the last vector, or all of a part that is not aligned.
  __device__ static void apply_singly(const Part& part, const float* grads, const GroupScalars& group,
                                      const TensorScalars& scalars, int begin) {
#pragma unroll 1
    for (int i = begin + lane_id(); i < part.n; i += 32) {
      float states[Rule::kNumStates];
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) states[k] = part.states[k][i];
      const float p = part.param[i];
      part.param[i] = descend(p, scalars.lr, Rule::update(group, scalars, grads[i], p, states));
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) part.states[k][i] = states[k];
    }
  }

  const Block& block_;
  const int part_;
  Place ahead_, here_;
};

}  // namespace bertadam::cuda
