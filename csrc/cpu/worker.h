// The CPU backend: one function that any number of threads may call at once for the same step.
#pragma once

#include "core/step_args.h"

namespace bertadam {

enum class RuleId { kAdam };

namespace cpu {

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
