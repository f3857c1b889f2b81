// Draws work items and executes them on the CPU. An update waits only for norms and surveys that are listed before it,
// and whoever drew those is running: a step ends with any number of workers.
// Compiled once per instruction set, with BERTADAM_ISA as the namespace; what it calls of ours is inlined, but for
// prefetch_elements, so the copies define no symbol in common and give the same bits.
#include <fenv.h>
#include <sched.h>

#include "core/rules.h"
#include "core/rules/clip.h"
#include "core/step_args.h"
#include "core/types.h"
#include "cpu/elements.h"
#include "cpu/tree.h"
#include "cpu/worker.h"

namespace bertadam::cpu::BERTADAM_ISA {
namespace {

// IEEE arithmetic with denormals whatever the thread was set to (torch.set_flush_denormal, -Ofast libraries).
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    fegetenv(&saved_);
    fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { fesetenv(&saved_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  fenv_t saved_;
};

// A leaf, into the second cache. Asked for while the one before it is added up, this takes a step with norms from 82.8
// ms to 79.0; to 80.8 into the first cache, to 79.2 two leaves ahead (BERT-base, 2 threads of a Xeon with AVX-512,
// 2026-11).
template <class Grad>
BERTADAM_HD void prefetch_leaf(const Grad* leaf) {
  constexpr int kSecondCache = 2;
  for (int i = 0; i < kLeafElements; i += kLineElements) __builtin_prefetch(leaf + i, 0, kSecondCache);
}

struct Step {
  const StepArgs& args;
  const Workspace& workspace;
  const uint32_t epoch;
  const Unscaling unscale;

  void publish(uint64_t* words, uint32_t index, float value) const {
    __atomic_store_n(&words[index], tag(epoch, float_bits(value)), __ATOMIC_RELEASE);
  }

  float wait_for(const uint64_t* words, uint32_t index) const {
    for (;;) {
      const uint64_t word = __atomic_load_n(&words[index], __ATOMIC_ACQUIRE);
      if (has_epoch(word, epoch)) return float_from_bits(payload(word));
      sched_yield();
    }
  }

  float wait_for_coefficient(uint32_t tensor) const {
    if (!args.waits(args.tensors[tensor])) return unclipped_coefficient(unscale);
    return wait_for(workspace.coefficients, args.coefficient_of(tensor, args.tensors[tensor].group));
  }

  bool climbs_to_root(const TreePosition& at, double& sum) const {
    double sums[1] = {sum};
    const bool is_root = Tree<1>{workspace.nodes, workspace.arrivals}.climbs_to_root(at, sums);
    sum = sums[0];
    return is_root;
  }

  float coefficient(uint32_t group, double norm) const {
    const GroupScalars& scalars = args.groups[group];
    return clip_coefficient(norm, clipping(args, scalars), unscale);
  }

  void finish_all_norms(double total) const {
    const double total_norm = gradient_norm(total, unscale);
    *args.statistics.total_norm = total_norm;
    if (args.scaler.finds_inf != nullptr) *args.scaler.finds_inf = all_finite(total) ? 0.0f : 1.0f;
    const float code = code_of_step(args, unscale, total);
    if (args.clip_by_total_norm) {
      for (uint32_t i = 0; i < args.n_groups; ++i) {
        publish(workspace.coefficients, i, code < 0.0f ? code : coefficient(i, total_norm));
      }
      return;
    }
    for (uint32_t i = 0; i < args.n_tensors; ++i) {
      const float own = coefficient(args.tensors[i].group, args.statistics.norms[i]);
      publish(workspace.coefficients, i, code < 0.0f ? code : own);
    }
  }

  void finish_norm(uint32_t index, bool has_grad, double sum) const {
    const PlanTensor& tensor = args.tensors[index];
    const double norm = has_grad ? gradient_norm(sum, unscale) : NAN;
    if (tensor.needs_norm) args.statistics.norms[index] = norm;
    if (!has_grad) args.statistics.coefficients[index] = NAN;
    if (args.wait_for_all) {
      if (climbs_to_root({args.total_tree, index, args.n_tensors}, sum)) finish_all_norms(sum);
    } else if (has_grad) {
      publish(workspace.coefficients, index, coefficient(tensor.group, norm));
    }
  }

  template <class Grad>
  void norm(const WorkItem& item) const {
    const PlanTensor& tensor = args.tensors[item.tensor];
    const Grad* const grad = static_cast<const Grad*>(args.grads[item.tensor]);
    if (grad == nullptr) {
      if (item.part() == 0) finish_norm(item.tensor, false, 0.0);
      return;
    }
    const int64_t begin = static_cast<int64_t>(item.part()) * kPartElements;
    const int64_t end = std::min(begin + kPartElements, tensor.n_elements);
    double leaves[kPartLeaves];
    int n_leaves = 0;
    for (int64_t i = begin; i < end; i += kLeafElements) {
      if (i + 2 * kLeafElements <= end) prefetch_leaf(grad + i + kLeafElements);
      leaves[n_leaves++] = leaf_sum(grad + i, std::min<int64_t>(kLeafElements, end - i));
    }
    double sum = pairwise_sum(leaves, n_leaves);
    if (climbs_to_root({tensor.first_node, item.part(), tensor.n_chunks}, sum)) finish_norm(item.tensor, true, sum);
  }

  // Apart, for each type: together they would share the registers of one function.
  template <class Rule, class Storage, class Grad>
  __attribute__((noinline)) void survey(const WorkItem& item, float coefficient) const {
    const PlanTensor& tensor = args.tensors[item.tensor];
    const TensorRow& row = args.rows[item.tensor];
    const GroupScalars group = args.groups[tensor.group];
    const int64_t begin = static_cast<int64_t>(item.part()) * kPartElements;
    const int64_t n = std::min<int64_t>(kPartElements, tensor.n_elements - begin);
    const Elements<Rule, Storage, Grad> elements(row, args.grads[item.tensor], begin);
    double params[kPartLeaves], updates[kPartLeaves];
    survey_elements(group, tensor_scalars(group, row, coefficient), elements, n, params, updates);
    const int64_t n_leaves = (n + kLeafElements - 1) / kLeafElements;
    double sums[2] = {pairwise_sum(params, n_leaves), pairwise_sum(updates, n_leaves)};
    const Tree<2> tree{workspace.survey_nodes, workspace.survey_arrivals};
    if (!tree.climbs_to_root({tensor.first_node, item.part(), tensor.n_chunks}, sums)) return;
    publish(workspace.ratios, item.tensor, Rule::trust_ratio(group, sqrt(sums[0]), sqrt(sums[1])));
  }

  template <class Rule, class Storage, class Grad>
  __attribute__((noinline)) void update(const WorkItem& item, float coefficient) const {
    const PlanTensor& tensor = args.tensors[item.tensor];
    const TensorRow& row = args.rows[item.tensor];
    const GroupScalars group = args.groups[tensor.group];
    TensorScalars scalars = tensor_scalars(group, row, coefficient);
    if constexpr (Rule::kHasTrustRatio) scalars.lr *= wait_for(workspace.ratios, item.tensor);
    const int64_t begin = static_cast<int64_t>(item.part()) * kPartElements;
    const int64_t n = std::min<int64_t>(kPartElements, tensor.n_elements - begin);
    const Elements<Rule, Storage, Grad> elements(row, args.grads[item.tensor], begin);
    update_elements(group, scalars, elements, RandomBitsAhead<Storage>(random_bits(args, row), begin), n);
  }

  void norm(const WorkItem& item) const {
    switch (grad_type(args.rows[item.tensor].types)) {
#define BERTADAM_CASE(type, Grad, name) \
  case DType::type:                     \
    return norm<Grad>(item);
      BERTADAM_FOR_EACH_GRAD(BERTADAM_CASE)
#undef BERTADAM_CASE
    }
  }

  template <class Rule>
  void survey_or_update(const WorkItem& item) const {
    if (args.grads[item.tensor] == nullptr) return;
    const float coefficient = wait_for_coefficient(item.tensor);
    if (coefficient < 0.0f) return;
    switch (args.rows[item.tensor].types) {
#define BERTADAM_CASE(kind, Storage, type, Grad)                                  \
  case types_code(StorageKind::kind, DType::type):                                \
    if constexpr (Rule::kHasTrustRatio) {                                         \
      if (item.kinds() & kSurvey) survey<Rule, Storage, Grad>(item, coefficient); \
    }                                                                             \
    if (item.kinds() & kUpdate) update<Rule, Storage, Grad>(item, coefficient);   \
    return;
      BERTADAM_FOR_EACH_TYPE_ROW(BERTADAM_CASE)
#undef BERTADAM_CASE
    }
  }

  // By the last worker, when nobody reads a step any more.
  template <class Rule>
  void finish() const {
    for (uint32_t i = 0; i < args.n_tensors; ++i) {
      if (Rule::kHasTrustRatio) args.statistics.trust_ratios[i] = NAN;
      if (args.grads[i] == nullptr) continue;
      const float coefficient = wait_for_coefficient(i);
      if (Rule::kHasTrustRatio && !(coefficient < 0.0f)) {
        args.statistics.trust_ratios[i] = wait_for(workspace.ratios, i);
      }
      if (args.tensors[i].needs_norm) args.statistics.coefficients[i] = without_unscaling(coefficient, unscale);
      if (!(coefficient < 0.0f)) *args.rows[i].step += 1.0f;
      if (coefficient == kSkipped) *args.statistics.n_skipped += 1;
    }
    workspace.counters->ticket = 0;
    workspace.counters->epoch = epoch;
  }
};

template <class Rule>
void work(const StepArgs& args) {
  const DefaultFloatingPoint guard;
  Counters& counters = *args.workspace.counters;
  const Step step{args, args.workspace, epoch_after(counters.epoch), unscaling(args.scaler)};
  for (uint32_t ticket; (ticket = add_one(&counters.ticket)) < args.n_draws;) {
    const WorkItem item = args.items[ticket];
    if (item.kinds() & kNorm) step.norm(item);
    if (item.kinds() & (kSurvey | kUpdate)) step.survey_or_update<Rule>(item);
  }
  if (arrives_last(&counters.workers_done, args.n_workers)) step.finish<Rule>();
}

}  // namespace

Worker worker_of(RuleId rule) {
  switch (rule) {
#define BERTADAM_CASE(Rule) \
  case RuleId::k##Rule:     \
    return work<Rule>;
    BERTADAM_FOR_EACH_RULE(BERTADAM_CASE)
#undef BERTADAM_CASE
  }
  return nullptr;
}

}  // namespace bertadam::cpu::BERTADAM_ISA
