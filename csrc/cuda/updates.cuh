// Updates: an update warp has some elements of every draw, in ring order. While it computes, its next loads are in
// flight.
#pragma once

#include "core/rules/clip.h"
#include "core/rules/descent.h"
#include "cuda/memory.cuh"
#include "cuda/ring.cuh"

namespace bertadam::cuda {

template <class Rule>
class UpdateWarp {
 public:
  __device__ UpdateWarp(const Block& block, int which) : block_(block), which_(which) {}

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
  static constexpr int kStepElements = 32 * 4 * kVectors;  // of one warp
  static constexpr int kSteps = kChunkElements / (kUpdateWarps * kStepElements);
  static_assert(kPartElements % kStepElements == 0, "a warp's step lies within a part");

  // What was read for one step.
  struct Loaded {
    float param[kVectors][4];
    float states[Rule::kNumStates][kVectors][4];
    uint64_t coefficient;  // the word, perhaps of an earlier epoch
  };

  // A place in the ring and in the draw there.
  struct Place {
    Cursor cursor{0};
    int step = 0;

    __device__ int first_of(int warp) const { return (warp * kSteps + step) * kStepElements; }
    __device__ bool ends_draw() const { return step == kSteps - 1; }
    __device__ void advance(uint32_t n_slots) {
      if (++step < kSteps) return;
      step = 0;
      cursor.advance(1, n_slots);
    }
  };

  // What a step of this warp works on.
  struct Piece {
    const Part& part;
    const PartScalars& scalars;
    const float* grads;  // the part's
    int begin, end;      // elements of the part
    int vectors_end;     // those before it are loaded ahead, four at a time
  };

  __device__ Piece piece_at(const Place& place) const {
    const int first = place.first_of(which_);
    const int index = first / kPartElements;
    const Draw& draw = block_.ring.draws[place.cursor.slot];
    const Part& part = draw.parts[index];
    const int begin = first % kPartElements;
    const int end = max(begin, min(part.n, begin + kStepElements));
    return {part,
            draw.scalars[index],
            block_.ring.part_grads(place.cursor.slot, index),
            begin,
            end,
            part.aligned ? end & ~3 : begin};
  }

  __device__ bool has_work(const Place& place, const Part& part) const {
    return (block_.ring.draws[place.cursor.slot].kinds & kUpdate) != 0 && part.has_grad;
  }

  // False at the end of the list.
  __device__ bool load(Loaded& loaded) {
    const uint32_t slot = ahead_.cursor.slot;
    block_.ring.full[slot].wait(ahead_.cursor.parity);
    if (block_.ring.draws[slot].kinds == 0) return false;
    const Piece piece = piece_at(ahead_);
    if (has_work(ahead_, piece.part)) {
      loaded.coefficient = piece.part.waits ? load_relaxed(&block_.args.workspace.coefficients[piece.part.coefficient])
                                            : tag(block_.epoch, float_bits(1.0f));
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int i = piece.begin + 128 * v + 4 * lane_id();
        if (i >= piece.vectors_end) continue;
        load4(loaded.param[v], piece.part.param + i);
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) load4(loaded.states[k][v], piece.part.states[k] + i);
      }
    }
    ahead_.advance(block_.n_slots);
    return true;
  }

  __device__ void update(Loaded& loaded) {
    const uint32_t slot = here_.cursor.slot;
    block_.ring.ready[slot].wait(here_.cursor.parity);
    const Piece piece = piece_at(here_);
    if (has_work(here_, piece.part)) {
      const float coefficient = wait_for(piece.part, loaded.coefficient);
      if (!(coefficient < 0.0f)) apply(piece, coefficient, loaded);
      if (piece.part.index == 0 && piece.begin == 0 && lane_id() == 0) finish_tensor(piece, coefficient);
    }
    if (here_.ends_draw()) {
      __syncwarp();
      if (lane_id() == 0) block_.ring.empty[slot].arrive();
    }
    here_.advance(block_.n_slots);
  }

  __device__ float wait_for(const Part& part, uint64_t word) {
    while (!__all_sync(kFullWarp, has_epoch(word, block_.epoch))) {
      word = load_relaxed(&block_.args.workspace.coefficients[part.coefficient]);
    }
    return float_from_bits(payload(word));
  }

  // What is done once for a tensor. The step of a large one is still read by others: see finish_step.
  __device__ void finish_tensor(const Piece& piece, float coefficient) {
    const Part& part = piece.part;
    const Statistics& statistics = block_.args.statistics;
    if (part.waits) statistics.coefficients[part.tensor] = coefficient < 0.0f ? 0.0f : coefficient;
    if (coefficient == kSkipped) atomicAdd(reinterpret_cast<unsigned long long*>(statistics.n_skipped), 1ull);
    if (part.step != nullptr && !(coefficient < 0.0f)) *part.step = piece.scalars.next_step;
  }

  __device__ void apply(const Piece& piece, float coefficient, Loaded& loaded) {
    const Part& part = piece.part;
    const GroupScalars group = block_.groups[part.group];
    TensorScalars scalars = piece.scalars.values;
    scalars.grad_scale *= coefficient;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = piece.begin + 128 * v + 4 * lane_id();
      if (i >= piece.vectors_end) continue;
      float g[4];
      *reinterpret_cast<float4*>(g) = *reinterpret_cast<const float4*>(piece.grads + i);
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
    // Up to three behind the last vector, or all where memory is not aligned.
#pragma unroll 1
    for (int i = piece.vectors_end + lane_id(); i < piece.end; i += 32) {
      float states[Rule::kNumStates];
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) states[k] = part.states[k][i];
      const float p = part.param[i];
      part.param[i] = descend(p, scalars.lr, Rule::update(group, scalars, piece.grads[i], p, states));
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) part.states[k][i] = states[k];
    }
  }

  const Block& block_;
  const int which_;
  Place ahead_, here_;
};

}  // namespace bertadam::cuda
