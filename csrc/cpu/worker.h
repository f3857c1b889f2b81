// The CPU backend: one function that any number of threads may call at once for the same step.
#pragma once

#include "core/step_args.h"

namespace bertadam {

enum class RuleId { kAdam };

namespace cpu {

// One item: 256 KB of each array. With 64 KB, steps on BERT-base's shapes took 3 % longer, with 1 MB the same (2
// threads of a Xeon, 2026-11).
constexpr int kPartLeaves = 64;
constexpr int64_t kPartElements = kPartLeaves * kLeafElements;

// How far ahead an update asks for the lines of all its arrays, a line of floats at a time. BERT-base's
// update takes 72 ms where only the hardware prefetches, 61 with 0.75 to 2 KB, 63 with 4, 67 with 8 (2 threads of a
// Xeon with AVX-512, 2026-11). As hints for the second cache alone they gain little (66 ms), non-temporal ones harm.
constexpr int kLineElements = 16;
constexpr int kUpdatePrefetchBytes = 1536;

using Worker = void (*)(const StepArgs&);

struct IsaLevel {
  const char* name;
  bool supported;  // by this machine
};

// The levels compiled into this binary, the most capable last.
int n_isa_levels();
IsaLevel isa_level(int index);

// The worker of a level; bits do not depend on the level.
Worker worker(RuleId rule, int isa_index);

}  // namespace cpu
}  // namespace bertadam
