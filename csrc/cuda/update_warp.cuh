// The role of an update warp: its elements of every draw, in ring order. While it computes, its next loads are in
// flight.
#pragma once

#include "cuda/ring.cuh"
#include "cuda/updates.cuh"

namespace bertadam::cuda {

template <class Rule, class Types>
class UpdateWarp {
 public:
  __device__ UpdateWarp(const Block& block, int which) : block_(block), args_(block.tables.args), which_(which) {}

  // What was read is moved, so that there is one copy of the code. Two in turns need no moves, and are 43 KB of machine
  // code instead of 24: more, it seems, than instruction caches hold beside the producer's and the norm warps'. Clipped
  // per tensor, BERT-large takes 3188 us with one, 3235 with two (bfloat16 with remainders 2965 and 2998); without
  // norms there is no difference.
  __device__ void run() {
    Ahead now;
    bool more = load(now);
#pragma unroll 1
    while (more) {
      Ahead next;
      more = load(next);
      update(now);
      now = next;
    }
  }

 private:
  static constexpr int kSteps = kChunkElements / (kUpdateWarps * kStepElements<Rule>);

  // What was read for one step.
  struct Ahead {
    typename Update<Rule, Types>::Loaded loaded;
    uint64_t coefficient;  // the word, perhaps of an earlier epoch
  };

  // A place in the ring and in the draw there.
  struct Place {
    Cursor cursor{0};
    int step = 0;

    __device__ bool ends_draw() const { return step == kSteps - 1; }
    __device__ void advance(uint32_t n_slots) {
      if (++step < kSteps) return;
      step = 0;
      cursor.advance(1, n_slots);
    }
  };

  __device__ Piece<Rule> piece_at(const Place& place) const {
    const int first = (which_ * kSteps + place.step) * kStepElements<Rule>;
    const int index = first / kPartElements;
    const Draw& draw = block_.ring.draws[place.cursor.slot];
    const Part& part = draw.parts[index];
    const void* const grads = placed_grads<Types>(block_.ring.room(place.cursor.slot, index), part.types);
    return {part, draw.scalars[index], grads, first % kPartElements};
  }

  // False at the end of the list.
  __device__ bool load(Ahead& ahead) {
    const uint32_t slot = ahead_.cursor.slot;
    const Cursor behind = ahead_.cursor.retreated(kMostDrift, block_.n_slots);
    block_.ring.empty[behind.slot].wait(behind.parity);  // until all have left it: they wait for nothing younger
    block_.ring.full[slot].wait(ahead_.cursor.parity);
    if (block_.ring.draws[slot].kinds == 0) return false;
    const Piece<Rule> piece = piece_at(ahead_);
    if (piece.part.has_grad) {
      ahead.coefficient = piece.part.waits
                              ? load_relaxed(&args_.workspace.coefficients[piece.part.coefficient])
                              : tag(block_.epoch, float_bits(unclipped_coefficient(unscaling(args_.scaler))));
      Update<Rule, Types>::load(piece, ahead.loaded);
    }
    ahead_.advance(block_.n_slots);
    return true;
  }

  __device__ void update(Ahead& ahead) {
    const uint32_t slot = here_.cursor.slot;
    block_.ring.ready[slot].wait(here_.cursor.parity);
    const Piece<Rule> piece = piece_at(here_);
    if (piece.part.has_grad) {
      const float coefficient = wait_for(piece.part, ahead.coefficient);
      if (!(coefficient < 0.0f)) {
        Update<Rule, Types>::apply(block_.tables, piece, coefficient, ahead.loaded);
      }
      if (piece.part.index == 0 && piece.begin == 0 && lane_id() == 0)
        finish_tensor(args_, piece.part, piece.scalars, coefficient);
    }
    if (here_.ends_draw()) block_.ring.release(slot);
    here_.advance(block_.n_slots);
  }

  __device__ float wait_for(const Part& part, uint64_t word) {
    while (!__all_sync(kFullWarp, has_epoch(word, block_.epoch))) {
      word = load_relaxed(&args_.workspace.coefficients[part.coefficient]);
    }
    return float_from_bits(payload(word));
  }

  const Block& block_;
  const StepArgs& args_;
  const int which_;
  Place ahead_, here_;
};

}  // namespace bertadam::cuda
