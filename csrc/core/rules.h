// The one list of rules: it drives the instances, the dispatch, the names of the states and the tests. To add a rule,
// include its file and name it here.
#pragma once

#include "core/rules/adam.h"
#include "core/rules/amsgrad.h"
#include "core/rules/lamb.h"
#include "core/rules/lars.h"

namespace bertadam {

// X(rule).
#define BERTADAM_FOR_EACH_RULE(X) \
  X(Adam)                         \
  X(Amsgrad)                      \
  X(Lamb)                         \
  X(Lars)

enum class RuleId : uint32_t {
#define BERTADAM_ENUMERATOR(Rule) k##Rule,
  BERTADAM_FOR_EACH_RULE(BERTADAM_ENUMERATOR)
#undef BERTADAM_ENUMERATOR
};

// What everybody but a worker knows of a rule.
struct RuleInfo {
  const char* name;
  int n_states;
  const char* const* state_names;
  bool has_trust_ratio;
};

constexpr RuleInfo kRules[] = {
#define BERTADAM_INFO(Rule) {#Rule, Rule::kNumStates, Rule::kStateNames, Rule::kHasTrustRatio},
    BERTADAM_FOR_EACH_RULE(BERTADAM_INFO)
#undef BERTADAM_INFO
};
constexpr int kNumRules = sizeof(kRules) / sizeof(kRules[0]);

constexpr const RuleInfo& rule_info(RuleId rule) { return kRules[static_cast<int>(rule)]; }

constexpr int most_states() {
  int most = 0;
  for (const RuleInfo& rule : kRules) most = rule.n_states > most ? rule.n_states : most;
  return most;
}
constexpr int kMaxStates = most_states();

}  // namespace bertadam
