// A warp's share of an update: kStepElements<Rule> of one part, loaded ahead, then computed and stored.
#pragma once

#include "core/rules/clip.h"
#include "core/rules/math.h"
#include "core/rules/new_param.h"
#include "cuda/elements.cuh"
#include "cuda/parts.cuh"
#include "cuda/ranged_math.cuh"

namespace bertadam::cuda {

// Vectors of each array that a lane loads ahead: half as many of a rule with more states, whose registers they take.
template <class Rule>
constexpr int kVectorsOf = Rule::kNumStates <= 2 ? kVectors : kVectors / 2;
template <class Rule>
constexpr int kStepElements = 32 * 4 * kVectorsOf<Rule>;
static_assert(kPartElements % (32 * 4 * kVectors) == 0, "a warp's step lies within a part");

// What a warp works on in one step.
template <class Rule>
struct Piece {
  const Part& part;
  const PartScalars& scalars;
  const void* grads;  // the part's, in a slot
  int begin, end;     // elements of the part
  int vectors_end;    // those before it go four at a time

  __device__ Piece(const Part& part, const PartScalars& scalars, const void* grads, int begin)
      : part(part),
        scalars(scalars),
        grads(grads),
        begin(begin),
        end(max(begin, min(part.n, begin + kStepElements<Rule>))),
        vectors_end(part.aligned ? end & ~3 : begin) {}

  // The first element of this lane's vector `v`.
  __device__ int vector(int v) const { return begin + 128 * v + 4 * lane_id(); }
  // Element `i`'s place in the whole tensor.
  __device__ uint64_t index(int i) const { return uint64_t{part.index} * kPartElements + static_cast<uint32_t>(i); }
};

__device__ __forceinline__ void count_skipped(const Statistics& statistics) {
  atomicAdd(reinterpret_cast<unsigned long long*>(statistics.n_skipped), 1ull);
}

// What is done once for a tensor. The step of a large one is still read by others: see finish_step.
__device__ __forceinline__ void finish_tensor(const StepArgs& args, const Part& part, const PartScalars& scalars,
                                              float coefficient) {
  const Statistics& statistics = args.statistics;
  if (part.needs_norm) statistics.coefficients[part.tensor] = without_unscaling(coefficient, unscaling(args.scaler));
  if (coefficient == kSkipped) count_skipped(statistics);
  if (part.step != nullptr && !(coefficient < 0.0f)) *part.step = scalars.step + 1.0f;
}

template <class Rule, class Types>
struct Update {
  struct Loaded {
    Words param[kVectorsOf<Rule>];
    float states[Rule::kNumStates][kVectorsOf<Rule>][4];
  };

  __device__ __forceinline__ static void load(const Piece<Rule>& piece, Loaded& loaded) {
    const Part& part = piece.part;
    Types::with_storage(part.types, [&](auto storage) {
#pragma unroll
      for (int v = 0; v < kVectorsOf<Rule>; ++v) {
        const int i = piece.vector(v);
        if (i < piece.vectors_end) FourParams<decltype(storage)>::load(loaded.param[v], part.param, part.master, i);
      }
    });
#pragma unroll
    for (int v = 0; v < kVectorsOf<Rule>; ++v) {
      const int i = piece.vector(v);
      if (i >= piece.vectors_end) continue;
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) load_words(loaded.states[k][v], part.states[k] + i);
    }
  }

  __device__ __forceinline__ static void apply(const Tables& tables, const Piece<Rule>& piece, float coefficient,
                                               Loaded& loaded) {
    const Part& part = piece.part;
    typename Types::template Kept<GroupScalars> group = tables.groups[part.group];
    TensorScalars scalars = piece.scalars.values;
    scalars.grad_scale *= coefficient;
    uint32_t redo = 0;  // vectors with an argument that is out of range
#pragma unroll
    for (int v = 0; v < kVectorsOf<Rule>; ++v) {
      const int i = piece.vector(v);
      if (i >= piece.vectors_end) continue;
      float g[4], p[4];
      Types::with_grad(part.types, [&](auto element) {
        load_four_from_slot(g, static_cast<const decltype(element)*>(piece.grads) + i);
      });
      Types::with_storage(part.types, [&](auto storage) {
#pragma unroll
        for (int j = 0; j < 4; ++j) p[j] = FourParams<decltype(storage)>::value(loaded.param[v], j);
      });
      RangedMath math;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float states[Rule::kNumStates];
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) states[k] = loaded.states[k][v][j];
        p[j] = new_param<Rule>(math, group, scalars, g[j], p[j], states);
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) loaded.states[k][v][j] = states[k];
      }
      if (!math.exact()) {
        redo |= 1u << v;
        continue;
      }
      Types::with_storage(part.types, [&](auto storage) {
        using Storage = decltype(storage);
        if constexpr (Storage::kIsRandom) {
          FourParams<Storage>::store(part.param, part.master, i, p, random_bits(tables, piece, i));
        } else {
          FourParams<Storage>::store(part.param, part.master, i, p, nullptr);
        }
      });
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) store_words(part.states[k] + i, loaded.states[k][v]);
    }
#pragma unroll 1
    for (; redo != 0; redo &= redo - 1) {
      const int i = piece.vector(__ffs(redo) - 1);
#pragma unroll 1
      for (int j = 0; j < 4; ++j) apply_one(tables, piece, group, scalars, i + j);
    }
    // Up to three behind the last vector, or all where memory is not aligned.
#pragma unroll 1
    for (int i = piece.vectors_end + lane_id(); i < piece.end; i += 32) apply_one(tables, piece, group, scalars, i);
  }

 private:
  // Of the four elements that `i` is one of.
  __device__ __forceinline__ static FourBits random_bits(const Tables& tables, const Piece<Rule>& piece, int i) {
    const RandomBits bits{tables.args.rounding_seed, piece.scalars.ordinal, static_cast<uint32_t>(piece.scalars.step)};
    return FourBits(bits, piece.index(i) & ~uint64_t{3});
  }

  __device__ __forceinline__ static void apply_one(const Tables& tables, const Piece<Rule>& piece,
                                                   const GroupScalars& group, const TensorScalars& scalars, int i) {
    const Part& part = piece.part;
    float g = 0.0f;
    Types::with_grad(part.types,
                     [&](auto element) { g = to_float(static_cast<const decltype(element)*>(piece.grads)[i]); });
    float states[Rule::kNumStates];
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) states[k] = part.states[k][i];
    const auto updated = [&](float p) {
      const IeeeMath math;
      return new_param<Rule>(math, group, scalars, g, p, states);
    };
    Types::with_storage(part.types, [&](auto storage) {
      using Storage = decltype(storage);
      auto* const param = static_cast<typename Storage::Param*>(part.param) + i;
      typename Storage::Master master{};
      auto* const masters = static_cast<typename Storage::Master*>(part.master);
      if constexpr (Storage::kHasMaster) master = masters[i];
      uint32_t drawn = 0;
      if constexpr (Storage::kIsRandom) drawn = random_bits(tables, piece, i)[i % 4];
      *param = Storage::store(updated(Storage::load(*param, master)), master, drawn);
      if constexpr (Storage::kHasMaster) masters[i] = master;
    });
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) part.states[k][i] = states[k];
  }
};

}  // namespace bertadam::cuda
