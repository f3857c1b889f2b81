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
