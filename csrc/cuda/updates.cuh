// A warp's share of an update: kStepElements of one part, loaded ahead, then computed and stored.
#pragma once

#include "core/rules/clip.h"
#include "core/rules/descent.h"
#include "core/rules/math.h"
#include "cuda/memory.cuh"
#include "cuda/parts.cuh"
#include "cuda/ranged_math.cuh"

namespace bertadam::cuda {

constexpr int kStepElements = 32 * 4 * kVectors;
static_assert(kPartElements % kStepElements == 0, "a warp's step lies within a part");

// What a warp works on in one step.
struct Piece {
  const Part& part;
  const PartScalars& scalars;
  const float* grads;  // the part's, in a slot or in global memory
  int begin, end;      // elements of the part
  int vectors_end;     // those before it go four at a time

  __device__ Piece(const Part& part, const PartScalars& scalars, const float* grads, int begin, bool aligned)
      : part(part),
        scalars(scalars),
        grads(grads),
        begin(begin),
        end(max(begin, min(part.n, begin + kStepElements))),
        vectors_end(aligned ? end & ~3 : begin) {}

  // The first element of this lane's vector `v`.
  __device__ int vector(int v) const { return begin + 128 * v + 4 * lane_id(); }
};

// Four gradients at a time, from a slot or from registers.
struct SlotGrads {
  const float* grads;
  __device__ void load(float (&x)[4], int, int i) const {
    *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(grads + i);
  }
};
struct LoadedGrads {
  float grads[kVectors][4];
  __device__ void load(float (&x)[4], int v, int) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = grads[v][j];
  }
};

template <class Rule>
struct Update {
  struct Loaded {
    float param[kVectors][4];
    float states[Rule::kNumStates][kVectors][4];
  };

  __device__ __forceinline__ static void load(const Piece& piece, Loaded& loaded) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = piece.vector(v);
      if (i >= piece.vectors_end) continue;
      load4(loaded.param[v], piece.part.param + i);
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) load4(loaded.states[k][v], piece.part.states[k] + i);
    }
  }

  template <class Grads>
  __device__ __forceinline__ static void apply(const GroupScalars* groups, const Piece& piece, float coefficient,
                                               const Grads& grads, Loaded& loaded) {
    const Part& part = piece.part;
    const GroupScalars group = groups[part.group];
    TensorScalars scalars = piece.scalars.values;
    scalars.grad_scale *= coefficient;
    uint32_t redo = 0;  // vectors with an argument that is out of range
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = piece.vector(v);
      if (i >= piece.vectors_end) continue;
      float g[4];
      grads.load(g, v, i);
      RangedMath math;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float states[Rule::kNumStates];
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) states[k] = loaded.states[k][v][j];
        const float p = loaded.param[v][j];
        loaded.param[v][j] = descend(p, scalars.lr, Rule::update(math, group, scalars, g[j], p, states));
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) loaded.states[k][v][j] = states[k];
      }
      if (!math.exact()) {
        redo |= 1u << v;
        continue;
      }
      store4(part.param + i, loaded.param[v]);
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) store4(part.states[k] + i, loaded.states[k][v]);
    }
#pragma unroll 1
    for (; redo != 0; redo &= redo - 1) {
      const int i = piece.vector(__ffs(redo) - 1);
#pragma unroll 1
      for (int j = 0; j < 4; ++j) apply_one(piece, group, scalars, i + j);
    }
    // Up to three behind the last vector, or all where memory is not aligned.
#pragma unroll 1
    for (int i = piece.vectors_end + lane_id(); i < piece.end; i += 32) apply_one(piece, group, scalars, i);
  }

 private:
  __device__ __forceinline__ static void apply_one(const Piece& piece, const GroupScalars& group,
                                                   const TensorScalars& scalars, int i) {
    const Part& part = piece.part;
    float states[Rule::kNumStates];
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) states[k] = part.states[k][i];
    const float p = part.param[i];
    const IeeeMath math;
    part.param[i] = descend(p, scalars.lr, Rule::update(math, group, scalars, piece.grads[i], p, states));
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) part.states[k][i] = states[k];
  }
};

}  // namespace bertadam::cuda
