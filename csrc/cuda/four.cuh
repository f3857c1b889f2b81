// Four elements of a part, as a lane has them in a row of 128: read ahead as vectors, worked on, written back; or one
// by one, where memory is not aligned, a part ends, or an argument is out of range for the fast arithmetic.
#pragma once

#include "core/rules/math.h"
#include "cuda/elements.cuh"
#include "cuda/parts.cuh"
#include "cuda/ranged_math.cuh"

namespace bertadam::cuda {

template <class Rule, class Types>
class Four {
 public:
  // The part's elements [i, i + 4).
  __device__ __forceinline__ void load(const Part& part, int i, bool with_states) {
    if (!is_vector(part, i)) return;
    Types::with_storage(part.types,
                        [&](auto storage) { FourParams<decltype(storage)>::load(param_, part.param, part.master, i); });
    if (!with_states) return;
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) load_words(states_[k], part.states[k] + i);
  }

  // What `visit` leaves: parameters as they were, and what came of them; 0 for elements past the part's end.
  struct Visited {
    float params[4], results[4];
  };

  // `f(math, input, p, states)` for each element: returns the result, and may change p and states, of which those are
  // written that the flags say. It may be called twice.
  template <bool kWritesParam, bool kWritesStates, class F>
  __device__ __forceinline__ Visited visit(const Part& part, int i, const RandomBits& bits, const float (&inputs)[4],
                                           F f) {
    Visited visited{};
    if (is_vector(part, i)) {
      Types::with_storage(part.types, [&](auto storage) {
#pragma unroll
        for (int j = 0; j < 4; ++j) visited.params[j] = FourParams<decltype(storage)>::value(param_, j);
      });
      RangedMath math;
      float moved[4], moved_states[Rule::kNumStates][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float states[Rule::kNumStates];
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) states[k] = states_[k][j];
        moved[j] = visited.params[j];
        visited.results[j] = f(math, inputs[j], moved[j], states);
#pragma unroll
        for (int k = 0; k < Rule::kNumStates; ++k) moved_states[k][j] = states[k];
      }
      if (math.exact()) {
        if constexpr (kWritesParam) store_params(part, i, bits, moved);
        if constexpr (kWritesStates) {
#pragma unroll
          for (int k = 0; k < Rule::kNumStates; ++k) store_words(part.states[k] + i, moved_states[k]);
        }
        return visited;
      }
    }
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
      float input = 0.0f, param = 0.0f, result = 0.0f;
#pragma unroll
      for (int k = 0; k < 4; ++k) input = k == j ? inputs[k] : input;
      if (i + j < part.n) result = visit_one<kWritesParam, kWritesStates>(part, i + j, bits, input, f, param);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        visited.params[k] = k == j ? param : visited.params[k];
        visited.results[k] = k == j ? result : visited.results[k];
      }
    }
    return visited;
  }

 private:
  __device__ static bool is_vector(const Part& part, int i) { return part.aligned && i + 4 <= part.n; }

  __device__ static uint64_t index_of(const Part& part, int i) {
    return uint64_t{part.index} * kPartElements + static_cast<uint32_t>(i);
  }

  __device__ __forceinline__ static void store_params(const Part& part, int i, const RandomBits& bits,
                                                      const float (&params)[4]) {
    Types::with_storage(part.types, [&](auto storage) {
      using Storage = decltype(storage);
      if constexpr (Storage::kIsRandom) {
        FourParams<Storage>::store(part.param, part.master, i, params, FourBits(bits, index_of(part, i)));
      } else {
        FourParams<Storage>::store(part.param, part.master, i, params, nullptr);
      }
    });
  }

  template <bool kWritesParam, bool kWritesStates, class F>
  __device__ __forceinline__ static float visit_one(const Part& part, int i, const RandomBits& bits, float input, F f,
                                                    float& param) {
    float states[Rule::kNumStates];
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) states[k] = part.states[k][i];
    float result = 0.0f;
    Types::with_storage(part.types, [&](auto storage) {
      using Storage = decltype(storage);
      auto* const params = static_cast<typename Storage::Param*>(part.param);
      auto* const masters = static_cast<typename Storage::Master*>(part.master);
      typename Storage::Master master{};
      if constexpr (Storage::kHasMaster) master = masters[i];
      param = Storage::load(params[i], master);
      float moved = param;
      IeeeMath math;
      result = f(math, input, moved, states);
      if constexpr (kWritesParam) {
        uint32_t drawn = 0;
        if constexpr (Storage::kIsRandom) drawn = FourBits(bits, index_of(part, i) & ~uint64_t{3})[i % 4];
        params[i] = Storage::store(moved, master, drawn);
        if constexpr (Storage::kHasMaster) masters[i] = master;
      }
    });
    if constexpr (kWritesStates) {
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) part.states[k][i] = states[k];
    }
    return result;
  }

  Words param_;
  float states_[Rule::kNumStates][4];
};

}  // namespace bertadam::cuda
